"""What the tests of fine-tuning share: small sets whose labels can be learned, and a small recipe."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import rsbackbones as rsb
from rsbackbones.data.labelled.dataset import LabelledDataset
from rsbackbones.train.engine.config_io import apply_overrides
from rsbackbones.train.finetune import RECIPES, FinetuneRecipe

SIDE = 16
BANDS = ("B02", "B03", "B04", "B08")
CLASSES = ("water", "soil", "forest")


def labelled(task="classes", count=24, sensors=("s2",), side=SIDE, seed=0, val=True):
    """A set whose labels show: bright bands for a class, bright pixels for a map of labels.

    ``classes``: the bright band. ``multilabel``: all bright bands. ``pixels``: where B04 is bright; the first
    row is ignored. ``change``: where it became so.
    """
    rng = np.random.default_rng(seed)
    bands = {"s2": BANDS, "s1": ("VV", "VH"), "rgb": ("B04", "B03", "B02")}
    labels = {
        "classes": np.arange(count) % 3,
        "multilabel": (np.arange(count)[:, None] >> np.arange(3)) % 2 == 1,
    }.get(task)
    dates = (2,) if task == "change" else ()
    s2 = rng.integers(400, 1200, (count, *dates, 4, side, side)).astype(np.uint16)
    s1 = rng.normal(-12, 3, (count, *dates, 2, side, side)).astype(np.float32)
    coarse = rng.random((count, side // 8, side // 8)) < 0.5
    maps = coarse.repeat(8, axis=1).repeat(8, axis=2)
    for i in range(count):
        if task == "classes":
            s2[i, labels[i]] += 2500
        elif task == "multilabel":
            s2[i, :3][labels[i]] += 2500
        else:
            (s2[i, 1] if task == "change" else s2[i])[2][maps[i]] += 2500

    rgb = (s2[..., [BANDS.index(band) for band in bands["rgb"]], :, :] // 16).astype(np.uint8)

    def read(index):
        sample = {m: x[index] for m, x in (("s2", s2), ("s1", s1), ("rgb", rgb)) if m in sensors}
        if labels is None:
            label = maps[index].astype(np.int64)
            label[0] = -1
            sample["label"] = label
        return sample

    names = {"pixels": ("dry", "water"), "change": ("unchanged", "change")}.get(task, CLASSES)
    parts = np.split(np.arange(count), [count // 2, count * 3 // 4] if val else [count * 3 // 4])
    return LabelledDataset(
        name=f"small {task}", task=task, classes=names, bands={m: bands[m] for m in sensors},
        units={m: {"s2": "dn", "s1": "db", "rgb": "uint8"}[m] for m in sensors},
        ids=tuple(f"sample {i}" for i in range(count)),
        splits=dict(zip(("train", "val", "test") if val else ("train", "test"), parts, strict=True)),
        labels=labels, read=read, digest=f"{task} {count} {sensors} {side} {seed}",
    )  # fmt: skip


def finer(data, scale):
    """The set with label maps of so many times the size of its images."""

    def read(index):
        sample = data.read(index)
        return {**sample, "label": np.kron(sample["label"], np.ones((scale, scale), np.int64))}

    return replace(data, read=read)


def sparsely(data):
    """The set with label maps of which few rows are left: none of the first image, one of the second, ..."""

    def read(index):
        sample = data.read(index)
        label = sample["label"].copy()
        label[1 + index :] = -1
        return {**sample, "label": label}

    return replace(data, read=read)


def saved(data, file: Path) -> Path:
    """Write a set as a described .npz, with its splits."""
    samples = [data.read(i) for i in range(len(data))]
    arrays = {m: np.stack([sample[m] for sample in samples]) for m in data.bands}
    arrays |= {f"{m}_bands": np.array(bands) for m, bands in data.bands.items()}
    arrays["label"] = np.stack([s["label"] for s in samples]) if data.labels is None else data.labels
    words = np.full(len(data), "train")
    for name, indices in data.splits.items():
        words[indices] = name
    np.savez(file, **arrays, classes=np.array(data.classes), split=words)
    return file


def with_samples(data, **changes):
    """The set with other images; a key is the index of a sample, as in ``i3``."""
    others = {int(name[1:]): sample for name, sample in changes.items()}
    return replace(data, read=lambda index: others.get(index) or data.read(index))


def small_recipe(out: Path | None = None, **changes: object) -> FinetuneRecipe:
    """A run of some epochs with a tiny random model. Dots in a key are two underscores."""
    recipe = apply_overrides(
        RECIPES["croma"],
        {
            "model": "croma_vit_tiny",
            "modalities": [],  # all that the data has
            "pretrained": False,
            "overrides": {
                "dim": 32, "depth": 2, "num_heads": 4, "bands": {"s2": list(BANDS), "s1": ["VV", "VH"]},
            },
            "views.size": None,
            "optim.base_lr": 0.1,
            "optim.warmup_epochs": 1,
            "epochs": 4,
            "batch_size": 4,
            "precision": "fp32",
            "log_every": 1,
            "workers": 0,
            "save.asynchronous": False,
            "evaluation_batch": 5,
        },
    )  # fmt: skip
    options = {name.replace("__", "."): value for name, value in changes.items()}
    return apply_overrides(recipe, options | ({"output": str(out)} if out else {}))


def seamo_with_block(folder: Path) -> dict[str, object]:
    """Save a tiny SeaMo with its block for dates, as ``export --full`` does; return options to tune it."""
    fields = {
        "dim": 32, "depth": 2, "num_heads": 4, "temporal": True,
        "bands": {"s2": list(BANDS), "s1": ["VV", "VH"]},
    }  # fmt: skip
    torch.manual_seed(0)
    file = rsb.save_model(rsb.create_model("seamo_vit_tiny", overrides=fields), folder / "seamo.safetensors")
    return {"model": "seamo_vit_tiny", "checkpoint": str(file), "overrides": {}, "drop_path": 0}


DENSE = {"views__mixup": 0, "views__cutmix": 0, "views__label_smoothing": 0, "head": "linear"}
