"""The 3-D U-Net of S4 against recorded maps of plain code, and what its masks and sensors must not change."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import rsbackbones as rsb
from tests.conftest import RECORDED
from tests.models.examples import small

FOLDER = Path(os.environ.get("RSB_REFERENCE", RECORDED)) / "s4"
NAMES = ("out_stem", "out_second", "out_bottom", "out_dc4", "out_dc3")


@pytest.fixture(scope="module")
def recorded():
    if not FOLDER.exists():
        pytest.skip(f"{FOLDER} is not there")
    return {k: torch.from_numpy(v) for k, v in np.load(FOLDER / "s4_unet3d.npz").items()}


@pytest.fixture(scope="module")
def published():
    if not FOLDER.exists():
        pytest.skip(f"{FOLDER} is not there")
    bands = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
    return rsb.create_model(
        "s4_unet3d", checkpoint=FOLDER / "s4_unet3d.pt", modalities=("s2",),
        overrides={"widths": (4, 8, 16), "bands": {"s2": bands}},
    ).eval()  # fmt: skip


@pytest.mark.parametrize("case", ["", "odd_", "one_"])
def test_maps_are_the_recorded_ones(published, recorded, case):
    valid = {} if not case else {"valid": {"s2": recorded[f"{case}valid"]}}
    with torch.inference_mode():
        maps = published.forward_intermediates(recorded[f"{case}images"], range(5), **valid)
    for name, found in zip(NAMES, maps, strict=True):
        torch.testing.assert_close(found, recorded[f"{case}{name}"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1, 3, 5, 8, 13])
def test_alone_is_as_in_a_padded_batch(length):
    model = small("s4_unet3d", modalities=("s2",)).eval()
    series = torch.randn(1, length, 10, 16, 16)
    padded = torch.full((2, 16, 10, 16, 16), float("nan"))
    padded[0, :length], padded[1] = series[0], torch.randn(16, 10, 16, 16)
    valid = torch.ones(2, 16, dtype=torch.bool)
    valid[0, length:] = False
    with torch.inference_mode():
        alone = model.forward_features(series)
        batch = model.forward_features(padded, valid=valid)
    torch.testing.assert_close(batch.pooled["s2"][:1], alone.pooled["s2"])
    torch.testing.assert_close(batch.feature_maps["s2"][:1], alone.feature_maps["s2"])
    steps = alone.series["s2"].shape[1]
    assert steps == -(-length // 4)
    torch.testing.assert_close(batch.series["s2"][:1, :steps], alone.series["s2"])
    assert batch.series["s2"][0, steps:].isnan().all()
