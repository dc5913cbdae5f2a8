"""What the tests of FoMu-SSL's pretraining share: small pictures with radar, an oracle, and runs."""

import numpy as np
import torch

import rsbackbones as rsb
from rsbackbones.data.npz import NpzFile
from rsbackbones.train.engine.config_io import apply_overrides, to_json
from rsbackbones.train.recipe import Part
from rsbackbones.train.recipes import RECIPES

COLORS = ("B04", "B03", "B02")
SIDE = 32
SMALL = {"channels": [8, 8, 8, 16], "stem_width": 4}
PICTURES = Part(file=NpzFile(path="pictures.npz", images={"rgb": {"rgb": COLORS}}))
PAIRS = Part(file=NpzFile(path="pictures.npz", images={"rgb": {"rgb": COLORS}, "s1": {"s1": ("VV",)}}))
UNGUIDED = {"rgb": 0, "sar": 0, "initial_oracle": False}


def write_pictures(folder, *, count=24, seed=0):
    """Write ``pictures.npz``, smooth random pictures of 40 pixels with radar in dB, and an oracle."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    coarse = rng.integers(0, 256, (count, 3, 5, 5))
    # With noise: where many pixels hold one value it would mark missing data.
    radar = (coarse[:, :1] / 10.0 - 25).repeat(8, axis=2).repeat(8, axis=3)
    np.savez(
        folder / "pictures.npz",
        rgb=coarse.repeat(8, axis=2).repeat(8, axis=3).astype(np.uint8),
        s1=(radar + 0.05 * rng.random(radar.shape)).astype(np.float32),
    )
    rsb.save_model(oracle_model(), folder / "oracle.safetensors")
    return folder


def oracle_model(seed=7):
    """A small network whose statistics are not those of a fresh one."""
    torch.manual_seed(seed)
    model = rsb.create_model("fomu_resnet_tiny", overrides=SMALL).train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, 3, SIDE, SIDE))
    return model.eval()


def small_recipe(data, out=None, *, parts=(PAIRS,), **changes):
    """One stage of MoCo-v2 with guidance by ``oracle.safetensors``; dots in a key are two underscores."""
    base = {
        "overrides": SMALL, "stages": [], "objective.queue": 16, "objective.momentum": 0.9,
        "objective.dim": 8, "objective.guidance.oracle": str(data / "oracle.safetensors"),
        "data.root": str(data), "data.parts": [to_json(part) for part in parts], "data.size": SIDE,
        "data.workers": 0, "batch_size": 8, "steps": 5, "save.every": 1000,
    }  # fmt: skip
    recipe = apply_overrides(RECIPES["fomu_resnet_tiny"], base)
    options = {name.replace("__", "."): value for name, value in changes.items()}
    return apply_overrides(recipe, options | ({"output": str(out)} if out else {}))


def two_phases(data, out=None, *, steps=(5, 5), **changes):
    """The two phases of the paper: pictures alone, then with radar."""
    stages = [
        {"steps": steps[0], "objective": {"guidance": {"sar": 0}},
         "data": {"parts": [to_json(PICTURES)]}},
        {"steps": steps[1]},
    ]  # fmt: skip
    return small_recipe(data, out, stages=stages, **changes)
