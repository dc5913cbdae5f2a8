"""The layer of a network that meets the bands of a modality, as adaptation sees it."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


def _unchanged(kernel: Tensor) -> Tensor:
    return kernel


@dataclass(frozen=True, kw_only=True)
class Stem:
    """A weight and its *kernel* [D, C, ...]: C bands, then the sides that the layer covers.

    The kernel of a convolution is its weight, [D, C, kh, kw] or [D, C, kt, kh, kw]; a patch embedding that
    is stored as a linear layer has one of [D, C, p, p]. What is done to bands and patch sizes
    (:mod:`rsbackbones.zoo.adapt`) is done to kernels and need not know how they are stored.

    Attributes:
        module: the layer's name in the backbone.
        weight: the parameter's name in the backbone's state dict.
        to_kernel: weight to kernel, for any number of bands; ``from_kernel``: its inverse.
    """

    module: str
    weight: str
    to_kernel: Callable[[Tensor], Tensor] = _unchanged
    from_kernel: Callable[[Tensor], Tensor] = _unchanged


def conv_stem(module: str) -> Stem:
    """Return the stem that is the convolution ``module``."""
    return Stem(module=module, weight=f"{module}.weight")
