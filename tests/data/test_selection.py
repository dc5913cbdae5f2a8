"""Images of some sensors of a source, with partners near in time."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsbackbones.data.date_alignment import nearest_dates
from rsbackbones.data.npz import NpzFile, NpzSource
from rsbackbones.data.pack import pack
from rsbackbones.data.selection import SelectedSource
from rsbackbones.data.shards import PackedSource
from rsbackbones.data.simulated import SimulatedPlaces, SimulatedSource
from rsbackbones.data.source import BadSample

DAY = np.datetime64("2020-01-01")


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=8), st.lists(st.integers(0, 60), max_size=8),
    st.integers(0, 20),
)  # fmt: skip
def test_the_nearest_date_is_that_of_a_plain_loop(frames, others, days):
    found = nearest_dates(DAY + np.array(frames), DAY + np.array(others, int), days)
    for frame, partner in zip(frames, found, strict=True):
        apart = [abs(frame - other) for other in others]
        if not apart or min(apart) > days:
            assert partner == -1
        else:
            assert partner == apart.index(min(apart))


def test_hours_count_and_missing_images_are_no_partners():
    frames = np.array(["2020-01-01T00:00", "2020-03-01T00:00", "NaT"], "datetime64[m]")
    others = np.array(["2020-01-08T00:01", "2020-03-07T23:59", "NaT"], "datetime64[m]")
    assert nearest_dates(frames, others, 7).tolist() == [-1, 1, -1]


@pytest.fixture
def dated(tmp_path):
    """Two places: five dates of Sentinel-2, three of Sentinel-1, of which one is near two of the five."""
    s2 = DAY + np.array([[40, 0, 4, 80, 120], [0, 10, 20, 30, 40]])
    s1 = DAY + np.array([[2, 47, 300], [101, 200, 300]])
    values = np.arange(2 * 5, dtype=np.float32).reshape(2, 5, 1, 1, 1) + 1000
    np.savez(
        tmp_path / "x.npz", s2=np.broadcast_to(values, (2, 5, 1, 8, 8)).astype(np.uint16),
        s1=np.broadcast_to(-np.arange(6.0).reshape(2, 3, 1, 1, 1) - 5, (2, 3, 2, 8, 8)),
        d2=s2.astype(str), d1=s1.astype(str),
    )  # fmt: skip
    images = {"s2": {"s2": ("B02",)}, "s1": {"s1": ("VV", "VH")}}
    return NpzFile(path=str(tmp_path / "x.npz"), images=images, series=True, dates={"s2": "d2", "s1": "d1"})


def seen(source):
    """By sample, the pixel value of each sensor."""
    return [
        tuple(float(source.read(i, 0).images[s].flat[0]) for s in source.sensors) for i in range(len(source))
    ]


def test_one_image_may_be_the_partner_of_several_and_none_is_lost(dated):
    source = NpzSource(dated)
    assert seen(SelectedSource(source, ["s2"], pair_days=7)) == [(1000 + i,) for i in range(10)]
    assert seen(SelectedSource(source, ["s1"], pair_days=7)) == [(-5 - i,) for i in range(6)]
    pairs = SelectedSource(source, ["s2", "s1"], pair_days=7)
    assert sorted(seen(pairs)) == [(1000, -6), (1001, -5), (1002, -5)]
    assert pairs.notes[-1] == "3 of 10 images of s2 have partners"
    assert len(SelectedSource(source, ["s2", "s1"], pair_days=6)) == 2
    # One to one, at most 60 days apart: the two at the front compete for one image.
    alone = SelectedSource(source, ["s2", "s1"])
    assert len({row[1] for row in seen(alone)}) == len(alone) == 2
    again = pickle.loads(pickle.dumps(pairs))
    assert seen(again) == seen(pairs)
    whole = pairs.read(0)
    assert {m: x.shape for m, x in whole.images.items()} == {"s2": (1, 1, 8, 8), "s1": (1, 2, 8, 8)}


def test_frames_to_keep_are_the_only_ones(dated):
    from dataclasses import replace

    kept = NpzSource(replace(dated, keep=("2020-01-01", "2020-02-10")))
    assert sorted(seen(SelectedSource(kept, ["s2"]))) == [(1000,), (1001,), (1005,), (1009,)]
    pairs = SelectedSource(kept, ["s2", "s1"], pair_days=7)
    assert sorted(seen(pairs)) == [(1000, -6), (1001, -5)]


def test_images_without_dates_go_with_each_other_by_number(tmp_path):
    s2 = np.arange(1, 7, dtype=np.uint16).reshape(2, 3, 1, 1, 1) * np.ones((1, 1, 1, 8, 8), np.uint16)
    np.savez(tmp_path / "x.npz", s2=s2, s1=-s2.astype(np.float32))
    file = NpzFile(
        path=str(tmp_path / "x.npz"), images={"s2": {"s2": ("B02",)}, "s1": {"s1": ("VV",)}}, series=True
    )
    for days in (None, 7):
        pairs = SelectedSource(NpzSource(file), ["s2", "s1"], pair_days=days)
        assert seen(pairs) == [(i, -i) for i in range(1, 7)]


def test_packed_and_simulated_places_have_the_same_partners(tmp_path):
    places = SimulatedSource(SimulatedPlaces(places=3, size=32))
    pack(places, tmp_path / "packed")
    packed = PackedSource(tmp_path / "packed")
    for days, count in ((3, None), (60, 12)):
        selected = [SelectedSource(source, ["s2", "s1"], pair_days=days) for source in (places, packed)]
        assert len(selected[0]) == len(selected[1]) == (count or len(selected[0]))
        for i in range(len(selected[0])):
            one, other = (source.read(i, 0) for source in selected)
            assert np.abs(one.dates["s2"] - one.dates["s1"]).max() <= days
            assert all(np.array_equal(one.images[m], other.images[m]) for m in one.images)


def test_a_place_whose_dates_cannot_be_read_is_reported_when_it_is_read(dated):
    class Damaged(NpzSource):
        def times(self, place, sensors):
            if place == 1:
                raise BadSample("the disk is gone")
            return super().times(place, sensors)

    for sensors, good in ((["s2"], 5), (["s2", "s1"], 3)):
        source = SelectedSource(Damaged(dated), sensors, pair_days=7)
        assert len(source) == good + 1
        with pytest.raises(BadSample, match="the disk is gone"):
            source.read(good, 0)
    with pytest.raises(ValueError, match="x lacks rgb; it has s2, s1"):
        SelectedSource(NpzSource(dated), ["s2", "rgb"])
