"""Features of GeoTIFFs: where they lie, what they are, and what a kill leaves behind."""

import itertools
import os
import re
import shutil
import signal
import sys
import time
import warnings

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.transform import Affine, from_origin

import rsbackbones as rsb
from rsbackbones import embed
from rsbackbones.cli import main
from rsbackbones.data.windows import blend_weights, window_starts
from rsbackbones.embed import (
    embed_patches,
    embed_scene,
    principal_colors,
)
from rsbackbones.zoo.fingerprint import weights_digest
from tests import forked
from tests.data.test_rasters import GRID, S1, S2, write_tif

QUIET = {"progress": False}


def optical(height, width, seed=0, dtype=np.uint16, bands=12):
    """Digital numbers of Sentinel-2: noise over a slope, so that no two windows are alike."""
    slope = np.add.outer(np.arange(height) * 9, np.arange(width) * 5)
    noise = np.random.default_rng(seed).integers(200, 2500, (bands, height, width))
    return (noise + slope).astype(dtype)


def radar(height, width, seed=0):
    """Decibels of Sentinel-1."""
    return np.random.default_rng((seed, 1)).normal(-15, 5, (2, height, width)).astype(np.float32)


def read_map(path):
    """A feature GeoTIFF as [h, w, D]."""
    with rasterio.open(path) as raster:
        return np.moveaxis(raster.read(), 0, -1)


def read_picture(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path) as raster:
            return raster.read()


def inputs(model, images):
    """The model's input for one place, from raw [C, h, w] by sensor."""
    return rsb.create_preprocess(model)({m: x[None] for m, x in images.items()})


def plain_map(model, images, stream):
    """The features of the whole scene at once, [h, w, D]."""
    with torch.inference_mode():
        return model.forward_features(inputs(model, images)).maps(stream)[0].permute(1, 2, 0).numpy()


def plain_windows(length, window, step):
    """Where windows of `window` patches begin, every `step`, until one reaches the end."""
    starts = [0]
    while starts[-1] + window < length:
        starts.append(min(starts[-1] + step, length - window))
    return starts


def plain_blend(model, images, stream, window, overlap):
    """The weighted average of all windows, patch by patch, in float64."""
    p = model.patch_size
    height, width = (n // p for n in next(iter(images.values())).shape[1:])
    tall, wide = min(window // p, height), min(window // p, width)
    step, limit = (window - overlap) // p, overlap // p + 1
    sums = np.zeros((height, width, model.num_features))
    weights = np.zeros((height, width))
    for top in plain_windows(height, tall, step):
        for left in plain_windows(width, wide, step):
            rows, columns = slice(top * p, (top + tall) * p), slice(left * p, (left + wide) * p)
            values = plain_map(model, {m: x[:, rows, columns] for m, x in images.items()}, stream)
            for i in range(tall):
                for j in range(wide):
                    # How many patches from the nearest edge of the window, as far as the overlap counts.
                    weight = min(i + 1, tall - i, limit) * min(j + 1, wide - j, limit)
                    sums[top + i, left + j] += weight * values[i, j].astype(np.float64)
                    weights[top + i, left + j] += weight
    return sums / weights[..., None]


@pytest.fixture
def tiny_s2():
    torch.manual_seed(0)
    return rsb.create_model("croma_vit_tiny", modalities=("s2",))


def batch_sizes(model, run):
    """Call `run` and return how many images were encoded at a time."""
    sizes = []
    hook = model.encoders["s2"].register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    run()
    hook.remove()
    return sizes


# -- windows ------------------------------------------------------------------------------------------


@st.composite
def window_and_overlap(draw):
    window = draw(st.integers(1, 40))
    return window, draw(st.integers(0, window - 1))


@settings(deadline=None)
@given(length=st.integers(1, 400), sizes=window_and_overlap())
def test_windows_cover_everything_and_stay_inside(length, sizes):
    window, overlap = sizes
    starts = window_starts(length, window, overlap)
    size = min(window, length)
    covered = np.zeros(length, int)
    for start in starts:
        assert 0 <= start <= length - size
        covered[start : start + size] += 1
    assert covered.min() >= 1
    assert starts == sorted(set(starts))
    # Neighbors share at least the overlap asked for.
    assert all(b - a <= window - overlap for a, b in itertools.pairwise(starts))
    assert starts == plain_windows(length, size, window - overlap)


@settings(deadline=None)
@given(sizes=window_and_overlap())
def test_weights_are_positive_symmetric_and_fall_outwards(sizes):
    window, overlap = sizes
    weights = blend_weights(window, overlap)
    assert weights.shape == (window,)
    assert (weights > 0).all()
    assert (weights <= 1).all()
    np.testing.assert_array_equal(weights, weights[::-1])
    assert (np.diff(weights[: (window + 1) // 2]) >= 0).all()
    if not overlap:
        np.testing.assert_array_equal(weights, 1)


@settings(deadline=None)
@given(window=st.integers(2, 40), data=st.data(), count=st.integers(2, 6))
def test_regular_windows_fade_into_each_other(window, data, count):
    # Where only two windows overlap their weights add up to one: a cross-fade without a step.
    overlap = data.draw(st.integers(0, window // 2))
    step = window - overlap
    total = np.zeros(window + step * (count - 1))
    for start in window_starts(len(total), window, overlap):
        total[start : start + window] += blend_weights(window, overlap)
    inside = total[overlap : len(total) - overlap]
    np.testing.assert_allclose(inside, 1, atol=1e-6)


# -- a scene: where the features lie ------------------------------------------------------------------

GRIDS = {
    "utm": (GRID, "EPSG:32633"),
    "degrees": (from_origin(11.5, 48.2, 1e-4, 9e-5), "EPSG:4326"),
    "rotated": (Affine(8, -6, 500_000, -6, -8, 5_000_000), "EPSG:32633"),
}


@pytest.mark.parametrize(("transform", "crs"), GRIDS.values(), ids=GRIDS)
def test_the_map_lies_on_its_input(tiny_s2, tmp_path, transform, crs):
    source = write_tif(tmp_path / "scene.tif", optical(48, 72), S2, transform=transform, crs=crs)
    result = embed_scene(tiny_s2, [source], tmp_path / "map.tif", **QUIET)
    assert result == tmp_path / "map.tif"
    with rasterio.open(source) as scene, rasterio.open(result) as features:
        assert features.crs == scene.crs
        assert (features.height, features.width, features.count) == (6, 9, 96)
        for row, column in [(0, 0), (0, 9), (6, 0), (6, 9), (2, 5)]:
            there = scene.transform * (8 * column, 8 * row)
            assert features.transform * (column, row) == pytest.approx(there, rel=1e-12)
        if crs == "EPSG:4326" or transform == GRID:
            assert tuple(features.bounds) == pytest.approx(tuple(scene.bounds), rel=1e-12)


def test_a_size_that_is_no_multiple_of_the_patch_loses_the_last_pixels(tiny_s2, tmp_path):
    data = optical(47, 71)
    source = write_tif(tmp_path / "scene.tif", data, S2)
    result = embed_scene(tiny_s2, [source], tmp_path / "map.tif", **QUIET)
    found = read_map(result)
    np.testing.assert_allclose(found, plain_map(tiny_s2, {"s2": data[:, :40, :64]}, "s2"), atol=1e-5)
    with rasterio.open(result) as features:
        assert tuple(features.bounds) == (500_000, 5_000_000 - 400, 500_000 + 640, 5_000_000)


def test_the_map_says_what_it_is(tiny, tmp_path):
    sources = [
        write_tif(tmp_path / "a.tif", optical(32, 32), S2),
        write_tif(tmp_path / "b.tif", radar(32, 32), S1),
    ]
    result = embed_scene(tiny, sources, tmp_path / "map.tif", **QUIET)
    with rasterio.open(result) as features:
        tags = features.tags()
        assert features.descriptions[:2] == ("joint_0000", "joint_0001")
        assert len(set(features.descriptions)) == 96
        assert np.isnan(features.nodata)
        assert set(features.dtypes) == {"float32"}
    assert tags["rsbackbones"] == rsb.__version__
    assert tags["model"] == "croma_vit_tiny"
    assert tags["stream"] == "joint"
    assert (tags["stride"], tags["window"], tags["overlap"]) == ("8", "120", "48")
    assert "a.tif" in tags["input"]
    assert "b.tif" in tags["input"]
    assert tags["parameters_sha256"] == weights_digest(tiny)


def test_the_tags_tell_weights_apart(tiny_s2, tmp_path):
    source = write_tif(tmp_path / "scene.tif", optical(32, 32), S2)
    digests = []
    for name in ("before.tif", "after.tif"):
        with rasterio.open(embed_scene(tiny_s2, [source], tmp_path / name, **QUIET)) as features:
            digests.append(features.tags()["parameters_sha256"])
        with torch.no_grad():
            next(tiny_s2.parameters()).view(-1)[0] += 1e-3
    assert digests[0] != digests[1]


# -- a scene: what the features are -------------------------------------------------------------------


@pytest.mark.parametrize("stream", [None, "s2", "s1", "joint"])
def test_a_scene_within_one_window_is_encoded_whole(tiny, tmp_path, stream):
    images = {"s2": optical(56, 80), "s1": radar(56, 80)}
    sources = [
        write_tif(tmp_path / "a.tif", images["s1"], S1),
        write_tif(tmp_path / "b.tif", images["s2"], S2),
    ]
    result = embed_scene(tiny, sources, tmp_path / "map.tif", stream=stream, **QUIET)
    np.testing.assert_allclose(read_map(result), plain_map(tiny, images, stream or "joint"), atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "window", "overlap"),
    [
        ((96, 136), 64, 16),
        ((104, 72), 48, 24),  # more than half: three windows over one patch
        ((64, 64), 32, 0),
        ((40, 120), 56, 24),  # lower than a window
        ((120, 40), 56, 48),
        ((80, 80), 8, 0),
    ],
)
def test_larger_scenes_are_the_weighted_average_of_windows(tiny_s2, tmp_path, shape, window, overlap):
    data = optical(*shape)
    source = write_tif(tmp_path / "scene.tif", data, S2)
    output = tmp_path / "map.tif"
    embed_scene(tiny_s2, [source], output, window=window, overlap=overlap, **QUIET)
    expected = plain_blend(tiny_s2, {"s2": data}, "s2", window, overlap)
    np.testing.assert_allclose(read_map(output), expected, atol=1e-5)


def test_two_sensors_and_the_default_window(tiny, tmp_path):
    images = {"s2": optical(136, 208), "s1": radar(136, 208)}
    sources = [
        write_tif(tmp_path / "a.tif", images["s2"], S2),
        write_tif(tmp_path / "b.tif", images["s1"], S1),
    ]
    result = embed_scene(tiny, sources, tmp_path / "map.tif", **QUIET)
    # Trained at 120 pixels; two fifths of it overlap.
    expected = plain_blend(tiny, images, "joint", 120, 48)
    np.testing.assert_allclose(read_map(result), expected, atol=1e-5)


def test_batches_and_the_layout_of_files_make_no_difference(tiny_s2, tmp_path):
    data = optical(72, 104)
    whole = write_tif(tmp_path / "whole.tif", data, S2)
    order = [5, 0, 11, 3, 2, 9, 4, 1, 6, 8, 10, 7]
    cirrus = np.full_like(data[:1], 60_000)
    shuffled = np.concatenate([data[order[:4]], cirrus, data[order[4:]]])
    names = [*(S2[i] for i in order[:4]), "B10", *(S2[i] for i in order[4:])]
    mixed = write_tif(tmp_path / "mixed.tif", shuffled, names)
    singles = [write_tif(tmp_path / f"{b}.tif", data[i : i + 1]) for i, b in enumerate(S2)]
    options = {"window": 40, "overlap": 16} | QUIET
    expected = read_map(embed_scene(tiny_s2, [whole], tmp_path / "1.tif", **options))
    for name, sources, more in [
        ("batch.tif", [whole], {"batch_size": 3}),
        ("mixed.tif", [mixed], {}),
        ("singles.tif", singles, {"bands": [[band] for band in S2]}),
    ]:
        result = embed_scene(tiny_s2, sources, tmp_path / f"map_{name}", **options, **more)
        np.testing.assert_allclose(read_map(result), expected, atol=1e-5, err_msg=name)


def test_no_more_than_a_batch_is_encoded_at_a_time(tiny_s2, tmp_path):
    options = {"batch_size": 2} | QUIET
    scene = write_tif(tmp_path / "scene.tif", optical(64, 160), S2)
    windows = {"window": 32, "overlap": 0}
    sizes = batch_sizes(
        tiny_s2, lambda: embed_scene(tiny_s2, [scene], tmp_path / "map.tif", **options, **windows)
    )
    assert sizes == [2, 2, 1, 2, 2, 1]
    patches = [write_tif(tmp_path / f"{i}.tif", optical(16, 16, seed=i), S2) for i in range(5)]
    sizes = batch_sizes(tiny_s2, lambda: embed_patches(tiny_s2, patches, tmp_path / "rows.npz", **options))
    assert sizes == [2, 2, 1]


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_of_no_windows_is_refused(tiny_s2, tmp_path, batch_size):
    source = write_tif(tmp_path / "scene.tif", optical(32, 32), S2)
    for output in (tmp_path / "map.tif", tmp_path / "rows.npz"):
        write = embed_scene if output.suffix == ".tif" else embed_patches
        with pytest.raises(ValueError, match="batch"):
            write(tiny_s2, [source], output, batch_size=batch_size, **QUIET)
        assert not output.exists()


def test_a_scene_of_one_value_has_features(tiny_s2, tmp_path):
    data = np.full((12, 64, 64), 1500, np.uint16)
    source = write_tif(tmp_path / "flat.tif", data, S2)
    result = embed_scene(tiny_s2, [source], tmp_path / "map.tif", **QUIET)
    found = read_map(result)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, plain_map(tiny_s2, {"s2": data}, "s2"), atol=1e-5)
    assert (read_picture(tmp_path / "map.png")[3] == 255).all()


# -- a scene: pixels without data ---------------------------------------------------------------------

WITHOUT = [
    (3, slice(0, 1), slice(0, 1)),  # one pixel of one band
    (0, slice(30, 50), slice(70, 71)),
    (7, slice(64, 104), slice(0, 60)),  # whole windows
]


def patches_without(height, width):
    lost = np.zeros((height // 8, width // 8), bool)
    for _, rows, columns in WITHOUT:
        for row in range(rows.start, rows.stop):
            for column in range(columns.start, columns.stop):
                lost[row // 8, column // 8] = True
    return lost


def with_holes(data, value):
    data = data.copy()
    for band, rows, columns in WITHOUT:
        data[band, rows, columns] = value
    return data


def test_exactly_the_patches_without_data_are_nan(tiny_s2, tmp_path):
    data = optical(104, 120)
    options = {"window": 32, "overlap": 8} | QUIET
    maps = []
    for name, dtype, value, stated, nodata in [
        ("stated", np.uint16, 0, 0, None),
        ("argument", np.uint16, 65_535, None, 65_535),
        ("nan", np.float32, np.nan, None, None),
    ]:
        source = write_tif(tmp_path / f"{name}.tif", with_holes(data.astype(dtype), value), S2, nodata=stated)
        result = embed_scene(tiny_s2, [source], tmp_path / f"map_{name}.tif", nodata=nodata, **options)
        maps.append(read_map(result))
    lost = patches_without(104, 120)
    for found in maps:
        np.testing.assert_array_equal(np.isnan(found), np.broadcast_to(lost[..., None], found.shape))
        # What a file holds where it has no data must not be seen.
        np.testing.assert_array_equal(found, maps[0])
    # Windows of 4 patches every 3: these see no hole at all.
    whole = plain_blend(tiny_s2, {"s2": data}, "s2", 32, 8)
    np.testing.assert_allclose(maps[0][:3, 10:], whole[:3, 10:], atol=1e-5)
    picture = read_picture(tmp_path / "map_nan.png")
    factor = picture.shape[1] // lost.shape[0]
    np.testing.assert_array_equal(picture[3, ::factor, ::factor] == 0, lost)


def test_a_hole_is_filled_with_what_lies_around_it(tiny_s2, tmp_path):
    # Of a field of one color the rest of it has the features that it would have without the hole:
    # attention must not see a black patch there.
    data = np.broadcast_to(np.arange(500, 2900, 200, dtype=np.uint16)[:, None, None], (12, 48, 48)).copy()
    whole = plain_map(tiny_s2, {"s2": data}, "s2")
    data[:, 10:20, 20:30] = 0
    source = write_tif(tmp_path / "field.tif", data, S2, nodata=0)
    found = read_map(embed_scene(tiny_s2, [source], tmp_path / "map.tif", **QUIET))
    seen = ~np.isnan(found).any(-1)
    assert seen.sum() == 36 - 4
    np.testing.assert_allclose(found[seen], whole[seen], atol=1e-5)


def test_a_hole_in_one_sensor_counts_for_both(tiny, tmp_path):
    sea = radar(32, 48)
    sea[1, 9, 17] = np.nan
    sources = [
        write_tif(tmp_path / "a.tif", optical(32, 48), S2),
        write_tif(tmp_path / "b.tif", sea, S1),
    ]
    found = read_map(embed_scene(tiny, sources, tmp_path / "map.tif", stream="s2", **QUIET))
    assert np.argwhere(np.isnan(found).any(-1)).tolist() == [[1, 2]]
    assert np.isnan(found[1, 2]).all()


def test_a_hole_in_the_pixels_that_are_cut_off_is_no_hole(tiny_s2, tmp_path):
    data = optical(36, 36)
    data[:, 33, :] = 0
    source = write_tif(tmp_path / "scene.tif", data, S2, nodata=0)
    assert np.isfinite(read_map(embed_scene(tiny_s2, [source], tmp_path / "map.tif", **QUIET))).all()


def test_a_scene_without_any_data_is_refused(tiny_s2, tmp_path):
    source = write_tif(tmp_path / "void.tif", np.zeros((12, 32, 32), np.uint16), S2, nodata=0)
    with pytest.raises(ValueError, match=r"void\.tif.*no pixel has data"):
        embed_scene(tiny_s2, [source], tmp_path / "map.tif", **QUIET)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["void.tif"]


# -- a scene: what is refused -------------------------------------------------------------------------


def test_values_in_another_unit_are_refused(tiny, tmp_path):
    dn, db = optical(64, 64), radar(64, 64)
    reflectance = (dn / 10_000).astype(np.float32)
    power = (10 ** (db / 10)).astype(np.float32)

    def run(first, second, **units):
        sources = [
            write_tif(tmp_path / "a.tif", first, S2),
            write_tif(tmp_path / "b.tif", second, S1),
        ]
        return read_map(embed_scene(tiny, sources, tmp_path / "map.tif", units=units, **QUIET))

    with pytest.raises(ValueError, match=r"s2: values .* look like reflectances"):
        run(reflectance, db)
    with pytest.raises(ValueError, match=r"s2: values .* look like digital numbers"):
        run(dn, db, s2="reflectance")
    with pytest.raises(ValueError, match=r"s1: values .* look like linear power"):
        run(dn, power)
    with pytest.raises(ValueError, match=r"s1: values .* look like decibels"):
        run(dn, db, s1="linear")
    assert not (tmp_path / "map.tif").exists()
    expected = run(dn, db)
    # Converted back in float32 a few values fall on the other side of an 8-bit step.
    converted = run(reflectance, power, s2="reflectance", s1="linear")
    np.testing.assert_allclose(converted, expected, atol=0.02)
    np.testing.assert_array_equal(run(dn + 1000, db, s2="dn_baseline_0400"), expected)


def test_the_unit_is_judged_by_the_whole_scene(tiny_s2, tmp_path):
    # Open water at the top left alone would pass for anything.
    data = optical(96, 96)
    data[:, :40, :40] = np.random.default_rng(0).integers(1, 5, (len(data), 40, 40))
    source = write_tif(tmp_path / "scene.tif", data, S2)
    options = {"window": 32, "overlap": 0} | QUIET
    assert np.isfinite(read_map(embed_scene(tiny_s2, [source], tmp_path / "map.tif", **options))).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 60}, "window"),
        ({"overlap": 20}, "overlap"),
        ({"window": 32, "overlap": 32}, "overlap"),
        ({"window": -8}, "window"),
        ({"overlap": -8}, "overlap"),
        ({"stream": "joint"}, "joint"),
        ({"units": {"s2": "percent"}}, "percent"),
        ({"units": {"s1": "db"}}, "s1"),
        ({"bands": [["B02"]]}, "12 bands"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_any_work(tiny_s2, tmp_path, options, message):
    source = write_tif(tmp_path / "scene.tif", optical(32, 32), S2)
    with pytest.raises(ValueError, match=message):
        embed_scene(tiny_s2, [source], tmp_path / "map.tif", **options, **QUIET)
    assert [p.name for p in tmp_path.iterdir()] == ["scene.tif"]


def test_sources_and_outputs_that_do_not_fit_are_refused(tiny, tiny_s2, tmp_path):
    source = write_tif(tmp_path / "scene.tif", optical(32, 32), S2)
    small = write_tif(tmp_path / "small.tif", optical(7, 64), S2)
    few = write_tif(tmp_path / "few.tif", optical(32, 32)[:3], S2[:3])
    output = tmp_path / "map.tif"
    with pytest.raises(ValueError, match=r"a feature map is a \.tif"):
        embed_scene(tiny_s2, [source], tmp_path / "map.npz", **QUIET)
    with pytest.raises(ValueError, match="no folder"):
        embed_scene(tiny_s2, [source], tmp_path / "absent" / "map.tif", **QUIET)
    with pytest.raises(ValueError, match="7 x 64 pixels, and the model needs 8 or more"):
        embed_scene(tiny_s2, [small], output, **QUIET)
    with pytest.raises(ValueError, match=r"no raster holds bands of s1.*modalities="):
        embed_scene(tiny, [source], output, **QUIET)
    with pytest.raises(ValueError, match=r"lack B04, B05, "):
        embed_scene(tiny_s2, [few], output, **QUIET)
    with pytest.raises(ValueError, match=r"B01 is in .* and in another raster"):
        embed_scene(tiny_s2, [source, source], output, **QUIET)
    assert not list(tmp_path.glob("map*"))


def test_the_input_is_never_the_output(tiny_s2, tmp_path):
    source = write_tif(tmp_path / "scene.tif", optical(32, 32), S2)
    before = source.read_bytes()
    (tmp_path / "link.tif").symlink_to(source)
    for output in (source, tmp_path / "." / "scene.tif", tmp_path / "link.tif"):
        with pytest.raises(ValueError, match=r"scene\.tif"):
            embed_scene(tiny_s2, [source], output, **QUIET)
        assert source.read_bytes() == before


def test_a_disk_without_room_is_a_message_before_any_work(tmp_path):
    """The map is mapped: without its place on disk the process would die of a bus error."""
    source = write_tif(tmp_path / "scene.tif", optical(256, 256), S2)
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000));"
        "from rsbackbones.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [
        "embed",
        source,
        "--model",
        "croma_vit_tiny",
        "--no-pretrained",
        "--output",
        tmp_path / "map.tif",
    ]
    result = forked.run([sys.executable, "-c", code, *command])
    assert result.returncode == 2, result.stderr
    assert re.search(rf"needs {32 * 32 * 96 * 4} bytes .*\d+ are free", result.stderr)
    assert [p.name for p in tmp_path.iterdir()] == ["scene.tif"]


def test_a_folder_in_the_way_is_left_alone(tiny_s2, tmp_path):
    source = write_tif(tmp_path / "scene.tif", optical(32, 32), S2)
    notes = tmp_path / "map.tif.partial" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        embed_scene(tiny_s2, [source], tmp_path / "map.tif", **QUIET)
    assert notes.read_text() == "mine"


# -- unfinished runs ----------------------------------------------------------------------------------


def rows_done(partial):
    """How many rows the journal names, 8 bytes each."""
    journal = partial / "done.bin"
    return journal.stat().st_size // 8 if journal.exists() else 0


def kill_at(partial, rows, command):
    """Run `command` until that many rows are in the journal of `partial`, and kill it there."""
    log = partial.parent.with_suffix(".log")
    process = forked.Forked(command, log)
    deadline = time.monotonic() + 120
    try:
        while rows_done(partial) < rows:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    return rows_done(partial)


def test_a_killed_run_goes_on_where_it_was(tmp_path, capsys):
    data = optical(632, 408)
    data[:, 300:330, 200:280] = 0
    source = write_tif(tmp_path / "scene.tif", data, S2, nodata=0)
    work, output = tmp_path / "work", tmp_path / "work" / "map.tif"
    work.mkdir()
    command = ["embed", str(source), "--model", "croma_vit_tiny", "--no-pretrained", "--overlap", "88"]
    partial = work / "map.tif.partial"
    # 17 rows of 10 windows of 15 patches, each 4 patches further than the last.
    done = kill_at(partial, 24, [sys.executable, "-m", "rsbackbones.cli", *command, "--output", str(output)])
    assert 24 <= done < 79
    assert [p.name for p in work.iterdir()] == [partial.name]

    # Other settings would mix two kinds of features.
    assert main([*command, "--output", str(output), "--window", "112"]) == 2
    assert re.search(r"map\.tif\.partial.*other inputs or settings", capsys.readouterr().err)
    assert rows_done(partial) == done

    begun = (partial / "job.json").stat().st_mtime_ns
    assert main([*command, "--output", str(output)]) == 0
    bars = re.findall(r"(\d+)/(\d+) \[", capsys.readouterr().err)
    first, total = map(int, bars[0])
    assert total == 17 * 10
    # Of the rows of windows some reach into rows not done and are encoded again; the others are not.
    again = [top for top in range(0, 65, 4) if top + 15 > done]
    assert first == total - len(again) * 10
    assert first > 0
    assert tuple(map(int, bars[-1])) == (total, total)
    assert sorted(p.name for p in work.iterdir()) == ["map.png", "map.tif"]
    assert output.stat().st_mtime_ns > begun

    unbroken = tmp_path / "unbroken.tif"
    assert main([*command, "--output", str(unbroken), "--no-progress"]) == 0
    assert read_map(output).tobytes() == read_map(unbroken).tobytes()
    assert read_picture(work / "map.png").tobytes() == read_picture(tmp_path / "unbroken.png").tobytes()
    assert np.isnan(read_map(output)[38, 30]).all()


def interrupt(model, source, output, after, **options):
    """Run until `after` batches are encoded, then stop as Ctrl-C does."""
    count = 0

    def stop(*_):
        nonlocal count
        count += 1
        if count > after:
            raise KeyboardInterrupt

    hook = model.encoders["s2"].register_forward_pre_hook(stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            embed_scene(model, [source], output, **options)
    finally:
        hook.remove()


def count_windows(model, run):
    """Call `run` and return how many windows were encoded."""
    return sum(batch_sizes(model, run))


OPTIONS = {"window": 32, "overlap": 8, "batch_size": 4} | QUIET  # 5 x 5 windows, 2 batches a row


@pytest.mark.parametrize("after", [0, 1, 2, 5, 9])
def test_an_interrupted_run_gives_the_same_map(tiny_s2, tmp_path, after):
    source = write_tif(tmp_path / "scene.tif", optical(128, 128), S2)
    output = tmp_path / "map.tif"
    interrupt(tiny_s2, source, output, after, **OPTIONS)
    assert not output.exists()
    encoded = count_windows(tiny_s2, lambda: embed_scene(tiny_s2, [source], output, **OPTIONS))
    # Five windows for each row that is not whole, and for the one above it, which reaches into it.
    rows_whole = after // 2
    assert encoded == 5 * (5 - max(0, rows_whole - 1))
    unbroken = embed_scene(tiny_s2, [source], tmp_path / "unbroken.tif", **OPTIONS)
    assert read_map(output).tobytes() == read_map(unbroken).tobytes()
    assert not list(tmp_path.glob("*.partial"))


def change_weights(model, source):
    with torch.no_grad():
        next(model.parameters()).mul_(1.001)


def change_input(model, source):
    data = optical(128, 128, seed=9)
    stat = source.stat()
    write_tif(source, data, S2)
    # A clock may be too coarse to tell two writes apart.
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))


CHANGES = {
    "window": {"window": 40},
    "overlap": {"overlap": 16},
    "nodata": {"nodata": 0.0},
    "units": {"units": {"s2": "dn_baseline_0400"}},
    "weights": change_weights,
    "input": change_input,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_an_unfinished_run_is_not_continued_with_something_else(tiny_s2, tmp_path, change):
    source = write_tif(tmp_path / "scene.tif", optical(128, 128), S2)
    output = tmp_path / "map.tif"
    interrupt(tiny_s2, source, output, 3, **OPTIONS)
    options = dict(OPTIONS)
    if callable(change):
        change(tiny_s2, source)
    else:
        options |= change
    with pytest.raises(ValueError, match=r"map\.tif\.partial.*other inputs or settings.*delete"):
        embed_scene(tiny_s2, [source], output, **options)
    assert not output.exists()
    shutil.rmtree(tmp_path / "map.tif.partial")
    embed_scene(tiny_s2, [source], output, **options)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["map.png", "map.tif", "scene.tif"]


def test_what_a_kill_leaves_at_any_moment_does_no_harm(tiny_s2, tmp_path):
    source = write_tif(tmp_path / "scene.tif", optical(128, 128), S2)
    expected = read_map(embed_scene(tiny_s2, [source], tmp_path / "unbroken.tif", **OPTIONS))
    output, partial = tmp_path / "map.tif", tmp_path / "map.tif.partial"

    # Killed before the job was described: a folder with half a map.
    partial.mkdir()
    (partial / "rows.bin").write_bytes(bytes(100))
    assert count_windows(tiny_s2, lambda: embed_scene(tiny_s2, [source], output, **OPTIONS)) == 25
    np.testing.assert_array_equal(read_map(output), expected)

    # Killed while rows were written that do not count yet.
    output.unlink()
    interrupt(tiny_s2, source, output, 5, **OPTIONS)
    assert 0 < rows_done(partial) < len(expected)
    np.memmap(partial / "rows.bin", np.float32, mode="r+").reshape(expected.shape)[rows_done(partial) :] = 1e9
    with (partial / "done.bin").open("ab") as journal:
        journal.write(b"abc")
    (partial / "job.json.0123abcd.tmp").write_text("")
    # Killed while the GeoTIFF and the picture were written.
    whole = (tmp_path / "unbroken.tif").read_bytes()
    (partial / "map.tif.0123abcd.tmp").write_bytes(whole[: len(whole) // 2])
    (partial / "map.png.0123abcd.tmp").write_bytes(b"")
    embed_scene(tiny_s2, [source], output, **OPTIONS)
    np.testing.assert_array_equal(read_map(output), expected)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "map.png",
        "map.tif",
        "scene.tif",
        "unbroken.png",
        "unbroken.tif",
    ]


def test_damaged_rows_are_noticed_and_computed_again(tiny_s2, tmp_path):
    source = write_tif(tmp_path / "scene.tif", optical(128, 128), S2)
    expected = read_map(embed_scene(tiny_s2, [source], tmp_path / "unbroken.tif", **OPTIONS))
    output, partial = tmp_path / "map.tif", tmp_path / "map.tif.partial"
    interrupt(tiny_s2, source, output, 7, **OPTIONS)
    # In the middle of what one row of windows gave: all of it is computed again, with the windows above.
    assert rows_done(partial) > 6
    np.memmap(partial / "rows.bin", np.float32, mode="r+").reshape(expected.shape)[4, 0, 0] += 1
    with pytest.warns(UserWarning, match="1 of .* rows are damaged and are computed again"):
        embed_scene(tiny_s2, [source], output, **OPTIONS)
    np.testing.assert_array_equal(read_map(output), expected)


def test_two_runs_do_not_write_one_map(tiny_s2, tmp_path):
    source = write_tif(tmp_path / "scene.tif", optical(128, 128), S2)
    output = tmp_path / "map.tif"
    refused = []

    def again(*_):
        if not refused:
            refused.append(None)
            with pytest.raises(ValueError, match=r"another process is writing to .*map\.tif\.partial"):
                embed_scene(tiny_s2, [source], output, **OPTIONS)

    hook = tiny_s2.encoders["s2"].register_forward_pre_hook(again)
    try:
        embed_scene(tiny_s2, [source], output, **OPTIONS)
    finally:
        hook.remove()
    assert refused
    unbroken = embed_scene(tiny_s2, [source], tmp_path / "unbroken.tif", **OPTIONS)
    assert read_map(output).tobytes() == read_map(unbroken).tobytes()


def test_an_older_map_stays_until_the_new_one_is_whole(tiny_s2, tmp_path):
    source = write_tif(tmp_path / "scene.tif", optical(128, 128), S2)
    output = embed_scene(tiny_s2, [source], tmp_path / "map.tif", **OPTIONS)
    before = output.read_bytes()
    write_tif(source, optical(128, 128, seed=5), S2)
    interrupt(tiny_s2, source, output, 3, **OPTIONS)
    assert output.read_bytes() == before
    embed_scene(tiny_s2, [source], output, **OPTIONS)
    assert output.read_bytes() != before


# -- the preview --------------------------------------------------------------------------------------


def test_the_preview_is_a_picture_of_the_map(tiny_s2, tmp_path):
    data = optical(104, 120)
    source = write_tif(tmp_path / "scene.tif", with_holes(data, 0), S2, nodata=0)
    embed_scene(tiny_s2, [source], tmp_path / "map.tif", **QUIET)
    picture = read_picture(tmp_path / "map.png")
    lost = patches_without(104, 120)
    # Small maps are enlarged by a whole factor, to about 512 pixels.
    factor = picture.shape[1] // 13
    assert picture.shape == (4, 13 * factor, 15 * factor)
    assert 256 < max(picture.shape[1:]) <= 1024
    enlarged = lost.repeat(factor, 0).repeat(factor, 1)
    np.testing.assert_array_equal(picture[3], np.where(enlarged, 0, 255))
    for channel in picture[:3]:
        seen = channel[~enlarged]
        assert seen.min() == 0
        assert seen.max() == 255
        assert len(np.unique(seen)) > 50


def planes(height, width, dim=20):
    """A map with three known directions, of falling variance, and the pattern along each."""
    rows, columns = np.mgrid[:height, :width]
    patterns = [np.sin(rows / 3.0), np.cos(columns / 4.0), np.sin(rows / 1.3 + 1) * np.cos(columns / 1.7)]
    features = np.full((height, width, dim), 3.0)
    for axis, size, pattern in zip((4, 11, 17), (9, 4, 1.5), patterns, strict=True):
        features[..., axis] += size * pattern
    return features.astype(np.float32), patterns


def test_the_colors_are_the_principal_components():
    features, patterns = planes(60, 64)
    image = principal_colors(features)
    assert image.shape == (4, 60, 64)
    assert image.dtype == np.uint8
    assert (image[3] == 255).all()
    for i, pattern in enumerate(patterns):
        low, high = np.percentile(pattern, (2, 98))
        expected = np.clip((pattern - low) / (high - low), 0, 1) * 255
        # The patterns are nearly uncorrelated, so the components are nearly the three axes.
        # Rising and not falling: the sign of an eigenvector means nothing and must not be left to chance.
        assert np.corrcoef(image[i].ravel(), expected.ravel())[0, 1] > 0.99


def test_colors_do_not_depend_on_where_the_map_lies():
    features, _ = planes(40, 40)
    shifted = principal_colors(features + 5)
    difference = np.abs(shifted.astype(int) - principal_colors(features))
    assert difference.max() <= 1


def test_missing_patches_are_transparent_and_change_no_other_color():
    features, _ = planes(30, 40)
    lost = np.zeros((30, 40), bool)
    lost[3, 4] = lost[20:, 35:] = True
    holes = np.where(lost[..., None], np.float32(np.nan), features)
    image = principal_colors(holes)
    np.testing.assert_array_equal(image[3], np.where(lost, 0, 255))
    assert (image[:3, lost] == 0).all()
    rest = features[~lost][:, None]  # the other patches, as a map of one column
    np.testing.assert_array_equal(image[:, ~lost], principal_colors(rest)[..., 0])


def test_a_map_of_more_patches_than_are_sampled():
    features, patterns = planes(230, 200)
    image = principal_colors(features)
    assert np.corrcoef(image[0].ravel(), patterns[0].ravel())[0, 1] > 0.99
    assert (image[3] == 255).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (1, 3), (2, 2)])
def test_a_map_of_a_few_patches_is_not_transparent(shape):
    features = np.random.default_rng(0).normal(size=(*shape, 8)).astype(np.float32)
    assert (principal_colors(features)[3] == 255).all()


def test_a_map_without_data_is_transparent():
    assert not principal_colors(np.full((4, 5, 8), np.nan, np.float32)).any()


# -- many patches -------------------------------------------------------------------------------------


def place(i):
    """The grid of another place."""
    return from_origin(500_000 + 10_000 * i, 5_000_000, 10, 10)


def write_pair(folder, i, height=32, width=32):
    """Both sensors of a place, and their values."""
    images = {"s2": optical(height, width, seed=i), "s1": radar(height, width, seed=i)}
    a = write_tif(folder / f"{i}_s2.tif", images["s2"], S2, transform=place(i))
    b = write_tif(folder / f"{i}_s1.tif", images["s1"], S1, transform=place(i))
    return a, b, images


def plain_pooled(model, images):
    with torch.inference_mode():
        pooled = model.forward_features(inputs(model, images)).pooled
    return {stream: values[0].numpy() for stream, values in pooled.items()}


def test_npz_has_one_row_for_each_pair(tiny, tmp_path):
    pairs = [write_pair(tmp_path, i) for i in range(3)]
    # All radar files first: what belongs together is told by the grid.
    sources = [b for _, b, _ in pairs] + [a for a, _, _ in reversed(pairs)]
    output = tmp_path / "rows.npz"
    assert embed_patches(tiny, sources, output, batch_size=2, **QUIET) == {}
    with np.load(output) as rows:
        assert set(rows) == {"paths", "crs", "x", "y", "pixel_m", "s2", "s1", "joint"}
        assert rows["paths"].tolist() == [f"{b};{a}" for a, b, _ in pairs]
        assert rows["crs"].tolist() == ["EPSG:32633"] * 3
        np.testing.assert_allclose(rows["x"], [500_160 + 10_000 * i for i in range(3)])
        np.testing.assert_allclose(rows["y"], [5_000_000 - 160] * 3)
        for i, (_, _, images) in enumerate(pairs):
            for stream, expected in plain_pooled(tiny, images).items():
                assert rows[stream].dtype == np.float32
                np.testing.assert_allclose(rows[stream][i], expected, atol=1e-5)
    assert not [*tmp_path.glob("*.tmp"), *tmp_path.glob("*.partial")]


def test_parquet_holds_the_same_as_npz(tiny, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    pairs = [write_pair(tmp_path, i) for i in range(2)]
    sources = [path for a, b, _ in pairs for path in (a, b)]
    embed_patches(tiny, sources, tmp_path / "rows.parquet", **QUIET)
    table = pq.read_table(tmp_path / "rows.parquet")
    assert table.schema.metadata[b"model"] == b"croma_vit_tiny"
    assert table.column("source").to_pylist() == [f"{a};{b}" for a, b, _ in pairs]
    assert table.column("x").to_pylist() == [500_160, 510_160]
    assert table.column("crs").to_pylist() == ["EPSG:32633"] * 2
    for stream in ("s2", "s1", "joint"):
        assert table.schema.field(f"embedding_{stream}").type.list_size == 96
        found = np.array(table.column(f"embedding_{stream}").to_pylist(), np.float32)
        expected = [plain_pooled(tiny, images)[stream] for _, _, images in pairs]
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert not [*tmp_path.glob("*.tmp"), *tmp_path.glob("*.partial")]


@pytest.mark.parametrize("after", [1, 3])
def test_interrupted_patches_go_on_after_the_last_batch(tiny_s2, tmp_path, after):
    images = [optical(32, 32, seed=i) for i in range(8)]
    images[2][:, 3, 5] = 0
    sources = [
        write_tif(tmp_path / f"{i}.tif", image, S2, transform=place(i), nodata=0)
        for i, image in enumerate(images)
    ]
    options = {"skip_nodata": True, "batch_size": 2} | QUIET
    unbroken, output = tmp_path / "unbroken.npz", tmp_path / "rows.npz"
    assert embed_patches(tiny_s2, sources, unbroken, **options) == {sources[2]: "pixels without data"}
    count = 0

    def stop(*_):
        nonlocal count
        count += 1
        if count > after:
            raise KeyboardInterrupt

    hook = tiny_s2.encoders["s2"].register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        embed_patches(tiny_s2, sources, output, **options)
    hook.remove()
    assert not output.exists()
    with pytest.raises(ValueError, match=r"rows\.npz\.partial.*other inputs or settings"):
        embed_patches(tiny_s2, sources[:-1], output, **options)
    skipped = []
    encoded = count_windows(
        tiny_s2, lambda: skipped.extend(embed_patches(tiny_s2, sources, output, **options))
    )
    assert encoded == 7 - 2 * after
    assert skipped == [sources[2]]
    with np.load(output) as rows, np.load(unbroken) as whole:
        assert {key: rows[key].tobytes() for key in rows} == {key: whole[key].tobytes() for key in whole}
    assert not list(tmp_path.glob("*.partial"))


def test_both_sensors_in_one_file_are_a_patch(tiny, tmp_path):
    images = {"s2": optical(32, 48), "s1": radar(32, 48)}
    data = np.concatenate([images["s1"], images["s2"].astype(np.float32)])
    source = write_tif(tmp_path / "both.tif", data, (*S1, *S2))
    embed_patches(tiny, [source], tmp_path / "rows.npz", **QUIET)
    with np.load(tmp_path / "rows.npz") as rows:
        np.testing.assert_allclose(rows["joint"][0], plain_pooled(tiny, images)["joint"], atol=1e-5)


def test_dates_of_one_place_are_rows_of_their_own(tiny_s2, tmp_path):
    dates = [optical(32, 32, seed=i) for i in range(3)]
    sources = [write_tif(tmp_path / f"{i}.tif", data, S2) for i, data in enumerate(dates)]
    elsewhere = write_tif(tmp_path / "9.tif", optical(32, 32, seed=9), S2, transform=place(4))
    embed_patches(tiny_s2, [sources[0], elsewhere, *sources[1:]], tmp_path / "rows.npz", **QUIET)
    with np.load(tmp_path / "rows.npz") as rows:
        assert set(rows) == {"paths", "crs", "x", "y", "pixel_m", "s2"}
        found = dict(zip(rows["paths"].tolist(), rows["s2"], strict=True))
    assert len(found) == 4
    for source, data in zip(sources, dates, strict=True):
        expected = plain_pooled(tiny_s2, {"s2": data})["s2"]
        np.testing.assert_allclose(found[str(source)], expected, atol=1e-5)


def test_sizes_may_be_mixed(tiny_s2, tmp_path):
    shapes = [(32, 32), (32, 32), (48, 32), (8, 8), (32, 32), (32, 48)]
    patches = [optical(*shape, seed=i) for i, shape in enumerate(shapes)]
    sources = [
        write_tif(tmp_path / f"{i}.tif", data, S2, transform=place(i)) for i, data in enumerate(patches)
    ]
    embed_patches(tiny_s2, sources, tmp_path / "rows.npz", batch_size=3, **QUIET)
    with np.load(tmp_path / "rows.npz") as rows:
        assert rows["paths"].tolist() == [str(source) for source in sources]
        for row, data in zip(rows["s2"], patches, strict=True):
            np.testing.assert_allclose(row, plain_pooled(tiny_s2, {"s2": data})["s2"], atol=1e-5)


def test_a_patch_that_is_no_multiple_of_the_patch_size_is_named(tiny_s2, tmp_path):
    sources = [
        write_tif(tmp_path / "good.tif", optical(32, 32), S2, transform=place(0)),
        write_tif(tmp_path / "odd.tif", optical(30, 32), S2, transform=place(1)),
    ]
    with pytest.raises(ValueError, match=r"30 x 32 pixels, not a multiple of 8") as caught:
        embed_patches(tiny_s2, sources, tmp_path / "rows.npz", **QUIET)
    assert "odd.tif" in str(caught.value)
    assert not list(tmp_path.glob("*rows*"))


def test_a_patch_in_another_unit_is_named(tiny_s2, tmp_path):
    sources = [
        write_tif(tmp_path / "good.tif", optical(32, 32), S2, transform=place(0)),
        write_tif(
            tmp_path / "scaled.tif", (optical(32, 32) / 1e4).astype(np.float32), S2, transform=place(1)
        ),
    ]
    with pytest.raises(ValueError, match="look like reflectances") as caught:
        embed_patches(tiny_s2, sources, tmp_path / "rows.npz", **QUIET)
    assert "scaled.tif" in str(caught.value)


def test_patches_without_data_are_an_error_or_left_out(tiny, tmp_path):
    pairs = [write_pair(tmp_path, i) for i in range(3)]
    broken = pairs[1][2]["s1"].copy()
    broken[0, 3, 5] = broken[1, 3, 6] = np.nan
    write_tif(pairs[1][1], broken, S1, transform=place(1))
    sources = [path for a, b, _ in pairs for path in (a, b)]
    output = tmp_path / "rows.npz"
    with pytest.raises(ValueError, match=r"1_s2\.tif: 2 pixels have no data.*--skip-nodata"):
        embed_patches(tiny, sources, output, **QUIET)
    assert not output.exists()
    assert [*embed_patches(tiny, sources, output, skip_nodata=True, **QUIET)] == [pairs[1][0]]
    with np.load(output) as rows:
        assert rows["paths"].tolist() == [f"{a};{b}" for a, b, _ in (pairs[0], pairs[2])]
        expected = plain_pooled(tiny, pairs[2][2])["joint"]
        np.testing.assert_allclose(rows["joint"][1], expected, atol=1e-5)
    with pytest.raises(ValueError, match="no patch is left"):
        embed_patches(tiny, list(pairs[1][:2]), output, skip_nodata=True, **QUIET)


def test_nodata_of_the_argument_counts_for_patches(tiny_s2, tmp_path):
    data = optical(32, 32)
    data[4, 31, 31] = 60_001
    source = write_tif(tmp_path / "a.tif", data, S2)
    with pytest.raises(ValueError, match="1 pixels have no data"):
        embed_patches(tiny_s2, [source], tmp_path / "rows.npz", nodata=60_001, **QUIET)


def test_a_scene_among_patches_is_refused(tiny_s2, tmp_path):
    largest = write_tif(tmp_path / "patch.tif", optical(8, embed.MAX_PATCH_SIDE), S2)
    embed_patches(tiny_s2, [largest], tmp_path / "rows.npz", **QUIET)
    scene = write_tif(tmp_path / "scene.tif", optical(8, embed.MAX_PATCH_SIDE + 8), S2)
    with pytest.raises(ValueError, match=r"scene\.tif has 8 x 520 pixels.*\.tif"):
        embed_patches(tiny_s2, [scene], tmp_path / "rows.npz", **QUIET)


def test_a_missing_sensor_is_named(tiny, tmp_path):
    a, b, _ = write_pair(tmp_path, 0)
    alone, radar_alone, _ = write_pair(tmp_path, 1)
    with pytest.raises(ValueError, match=r"1_s2\.tif has no raster of s1 on its grid.*--modalities s2"):
        embed_patches(tiny, [a, b, alone], tmp_path / "rows.npz", **QUIET)
    with pytest.raises(ValueError, match=r"1_s1\.tif has no raster of s2 on its grid.*--modalities s1"):
        embed_patches(tiny, [a, b, radar_alone], tmp_path / "rows.npz", **QUIET)


def test_a_pair_of_grids_that_differ_by_rounding_is_a_pair(tiny, tmp_path):
    # embed_scene takes the two as one grid as well.
    images = {"s2": optical(32, 32), "s1": radar(32, 32)}
    shifted = from_origin(500_000 + 1e-4, 5_000_000, 10, 10)
    a = write_tif(tmp_path / "a.tif", images["s2"], S2)
    b = write_tif(tmp_path / "b.tif", images["s1"], S1, transform=shifted)
    embed_patches(tiny, [a, b], tmp_path / "rows.npz", **QUIET)
    with np.load(tmp_path / "rows.npz") as rows:
        np.testing.assert_allclose(rows["joint"][0], plain_pooled(tiny, images)["joint"], atol=1e-5)


def test_neighboring_places_are_not_one(tiny_s2, tiny, tmp_path):
    # In degrees a pixel is a small number, and so is the distance to the next place.
    step = 1e-4
    images = [{"s2": optical(8, 8, seed=i), "s1": radar(8, 8, seed=i)} for i in range(2)]
    sources = []
    for i, place_images in enumerate(images):
        grid = {"transform": from_origin(11 + 8 * step * i, 48, step, step), "crs": "EPSG:4326"}
        sources.append(write_tif(tmp_path / f"{i}a.tif", place_images["s2"], S2, **grid))
        sources.append(write_tif(tmp_path / f"{i}b.tif", place_images["s1"], S1, **grid))
    embed_patches(tiny, sources, tmp_path / "rows.npz", **QUIET)
    with np.load(tmp_path / "rows.npz") as rows:
        assert len(rows["joint"]) == 2
        np.testing.assert_allclose(rows["x"], [11 + 4 * step, 11 + 12 * step], rtol=1e-12)
        for row, place_images in zip(rows["joint"], images, strict=True):
            np.testing.assert_allclose(row, plain_pooled(tiny, place_images)["joint"], atol=1e-5)


def test_two_rasters_of_one_sensor_at_one_place_are_refused(tiny, tmp_path):
    a, b, _ = write_pair(tmp_path, 0)
    later = write_tif(tmp_path / "later.tif", optical(32, 32, seed=7), S2)
    with pytest.raises(ValueError, match=r"several rasters of s2 .*0_s2\.tif, 0_s1\.tif, later\.tif"):
        embed_patches(tiny, [a, b, later], tmp_path / "rows.npz", **QUIET)
    with pytest.raises(ValueError, match=r"several rasters of s2.*0_s2\.tif"):
        embed_patches(tiny, [a, b, a], tmp_path / "rows.npz", **QUIET)


def test_pictures_without_georeference_are_patches_of_their_own(tiny_s2, tmp_path):
    patches = [optical(32, 32, seed=i) for i in range(2)]
    sources = [
        write_tif(tmp_path / f"{i}.tif", data, S2, crs=None, transform=Affine.identity())
        for i, data in enumerate(patches)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        embed_patches(tiny_s2, sources, tmp_path / "rows.npz", **QUIET)
    with np.load(tmp_path / "rows.npz") as rows:
        assert rows["crs"].tolist() == ["", ""]
        for row, data in zip(rows["s2"], patches, strict=True):
            np.testing.assert_allclose(row, plain_pooled(tiny_s2, {"s2": data})["s2"], atol=1e-5)


def test_outputs_of_another_kind_are_refused(tiny_s2, tmp_path):
    source = write_tif(tmp_path / "a.tif", optical(32, 32), S2)
    with pytest.raises(ValueError, match=r"\.npz or \.parquet, got .*rows\.csv"):
        embed_patches(tiny_s2, [source], tmp_path / "rows.csv", **QUIET)
    with pytest.raises(ValueError, match="no folder"):
        embed_patches(tiny_s2, [source], tmp_path / "absent" / "rows.npz", **QUIET)
