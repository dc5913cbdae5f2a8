"""Training on series, alone or as one of two processes, for test_series.py: a method, data and runs."""

from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist

import tests.conftest  # noqa: F401  (registers the families of the tests)
from rsbackbones.data.labelled.dataset import LabelledDataset
from rsbackbones.data.npz import NpzFile
from rsbackbones.data.series import model_arguments
from rsbackbones.train import Objective, ObjectiveConfig, Recipe, register_objective
from rsbackbones.train.engine.distributed import DistributedContext, end_process
from rsbackbones.train.finetune.run import FinetuneRun
from rsbackbones.train.pretraining import PretrainRun
from rsbackbones.train.recipe import Part
from rsbackbones.train.recipes import RECIPES
from tests.train.finetune_setup import BANDS, DENSE, small_recipe
from tests.train.training import BANDS as ALL_BANDS

SIDE, STEPS = 32, 4
OVERRIDES = {"width": 8, "bands": {"s2": list(BANDS)}}


# -- pretraining ----------------------------------------------------------------------------------------


@register_objective
@dataclass(frozen=True, kw_only=True)
class SeasonObjective(ObjectiveConfig):
    """Fit random targets by the embedding of a series with its dates."""

    method: Literal["season"] = "season"
    length: int | Literal["all"] = "all"

    @property
    def seasons(self):
        return self.length

    def sample_noise(self, generator, modalities, num_patches):
        return {"target": torch.rand(8, generator=generator)}

    def build(self, backbone):
        return Season(self, backbone)


class Season(Objective):
    def __init__(self, options, backbone):
        super().__init__()
        self.options, self.backbone = options, backbone

    def forward(self, batch):
        series = model_arguments(batch.dates, batch.valid, self.backbone.modalities)
        found = self.backbone(batch.images, **series)
        return {"loss": (found - batch.noise["target"]).square().mean()}


def write_series(folder, places=12, times=4, seed=0):
    """``series.npz`` of optical series with dates; of some an image has no data."""
    rng = np.random.default_rng(seed)
    images = rng.integers(300, 3000, (places, times, 12, SIDE, SIDE)).astype(np.uint16)
    for place in range(0, places, 3):
        images[place, 1 + place % (times - 1)] = 0
    starts = np.datetime64("2020-01-05") + rng.integers(0, 60, places)
    dates = starts[:, None] + 37 * np.arange(times)
    np.savez(folder / "series.npz", s2=images, dates=dates.astype(str))
    return folder


def series_recipe(folder, **changes):
    part = Part(
        file=NpzFile(path="series.npz", images={"s2": {"s2": ALL_BANDS["s2"]}}, series=True, dates="dates")
    )
    croma = RECIPES["croma_vit_tiny"]
    data = replace(croma.data, parts=(part,), root=folder, size=SIDE, crop=(SIDE, SIDE), workers=0, mixup=0.0)
    recipe = Recipe(
        name="season", model="toy_series", objective=SeasonObjective(), epochs=3, batch_size=4, data=data,
        overrides=OVERRIDES, precision="fp32", log_every=1, optim=replace(croma.optim, base_lr=0.5),
    )  # fmt: skip
    return replace(recipe, **changes)


# -- fine-tuning ----------------------------------------------------------------------------------------


def labelled_series(task="classes", count=24, *, dates=True, seed=0):
    """Series of 2 to 5 images whose class shows in their dates alone: of winter or of summer.

    Every third has an image that is missing. ``pixels``: the label is the same for a whole map.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    lengths = 2 + np.arange(count) // 2 % 4
    images = [rng.uniform(400, 1200, (n, 4, SIDE, SIDE)).astype(np.float32) for n in lengths]
    days = []
    for i, x in enumerate(images):
        days.append(18262 + 183 * labels[i] + np.sort(rng.choice(60, len(x), replace=False)))
        if i % 3 == 0:
            x[1] = np.nan

    def read(index):
        sample = {"s2": images[index].copy()}
        if dates:
            sample["dates"] = {"s2": days[index]}
        if task == "pixels":
            sample["label"] = np.full((SIDE, SIDE), labels[index], np.int64)
        return sample

    parts = np.split(np.arange(count), [count // 2, count * 3 // 4])
    return LabelledDataset(
        name="series", task=task, classes=("winter", "summer"), bands={"s2": BANDS}, units={"s2": "dn"},
        ids=tuple(f"series {i}" for i in range(count)), labels=None if task == "pixels" else labels,
        splits=dict(zip(("train", "val", "test"), parts, strict=True)), read=read,
        digest=f"{task} {dates} {seed}", series=True,
    )  # fmt: skip


def series_tuning(out=None, task="classes", **changes):
    options = {"model": "toy_series", "overrides": OVERRIDES, "drop_path": 0, "modalities": ["s2"]}
    options |= {"views__mixup": 0, "views__cutmix": 0, **(DENSE if task == "pixels" else {})}
    return small_recipe(out, **options | changes)


# -- the same steps on one process and on two ------------------------------------------------------------


def curves(folder, processes):
    """The losses and norms of the first steps of every kind of run."""
    runs = {
        f"pretraining, {kind}": PretrainRun(series_recipe(folder, parallel=kind), processes)
        for kind in ("ddp", "fsdp")
    }
    for task in ("classes", "pixels"):
        runs[f"fine-tuning, {task}"] = FinetuneRun(
            series_tuning(task=task, views__label_smoothing=0), processes, labelled_series(task)
        )
    return {name: _steps(run, processes) for name, run in runs.items()}


def _steps(run, processes):
    batches, curve = run.batches(0, STEPS), []
    for step in range(STEPS):
        of_step = list(islice(batches, 1))
        parts, norm = run.forward_backward(of_step)
        loss = processes.reduce([parts["loss"].item()], dist.ReduceOp.SUM)[0] / processes.world_size
        curve.append((loss, norm.item()))
        run.update(of_step, run.step(step), norm)
    batches.close()
    return curve


def work(rank, world_size, folder):
    """Compute them as one of several processes; the first writes the results."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=world_size)
    results = curves(Path(folder), DistributedContext(rank, world_size, torch.device("cpu")))
    if rank == 0:
        torch.save(results, f"{folder}/results.pt")
    dist.barrier()
    dist.destroy_process_group()
    end_process()
