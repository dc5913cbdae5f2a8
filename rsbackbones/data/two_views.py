"""MoCo-v2's views of a picture: a crop, a flip, and colors, as numbers that can be applied to several images.

The numbers are those of MMSelfSup's configuration of MoCo-v2, which FoMu-SSL takes ("the provided
configuration", appendix D): crops of 20 to 100 % of the area with sides from 3:4 to 4:3, resized; color
jitter 0.4, 0.4, 0.4, 0.1 with probability 0.8, in random order; grey with 0.2; blur of sigma 0.1 to 2.0 with
0.5; a left-right flip with 0.5. A radar image beside a picture gets the crop and the flip of its look, and no
colors.

Color operations are torchvision's, which is imported where they are used.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

AREA = (0.2, 1.0)
ASPECT = (3 / 4, 4 / 3)
JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
BLUR = (0.1, 2.0)
_TRIES = 10  # for a crop that lies inside, then the whole height or width, as torchvision's RandomResizedCrop
_GREY = (0.299, 0.587, 0.114)  # ITU-R 601


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a sample is seen: the crop in pixels, then the colors.

    Attributes:
        top, left, height, width: the crop.
        flip: left to right.
        order: the operations of the color jitter, in order; empty for none.
        brightness, contrast, saturation: factors, 1 for no change.
        hue: in turns of the color circle, 0 for no change.
        grey: no colors.
        blur: sigma in pixels of the view; 0 for none.
    """

    top: int
    left: int
    height: int
    width: int
    flip: bool = False
    order: tuple[str, ...] = ()
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    grey: bool = False
    blur: float = 0.0


def draw_look(
    generator: torch.Generator, height: int, width: int, *, area: tuple[float, float] = AREA
) -> Look:
    """Draw a look at an image of ``height`` x ``width`` pixels. All randomness is the generator's.

    ``area`` is the smallest and largest share of the image that a crop covers.
    """
    top, left, crop_height, crop_width = _draw_crop(generator, height, width, area)
    names = tuple(JITTER)
    order = tuple(names[i] for i in torch.randperm(len(names), generator=generator))
    colors = {name: _uniform(generator, 1 - JITTER[name], 1 + JITTER[name]) for name in names[:3]}
    hue = _uniform(generator, -JITTER["hue"], JITTER["hue"])
    # Every number is drawn, used or not: those of a sample do not depend on one another.
    jitter, grey, blur, flip = (_uniform(generator, 0, 1) for _ in range(4))
    sigma = _uniform(generator, *BLUR)
    return Look(
        top=top, left=left, height=crop_height, width=crop_width, flip=flip < 0.5,
        order=order if jitter < 0.8 else (), **colors, hue=hue, grey=grey < 0.2,
        blur=sigma if blur < 0.5 else 0.0,
    )  # fmt: skip


def _draw_crop(
    generator: torch.Generator, height: int, width: int, area: tuple[float, float]
) -> tuple[int, int, int, int]:
    for _ in range(_TRIES):
        pixels = height * width * _uniform(generator, *area)
        aspect = math.exp(_uniform(generator, math.log(ASPECT[0]), math.log(ASPECT[1])))
        w, h = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(torch.randint(height - h + 1, (), generator=generator))
            left = int(torch.randint(width - w + 1, (), generator=generator))
            return top, left, h, w
    h = min(height, round(width / ASPECT[0]))
    w = min(width, round(height * ASPECT[1]))
    return (height - h) // 2, (width - w) // 2, h, w


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def geometry(look: Look, image: Tensor, size: int) -> Tensor:
    """Crop an image [C, H, W], resize it to ``size`` pixels (bilinear, antialiased), and flip it."""
    resized = _cropped(look, image, size)
    return resized.flip(-1) if look.flip else resized


def picture(look: Look, rgb: Tensor, size: int) -> Tensor:
    """Return the view [3, size, size] of a picture [3, H, W] of values in [0, 1]: crop, colors, then flip."""
    from torchvision.transforms.v2 import functional as colors

    x = _cropped(look, rgb, size)
    for name in look.order:
        x = getattr(colors, f"adjust_{name}")(x, getattr(look, name))
    if look.grey:
        x = grey(x)
    if look.blur:
        # A kernel of a tenth of the side, as in SimCLR; MMSelfSup leaves it to PIL.
        side = max(3, size // 10 // 2 * 2 + 1)
        x = colors.gaussian_blur(x, [side, side], [look.blur, look.blur])
    return x.flip(-1) if look.flip else x


def grey(rgb: Tensor) -> Tensor:
    """Return a picture [3, H, W] without colors: 0.299 R + 0.587 G + 0.114 B in all channels."""
    weights = torch.tensor(_GREY, dtype=rgb.dtype, device=rgb.device)
    return (rgb * weights[:, None, None]).sum(dim=0, keepdim=True).expand_as(rgb)


def _cropped(look: Look, image: Tensor, size: int) -> Tensor:
    crop = image[:, look.top : look.top + look.height, look.left : look.left + look.width]
    return F.interpolate(crop[None], (size, size), mode="bilinear", antialias=True)[0]
