"""Simulated places with seasons."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter

from rsbackbones.data.npz import NpzFile, NpzSource
from rsbackbones.data.open import open_part
from rsbackbones.data.simulated import SimulatedPlaces, SimulatedSource
from rsbackbones.data.simulator import S1_BANDS, S2_BANDS, simulate_scene


def day_of_year(days, year):
    return days - int(np.datetime64(f"{year}-01-01").astype(int)) + 1


def test_places_have_their_own_dates_about_the_days_stated():
    source = open_part(SimulatedPlaces(places=3, size=48, year=2020), Path("unused"))
    assert isinstance(source, SimulatedSource)
    assert source.describe(2) == "place 2 of seed 0, 48 pixels, 2020 about day 15 105 196 288"
    assert (len(source), source.frames, source.bands) == (3, 4, {"s2": S2_BANDS, "s1": S1_BANDS})
    assert source.notes == ("simulated by rsbackbones.data.simulator, not observed",)
    samples = [source.read(i) for i in range(3)]
    dates = np.stack([sample.dates["s2"] for sample in samples])
    assert (np.abs(day_of_year(dates, 2020) - [15, 105, 196, 288]) <= 15).all()
    assert len(np.unique(dates)) > 8
    for sample in samples:
        later = sample.dates["s1"] - sample.dates["s2"]
        assert ((later >= 1) & (later <= 5)).all()
        assert sample.images["s2"].shape == (4, 12, 48, 48)
        assert sample.valid == {}


def test_an_image_is_that_of_the_simulator_on_its_day():
    """Of one geography at all dates of a place, and of another at the next."""
    source = SimulatedSource(SimulatedPlaces(places=2, size=24, seed=5, days=(100, 200)))
    seeds = [int(np.random.SeedSequence((5, place)).generate_state(1)[0]) for place in range(2)]
    assert seeds[0] != seeds[1]
    for place, seed in enumerate(seeds):
        sample = source.read(place)
        for frame in range(2):
            for sensor in ("s2", "s1"):
                day = int(day_of_year(sample.dates[sensor], 2021)[frame])
                scene = simulate_scene(24, 24, seed=seed, day_of_year=day)
                np.testing.assert_array_equal(sample.images[sensor][frame], getattr(scene, sensor))


def test_a_place_is_the_same_wherever_it_is_drawn():
    places = SimulatedPlaces(places=4, size=24, seed=1)
    source = SimulatedSource(places)
    first = source.read(3)
    sent = pickle.dumps(source)
    assert len(sent) < 500
    one = pickle.loads(sent).read(3, 2)
    for sensor in ("s2", "s1"):
        np.testing.assert_array_equal(one.images[sensor], first.images[sensor][2])
        assert one.dates[sensor].tolist() == [first.dates[sensor][2]]
    kept = first.images["s2"].copy()
    first.images["s2"][:] = 0  # the reader's own
    np.testing.assert_array_equal(source.read(3).images["s2"], kept)
    assert (SimulatedSource(SimulatedPlaces(places=4, size=24, seed=2)).read(3).images["s2"] != kept).any()
    with pytest.raises(IndexError):
        source.read(4)


def test_days_around_the_turn_of_the_year():
    source = SimulatedSource(SimulatedPlaces(places=6, size=16, year=2020, days=(1, 366)))
    dates = np.stack([source.read(i).dates["s2"] for i in range(6)])
    years = dates.astype("datetime64[D]").astype("datetime64[Y]").astype(int) + 1970
    assert set(years[:, 0]) == {2019, 2020}
    assert set(years[:, 1]) == {2020, 2021}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"places": 0}, "at least 1"),
        ({"size": 8}, "at least 16"),
        ({"seed": -1}, "not negative"),
        ({"days": ()}, "days must be"),
        ({"days": (100, 134)}, "at least 35 apart"),
        ({"days": (200, 100)}, "in order"),
        ({"days": (0,)}, r"in 1\.\.366"),
    ],
)
def test_places_that_cannot_be_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        SimulatedSource(SimulatedPlaces(**{"places": 2, "size": 16, **change}))


def test_a_part_is_built_from_plain_types(tmp_path):
    part = TypeAdapter(NpzFile | SimulatedPlaces)
    assert part.validate_python({"places": 3, "days": [10, 100]}) == SimulatedPlaces(places=3, days=(10, 100))
    np.savez(tmp_path / "a.npz", x=np.ones((1, 8, 8), np.uint16))
    file = part.validate_python({"path": "a.npz", "images": {"s2": {"x": ["B02"]}}})
    source = open_part(file, tmp_path)
    assert isinstance(source, NpzSource)
    assert source.read(0, 0).images["s2"].shape == (1, 8, 8)
