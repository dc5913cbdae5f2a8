"""What the tests of S4's pretraining share: a small folder of paired series, and recipes on it."""

import numpy as np

from rsbackbones.data.series_folder import write_series
from rsbackbones.train.engine.config_io import apply_overrides
from rsbackbones.train.recipes import RECIPES

BANDS = {"s2": ("B02", "B03", "B04", "B08"), "s1": ("VV", "VH")}
SIDE = 16


def write_set(folder, *, count=8, side=SIDE, seed=0):
    """Write places of 5 to 8 radar and 4 to 6 optical images; in one of each place pixels are missing."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        lengths = {"s2": int(rng.integers(4, 7)), "s1": int(rng.integers(5, 9))}
        coarse = rng.normal(size=(1, -(-side // 4), -(-side // 4))).repeat(4, 1).repeat(4, 2)[:, :side, :side]
        images = {
            "s2": 1500 + 400 * coarse + 100 * rng.normal(size=(lengths["s2"], 4, side, side)),
            "s1": -14 + 3 * coarse + rng.normal(size=(lengths["s1"], 2, side, side)),
        }
        images["s1"][i % lengths["s1"], 0, 3, 3] = np.nan
        dates = {m: 18000 + np.sort(rng.choice(120, n, replace=False)) for m, n in lengths.items()}
        write_series(
            folder, f"place_{i:02}", dates=dates, bands=BANDS,
            images={m: x.astype(np.float32) for m, x in images.items()},
        )  # fmt: skip
    return folder


def small_recipe(folder, output=None, *, recipe="s4_unet3d_tiny", **changes):
    """A recipe on that folder; dots in a key are two underscores."""
    base = {
        "overrides.widths": [4, 8, 8], "data.root": str(folder), "data.size": SIDE,
        "data.crop": [SIDE, SIDE], "data.workers": 0, "objective.length": None, "steps": 5, "epochs": None,
        "save.every": 1000, "precision": "fp32",
    }  # fmt: skip
    options = {name.replace("__", "."): value for name, value in changes.items()}
    output = {"output": str(output)} if output else {}
    return apply_overrides(apply_overrides(RECIPES[recipe], base), options | output)
