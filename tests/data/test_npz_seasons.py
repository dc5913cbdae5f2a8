"""Series in .npz files: dates by sensor, dates to keep, images that are missing; and packed."""

import pickle

import numpy as np
import pytest
from pydantic import TypeAdapter

from rsbackbones.data.npz import NpzFile, NpzSource
from rsbackbones.data.pack import pack
from rsbackbones.data.shards import PackedSource
from rsbackbones.data.source import BadSample
from tests.data.test_pack import same
from tests.data.test_sources import db, dn

IMAGES = {"s2": {"ten": ("B02",), "twenty": ("B05", "B11")}, "s1": {"radar": ("VV", "VH")}}
S2_DATES = ("2020-07-14", "2020-01-10", "2020-10-12", "2020-04-15")
S1_DATES = ("2020-04-14", "2020-07-12", "2020-01-07", "2021-03-01", "2020-07-20")


def arrays():
    """Four dates of S2 at 10 and 20 m, five of S1 at 20 m; dates out of order."""
    return {
        "ten": dn(4, 1, 16, 16),
        "twenty": dn(4, 2, 8, 8),
        "radar": db(5, 2, 8, 8),
        "s2_dates": np.array(S2_DATES),
        "s1_dates": np.array(S1_DATES),
    }


def series(path, held, **options):
    np.savez(path, **held)
    options = {"dates": {"s2": "s2_dates", "s1": "s1_dates"}, "nodata": {"s2": 65535}, **options}
    return NpzSource(NpzFile(path=str(path), images=IMAGES, series=True, **options))


def as_days(*days):
    return np.array(days, "datetime64[D]").astype(int).tolist()


def test_sensors_of_their_own_dates_are_paired(tmp_path):
    held = arrays()
    source = pickle.loads(pickle.dumps(series(tmp_path / "a.npz", held)))
    assert (len(source), source.frames) == (1, 4)
    sample = source.read(0)
    np.testing.assert_array_equal(sample.images["s2"][:, 0], held["ten"][[1, 3, 0, 2], 0])
    # S1 of 2021-03-01 is 140 days from the last frame; of two near 2020-07-14 the nearer is taken.
    assert {sensor: flags.tolist() for sensor, flags in sample.valid.items()} == {"s1": [True] * 3 + [False]}
    assert not sample.images["s1"][3].any()
    assert sample.dates["s2"].tolist() == as_days(*sorted(S2_DATES))
    assert sample.dates["s1"].tolist() == as_days("2020-01-07", "2020-04-14", "2020-07-12", "2020-10-12")
    for frame in range(3):
        one = source.read(0, frame)
        for sensor in ("s2", "s1"):
            np.testing.assert_array_equal(one.images[sensor], sample.images[sensor][frame])
            assert one.dates[sensor].tolist() == [sample.dates[sensor][frame]]
        assert one.valid == {}
    # Resized from 20 m: the corner pixel is the coarse one's.
    assert source.read(0, 0).images["s1"][0, 0, 0] == held["radar"][2, 0, 0, 0]
    with pytest.raises(BadSample, match="s1 has no image for that of s2 of 2020-10-12"):
        source.read(0, 3)


def test_images_without_data_are_marked(tmp_path):
    held = arrays()
    held["ten"][1, 0, 9, 9] = 65535  # the first frame
    held["twenty"][0, 1, 7, 7] = 65535  # the third
    held["radar"][0, 0, 0, 0] = np.nan  # the second
    clean = series(tmp_path / "clean.npz", {**arrays(), **held, "ten": held["ten"].clip(max=9000)})
    source = series(tmp_path / "a.npz", held)
    sample = source.read(0)
    assert sample.valid["s2"].tolist() == [False, True, False, True]
    assert sample.valid["s1"].tolist() == [True, False, True, False]
    assert sample.images["s2"].dtype == np.uint16  # whatever is missing
    for sensor, valid in sample.valid.items():
        assert not sample.images[sensor][~valid].any()
    np.testing.assert_array_equal(sample.images["s2"][[1, 3]], clean.read(0).images["s2"][[1, 3]])
    for frame in range(4):
        with pytest.raises(BadSample, match=r"without data|no image"):
            source.read(0, frame)
    # In tiles, only those that hold the pixel, or are resized from it, lack the image.
    tiles = series(tmp_path / "a.npz", held, tile=8)
    assert [tiles.read(i).valid.get("s2", np.ones(4, bool)).tolist() for i in range(4)] == [
        [True] * 4, [True] * 4, [True] * 4, [False, True, False, True],
    ]  # fmt: skip
    assert [bool(tiles.read(i).valid["s1"][1]) for i in range(4)] == [False, True, True, True]


def test_a_sensor_without_any_image_is_bad(tmp_path):
    held = arrays()
    held["radar"][:, 1, 3, 3] = np.nan
    with pytest.raises(BadSample, match="s1 has no usable image at any of 4 dates"):
        series(tmp_path / "a.npz", held).read(0)
    with pytest.raises(BadSample, match="s1 has no usable image at any of 4 dates; the first is missing"):
        series(
            tmp_path / "a.npz", {**arrays(), "s1_dates": np.array([f"1999-0{i}-01" for i in range(1, 6)])}
        ).read(0)


def test_dates_to_keep_are_frames_in_order(tmp_path):
    held = arrays()
    source = series(tmp_path / "a.npz", held, keep=("2020-10-12", "2020-01-10"))
    assert source.frames == 2
    assert source.notes == ("of the dates only 2020-01-10, 2020-10-12",)
    sample = source.read(0)
    np.testing.assert_array_equal(sample.images["s2"][:, 0], held["ten"][[1, 2], 0])
    assert sample.dates["s2"].tolist() == as_days("2020-01-10", "2020-10-12")
    assert sample.valid["s1"].tolist() == [True, False]
    # What is left out neither takes a partner nor must have a date.
    held["s2_dates"][0] = "NaT"
    alone = series(tmp_path / "b.npz", held, keep=("2020-04-15",))
    assert alone.read(0, 0).dates["s1"].tolist() == as_days("2020-04-14")
    with pytest.raises(BadSample, match="s2 cannot be ordered in time: 1 of 4 dates are missing"):
        series(tmp_path / "b.npz", held).read(0)


def test_one_array_of_dates_goes_for_all_sensors(tmp_path):
    held = {**arrays(), "radar": db(4, 2, 8, 8)}
    source = series(tmp_path / "a.npz", held, dates="s2_dates", keep=("2020-10-12", "2020-04-15"))
    np.testing.assert_array_equal(source.read(0).images["s1"][:, 0, 0, 0], held["radar"][[3, 2], 0, 0, 0])
    held["s2_dates"][0] = "2020-01-10"
    with pytest.raises(BadSample, match="two images are of 2020-01-10"):
        series(tmp_path / "b.npz", held, dates="s2_dates").read(0)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"keep": ("2020-10-12", "2020-10-13")}, "2020-10-13, which place 0 lacks"),
        ({}, {"keep": ("2020-10-12", "2020-10-12")}, "names a date twice"),
        ({}, {"keep": ("October",)}, "keep holds ISO dates"),
        ({}, {"keep": ("2020-10-12",), "dates": None}, "needs dates"),
        ({}, {"dates": {"s2": "s2_dates"}}, "dates are of s2, the images of s2, s1"),
        ({}, {"dates": {"s2": "s2_dates", "s1": "when"}}, "dates='when' names an array"),
        ({}, {"dates": "s2_dates"}, "different numbers of places or dates"),
        ({}, {"dates": {"s2": "s2_dates", "s1": "s2_dates"}}, r"shape \[4\], expected \[5\] or \[1, 5\]"),
        ({"twenty": (3, 2, 8, 8)}, {}, "different numbers of places or dates"),
        ({"s2_dates": np.array(["a", "b", "c", "d"])}, {}, "s2_dates holds no ISO dates"),
        (
            {"s2_dates": np.array(["2020-01-10"] * 2 + ["2020-05-01"] * 2)},
            {"keep": ("2020-05-01",)},
            "2020-05-01, which place 0 holds more than once",
        ),
    ],
)
def test_dates_that_do_not_fit_are_refused(tmp_path, change, options, message):
    held = arrays() | {name: dn(*x) if isinstance(x, tuple) else x for name, x in change.items()}
    with pytest.raises(ValueError, match=message):
        series(tmp_path / "a.npz", held, **options)


def test_the_description_is_built_from_plain_types():
    plain = {"path": "a.npz", "images": {"s2": {"x": ["B02"]}}, "series": True}
    plain |= {"dates": {"s2": "d"}, "keep": ["2020-01-10"]}
    built = TypeAdapter(NpzFile).validate_python(plain)
    assert (built.dates, built.keep) == ({"s2": "d"}, ("2020-01-10",))


def test_what_is_missing_is_packed(tmp_path):
    held = arrays()
    held["ten"][1, 0, 9, 9] = 65535
    source = series(tmp_path / "a.npz", held, tile=8)
    report = pack(source, tmp_path / "out", per_shard=3, progress=False)
    assert (report.places, report.bad) == (4, ())
    packed = PackedSource(tmp_path / "out")
    for place in range(4):
        expected, found = source.read(place), packed.read(place)
        same(expected, found)
        assert {m: x.tolist() for m, x in expected.valid.items()} == {
            m: x.tolist() for m, x in found.valid.items()
        }
        assert set(found.valid) == ({"s1", "s2"} if place == 3 else {"s1"})
        for frame in range(4):
            if all(valid[frame] for valid in found.valid.values()):
                same(source.read(place, frame), packed.read(place, frame))
            else:
                with pytest.raises(BadSample, match=f"s[12] has no usable image at date {frame}"):
                    packed.read(place, frame)


def test_other_dates_are_another_pack(tmp_path):
    held = arrays()
    pack(series(tmp_path / "a.npz", held, keep=("2020-01-10",)), tmp_path / "out", progress=False)
    with pytest.raises(ValueError, match="another pack"):
        pack(series(tmp_path / "a.npz", held, keep=("2020-04-15",)), tmp_path / "out", progress=False)


# ------------------------------------------------------------------------------------------ real data


def test_real_patch_of_forty_dates_by_sensor(real_data):
    path = real_data / "worldcereal" / "patch_0000280849BAC91C.npz"
    images = {
        "s2": {"s2_10m": ("B02", "B03", "B04", "B08"), "s2_20m": ("B05", "B06", "B07", "B8A", "B11", "B12")},
        "s1": {"s1": ("VV", "VH")},
    }
    options = {
        "images": images, "series": True, "nodata": {"s2": 65535},
        "dates": {"s2": "s2_dates", "s1": "s1_dates"},
    }  # fmt: skip
    sample = NpzSource(NpzFile(path=str(path), **options)).read(0)
    assert sample.images["s2"].shape == (40, 10, 64, 64)
    assert sample.images["s1"].shape == (40, 2, 64, 64)
    with np.load(path) as held:
        s2_dates, s1_dates, s1 = held["s2_dates"], held["s1_dates"], held["s1"]
        lacking = (held["s2_10m"] == 65535).any((1, 2, 3))
    assert lacking.sum() == 1  # a single pixel of 2018-12-12
    assert sample.valid["s2"].tolist() == (~lacking).tolist()
    assert "s1" not in sample.valid
    apart = np.abs(sample.dates["s2"] - sample.dates["s1"])
    assert sample.dates["s2"].tolist() == as_days(*s2_dates)
    assert (np.diff(sample.dates["s1"]) > 0).all()
    assert apart.max() <= 60

    four = ("2018-10-13", "2019-01-21", "2019-04-21", "2019-07-25")
    source = NpzSource(NpzFile(path=str(path), keep=four, **options))
    sample = source.read(0)
    assert sample.valid == {}
    assert sample.dates["s2"].tolist() == as_days(*four)
    # On its own, each is paired with the nearest of all.
    assert all(
        abs(a - b) == np.abs(np.array(as_days(*s1_dates)) - a).min()
        for a, b in zip(sample.dates["s2"], sample.dates["s1"], strict=True)
    )
    for frame, day in enumerate(sample.dates["s1"]):
        corner = s1[as_days(*s1_dates).index(day), :, 0, 0]
        np.testing.assert_array_equal(source.read(0, frame).images["s1"][:, 0, 0], corner.astype(np.float32))


def test_real_months_lack_sentinel_2_in_winter(real_data):
    path = real_data / "worldcereal" / "belgium_101_12months.npz"
    names = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B11", "B12")
    options = {
        "images": {"s2": {"s2": names}, "s1": {"s1": ("VV", "VH")}}, "series": True, "dates": "dates",
        "units": {"s1": "worldcereal_db"}, "nodata": {"s2": 65535, "s1": 65535},
    }  # fmt: skip
    sample = NpzSource(NpzFile(path=str(path), **options)).read(0)
    with np.load(path) as held:
        s2 = held["s2"]
        lacking = (s2 == 65535).any((1, 2, 3))
        days = as_days(*held["dates"])
    assert np.flatnonzero(lacking).tolist() == [0, 1, 8]
    assert {sensor: valid.tolist() for sensor, valid in sample.valid.items()} == {"s2": (~lacking).tolist()}
    assert sample.dates["s2"].tolist() == sample.dates["s1"].tolist() == days
    np.testing.assert_array_equal(sample.images["s2"], np.where(lacking[:, None, None, None], 0, s2))
    assert ((sample.images["s1"].mean((2, 3)) > -30) & (sample.images["s1"].mean((2, 3)) < -5)).all()
    # Tiles of it lack less: August has clouds at one edge only.
    tiles = NpzSource(NpzFile(path=str(path), tile=48, **options))
    lacks = []
    for i in range(len(tiles)):
        try:
            lacks.append(int((~tiles.read(i).valid["s2"]).sum()))
        except BadSample:
            lacks.append(12)
    assert min(lacks) < 3
    assert max(lacks) <= 3
