"""Masks by classes: clouds of a scene classification count neither in a map nor in an embedding."""

import warnings

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin

import rsbackbones as rsb
from rsbackbones.cli import main
from rsbackbones.embed import embed_patches, embed_scene
from tests.data.test_rasters import GRID, S1, S2, write_tif
from tests.embed.test_embed import QUIET, optical, radar, read_map
from tests.models.test_pixel_masks import plain_cells

CLOUDS = {"SCL": (3, 8, 9, 10)}


@pytest.fixture(scope="module")
def model():
    return rsb.create_model("croma_vit_tiny", modalities=("s2",), bands={"s2": S2})


def classes(height, width, seed=0):
    """A scene classification: vegetation (4), ragged clouds (9) in the upper left, shadows here and there."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    scl = np.full((height, width), 4, np.uint16)
    scl[((rows - height / 4) ** 2 + (columns - width / 4) ** 2) < (min(height, width) / 4) ** 2] = 9
    scl[random.random((height, width)) < 0.05] = 3
    scl[3 * height // 4 :] = 5
    return scl


def test_a_scene_is_as_the_model_sees_it_with_a_pixel_mask(model, tmp_path):
    raw, scl = optical(64, 64), classes(64, 64)
    counts = ~np.isin(scl, CLOUDS["SCL"])
    both = write_tif(tmp_path / "a.tif", np.concatenate([raw, scl[None]]), [*S2, "SCL"])
    found = read_map(embed_scene(model, [both], tmp_path / "m.tif", mask=CLOUDS, window=64, **QUIET))
    preprocess = rsb.create_preprocess(model)
    with torch.inference_mode():
        valid = {"s2": counts[None]}
        want = (
            model.forward_features({"s2": preprocess(raw[None])}, valid=valid)
            .maps()[0]
            .permute(1, 2, 0)
            .numpy()
        )
    np.testing.assert_allclose(found, want, atol=1e-5, equal_nan=True)
    assert np.array_equal(np.isnan(found).all(axis=-1), plain_cells(counts, 8) < 0.5)
    with rasterio.open(tmp_path / "m.tif") as raster:
        assert float(raster.tags()["valid_share"]) == pytest.approx(counts.mean(), abs=1e-6)
        assert np.isnan(raster.nodata)
    # Whatever the clouds' values are.
    raw[:, ~counts] = 50_000
    write_tif(both, np.concatenate([raw, scl[None]]), [*S2, "SCL"])
    again = read_map(embed_scene(model, [both], tmp_path / "m.tif", mask=CLOUDS, window=64, **QUIET))
    np.testing.assert_array_equal(again, found)


def test_windows_without_masked_pixels_are_bit_for_bit_as_without_a_mask(model, tmp_path):
    raw, scl = optical(64, 160), np.full((64, 160), 4, np.uint16)
    scl[:, :24] = 9
    raw[:, 50:54, 100:104] = 0  # no data
    path = write_tif(tmp_path / "a.tif", np.concatenate([raw, scl[None]]), [*S2, "SCL"], nodata=0)
    options = {"window": 32, "overlap": 8, **QUIET}
    plain = read_map(embed_scene(model, [path], tmp_path / "p.tif", **options))
    found = read_map(embed_scene(model, [path], tmp_path / "m.tif", mask=CLOUDS, **options))
    assert np.isnan(found[:, :3]).all()
    np.testing.assert_array_equal(found[:, 4:], plain[:, 4:])
    none = read_map(embed_scene(model, [path], tmp_path / "n.tif", mask={"SCL": [1]}, **options))
    np.testing.assert_array_equal(none, plain)


@pytest.mark.parametrize("pixel", [10, 20, 60])
def test_another_raster_of_any_grid_is_resampled_by_nearest_neighbor(model, tmp_path, pixel):
    raw, factor = optical(96, 96), pixel // 10
    scl = classes(96 // factor + 2, 96 // factor + 2).astype(np.uint8)  # one pixel larger on every side
    at = from_origin(GRID.c - pixel, GRID.f + pixel, pixel, pixel)
    write_tif(tmp_path / "scl.tif", scl[None], ["SCL"], transform=at)
    path = write_tif(tmp_path / "a.tif", raw, S2)
    fine = scl.repeat(factor, 0).repeat(factor, 1)[factor:-factor, factor:-factor]
    both = write_tif(tmp_path / "b.tif", np.concatenate([raw, fine[None]]), [*S2, "SCL"])
    want = read_map(embed_scene(model, [both], tmp_path / "w.tif", mask=CLOUDS, **QUIET))
    key = str(tmp_path / "scl.tif")
    with pytest.warns(UserWarning, match=f"from pixels of {pixel} "):
        found = read_map(embed_scene(model, [path], tmp_path / "m.tif", mask={key: (3, 8, 9, 10)}, **QUIET))
    np.testing.assert_array_equal(found, want)


def test_pixels_beyond_a_mask_do_not_count(model, tmp_path):
    path = write_tif(tmp_path / "a.tif", optical(64, 64), S2)
    write_tif(tmp_path / "scl.tif", np.full((1, 32, 64), 4, np.uint8), ["SCL"])
    with pytest.warns(UserWarning, match="nearest neighbor"):
        embed_scene(model, [path], tmp_path / "m.tif", mask={str(tmp_path / "scl.tif"): [9]}, **QUIET)
    hidden = np.isnan(read_map(tmp_path / "m.tif")).all(axis=-1)
    assert hidden[4:].all()
    assert not hidden[:4].any()


def test_patches_have_their_share_beside_the_embedding(model, tmp_path):
    masks, paths = [], []
    for i in range(3):
        scl = classes(48, 48, seed=i) if i < 2 else np.full((48, 48), 9, np.uint16)
        transform = from_origin(5e5 + 1000 * i, 5e6, 10, 10)
        data = np.concatenate([optical(48, 48, seed=i), scl[None]])
        paths.append(write_tif(tmp_path / f"{i}.tif", data, [*S2, "SCL"], transform=transform))
        masks.append(~np.isin(scl, CLOUDS["SCL"]))
    with pytest.warns(UserWarning, match="1 of 3 patches have no cell"):
        embed_patches(model, paths, tmp_path / "e.npz", mask=CLOUDS, **QUIET)
    found = np.load(tmp_path / "e.npz")
    np.testing.assert_allclose(found["valid_share"], [mask.mean() for mask in masks], atol=1e-6)
    preprocess = rsb.create_preprocess(model)
    for i in range(2):
        x = {"s2": preprocess(optical(48, 48, seed=i)[None])}
        with torch.inference_mode():
            want = model.forward_features(x, valid={"s2": masks[i][None]}).pooled["s2"][0]
        np.testing.assert_allclose(found["s2"][i], want, atol=1e-5)
    assert np.isnan(found["s2"][2]).all()


def test_the_clouds_of_one_sensor_leave_the_other(tmp_path):
    model = rsb.create_model("croma_vit_tiny", bands={"s2": S2, "s1": S1})
    scl = classes(64, 64)
    optic = write_tif(tmp_path / "a.tif", np.concatenate([optical(64, 64), scl[None]]), [*S2, "SCL"])
    sar = write_tif(tmp_path / "b.tif", radar(64, 64), S1)
    options = {"window": 64, **QUIET}
    for stream, hidden in (("s1", False), ("s2", True), ("joint", True)):
        output = tmp_path / f"{stream}.tif"
        found = read_map(embed_scene(model, [optic, sar], output, mask=CLOUDS, stream=stream, **options))
        assert np.isnan(found).any() == hidden
        with rasterio.open(output) as raster:
            assert (float(raster.tags()["valid_share"]) < 1) == hidden
    by_sar = {"s1:SCL": CLOUDS["SCL"]}
    found = read_map(
        embed_scene(model, [optic, sar], tmp_path / "x.tif", mask=by_sar, stream="s1", **options)
    )
    assert np.isnan(found).any()


def test_the_command_line_and_an_unfinished_run_of_another_mask(tmp_path, capsys, monkeypatch):
    scl = classes(64, 64)
    path = write_tif(tmp_path / "a.tif", np.concatenate([optical(64, 64), scl[None]]), [*S2, "SCL"])
    command = ["embed", str(path), "--model", "croma_vit_tiny", "--no-pretrained", "--no-progress"]
    command += ["--allow-dropped-bands", "--output", str(tmp_path / "m.tif"), "--device", "cpu"]
    assert main([*command, "--mask", "SCL=3,8-10"]) == 0
    share = (~np.isin(scl, CLOUDS["SCL"])).mean()
    assert f"{share:.1%} of the pixels have data and count" in capsys.readouterr().err
    first = read_map(tmp_path / "m.tif")
    names = ",".join([*S2, "SCL"])  # named by the user
    assert main([*command, "--mask", "SCL=3,8-10", "--bands", names]) == 0
    np.testing.assert_array_equal(read_map(tmp_path / "m.tif"), first)
    assert main([*command, "--mask", "CLD=3"]) == 2
    assert "'CLD': it is no file, and no band of the rasters" in capsys.readouterr().err
    assert main([*command, "--mask", "SCL=clouds"]) == 2
    assert "such as 3,8-10" in capsys.readouterr().err

    def fail(*_, **__):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr("rsbackbones.embed.scene.write_map", fail)
        with pytest.raises(RuntimeError, match="killed"):
            main([*command, "--mask", "SCL=9"])
    assert main([*command, "--mask", "SCL=3"]) == 2
    assert "other inputs or settings" in capsys.readouterr().err


def test_masks_of_coarse_rasters_are_read_by_nearest_neighbor_whatever_resamples_bands(tmp_path):
    fine, coarse = S2[:6], S2[6:]
    model = rsb.create_model("croma_vit_tiny", modalities=("s2",), bands={"s2": S2})
    ten, twenty, scl = optical(64, 64)[:6], optical(32, 32, seed=1)[6:], classes(32, 32)
    half = from_origin(GRID.c, GRID.f, 20, 20)
    paths = [write_tif(tmp_path / "ten.tif", ten, fine)]
    data = np.concatenate([twenty, scl[None]]).astype(np.uint16)
    paths.append(write_tif(tmp_path / "twenty.tif", data, [*coarse, "SCL"], transform=half))
    counts = ~np.isin(scl, CLOUDS["SCL"]).repeat(2, 0).repeat(2, 1)
    options = {"mask": CLOUDS, "resample": "bilinear", **QUIET}
    found = read_map(embed_scene(model, paths, tmp_path / "m.tif", window=64, **options))
    assert np.array_equal(np.isnan(found).all(axis=-1), plain_cells(counts, 8) < 0.5)
    assert embed_patches(model, paths, tmp_path / "e.npz", **options) == {}
    with np.load(tmp_path / "e.npz") as table:
        np.testing.assert_allclose(table["valid_share"], [counts.mean()], atol=1e-6)
        assert table["paths"].tolist() == [";".join(map(str, paths))]


@pytest.mark.parametrize("suffix", [".tif", ".npz"])
def test_an_unfinished_run_is_not_continued_with_a_changed_mask_file(model, tmp_path, monkeypatch, suffix):
    path = write_tif(tmp_path / "a.tif", optical(64, 64), S2)
    scl = write_tif(tmp_path / "scl.tif", classes(64, 64)[None].astype(np.uint8), ["SCL"])
    run, place = (
        (embed_scene, "scene.write_map") if suffix == ".tif" else (embed_patches, "patches._write_table")
    )
    options = {"mask": {str(scl): [9]}, **QUIET}

    def fail(*_, **__):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(f"rsbackbones.embed.{place}", fail)
        with pytest.raises(RuntimeError, match="killed"):
            run(model, [path], tmp_path / f"m{suffix}", **options)
    write_tif(scl, classes(64, 64, seed=1)[None].astype(np.uint16), ["SCL"])
    with pytest.raises(ValueError, match="other inputs or settings"):
        run(model, [path], tmp_path / f"m{suffix}", **options)


def test_bands_of_masks_may_be_among_names_and_others_left_out(model, tmp_path):
    raw, scl = optical(48, 48), classes(48, 48)
    data = np.concatenate([scl[None], raw, scl[None]])
    path = write_tif(tmp_path / "a.tif", data, [None] * len(data))
    names = [["-", *S2, "scl"]]
    embed_patches(model, [path], tmp_path / "e.npz", bands=names, mask=CLOUDS, **QUIET)
    with np.load(tmp_path / "e.npz") as table:
        np.testing.assert_allclose(table["valid_share"], [(~np.isin(scl, CLOUDS["SCL"])).mean()], atol=1e-6)


def test_complex_rasters_are_refused(model, tmp_path):
    data = (np.ones((12, 16, 16)) + 1j).astype(np.complex64)
    path = write_tif(tmp_path / "slc.tif", data, S2)
    with pytest.raises(ValueError, match=r"SLC.*calibrate.*intensity"):
        embed_scene(model, [path], tmp_path / "m.tif", **QUIET)


def test_clouds_of_a_real_series(tmp_path, real_data):
    """Five dates with their cloud probability: what is cloudy is NaN, and what is not is there."""
    stored = np.load(real_data / "ravaen_lahinch_5dates.npz")
    images, clouds = stored["s2"], stored["cloud_probability"]
    date = 3
    assert 0.2 < (clouds[date] >= 50).mean() < 0.8
    names = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12"]
    data = np.concatenate([images[date], clouds[date][None]]).astype(np.uint16)
    path = write_tif(tmp_path / "a.tif", data, [*names, "CLD"])
    model = rsb.create_model("croma_vit_tiny", pretrained=True, modalities=("s2",))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        embed_scene(model, [path], tmp_path / "m.tif", mask={"CLD": range(50, 256)}, **QUIET)
    rows, columns = (side // 8 for side in images.shape[-2:])
    cloudy = plain_cells(data[-1, : rows * 8, : columns * 8] < 50, 8) < 0.5
    found = read_map(tmp_path / "m.tif")
    assert np.array_equal(np.isnan(found).all(axis=-1), cloudy)
