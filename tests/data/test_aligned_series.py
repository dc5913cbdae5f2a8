"""Series of two sensors as pairs: the rule of alignment itself is tested in test_series_alignment."""

import json
import pickle

import numpy as np
import pytest

from rsbackbones.data.aligned_series import AlignedSeries, Alignment
from rsbackbones.data.limited import limit_source
from rsbackbones.data.npz import NpzFile, NpzSource
from rsbackbones.data.open import open_source, source_statistics
from rsbackbones.data.pack import pack
from rsbackbones.data.series import align_series, fix_length
from rsbackbones.data.series_folder import SeriesFolder, write_series
from rsbackbones.data.series_statistics import dataset_statistics
from rsbackbones.data.shards import PackedSource
from rsbackbones.data.source import BadSample

BANDS = {"s2": ("B04",), "s1": ("VV", "VH")}


# Values that tell the day of an image, and look like DN and dB.
VALUE = {"s2": lambda day: 10 * np.asarray(day) + 500.0, "s1": lambda day: np.asarray(day) / 50 - 20.0}
DAY = {"s2": lambda value: (value - 500) / 10, "s1": lambda value: (value + 20) * 50}


def put(folder, name, days, *, missing=(), split=None, side=4):
    """Write a place whose images tell their own day."""
    images = {
        m: (VALUE[m](d)[:, None, None, None] + np.zeros((len(d), len(BANDS[m]), side, side))).astype("f4")
        for m, d in days.items()
    }
    for sensor, index in missing:
        images[sensor][index, 0, 0, 0] = np.nan
    write_series(folder, name, images=images, dates=days, bands={m: BANDS[m] for m in days}, split=split)


def taken(sample):
    return {m: DAY[m](x[..., 0, 1, 1]).round().astype(int).tolist() for m, x in sample.images.items()}


DAYS = {
    "a": {"s2": [100, 110, 120, 140], "s1": [108, 101, 118]},
    "b": {"s2": [200, 230], "s1": [201, 206, 211, 229]},
    "c": {"s2": [300]},
    "d": {"s2": [400, 401, 402, 403, 404], "s1": [500, 501, 502, 503, 504, 505]},
}


@pytest.fixture(name="folder")
def places(tmp_path):
    for name, days in DAYS.items():
        put(tmp_path, name, days)
    return tmp_path


def test_images_and_dates_of_pairs(folder):
    with pytest.warns(UserWarning, match=r"share no day in 1 of 3 locations, .*: d"):
        source = AlignedSeries(SeriesFolder(folder), ("s2", "s1"), Alignment())
    source = pickle.loads(pickle.dumps(source))
    assert [source.describe(i) for i in range(len(source))] == ["a", "b", "d"]
    assert source.frames == 5  # lengths 3, 2 and 5
    for place, name in enumerate("abd"):
        days = {m: np.array(x) for m, x in DAYS[name].items()}
        of_s1, of_s2 = align_series(days["s1"], days["s2"])
        kept = fix_length(len(of_s1), 5)
        expected = {"s2": days["s2"][of_s2][kept].tolist(), "s1": days["s1"][of_s1][kept].tolist()}
        sample = source.read(place)
        assert taken(sample) == expected
        assert {m: x.tolist() for m, x in sample.dates.items()} == expected
        assert taken(source.read(place, 1)) == {m: days[1] for m, days in expected.items()}
    notes = " ".join(source.notes)
    assert "in 1 of 4 locations the series of s1 is the shorter one and stays" in notes
    assert "in 2 of 4 locations the series of s2 is the shorter one and stays, and 4 of its images" in notes
    assert "1 of 4 locations have no readable dates of both sensors" in notes
    assert "all series have 5 images (the 90th percentile; they had 2 to 5)" in notes
    assert "in 2 locations the last image is repeated, 5 times in all" in notes


@pytest.mark.filterwarnings("ignore:.*share no day")
def test_a_stated_length_and_the_order_of_the_series(folder):
    source = AlignedSeries(SeriesFolder(folder), ("s2", "s1"), Alignment(by="index", length=2))
    assert taken(source.read(0)) == {"s2": [100, 110], "s1": [101, 108]}
    assert "2 lose their last images, 4 in all" in source.notes[-1]


def test_one_sensor_has_its_own_series(folder):
    source = AlignedSeries(SeriesFolder(folder), ("s2",), Alignment(length=3))
    assert [taken(source.read(i))["s2"] for i in range(3)] == [[100, 110, 120], [200, 230, 230], [300] * 3]


def test_missing_images_are_not_valid(tmp_path):
    put(tmp_path, "a", DAYS["a"], missing=[("s1", 0)])
    put(tmp_path, "b", {"s2": [1, 9], "s1": [1, 9]}, missing=[("s2", 0), ("s1", 1)])
    source = AlignedSeries(SeriesFolder(tmp_path), ("s2", "s1"), Alignment())
    sample = source.read(0)
    assert sample.valid["s1"].tolist() == [True, False, True]
    assert not sample.images["s1"][1].any()
    assert "s2" not in sample.valid
    with pytest.raises(BadSample, match="at no date the images of both s2 and s1 are usable"):
        source.read(1)


def test_places_whose_dates_are_unreadable_are_reported_when_read(tmp_path):
    put(tmp_path, "a", DAYS["a"])
    put(tmp_path, "b", DAYS["b"])
    file = tmp_path / "b/series.zarr.zip"
    file.write_bytes(file.read_bytes()[:-9])
    source = AlignedSeries(SeriesFolder(tmp_path), ("s2", "s1"), Alignment())
    assert source.frames == 3
    with pytest.raises(BadSample, match=r"b/series.zarr.zip"):
        source.read(1)


def test_sources_of_other_kinds_align_as_well(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "s2": rng.integers(1, 9, (3, 1, 4, 4)).astype(np.uint16),
        "s1": rng.normal(-15, 1, (2, 2, 4, 4)).astype(np.float32),
        "s2_dates": ["2020-01-01", "2020-01-20", "2020-02-08"], "s1_dates": ["2020-02-01", "2020-01-02"],
    }  # fmt: skip
    np.savez(tmp_path / "one.npz", **arrays)
    file = NpzFile(
        path=str(tmp_path / "one.npz"), images={m: {m: names} for m, names in BANDS.items()}, series=True,
        dates={m: f"{m}_dates" for m in BANDS},
    )  # fmt: skip
    source = AlignedSeries(NpzSource(file), ("s2", "s1"), Alignment())
    assert np.array_equal(source.read(0).images["s2"], arrays["s2"][[0, 2]])
    assert np.array_equal(source.read(0).images["s1"], arrays["s1"][[1, 0]])
    put(tmp_path / "set", "a", DAYS["a"])
    pack(SeriesFolder(tmp_path / "set"), tmp_path / "packed", progress=False)
    pairs = [AlignedSeries(each, ("s2", "s1"), Alignment()).read(0) for each in
             (SeriesFolder(tmp_path / "set"), PackedSource(tmp_path / "packed"))]  # fmt: skip
    assert taken(pairs[0]) == taken(pairs[1])


def test_a_limit_draws_by_names(tmp_path):
    for i in range(12):
        put(tmp_path, f"p{i}", DAYS["b"])
    source = SeriesFolder(tmp_path)
    chosen = [[limit_source(source, n, 0).describe(i) for i in range(n)] for n in (3, 6)]
    assert set(chosen[0]) < set(chosen[1])
    assert chosen[1] == sorted(chosen[1])
    assert [limit_source(source, 6, 1).describe(i) for i in range(6)] != chosen[1]
    assert limit_source(source, None, 0) is limit_source(source, 12, 0) is source
    assert limit_source(source, 3, 0).notes[-1] == "3 of 12 samples, drawn by their names"


def test_statistics_are_those_of_the_valid_images_of_the_training_split(tmp_path):
    put(tmp_path, "a", DAYS["a"], missing=[("s1", 0)], split="train")
    put(tmp_path, "b", DAYS["b"], split="train")
    put(tmp_path, "d", DAYS["d"], split="test")
    found = dataset_statistics(tmp_path)
    s2 = VALUE["s2"]([*DAYS["a"]["s2"], *DAYS["b"]["s2"]])
    s1 = VALUE["s1"]([101, 118, *DAYS["b"]["s1"]])
    assert found["s2"]["B04"] == pytest.approx((np.mean(s2), np.std(s2)))
    assert found["s1"]["VV"] == pytest.approx((np.mean(s1), np.std(s1)))
    before = (tmp_path / "statistics.json").read_bytes()
    assert dataset_statistics(tmp_path) == found
    assert (tmp_path / "statistics.json").read_bytes() == before
    put(tmp_path, "e", DAYS["d"], split="train")
    (tmp_path / "statistics.json").write_bytes(before)
    with pytest.raises(ValueError, match=r"measured on 2 other locations .*: delete it"):
        dataset_statistics(tmp_path)


def test_statistics_are_packed(tmp_path):
    put(tmp_path / "set", "a", DAYS["a"], split="train")
    put(tmp_path / "set", "d", DAYS["d"], split="test")
    pack(SeriesFolder(tmp_path / "set"), tmp_path / "packed", progress=False)
    assert not (tmp_path / "set/statistics.json").exists()  # a source stays as it is
    packed = open_source(tmp_path / "packed")
    assert len(packed) == 2
    assert source_statistics(packed) == dataset_statistics(tmp_path / "set")
    # As packs of other sources, or of earlier versions.
    content = json.loads((tmp_path / "packed/dataset.json").read_text())
    content["statistics"]["s2"] = {"B04": [1]}
    (tmp_path / "packed/dataset.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"statistics.s2.B04 must be a mean and a deviation"):
        source_statistics(open_source(tmp_path / "packed"))
    del content["statistics"]
    (tmp_path / "packed/dataset.json").write_text(json.dumps(content))
    assert source_statistics(open_source(tmp_path / "packed")) is None


def test_statistics_of_other_locations(tmp_path):
    put(tmp_path, "a", DAYS["a"], split="train")
    put(tmp_path, "b", DAYS["b"], split="test")
    own = dataset_statistics(tmp_path)
    other = dataset_statistics(tmp_path, ["b"])
    s2 = VALUE["s2"](DAYS["b"]["s2"])
    assert other["s2"]["B04"] == pytest.approx((np.mean(s2), np.std(s2)))
    assert dataset_statistics(tmp_path, ["b"]) == other != own == dataset_statistics(tmp_path, ["a"])
    assert len(list(tmp_path.glob("statistics*.json"))) == 2
    put(tmp_path, "c", DAYS["d"], split="test")
    assert not list(tmp_path.glob("statistics*.json"))


def test_folders_without_statistics(tmp_path):
    with pytest.raises(ValueError, match="no folder of series"):
        dataset_statistics(tmp_path)
    put(tmp_path, "a", DAYS["a"])
    (tmp_path / "statistics.json").write_text('{"statistics": {"s2": {"B04": [1]}}}')
    with pytest.raises(ValueError, match=r"statistics.s2.B04 must be"):
        dataset_statistics(tmp_path)
