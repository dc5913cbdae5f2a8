"""Crops, flips, turns and mixup: the same for all sensors of a place, and functions of a generator alone.

Source: Fuller et al., CROMA, appendix A.3.2: square crops of 60 to 180 of 264 pixels, resized to 120; flips,
quarter turns, mixup 0.3, "identically to both modalities".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from rsbackbones.train.data.source import Array


@dataclass(frozen=True, kw_only=True)
class View:
    """A square of an image and how it is turned: all that is random about a sample but mixup."""

    top: int
    left: int
    side: int
    flip_rows: bool
    flip_columns: bool
    quarter_turns: int


def draw_view(
    generator: torch.Generator, height: int, width: int, *, crop: tuple[int, int], flips: bool, turns: bool
) -> View:
    """Draw a view of an image of ``height`` x ``width`` pixels.

    ``crop`` is the smallest and largest side; where the image is smaller than the largest, its own shorter
    side is the limit. As many numbers are drawn in every case.

    Raises:
        ValueError: the image is smaller than the smallest crop.
    """
    low, high = crop[0], min(crop[1], height, width)
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
        flip_rows=flips and u[3] < 0.5,
        flip_columns=flips and u[4] < 0.5,
        quarter_turns=int(u[5] * 4) if turns else 0,
    )


def cut(view: View, image: "Array") -> "Array":
    """[C, H, W] to the view's square [C, side, side], not yet turned."""
    return image[:, view.top : view.top + view.side, view.left : view.left + view.side]


def resize_and_turn(view: View, image: Tensor, size: int) -> Tensor:
    """[C, side, side], floats, to [C, size, size]: resized (bilinear, antialiased), flipped and turned."""
    if image.shape[-1] != size:
        # Antialiased: without it a crop of 180 pixels brought to 120 would alias, and the paper does not say.
        image = F.interpolate(image[None], (size, size), mode="bilinear", antialias=True)[0]
    return turn(view, image)


def turn(view: View, image: Tensor) -> Tensor:
    """Flip and turn [..., H, W] as a view says, whatever it shows: an image or the map of its labels."""
    dims = [d for d, flip in ((-2, view.flip_rows), (-1, view.flip_columns)) if flip]
    return torch.rot90(image.flip(dims) if dims else image, view.quarter_turns, (-2, -1))


def draw_mixup(generator: torch.Generator, alpha: float, length: int) -> tuple[int, float]:
    """Draw the partner of a sample, an index below ``length``, and the share of the sample itself.

    The share is Beta(alpha, alpha) distributed: the paper gives only "mixup=0.3". Two gamma variables make a
    beta one; torch draws gamma from an explicit generator.
    """
    partner = int(torch.randint(length, (1,), generator=generator))
    shape = torch.full((2,), alpha, dtype=torch.float64)
    first, second = torch._standard_gamma(shape, generator=generator).tolist()
    return partner, first / (first + second) if first + second > 0 else 0.5


def mix(images: Mapping[str, Tensor], partner: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return ``share * images + (1 - share) * partner`` for every sensor."""
    return {m: torch.lerp(partner[m], image, share) for m, image in images.items()}
