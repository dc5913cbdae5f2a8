"""What the tests of SeaMo's pretraining share: a small backbone, batches of series, and the strategies."""

import torch

import rsbackbones as rsb
from rsbackbones.train.engine.batch import Batch
from rsbackbones.train.objectives.seamo import SeamoObjective
from tests.train.croma_setup import BANDS, SMALL, TINY_DECODER, draw

# Table 12 of the paper: the sensors, whether there are several seasons, and whether the TM block is there.
STRATEGIES = {
    "unimodal": (("s2",), False, False),
    "multimodal": (("s2", "s1"), False, False),
    "siamese": (("s2", "s1"), False, False),
    "siamese_temporal": (("s2", "s1"), True, False),
    "unimodal_temporal": (("s2",), True, False),
    "multimodal_temporal": (("s2", "s1"), True, False),
    "multimodal_temporal_tm": (("s2", "s1"), True, True),
}


def build(strategy="multimodal_temporal_tm", *, dtype=torch.float64, seed=0, model=None, **options):
    """An objective of ``options`` around a small backbone of the configuration ``model``."""
    torch.manual_seed(seed)
    sensors, _, tm = STRATEGIES[strategy]
    changes = {"modalities": sensors, "temporal": tm, "image_size": 32, **SMALL, **(model or {})}
    backbone = rsb.create_model("seamo_vit_tiny", overrides=changes)
    options = {**TINY_DECODER, "length": 3, **options}
    return SeamoObjective(strategy=strategy, **options).build(backbone.train()).to(dtype)


def make_batch(objective, *, count=2, grid=(4, 4), bands=None, valid=None, seed=0, dtype=torch.float64):
    """Random series of ``bands``, by modality the names of the channels; zeros where images are missing."""
    options = objective.options
    bands = {m: BANDS[m] for m in objective.backbone.modalities} if bands is None else bands
    generator = torch.Generator().manual_seed(seed)
    images = {
        m: torch.rand(
            count, options.seasons, len(names), 8 * grid[0], 8 * grid[1], generator=generator
        ).to(dtype)
        for m, names in bands.items()
    }  # fmt: skip
    for m, present in (valid or {}).items():
        images[m][~present] = 0
    draws = draw(options, count, grid, tuple(bands), seed)
    return Batch(images=images, bands=dict(bands), noise=draws, valid=valid or {})
