"""What the tests of SeaMo's runs share: small series of dates, and a small recipe of two stages."""

from pathlib import Path

import numpy as np
import torch

from rsbackbones.data.npz import NpzFile
from rsbackbones.train.engine.config_io import apply_overrides, to_json
from rsbackbones.train.engine.distributed import DistributedContext
from rsbackbones.train.pretraining import PretrainRun, stages_of
from rsbackbones.train.recipe import Part, Recipe
from rsbackbones.train.recipes import RECIPES
from tests.train.training import BANDS, SIDE

SERIES = Part(
    file=NpzFile(
        path="series.npz", images={m: {m: BANDS[m]} for m in ("s2", "s1")}, series=True, dates="dates"
    )
)
# TrainRun of the two phases: 16 places in batches of 8, 3 and 4 epochs.
FIRST, SECOND = 6, 8


def write_series(folder: Path, *, places: int = 16, seasons: int = 4, gaps: bool = False) -> Path:
    """Write ``series.npz``: smooth random scenes of 32 pixels that change a little from season to season.

    With ``gaps`` the radar images of some seasons are not a number: they are missing.
    """
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)

    def scenes(channels: int) -> np.ndarray:
        lasting = rng.standard_normal((places, 1, channels, 4, 4))
        coarse = lasting + 0.5 * rng.standard_normal((places, seasons, channels, 4, 4))
        return coarse.repeat(SIDE // 4, axis=3).repeat(SIDE // 4, axis=4).astype(np.float32)

    optical = (2000 + 500 * scenes(12)).clip(1, 9999).astype(np.uint16)
    radar = (-12 + 3 * scenes(2)).clip(-40, 5)
    if gaps:
        radar[1::3, 1] = np.nan
        radar[2::3, -1] = np.nan
    dates = np.array(["2020-01-10", "2020-04-10", "2020-07-10", "2020-10-10"], dtype="datetime64[D]")[
        :seasons
    ]
    np.savez(folder / "series.npz", s2=optical, s1=radar, dates=dates)
    return folder


ALONE = DistributedContext(0, 1, torch.device("cpu"))


def built(recipe: Recipe, index: int = -1) -> PretrainRun:
    """The run of one of a recipe's stages."""
    return stages_of(recipe)[index].build(ALONE)


def two_phases(data: Path, out: Path | None = None, **changes: object) -> Recipe:
    """A run of 6 steps and then 8. Dots in a key are two underscores."""
    recipe = apply_overrides(
        RECIPES["seamo_vit_b"],
        {
            "model": "seamo_vit_tiny",
            "overrides": {"dim": 32, "depth": 2, "num_heads": 4},
            "objective": {"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 4, "mask_ratio": 0.5},
            "data.root": str(data),
            "data.parts": [to_json(SERIES)],
            "data.size": SIDE,
            "data.workers": 0,
            "optim.base_lr": 3e-2,
            "batch_size": 8,
            "stages.0.epochs": 3,
            "epochs": 4,
            "precision": "fp32",
            "log_every": 1,
            "save.every": 1000,
        },
    )
    options = {name.replace("__", "."): value for name, value in changes.items()}
    return apply_overrides(recipe, options | ({"output": str(out)} if out else {}))
