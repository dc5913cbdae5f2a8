"""Random patch masks.

Source: He et al., Masked autoencoders are scalable vision learners, CVPR 2022, section 3.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Mask:
    """The patches of B images of N patches that are kept and those that are masked.

    Attributes:
        kept: indices of the kept patches, [B, K], in the order in which they are encoded.
        restore: for every patch its index in the sequence of kept, then masked patches, [B, N].
        masked: True where a patch is masked, [B, N].
    """

    kept: Tensor
    restore: Tensor
    masked: Tensor


def random_mask(noise: Tensor, ratio: float) -> Mask:
    """Keep the ``int(N * (1 - ratio))`` patches with the lowest noise, and mask the others.

    Args:
        noise: uniform random numbers, [B, N].
        ratio: the share of masked patches, in [0, 1).

    Raises:
        ValueError: no patch would be kept.
    """
    num_patches = noise.shape[1]
    count = int(num_patches * (1 - ratio))
    if count < 1:
        raise ValueError(
            f"a mask ratio of {ratio} keeps none of {num_patches} patches; lower it or take larger images"
        )
    order = noise.argsort(dim=1, stable=True)
    restore = order.argsort(dim=1)
    return Mask(kept=order[:, :count], restore=restore, masked=restore >= count)
