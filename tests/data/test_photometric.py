"""Photometric distortion: how often and how far colors change, and what stays."""

import colorsys

import numpy as np
import pytest
import torch

from rsbackbones.data.photometric import distort_colors


def distorted(rgb, seed):
    return distort_colors(torch.Generator().manual_seed(seed), rgb)


def test_each_operation_is_there_in_half_of_the_pictures_and_in_its_range():
    rgb = torch.tensor([0.5, 0.4, 0.45])[:, None, None].expand(3, 2, 2)
    hue, saturation, value = colorsys.rgb_to_hsv(*rgb[:, 0, 0].tolist())
    seen = [colorsys.rgb_to_hsv(*distorted(rgb, seed)[:, 0, 0].tolist()) for seed in range(2000)]
    turns = np.array([(h - hue + 0.5) % 1 - 0.5 for h, _, _ in seen])
    assert np.mean(np.abs(turns) > 1e-3) == pytest.approx(0.5, abs=0.04)
    assert 0.095 < np.abs(turns).max() <= 0.1 + 1e-3
    unchanged = np.mean([max(map(abs, np.subtract(s, (hue, saturation, value)))) < 1e-4 for s in seen])
    assert unchanged == pytest.approx(1 / 16, abs=0.02)
    values = np.array([v for _, _, v in seen])
    # Brighter by 32 of 255, then by the factor of contrast; saturation moves the largest color, too.
    assert 0.18 < values.min() < 0.25
    assert 0.9 < values.max() <= 1.0


def test_grey_stays_grey_and_every_pixel_changes_alike():
    grey = torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(0)).expand(3, 4, 4)
    rgb = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(1))
    for seed in range(20):
        found = distorted(grey, seed)
        torch.testing.assert_close(found[:1].expand(3, 4, 4), found, atol=1e-5, rtol=0)
        assert 0 <= distorted(rgb, seed).min() <= distorted(rgb, seed).max() <= 1
        torch.testing.assert_close(distorted(rgb, seed).flip(-1), distorted(rgb.flip(-1), seed))
