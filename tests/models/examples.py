"""A small model of every family, and images for it: what the tests over all models share."""

import torch

import rsbackbones as rsb
from rsbackbones.models.vit import ViTBackbone
from rsbackbones.zoo.registry import architectures, find_architecture

# One architecture of each family: at its small configuration the others are the same code again.
ALL = sorted({next(iter(a.family.CONFIGS)) for a in architectures().values()})


def small(name, **arguments):
    """A model of an architecture's own small configuration, the same in every test."""
    torch.manual_seed(0)
    return rsb.create_model(name, overrides=dict(find_architecture(name).small), **arguments)


def batch(model, height=64, width=96, *, times=None, seed=0):
    """Two normalized images, or series, for every sensor of a model."""
    generator = torch.Generator().manual_seed(seed)
    lead = (2,) if times is None else (2, times)
    return {
        m: torch.rand(*lead, len(bands), height, width, generator=generator)
        for m, bands in model.bands.items()
    }


def dated(model, times=None):
    """The dates of :func:`batch`, as arguments of a model that consumes series; of no other."""
    days = torch.tensor([[0, 90, 180, 270], [30, 200, 400, 500]])
    return {"dates": days[:, :times]} if model.consumes == "series" and times is not None else {}


def times_of(model, times=3):
    """How many dates the images of a model have in tests of all models: series where it consumes them."""
    return times if model.consumes == "series" else None


def cells(side, stride):
    """How many cells of a map cover a side."""
    return -(-side // stride)


# One of each kind: a ViT of two sensors, a network of convolutions, one over series.
KINDS = ["croma_vit_tiny", "toy_cnn", "toy_series"]
VITS = [name for name in ALL if isinstance(small(name), ViTBackbone)]
SERIES = [name for name in ALL if small(name).consumes == "series"]
ONE_BY_ONE = [name for name in ALL if name not in SERIES]
