"""Containers of arrays: taken by what they say of themselves, or refused with the fix."""

import numpy as np
import pytest
import torch

import rsbackbones as rsb

xr = pytest.importorskip("xarray")

BANDS = ("B02", "B03", "B04", "B08")


@pytest.fixture(scope="module")
def model():
    return rsb.create_model("croma_vit_tiny", modalities=("s2",), bands={"s2": BANDS})


@pytest.fixture(scope="module")
def preprocess(model):
    return rsb.create_preprocess(model)


@pytest.fixture
def dn():
    return np.random.default_rng(0).integers(300, 4000, (4, 4, 16, 24)).astype(np.uint16)


FORMS = {
    "big-endian": lambda x: x.astype(">u2"),
    "int16": lambda x: x.astype(np.int16),
    "int64": lambda x: x.astype(np.int64),
    "float64": lambda x: x.astype(np.float64),
    "long double": lambda x: x.astype(np.longdouble),
    "big-endian float": lambda x: x.astype(">f4"),
    "negative strides": lambda x: np.ascontiguousarray(x[..., ::-1])[..., ::-1],
    "not contiguous": lambda x: np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1),
    "torch": lambda x: torch.from_numpy(x.astype(np.int32)),
    "masked without a mask": np.ma.asarray,
    "memmap-like": lambda x: np.lib.stride_tricks.as_strided(x, writeable=False),
    "DataArray of unnamed bands": lambda x: xr.DataArray(x, dims=("time", "band", "y", "x")),
    "DataArray in another order": lambda x: xr.DataArray(
        np.einsum("tcyx->xcyt", x), dims=("Longitude", "channel", "lat", "t")
    ),
    "DataArray of numbered bands": lambda x: xr.DataArray(
        np.moveaxis(x, 1, 0), dims=("band", "time", "y", "x"), coords={"band": [1, 2, 3, 4]}
    ),
    "DataArray of named bands": lambda x: xr.DataArray(
        np.concatenate([x[:, ::-1], x[:, :1] * 0], axis=1),
        dims=("time", "band", "y", "x"),
        coords={"band": ["nir", "B4", "b03", "blue", "SCL"]},
    ),
    "Dataset": lambda x: xr.Dataset(
        {
            "SCL": (("time", "y", "x"), x[:, 0]),
            **{
                name: (("x", "time", "y"), np.einsum("tyx->xty", x[:, i]))
                for i, name in reversed([*enumerate(("B02", "green", "B04", "B08"))])
            },
        }
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_an_array_are_one_input_and_stay_as_they_are(preprocess, dn, form):
    given = FORMS[form](dn)
    before = given.copy() if not isinstance(given, torch.Tensor) else given.clone()
    want = preprocess(dn)
    assert torch.equal(preprocess(given), want)
    assert torch.equal(preprocess({"s2": given})["s2"], want)
    assert (np.asarray(given) == np.asarray(before)).all() if form != "Dataset" else given.identical(before)
    assert preprocess.valid_pixels(given)["s2"].all()


def test_float16_is_the_rounded_value(preprocess, dn):
    half = dn.astype(np.float16)
    assert torch.equal(preprocess(half), preprocess(half.astype(np.float32)))


def gaps(form, dn, missing):
    """An array that lacks some pixels, in the way that a form states it."""
    if form == "masked array":
        return np.ma.masked_array(dn, np.broadcast_to(missing[:, None], dn.shape))
    if form == "NaN":
        return np.where(missing[:, None], np.nan, dn)
    if form == "NaN in one band":
        broken = dn.astype(np.float32)
        broken[:, 2][missing] = np.nan
        return broken
    filled = np.where(missing[:, None], 65535, dn).astype(np.uint16)
    if form == "DataArray":
        named = {"dims": ("band", "time", "y", "x"), "attrs": {"_FillValue": 65535}}
        return xr.DataArray(np.moveaxis(filled, 1, 0), **named)
    return xr.Dataset({b: (("time", "y", "x"), filled[:, i], {"nodata": 65535}) for i, b in enumerate(BANDS)})


@pytest.mark.parametrize("form", ["masked array", "NaN", "NaN in one band", "DataArray", "Dataset"])
def test_missing_pixels_are_refused_or_known_to_the_model_and_never_dropped(model, preprocess, dn, form):
    missing = np.random.default_rng(1).random((4, 16, 24)) < 0.2
    missing[0, :8, :8] = True
    x = gaps(form, dn, missing)
    with pytest.raises(ValueError, match=r"valid = preprocess\.valid_pixels\(x\)"):
        preprocess(x)
    valid = preprocess.valid_pixels(x)
    np.testing.assert_array_equal(valid["s2"], ~missing)
    inputs = preprocess(x, valid=valid)
    np.testing.assert_array_equal(inputs, np.where(missing[:, None], np.nan, preprocess(dn).numpy()))
    features = model.forward_features(inputs, valid=valid)
    assert features.maps()[0, :, 0, 0].isnan().all()
    assert features.pooled["s2"].isfinite().all()
    # A mask of one's own that leaves some of them is no way around.
    with pytest.raises(ValueError, match="masked pixels"):
        preprocess(x, valid={"s2": np.ones_like(missing)})


def test_a_mask_that_the_model_does_not_get_is_refused(model, preprocess, dn):
    valid = np.ones((len(dn), *dn.shape[-2:]), bool)
    model(preprocess(dn, valid=valid))  # it hides nothing
    valid[1, 2, 3] = False
    inputs = preprocess(dn, valid=valid)
    with pytest.raises(ValueError, match=r"1 of \d+ pixels are NaN and would count.*valid=valid"):
        model(inputs)
    other = valid.copy()
    other[1, 2, 3:5] = [True, False]
    with pytest.raises(ValueError, match="1 of"):
        model(inputs, valid=other)
    assert model(inputs, valid=valid).isfinite().all()


def test_statistics_and_checks_are_of_the_pixels_that_count(model, dn):
    missing = np.random.default_rng(1).random((4, 16, 24)) < 0.3
    broken = np.where(missing[:, None], -9999, dn)
    checked = rsb.create_preprocess(model, statistics="batch")
    again = checked(broken, valid=~missing)
    kept = dn.transpose(1, 0, 2, 3)[:, ~missing].astype(np.float64)
    mean, std = kept.mean(1)[:, None], kept.std(1, ddof=1)[:, None]
    want = np.clip((kept - mean + 2 * std) / (4 * std) * 255, 0, 255).astype(np.uint8) / 255
    np.testing.assert_allclose(again.numpy().transpose(1, 0, 2, 3)[:, ~missing], want, atol=1 / 255 + 1e-6)
    assert checked(broken, valid=np.zeros_like(missing)).isnan().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: np.moveaxis(x, 1, -1), r"channels look to be last: pass numpy\.moveaxis\(x, -1, -3\)"),
        (lambda x: x.astype(np.complex64), r"SLC.*intensities.*calibrate"),
        (lambda x: torch.ones(1, 4, 8, 8, dtype=torch.complex64), r"SLC.*intensities.*calibrate"),
        (lambda x: xr.DataArray(x * 1j, dims=("time", "band", "y", "x")), r"SLC.*intensities.*calibrate"),
        (lambda x: None, "s2 is None: leave out"),
        (lambda x: x.astype(str), "dtype <U"),
        (lambda x: xr.DataArray(x, dims=("foo", "band", "y", "x")), "dimension 'foo'.* is not known; rename"),
        (lambda x: xr.DataArray(x, dims=("row", "band", "y", "x")), "'y'.* is a second one of y"),
        (lambda x: xr.DataArray(x[0], dims=("band", "time", "x")), "expected the dimensions y and x"),
        (
            lambda x: xr.DataArray(
                x[0], dims=("band", "y", "x"), coords={"band": ["B02", "B03", "B04", "B05"]}
            ),
            "no band B08 among B02, B03, B04, B05",
        ),
        (lambda x: xr.Dataset({"B02": (("y", "x"), x[0, 0])}), "no band B03, B04, B08 among B02"),
        (
            lambda x: xr.Dataset({b: ((f"y{i}"[: 1 + i % 2], "x"), x[0, i]) for i, b in enumerate(BANDS)}),
            "dimension 'y1'",
        ),
    ],
)
def test_what_cannot_be_taken_right_is_refused_with_the_fix(preprocess, dn, make, message):
    with pytest.raises(ValueError, match=message):
        preprocess({"s2": make(dn)})


def test_an_offset_that_was_not_applied_is_refused(model, dn):
    stored = xr.DataArray(dn, dims=("time", "band", "y", "x"))
    want = rsb.create_preprocess(model)({"s2": stored})["s2"]
    stored = (stored + 1000).astype("u2").assign_attrs(scale_factor=1e-4, add_offset=-0.1)
    with pytest.raises(ValueError, match=r"add_offset = -0\.1 have not been applied"):
        rsb.create_preprocess(model)({"s2": stored})
    for masked in (stored.astype("f4"), stored.where(stored > 1100)):  # as rioxarray reads, masked=True
        masked = masked.assign_attrs(stored.attrs)
        for unit in ("dn", "reflectance"):
            with pytest.raises(ValueError, match=r"add_offset = -0\.1 have not been applied.*del x\.attrs"):
                rsb.create_preprocess(model, units={"s2": unit})({"s2": masked})
    thousandth = stored.assign_attrs(scale_factor=1e-3, add_offset=0.0)
    with pytest.raises(ValueError, match=r"scale_factor = 0\.001, .* have not been applied"):
        rsb.create_preprocess(model)({"s2": thousandth})
    named = rsb.create_preprocess(model, units={"s2": "dn_baseline_0400"})
    torch.testing.assert_close(named({"s2": stored})["s2"], want)
    applied = (stored * 1e-4 - 0.1).assign_attrs(stored.attrs)  # newer versions of xarray keep attributes
    made = rsb.create_preprocess(model, units={"s2": "reflectance"})({"s2": applied})["s2"]
    torch.testing.assert_close(made, want, atol=1 / 255 + 1e-6, rtol=0)


def test_masks_in_other_forms(preprocess, dn):
    valid = np.random.default_rng(1).random((4, 16, 24)) < 0.8
    want = preprocess(dn, valid={"s2": torch.from_numpy(valid)})
    turned = xr.DataArray(np.moveaxis(valid, 0, -1), dims=("y", "x", "time"))
    for mask in (valid, valid.tolist(), valid.astype(np.uint8), turned):
        np.testing.assert_array_equal(preprocess(dn, valid=mask), want)
        np.testing.assert_array_equal(preprocess({"s2": dn}, valid={"s2": mask})["s2"], want)
    for mask, message in (
        (np.full(valid.shape, 4), r"isin\(scl"),
        (valid[:2], r"must be booleans \[4, 16, 24\]"),
    ):
        with pytest.raises(ValueError, match=message):
            preprocess(dn, valid=mask)
    with pytest.raises(ValueError, match="valid has s1"):
        preprocess({"s2": dn}, valid={"s1": valid})


@pytest.mark.parametrize(
    "container",
    [
        lambda x: np.ma.masked_equal(x, -9999),
        lambda x: xr.DataArray(x, dims=("time", "band", "y", "x"), attrs={"_FillValue": -9999}),
    ],
)
def test_declared_nodata_is_filled_where_the_array_states_it_too(model, dn, container):
    x = dn.astype(np.int16)
    x[0, 1, 3, 4] = -9999
    declared = rsb.create_preprocess(model, nodata=-9999)
    assert torch.equal(declared(container(x)), declared(x))
    hidden = np.ma.masked_equal(x, -9999)
    hidden[2, :, 5, 6] = np.ma.masked  # of another reason
    with pytest.raises(ValueError, match="masked pixels"):
        declared(hidden)


def test_pixels_of_nodata_are_missing_and_a_mask_covers_them(model, dn):
    missing = np.random.default_rng(1).random((4, 16, 24)) < 0.2
    broken = dn.astype(np.int32)
    broken[:, 1][missing] = -9999
    declared, plain = rsb.create_preprocess(model, nodata=-9999), rsb.create_preprocess(model)
    np.testing.assert_array_equal(declared.valid_pixels(broken)["s2"], ~missing)
    assert plain.valid_pixels(broken)["s2"].all()
    dark = np.where(missing[:, None], 0, dn)
    np.testing.assert_array_equal(plain.valid_pixels(dark)["s2"], ~missing)
    want = np.where(missing[:, None], np.nan, plain(dn).numpy())
    np.testing.assert_array_equal(declared(broken, valid=declared.valid_pixels(broken)), want)
    # Another mask leaves the mean of the image's other pixels that count, in every band.
    mask = np.random.default_rng(2).random((4, 16, 24)) < 0.7
    found = declared(broken, valid=mask)
    for image, pixels, holes, made in zip(dn, mask, missing, found.numpy(), strict=True):
        mean = image[:, pixels & ~holes].mean(1)
        even = plain(np.broadcast_to(mean[:, None, None], image.shape).astype(np.float32)).numpy()
        np.testing.assert_allclose(made[:, pixels & holes], even[:, pixels & holes], atol=1 / 255 + 1e-6)
        assert np.isnan(made[:, ~pixels]).all()


def test_a_mask_is_of_the_size_of_the_array_also_where_images_are_resized(model, dn):
    resizing = rsb.create_preprocess(model)
    resizing.size = (32, 48)
    valid = np.ones((4, 16, 24), bool)
    valid[:, :8, :8] = False
    found = resizing(np.where(valid[:, None], dn, 60_000), valid=valid)
    hidden = ~valid.repeat(2, 1).repeat(2, 2)
    assert found.shape == (4, 4, 32, 48)
    assert np.isnan(found.numpy().transpose(0, 2, 3, 1)[hidden]).all()
    far = np.s_[:, :, 20:, 20:]  # beyond the reach of the interpolation
    assert torch.equal(found[far], resizing(dn)[far])
    assert resizing(dn, valid=np.zeros_like(valid)).shape == found.shape


def test_bands_are_found_by_every_name_that_an_array_states(tiny):
    preprocess = rsb.create_preprocess(tiny, check=False)
    bands = tiny.bands["s2"]
    x = np.random.default_rng(0).integers(1, 9000, (len(bands), 16, 16)).astype(np.int16)
    other = {"dims": ("band", "y", "x")}
    expected = preprocess({"s2": x[None]})["s2"]
    turned, names = x[::-1], [*bands[::-1]]
    for stated in (
        {"coords": {"band": np.array([n.encode() for n in names])}},
        {"coords": {"band": np.arange(len(bands)) + 1, "band_name": ("band", names)}},
        {"coords": {"band": np.arange(len(bands)) + 1}, "attrs": {"long_name": tuple(names)}},
    ):
        found = preprocess({"s2": xr.DataArray(turned, **other, **stated).expand_dims("batch")})["s2"]
        assert torch.equal(found, expected)
    numbered = xr.DataArray(x, **other, coords={"band": np.arange(len(bands)) + 1})
    assert torch.equal(preprocess({"s2": numbered.expand_dims("batch")})["s2"], expected)
    wavelengths = xr.DataArray(x, **other, coords={"band": np.linspace(842, 490, len(bands))})
    with pytest.raises(ValueError, match="which names none; rename them"):
        preprocess({"s2": wavelengths.expand_dims("batch")})


def test_a_list_of_masked_arrays_is_refused(tiny):
    masked = np.ma.array(np.ones((len(tiny.bands["s2"]), 16, 16)), mask=True)
    with pytest.raises(ValueError, match=r"numpy\.ma\.stack"):
        rsb.create_preprocess(tiny, check=False)({"s2": [masked]})


def test_every_value_that_is_stated_for_no_data_is_missing(tiny):
    x = np.full((1, len(tiny.bands["s2"]), 16, 16), 700, np.int16)
    x[..., :4], x[..., 4:8] = -999, -32768
    attrs = {"_FillValue": -32768, "missing_value": -999}
    given = xr.DataArray(x, dims=("batch", "band", "y", "x"), attrs=attrs)
    (share,) = rsb.create_preprocess(tiny).valid_pixels({"s2": given}).values()
    assert share.float().mean() == 0.5
