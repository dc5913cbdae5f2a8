"""Crops, flips, rotations and mixup: the same for all sensors of a place, and functions of a generator alone.

Source: Fuller et al., CROMA, appendix A.3.2: square crops of 60 to 180 of 264 pixels, resized to 120; flips,
rotations by 90 degrees, mixup 0.3, "identically to both modalities". Li et al., SeaMo, section 3.2 and table
10: crops of a ratio of the image from a range, differing between the seasons of a place and not between its
sensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from rsbackbones.data.source import Array


@dataclass(frozen=True, kw_only=True)
class View:
    """A crop, its flips and turns: everything random about a sample except mixup."""

    top: int
    left: int
    side: int
    flip_rows: bool
    flip_columns: bool
    quarter_turns: int


# Smallest and largest side of a crop: in pixels, or as shares of the image's shorter side (at most 1).
CropRange = tuple[int, int] | tuple[float, float]
# Along both axes, left to right only, or not at all.
Flips = bool | Literal["horizontal"]
# How the crops of the seasons of a place overlap.
Region = Literal["same", "partial", "disjoint"]


def crop_sides(crop: CropRange, side: int) -> tuple[int, int]:
    """Return the smallest and largest side of a crop, in pixels, of an image whose shorter side is given."""
    if crop[1] <= 1:
        # Rounded down: so that two of half a side, which do not overlap, fit into an odd one.
        return max(1, int(crop[0] * side)), max(1, int(crop[1] * side))
    return int(crop[0]), min(int(crop[1]), side)


def draw_view(
    generator: torch.Generator, height: int, width: int, *, crop: CropRange, flips: Flips, rot90: bool
) -> View:
    """Draw a view of an image of ``height`` x ``width`` pixels.

    ``crop`` is the smallest and largest side; where the image is smaller than the largest, its own shorter
    side is the limit. As many numbers are drawn in every case.

    Raises:
        ValueError: the image is smaller than the smallest crop.
    """
    low, high = crop_sides(crop, min(height, width))
    if high < low:
        raise ValueError(
            f"an image of {height} x {width} pixels is smaller than the smallest crop, {low}; "
            f"set data.crop to at most {min(height, width)}"
        )
    u = torch.rand(6, generator=generator, dtype=torch.float64).tolist()
    side = low + int(u[0] * (high - low + 1))
    return View(
        top=int(u[1] * (height - side + 1)),
        left=int(u[2] * (width - side + 1)),
        side=side,
        flip_rows=flips is True and u[3] < 0.5,
        flip_columns=bool(flips) and u[4] < 0.5,
        quarter_turns=int(u[5] * 4) if rot90 else 0,
    )


def draw_views(
    generator: torch.Generator,
    height: int,
    width: int,
    seasons: int,
    *,
    region: Region,
    crop: CropRange,
    flips: Flips,
    rot90: bool,
) -> list[View]:
    """Draw the views of the seasons of a place (SeaMo, figure 2).

    - ``same``: one view for all of them, flips and rotations included.
    - ``partial``: a view for each; their crops overlap by chance, and may miss each other where they are
      small.
    - ``disjoint``: no two crops share a pixel. The image is divided into equal cells, as large as so many
      may be; each season gets another one, and its crop lies anywhere in it.

    The paper does not say whether its ratio is one of sides or of areas. Here it is of sides: with "[25 %,
    100 %]" it speaks of crops that do not overlap at all, which those of a quarter of the area hardly can.

    Raises:
        ValueError: the image is smaller than the smallest crop, or ``disjoint`` crops do not fit.
    """
    if region == "same" or seasons == 1:
        return [draw_view(generator, height, width, crop=crop, flips=flips, rot90=rot90)] * seasons
    if region == "partial":
        return [
            draw_view(generator, height, width, crop=crop, flips=flips, rot90=rot90) for _ in range(seasons)
        ]
    rows, columns = _cells(height, width, seasons)
    cell = (height // rows, width // columns)
    low, high = crop_sides(crop, min(height, width))
    if low > min(cell):
        raise ValueError(
            f"{seasons} crops of at least {low} pixels that do not overlap do not fit into an image of "
            f"{height} x {width}; the smallest may be {min(cell)}: lower data.crop"
        )
    places = torch.randperm(rows * columns, generator=generator)[:seasons].tolist()
    views = []
    for place in places:
        row, column = divmod(place, columns)
        inner = draw_view(generator, *cell, crop=(low, min(high, *cell)), flips=flips, rot90=rot90)
        top, left = inner.top + row * cell[0], inner.left + column * cell[1]
        views.append(replace(inner, top=top, left=left))
    return views


def _cells(height: int, width: int, count: int) -> tuple[int, int]:
    """Return the rows and columns of at least ``count`` equal cells whose shorter side is the largest."""
    divisions = [(rows, -(-count // rows)) for rows in range(1, count + 1)]
    return max(divisions, key=lambda d: min(height // d[0], width // d[1]))


def cut(view: View, image: "Array") -> "Array":
    """[..., H, W] to the view's square [..., side, side], not yet turned."""
    return image[..., view.top : view.top + view.side, view.left : view.left + view.side]


def resize_and_turn(view: View, image: Tensor, size: int) -> Tensor:
    """[C, side, side], floats, to [C, size, size]: resized (bilinear, antialiased), flipped and turned."""
    if image.shape[-1] != size:
        # Antialiased: without it a crop of 180 pixels brought to 120 would alias, and the paper does not say.
        image = F.interpolate(image[None], (size, size), mode="bilinear", antialias=True)[0]
    return turn(view, image)


def turn(view: View, image: Tensor) -> Tensor:
    """Flip and turn an image or a label map, [..., H, W]."""
    dims = [d for d, flip in ((-2, view.flip_rows), (-1, view.flip_columns)) if flip]
    return torch.rot90(image.flip(dims) if dims else image, view.quarter_turns, (-2, -1))


def draw_mixup(generator: torch.Generator, alpha: float, length: int) -> tuple[int, float]:
    """Draw the partner of a sample, an index below ``length``, and the share of the sample itself.

    The share is Beta(alpha, alpha) distributed: the paper states only "mixup=0.3". Two gamma variables make a
    beta one; torch draws gamma from an explicit generator.
    """
    partner = int(torch.randint(length, (1,), generator=generator))
    shape = torch.full((2,), alpha, dtype=torch.float64)
    first, second = torch._standard_gamma(shape, generator=generator).tolist()
    return partner, first / (first + second) if first + second > 0 else 0.5


def mix(images: Mapping[str, Tensor], partner: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return ``share * images + (1 - share) * partner`` for every sensor."""
    return {m: torch.lerp(partner[m], image, share) for m, image in images.items()}
