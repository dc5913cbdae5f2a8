"""Where pixels lie: several pixel sizes, control points, transforms without a place; alpha bands; memory."""

import os
import re

import numpy as np
import pytest
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.rpc import RPC
from rasterio.transform import Affine, from_origin

from rsbackbones.data.raster_folder import rasters_in
from rsbackbones.data.raster_grid import Grid
from rsbackbones.data.raster_path import UnreadableRaster
from rsbackbones.data.rasters import RasterStack, find_bands, open_raster
from tests.data.test_rasters import GRID, ramp, write_tif

NATIVE = {"B02": 10, "B05": 20, "B09": 60}


def write_native(folder, height=12, width=24, plane=lambda x, y: 2 * x + 3 * y + 100, crs="EPSG:32633"):
    """A file for each of three pixel sizes over one ground, holding a plane of the ground's coordinates."""
    paths = []
    for band, pixel in NATIVE.items():
        rows, columns = height * 10 // pixel, width * 10 // pixel
        y, x = (np.mgrid[:rows, :columns] + 0.5) * pixel / 10
        grid = from_origin(500_000, 5_000_000, pixel, pixel)
        data = plane(x, y)[None].astype(np.float32)
        paths.append(write_tif(folder / f"T_{band}_{pixel}m.tif", data, transform=grid, crs=crs))
    return paths


# -- several pixel sizes ------------------------------------------------------------------------------


def test_larger_pixels_are_resampled_onto_the_finest_grid(tmp_path):
    paths = write_native(tmp_path)
    with RasterStack(paths[::-1], ("s2",), resample="bilinear") as stack:
        assert (stack.height, stack.width, stack.transform) == (12, 24, GRID)
        assert stack.bands == {"s2": ("B09", "B05", "B02")}
        assert re.fullmatch(
            r"bilinear onto pixels of 10: T_B09_60m\.tif \(pixels of 60\), T_B05_20m\.tif \(pixels of 20\)",
            stack.resampling,
        )
        arrays, valid = stack.read()
        part, _ = stack.read((4, 5, 6, 7))
    assert valid.all()
    y, x = np.mgrid[:12, :24] + 0.5
    # Bilinear keeps a plane as it is, but for the half pixels at the edge.
    for image, pixel in zip(arrays["s2"], (60, 20, 10), strict=True):
        edge = slice(pixel // 20, -(pixel // 20) or None)
        np.testing.assert_allclose(image[edge, edge], (2 * x + 3 * y + 100)[edge, edge], rtol=1e-5)
    np.testing.assert_allclose(part["s2"], arrays["s2"][:, 4:10, 5:12], rtol=1e-6)


def test_nearest_repeats_pixels_and_keeps_holes_and_tags(tmp_path):
    fine, coarse = ramp(1, 12, 24), ramp(1, 6, 12)
    coarse[0, 2, 3] = 7777
    a = write_tif(tmp_path / "a.tif", fine, ("B02",))
    grid = from_origin(500_000, 5_000_000, 20, 20)
    b = write_tif(tmp_path / "b.tif", coarse, ("B05",), transform=grid, nodata=7777)
    for path in (a, b):
        with rasterio.open(path, "r+") as raster:
            raster.scales, raster.offsets = (0.5,), (10,)
    with RasterStack([a, b], ("s2",), resample="nearest") as stack:
        arrays, valid = stack.read()
    expected = coarse[0].repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(valid, expected != 7777)
    np.testing.assert_allclose(arrays["s2"][0], np.where(valid, fine[0] * 0.5 + 10, 0))
    np.testing.assert_allclose(arrays["s2"][1], np.where(valid, expected * 0.5 + 10, 0))


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_pixels_beyond_a_coarse_file_are_missing_not_zero(tmp_path, dtype):
    a = write_tif(tmp_path / "a.tif", ramp(1, 12, 24, dtype), ("B02",))
    half = write_tif(tmp_path / "b.tif", ramp(1, 6, 6, dtype), ("B05",), transform=GRID @ Affine.scale(2))
    with RasterStack([a, half], ("s2",), resample="nearest") as stack:
        valid = stack.read()[1]
    assert valid[:, :12].all()
    assert not valid[:, 12:].any()


def test_what_resampling_needs_is_named(tmp_path):
    paths = write_native(tmp_path)
    with pytest.raises(ValueError, match=r"B02.*B05.*not on one grid.*--resample bilinear"):
        RasterStack(paths, ("s2",))
    with pytest.raises(ValueError, match="nearest, bilinear, cubic, got 'mode'"):
        RasterStack(paths, ("s2",), resample="mode")
    bare = write_native(tmp_path, crs=None)
    with pytest.raises(ValueError, match=r"not placed by a CRS.*gdalwarp"):
        RasterStack(bare, ("s2",), resample="bilinear")


def test_a_raster_that_is_not_read_has_no_say_in_the_grid(tmp_path):
    paths = write_native(tmp_path)
    with RasterStack(paths, ("s2",), wanted={"s2": ("B05",)}) as stack:
        assert (stack.height, stack.width, stack.resampling) == (6, 12, "")


def test_rasters_of_two_systems_meet_on_the_finer_grid(tmp_path):
    a = write_tif(tmp_path / "a.tif", ramp(1, 40, 40), ("B02",))
    # Twice as coarse, in degrees, around the same place.
    lon, lat = rasterio.warp.transform("EPSG:32633", "EPSG:4326", [500_000], [5_000_000])
    grid = from_origin(lon[0] - 0.002, lat[0] + 0.002, 2.5e-4, 1.8e-4)
    b = write_tif(
        tmp_path / "b.tif", np.full((1, 60, 60), -12, np.float32), ("VV",), transform=grid, crs="EPSG:4326"
    )
    with RasterStack([b, a], ("s2", "s1"), resample="nearest") as stack:
        assert stack.transform == GRID
        arrays, valid = stack.read()
    assert valid.all()
    assert (arrays["s1"] == -12).all()


# -- placement ----------------------------------------------------------------------------------------

POINTS = [GroundControlPoint(r, c, 12 + c * 1e-4 - r * 1e-5, 47 - r * 1e-4) for r in (0, 64) for c in (0, 64)]


def write_points(path, names=("VV", "VH"), points=POINTS):
    data = np.random.default_rng(0).normal(-14, 4, (len(names), 64, 64)).astype(np.float32)
    profile = {"driver": "GTiff", "dtype": "float32", "count": len(names), "height": 64, "width": 64}
    with rasterio.open(path, "w", **profile, gcps=points, crs="EPSG:4326") as raster:
        raster.write(data)
        raster.descriptions = names
    return path


def test_control_points_are_the_grid_of_a_raster_without_transform(tmp_path):
    with open_raster(write_points(tmp_path / "a.tif")) as raster:
        grid = Grid.of(raster)
    assert grid.placed
    assert grid.crs == rasterio.crs.CRS.from_epsg(4326)
    assert grid.position(32, 32) == pytest.approx((12 + 32e-4 - 32e-5, 47 - 32e-4), abs=1e-7)
    scaled = grid.profile(8, 8, 8)
    assert [(p.row, p.col, p.x, p.y) for p in scaled["gcps"]] == [
        (p.row / 8, p.col / 8, p.x, p.y) for p in POINTS
    ]
    assert "transform" not in scaled


def test_rasters_of_other_control_points_are_not_on_one_grid(tmp_path):
    a, b = write_points(tmp_path / "vv.tif", ("VV",)), write_points(tmp_path / "vh.tif", ("VH",))
    with RasterStack([a, b], ("s1",)) as stack:
        assert stack.bands == {"s1": ("VV", "VH")}
    moved = [GroundControlPoint(p.row, p.col, p.x + 1, p.y) for p in POINTS]
    c = write_points(tmp_path / "other.tif", ("VH",), moved)
    with pytest.raises(ValueError, match=r"not on one grid; rectify.*gdalwarp -tps"):
        RasterStack([a, c], ("s1",))


@pytest.mark.parametrize(
    "transform", [(0, 0, 5e5, 0, 0, 5e6), (10, 0, 5e5, 0, 0, 5e6), (float("nan"), 0, 5e5, 0, -10, 5e6)]
)
def test_a_transform_without_a_place_is_refused(tmp_path, transform):
    a, b, c, d, e, f = transform
    source = write_tif(tmp_path / "source.tif", ramp(1), ("B02",))
    path = tmp_path / "a.vrt"
    path.write_text(
        '<VRTDataset rasterXSize="24" rasterYSize="16"><SRS>EPSG:32633</SRS>'
        f"<GeoTransform>{c},{a},{b},{f},{d},{e}</GeoTransform>"
        '<VRTRasterBand dataType="UInt16" band="1"><Description>B02</Description><SimpleSource>'
        f"<SourceFilename>{source}</SourceFilename><SourceBand>1</SourceBand>"
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )
    with pytest.raises(ValueError, match=r"a\.vrt: its transform .* gives pixels no place; .*gdal_edit"):
        RasterStack([path], ("s2",))


def test_rational_polynomials_are_refused_with_the_command(tmp_path):
    ones, zeros = [1.0] + [0.0] * 19, [0.0] * 20
    rpc = RPC(
        height_off=0, height_scale=1, lat_off=47, lat_scale=1, long_off=12, long_scale=1, line_off=8,
        line_scale=8, samp_off=12, samp_scale=12, line_num_coeff=zeros, line_den_coeff=ones,
        samp_num_coeff=zeros, samp_den_coeff=ones,
    )  # fmt: skip
    path = tmp_path / "a.tif"
    with rasterio.open(
        path, "w", driver="GTiff", dtype="uint16", count=1, height=16, width=24, rpcs=rpc
    ) as raster:
        raster.write(ramp(1))
        raster.descriptions = ("B02",)
    with pytest.raises(ValueError, match=r"rational polynomials.*gdalwarp -rpc .*a\.tif rectified_a\.tif"):
        RasterStack([path], ("s2",))


# -- alpha --------------------------------------------------------------------------------------------


def write_alpha(path, names, alpha=65535, nodata=None):
    data = ramp(len(names))
    data[-1] = 65535
    data[-1, 3, 5] = 65535 - alpha
    write_tif(path, data, names, nodata=nodata)
    with rasterio.open(path, "r+") as raster:
        raster.colorinterp = (
            [ColorInterp.gray] + [ColorInterp.undefined] * (len(names) - 2) + [ColorInterp.alpha]
        )
    return path, data


@pytest.mark.parametrize("nodata", [None, 60_000])
@pytest.mark.parametrize("description", [None, "alpha"])
def test_an_alpha_band_is_a_mask(tmp_path, description, nodata):
    path, data = write_alpha(tmp_path / "a.tif", ("B02", "B03", description), nodata=nodata)
    for names in (None, ("B02", "B03"), ("B02", "B03", "-"), ("B02", "B03", "alpha")):
        with RasterStack([path], ("s2",), names=[names]) as stack:
            assert stack.bands == {"s2": ("B02", "B03")}
            assert stack.ignored == {}
            arrays, valid = stack.read()
        assert np.argwhere(~valid).tolist() == [[3, 5]]
        np.testing.assert_array_equal(arrays["s2"], np.where(valid, data[:2], 0))


def test_an_alpha_band_with_the_name_of_a_band_is_that_band(tmp_path):
    # GDAL declares the fourth of four 8-bit bands alpha, whatever it is.
    data = ramp(4, dtype=np.uint8)
    data[3, 3, 5] = 0
    path = write_tif(tmp_path / "a.tif", data, ("B02", "B03", "B04", "B08"))
    with rasterio.open(path) as raster:
        assert raster.colorinterp[3] == ColorInterp.alpha
    with RasterStack([path], ("s2",), units={"s2": "rgb8"}) as stack:
        arrays, valid = stack.read()
    assert valid.all()
    np.testing.assert_array_equal(arrays["s2"], data)


def test_an_alpha_band_masks_what_is_resampled(tmp_path):
    fine = write_tif(tmp_path / "fine.tif", ramp(1, 32, 48), ("B02",))
    path, data = write_alpha(tmp_path / "a.tif", ("B05", None))
    with rasterio.open(path, "r+") as raster:
        raster.transform = GRID @ Affine.scale(2)
    with RasterStack([fine, path], ("s2",), resample="nearest") as stack:
        arrays, valid = stack.read()
    assert np.argwhere(~valid).tolist() == [[6, 10], [6, 11], [7, 10], [7, 11]]
    np.testing.assert_array_equal(arrays["s2"][1], np.where(valid, data[0].repeat(2, 0).repeat(2, 1), 0))


# -- files that are no rasters, or too much of one ----------------------------------------------------


def test_pipes_folders_and_empty_files_are_named_at_once(tmp_path):
    pipe, empty = tmp_path / "pipe.tif", tmp_path / "empty.tif"
    os.mkfifo(pipe)
    empty.touch()
    for path, what in (
        (pipe, "pipe"),
        (empty, "empty"),
        (tmp_path, "a folder"),
        (tmp_path / "no.tif", "No such file"),
    ):
        with pytest.raises(UnreadableRaster, match=f"cannot read .*{path.name}.*{what}"):
            find_bands(path, ("s2",))


def test_more_pixels_than_memory_holds_are_refused_before_they_are_read(tmp_path):
    path = tmp_path / "sparse.tif"
    profile = {"driver": "GTiff", "dtype": "uint16", "count": 1, "height": 1_000_000, "width": 1_000_000}
    with rasterio.open(
        path, "w", **profile, tiled=True, sparse_ok=True, bigtiff=True, transform=GRID
    ) as raster:
        raster.descriptions = ("B02",)
    with RasterStack([path], ("s2",)) as stack:
        with pytest.raises(
            ValueError, match=r"sparse\.tif: 1 x 1000000 x 1000000 values are .* GiB, too much"
        ):
            stack.read()
        assert stack.read((999_000, 999_000, 64, 64))[0]["s2"].shape == (1, 64, 64)


@pytest.mark.parametrize("dtype", ["complex64", "complex_int16"])
def test_complex_values_are_refused(tmp_path, dtype):
    path = tmp_path / "slc.tif"
    with rasterio.open(
        path, "w", driver="GTiff", dtype=dtype, count=1, height=8, width=8, transform=GRID
    ) as raster:
        raster.write(np.ones((1, 8, 8), np.complex64))
        raster.descriptions = ("VV",)
    with pytest.raises(ValueError, match=r"slc\.tif holds complex numbers"):
        RasterStack([path], ("s1",))


# -- folders ------------------------------------------------------------------------------------------


def test_a_product_folder_gives_each_band_once_in_its_finest_pixels(tmp_path):
    data = tmp_path / "S2A.SAFE" / "GRANULE" / "L2A_T32" / "IMG_DATA"
    for name in ("R10m/T_B02_10m", "R10m/T_TCI_10m", "R20m/T_B02_20m", "R20m/T_B8A_20m", "R20m/T_SCL_20m",
                 "R60m/T_B02_60m", "R60m/T_B8A_60m", "R60m/T_B09_60m"):  # fmt: skip
        path = data / f"{name}.jp2"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    kept, others = rasters_in(tmp_path / "S2A.SAFE")
    assert [p.stem for p in kept] == ["T_B02_10m", "T_B8A_20m", "T_B09_60m"]
    assert {p.stem for p in others} == {"T_TCI_10m", "T_B02_20m", "T_SCL_20m", "T_B02_60m", "T_B8A_60m"}
    # Files of several bands are no product, whatever they are called.
    patches = tmp_path / "patches"
    patches.mkdir()
    for name in ("preview_1.tif", "SCL_2.tif", "notes.txt"):
        (patches / name).touch()
    assert [[p.name for p in paths] for paths in rasters_in(patches)] == [["SCL_2.tif", "preview_1.tif"], []]
    (tmp_path / "S2A.SAFE" / "GRANULE" / "L2A_T32" / "IMG_DATA").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"no \.tif, \.tiff, \.jp2 in the folder"):
        rasters_in(tmp_path / "S2A.SAFE" / "GRANULE" / "L2A_T32")
