"""Evaluation of a model during fine-tuning, with the samples of a split divided over processes."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rsbackbones.data.image_warnings import ImageWarnings
from rsbackbones.data.labelled.dataset import Array, LabelledDataset
from rsbackbones.data.series import model_arguments, stack_dated
from rsbackbones.eval.bootstrap import count_intervals, intervals
from rsbackbones.eval.dense import predict
from rsbackbones.eval.feature_table import FeatureTable
from rsbackbones.eval.metrics import (
    BACKGROUND,
    FOREGROUND,
    METRICS,
    compute_metrics,
    from_confusion,
    primary_metric,
)
from rsbackbones.eval.predictions import Predictions
from rsbackbones.eval.probe import hold_out
from rsbackbones.eval.transform import dated_transform, load_dated
from rsbackbones.models.backbone import unwrap_model
from rsbackbones.train.engine.distributed import DistributedContext
from rsbackbones.train.finetune.recipe import FinetuneRecipe


@dataclass(frozen=True)
class Evaluation:
    """The predictions of a model on a split, or the confusion counts [n, K, K] of its label maps.

    ``warnings`` has by text how many images earned a warning.
    """

    data: LabelledDataset
    found: Predictions | Array
    warnings: Mapping[str, int]

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the task, by the names of :mod:`rsbackbones.eval.metrics`."""
        if isinstance(self.found, Predictions):
            return compute_metrics(self.found, self.data.task, self.data.classes)
        return from_confusion(self.found.sum(0), self.data.classes)

    def intervals(self, seed: int) -> dict[str, tuple[float, float]]:
        """Return the 95 % bootstrap interval of each metric over images; none for a single image."""
        images = len(self.found.scores if isinstance(self.found, Predictions) else self.found)
        if images < 2:
            return {}
        if isinstance(self.found, Predictions):
            return intervals(self.found, self.data.task, self.data.classes, seed=seed)
        drawn = count_intervals(self.found, self.data.classes, seed=seed)
        return {name: drawn[name] for name in self.metrics() if name in drawn}


def main_metric(data: LabelledDataset, recipe: FinetuneRecipe) -> str:
    """Return the metric for model selection: that of the recipe, or the default of the task.

    Raises:
        ValueError: the task does not have the metric of the recipe.
    """
    metric = recipe.metric or primary_metric(data.task, data.classes)
    known = list(METRICS[data.task])
    if data.labels is None:
        known += [FOREGROUND] * (BACKGROUND in data.classes)
        known += [f"{score}_{name}" for name in data.classes for score in ("iou", "f1")]
    if metric not in known:
        hint = f"; {FOREGROUND} needs a class called {BACKGROUND}" * (metric == FOREGROUND)
        raise ValueError(f"metric={metric}: labels of {data.name} have {', '.join(known)}{hint}")
    return metric


def value_of(metrics: Mapping[str, float], metric: str) -> float:
    """Return one metric.

    Raises:
        ValueError: it is undefined, as its class is neither among the labels nor among the predictions.
    """
    if metric not in metrics:
        raise ValueError(
            f"there is no {metric} here: the class is neither among the labels nor among the predictions; "
            f"there are {', '.join(metrics)}: metric=..."
        )
    return metrics[metric]


def split_validation(data: LabelledDataset, seed: int) -> tuple[LabelledDataset, str | None]:
    """Return the set with a validation split, and a note if it was taken from the training samples.

    Raises:
        ValueError: there are fewer than two training samples.
    """
    if "val" in data.splits:
        return data, None
    train = data.splits["train"]
    if len(train) < 2:
        raise ValueError(
            f"{data.name} has no validation split and {len(train)} training sample to take one "
            "from; name one, or say select=paper"
        )
    one_class = data.labels is not None and data.labels.ndim == 1
    labels = data.labels[train] if data.labels is not None and one_class else np.zeros((len(train), 1), bool)
    kept, held = (part.features[:, 0] for part in hold_out(FeatureTable(train[:, None], labels), seed))
    share = f"{len(held)} of {len(train)}"
    note = f"no validation split: our own fifth of the training samples (seed {seed}), {share}"
    return replace(data, splits={**data.splits, "train": kept, "val": held}), note


@torch.no_grad()
def evaluate(
    model: nn.Module, data: LabelledDataset, split: str, recipe: FinetuneRecipe, processes: DistributedContext
) -> Evaluation:
    """Evaluate the model on a split. Every process must call this and gets the whole result.

    Raises:
        ValueError: there is no such split, or a sample cannot be used.
    """
    if split not in data.splits or not len(data.splits[split]):
        raise ValueError(f"{data.name} has no {split} samples; its splits: {', '.join(data.splits)}")
    indices = data.splits[split]
    mine = indices[processes.rank :: processes.world_size]
    device = processes.device
    was_training = model.training
    model.eval()
    given, problem, warned = None, None, ImageWarnings()
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            given = _given(model, data, split, mine, recipe, device, warned) if len(mine) else None
    except ValueError as error:
        problem = str(error)  # raised in all processes, as the others wait for this one
    finally:
        model.train(was_training)
    if problem := next((p for p in processes.gather(problem) if p), None):
        raise ValueError(problem)
    parts = [part for part in processes.gather(given) if part is not None]
    warnings: Counter[str] = Counter()
    for counts in processes.gather(warned.counts(mine.tolist())):
        warnings.update(counts)
    every = np.empty((len(indices), *parts[0].shape[1:]), parts[0].dtype)
    for rank, part in enumerate(parts):  # with few images the last ranks have none
        every[rank :: processes.world_size] = part
    if data.labels is None:
        return Evaluation(data, every, warnings)
    return Evaluation(data, Predictions(scores=every, target=data.labels[indices]), warnings)


def _given(
    model: nn.Module,
    data: LabelledDataset,
    split: str,
    mine: Array,
    recipe: FinetuneRecipe,
    device: torch.device,
    warned: ImageWarnings,
) -> Array:
    """Return scores [n, K] of images, or confusion counts [n, K, K], of the samples of one process."""
    views = recipe.views
    if data.labels is None:
        share = replace(data, splits={split: mine})
        return predict(
            model, share, split, tile=views.tile, overlap=views.overlap, batch_size=recipe.evaluation_batch,
            warned=warned,
        )  # fmt: skip
    transform, modalities = dated_transform(model, data), unwrap_model(model).modalities
    size = None if views.size is None else (views.size, views.size)
    batches: list[Tensor] = []
    for first in range(0, len(mine), recipe.evaluation_batch):
        places = [int(i) for i in mine[first : first + recipe.evaluation_batch]]
        samples = [load_dated(data, i, transform, warned, size)[0] for i in places]
        if len({tuple(x.shape[-2:]) for sample in samples for x in sample.images.values()}) > 1:
            raise ValueError(f"{data.name}: images vary in size; bring them to one with views.size")
        stacked = stack_dated(samples).to(device)
        series = model_arguments(stacked.dates, stacked.valid, modalities)
        batches.append(model(stacked.images, **series).float().cpu())
    logits = torch.cat(batches)
    scores: Any = logits.sigmoid() if data.task == "multilabel" else logits.softmax(dim=1)
    return np.asarray(scores.numpy())
