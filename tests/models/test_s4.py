"""The 3-D U-Net of S4 against recorded maps of plain code, and what its masks and sensors must not change."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import rsbackbones as rsb
from rsbackbones.models import s4
from rsbackbones.train.engine.batch_norm import set_batch_norm
from rsbackbones.train.engine.errors import TrainingError
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
    stored = torch.load(FOLDER / "s4_unet3d.pt", weights_only=True)
    bands = s4.S4Config().bands["s2"][: stored["en3.0.weight"].shape[1]]
    widths = [stored[name].shape[0] for name in ("en3.0.weight", "en4.0.weight", "center_in.0.weight")]
    return rsb.create_model(
        "s4_unet3d", checkpoint=FOLDER / "s4_unet3d.pt", modalities=("s2",),
        overrides={"widths": widths, "bands": {"s2": bands}},
    )  # fmt: skip


def test_a_file_of_the_benchmark_is_read_and_its_last_convolution_is_reported(published):
    told = str(published.adaptation)
    assert "final" in told
    assert "not part of the model" in told
    assert not [name for name in published.state_dict() if "s1" in name]


@pytest.mark.parametrize("case", ["", "odd_", "one_"])
def test_maps_are_the_recorded_ones(published, recorded, case):
    valid = {} if not case else {"valid": {"s2": recorded[f"{case}valid"]}}
    with torch.inference_mode():
        maps = published.forward_intermediates(recorded[f"{case}images"], range(5), **valid)
    for name, found in zip(NAMES, maps, strict=True):
        torch.testing.assert_close(found, recorded[f"{case}{name}"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1, 3, 5, 61, 70])
def test_alone_is_as_in_a_padded_batch(length):
    model, longest = small().eval(), length + 6
    series = torch.randn(1, length, 10, 8, 12)
    padded = torch.full((2, longest, 10, 8, 12), float("nan"))
    padded[0, :length], padded[1] = series[0], torch.randn(longest, 10, 8, 12)
    valid = torch.ones(2, longest, dtype=torch.bool)
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


def test_sides_that_are_no_multiples_of_four():
    model, x = small().eval(), torch.randn(1, 4, 10, 13, 16)
    with pytest.raises(ValueError, match=r"13 x 16 pixels are not a multiple of 4.*12 x 16.*pad=True"):
        model.forward_features(x)
    model.pad = True
    assert model.forward_features(x).maps("s2").shape == (1, 16, 4, 4)


def test_pixels_of_padding_are_no_part_of_a_statistic():
    """Of 6 x 9 pixels, padded to 8 x 12, the statistics are those of the cells that cover the image."""
    model, seen = small().train(), {}
    model.pad = True
    norms = {name: m for name, m in model.named_modules() if name.endswith(".norm")}
    for name, norm in norms.items():
        norm.register_forward_pre_hook(lambda _, given, name=name: seen.update({name: given[0].detach()}))
    model.forward_intermediates(torch.randn(2, 4, 10, 6, 9), range(5))
    assert {x.shape[-2:] for x in seen.values()} == {(8, 12), (4, 6), (2, 3)}
    for name, x in seen.items():
        rows, columns = {8: (6, 9), 4: (3, 5), 2: (2, 3)}[x.shape[-2]]
        expected = torch.nn.BatchNorm3d(x.shape[1])
        expected(x[..., :rows, :columns])
        statistics = norms[name].statistics["s2"]
        torch.testing.assert_close(statistics.running_mean, expected.running_mean)
        torch.testing.assert_close(statistics.running_var, expected.running_var)


def test_padding_changes_nothing_where_there_is_none():
    model, x = small().train(), torch.randn(2, 4, 10, 8, 12)
    maps = model.forward_intermediates(x, range(5))
    model.pad = True
    for one, other in zip(model.forward_intermediates(x, range(5)), maps, strict=True):
        assert torch.equal(one, other)


def test_a_model_without_the_inference_modality_has_no_decoder():
    model = small(modalities=("s1",), inference_modality="s2")
    assert len(model.stages("s1")) == 3
    x = torch.randn(1, 4, 2, 16, 16)
    with pytest.raises(ValueError, match=r"no decoder of s1.*inference_modality"):
        model.decode_levels("s1", model.encode_levels("s1", x, None))
    assert len(small(modalities=("s1",)).stages("s1")) == 5


def test_a_decoder_that_is_not_there_is_named_where_its_maps_are_requested():
    model = small(modalities=("s2", "s1")).eval()
    x = {"s2": torch.randn(1, 2, 10, 8, 8), "s1": torch.randn(1, 2, 2, 8, 8)}
    assert len(model.forward_intermediates(x, range(5), stream="s2")) == 5
    with pytest.raises(ValueError, match=r"has 3 stages.*no decoder of s1.*'inference_modality': 's1'"):
        model.forward_intermediates(x, [3], stream="s1")
    with pytest.raises(ValueError, match=r"to 4, at least one$"):
        model.forward_intermediates(x, [5], stream="s2")


def test_sensors_may_have_series_of_different_lengths():
    model = small(modalities=("s2", "s1")).eval()
    x = {"s2": torch.randn(2, 5, 10, 8, 8), "s1": torch.randn(2, 9, 2, 8, 8)}
    valid = {"s1": torch.arange(9) < torch.tensor([[9], [4]])}
    days = {m: (torch.arange(series.shape[1]) * 6).expand(2, -1) for m, series in x.items()}
    with torch.inference_mode():
        both = model.forward_features(x, dates=days, valid=valid)
        for m, series in x.items():
            alone = model.forward_features({m: series}, valid={k: v for k, v in valid.items() if k == m})
            torch.testing.assert_close(both.pooled[m], alone.pooled[m])
            torch.testing.assert_close(both.series[m], alone.series[m], equal_nan=True)
            assert both.series[m].shape[1] == -(-series.shape[1] // 4)
    for wrong, message in (
        (days["s2"], r"\[B, T\] = \[2, 9\].*got \[2, 5\] for s1.*dates by modality"),
        ({"s1": days["s2"]}, r"\[2, 9\].*got \[2, 5\]"),
        ({"s3": days["s2"]}, "dates of s3"),
        ({"s2": days["s2"].float()}, "whole days"),
    ):
        with pytest.raises(ValueError, match=message):
            model.forward_features(x, dates=wrong)
    with pytest.raises(ValueError, match=r"agree on batch and size in pixels"):
        model.forward_features({**x, "s1": x["s1"][..., :4]})


def test_the_optical_model_with_no_radar_in_sight(tmp_path):
    both = rsb.create_model("s4_unet3d", overrides=s4.SMALL).train()
    x = {"s2": torch.randn(2, 4, 10, 8, 8), "s1": torch.randn(2, 4, 2, 8, 8)}
    both.forward_intermediates(x, [4], stream="s2")  # statistics of its own
    both.forward_features(x)
    file = rsb.save_model(both.eval(), tmp_path / "both.safetensors")
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    optical_only = {name: t for name, t in load_file(file).items() if ".s1." not in name}
    assert len(optical_only) < len(both.state_dict())
    save_file(optical_only, tmp_path / "optical.safetensors", metadata)
    whole, alone = (
        rsb.create_model("s4_unet3d", checkpoint=tmp_path / f"{name}.safetensors", modalities=("s2",))
        for name in ("both", "optical")
    )
    assert not [name for name in alone.state_dict() if "s1" in name]
    for stage in range(5):
        maps = [
            model.forward_intermediates({"s2": x["s2"]}, [stage], stream="s2")[0]
            for model in (alone, whole, both)
        ]
        assert torch.equal(maps[0], maps[1])
        assert torch.equal(maps[0], maps[2])
    for modalities in (("s1",), None):
        with pytest.raises(
            rsb.WeightsMismatchError, match=r"missing: bottleneck\.norm\.statistics\.s1\..* and 15 more"
        ):
            rsb.create_model("s4_unet3d", checkpoint=tmp_path / "optical.safetensors", modalities=modalities)
    bare = tmp_path / "bare.safetensors"
    save_file(optical_only, bare)
    with pytest.raises(rsb.WeightsMismatchError, match="missing"):
        rsb.create_model("s4_unet3d", checkpoint=bare, overrides={**s4.SMALL, "modalities": ("s1",)})


def test_overrides_name_the_bands_of_some_sensors(tmp_path):
    rgb, three = ("B04", "B03", "B02"), ("VV", "VH", "VV/VH")
    for bands in ({"s2": rgb}, {"s1": three}, {"s2": rgb, "s1": three}):
        model = rsb.create_model("s4_unet3d", overrides={**s4.SMALL, "bands": bands})
        assert model.bands == {**s4.S4Config().bands, **bands}
    file = rsb.save_model(model, tmp_path / "model.safetensors")
    again = rsb.create_model("s4_unet3d", checkpoint=file, bands={"s1": ("VH", "VV/VH")}, kernel_scale="none")
    kernels = [m.get_parameter(m.stem("s1").weight) for m in (again, model)]
    assert torch.equal(kernels[0], kernels[1][:, 1:])
    assert again.adaptation.bands[0].dropped_bands == ("VV",)
    with pytest.raises(ValueError, match="computed from VV and VH and has no nearest band"):
        rsb.create_model(
            "s4_unet3d", overrides=s4.SMALL, bands={"s1": three}, missing_bands="nearest", modalities=("s1",)
        )
    twelve = rsb.create_model("s4_unet3d", overrides={**s4.SMALL, "bands": {"s2": s4.INPUTS["s2"].bands}})
    assert len(rsb.create_preprocess(twelve).specs["s2"].bands) == 12
    coastal = rsb.create_model("s4_unet3d", overrides=s4.SMALL, bands={"s2": ("B01", "B02")})
    assert rsb.create_preprocess(coastal).specs["s2"].mean == s4.INPUTS["s2"].mean[:2]
    for bands, named in (({}, "none"), ({"S2": rgb}, "'S2'"), ({"s3": rgb}, "'s3'")):
        with pytest.raises(ValueError, match=f"bands are by modality.*got {named}"):
            rsb.create_model("s4_unet3d", overrides={"bands": bands})


def test_batch_norm_of_series_is_synchronized_and_has_no_groups():
    model = small()
    set_batch_norm(model, "sync")
    assert model.state_dict().keys() == small().state_dict().keys()
    with pytest.raises(TrainingError, match="batch_norm=sync"):
        set_batch_norm(model, "grouped", 2)


def test_without_time_dates_are_encoded_one_by_one():
    model = small(over_time=False).eval()
    series = torch.randn(2, 3, 10, 16, 16)
    with torch.inference_mode():
        whole = model.forward_features(series).pooled["s2"]
        alone = model.forward_features(series[:, 1]).pooled["s2"]
    torch.testing.assert_close(whole[:, 1], alone)
    valid = torch.tensor([[True, True, False], [True, True, True]])
    series[0, 2] = float("nan")
    with torch.inference_mode():
        masked = model.forward_features(series, valid=valid)
    torch.testing.assert_close(masked.pooled["s2"][valid], whole[valid])
    assert masked.pooled["s2"][0, 2].isnan().all()
    assert not masked.series
    model.train().forward_intermediates(series, range(5), valid=valid)
    assert all(buffer.isfinite().all() for buffer in model.buffers())


def test_stages_and_defaults_of_the_architectures():
    with torch.device("meta"):
        built = {name: s4.build(config) for name, config in s4.CONFIGS.items()}
    assert [model.consumes for model in built.values()] == ["series", "series", "image"]
    model = built["s4_unet3d"]
    assert [stage[:2] for stage in model.encoder_stages("s1")] == [(32, 1), (64, 2), (128, 4)]
    assert [stage[:2] for stage in model.stages("s2")[3:]] == [(64, 2), (16, 1)]
    assert model.default_stream == "s2"
    maps = rsb.create_model("s4_unet3d", modalities=("s1",), features_only=True)
    assert (maps.feature_info.channels(), maps.feature_info.reduction()) == ([32, 64, 128], [1, 2, 4])
    with pytest.raises(rsb.WeightsNotFound, match="the authors of S4 published no weights"):
        rsb.create_model("s4_unet3d", pretrained=True)


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
