"""The simulated scenes: repeatable, seasonal, and ordered by cover as real ones are."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rsbackbones.data import simulator
from rsbackbones.data.simulator import Scene, simulate_scene, write_scene

# Means of the SSL4EO-S12 L2A training set; its clouds make them brighter than ours may be.
DATASET_MEANS = [752, 884, 1144, 1297, 1625, 2195, 2422, 2518, 2582, 2645, 2368, 1805]


@functools.cache
def scene(day: int = 180, seed: int = 0) -> Scene:
    return simulate_scene(256, 256, seed=seed, day_of_year=day)


def interior(s: Scene, name: str, margin: int = 1) -> NDArray[np.bool_]:
    """Pixels of a class at least `margin` pixels away from any other class and from the edge."""
    mask: NDArray[np.bool_] = s.land_cover == s.classes.index(name)
    for axis in (0, 1):
        for shift in range(-margin, margin + 1):
            mask = mask & np.roll(mask, shift, axis)
    mask[:margin] = mask[-margin:] = mask[:, :margin] = mask[:, -margin:] = False
    assert mask.sum() >= 20, f"the scene holds too little {name} to test with"
    return mask


def band(s: Scene, name: str) -> NDArray[Any]:
    return np.asarray(s.s2[s.s2_bands.index(name)] / 1e4)


def ndvi(s: Scene, name: str, margin: int = 1) -> float:
    red, near = band(s, "B04"), band(s, "B08")
    return float(((near - red) / (near + red))[interior(s, name, margin)].mean())


def spread_in_blocks(image: NDArray[Any], block: int) -> NDArray[Any]:
    """Largest minus smallest value inside each whole block of a [H, W] image."""
    h, w = (n // block * block for n in image.shape)
    cells = image[:h, :w].astype(int).reshape(h // block, block, w // block, block)
    return np.asarray(cells.max((1, 3)) - cells.min((1, 3)))


def test_same_arguments_give_the_same_scene() -> None:
    first, second = (simulate_scene(48, 40, seed=3, day_of_year=99) for _ in range(2))
    for name in ("s2", "s1", "land_cover"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_another_seed_gives_another_place() -> None:
    assert (scene().land_cover != scene(seed=1).land_cover).mean() > 0.4


def test_every_class_occurs() -> None:
    assert set(np.unique(scene().land_cover)) == set(range(len(scene().classes)))


def test_seasons_change_the_crops_and_leave_the_map() -> None:
    spring, summer, autumn = scene(110), scene(), scene(250)
    np.testing.assert_array_equal(spring.land_cover, summer.land_cover)
    np.testing.assert_array_equal(spring.land_cover, autumn.land_cover)
    assert ndvi(autumn, "maize") > ndvi(spring, "maize") + 0.4
    assert ndvi(spring, "winter wheat") > ndvi(autumn, "winter wheat") + 0.4
    assert ndvi(summer, "broadleaf forest") > ndvi(scene(20), "broadleaf forest") + 0.3
    assert abs(ndvi(spring, "coniferous forest") - ndvi(autumn, "coniferous forest")) < 0.08


def test_rapeseed_turns_yellow_in_may() -> None:
    def yellow(s: Scene) -> float:
        field = interior(s, "rapeseed")
        return float((band(s, "B04")[field] / band(s, "B02")[field]).mean())

    assert yellow(scene(130)) > 1.5 * yellow(scene(90))


def test_seasonal_shares_never_exceed_the_ground() -> None:
    days = np.arange(-40, 420)
    for name, (_, layers) in simulator._CLASSES.items():
        total = np.zeros(days.size)
        for season in layers.values():
            if season != simulator._BY_MAP:
                total += simulator._share_on(days, season)
        assert total.max() <= 1 + 1e-6, name


def test_the_year_closes() -> None:
    first, last = (ndvi(scene(day), "winter wheat") for day in (1, 366))
    assert last == pytest.approx(first, abs=0.03)


def test_ndvi_orders_forest_soil_water() -> None:
    forest = min(ndvi(scene(), "coniferous forest"), ndvi(scene(), "broadleaf forest"))
    assert forest > 0.6
    assert 0.05 < ndvi(scene(), "bare soil") < 0.35
    assert ndvi(scene(), "water") < -0.1


@pytest.mark.parametrize("day", [20, 180])
def test_water_is_darkest_in_swir_and_cross_polarization(day: int) -> None:
    s = scene(day)
    for image in (band(s, "B11"), band(s, "B12"), 10 ** (s.s1[1] / 10)):
        level = {c: np.median(image[s.land_cover == k]) for k, c in enumerate(s.classes)}
        water = level.pop("water")
        assert min(level.values()) > 2 * water


def test_buildings_outshine_everything_in_the_radar() -> None:
    s = scene()
    mean = {c: (10 ** (s.s1[0][s.land_cover == k] / 10)).mean() for k, c in enumerate(s.classes)}
    others = max(value for name, value in mean.items() if name != "building")
    assert mean["building"] > 4 * others
    assert s.s1[0].max() > 5


def test_speckle_has_the_stated_number_of_looks() -> None:
    lake = interior(scene(), "water", margin=4)  # wider than the river, so one homogeneous body
    assert lake.sum() > 300
    days = [scene(day).s1[:, lake] for day in (20, 110, 180, 250)]
    for channel, level in zip(np.concatenate(days, axis=1), (-20.3, -27.3), strict=True):
        linear = 10 ** (channel.astype(float) / 10)
        assert linear.std() / linear.mean() == pytest.approx(4.4**-0.5, rel=0.08)
        assert 10 * np.log10(linear.mean()) == pytest.approx(level, abs=0.3)


def test_speckle_is_shared_by_neighbors_but_not_by_days_or_channels() -> None:
    lake = interior(scene(), "water", margin=4)

    def likeness(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
        return float(np.corrcoef(a[lake], b[lake])[0, 1])

    vv, vh = scene().s1
    assert likeness(vv, np.roll(vv, 1, axis=1)) > 0.25
    assert abs(likeness(vv, np.roll(vv, 4, axis=1))) < 0.2
    assert abs(likeness(vv, vh)) < 0.2
    assert abs(likeness(vv, scene(110).s1[0])) < 0.2


def test_bands_keep_their_native_resolution() -> None:
    s = simulate_scene(97, 61, seed=2)
    for name in s.s2_bands:
        image = s.s2[s.s2_bands.index(name)]
        native = {"B01": 6, "B09": 6, "B02": 1, "B03": 1, "B04": 1, "B08": 1}.get(name, 2)
        assert not spread_in_blocks(image, native).any(), name
        finer = spread_in_blocks(image, 12 if native == 6 else 2 * native)
        assert (finer > 0).mean() > 0.9, name


def test_levels_are_plausible() -> None:
    scenes = [scene(day) for day in (20, 110, 180, 250)]
    ratio = np.mean([s.s2.mean((1, 2)) for s in scenes], axis=0) / DATASET_MEANS
    assert ratio.min() > 0.4
    assert ratio.max() < 1.3
    vv, vh = np.mean([s.s1.mean((1, 2)) for s in scenes], axis=0)
    assert vv == pytest.approx(-12.5, abs=2)
    assert vh == pytest.approx(-20.2, abs=2)


@settings(max_examples=12)
@given(
    height=st.integers(16, 70),
    width=st.integers(16, 70),
    seed=st.integers(0, 2**40),
    day=st.integers(1, 366),
)
def test_any_size_seed_and_day(height: int, width: int, seed: int, day: int) -> None:
    s = simulate_scene(height, width, seed=seed, day_of_year=day)
    assert s.s2.shape == (len(s.s2_bands), height, width)
    assert s.s1.shape == (len(s.s1_bands), height, width)
    assert s.land_cover.shape == (height, width)
    names = [array.dtype.name for array in (s.s2, s.s1, s.land_cover)]
    assert names == ["uint16", "float32", "uint8"]
    assert s.s2.min() > 0
    assert s.s2.max() < 8000
    assert s.s1.min() >= -40
    assert s.s1.max() <= 20


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"height": 15, "width": 64}, ["15 and 64", "at least 16"]),
        ({"height": 64, "width": -3}, ["64 and -3", "at least 16"]),
        ({"height": 64, "width": 64, "day_of_year": 0}, ["day_of_year is 0", "1..366"]),
        ({"height": 64, "width": 64, "day_of_year": 367}, ["day_of_year is 367", "1..366"]),
        ({"height": 64, "width": 64, "seed": -1}, ["seed is -1", "negative"]),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, int], words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        simulate_scene(**arguments)
    for word in words:
        assert word in str(caught.value)


def test_written_scenes_read_back(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    s = simulate_scene(40, 28, seed=1)
    folder = tmp_path / "new" / "folder"
    paths = write_scene(s, folder)
    assert paths == (folder / "scene_s2.tif", folder / "scene_s1.tif")
    assert sorted(folder.iterdir()) == sorted(paths)
    images: tuple[NDArray[Any], ...] = (s.s2, s.s1)
    for path, image, names in zip(paths, images, (s.s2_bands, s.s1_bands), strict=True):
        with rasterio.open(path) as file:
            assert file.descriptions == names
            assert file.crs.to_string() == s.crs == "EPSG:32633"
            assert tuple(file.transform)[:6] == s.transform
            assert file.res == (10, 10)
            np.testing.assert_array_equal(file.read(), image)
            assert file.dtypes[0] == image.dtype.name


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    pytest.importorskip("rasterio")
    s = simulate_scene(16, 16)
    paths = write_scene(s, tmp_path)
    before = paths[0].read_bytes()
    broken = dataclasses.replace(s, s2=s.s2 + np.uint16(1), s2_bands=("B01",))
    with pytest.raises(ValueError, match="description"):
        write_scene(broken, tmp_path)
    assert paths[0].read_bytes() == before
    assert sorted(tmp_path.iterdir()) == sorted(paths)
