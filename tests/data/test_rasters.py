"""GeoTIFFs as sensors, with real files: bands by name, one grid, missing data, windows."""

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine, from_origin

from rsbackbones.data.rasters import RasterStack, find_bands, open_raster

S2 = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
S1 = ("VV", "VH")
GRID = from_origin(500_000, 5_000_000, 10, 10)


def write_tif(path, data, names=None, *, transform=GRID, crs="EPSG:32633", nodata=None):
    """Write [C, h, w] as a GeoTIFF whose bands are described by `names`."""
    count, height, width = data.shape
    profile = {"driver": "GTiff", "dtype": data.dtype, "count": count, "height": height, "width": width}
    with rasterio.open(path, "w", **profile, crs=crs, transform=transform, nodata=nodata) as raster:
        raster.write(data)
        if names is not None:
            raster.descriptions = tuple(names)
    return path


def ramp(bands, height=16, width=24, dtype=np.uint16):
    """Data in which every pixel of every band is different, none of them zero."""
    return np.arange(1, bands * height * width + 1).reshape(bands, height, width).astype(dtype)


# -- which bands --------------------------------------------------------------------------------------


def test_descriptions_in_any_spelling_and_order_name_the_bands(tmp_path):
    names = ("nir", "B1", "b02", "Green", "B8A", "VV")
    data = ramp(6)
    path = write_tif(tmp_path / "mixed.tif", data, names)
    found, unknown = find_bands(path, ("s2", "s1"))
    assert found == {"s2": {"B08": 1, "B01": 2, "B02": 3, "B03": 4, "B8A": 5}, "s1": {"VV": 6}}
    assert unknown == []
    with RasterStack([path], ("s2", "s1")) as stack:
        assert stack.bands == {"s2": ("B08", "B01", "B02", "B03", "B8A"), "s1": ("VV",)}
        arrays, valid = stack.read()
    np.testing.assert_array_equal(arrays["s2"], data[:5])
    np.testing.assert_array_equal(arrays["s1"], data[5:])
    assert valid.all()
    assert valid.shape == (16, 24)


@pytest.mark.parametrize("spelling", ["B8A", "b8a", "B08A", "nir08"])
def test_every_spelling_of_b8a_is_understood(tmp_path, spelling):
    path = write_tif(tmp_path / "one.tif", ramp(1), [spelling])
    assert find_bands(path, ("s2",)) == ({"s2": {"B8A": 1}}, [])


def test_given_names_count_more_than_descriptions(tmp_path):
    path = write_tif(tmp_path / "wrongly_described.tif", ramp(2), ("B02", "B03"))
    assert find_bands(path, ("s2",), ["B04", "B08"])[0] == {"s2": {"B04": 1, "B08": 2}}


def test_bands_without_description_must_be_named(tmp_path):
    bare = write_tif(tmp_path / "bare.tif", ramp(3))
    with pytest.raises(ValueError, match=r"bare\.tif.*band 1 of 3.*--bands"):
        find_bands(bare, ("s2",))
    partly = write_tif(tmp_path / "partly.tif", ramp(3), ("B02", None, "B04"))
    with pytest.raises(ValueError, match=r"partly\.tif.*band 2 of 3.*--bands"):
        find_bands(partly, ("s2",))
    with RasterStack([bare], ("s2",), names=[("B02", "B03", "B04")]) as stack:
        assert stack.bands == {"s2": ("B02", "B03", "B04")}


def test_names_must_be_as_many_as_bands(tmp_path):
    path = write_tif(tmp_path / "three.tif", ramp(3))
    with pytest.raises(ValueError, match=r"three\.tif has 3 bands, 2 were named: B02, B03"):
        find_bands(path, ("s2",), ["B02", "B03"])
    with pytest.raises(ValueError, match="2 lists of bands for 1 raster"):
        RasterStack([path], ("s2",), names=[("B02", "B03", "B04"), ("VV", "VH")])


def test_bands_of_no_sensor_are_left_out_and_reported(tmp_path):
    data = ramp(4)
    path = write_tif(tmp_path / "extra.tif", data, ("SCL", "B02", "cloud probability", "B03"))
    with RasterStack([path], ("s2", "s1")) as stack:
        assert stack.bands == {"s2": ("B02", "B03")}
        assert stack.ignored == {path: ["SCL", "cloud probability"]}
        np.testing.assert_array_equal(stack.read()[0]["s2"], data[[1, 3]])


def test_a_sensor_that_is_not_asked_for_is_left_out(tmp_path):
    path = write_tif(tmp_path / "both.tif", ramp(3), ("VV", "B02", "VH"))
    with RasterStack([path], ("s2",)) as stack:
        assert stack.bands == {"s2": ("B02",)}
        assert stack.ignored == {path: ["VV", "VH"]}


def test_a_raster_of_unknown_bands_only_is_refused(tmp_path):
    path = write_tif(tmp_path / "other.tif", ramp(2), ("SCL", "AOT"))
    with pytest.raises(ValueError, match=r"other\.tif.*SCL, AOT.*s2, s1"):
        find_bands(path, ("s2", "s1"))


def test_an_unknown_name_that_was_given_is_refused(tmp_path):
    # A description may be anything; what the user typed is a mistake.
    path = write_tif(tmp_path / "typo.tif", ramp(2))
    with pytest.raises(ValueError, match="B0Z"):
        find_bands(path, ("s2",), ["B02", "B0Z"])


def test_two_bands_of_one_name_are_refused(tmp_path):
    path = write_tif(tmp_path / "twice.tif", ramp(3), ("B02", "B03", "blue"))
    with pytest.raises(ValueError, match=r"twice\.tif.*two bands are s2 B02.*blue"):
        find_bands(path, ("s2",))


def test_two_bands_named_alike_by_the_user_show_what_the_user_typed(tmp_path):
    path = write_tif(tmp_path / "twice.tif", ramp(3))
    with pytest.raises(ValueError, match=r"two bands are s2 B02.*blue"):
        find_bands(path, ("s2",), ["B02", "B03", "blue"])


# -- several files ------------------------------------------------------------------------------------


def test_band_per_file_stacks_read_as_one(tmp_path):
    data = ramp(12)
    order = [7, 0, 11, 3, 2, 1, 4, 5, 6, 8, 10, 9]
    paths = [write_tif(tmp_path / f"{S2[i]}.tif", data[i : i + 1], [S2[i]]) for i in order]
    with RasterStack(paths, ("s2",)) as stack:
        assert stack.bands == {"s2": tuple(S2[i] for i in order)}
        np.testing.assert_array_equal(stack.read()[0]["s2"], data[order])


def test_two_sensors_in_two_files_with_names_for_one_of_them(tmp_path):
    optical, radar = ramp(2), -ramp(2, dtype=np.float32)
    a = write_tif(tmp_path / "a.tif", optical)
    b = write_tif(tmp_path / "b.tif", radar, ("VH", "VV"))
    with RasterStack([a, b], ("s2", "s1"), names=[("B03", "B02"), None]) as stack:
        assert stack.bands == {"s2": ("B03", "B02"), "s1": ("VH", "VV")}
        arrays, _ = stack.read()
    np.testing.assert_array_equal(arrays["s2"], optical)
    np.testing.assert_array_equal(arrays["s1"], radar)
    assert {x.dtype for x in arrays.values()} == {np.dtype(np.float32)}


def test_one_band_in_two_files_is_refused(tmp_path):
    a = write_tif(tmp_path / "a.tif", ramp(2), ("B02", "B03"))
    b = write_tif(tmp_path / "b.tif", ramp(1), ("green",))
    with pytest.raises(ValueError, match=r"B03 is in .*b\.tif"):
        RasterStack([a, b], ("s2",))


def test_no_file_at_all_is_refused():
    with pytest.raises(ValueError, match="no raster"):
        RasterStack([], ("s2",))


SHIFTS = {
    "size": ({}, (16, 25)),
    "transposed": ({}, (24, 16)),
    "crs": ({"crs": "EPSG:32634"}, (16, 24)),
    "no crs": ({"crs": None}, (16, 24)),
    "origin by a pixel": ({"transform": from_origin(500_010, 5_000_000, 10, 10)}, (16, 24)),
    "origin by half a pixel": ({"transform": from_origin(500_000, 5_000_005, 10, 10)}, (16, 24)),
    "pixel size": ({"transform": from_origin(500_000, 5_000_000, 20, 20)}, (16, 24)),
    "south up": ({"transform": Affine(10, 0, 500_000, 0, 10, 5_000_000)}, (16, 24)),
}


@pytest.mark.parametrize(("change", "shape"), SHIFTS.values(), ids=SHIFTS)
def test_different_grids_are_refused(tmp_path, change, shape):
    a = write_tif(tmp_path / "a.tif", ramp(1), ("B02",))
    b = write_tif(tmp_path / "b.tif", ramp(1, *shape), ("VV",), **change)
    with pytest.raises(ValueError, match=r"a\.tif.*b\.tif.*not on one grid.*resample"):
        RasterStack([a, b], ("s2", "s1"))


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:4326"])
def test_a_grid_shifted_by_rounding_is_the_same(tmp_path, crs):
    pixel = 10.0 if crs == "EPSG:32633" else 1e-4
    shifted = from_origin(13 + 1e-5 * pixel, 50 - 1e-5 * pixel, pixel, pixel)
    a = write_tif(tmp_path / "a.tif", ramp(1), ("B02",), crs=crs, transform=from_origin(13, 50, pixel, pixel))
    b = write_tif(tmp_path / "b.tif", ramp(1), ("VV",), crs=crs, transform=shifted)
    with RasterStack([a, b], ("s2", "s1")) as stack:
        assert set(stack.bands) == {"s2", "s1"}


def test_a_pixel_size_that_drifts_apart_over_the_scene_is_another_grid(tmp_path):
    # A thousandth of a pixel per pixel is half a pixel after 500 of them.
    a = write_tif(tmp_path / "a.tif", ramp(1, 8, 500), ("B02",))
    drifting = from_origin(500_000, 5_000_000, 10.009, 10)
    b = write_tif(tmp_path / "b.tif", ramp(1, 8, 500), ("VV",), transform=drifting)
    with pytest.raises(ValueError, match="not on one grid"):
        RasterStack([a, b], ("s2", "s1"))


def test_the_common_grid_is_that_of_the_files(tmp_path):
    rotated = Affine(8, -6, 500_000, -6, -8, 5_000_000)
    path = write_tif(tmp_path / "a.tif", ramp(1), ("B02",), transform=rotated)
    with RasterStack([path], ("s2",)) as stack:
        assert (stack.height, stack.width) == (16, 24)
        assert stack.crs == rasterio.crs.CRS.from_epsg(32633)
        assert stack.transform.almost_equals(rotated)


# -- missing data -------------------------------------------------------------------------------------


def holes(dtype, value):
    """Two bands with holes in different places, and where both have data."""
    data = ramp(2, dtype=dtype)
    data[0, 3, 5] = data[1, 10, 20] = data[1, 3, 5] = value
    valid = np.ones(data.shape[1:], bool)
    valid[3, 5] = valid[10, 20] = False
    return data, valid


@pytest.mark.parametrize(
    ("dtype", "value", "stated", "argument"),
    [
        (np.uint16, 0, 0, None),
        (np.int16, -9999, -9999, None),
        (np.float32, np.nan, None, None),
        (np.float32, np.nan, np.nan, None),
        (np.float32, -np.inf, None, None),
        (np.float32, -3.4e38, -3.4e38, None),
        (np.uint16, 0, None, 0),
        (np.float32, -32768, None, -32768),
        (np.float32, 0.1, None, 0.1),
    ],
)
def test_a_hole_in_one_band_is_a_hole_in_all(tmp_path, dtype, value, stated, argument):
    data, expected = holes(dtype, value)
    path = write_tif(tmp_path / "holes.tif", data, ("B02", "VV"), nodata=stated)
    with RasterStack([path], ("s2", "s1"), nodata=argument) as stack:
        arrays, valid = stack.read()
    np.testing.assert_array_equal(valid, expected)
    np.testing.assert_array_equal(arrays["s2"][0], np.where(expected, data[0], 0))
    np.testing.assert_array_equal(arrays["s1"][0], np.where(expected, data[1], 0))


def test_without_a_stated_value_zeros_are_data(tmp_path):
    data, _ = holes(np.uint16, 0)
    path = write_tif(tmp_path / "zeros.tif", data, ("B02", "B03"))
    with RasterStack([path], ("s2",)) as stack:
        assert stack.read()[1].all()


def test_holes_of_different_files_add_up(tmp_path):
    a, b = ramp(1), ramp(1, dtype=np.float32)
    a[0, 0, 0] = 7777
    b[0, 15, 23] = np.nan
    paths = [
        write_tif(tmp_path / "a.tif", a, ("B02",), nodata=7777),
        write_tif(tmp_path / "b.tif", b, ("VV",)),
    ]
    with RasterStack(paths, ("s2", "s1")) as stack:
        valid = stack.read()[1]
    assert np.argwhere(~valid).tolist() == [[0, 0], [15, 23]]


# -- reading ------------------------------------------------------------------------------------------


def test_a_window_is_row_column_height_width(tmp_path):
    data, expected = holes(np.uint16, 0)
    path = write_tif(tmp_path / "a.tif", data, ("B03", "B02"), nodata=0)
    with RasterStack([path], ("s2",)) as stack:
        arrays, valid = stack.read((2, 4, 9, 17))
    np.testing.assert_array_equal(arrays["s2"], np.where(expected, data, 0)[:, 2:11, 4:21])
    np.testing.assert_array_equal(valid, expected[2:11, 4:21])
    assert not valid.all()


def test_a_decimated_read_shows_the_whole_scene(tmp_path):
    coarse = ramp(2, 5, 7)
    coarse[:, 4, 6] = 0
    data = coarse.repeat(8, axis=1).repeat(8, axis=2)
    path = write_tif(tmp_path / "blocks.tif", data, ("VV", "VH"), nodata=0)
    with RasterStack([path], ("s1",)) as stack:
        arrays, valid = stack.read(out_shape=(5, 7))
        part, _ = stack.read((8, 16, 16, 24), out_shape=(2, 3))
    np.testing.assert_array_equal(arrays["s1"], coarse)
    np.testing.assert_array_equal(part["s1"], coarse[:, 1:3, 2:5])
    assert np.argwhere(~valid).tolist() == [[4, 6]]


def test_a_file_that_is_no_raster_is_named(tmp_path):
    text = tmp_path / "notes.tif"
    text.write_text("not a raster")
    for path in (text, tmp_path / "absent.tif", tmp_path):
        with pytest.raises(ValueError, match=f"cannot read .*{path.name}"):
            open_raster(path)


def test_a_truncated_raster_is_named(tmp_path):
    # Without descriptions the header lies in front and is whole: the damage shows when pixels are read.
    path = write_tif(tmp_path / "cut.tif", ramp(2, 256, 256))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    stack = RasterStack([path], ("s2",), names=[("B02", "B03")])
    with stack, pytest.raises((ValueError, OSError)) as caught:
        stack.read()
    assert "cut.tif" in str(caught.value)


def test_only_wanted_bands_are_read_and_decide_what_is_valid(tmp_path):
    cirrus = np.zeros((1, 16, 24), np.float32)  # without data everywhere
    path = write_tif(tmp_path / "a.tif", np.concatenate([ramp(1), cirrus]), ("B02", "B10"), nodata=0)
    with RasterStack([path], ("s2",)) as stack:
        assert not stack.read()[1].any()
    with RasterStack([path], ("s2",), wanted={"s2": ("B02",)}) as stack:
        assert stack.bands == {"s2": ("B02",)}
        assert stack.read()[1].mean() > 0.9


def test_scale_and_offset_tags_are_applied(tmp_path):
    path = write_tif(tmp_path / "a.tif", ramp(1), ("B02",))
    with RasterStack([path], ("s2",)) as stack:
        plain = stack.read()[0]["s2"]
    with rasterio.open(path, "r+") as raster:
        raster.scales, raster.offsets = (0.0001,), (-0.1,)
    with RasterStack([path], ("s2",)) as stack:
        np.testing.assert_allclose(stack.read()[0]["s2"], plain * 1e-4 - 0.1, rtol=1e-5)


def test_bands_of_which_only_some_have_scale_tags_are_refused(tmp_path):
    path = write_tif(tmp_path / "a.tif", ramp(3), ("B02", "B08", "SCL"))
    with rasterio.open(path, "r+") as raster:
        raster.scales = (0.0001, 1, 1)
    with pytest.raises(ValueError, match="B02 has scale or offset tags and B08 has none"):
        RasterStack([path], ("s2",))
    with rasterio.open(path, "r+") as raster:  # bands that are not read may have others
        raster.scales = (0.0001, 0.0001, 1)
    with RasterStack([path], ("s2",)) as stack:
        assert stack.stated_units == {"s2": "reflectance"}


def test_leaving_the_stack_closes_its_files(tmp_path):
    path = write_tif(tmp_path / "a.tif", ramp(1), ("B02",))
    with RasterStack([path], ("s2",)) as stack:
        stack.read()
    with pytest.raises(ValueError, match="closed"):
        stack.read()
