"""The run of a fine-tuning recipe: data, model, optimizer and schedule, and evaluations between epochs."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rsbackbones.data.labelled.dataset import LabelledDataset
from rsbackbones.data.tiles import tiles_of
from rsbackbones.eval.feature_source import describe, model_for
from rsbackbones.eval.transform import dated_transform
from rsbackbones.heads import dense_model
from rsbackbones.models.backbone import unwrap_model
from rsbackbones.train.engine.batch import Batch
from rsbackbones.train.engine.batch_norm import set_batch_norm
from rsbackbones.train.engine.distributed import DistributedContext
from rsbackbones.train.engine.errors import TrainingError
from rsbackbones.train.engine.log import RunLog
from rsbackbones.train.engine.optim import start_state
from rsbackbones.train.engine.parallel import parallelize
from rsbackbones.train.engine.run_dir import EVALUATIONS, read_log
from rsbackbones.train.engine.sampler import StepSampler
from rsbackbones.train.engine.train_step import TrainRun
from rsbackbones.train.finetune.evaluation import evaluate, main_metric, split_validation, value_of
from rsbackbones.train.finetune.fusion import build_fusion
from rsbackbones.train.finetune.objective import Finetuning, normalize_by_global_pixels
from rsbackbones.train.finetune.optim import build_optimizer, build_schedule
from rsbackbones.train.finetune.recipe import FinetuneRecipe
from rsbackbones.train.finetune.samples import LabelledBatch, LabelledPlan, LabelledSamples, PairedSampler
from rsbackbones.train.finetune.saved import BEST, save_finetuned
from rsbackbones.train.finetune.statistics import dataset_inputs
from rsbackbones.train.pictures import draw_losses


class FinetuneRun(TrainRun):
    """The run of a recipe on a labelled set.

    Attributes:
        data: the set, with a validation split if one is needed.
        split: the split for model selection.
        metric: the metric for model selection.
    """

    config: FinetuneRecipe
    objective: Finetuning
    dataset: LabelledSamples

    def __init__(self, recipe: FinetuneRecipe, processes: DistributedContext, data: LabelledDataset) -> None:
        self.config, self.processes = recipe, processes
        self.clip_grad, self.workers, self.max_bad_share = recipe.optim.clip_grad, recipe.workers, 0.0
        _check(recipe, processes, data)
        model, note = build_model(recipe, data), None
        unwrap_model(model).pad = recipe.pad
        data = data.complete(unwrap_model(model).modalities)
        if recipe.select == "val":
            data, note = split_validation(data, recipe.seed)
        self.data, self.metric = data, main_metric(data, recipe)
        self.split = "val" if "val" in data.splits else "test"

        self.notes = [*describe(data, unwrap_model(model)), *([note] if note else [])]
        training = data
        if recipe.views.tile is not None:
            tile, overlap = recipe.views.tile, recipe.views.overlap
            training = tiles_of(data, "train", tile=tile, overlap=tile // 2 if overlap is None else overlap)
        indices = training.splits["train"]
        inputs = dated_transform(model, training)
        self.dataset = LabelledSamples(
            training, indices, inputs, recipe.views, scale=recipe.scale, seed=recipe.seed
        )
        self.places = len(indices)
        # If the length is given in steps, batches may be larger than the set: an epoch then repeats it.
        repeat = 1 if recipe.steps is None else -(-recipe.batch_size // len(indices))
        self.plan = LabelledPlan(
            lengths=(len(indices),), repeats=(repeat,), blocks=(1,), batch_size=recipe.batch_size,
            seed=recipe.seed,
        )  # fmt: skip
        self.sampler_class = PairedSampler if _mixes(recipe, data) else StepSampler
        per_epoch = self.plan.steps_per_epoch
        self.total_steps = recipe.steps or (recipe.epochs or 0) * per_epoch
        self.evaluate_every = recipe.evaluate_every or per_epoch

        self.objective = Finetuning(
            model, data.task, freeze=recipe.freeze, auxiliary=recipe.auxiliary
        ).to(processes.device).train()  # fmt: skip
        set_batch_norm(self.objective, recipe.batch_norm, recipe.batch_norm_group)
        # Parameters of dates and missing images get no gradient from a batch without them.
        unused = self.objective.backbone.consumes == "series"
        self.module = parallelize(self.objective, recipe, processes.device, unused=unused)
        self.optimizer = build_optimizer(self.objective, recipe.optim, recipe.batch_size)
        start_state(self.objective, self.optimizer)
        self.schedule = build_schedule(
            self.optimizer, recipe.optim, steps=self.total_steps, steps_per_epoch=per_epoch
        )
        # Drop path draws different numbers in every process.
        torch.manual_seed(int(np.random.SeedSequence((recipe.seed, processes.rank)).generate_state(1)[0]))

    def forward_backward(self, batches: Sequence[Batch]) -> tuple[dict[str, Tensor], Tensor]:
        """See :meth:`TrainRun.forward_backward`. All labelled pixels of a step have equal weight."""
        if self.data.labels is None:
            held = [batch for batch in batches if isinstance(batch, LabelledBatch)]
            batches = normalize_by_global_pixels(held, self.processes)
        return super().forward_backward(batches)

    def sources(self) -> list[dict[str, Any]]:
        """See :meth:`TrainRun.sources`."""
        splits = {
            name: hashlib.sha256("\n".join(self.data.ids[i] for i in indices).encode()).hexdigest()
            for name, indices in self.data.splits.items()
        }
        return [
            {"name": self.data.name, "digest": self.data.digest, "places": self.places,
             "samples": {name: len(indices) for name, indices in self.data.splits.items()}, "splits": splits,
             "bands": {m: list(b) for m, b in self.objective.backbone.bands.items()}, "notes": self.notes}
        ]  # fmt: skip

    def should_checkpoint(self, step: int) -> bool:
        """See :meth:`TrainRun.should_checkpoint`: before every evaluation, so that only it is repeated."""
        return step % self.evaluate_every == 0 or step == self.total_steps

    def on_step_end(self, step: int, folder: Path, log: RunLog) -> None:
        """Evaluate if it is due, log the result in ``evaluations.jsonl``, and save the best model.

        Losses are plotted once, at the end: plotting would take longer than a short epoch.
        """
        if step == self.total_steps and self.processes.is_main_process:
            draw_losses(folder)
        known = self.processes.broadcast_from_rank0(
            evaluations(folder) if self.processes.is_main_process else None
        )
        if not self.should_checkpoint(step) or any(line["step"] == step for line in known):
            return
        found = evaluate(self.objective.model, self.data, self.split, self.config, self.processes).metrics()
        value = value_of(found, self.metric)
        if not self.processes.is_main_process:
            return
        line = {"step": step, "epoch": step / self.plan.steps_per_epoch, "split": self.split, **found}
        if all(value > before[self.metric] for before in known):
            save_finetuned(self.objective.model, folder / BEST, self._about() | line)
        with (folder / EVALUATIONS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        log.say(f"epoch {line['epoch']:g}: {self.split} {self.metric} {value:.4f}")

    def _about(self) -> dict[str, Any]:
        data, recipe = self.data, self.config
        head = dict(task=data.task, num_classes=len(data.classes), **_head_options(recipe))
        return {
            "architecture": self.objective.backbone.architecture,
            "classes": list(data.classes),
            "task": data.task,
            "head": head if data.labels is None else None,
            "size": recipe.views.size,
            "pad": recipe.pad,
            # Of the training data: the input contract of the weights omits that pictures were value / 255.
            "bands": {m: list(bands) for m, bands in self.objective.backbone.bands.items()},
            "sensors": dict(self.objective.backbone.config.sensors),
            "units": dict(data.units),
        }


def evaluations(folder: Path) -> list[dict[str, Any]]:
    """Return the evaluations of a run so far, in order."""
    return [dict(line) for line in read_log(folder, EVALUATIONS)] if (folder / EVALUATIONS).exists() else []


def build_model(recipe: FinetuneRecipe, data: LabelledDataset) -> nn.Module:
    """Build the model of a recipe for a set. Its head is initialized from the seed."""
    torch.manual_seed(recipe.seed)
    if recipe.reconstruct is not None or recipe.head == "fusion":
        return build_fusion(recipe, data)
    bands = {m: names for m, names in recipe.bands.items() if m in (recipe.modalities or recipe.bands)}
    backbone = model_for(
        data, recipe.model, modalities=recipe.modalities or None, bands=bands or None,
        missing_bands=recipe.missing_bands, kernel_scale=recipe.kernel_scale, pretrained=recipe.pretrained,
        checkpoint=recipe.checkpoint, image_size=recipe.views.size or recipe.views.tile,
        overrides=recipe.overrides,
    )  # fmt: skip
    unseen = [b for m in backbone.modalities if m in backbone.inputs for b in backbone.inputs[m].unused_bands]
    if unseen and not recipe.freeze:
        raise ValueError(
            f"the weights ignore {', '.join(unseen)} (missing_bands='zero'), and training would use these "
            "bands without statistics: leave them out with bands=, set missing_bands to nearest or mean, or "
            "freeze=true"
        )
    if recipe.statistics == "dataset":
        backbone.inputs = dataset_inputs(backbone, data)
    torch.manual_seed(recipe.seed)  # the head must not depend on what loading draws
    backbone.set_drop_path(recipe.drop_path)
    if data.labels is not None:
        backbone.reset_classifier(len(data.classes))
        size = recipe.views.size
        backbone.input_size = None if size is None else (size, size)
        return backbone
    task: Any = data.task
    return dense_model(
        backbone, num_classes=len(data.classes), task=task, freeze=recipe.freeze, **_head_options(recipe)
    )


def _head_options(recipe: FinetuneRecipe) -> dict[str, Any]:
    return {"head": recipe.head, "scale": recipe.scale, **recipe.head_options}


def _mixes(recipe: FinetuneRecipe, data: LabelledDataset) -> bool:
    return data.labels is not None and bool(recipe.views.mixup or recipe.views.cutmix)


def _check(recipe: FinetuneRecipe, processes: DistributedContext, data: LabelledDataset) -> None:
    """Check that the recipe fits the set.

    Raises:
        TrainingError: it does not.
    """
    views, pieces = recipe.views, processes.world_size * recipe.accumulate
    scored = ("train", "test") if recipe.select == "val" else ("train",)
    if lacking := [split for split in scored if not len(data.splits.get(split, ()))]:
        raise TrainingError(
            f"{data.name} has no {lacking[0]} samples; its splits: {', '.join(data.splits)}"
            + ("; select=paper reports the validation split" if lacking == ["test"] else "")
        )
    if recipe.reconstruct is not None and (recipe.head != "fusion" or data.task != "pixels"):
        raise TrainingError(
            f"reconstruct is for head=fusion (recipe=s4_mmf) and labels of pixels, got head={recipe.head} "
            f"and labels of {data.task}"
        )
    if recipe.head == "fusion" and recipe.checkpoint is not None:
        raise TrainingError("head=fusion takes its network from reconstruct=RUN: leave out checkpoint")
    if data.labels is not None and views.tile is not None:
        raise TrainingError(f"views.tile cuts images with labels of pixels; {data.name} has labels of images")
    several = recipe.head == "upernet" and data.task == "pixels" and not recipe.freeze
    if recipe.auxiliary and not several:
        raise TrainingError(
            "auxiliary is a second loss on the maps of UPerNet, for labels of pixels and a trained backbone; "
            f"got labels of {data.task}, head={recipe.head} and freeze={str(recipe.freeze).lower()}: "
            "auxiliary=0"
        )
    if data.labels is not None and views.ratio_range is not None:
        raise TrainingError(
            f"views.ratio_range is for labels of pixels; {data.name} has labels of images: "
            "views.ratio_range=none"
        )
    if views.photometric and "rgb" not in data.bands:
        raise TrainingError(
            f"views.photometric distorts the colors of pictures, rgb, and {data.name} has "
            f"{', '.join(data.bands)}: views.photometric=false"
        )
    if data.labels is None and views.size is not None:
        raise TrainingError(
            f"views.size resizes images with one label; {data.name} has labels of pixels: cut them, "
            "views.tile=..."
        )
    if _mixes(recipe, data) and data.series:
        raise TrainingError(
            f"{data.name} holds series, and series of different dates cannot be mixed: views.mixup=0 "
            "views.cutmix=0"
        )
    if _mixes(recipe, data) and recipe.batch_norm == "grouped" and pieces > 1:
        raise TrainingError(
            "samples are mixed in pairs from both ends of a batch, so groups of neighbors depend on the "
            "number of processes and micro-batches: batch_norm=sync, or views.mixup=0 views.cutmix=0"
        )
    if _mixes(recipe, data) and recipe.batch_size % (2 * pieces):
        raise TrainingError(
            f"samples are mixed in pairs: batch_size {recipe.batch_size} must be a multiple of 2 x "
            f"{processes.world_size} processes x {recipe.accumulate} accumulated micro-batches; or "
            "views.mixup=0 views.cutmix=0"
        )
