"""Folders of series: both kinds of locations say the same, and what cannot be used is named."""

import json
import pickle

import numpy as np
import pytest
import rasterio
import zarr

from rsbackbones.data.open import open_source
from rsbackbones.data.pack import pack
from rsbackbones.data.series_folder import SeriesFolder, write_series
from rsbackbones.data.series_statistics import dataset_statistics
from rsbackbones.data.source import BadSample

BANDS = {"s2": ("B02", "B08"), "s1": ("VV", "VH")}
DATES = {"s2": ["2020-06-05", "2020-05-01", "2020-06-05"], "s1": ["2020-05-03", "2020-06-01"]}
CLASSES = {"maize": (1, 2), "grass": (7,)}


def series(seed=0, side=8):
    rng = np.random.default_rng(seed)
    return {
        "s2": rng.integers(1, 9000, (3, 2, side, side)).astype(np.uint16),
        "s1": rng.normal(-15, 3, (2, 2, side, side)).astype(np.float32),
    }


def store(folder, name="a", **changes):
    rng = np.random.default_rng(1)
    given = {
        "images": series(), "dates": DATES, "bands": BANDS,
        "label": rng.choice([0, 1, 2, 7], (8, 8)), "classes": CLASSES, "ignore": (0,), "split": "train",
        "cloud": rng.integers(0, 2, (3, 8, 8)), "crs": "EPSG:32631",
        "transform": (10.0, 0.0, 500000.0, 0.0, -10.0, 5600000.0),
    }  # fmt: skip
    return write_series(folder, name, **given | changes)


def write_tiff(path, image, described=()):
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = image.shape[-2:]
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=len(image), dtype=image.dtype,
        crs="EPSG:32631", transform=rasterio.Affine(10.0, 0.0, 500000.0, 0.0, -10.0, 5600000.0),
    ) as file:  # fmt: skip
        file.write(image)
        for i, name in enumerate(described, start=1):
            file.set_band_description(i, name)


@pytest.fixture(name="folder")
def made_folder(tmp_path):
    """A stored location and the same in GeoTIFFs, whose bands are described in another order."""
    store(tmp_path / "set")
    images, held = series(), SeriesFolder(tmp_path / "set")
    for day, k in (("20200501", 1), ("x_2020-06-05_a", 0), ("x_2020-06-05_b", 2)):
        write_tiff(tmp_path / f"set/b/s2/{day}.tif", images["s2"][k][::-1], ("B08", "B02"))
    for day, k in zip(DATES["s1"], (0, 1), strict=True):
        write_tiff(tmp_path / f"set/b/s1/{day}.tif", images["s1"][k])
    write_tiff(tmp_path / "set/b/label.tif", held.label(0)[None].astype(np.uint8))
    return tmp_path / "set"


def test_both_kinds_of_locations_read_alike_in_order_of_time(folder):
    source = pickle.loads(pickle.dumps(open_source(folder)))
    assert source.locations == ["a", "b"]
    assert source.bands == BANDS
    images = series()
    for place in range(2):
        sample = source.read(place)
        assert np.array_equal(sample.images["s2"], images["s2"][[1, 0, 2]])  # of one day, as they were given
        assert np.array_equal(sample.images["s1"], images["s1"])
        assert sample.dates["s2"].tolist() == [18383, 18418, 18418]
        assert sample.dates["s1"].tolist() == [18385, 18414]
        assert not sample.valid
        one = source.read_images(place, {"s2": 2, "s1": 0})
        assert np.array_equal(one.images["s2"], images["s2"][2])
        assert one.dates["s1"].tolist() == [18385]
        assert [str(day) for day in source.times(place, ["s1"])["s1"]] == DATES["s1"]
        assert source.grid(place).transform.c == 500000
        assert np.array_equal(source.label(place), source.label(0))
    assert source.cloud(0).shape == (3, 8, 8)
    assert source.cloud(1) is None


def test_clouds_follow_their_images(tmp_path):
    cloud = np.zeros((3, 8, 8))
    cloud[1] = 1  # of the earliest date
    store(tmp_path, cloud=cloud)
    assert SeriesFolder(tmp_path).cloud(0).any((1, 2)).tolist() == [True, False, False]


def test_clouds_of_one_day_follow_their_images(folder):
    for day, cloudy in (("20200501", 1), ("x_2020-06-05_a", 0), ("x_2020-06-05_b", 1)):
        write_tiff(folder / f"b/cloud/{day}.tif", np.full((1, 8, 8), cloudy, np.uint8))
    assert SeriesFolder(folder).cloud(1).any((1, 2)).tolist() == [True, False, True]
    (folder / "b/cloud/x_2020-06-05_a.tif").unlink()
    with pytest.raises(BadSample, match="1 masks for the 2 images of s2 of 2020-06-05"):
        SeriesFolder(folder).cloud(1)


def test_statistics_are_those_of_the_images_that_are_written(tmp_path):
    store(tmp_path)
    before = dataset_statistics(tmp_path)
    store(tmp_path, images={m: 2 * x for m, x in series().items()})
    for sensor, bands in BANDS.items():
        for band in bands:
            assert np.allclose(
                dataset_statistics(tmp_path)[sensor][band], np.multiply(2, before[sensor][band])
            )


def test_statistics_of_the_ratio_that_models_compute(tmp_path):
    store(tmp_path)
    images = series()["s1"].astype(np.float64)
    ratio = images[:, 0] - images[:, 1]
    assert np.allclose(dataset_statistics(tmp_path)["s1"]["VV/VH"], (ratio.mean(), ratio.std()))


def test_statistics_are_those_of_converted_values(tmp_path):
    """Reflectance and linear power: those of DN and dB, in a file of their own."""
    images = {m: x.astype(np.float64) for m, x in series().items()}
    other = {"s2": images["s2"] / 10000, "s1": 10 ** (images["s1"] / 10)}
    store(tmp_path, images={m: x.astype(np.float32) for m, x in other.items()})
    raw = dataset_statistics(tmp_path)
    found = dataset_statistics(tmp_path, units={"s2": "reflectance", "s1": "linear"})
    ratio = images["s1"][:, :1] - images["s1"][:, 1:]
    images["s1"] = np.concatenate((images["s1"], ratio), axis=1)
    for sensor, x in images.items():
        expected = np.stack((x.mean(axis=(0, 2, 3)), x.std(axis=(0, 2, 3))), axis=1)
        assert np.allclose(list(found[sensor].values()), expected, rtol=1e-5)
    assert dataset_statistics(tmp_path, units={"s2": "dn"}) == raw
    assert len(list(tmp_path.glob("statistics*.json"))) == 2
    with pytest.raises(ValueError, match="unit must be one of"):
        dataset_statistics(tmp_path, units={"s2": "linear"})


def test_zarr_reads_what_is_written(tmp_path):
    place = store(tmp_path)
    group = zarr.open_group(zarr.storage.ZipStore(place / "series.zarr.zip", mode="r"), mode="r")
    assert np.array_equal(group["s2"][...], series()["s2"])
    assert group.attrs["dates"]["s1"] == [18385, 18414]


def test_images_with_nan_are_not_valid(tmp_path):
    images = series()
    images["s1"][1, 0, 2, 2] = np.nan
    store(tmp_path, images=images)
    source = SeriesFolder(tmp_path)
    assert source.read(0).valid["s1"].tolist() == [True, False]
    with pytest.raises(BadSample, match=r"s1 has 1 of 128 values without data.*2020-06-01"):
        source.read_images(0, {"s1": 1})
    images["s1"][0, 0, 2, 2] = np.nan
    store(tmp_path, images=images)
    with pytest.raises(BadSample, match="s1 has no usable image at any of 2 dates"):
        SeriesFolder(tmp_path).read(0)


def test_packed_series_keep_their_lengths(folder, tmp_path):
    images = series(3)
    images["s2"] = images["s2"][:1]
    images["s1"] = images["s1"].copy()
    images["s1"][0, 0, 0, 0] = np.nan
    store(folder, "c", images=images, dates=DATES | {"s2": ["2020-07-01"]}, cloud=None)
    pack(SeriesFolder(folder), tmp_path / "packed", progress=False)
    packed = open_source(tmp_path / "packed")
    assert packed.frames is None
    for place in range(3):
        ours, theirs = SeriesFolder(folder).read(place), packed.read(place)
        for m in BANDS:
            assert np.array_equal(ours.images[m], theirs.images[m])
            assert np.array_equal(ours.dates[m], theirs.dates[m])
        assert {m: x.tolist() for m, x in ours.valid.items()} == {
            m: x.tolist() for m, x in theirs.valid.items()
        }
    assert str(packed.times(2, ["s1"])["s1"][0]) == "NaT"
    with pytest.raises(ValueError, match="no frames"):
        packed.read(0, 0)


def test_set_file_collects_locations_and_splits(tmp_path):
    store(tmp_path, "a")
    store(tmp_path, "b", split="test", images={"s2": series()["s2"]}, dates={"s2": DATES["s2"]},
          bands={"s2": BANDS["s2"]})  # fmt: skip
    store(tmp_path, "a", split="val")
    assert json.loads((tmp_path / "set.json").read_text()) == {
        "schema": 1,
        "bands": {m: list(names) for m, names in BANDS.items()},
        "classes": {"maize": [1, 2], "grass": [7]},
        "ignore": [0],
        "splits": {"test": ["b"], "val": ["a"]},
    }
    assert SeriesFolder(tmp_path, split="test").locations == ["b"]
    assert list(SeriesFolder(tmp_path, split="test").read(0).images) == ["s2"]
    assert SeriesFolder(tmp_path).set.codes.names == ("maize", "grass")
    assert {path.name for path in tmp_path.iterdir()} == {"set.json", "a", "b"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dates": DATES | {"s1": ["2020-05-03"]}}, "s1 must be numbers.* T = 1 dates"),
        ({"dates": DATES | {"s1": ["2020-05-03", "20200601"]}}, r"a: s1: date 1 of 2 is 20200601"),
        ({"dates": DATES | {"s1": [18385, float("nan")]}}, "a: s1: date 1 of 2 is nan.*none missing"),
        ({"images": series() | {"s1": series(side=4)["s1"]}}, "one grid of pixels, got s2 8 x 8, s1 4 x 4"),
        ({"bands": BANDS | {"s1": ("VV",)}}, "the 1 bands VV"),
        ({"label": np.ones((4, 4), int)}, r"size of the images, \(8, 8\), got \(4, 4\)"),
        ({"classes": ("none", "maize", "grass")}, "holds 7, out of range"),
        ({"classes": None}, "label, classes and ignore go together"),
        ({"cloud": np.zeros((2, 8, 8))}, r"cloud must be \[T, H, W\]"),
        ({"split": "training"}, "split must be one of train, val, test"),
        ({"name": "../a"}, "the name of a location"),
    ],
)
def test_writing_refuses_what_does_not_fit(tmp_path, changes, message):
    changes = dict(changes)
    with pytest.raises(ValueError, match=message):
        store(tmp_path, changes.pop("name", "a"), **changes)
    assert not list(tmp_path.iterdir())


def test_writing_refuses_another_set(tmp_path):
    store(tmp_path)
    with pytest.raises(ValueError, match="one set has one list of bands"):
        store(tmp_path, "b", bands=BANDS | {"s1": ("VH", "VV")})
    with pytest.raises(ValueError, match="one set has one list of classes"):
        store(tmp_path, "b", classes={"maize": (1, 2), "water": (7,)})


def test_bad_files_are_named(folder):
    s1 = folder / "b/s1"
    (s1 / "2020-05-03.tif").rename(s1 / "first.tif")
    source = SeriesFolder(folder)
    with pytest.raises(BadSample, match=r"s1: the name of .*b/s1/first.tif holds no date"):
        source.read(1)
    (s1 / "first.tif").unlink()
    write_tiff(s1 / "2020-05-03.tif", series(side=4)["s1"][0])
    with pytest.raises(BadSample, match=r"2020-05-03.tif \(4 x 4.*not on the grid of the location"):
        source.read(1)
    (s1 / "2020-05-03.tif").write_bytes(b"II*\0")
    with pytest.raises(BadSample, match=r"2020-05-03.tif"):
        source.read(1)
    write_tiff(folder / "b/label.tif", np.ones((1, 4, 4), np.uint8))
    with pytest.raises(BadSample, match=r"label.tif \(4 x 4"):
        source.label(1)
    write_tiff(folder / "b/cloud/2020-05-01.tif", np.ones((1, 8, 8), np.uint8))
    with pytest.raises(BadSample, match="cloud has 0 masks for the 2 images of s2 of 2020-06-05"):
        source.cloud(1)
    store_file = folder / "a/series.zarr.zip"
    store_file.write_bytes(store_file.read_bytes()[:-9])
    with pytest.raises(BadSample, match=r"cannot read .*a/series.zarr.zip"):
        source.read(0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "it lacks bands"),
        ({"bands": {"s2": ["B99"]}}, "B99"),
        ({"bands": {"s2": ["B02"]}, "classses": []}, "unknown field"),
        ({"bands": {"s2": ["B02"]}, "splits": {"train": ["c"]}}, "locations that do not exist: c"),
        ({"bands": {"s2": ["B02"]}, "splits": {"train": ["a"], "val": ["a"]}}, "twice: a"),
        ({"bands": {"s2": ["B02"]}, "splits": {"training": ["a"]}}, "splits are train, val, test"),
        ({"bands": {"s2": ["B02"]}, "schema": 2}, "this version reads 1"),
    ],
)
def test_set_files_that_cannot_be_used(tmp_path, content, message):
    (tmp_path / "a").mkdir()
    (tmp_path / "set.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        SeriesFolder(tmp_path)
