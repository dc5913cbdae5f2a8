"""Which images and pixels count, and what follows for the cells of a map and for the embedding.

Invalid pixels are replaced by the band's mean before the network sees them. A cell of a map counts if at
least half of its pixels do; cells of :class:`Validity` that do not count are NaN in the features and take no
part in the embedding.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from rsbackbones.models.backbone import Backbone

MIN_VALID_SHARE = 0.5
# By the rule of the input contract (``InputSpec.normalize``): what a band's mean is to the network. The other
# rules state no mean.
_MEAN_INPUT = {"clip_2sd": 0.5, "standard": 0.0, "imagenet": 0.0}


def fill_invalid(image: Tensor, valid: Tensor, normalize: str | None) -> Tensor:
    """Replace the invalid pixels of normalized images [..., C, H, W] by the mean of their band.

    That is 0.5 under the rule ``clip_2sd`` and 0 under ``standard`` and ``imagenet``. The rules ``scale`` and
    ``none`` state no mean: there it is the mean of the image's own valid pixels, or 0 if it has none.

    Args:
        image: the values of invalid pixels, often NaN, have no effect on the result or on gradients.
        valid: [..., H, W] booleans.
        normalize: the rule of the input contract, if it is known.
    """
    keep = valid.unsqueeze(-3)
    if normalize in _MEAN_INPUT:
        return image.masked_fill(~keep, _MEAN_INPUT[normalize])
    total = image.masked_fill(~keep, 0).float().sum(dim=(-2, -1), keepdim=True)
    mean = total / keep.sum(dim=(-2, -1), keepdim=True).clamp(min=1)
    return torch.where(keep, image, mean.to(image.dtype))


def cell_share(valid: Tensor, stride: int) -> Tensor:
    """Return the share of valid pixels in every cell, [..., H, W] to float32 [..., h, w].

    Only pixels of the image are counted where a cell extends beyond it.
    """
    flat = valid.reshape(-1, 1, *valid.shape[-2:]).float()
    share = F.avg_pool2d(flat, stride, ceil_mode=True, count_include_pad=False)
    return share.reshape(*valid.shape[:-2], *share.shape[-2:])


@dataclass(frozen=True, kw_only=True)
class Validity:
    """What counts in the features of one stream; ``None``: everything.

    Attributes:
        present: [B], or [B, T] where features have a T axis; False for missing images.
        by_date: [B, T], False for missing images of a series.
        pixels: [B, H, W], or [B, T, H, W] where features have a T axis: pixels that are valid in all
            modalities of the stream, at any date if the model consumes series.
    """

    present: Tensor | None = None
    by_date: Tensor | None = None
    pixels: Tensor | None = None

    def share(self, stride: int) -> Tensor | None:
        """Return the share of valid pixels of every cell, [B, h, w] or [B, T, h, w], if there is a mask."""
        return None if self.pixels is None else cell_share(self.pixels, stride)

    def cells(self, stride: int) -> Tensor | None:
        """Return which cells of a map count, [B, h, w] or [B, T, h, w] booleans, or [B] or [B, T]."""
        share = self.share(stride)
        if share is None:
            return self.present
        cells = share >= MIN_VALID_SHARE
        return cells if self.present is None else cells & self.present[..., None, None]

    def images(self, stride: int) -> Tensor | None:
        """Return which images have a cell that counts, [B] or [B, T]."""
        cells = self.cells(stride)
        return cells if cells is None or self.pixels is None else cells.flatten(-2).any(dim=-1)

    def hide(self, maps: Tensor, stride: int) -> Tensor:
        """Set the cells of a map [..., D, h, w] that do not count to NaN."""
        cells = self.cells(stride)
        if cells is None:
            return maps
        whole = cells[..., None, None] if self.pixels is None else cells
        return maps.masked_fill(~whole.unsqueeze(-3), float("nan"))


def pool_valid(model: "Backbone", stream: str, maps: Tensor, pooled: Tensor, valid: Validity) -> Tensor:
    """Return the embeddings [..., D] over the cells of the final map [..., D, h, w] that count.

    A model that pools by a class token keeps its embedding: the token has seen the filled pixels.

    Args:
        model, stream: whose features they are.
        maps, pooled: of ``encode``, which counted all cells; without NaN.
        valid: an image without invalid cells keeps the embedding that it has.
    """
    if valid.pixels is None or not model.pools_map:
        return pooled
    cells = valid.cells(model.final(stream).stride)
    assert cells is not None
    for dim in (-2, -1):  # cells of the padding are as the last ones of the image
        cells = repeat_last(cells, dim, maps.shape[dim])
    keep = cells.unsqueeze(-3)
    count = keep.sum(dim=(-2, -1), keepdim=True).clamp(min=1)
    mean = maps.masked_fill(~keep, 0).float().sum(dim=(-2, -1), keepdim=True) / count
    # The mean over this map is that of its valid cells.
    even = torch.where(keep, maps, mean.to(maps.dtype))
    lead = even.shape[:-3]
    repooled = model.pool(stream, even.flatten(0, -4)).unflatten(0, lead)
    return torch.where(cells.flatten(-2).all(dim=-1)[..., None], pooled, repooled)


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Extend [..., H, W] to multiples, at the bottom and right, by repeating the last row and column."""
    for dim in (-2, -1):
        image = repeat_last(image, dim, (image.shape[dim] + multiple - 1) // multiple * multiple)
    return image


def repeat_last(x: Tensor, dim: int, length: int) -> Tensor:
    """Extend a dimension to ``length`` by repeating its last entry."""
    # A traced program must work for all sizes.
    if not torch.compiler.is_compiling() and length == x.shape[dim]:
        return x
    places = torch.arange(length, device=x.device).clamp(max=x.shape[dim] - 1)
    return x.index_select(dim, places)
