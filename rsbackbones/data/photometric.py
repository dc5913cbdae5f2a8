"""Photometric distortion of pictures, the random colors of SSD that segmentation configurations have.

Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016, with the numbers of MMSegmentation's
``PhotoMetricDistortion``: brightness by up to 32 of 255, contrast and saturation by factors from 0.5 to 1.5,
hue by up to 18 of 180 (a tenth of the circle), each with probability 0.5; contrast comes before or after
saturation and hue. Saturation and hue are torchvision's operations, which are imported where they are used:
its saturation mixes with grey, MMSegmentation's scales the S of HSV.
"""

import torch
from torch import Tensor

_BRIGHTNESS, _FACTORS, _HUE = 32 / 255, (0.5, 1.5), 0.1


def distort_colors(generator: torch.Generator, rgb: Tensor) -> Tensor:
    """Return a picture [3, H, W] of values in [0, 1] with other colors. All randomness is the generator's."""
    from torchvision.transforms.v2 import functional as colors

    # Every number is drawn, used or not: those of a sample do not depend on one another.
    drawn = torch.rand(9, generator=generator).tolist()
    brightness, contrast, saturation, hue = (u < 0.5 for u in drawn[:4])
    low, high = _FACTORS
    factors = [low + (high - low) * u for u in drawn[4:6]]
    if brightness:
        rgb = (rgb + _BRIGHTNESS * (2 * drawn[6] - 1)).clamp(0, 1)
    first = drawn[8] < 0.5
    if contrast and first:
        rgb = (rgb * factors[0]).clamp(0, 1)
    if saturation:
        rgb = colors.adjust_saturation(rgb, factors[1])
    if hue:
        rgb = colors.adjust_hue(rgb, _HUE * (2 * drawn[7] - 1))
    if contrast and not first:
        rgb = (rgb * factors[0]).clamp(0, 1)
    return rgb
