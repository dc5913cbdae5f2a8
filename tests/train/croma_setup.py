"""What the tests of CROMA's pretraining share: a small backbone, and batches with draws."""

import torch

import rsbackbones as rsb
from rsbackbones.input_spec import SSL4EO_S12
from rsbackbones.train.engine.batch import Batch
from rsbackbones.train.objectives.croma import CromaObjective

SMALL = {"dim": 32, "depth": 2, "num_heads": 4}
BANDS = {m: spec.bands for m, spec in SSL4EO_S12.items()}
TINY_DECODER = {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}


def build(dtype=torch.float64, seed=0, model=None, **options):
    """An objective of ``options`` around a small backbone of the configuration ``model``."""
    torch.manual_seed(seed)
    backbone = rsb.create_model("croma_vit_tiny", overrides={**SMALL, **(model or {})})
    objective = CromaObjective(**{**TINY_DECODER, **options}).build(backbone.train())
    return objective.to(dtype)


def draw(options, count, grid, modalities=("s2", "s1"), seed=0):
    """The draws of ``count`` samples, each of its own generator, as a loader would collate them."""
    each = [
        options.sample_noise(torch.Generator().manual_seed(1000 * seed + i), modalities, grid)
        for i in range(count)
    ]
    return {name: torch.stack([draws[name] for draws in each]) for name in each[0]}


def make_batch(options, count=3, grid=(4, 6), bands=None, seed=0, dtype=torch.float64):
    """Random images of ``bands``, by modality the names of the channels."""
    bands = BANDS if bands is None else bands
    generator = torch.Generator().manual_seed(seed)
    images = {
        m: torch.rand(count, len(names), 8 * grid[0], 8 * grid[1], generator=generator).to(dtype)
        for m, names in bands.items()
    }
    return Batch(images=images, bands=dict(bands), noise=draw(options, count, grid, tuple(bands), seed))


def gradients(objective, batch):
    """The loss, and the gradient of every parameter that has one, by name."""
    objective.zero_grad()
    out = objective(batch)
    out["loss"].backward()
    return out, {n: p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None}
