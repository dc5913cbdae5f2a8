"""The input layer of a modality, as a kernel that can be adapted to other bands."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


def _unchanged(kernel: Tensor) -> Tensor:
    return kernel


@dataclass(frozen=True, kw_only=True)
class Stem:
    """A weight of one modality and its *kernel* [D, C, ...], with C bands followed by the spatial sides.

    The kernel of a convolution is its weight, [D, C, kh, kw] or [D, C, kt, kh, kw]. A linear patch embedding
    has a kernel [D, C, p, p]. Adaptation to bands and patch sizes (:mod:`rsbackbones.zoo.adapt`) works on
    kernels and does not depend on how they are stored.

    Two modalities cannot share a weight. For early fusion add the outputs of one convolution per modality:
    the sum is that of one convolution over the bands of all.

    Attributes:
        module: the name of the layer in the backbone.
        weight: the name of the parameter in the backbone's state dict.
        to_kernel: converts a weight to a kernel, for any number of bands.
        from_kernel: the inverse of ``to_kernel``.
    """

    module: str
    weight: str
    to_kernel: Callable[[Tensor], Tensor] = _unchanged
    from_kernel: Callable[[Tensor], Tensor] = _unchanged


def conv_stem(module: str) -> Stem:
    """Return the stem of the convolution ``module``."""
    return Stem(module=module, weight=f"{module}.weight")
