"""The 3-D U-Net of S4 against recorded maps of plain code, and what its masks and sensors must not change."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from rsbackbones.models import s4
from tests.conftest import RECORDED

FOLDER = Path(os.environ.get("RSB_REFERENCE", RECORDED)) / "s4"
NAMES = ("out_stem", "out_second", "out_bottom", "out_dc4", "out_dc3")


def small(**fields):
    torch.manual_seed(0)
    return s4.build(s4.S4Config(**{"modalities": ("s2",), **s4.SMALL, **fields}))


@pytest.fixture(scope="module")
def recorded():
    if not FOLDER.exists():
        pytest.skip(f"{FOLDER} is not there")
    return {k: torch.from_numpy(v) for k, v in np.load(FOLDER / "s4_unet3d.npz").items()}


@pytest.fixture(scope="module")
def published():
    if not FOLDER.exists():
        pytest.skip(f"{FOLDER} is not there")
    model = small().eval()
    stored = torch.load(FOLDER / "s4_unet3d.pt", weights_only=True)
    names = s4.CHECKPOINT_FORMATS["unet3d_pastis"].to_native(stored)
    model.load_state_dict({native: stored[name] for name, native in names.items()})
    return model


@pytest.mark.parametrize("case", ["", "odd_", "one_"])
def test_maps_are_the_recorded_ones(published, recorded, case):
    valid = {} if not case else {"valid": {"s2": recorded[f"{case}valid"]}}
    with torch.inference_mode():
        maps = published.forward_intermediates(recorded[f"{case}images"], range(5), **valid)
    for name, found in zip(NAMES, maps, strict=True):
        torch.testing.assert_close(found, recorded[f"{case}{name}"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1, 3, 5, 8, 13])
def test_alone_is_as_in_a_padded_batch(length):
    model = small().eval()
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


def test_sensors_share_weights_but_no_statistics():
    model = small(modalities=("s2", "s1")).train()
    before = {name: x.clone() for name, x in model.named_buffers() if name.endswith("running_mean")}
    model.forward_features({"s1": torch.randn(2, 4, 2, 16, 16)})
    changed = {
        name for name, x in model.named_buffers() if name in before and not torch.equal(x, before[name])
    }
    assert changed
    assert all(".statistics.s1." in name for name in changed)
    names = [name for name, _ in small(modalities=("s1",)).named_parameters()]
    assert not [name for name in names if ".s2." in name]


def test_statistics_are_of_the_frames_that_are_there():
    series, valid = torch.randn(2, 8, 10, 16, 16), torch.ones(2, 8, dtype=torch.bool)
    valid[0, 4:] = False
    model = small().train()
    model.forward_features(series, valid=valid)
    first = model.stems["s2"].first
    expected = torch.nn.BatchNorm3d(4)
    x = series.masked_fill(~valid[..., None, None, None], 0).transpose(1, 2)
    frames = first.conv(x).transpose(1, 2)[valid]  # [M, D, H, W]
    expected(frames.transpose(0, 1)[None].detach())
    statistics = first.norm.statistics["s2"]
    torch.testing.assert_close(statistics.running_mean, expected.running_mean)
    torch.testing.assert_close(statistics.running_var, expected.running_var)


def test_a_model_without_the_inference_modality_has_no_decoder():
    model = small(modalities=("s1",), inference_modality="s2")
    assert len(model.stages("s1")) == 3
    x = torch.randn(1, 4, 2, 16, 16)
    with pytest.raises(ValueError, match=r"no decoder of s1.*inference_modality"):
        model.decode_levels("s1", model.encode_levels("s1", x, None))
    assert len(small(modalities=("s1",)).stages("s1")) == 5


def test_without_time_dates_are_encoded_one_by_one():
    model = small(over_time=False).eval()
    series = torch.randn(2, 3, 10, 16, 16)
    with torch.inference_mode():
        whole = model.forward_features(series).pooled["s2"]
        alone = model.forward_features(series[:, 1]).pooled["s2"]
    torch.testing.assert_close(whole[:, 1], alone)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"widths": (4, 8)}, "three positive whole numbers"),
        ({"widths": (3, 8, 16)}, "must be even"),
        ({"inference_modality": "rgb"}, "inference_modality must be one of"),
    ],
)
def test_configurations_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        small(**fields)
