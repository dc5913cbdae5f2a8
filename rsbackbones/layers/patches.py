"""Images as sequences of square patches, and back."""

from einops import rearrange
from torch import Tensor


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """[B, C, H, W] to [B, N, C * p * p]: patches in row-major order, pixels laid out (band, row, column)."""
    return rearrange(images, "b c (h i) (w j) -> b (h w) (c i j)", i=patch_size, j=patch_size)


def unpatchify(patches: Tensor, patch_size: int, grid: tuple[int, int]) -> Tensor:
    """[B, N, C * p * p] to [B, C, H, W], the inverse of :func:`patchify`; ``grid`` is (h, w) in patches."""
    p, (h, w) = patch_size, grid
    return rearrange(patches, "b (h w) (c i j) -> b c (h i) (w j)", h=h, w=w, i=p, j=p)
