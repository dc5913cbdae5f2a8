"""Order and pairing of dates, against brute force, and in the sources that know dates."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsbackbones.data.check import stack_valid, validate_sample
from rsbackbones.data.date_alignment import align_complete_dates, align_dates, date_order, pair_dates
from rsbackbones.data.source import BadSample
from rsbackbones.data.ssl4eo import SSL4EOFolders
from rsbackbones.data.ssl4eo_v11 import SSL4EOZarr
from tests.data import test_ssl4eo

DAYS = st.lists(st.integers(0, 300), min_size=1, max_size=5, unique=True).map(sorted)


def dates(*days):
    return np.array(days, "int64").astype("datetime64[D]")


# ------------------------------------------------------------------------------------------ the order


@given(st.permutations(range(7)))
def test_dates_are_put_in_order(days):
    order = date_order(dates(*days), "s1")
    assert [days[i] for i in order] == sorted(days)


def test_dates_without_order_are_refused():
    times = np.array(["2020-06-04T05:46:39", "2020-01-01", "2020-06-04T05:46:39"], "datetime64[s]")
    with pytest.raises(
        BadSample, match="s1 cannot be ordered in time: two images are of 2020-06-04T05:46:39"
    ):
        date_order(times, "s1")
    times[2] += 1
    assert date_order(times, "s1").tolist() == [1, 0, 2]
    times[1:] = np.datetime64("NaT")
    with pytest.raises(BadSample, match="s2 cannot be ordered in time: 2 of 3 dates are missing"):
        date_order(times, "s2")


# ---------------------------------------------------------------------------------------- the pairing


def best_by_force(frames, others):
    """The most pairs at most 60 days apart, and the least sum of days that as many can have."""
    best = (0, 0)
    places = [*range(len(others)), *[None] * len(frames)]
    for choice in set(itertools.permutations(places, len(frames))):
        apart = [abs(a - others[i]) for a, i in zip(frames, choice, strict=True) if i is not None]
        if all(days <= 60 for days in apart):
            best = min(best, (-len(apart), sum(apart)))
    return -best[0], best[1]


@given(DAYS.filter(lambda days: len(days) < 4), DAYS.filter(lambda days: len(days) < 5))
def test_pairs_are_the_best_of_all(frames, others):
    pairs = pair_dates(dates(*frames), dates(*others))
    taken = [(a, int(i)) for a, i in zip(frames, pairs, strict=True) if i >= 0]
    apart = [abs(a - others[i]) for a, i in taken]
    assert all(days <= 60 for days in apart)
    assert [i for _, i in taken] == sorted({i for _, i in taken})  # no date twice, no pair crossed
    assert (len(apart), sum(apart)) == best_by_force(frames, others)


def test_pairs_at_the_limit_and_beyond():
    assert pair_dates(dates(0, 200), dates(60, 261)).tolist() == [0, -1]
    assert pair_dates(dates(0, 1), dates(1)).tolist() == [-1, 0]
    assert pair_dates(dates(5), dates(500)).tolist() == [-1]
    # Days of the calendar count, not hours.
    late = np.array(["2020-03-01T23:00"], "datetime64[s]")
    assert pair_dates(np.array(["2020-01-01T01:00"], "datetime64[s]"), late).tolist() == [0]


@given(DAYS, DAYS, st.randoms(use_true_random=False))
def test_lining_up_does_not_depend_on_the_order_in_the_file(frames, others, random):
    straight = align_dates({"s2": dates(*frames), "s1": dates(*others)})
    mixed = {"s2": random.sample(frames, len(frames)), "s1": random.sample(others, len(others))}
    lined = align_dates({sensor: dates(*days) for sensor, days in mixed.items()})
    assert [mixed["s2"][i] for i in lined["s2"]] == frames
    expected = [others[i] if i >= 0 else None for i in straight["s1"]]
    assert [mixed["s1"][i] if i >= 0 else None for i in lined["s1"]] == expected


def test_one_frame_needs_only_its_own_partner():
    times = {"s2": dates(200, 0, 100), "s1": dates(105, 3)}
    assert {s: x.tolist() for s, x in align_dates(times).items()} == {"s2": [1, 2, 0], "s1": [1, 0, -1]}
    assert {s: x.tolist() for s, x in align_complete_dates(times, 1).items()} == {"s2": [2], "s1": [0]}
    for frame in (2, None):
        with pytest.raises(BadSample, match="s1 has no image for that of s2 of 1970-07-20"):
            align_complete_dates(times, frame)


# ------------------------------------------------------------------------------------ missing images


def test_missing_images_are_marked_and_zero():
    bands = {"s2": ("B02",), "s1": ("VV",)}
    images = {"s2": np.full((3, 1, 4, 4), 7, np.uint16), "s1": np.full((3, 1, 4, 4), -9, np.float32)}
    images["s1"][1] = np.nan
    held = np.array([True, False, True])
    with pytest.raises(BadSample, match="without data"):
        validate_sample(images, bands, frames=3)
    sample = validate_sample(images, bands, frames=3, valid={"s1": held, "s2": np.ones(3, bool)})
    assert sample.valid.keys() == {"s1"}  # a sensor with all its images is not named
    assert sample.valid["s1"].tolist() == held.tolist()
    assert (sample.images["s1"][1] == 0).all()
    assert np.isnan(images["s1"][1]).all()  # the caller's is as it was
    np.testing.assert_array_equal(sample.images["s1"][held], images["s1"][held])
    for wrong, reason in (
        (np.zeros(3, bool), "s1 has no usable image at any of 3 dates"),
        (np.ones(2, bool), r"expected booleans \[3\]"),
        (np.ones(3), "float64"),
        (np.array([False, True, True]), "without data"),
    ):
        with pytest.raises(BadSample, match=reason):
            validate_sample(images, bands, frames=3, valid={"s1": wrong})
    # Only where both have an image do their dates have to be near.
    days = {"s2": np.array([0, 100, 200]), "s1": np.array([5, 300, 195])}
    validate_sample(images, bands, frames=3, dates=days, valid={"s1": held})
    images["s1"][1] = -9
    with pytest.raises(BadSample, match="200 days apart"):
        validate_sample(images, bands, frames=3, dates=days)


def test_unusable_images_are_found():
    one = np.ones((1, 2, 2), np.uint16)
    nan = np.full((1, 2, 2), np.nan, np.float32)
    stack, held = stack_valid("s2", [nan, one, None, 3 * one, 0 * one])
    assert held.tolist() == [False, True, False, True, False]
    assert stack.dtype == np.uint16
    assert stack[:, 0, 0, 0].tolist() == [0, 1, 0, 3, 0]
    with pytest.raises(BadSample, match="s2 has no usable image at any of 2 dates; the first is missing"):
        stack_valid("s2", [None, nan])


# ------------------------------------------------------------------------------------------ SSL4EO-S12

# As published: sorted by name, so S1A before S1B and not by date; S2 in order.
S2_TIMES = ("20200110T103341", "20200415T103021", "20200714T103031", "20201012T103021")
S1_TIMES = ("A 20200712T053000", "A 20201020T054000", "B 20200107T055000", "B 20200414T170000")
S1_ORDER = (2, 3, 0, 1)


def name_s1(platform_and_time):
    platform, time = platform_and_time.split()
    return f"S1{platform}_IW_GRDH_1SDV_{time}_{time}_032904_03CFBA_D457"


def write(monkeypatch, root, layout, s2_times, s1_times):
    """Write the small files of test_ssl4eo, with other products; return the source and what S1 holds."""
    monkeypatch.setattr(test_ssl4eo, "S2_NAMES", [f"{t}_{t}_T31UFS" for t in s2_times])
    monkeypatch.setattr(test_ssl4eo, "S1_NAMES", [name_s1(t) for t in s1_times])
    if layout == "folders":
        written = test_ssl4eo.write_v10(root, ids=("0000007",))
        return SSL4EOFolders(root, size=24), [written["0000007", i, "VH"] for i in range(4)]
    written = test_ssl4eo.write_v11(root, layout)
    key = test_ssl4eo.IDS[0]
    return SSL4EOZarr(root, offset="none"), written["s1"][key][:, 1].astype(np.float32)


LAYOUTS = pytest.mark.parametrize("layout", ["folders", "zarr", "tar"])


@LAYOUTS
def test_products_sorted_by_platform_come_in_order_of_time(monkeypatch, tmp_path, layout):
    assert [name_s1(t) for t in S1_TIMES] == sorted(name_s1(t) for t in S1_TIMES)
    source, s1 = write(monkeypatch, tmp_path, layout, S2_TIMES, S1_TIMES)
    everything = source.read(0)
    for frame, i in enumerate(S1_ORDER):
        one = source.read(0, frame)
        np.testing.assert_array_equal(one.images["s1"][1], s1[i])
        np.testing.assert_array_equal(everything.images["s1"][frame, 1], s1[i])
        for sensor in ("s2", "s1"):
            assert one.dates[sensor].tolist() == [everything.dates[sensor][frame]]
    days = {
        sensor: held.astype("datetime64[D]").astype(str).tolist() for sensor, held in everything.dates.items()
    }
    assert days["s2"] == ["2020-01-10", "2020-04-15", "2020-07-14", "2020-10-12"]
    assert days["s1"] == ["2020-01-07", "2020-04-14", "2020-07-12", "2020-10-20"]
    assert everything.valid == {}


@LAYOUTS
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        # The same instant under two platforms' names: which is the earlier is not known.
        ((0, "A 20201020T054000"), "two images are of 2020-10-20T05:40:00"),
        ((0, "A unknown"), "holds no time"),
        ((2, "B 20191107T055000"), "s1 has no image for that of s2 of 2020-01-10"),
    ],
)
def test_dates_that_do_not_line_up_are_refused(monkeypatch, tmp_path, layout, change, reason):
    times = list(S1_TIMES)
    times[change[0]] = change[1]
    if layout == "folders" and change[0] == 0:
        times[1] = times[1].replace("A ", "B ")  # two folders cannot have one name
    source, _ = write(monkeypatch, tmp_path, layout, S2_TIMES, times)
    for frame in (0, None):
        with pytest.raises(BadSample, match=reason):
            source.read(0, frame)
    if "no image" in reason:
        source.read(0, 1)
