"""Thermal bands of Landsat that are no kelvin: Python, scenes, patches, evaluation, and training by tags."""

import re
import warnings

import numpy as np
import pytest
import rasterio

import rsbackbones as rsb
from rsbackbones.data.labelled.dataset import LabelledDataset
from rsbackbones.embed import embed_patches, embed_scene
from rsbackbones.eval.batches import input_batches
from rsbackbones.input_spec import InputSpec
from rsbackbones.preprocess import preprocess_for
from rsbackbones.train.engine.config_io import apply_overrides
from rsbackbones.train.streams import open_sources
from rsbackbones.zoo.manifest import find_entry
from tests.data.test_rasters import write_tif
from tests.train.training import small_recipe

BANDS = ("B2", "B4", "B5", "B10")
SENSOR = "landsat_oli_tirs"
DRAW = np.random.default_rng(0)
REFLECTANCE = DRAW.gamma(2, 0.06, (3, 64, 64)).clip(0.005, 1)
KELVIN = DRAW.normal(295, 6, (1, 64, 64))
C2 = ((REFLECTANCE + 0.2) / 0.0000275).round(), ((KELVIN - 149) / 0.00341802).round()
GAPS = np.arange(64) < 8


def image(optical, thermal):
    return np.concatenate([optical, thermal]).astype(np.float32)


# name: unit, values, and what is said of them (None: they are right).
CASES = {
    "kelvin beside dn": (None, image(REFLECTANCE * 1e4, KELVIN), None),
    "kelvin beside reflectance": ("reflectance", image(REFLECTANCE, KELVIN), None),
    "Collection 2": ("landsat_c2", image(*C2), None),
    "Celsius beside dn": (None, image(REFLECTANCE * 1e4, KELVIN - 273.15), "degrees Celsius + 273.15"),
    "Celsius beside reflectance": ("reflectance", image(REFLECTANCE, KELVIN - 273.15), "'reflectance'"),
    "Celsius beside Collection 2": ("landsat_c2", image(C2[0], KELVIN - 273.15), "x 0.00341802 + 149 kelvin"),
    "kelvin beside Collection 2": ("landsat_c2", image(C2[0], KELVIN), "no temperatures"),
    "kelvin x 10": (None, image(REFLECTANCE * 1e4, KELVIN * 10), "no temperatures"),
    "Collection 2 beside dn": (None, image(REFLECTANCE * 1e4, C2[1]), "number x 0.00341802 + 149"),
    "zero without data": (None, image(REFLECTANCE * 1e4, np.where(GAPS, 0, KELVIN)), "nodata=0"),
    "-9999 without data": ("reflectance", image(REFLECTANCE, np.where(GAPS, -9999, KELVIN)), "nodata=-9999"),
    "zero of Collection 2": ("landsat_c2", image(C2[0], np.where(GAPS, 0, C2[1])), "nodata=0"),
}


@pytest.fixture(scope="module")
def model():
    """With the statistics of near infrared for the band that they lack."""
    made = rsb.create_model(
        "croma_vit_tiny", modalities=("s2",), sensors={"s2": SENSOR}, bands={"s2": BANDS},
        overrides={"depth": 2, "dim": 32, "num_heads": 4},
    )  # fmt: skip
    rows = made.inputs["s2"].rows
    heat = {"B10": type(rows["B5"])(290.0, 15.0)}
    made.inputs = {"s2": made.inputs["s2"].with_rows({b: (rows | heat)[b] for b in BANDS})}
    return made


def run_python(model, unit, x, folder):
    rsb.create_preprocess(model, units={"s2": unit} if unit else {})({"s2": x[None]})


def run_scene(model, unit, x, folder):
    units = {"s2": unit} if unit else {}
    embed_scene(
        model, [write_tif(folder / "x.tif", x, BANDS)], folder / "map.tif", units=units, progress=False
    )


def run_patches(model, unit, x, folder):
    units = {"s2": unit} if unit else {}
    embed_patches(
        model, [write_tif(folder / "x.tif", x, BANDS)], folder / "x.npz", units=units, progress=False
    )


def run_eval(model, unit, x, folder):
    data = LabelledDataset(
        name="x", task="classes", classes=("a", "b"), bands={"s2": BANDS}, sensors={"s2": SENSOR},
        units={"s2": unit} if unit else {}, ids=("x",), splits={"train": np.array([0])},
        labels=np.array([0]), read=lambda _: {"s2": x}, digest="x",
    )  # fmt: skip
    list(input_batches(model, data, "train", batch_size=1))


def streams(folder, model, **options):
    return open_sources(apply_overrides(small_recipe(folder), {
        "data.parts": [], "overrides.modalities": '["s2"]', "overrides.sensors.s2": SENSOR, "epochs": 1,
        **options,
    }), model)  # fmt: skip


def run_training(model, unit, x, folder):
    (folder / SENSOR).mkdir()
    write_tif(folder / SENSOR / "x.tif", x, BANDS)
    streams(folder, model, **({"data.units.s2": unit} if unit else {}))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("route", [run_python, run_scene, run_patches, run_eval, run_training])
def test_temperatures_are_kelvin(route, name, model, tmp_path):
    unit, x, said = CASES[name]
    if said is None:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            warnings.filterwarnings("ignore", message=".*pixels are 10 m wide")
            route(model, unit, x, tmp_path)
        return
    with pytest.raises(ValueError, match=re.escape(said)):
        route(model, unit, x, tmp_path)


def test_one_image_in_celsius_among_others_is_refused(model):
    x = np.stack([image(REFLECTANCE * 1e4, KELVIN)] * 6)
    x[4, 3] -= 273.15
    with pytest.raises(ValueError, match="no temperatures"):
        rsb.create_preprocess(model)(x)
    rsb.create_preprocess(model)(x, valid=np.arange(6)[:, None, None] * np.ones((64, 64)) != 4)


def test_stored_bytes_are_bytes_in_thermal_bands_too():
    entry = find_entry("resnet18.ssl4eo_l_moco_oli_tirs_toa")
    spec = InputSpec.from_mapping(SENSOR, entry.inputs[SENSOR])
    preprocess = preprocess_for({SENSOR: spec}, {SENSOR: ("B4", "B10")})
    assert preprocess.units == {SENSOR: "uint8"}
    red = (REFLECTANCE[:1] * 255).round()
    preprocess({SENSOR: np.concatenate([red, red])})
    with pytest.raises(ValueError, match="unit 'uint8' range from 0 to 255"):
        preprocess({SENSOR: np.concatenate([red, KELVIN])})


def tag(path, scales, offsets):
    with rasterio.open(path, "r+") as raster:
        raster.scales, raster.offsets = scales, offsets
    return path


SR, ST = (0.0000275, -0.2), (0.00341802, 149.0)


def test_scale_and_offset_tags_of_both_kinds_make_reflectance_and_kelvin(model, tmp_path):
    """As of Collection 2, Level 2: of surface reflectance and of surface temperature."""
    root = tmp_path / "set"
    (root / SENSOR).mkdir(parents=True)
    tagged = write_tif(root / SENSOR / "x.tif", image(*C2).astype("u2"), BANDS)
    tag(tagged, (*[SR[0]] * 3, ST[0]), (*[SR[1]] * 3, ST[1]))
    plain = write_tif(tmp_path / "plain.tif", image(REFLECTANCE, KELVIN), BANDS)
    rows = []
    for path, units in ((tagged, {}), (plain, {"s2": "reflectance"})):
        embed_patches(model, [path], tmp_path / "rows.npz", units=units, progress=False)
        with np.load(tmp_path / "rows.npz") as found:
            rows.append(found["s2"][0])
    np.testing.assert_allclose(*rows, atol=2e-2)  # a value may fall on the other side of an 8-bit step
    (stream,) = streams(root, model)
    read = stream.source.read(0, 0).images["s2"]
    np.testing.assert_allclose(read, image(REFLECTANCE * 1e4, KELVIN), atol=0.2)
    seen = stream.preprocess({"s2": read})["s2"]
    expected = rsb.create_preprocess(model)(image(REFLECTANCE * 1e4, KELVIN))
    assert (seen - expected).abs().max() <= 1 / 255 + 1e-6


@pytest.mark.parametrize("route", ["embed", "training"])
@pytest.mark.parametrize("tagged", ["optical", "thermal"])
def test_tags_of_one_kind_alone_are_not_taken_for_both(route, tagged, model, tmp_path):
    (tmp_path / SENSOR).mkdir()
    path = write_tif(tmp_path / SENSOR / "x.tif", image(*C2).astype("u2"), BANDS)
    none, of_st = (1.0, 0.0), tagged == "thermal"
    pairs = (*[none if of_st else SR] * 3, ST if of_st else none)
    tag(path, *zip(*pairs, strict=True))
    unit = "landsat_c2" if of_st else None
    run = {
        "embed": lambda: embed_patches(
            model, [path], tmp_path / "rows.npz", units={"s2": unit} if unit else {}, progress=False
        ),
        "training": lambda: streams(tmp_path, model, **({"data.units.s2": unit} if unit else {})),
    }[route]
    with pytest.raises(ValueError, match="no temperatures"):
        run()
