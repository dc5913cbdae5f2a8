"""Rasters of other sensors, 8-bit pictures and odd sizes: features are those of the arrays in the files."""

import csv

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin

import rsbackbones as rsb
from rsbackbones.cli import main
from rsbackbones.data.labelled import open_labelled
from rsbackbones.data.open import open_source
from rsbackbones.data.rasters import RasterStack, find_bands
from rsbackbones.embed import embed_patches, embed_scene
from rsbackbones.eval.encode import encode
from rsbackbones.eval.feature_source import model_for
from rsbackbones.input_spec import RGB8
from tests.data.test_rasters import GRID, S2, write_tif
from tests.embed.test_embed import read_map

LANDSAT = ("B1", "B2", "B3", "B4", "B5", "B6", "B7")
QUIET = {"progress": False}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of weights for the twelve bands of Sentinel-2."""
    torch.manual_seed(3)
    model = rsb.create_model("croma_vit_tiny", modalities=("s2",))
    return rsb.save_model(model, tmp_path_factory.mktemp("weights") / "s2.safetensors")


@pytest.fixture
def run(capsys, weights):
    """Run `rsbackbones embed` with these weights or others; return its exit code and what it said."""

    def run(*arguments):
        given = list(map(str, arguments))
        which = [] if {"--checkpoint", "--no-pretrained"} & set(given) else ["--checkpoint", str(weights)]
        code = main(["embed", *given, "--model", "croma_vit_tiny", *which, "--no-progress"])
        return code, capsys.readouterr().err

    return run


def noise(bands, height=32, width=48, seed=0, high=4000, dtype=np.uint16):
    return np.random.default_rng(seed).integers(200, high, (bands, height, width)).astype(dtype)


def picture(height=32, width=48, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (3, height, width)).astype(np.uint8)


def build(weights=None, **options):
    """The small model, of these weights or of random ones as the command makes them."""
    torch.manual_seed(0)
    return rsb.create_model("croma_vit_tiny", checkpoint=weights, modalities=("s2",), **options)


def features_of(model, data, **options):
    """Maps [h, w, D] and embedding [D] of one array, through the public API alone."""
    images = rsb.create_preprocess(model, **options)({"s2": data[None]})
    with torch.inference_mode():
        found = model.forward_features(images)
    return found.maps("s2")[0].permute(1, 2, 0).numpy(), found.pooled["s2"][0].numpy()


def assert_embeds(run, source, options, expected, folder):
    """Both kinds of output of the command are these features."""
    code, err = run(source, *options, "--output", folder / "map.tif")
    assert code == 0, err
    np.testing.assert_allclose(read_map(folder / "map.tif"), expected[0], atol=1e-5)
    code, err = run(source, *options, "--output", folder / "rows.npz")
    assert code == 0, err
    with np.load(folder / "rows.npz") as rows:
        np.testing.assert_allclose(rows["s2"][0], expected[1], atol=1e-5)
    return err


# -- bands are looked up by sensor --------------------------------------------------------------------


def test_names_mean_what_they_mean_to_the_sensor(tmp_path):
    path = write_tif(tmp_path / "landsat.tif", noise(4), ("B5", "SR_B4", "QA", "coastal"))
    found = find_bands(path, {"s2": "landsat_oli", "s1": "s1"})
    assert found == ({"s2": {"B5": 1, "B4": 2, "B1": 4}}, ["QA"])
    with RasterStack([path], {"s2": "landsat_oli"}, wanted={"s2": ("B4",)}) as stack:
        assert stack.bands == {"s2": ("B4",)}
    twice = write_tif(tmp_path / "twice.tif", noise(2), ("B5", "nir"))
    with pytest.raises(ValueError, match=r"two bands are s2 \(landsat_oli\) B5: B5, nir"):
        find_bands(twice, {"s2": "landsat_oli"})
    with pytest.raises(ValueError, match=r"s2 \(landsat_oli\) B4 is in .* and in another raster"):
        RasterStack([path, path], {"s2": "landsat_oli"}, wanted={"s2": ("B4",)})


def test_names_of_another_sensor_are_told_by_it(tmp_path):
    path = write_tif(tmp_path / "landsat.tif", noise(2), ("SR_B4", "SR_B5"))
    with pytest.raises(ValueError, match=r"none of the sensors s2; .*--sensors s2=landsat_oli\)") as error:
        find_bands(path, ("s2",))
    # B5 is near infrared for OLI and short-wave infrared for TM: the names alone do not tell.
    for sensor in ("landsat_tm", "landsat_etm", "landsat_oli", "landsat_oli_tirs"):
        assert f"(--sensors s2={sensor})" in str(error.value)
    dove = write_tif(tmp_path / "dove.tif", noise(2), ("rededge", "yellow"))
    with pytest.raises(
        ValueError, match=r"none of the sensors s1, s2 \(landsat_oli\); .*--sensors s2=superdove"
    ):
        find_bands(dove, {"s1": "s1", "s2": "landsat_oli"})


def test_rasters_without_a_wanted_band_are_refused(tmp_path):
    path = write_tif(tmp_path / "red.tif", noise(1), ("B04",))
    with pytest.raises(ValueError, match=r"red\.tif: no band is one of those wanted: s2 B08"):
        RasterStack([path], ("s2",), wanted={"s2": ("B08",)})
    model = build(bands={"s2": ("B08",)})
    with pytest.raises(ValueError, match="s2 B08"):
        embed_scene(model, [path], tmp_path / "map.tif", **QUIET)
    with pytest.raises(ValueError, match="s2 B08"):
        embed_patches(model, [path], tmp_path / "rows.npz", **QUIET)


# -- other sensors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("random", [True, False])
def test_landsat_scenes_meet_the_weights_by_wavelength(run, tmp_path, weights, random):
    data = noise(7)
    order = [6, 0, 3, 1, 2, 5, 4]
    source = write_tif(tmp_path / "scene.tif", data[order], [f"SR_{LANDSAT[i]}" for i in order])
    model = build(None if random else weights, sensors={"s2": "landsat_oli"}, bands={"s2": LANDSAT})
    options = ["--sensors", "s2=landsat_oli", *(["--no-pretrained"] if random else [])]
    err = assert_embeds(run, source, options, features_of(model, data), tmp_path)
    assert "s2: read as Landsat-8 and Landsat-9 OLI: B1, B2, B3, B4, B5, B6, B7" in err


def test_scale_and_the_units_of_landsat(run, tmp_path, weights):
    data = noise(7, high=6000)
    stored = np.round((data / 10000 + 0.2) / 0.0000275).astype(np.uint16)
    source = write_tif(tmp_path / "scene.tif", stored, LANDSAT)
    model = build(weights, sensors={"s2": "landsat_oli"}, bands={"s2": LANDSAT}, kernel_scale="sqrt")
    expected = features_of(model, stored, units={"s2": "landsat_c2"})
    options = ["--sensors", "s2=landsat_oli", "--kernel-scale", "sqrt", "--units", "s2=landsat_c2"]
    assert_embeds(run, source, options, expected, tmp_path)
    # The tags that say the same: what is read are reflectances.
    with rasterio.open(source, "r+") as raster:
        raster.scales, raster.offsets = (0.0000275,) * 7, (-0.2,) * 7
    code, err = run(source, *options[:4], "--units", "s2=reflectance",
                    "--output", tmp_path / "map.tif")  # fmt: skip
    assert code == 0, err
    np.testing.assert_allclose(read_map(tmp_path / "map.tif"), expected[0], atol=0.02)  # steps of 8 bits


def test_a_checkpoint_of_landsat_says_so_itself(run, tmp_path, weights):
    model = build(weights, sensors={"s2": "landsat_oli"}, bands={"s2": LANDSAT[1:]})
    file = rsb.save_model(model, tmp_path / "landsat.safetensors")
    data = noise(7)
    source = write_tif(tmp_path / "scene.tif", data, LANDSAT)
    expected = features_of(model, data, bands={"s2": LANDSAT})
    err = assert_embeds(run, source, ["--checkpoint", file], expected, tmp_path)
    assert "scene.tif: not used: B1" in err
    # Sentinel-2 is another sensor to these weights.
    data = noise(12)
    source = write_tif(tmp_path / "scene.tif", data, S2)
    other = rsb.create_model(
        "croma_vit_tiny", checkpoint=file, sensors={"s2": "s2"}, bands={"s2": S2}, missing_bands="nearest"
    )
    options = ["--checkpoint", file, "--sensors", "s2=s2", "--missing-bands", "nearest"]
    assert_embeds(run, source, options, features_of(other, data), tmp_path)


def test_patches_of_superdove_through_python(tmp_path, weights):
    names = ("coastal_blue", "blue", "green_i", "green", "yellow", "red", "rededge", "nir")
    model = build(weights, sensors={"s2": "superdove"}, missing_bands="nearest")
    data = [noise(8, seed=i) for i in range(2)]
    sources = [write_tif(tmp_path / f"{i}.tif", x, names) for i, x in enumerate(data)]
    embed_patches(model, sources, tmp_path / "rows.npz", **QUIET)
    with np.load(tmp_path / "rows.npz") as rows:
        for row, x in zip(rows["s2"], data, strict=True):
            np.testing.assert_allclose(row, features_of(model, x)[1], atol=1e-5)


def test_what_a_band_gets_that_the_weights_lack(run, tmp_path, weights):
    names = (*LANDSAT, "pan")
    data = noise(8)
    source = write_tif(tmp_path / "scene.tif", data, names)
    options = ["--sensors", "s2=landsat_oli"]
    code, err = run(source, *options, "--output", tmp_path / "map.tif")
    assert code == 2
    assert "B8" in err.splitlines()[-1]
    model = build(
        weights, sensors={"s2": "landsat_oli"}, bands={"s2": (*LANDSAT, "B8")}, missing_bands="nearest"
    )
    assert_embeds(run, source, [*options, "--missing-bands", "nearest"], features_of(model, data), tmp_path)

    # A band of the weights' own sensor is left alone, unless it is said what it gets.
    data = noise(13)
    source = write_tif(tmp_path / "scene.tif", data, (*S2[:10], "B10", *S2[10:]))
    plain = features_of(build(weights), np.delete(data, 10, axis=0))
    assert "not used: B10" in assert_embeds(run, source, [], plain, tmp_path)
    model = build(weights, bands={"s2": (*S2, "B10")}, missing_bands="nearest")
    expected = features_of(model, data, bands={"s2": (*S2[:10], "B10", *S2[10:])})
    assert "not used" not in assert_embeds(run, source, ["--missing-bands", "nearest"], expected, tmp_path)


def test_bands_that_the_rasters_lack_advise_the_sensor(run, tmp_path):
    # Landsat's names are names of Sentinel-2 too.
    source = write_tif(tmp_path / "scene.tif", noise(7), LANDSAT)
    output = ["--output", tmp_path / "map.tif"]
    code, err = run(source, *output)
    assert code == 2
    assert "--allow-dropped-bands" in err
    assert "--sensors s2=" in err
    code, err = run(source, *output, "--allow-dropped-bands")
    assert code == 0
    assert "s2: read as Sentinel-2 MSI: B01, B02, B03, B04, B05, B06, B07" in err
    code, err = run(source, *output, "--sensors", "s2=landsat_oli", "--missing-bands", "none")
    assert code == 2
    assert "'--missing-bands': 'none' is not one of" in err
    for wrong, words in [("s3=landsat_oli", "not s3"), ("s2=landsat", "unknown sensor 'landsat'"),
                         ("s1=s1", "no raster holds bands of s1")]:  # fmt: skip
        code, err = run(source, *output, "--no-pretrained", "--sensors", wrong)
        assert code == 2
        assert words in err
    code, err = run(write_tif(tmp_path / "b10.tif", noise(1), ["B10"]), *output)
    assert code == 2
    assert "--missing-bands nearest" in err


def test_unused_bands_are_said_once_for_all_files(run, tmp_path):
    for i in range(4):
        names = (*S2, "SCL") if i < 3 else (*S2, "AOT")
        write_tif(tmp_path / f"{i}.tif", noise(13, seed=i), names, transform=from_origin(i * 9000, 0, 10, 10))
    for name in ("rows.npz", "rows.parquet"):
        code, err = run(tmp_path, "--output", tmp_path / name)
        assert code == 0, err
        lines = [line for line in err.splitlines() if "not used" in line]
        assert lines == ["0.tif and 2 more: not used: SCL", "3.tif: not used: AOT"]


# -- 8-bit rasters ------------------------------------------------------------------------------------

REFUSED = r"8bit\.tif: s2.*: 8-bit values are a picture, not digital numbers; .*rgb8"


def test_8_bit_values_are_refused_wherever_rasters_are_read(run, tmp_path):
    path = write_tif(tmp_path / "8bit.tif", picture(), ("B04", "B03", "B02"))
    model = build(bands={"s2": ("B04", "B03", "B02")})
    with pytest.raises(ValueError, match=REFUSED):
        embed_scene(model, [path], tmp_path / "map.tif", **QUIET)
    with pytest.raises(ValueError, match=REFUSED):
        embed_patches(model, [path], tmp_path / "rows.npz", **QUIET)
    code, err = run(path, "--allow-dropped-bands", "--output", tmp_path / "m.tif")
    assert code == 2
    assert "--units s2=rgb8" in err
    with pytest.raises(ValueError, match=r"s2 \(rgb\): 8-bit"):
        find_bands(path, {"s2": "rgb"})

    (tmp_path / "labels.csv").write_text("path,label\n8bit.tif,a\n")
    with pytest.raises(ValueError, match=REFUSED):
        open_labelled(tmp_path)
    for name in ("a", "b"):
        (tmp_path / "folders" / name).mkdir(parents=True)
        write_tif(tmp_path / "folders" / name / "8bit.tif", picture(), ("B04", "B03", "B02"))
    with pytest.raises(ValueError, match=REFUSED):
        open_labelled(tmp_path / "folders")
    rows = ["path,label,split", "8bit.tif,a,test", *(f"folders/{x}/8bit.tif,{x},train" for x in "ab")]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    pictures = open_labelled(tmp_path, sensors={"s2": "rgb"}, units={"s2": RGB8})
    assert (pictures.bands, pictures.units) == ({"s2": ("B04", "B03", "B02")}, {"s2": RGB8})
    np.testing.assert_array_equal(pictures.read(0)["s2"], picture())
    with pytest.raises(ValueError, match=REFUSED):
        open_source(tmp_path / "folders" / "a")
    source = open_source(tmp_path / "folders" / "a", named={"s2": RGB8})
    np.testing.assert_array_equal(source.read(0, 0).images["s2"], picture())


def test_8_bit_values_that_tags_or_the_user_explain_are_read(tmp_path):
    data = picture()
    path = write_tif(tmp_path / "8bit.tif", data, ("B04", "B03", "B02"))
    with RasterStack([path], ("s2",), units={"s2": "dn"}) as stack:
        np.testing.assert_array_equal(stack.read()[0]["s2"], data)
    with pytest.raises(ValueError, match=REFUSED):
        RasterStack([path], ("s2",), units={"s1": "db"})
    with rasterio.open(path, "r+") as raster:
        raster.scales = (1 / 250,) * 3
    model = build(bands={"s2": ("B04", "B03", "B02")})
    embed_patches(model, [path], tmp_path / "rows.npz", units={"s2": "reflectance"}, **QUIET)
    with np.load(tmp_path / "rows.npz") as rows:
        _, expected = features_of(
            model, data.astype(np.float32) / np.float32(250), units={"s2": "reflectance"}
        )
        np.testing.assert_allclose(rows["s2"][0], expected, atol=1e-2)  # steps of 8 bits


def test_a_picture_has_the_features_that_evaluation_gives_it(run, tmp_path, weights):
    data = picture()
    (tmp_path / "set").mkdir()
    write_tif(tmp_path / "set" / "p.tif", data)
    for i, name in enumerate(("q.tif", "r.tif"), start=1):
        write_tif(tmp_path / "set" / name, picture(seed=i))
    with (tmp_path / "set" / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [
                ("path", "label", "split"),
                ("p.tif", "a", "test"),
                ("q.tif", "a", "train"),
                ("r.tif", "b", "train"),
            ]
        )
    evaluated = open_labelled(tmp_path / "set", classes=("a", "b"))
    assert evaluated.units == {"s2": RGB8}
    expected = (
        encode(model_for(evaluated, "croma_vit_tiny", checkpoint=weights), evaluated).stream("s2").features
    )

    described = write_tif(tmp_path / "described.tif", data, ("red", "green", "blue"))
    options = ["--sensors", "s2=rgb", "--units", "s2=rgb8"]
    model = build(weights, sensors={"s2": "rgb"})
    images = rsb.create_preprocess(model)(data[None].astype(np.float32) / 255 * 2750)
    with torch.inference_mode():
        plain = model.forward_features(images)
    maps = plain.maps("s2")[0].permute(1, 2, 0).numpy()
    assert_embeds(run, described, options, (maps, plain.pooled["s2"][0].numpy()), tmp_path)
    for source, more in [
        (described, options),
        (tmp_path / "set" / "p.tif", [*options, "--bands", "red,green,blue"]),
        (described, ["--units", "s2=rgb8", "--allow-dropped-bands"]),  # as three bands of Sentinel-2
    ]:
        code, err = run(source, *more, "--output", tmp_path / "rows.npz")
        assert code == 0, err
        with np.load(tmp_path / "rows.npz") as rows:
            np.testing.assert_allclose(rows["s2"][0], np.asarray(expected)[0], atol=1e-5)


# -- sizes that are no multiple of the patch ----------------------------------------------------------


def test_a_model_that_pads_covers_odd_sizes(run, tmp_path, weights):
    model = build(weights, pad=True)
    data = noise(12, 30, 43)
    source = write_tif(tmp_path / "odd.tif", data, S2)
    expected = features_of(model, data)
    assert expected[0].shape == (4, 6, 96)
    assert_embeds(run, source, ["--pad"], expected, tmp_path)
    with rasterio.open(tmp_path / "map.tif") as raster:
        assert raster.transform == GRID * GRID.scale(8)
    small = write_tif(tmp_path / "small.tif", noise(12, 5, 7), S2)
    for output, words in [("map.tif", "the model needs 8 or more"), ("rows.npz", "not a multiple")]:
        code, err = run(small, "--output", tmp_path / output)
        assert code == 2
        assert words in err
        assert "--pad" in err
    assert_embeds(run, small, ["--pad"], features_of(model, noise(12, 5, 7)), tmp_path)


def test_windows_at_the_edge_are_padded_as_the_model_pads_them(tmp_path, weights):
    model = build(weights, pad=True)
    data = noise(12, 30, 43)
    data[:, 29, 42] = 0
    source = write_tif(tmp_path / "odd.tif", data, S2, nodata=0)
    embed_scene(model, [source], tmp_path / "map.tif", window=16, overlap=0, batch_size=3, **QUIET)
    found = read_map(tmp_path / "map.tif")
    assert found.shape == (4, 6, 96)
    # The patch in the corner has a pixel without data; the windows are 2 x 2 patches.
    assert np.isnan(found[3, 5]).all()
    assert np.isfinite(np.delete(found.reshape(24, 96), 23, axis=0)).all()
    for top in (0, 2):
        for left in (0, 2):
            part = data[:, top * 8 : top * 8 + 16, left * 8 : left * 8 + 16]
            expected, _ = features_of(model, part)
            np.testing.assert_allclose(found[top : top + 2, left : left + 2], expected, atol=1e-5)
    assert_same = features_of(model, data[:, :16, 32:])[0]  # 11 pixels wide
    np.testing.assert_allclose(found[:2, 4:], assert_same, atol=1e-5)
