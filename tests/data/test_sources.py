"""Sources of training images: .npz files and folders of GeoTIFFs, and finding out what a folder holds."""

import pickle
from itertools import pairwise

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from rsbackbones.data.check import validate_sample
from rsbackbones.data.geotiffs import GeoTiffSource
from rsbackbones.data.grid import to_grid
from rsbackbones.data.npz import NpzFile, NpzSource
from rsbackbones.data.open import open_source
from rsbackbones.data.source import BadSample
from rsbackbones.data.windows import tile_starts

B12 = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
B13 = (*B12[:10], "B10", *B12[10:])
RNG = np.random.default_rng(0)


def dn(*shape):
    return RNG.integers(1, 9000, shape).astype(np.uint16)


def db(*shape):
    return RNG.normal(-15, 4, shape).astype(np.float32)


def npz(path, images, arrays, **options):
    np.savez(path, **arrays)
    return NpzSource(NpzFile(path=str(path), images=images, **options))


# ------------------------------------------------------------------------------------------ the check


def test_a_sample_is_checked():
    bands = {"s2": ("B02", "B03"), "s1": ("VV",)}
    good = {"s2": dn(2, 8, 8), "s1": db(1, 8, 8).astype(np.float16)}
    sample = validate_sample(good, bands, frames=None)
    assert sample.images["s1"].dtype == np.float32
    assert sample.images["s2"] is good["s2"]
    nan = db(1, 8, 8)
    nan[0, 3, 3] = np.nan
    for images, reason in [
        ({"s2": good["s2"]}, "s1 is missing"),
        ({**good, "s1": nan}, "1 of 64 values without data"),
        ({**good, "s1": db(1, 8, 9)}, "one grid"),
        ({**good, "s2": dn(3, 8, 8)}, r"expected \[2, H, W\]"),
        ({**good, "s2": dn(1, 2, 8, 8)}, r"expected \[2, H, W\]"),
        ({**good, "s2": np.zeros((2, 8, 8), np.uint16)}, "zero everywhere"),
        ({**good, "s1": np.zeros((1, 8, 8), bool)}, "type bool"),
    ]:
        with pytest.raises(BadSample, match=reason):
            validate_sample(images, bands, frames=None)
    series = {"s2": np.stack([dn(2, 8, 8), np.zeros((2, 8, 8), np.uint16)]), "s1": db(2, 1, 8, 8)}
    with pytest.raises(BadSample, match="zero everywhere"):
        validate_sample(series, bands, frames=2)


# -------------------------------------------------------------------------------------------- tiling


@given(st.integers(1, 700), st.integers(1, 300))
def test_tiles_lie_inside_and_leave_out_less_than_half_a_tile(size, tile):
    starts = tile_starts(size, tile)
    assert all(0 <= start <= size - tile for start in starts)
    covered = {pixel for start in starts for pixel in range(start, start + tile)}
    assert (2 * (size - len(covered)) < tile) if size >= tile else not starts
    # Only the last may overlap, and only the one before it.
    assert all(b - a == tile for a, b in pairwise(starts[:-1]))
    assert len(set(starts)) == len(starts)


def test_a_tile_needs_a_size():
    with pytest.raises(ValueError, match="at least 1"):
        tile_starts(10, 0)


# ---------------------------------------------------------------------------------------------- .npz


def test_npz_gives_the_arrays(tmp_path):
    s2, s1 = dn(3, 4, 16, 20), db(3, 2, 16, 20).astype(np.float16)
    source = npz(
        tmp_path / "a.npz",
        {"s2": {"optical": ("B2", "red", "B03", "B8")}, "s1": {"radar": ("VV", "VH")}},
        {"optical": s2, "radar": s1},
    )
    assert (len(source), source.frames, source.name, source.notes) == (3, 1, "a", ())
    assert source.bands == {"s2": ("B02", "B04", "B03", "B08"), "s1": ("VV", "VH")}
    sample = source.read(2, 0)
    np.testing.assert_array_equal(sample.images["s2"], s2[2])
    np.testing.assert_array_equal(sample.images["s1"], s1[2].astype(np.float32))
    assert sample.images["s2"].dtype == np.uint16
    assert sample.images["s1"].dtype == np.float32
    assert source.read(1).images["s2"].shape == (1, 4, 16, 20)
    assert source.describe(2) == "a.npz[2]"
    sample.images["s2"][:] = 1  # the reader's own: the next one gets the file's values again
    np.testing.assert_array_equal(source.read(2, 0).images["s2"], s2[2])


def test_npz_travels_without_its_arrays(tmp_path):
    source = npz(tmp_path / "a.npz", {"s2": {"x": B12}}, {"x": dn(50, 12, 32, 32)})
    expected = source.read(7, 0).images["s2"]
    sent = pickle.dumps(source)
    assert len(sent) < 1000
    np.testing.assert_array_equal(pickle.loads(sent).read(7, 0).images["s2"], expected)


def test_an_npz_file_is_built_from_plain_types():
    plain = {"path": "a.npz", "images": {"s2": {"x": ["B02", "B03"]}}, "tile": 16, "pick": {"s2": ["B02"]}}
    built = TypeAdapter(NpzFile).validate_python(plain)
    images = {"s2": {"x": ("B02", "B03")}}
    assert built == NpzFile(path="a.npz", images=images, tile=16, pick={"s2": ("B02",)})


def test_npz_picks_bands_by_name_and_tiles(tmp_path):
    image = dn(13, 40, 50)
    named = (*B13[:12], "SCL")
    source = npz(tmp_path / "a.npz", {"s2": {"x": named}}, {"x": image}, tile=16, pick={"s2": ("B08", "B02")})
    assert source.bands == {"s2": ("B08", "B02")}
    # 40 = 2 x 16 + 8: a last row shifted inwards; 50 = 3 x 16 + 2: the remainder is left out.
    assert [source.describe(i) for i in range(len(source))] == [
        f"a.npz[0]@{row},{column}" for row in (0, 16, 24) for column in (0, 16, 32)
    ]
    for i in range(len(source)):
        row, column = (0, 16, 24)[i // 3], (0, 16, 32)[i % 3]
        np.testing.assert_array_equal(
            source.read(i, 0).images["s2"], image[[7, 1], row : row + 16, column : column + 16]
        )


def test_npz_brings_coarser_bands_to_the_finest_grid(tmp_path):
    ten, twenty, sixty, s1 = dn(2, 1, 24, 24), dn(2, 2, 12, 12), dn(2, 1, 4, 4), db(2, 2, 24, 24)
    images = {"s2": {"m10": ("B02",), "m20": ("B05", "B11"), "m60": ("B01",)}, "s1": {"r": ("VV", "VH")}}
    arrays = {"m10": ten, "m20": twenty, "m60": sixty, "r": s1}
    source = npz(tmp_path / "a.npz", images, arrays, pick={"s2": ("B01", "B02", "B05", "B11")})
    s2 = source.read(1, 0).images["s2"]
    assert s2.dtype == np.uint16
    np.testing.assert_array_equal(s2[1], ten[1, 0])
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(twenty[1].astype("f4"))[None], (24, 24), mode="bilinear"
    )
    np.testing.assert_array_equal(s2[2:], expected[0].round().numpy())
    np.testing.assert_array_equal(s2[0], to_grid(sixty[1, 0], 24, 24))
    tiled = npz(tmp_path / "a.npz", images, arrays, pick={"s2": ("B01", "B02", "B05", "B11")}, tile=8)
    np.testing.assert_array_equal(tiled.read(9 + 5, 0).images["s2"], s2[:, 8:16, 16:24])


def test_a_linear_ramp_stays_where_it_is():
    """Resizing must not shift: the center of a 20 m pixel is between two 10 m pixels."""
    fine = np.arange(24, dtype=np.float32)
    coarse = fine.reshape(12, 2).mean(1)
    resized = to_grid(np.broadcast_to(coarse, (1, 12, 12)), 24, 24)
    np.testing.assert_allclose(resized[0, 5, 1:-1], fine[1:-1], atol=1e-5)


def test_npz_series_are_in_order_of_time(tmp_path):
    days = np.array(["2021-03-01", "2020-12-01", "2021-01-15"])
    image = dn(3, 2, 8, 8)
    source = npz(
        tmp_path / "a.npz",
        {"s2": {"x": ("B02", "B03")}},
        {"x": image, "days": days},
        series=True,
        dates="days",
    )
    assert (len(source), source.frames) == (1, 3)
    everything = source.read(0)
    np.testing.assert_array_equal(everything.images["s2"], image[[1, 2, 0]])
    expected = np.array(["2020-12-01", "2021-01-15", "2021-03-01"], "M8[D]").astype(int)
    np.testing.assert_array_equal(everything.dates["s2"], expected)
    last = source.read(0, 2)
    np.testing.assert_array_equal(last.images["s2"], image[0])
    np.testing.assert_array_equal(last.dates["s2"], expected[2:])
    many = npz(tmp_path / "b.npz", {"s2": {"x": ("B02", "B03")}}, {"x": image[None]}, series=True)
    np.testing.assert_array_equal(many.read(0, 1).images["s2"], image[1])


def test_npz_units_and_no_data(tmp_path):
    s2, s1 = dn(1, 8, 8) + np.uint16(1000), np.array([[[500, 2000], [3000, 14125]]], np.uint16)
    s1 = np.tile(s1, (1, 4, 4))
    options = {
        "units": {"s2": "dn_baseline_0400", "s1": "worldcereal_db"},
        "nodata": {"s2": 65535, "s1": 65535},
    }
    images = {"s2": {"a": ("B02",)}, "s1": {"b": ("VV",)}}
    source = npz(tmp_path / "a.npz", images, {"a": s2, "b": s1}, **options)
    sample = source.read(0, 0)
    np.testing.assert_array_equal(sample.images["s2"], s2.astype(int) - 1000)
    np.testing.assert_allclose(sample.images["s1"][0, 1, 1], 0.0, atol=1e-3)  # 20 log10(14125) = 83
    assert source.notes == ("s2: dn_baseline_0400 brought to dn", "s1: worldcereal_db brought to db")
    for array, what in (("a", s2), ("b", s1)):
        holed = what.copy()
        holed[0, 2, 3] = 65535
        bad = npz(tmp_path / "b.npz", images, {"a": s2, "b": s1, array: holed}, **options)
        with pytest.raises(BadSample, match="1 of 64 values without data"):
            bad.read(0, 0)
    zero = s1.copy()
    zero[0, 0, 0] = 0
    with pytest.raises(BadSample, match="without data"):
        npz(tmp_path / "b.npz", images, {"a": s2, "b": zero}, **options).read(0, 0)


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"x": (12, 8, 8)}, {"images": {"s2": {"y": B12}}}, "no array 'y'; it has x"),
        ({"x": (11, 8, 8)}, {}, r"expected \[C, H, W\] or \[n, C, H, W\]"),
        ({"x": (2, 3, 12, 8, 8)}, {}, "dates need series=True"),
        ({"x": (12, 8, 8)}, {"tile": 9}, "tile 9 is larger"),
        ({"x": (12, 8, 8)}, {"pick": {"s2": ("B10",)}}, "B10, which no array holds"),
        ({"x": (12, 8, 8)}, {"pick": {"s1": ("VV",)}}, "pick names s1"),
        ({"x": (12, 8, 8)}, {"units": {"s2": "percent"}}, "unknown unit 'percent'"),
        ({"x": (12, 8, 8)}, {"dates": "x"}, "needs series=True"),
        ({"x": (12, 8, 8)}, {"images": {"s2": {}}}, "at least one array"),
        ({"x": (12, 8, 8)}, {"images": {"s2": {"x": (*B12[:11], "SCL")}}}, "no band 'SCL'"),
        (
            {"x": (3, 12, 8, 8), "r": (2, 2, 8, 8)},
            {"images": {"s2": {"x": B12}, "s1": {"r": ("VV", "VH")}}},
            r"different numbers of places or dates: x \[3, 12, 8, 8\], r \[2, 2, 8, 8\]",
        ),
        (
            {"x": (12, 8, 8), "r": (2, 8, 4)},
            {"images": {"s2": {"x": B12}, "s1": {"r": ("VV", "VH")}}},
            "not of one extent",
        ),
        (
            {"x": (12, 8, 8), "r": (1, 8, 8)},
            {"images": {"s2": {"x": B12, "r": ("B02",)}}},
            "named more than once",
        ),
    ],
)
def test_npz_that_does_not_fit_is_refused(tmp_path, arrays, options, message):
    with pytest.raises(ValueError, match=message):
        npz(
            tmp_path / "a.npz",
            **{"images": {"s2": {"x": B12}}, "arrays": {k: dn(*s) for k, s in arrays.items()}, **options},
        )


def test_npz_that_is_none_is_refused(tmp_path):
    for content in (None, b"not a zip"):
        if content:
            (tmp_path / "a.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot read .*a\.npz"):
            NpzSource(NpzFile(path=str(tmp_path / "a.npz"), images={"s2": {"x": B12}}))


# ------------------------------------------------------------------------------------------ GeoTIFFs


def tif(path, image, names, *, west=500000, nodata=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", count=len(image), height=image.shape[1], width=image.shape[2],
        dtype=image.dtype.name, crs="EPSG:32632", nodata=nodata,
        transform=rasterio.Affine(10, 0, west, 0, -10, 5e6),
    ) as file:  # fmt: skip
        file.write(image)
        if names:
            file.descriptions = names


def pairs(root, form, count=3, names=("B03", "B02")):
    images = {}
    for i in range(count):
        s2, s1 = dn(2, 16, 16), db(2, 16, 16)
        images[f"p{i}"] = (s2, s1)
        tif(root / form.format(i=i, low="s2", up="S2"), s2, names)
        tif(root / form.format(i=i, low="s1", up="S1"), s1, ("VV", "VH"))
    return images


@pytest.mark.parametrize(
    "form", ["{low}/p{i}.tif", "{low}/p{i}_{up}Hand.tif", "{up}_p{i}.tif", "p{i}-{low}.tiff"]
)
def test_geotiffs_are_paired_by_name(tmp_path, form):
    root = tmp_path / "set"
    images = pairs(root, form)
    source = pickle.loads(pickle.dumps(GeoTiffSource(root)))
    assert source.bands == {"s2": ("B03", "B02"), "s1": ("VV", "VH")}
    assert [source.describe(i) for i in range(len(source))] == sorted(images)
    for i, (s2, s1) in enumerate(images.values()):
        sample = source.read(i, 0)
        np.testing.assert_array_equal(sample.images["s2"], s2)
        np.testing.assert_array_equal(sample.images["s1"], s1)
    assert source.read(0).images["s2"].shape == (1, 2, 16, 16)


def test_equal_stems_are_not_cut(tmp_path):
    """S2A in a product's name is no mark of the sensor where the stems are equal already."""
    for folder, image, names in (("s2", dn(1, 8, 8), ("B02",)), ("s1", db(1, 8, 8), ("VV",))):
        tif(tmp_path / folder / "S2A_x.tif", image, names)
        tif(tmp_path / folder / "S2B_x.tif", image, names)
    source = GeoTiffSource(tmp_path)
    assert [source.describe(i) for i in range(2)] == ["S2A_x", "S2B_x"]


def test_a_file_with_both_sensors_is_a_place(tmp_path):
    image = db(3, 8, 8)
    tif(tmp_path / "a.tif", image, ("VV", "B02", "VH"))
    source = GeoTiffSource(tmp_path)
    assert source.bands == {"s2": ("B02",), "s1": ("VV", "VH")}
    np.testing.assert_array_equal(source.read(0, 0).images["s1"], image[[0, 2]])


def test_bands_in_another_order_and_without_description(tmp_path):
    first, second = dn(2, 8, 8), dn(2, 8, 8)
    tif(tmp_path / "a.tif", first, ("B02", "B03"))
    tif(tmp_path / "b.tif", second, ("B03", "B02"))
    np.testing.assert_array_equal(GeoTiffSource(tmp_path).read(1, 0).images["s2"], second[::-1])
    tif(tmp_path / "plain" / "s2" / "a.tif", first, None)
    with pytest.raises(ValueError, match="no description"):
        GeoTiffSource(tmp_path / "plain")
    source = GeoTiffSource(tmp_path / "plain", bands={"s2": ("red", "nir")})
    assert source.bands == {"s2": ("B04", "B08")}
    np.testing.assert_array_equal(source.read(0, 0).images["s2"], first)


def test_unusable_places_say_why(tmp_path):
    pairs(tmp_path, "{low}/p{i}.tif", count=6)
    (tmp_path / "s1" / "p1.tif").unlink()
    tif(tmp_path / "s1" / "p2.tif", db(2, 16, 16), ("VV", "VH"), west=500010)
    tif(tmp_path / "s2" / "p3.tif", dn(1, 16, 16), ("B03",))
    holed = dn(2, 16, 16)
    holed[1, 0, 0] = 0
    tif(tmp_path / "s2" / "p4.tif", holed, ("B03", "B02"), nodata=0)
    content = (tmp_path / "s2" / "p5.tif").read_bytes()
    (tmp_path / "s2" / "p5.tif").write_bytes(content[: len(content) // 2])
    source = GeoTiffSource(tmp_path)
    source.read(0, 0)
    for place, reason in (
        (1, "s1 is missing"), (2, "not on one grid"), (3, "has the bands B03, not"),
        (4, "1 of 256 pixels"), (5, r"cannot read .*p5\.tif"),
    ):  # fmt: skip
        with pytest.raises(BadSample, match=reason):
            source.read(place, 0)


def test_geotiffs_that_are_not_clear_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no GeoTIFFs"):
        GeoTiffSource(tmp_path)
    tif(tmp_path / "a" / "s2" / "x.tif", dn(1, 8, 8), ("B02",))
    tif(tmp_path / "a" / "s1" / "y.tif", db(1, 8, 8), ("VV",))
    with pytest.raises(ValueError, match="no place has a file of each of s2, s1"):
        GeoTiffSource(tmp_path / "a")
    tif(tmp_path / "b" / "x_S2.tif", dn(1, 8, 8), ("B02",))
    tif(tmp_path / "b" / "S2_x.tif", dn(1, 8, 8), ("B02",))
    tif(tmp_path / "b" / "x_S1.tif", db(1, 8, 8), ("VV",))
    with pytest.raises(ValueError, match="both of the place 'x' and one sensor"):
        GeoTiffSource(tmp_path / "b")
    tif(tmp_path / "c" / "x_S2.tif", dn(1, 8, 8), ("B02",))
    tif(tmp_path / "c" / "label.tif", dn(1, 8, 8), ("B02",))
    with pytest.raises(ValueError, match=r"label\.tif do not tell which sensor"):
        GeoTiffSource(tmp_path / "c")
    tif(tmp_path / "a" / "z.tif", dn(1, 8, 8), ("B02",))
    with pytest.raises(ValueError, match="which are meant"):
        GeoTiffSource(tmp_path / "a")


# --------------------------------------------------------------------------------------- open_source


def test_a_layout_is_found_from_what_is_there(tmp_path):
    pairs(tmp_path / "tifs", "{low}/p{i}.tif")
    assert isinstance(open_source(tmp_path / "tifs"), GeoTiffSource)
    np.savez(tmp_path / "a.npz", s2=dn(2, 12, 8, 8), s2_bands=np.array(B12))
    assert open_source(tmp_path / "a.npz", tile=4).read(3, 0).images["s2"].shape == (12, 4, 4)
    np.savez(tmp_path / "b.npz", s2=dn(2, 2, 8, 8))
    with pytest.raises(ValueError, match="no bands for s2"):
        open_source(tmp_path / "b.npz")
    assert open_source(tmp_path / "b.npz", bands={"s2": ("B02", "B03")}).bands == {"s2": ("B02", "B03")}
    (tmp_path / "empty").mkdir()
    for path, what in (("empty", "none of the known layouts"), ("nowhere", "does not exist")):
        with pytest.raises(ValueError, match=rf"{what}(.|\n)*SSL4EO-S12 v1\.0"):
            open_source(tmp_path / path)
    with pytest.raises(ValueError, match="GeoTiffSource, which has no option 'offset'"):
        open_source(tmp_path / "tifs", offset="none")


# ------------------------------------------------------------------------------------------ real data


def test_real_bigearthnet_pairs(real_data):
    source = open_source(real_data / "bigearthnet_v2_pairs_80.npz")
    assert (len(source), source.bands["s2"]) == (80, ("B02", "B03", "B04", "B08"))
    for i in range(len(source)):
        sample = source.read(i, 0)
        assert sample.images["s2"].shape == (4, 120, 120)
        assert -60 < sample.images["s1"].min() < sample.images["s1"].mean() < 0


def test_real_bigearthnet_at_three_resolutions(real_data):
    images = {
        "s2": {
            "s2_10m": ("B02", "B03", "B04", "B08"),
            "s2_20m": ("B05", "B06", "B07", "B8A", "B11", "B12"),
            "s2_60m": ("B01", "B09"),
        },
        "s1": {"s1": ("VV", "VH")},
    }
    path = real_data / "bigearthnet_v1_pairs12band_6.npz"
    source = NpzSource(NpzFile(path=str(path), images=images, pick={"s2": B12}))
    assert (len(source), source.bands["s2"]) == (6, B12)
    for i in range(6):
        s2 = source.read(i, 0).images["s2"].astype(float)
        assert s2.shape == (12, 120, 120)
        # B8A at 20 m sees what B08 sees at 10 m, best where it lies: resizing shifts nothing.
        fits = {
            (row, column): np.corrcoef(
                s2[7, 8:-8, 8:-8].ravel(), np.roll(s2[8], (row, column), (0, 1))[8:-8, 8:-8].ravel()
            )[0, 1]
            for row in (-2, 0, 2)
            for column in (-2, 0, 2)
        }
        assert max(fits, key=fits.get) == (0, 0)


def test_real_terramesh_and_unlabelled(real_data):
    both = {"s2": {"S2L2A": B12}, "s1": {"S1RTC": ("VV", "VH")}}
    source = NpzSource(NpzFile(path=str(real_data / "terramesh_examples_4.npz"), images=both, tile=112))
    assert len(source) == 16
    assert source.read(15, 0).images["s2"].shape == (12, 112, 112)
    alone = NpzFile(path=str(real_data / "s2l2a_unlabelled_1200.npz"), images={"s2": {"images": B12}})
    with np.load(alone.path) as held:
        np.testing.assert_array_equal(NpzSource(alone).read(1199, 0).images["s2"], held["images"][1199])


def test_real_sen1floods_in_tiles(real_data):
    file = NpzFile(
        path=str(real_data / "sen1floods11" / "Spain_7370579.npz"),
        images={"s2": {"s2": B13}, "s1": {"s1": ("VV", "VH")}}, pick={"s2": B12}, tile=128,
    )  # fmt: skip
    source = NpzSource(file)
    assert (len(source), source.bands["s2"]) == (16, B12)
    with np.load(file.path) as held:
        expected = np.delete(held["s2"], 10, axis=0)
    np.testing.assert_array_equal(source.read(6, 0).images["s2"], expected[:, 128:256, 256:384])


def test_real_geotiffs_are_the_same_chip(real_data):
    source = open_source(real_data / "geotiff")
    assert [source.describe(i) for i in range(len(source))] == ["Spain_7370579"]
    assert set(source.bands["s2"]) == set(B13)
    with np.load(real_data / "sen1floods11" / "Spain_7370579.npz") as held:
        b04 = source.read(0, 0).images["s2"][source.bands["s2"].index("B04")]
        np.testing.assert_array_equal(b04, held["s2"][3])


def test_real_worldcereal_series(real_data):
    names = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B11", "B12")
    file = NpzFile(
        path=str(real_data / "worldcereal" / "belgium_101_12months.npz"),
        images={"s2": {"s2": names}, "s1": {"s1": ("VV", "VH")}},
        series=True, dates="dates", units={"s1": "worldcereal_db"}, nodata={"s2": 65535, "s1": 65535},
    )  # fmt: skip
    source = NpzSource(file)
    assert (len(source), source.frames) == (1, 12)
    read, bad = 0, []
    with np.load(file.path) as held:
        for frame in range(12):
            holes = (held["s2"][frame] == 65535).sum() + (held["s1"][frame] == 65535).sum()
            try:
                sample = source.read(0, frame)
            except BadSample:
                bad.append(frame)
                assert holes
                continue
            read += 1
            assert not holes
            assert -30 < sample.images["s1"].mean() < -5
            assert sample.dates["s2"][0] == held["dates"].astype("M8[D]").astype(int)[frame]
    assert read >= 6
    assert bad


def test_sensors_that_are_a_season_apart_are_no_pair():
    images = {m: np.ones((1, 8, 8), np.float32) for m in ("s2", "s1")}
    bands = {"s2": ("B02",), "s1": ("VV",)}
    days = {"s2": np.array([18000]), "s1": np.array([18060])}
    assert validate_sample(images, bands, frames=None, dates=days).dates == days
    with pytest.raises(BadSample, match="61 days apart"):
        validate_sample(images, bands, frames=None, dates={**days, "s1": np.array([17939])})
