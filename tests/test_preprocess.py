"""Normalization: against the rule written with numpy, and everything that users get wrong."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rsbackbones as rsb
from rsbackbones.input_spec import SSL4EO_S12
from rsbackbones.sensors import S2

L1C = tuple(band.name for band in S2.bands)


def clip_2sd(x, mean, std, eight_bit=True):
    """The authors' rule for one channel, with given statistics."""
    low, high = mean - 2 * std, mean + 2 * std
    if eight_bit:
        return np.trunc(np.clip((x - low) / (high - low) * 255, 0, 255)) / 255
    return np.clip((x - low) / (high - low), 0, 1)


@pytest.fixture
def raw():
    generator = np.random.default_rng(0)
    return {
        "s2": generator.integers(0, 8000, (2, 12, 16, 16), dtype=np.uint16),
        "s1": generator.normal(-15, 6, (2, 2, 16, 16)).astype(np.float32),
    }


def expected(raw, eight_bit=True):
    return {
        m: np.stack(
            [
                clip_2sd(x[:, i].astype(np.float64), SSL4EO_S12[m].mean[i], SSL4EO_S12[m].std[i], eight_bit)
                for i in range(x.shape[1])
            ],
            axis=1,
        )
        for m, x in raw.items()
    }


def nearly(got, wanted, eight_bit=True):
    """Equal, but for the rare value that float32 puts on the other side of a step of 1/255."""
    difference = np.abs(got.numpy() - wanted)
    if not eight_bit:
        return difference.max() < 1e-6
    return difference.max() < 1.01 / 255 and (difference > 1e-6).mean() < 1e-3


@pytest.mark.parametrize("eight_bit", [True, False])
def test_dataset_statistics_are_the_default(tiny, raw, eight_bit):
    preprocess = rsb.create_preprocess(tiny, eight_bit=None if eight_bit else False)
    got = preprocess(raw)
    for m, wanted in expected(raw, eight_bit).items():
        assert got[m].dtype == torch.float32
        assert nearly(got[m], wanted, eight_bit)
        assert 0 <= got[m].min() < got[m].max() <= 1


def test_eight_bits_are_truncated_not_rounded(tiny):
    spec = SSL4EO_S12["s1"]
    low, width = spec.mean[0] - 2 * spec.std[0], 4 * spec.std[0]
    value = torch.full((1, 2, 1, 1), low + width * 100.9 / 255)
    assert rsb.create_preprocess(tiny, check=False)({"s1": value})["s1"][0, 0, 0, 0] == 100 / 255


def test_batch_statistics_are_the_authors_rule(tiny, raw):
    got = rsb.create_preprocess(tiny, statistics="batch")(raw)
    for m, x in raw.items():
        for i in range(x.shape[1]):
            band = x[:, i].astype(np.float64)
            assert nearly(got[m][:, i], clip_2sd(band, band.mean(), band.std(ddof=1)))


def test_dataset_statistics_do_not_depend_on_the_neighbors(tiny, raw):
    whole = rsb.create_preprocess(tiny)(raw)
    alone = rsb.create_preprocess(tiny)({m: x[:1] for m, x in raw.items()})
    assert all(torch.equal(alone[m], whole[m][:1]) for m in raw)
    batch = rsb.create_preprocess(tiny, statistics="batch")
    assert not torch.equal(batch({"s2": raw["s2"][:1]})["s2"], batch(raw)["s2"][:1])


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.float32, np.float64, ">u2"])
@pytest.mark.parametrize("as_tensor", [True, False])
def test_dtypes_agree_and_nothing_is_changed_in_place(dtype, as_tensor):
    model = rsb.create_model("croma_vit_tiny", modalities=["s2"])
    values = np.random.default_rng(1).integers(3, 2500, (1, 12, 8, 8)).astype(dtype)
    if as_tensor and np.dtype(dtype).byteorder == ">":
        pytest.skip("torch has no big-endian tensors")
    x = torch.from_numpy(values.copy()) if as_tensor else values
    preprocess = rsb.create_preprocess(model)
    got = preprocess(x)
    assert torch.equal(got, preprocess(values.astype(np.float32)))
    assert np.array_equal(np.asarray(x), values)
    got.zero_()
    assert np.array_equal(np.asarray(x), values)


def test_read_only_and_strided_arrays_are_fine(tiny, raw):
    frozen = raw["s2"].copy()
    frozen.flags.writeable = False
    preprocess = rsb.create_preprocess(tiny)
    want = preprocess(raw)["s2"]
    assert torch.equal(preprocess({"s2": frozen})["s2"], want)
    assert torch.equal(preprocess({"s2": frozen[:, :, ::-1]})["s2"], want.flip(2))
    last = np.moveaxis(np.ascontiguousarray(np.moveaxis(frozen, 1, -1)), -1, 1)
    assert torch.equal(preprocess({"s2": last})["s2"], want)


def test_series_and_single_images(tiny, raw):
    preprocess = rsb.create_preprocess(tiny)
    whole = preprocess(raw)["s2"]
    assert torch.equal(preprocess({"s2": raw["s2"][0]})["s2"], whole[0])
    assert torch.equal(preprocess({"s2": raw["s2"][:, None]})["s2"], whole[:, None])


def test_bands_are_gathered_by_name(tiny, raw):
    """Thirteen L1C bands in any order give the twelve of the model."""
    order = np.random.default_rng(2).permutation(13)
    whole = np.zeros((2, 13, 16, 16), np.uint16)
    keep = [L1C.index(b) for b in tiny.bands["s2"]]
    whole[:, keep] = raw["s2"]
    shuffled = whole[:, order]
    preprocess = rsb.create_preprocess(tiny, bands={"s2": [L1C[i] for i in order]})
    assert torch.equal(preprocess({"s2": shuffled})["s2"], rsb.create_preprocess(tiny)(raw)["s2"])


def test_a_model_for_other_bands_takes_their_statistics():
    model = rsb.create_model("croma_vit_tiny", modalities=["s2"], bands={"s2": ["B08", "B02"]})
    preprocess = rsb.create_preprocess(model)
    x = np.full((1, 2, 1, 1), 1000, np.uint16)
    spec = SSL4EO_S12["s2"]
    for i, band in enumerate(("B08", "B02")):
        j = spec.bands.index(band)
        assert preprocess(x)[0, i, 0, 0] == pytest.approx(clip_2sd(1000, spec.mean[j], spec.std[j]))
    cirrus = rsb.create_model("croma_vit_tiny", modalities=["s2"], bands={"s2": ["B10"]})
    with pytest.raises(ValueError, match="no statistics for B10"):
        rsb.create_preprocess(cirrus)
    own = rsb.create_preprocess(cirrus, statistics={"s2": {"cirrus": (22.0, 51.0)}}, eight_bit=False)
    assert own(np.full((1, 1, 1, 1), 22.0))[0, 0, 0, 0] == pytest.approx(0.5)


@settings(max_examples=25)
@given(st.floats(0.0, 1.25, width=32))
def test_units_agree(reflectance):
    model = rsb.create_model("croma_vit_tiny", modalities=["s2"])
    x = np.full((1, 12, 1, 1), reflectance, np.float32)
    kwargs = {"eight_bit": False, "check": False}
    dn = rsb.create_preprocess(model, **kwargs)(x * 10000)
    offset = rsb.create_preprocess(model, units={"s2": "dn_baseline_0400"}, **kwargs)(x * 10000 + 1000)
    direct = rsb.create_preprocess(model, units={"s2": "reflectance"}, **kwargs)(x)
    torch.testing.assert_close(offset, dn, atol=1e-5, rtol=0)
    torch.testing.assert_close(direct, dn, atol=1e-5, rtol=0)


def test_linear_backscatter_is_turned_into_decibels(tiny, raw):
    linear = rsb.create_preprocess(tiny, units={"s1": "linear"}, eight_bit=False)
    db = rsb.create_preprocess(tiny, eight_bit=False)
    got = linear({"s1": 10 ** (raw["s1"] / 10)})["s1"]
    torch.testing.assert_close(got, db({"s1": raw["s1"]})["s1"], atol=1e-4, rtol=0)
    zeros = linear({"s1": np.zeros((1, 2, 4, 4), np.float32)})["s1"]
    assert (zeros == 0).all()  # far below every clip


def test_missing_frames_are_not_looked_at(tiny, raw):
    series = {m: np.stack([x, x + 1], axis=1).astype(np.float32) for m, x in raw.items()}
    valid = {m: torch.tensor([[True, False], [True, True]]) for m in series}
    broken = {m: x.copy() for m, x in series.items()}
    for m in broken:
        broken[m][0, 1] = np.nan
    for statistics in ("dataset", "batch"):
        preprocess = rsb.create_preprocess(tiny, statistics=statistics)
        got = preprocess(broken, valid)
        assert all(got[m][0, 1].isnan().all() for m in got)
    whole = rsb.create_preprocess(tiny)(series)
    got = rsb.create_preprocess(tiny)(broken, valid)
    assert all(torch.equal(got[m][valid[m]], whole[m][valid[m]]) for m in got)
    with pytest.raises(ValueError, match="valid must be"):
        rsb.create_preprocess(tiny)(raw, valid)


def test_an_offset_of_1000_is_suspected(tiny, raw):
    with pytest.warns(UserWarning, match=r"dn_baseline_0400"):
        rsb.create_preprocess(tiny)({"s2": raw["s2"] + 1000})


WRONG = [
    ({"s2": np.full((1, 12, 4, 4), 90, np.uint8)}, {}, "8-bit values are a picture"),
    ({"s2": np.full((1, 12, 4, 4), 0.2)}, {}, "units={'s2': 'reflectance'}"),
    ({"s2": np.full((1, 12, 4, 4), 900.0)}, {"units": {"s2": "reflectance"}}, "units={'s2': 'dn'}"),
    ({"s1": np.full((1, 2, 4, 4), 0.03)}, {}, "units={'s1': 'linear'}"),
    ({"s1": np.full((1, 2, 4, 4), -12.0)}, {"units": {"s1": "linear"}}, "units={'s1': 'db'}"),
    ({"s1": np.array([[[[np.nan, -3.0]], [[-1.0, np.inf]]]])}, {}, "VV: 1, VH: 1"),
    ({"s2": np.zeros((1, 13, 4, 4))}, {}, "expected [..., 12, H, W]"),
    ({"s2": np.zeros((12, 4))}, {}, "expected [..., 12, H, W]"),
    ({"s2": np.zeros((1, 12, 0, 4))}, {}, "no values"),
    ({"s2": np.zeros((1, 12, 4, 4), bool)}, {}, "dtype bool"),
    ({"s2": torch.zeros((1, 12, 4, 4), dtype=torch.complex64)}, {}, "complex"),
    ({"s3": np.zeros((1, 12, 4, 4))}, {}, "unknown modality"),
    (np.zeros((1, 12, 4, 4)), {}, "pass a mapping by modality"),
    ({"s2": np.ones((1, 12, 4, 4))}, {"statistics": "batch", "check": False}, "B01, B02, B03"),
]


@pytest.mark.parametrize(("x", "arguments", "message"), WRONG, ids=[w[2][:30] for w in WRONG])
def test_wrong_values_are_refused_with_the_fix(tiny, x, arguments, message):
    import re

    with pytest.raises(ValueError, match=re.escape(message)):
        rsb.create_preprocess(tiny, **arguments)(x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"units": {"s2": "inches"}}, r"one of dn, dn_baseline_0400, reflectance"),
        ({"units": {"s3": "dn"}}, "units has s3"),
        ({"bands": {"s3": ["B02"]}}, "bands has s3"),
        ({"bands": {"s2": ["B02"]}}, "your bands lack"),
        ({"statistics": "mean"}, "statistics must be"),
        ({"statistics": {"s2": {"B77": (1, 1)}}}, "no band 'B77'"),
        ({"statistics": {"s2": {"B10": (1, 1)}}}, "a band of the model"),
        ({"statistics": {"s2": {"B02": (1000, 0)}}}, "positive standard deviation"),
    ],
)
def test_bad_arguments_are_refused(tiny, arguments, message):
    with pytest.raises(ValueError, match=message):
        rsb.create_preprocess(tiny, **arguments)


def test_repr_says_what_happens(tiny):
    text = repr(rsb.create_preprocess(tiny, units={"s1": "linear"}, bands={"s2": L1C}))
    for word in ("B10", "linear", "clip_2sd of SSL4EO-S12", "L2A", "through 8 bits"):
        assert word in text


def test_feature_maps_models_have_a_preprocess_too(raw):
    maps = rsb.create_model("croma_vit_tiny", features_only=True)
    assert maps(rsb.create_preprocess(maps)(raw))[0].shape == (2, 96, 2, 2)


def test_real_images_keep_their_contrast(tiny, real_data):
    """Real scenes are neither saturated nor flat after the default normalization."""
    stored = np.load(real_data / "eurosat_ms_200.npz")
    preprocess = rsb.create_preprocess(tiny, bands={"s2": list(stored["bands"])})
    x = preprocess({"s2": stored["images"]})["s2"]
    assert x.shape == (200, 12, 64, 64)
    assert (x == 1).float().mean() < 0.05
    assert (x.movedim(1, 0).flatten(1).std(1) > 0.02).all()


def test_pixels_without_data_do_not_hide_an_offset():
    preprocess = rsb.create_preprocess(rsb.create_model("croma_vit_tiny", modalities=("s2",)))
    raw = torch.full((1, 12, 8, 8), 1500.0)
    raw[..., 0, 0] = 0
    with pytest.warns(UserWarning, match="hardly a value is below 950"):
        preprocess(raw)
    with pytest.raises(ValueError, match="no value is above zero"):
        preprocess(torch.full((1, 12, 8, 8), -3.0))


# -- pictures -----------------------------------------------------------------------------------------


SMALL = {"depth": 2, "dim": 32, "num_heads": 4}


@pytest.mark.parametrize(("unit", "of_255"), [("rgb8", 2750), ("rgb8:3558", 3558)])
def test_pictures_become_reflectance(raw, unit, of_255):
    model = rsb.create_model("croma_vit_tiny", overrides=SMALL, bands={"s2": ("B03", "B02")})
    image = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8)).astype(np.uint8)
    made = rsb.create_preprocess(model, bands={"s2": ("B02", "B03", "B04")}, units={"s2": unit})
    found = made({"s2": image, "s1": raw["s1"]})
    measured = rsb.create_preprocess(model, bands={"s2": ("B02", "B03", "B04")}, check=False)
    wanted = measured({"s2": image.astype(np.float64) / 255 * of_255, "s1": raw["s1"]})
    for m in found:
        assert nearly(found[m], wanted[m].numpy())
    assert f"B02, B03, B04 in {unit} -> B03, B02" in repr(made)


@pytest.mark.parametrize("unit", ["rgb8:", "rgb8:0", "rgb8:nan", "rgb8:x"])
def test_the_scale_of_a_picture_is_a_positive_number(tiny, unit):
    with pytest.raises(ValueError, match="names the digital number that 255 stands for"):
        rsb.create_preprocess(tiny, units={"s2": unit})


def test_a_picture_of_radar_has_no_scale(tiny):
    with pytest.raises(ValueError, match="s1: unit must be one of db, linear, db_x100, got 'rgb8'"):
        rsb.create_preprocess(tiny, units={"s1": "rgb8"})


@pytest.mark.parametrize(
    ("value", "message"),
    [(256, "0 to 255, got 7 to 256"), (-1, "0 to 255, got -1 to 7"), (np.nan, "NaN or infinity")],
)
def test_values_that_no_picture_has_are_refused(value, message):
    overrides = {"depth": 2, "dim": 32, "num_heads": 4}
    model = rsb.create_model("croma_vit_tiny", modalities=("s2",), overrides=overrides)
    made = rsb.create_preprocess(model, units={"s2": "rgb8"})
    image = np.full((12, 8, 8), 7.0)
    image[3, 2, 1] = value
    with pytest.raises(ValueError, match=message):
        made(image)
    with pytest.raises(ValueError, match="multiply them by 255"):
        made(np.linspace(0, 1, 12 * 64).reshape(12, 8, 8))


@pytest.mark.parametrize("unit", ["db", "db_x100", "linear"])
def test_the_ratio_of_a_radar_is_read_or_computed(unit):
    """VV / VH is VV - VH in dB; under the rule ``standard``, nothing is clipped."""
    three, statistics = ("VV", "VH", "VV/VH"), {"s1": {"VV/VH": (7.0, 3.0)}}
    model = rsb.create_model(
        "s4_unet3d_tiny", modalities=("s1",), overrides={"bands": {"s1": three}, "widths": (2, 2, 2)}
    )
    with pytest.raises(ValueError, match=r"no statistics for VV/VH.*statistics=\{'s1'"):
        rsb.create_preprocess(model)
    db = np.random.default_rng(0).normal([[-12], [-20]], [[9], [3]], (2, 64)).reshape(1, 2, 8, 8)
    as_given = {"db": lambda x: x, "db_x100": lambda x: x * 100, "linear": lambda x: 10 ** (x / 10)}[unit]
    mean, std = (np.array([*numbers, last]) for numbers, last in zip(
        (SSL4EO_S12["s1"].mean, SSL4EO_S12["s1"].std), statistics["s1"]["VV/VH"], strict=True
    ))  # fmt: skip
    ratio = db[:, :1] - db[:, 1:]
    read = np.concatenate([db, ratio + 1], axis=1)  # given bands are not computed again
    for bands, raw, last in ((three[:2], db, ratio), (three, read, ratio + 1)):
        preprocess = rsb.create_preprocess(
            model, bands={"s1": bands}, units={"s1": unit}, statistics=statistics, check=bands != three
        )
        wanted = (np.concatenate([db, last], axis=1) - mean[:, None, None]) / std[:, None, None]
        found = preprocess({"s1": as_given(raw).astype(np.float32)})["s1"].numpy()
        np.testing.assert_allclose(found, wanted, atol=1e-3)
        assert np.abs(found).max() > 2
    with pytest.raises(ValueError, match=r"lack VH, VV/VH"):
        rsb.create_preprocess(model, bands={"s1": ("VV",)}, statistics=statistics)
