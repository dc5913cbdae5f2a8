"""What the tests of AuxMAE's and MixMAE's pretraining share: small objectives, batches and runs."""

import numpy as np
import torch

import rsbackbones as rsb
from rsbackbones.data.npz import NpzFile
from rsbackbones.input_spec import SSL4EO_S12_L1C
from rsbackbones.train.engine.batch import Batch
from rsbackbones.train.engine.config_io import apply_overrides, to_json
from rsbackbones.train.objectives.auxmae import AuxmaeObjective, Task
from rsbackbones.train.objectives.mixmae import MixmaeObjective
from rsbackbones.train.recipe import Part
from rsbackbones.train.recipes import RECIPES
from tests.train.croma_setup import TINY_DECODER, draw
from tests.train.training import SIDE

BANDS = {m: spec.bands for m, spec in SSL4EO_S12_L1C.items()}
FOUR = ("B02", "B03", "B04", "B08")
SMALL = {"dim": 32, "depth": 2, "num_heads": 4, "image_size": 32}
AUX = Task(target="s1", mask_ratio=0.0)


def build(options=None, *, model="auxmae_vit_tiny", dtype=torch.float64, **overrides):
    """An objective around a small backbone; by default AuxMAE's."""
    torch.manual_seed(0)
    backbone = rsb.create_model(model, overrides={**SMALL, **overrides}).train()
    return (options or AuxmaeObjective(**TINY_DECODER)).build(backbone).to(dtype)


def mixmae(model=None, **options):
    """MixMAE's objective around a small backbone of four optical bands and the configuration ``model``."""
    options = MixmaeObjective(**TINY_DECODER, **options)
    bands = {"s2": FOUR, "s1": BANDS["s1"]}
    return build(options, model="mixmae_vit_tiny", bands=bands, **(model or {}))


def make_batch(options, task="", *, count=2, grid=(3, 4), bands=None, scales=None, seed=0):
    """Random images of ``bands``, whose sides are ``scales`` times those of the grid."""
    bands = {"s2": FOUR, "s1": BANDS["s1"]} if bands is None else bands
    generator = torch.Generator().manual_seed(seed)
    images = {}
    for m, names in bands.items():
        side = 8 * (scales or {}).get(m, 1)
        shape = (count, len(names), side * grid[0], side * grid[1])
        images[m] = torch.rand(*shape, generator=generator, dtype=torch.float64)
    return Batch(
        images=images, bands=dict(bands), noise=draw(options, count, grid, tuple(bands), seed), task=task
    )


def write_dated(folder, *, optical=40, pairs=17, seed=0):
    """Write ``dated.npz``: 40 dates of Sentinel-2, and Sentinel-1 within 7 days of 17 of them."""
    rng = np.random.default_rng(seed)
    days = np.datetime64("2020-01-01") + 30 * np.arange(optical)
    near = np.sort(rng.permutation(optical)[:pairs])
    # One radar image that is the partner of nothing.
    radar = np.append(days[near] + rng.integers(-7, 8, pairs), np.datetime64("2030-01-01"))

    def scenes(count, channels):
        coarse = rng.standard_normal((count, channels, 4, 4)).astype(np.float32)
        return coarse.repeat(SIDE // 4, axis=2).repeat(SIDE // 4, axis=3)

    folder.mkdir(parents=True, exist_ok=True)
    np.savez(
        folder / "dated.npz",
        s2=(2000 + 500 * scenes(optical, 4)).clip(1, 9999).astype(np.uint16),
        s1=(-12 + 3 * scenes(len(radar), 2)).clip(-40, 5),
        s2_dates=days.astype(str),
        s1_dates=radar.astype(str),
    )
    return folder


DATED = Part(
    file=NpzFile(
        path="dated.npz", images={"s2": {"s2": FOUR}, "s1": {"s1": BANDS["s1"]}}, series=True,
        dates={"s2": "s2_dates", "s1": "s1_dates"},
    )
)  # fmt: skip


def small_recipe(data, out=None, *, method="auxmae", **changes):
    """A run of AuxMAE on ``dated.npz``; dots in a key are two underscores."""
    base = {
        "overrides.dim": 32, "overrides.depth": 2, "overrides.num_heads": 4, "objective.decoder_dim": 32,
        "data.root": str(data), "data.parts": [to_json(DATED)], "data.size": SIDE, "data.crop": (16, SIDE),
        "data.workers": 0, "optim.base_lr": 1e-2, "batch_size": 4, "steps": 12, "save.every": 1000,
    }  # fmt: skip
    recipe = apply_overrides(RECIPES[f"{method}_vit_tiny"], base)
    options = {name.replace("__", "."): value for name, value in changes.items()}
    return apply_overrides(recipe, options | ({"output": str(out)} if out else {}))


def plain_task(task):
    """The arguments of a task for the plain version."""
    return {"source": task.source, "target": task.target, "ratio": task.mask_ratio, "scale": task.scale}
