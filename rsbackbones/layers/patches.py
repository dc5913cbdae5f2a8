"""Images as sequences of square patches, and back."""

from typing import Literal

from einops import rearrange
from torch import Tensor

# The order of the pixels in a flattened patch: (band, row, column), or (row, column, band).
PixelOrder = Literal["band_first", "band_last"]
_PIXELS = {"band_first": "(c i j)", "band_last": "(i j c)"}


def patchify(images: Tensor, patch_size: int, pixel_order: PixelOrder = "band_first") -> Tensor:
    """[B, C, H, W] to [B, N, C * p * p]: patches in row-major order, their pixels in ``pixel_order``."""
    pixels = _PIXELS[pixel_order]
    return rearrange(images, f"b c (h i) (w j) -> b (h w) {pixels}", i=patch_size, j=patch_size)


def unpatchify(
    patches: Tensor, patch_size: int, grid: tuple[int, int], pixel_order: PixelOrder = "band_first"
) -> Tensor:
    """[B, N, C * p * p] to [B, C, H, W], the inverse of :func:`patchify`; ``grid`` is (h, w) in patches."""
    p, (h, w) = patch_size, grid
    pixels = _PIXELS[pixel_order]
    return rearrange(patches, f"b (h w) {pixels} -> b c (h i) (w j)", h=h, w=w, i=p, j=p)
