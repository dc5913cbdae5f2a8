"""Pretraining on another sensor: its bands, its units and statistics, from files to the exported model."""

import json
import pickle

import numpy as np
import pytest
import torch

import rsbackbones as rsb
from rsbackbones.data.npz import NpzFile, NpzSource
from rsbackbones.data.open import open_source
from rsbackbones.data.pack import pack
from rsbackbones.data.sensor_alias import rename_sensors
from rsbackbones.train.engine.config_io import apply_overrides, from_json, to_json
from rsbackbones.train.engine.distributed import DistributedContext
from rsbackbones.train.export import export
from rsbackbones.train.pretraining import PretrainRun, pretrain
from rsbackbones.train.recipe import Part
from rsbackbones.train.streams import open_sources
from tests.data.test_rasters import write_tif
from tests.train.training import SIDE, small_recipe

OLI = ("B2", "B3", "B4", "B5", "B9")
CIRRUS = {"s2": {"B9": [30.0, 20.0]}}


def landsat(folder, pairs=12):
    """Collection 2 numbers and radar, smooth, 32 pixels."""
    draw = np.random.default_rng(0)
    coarse = draw.normal(size=(pairs, 7, 4, 4)).repeat(8, axis=2).repeat(8, axis=3)
    np.savez(
        folder / "oli.npz", landsat_oli=(11000 + 900 * coarse[:, :5]).astype(np.uint16),
        landsat_oli_bands=np.array(OLI), s1=(-12 + 3 * coarse[:, 5:]).astype(np.float32),
        s1_bands=np.array(("VV", "VH")),
    )  # fmt: skip
    return folder


def recipe_of(folder, out=None, **changes):
    part = Part(
        file=NpzFile(path="oli.npz", images={"landsat_oli": {"landsat_oli": OLI}, "s1": {"s1": ("VV", "VH")}})
    )
    options = {
        "data.parts": [to_json(part)],
        "overrides.sensors.s2": "landsat_oli",
        "overrides.bands": '{"s2": ["B5", "B2", "B9"], "s1": ["VV", "VH"]}',
        "data.units.s2": "landsat_c2",
        "data.statistics": json.dumps(CIRRUS),
        "epochs": 1,
    }
    return apply_overrides(small_recipe(folder, out), options | changes)


def test_a_run_and_its_exported_model(tmp_path):
    recipe = recipe_of(landsat(tmp_path), tmp_path / "run")
    assert from_json(to_json(recipe), type(recipe)) == recipe
    assert pretrain(recipe).status == "finished"
    record = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert record["sources"][0]["bands"] == {"s2": ["B5", "B2", "B9"], "s1": ["VV", "VH"]}
    export(tmp_path / "run", tmp_path / "weights", tag="oli")
    model = rsb.create_model(
        "croma_vit_tiny", checkpoint=tmp_path / "weights" / "croma_vit_tiny.oli.safetensors"
    )
    assert model.config.sensors == {"s2": "landsat_oli", "s1": "s1"}
    assert model.bands["s2"] == ("B5", "B2", "B9")
    spec = model.inputs["s2"]
    # Near infrared and blue are those of Sentinel-2 at their wavelengths; cirrus is the recipe's.
    own = rsb.input_spec.SSL4EO_S12["s2"]
    assert spec.mean == (own.mean[own.bands.index("B8A")], own.mean[own.bands.index("B02")], 30.0)
    assert spec.std[2] == 20.0
    assert "B9: stated by the recipe" in spec.statistics
    images = np.load(tmp_path / "oli.npz")["landsat_oli"]
    ready = rsb.create_preprocess(model, bands={"s2": OLI}, units={"s2": "landsat_c2"})({"s2": images})
    reflectance = (images[:, 4] * 0.0000275 - 0.2) * 10000
    scaled = np.clip((reflectance - (30 - 40)) / 80, 0, 1)
    assert np.abs(ready["s2"][:, 2].numpy() - scaled).max() <= 1 / 255 + 1e-6


def test_what_the_trainer_sees_is_what_inference_sees(tmp_path):
    whole = {"data.crop": (SIDE, SIDE), "data.flips": False, "data.rot90": False, "data.mixup": 0}
    run = PretrainRun(recipe_of(landsat(tmp_path), **whole), DistributedContext(0, 1, torch.device("cpu")))
    batch = run.dataset.__getitems__([(0, 0, 3), (0, 0, 5)])
    assert batch.bands["s2"] == ("B5", "B2", "B9")
    preprocess = rsb.create_preprocess(run.objective.backbone, bands={"s2": OLI}, units={"s2": "landsat_c2"})
    images = np.load(tmp_path / "oli.npz")["landsat_oli"][[3, 5]]
    assert torch.equal(batch.images["s2"], preprocess({"s2": images})["s2"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.statistics": {}}, r"no statistics for B9; .*In a recipe: data\.statistics="),
        ({"data.statistics.s2.B8": [1, 2]}, "expected a band of the model"),
        (
            {"overrides.sensors.s2": "superdove", "overrides.bands.s2": ["red"], "data.statistics": {}},
            "no source has superdove, which croma_vit_tiny takes",
        ),
        (
            {"overrides.bands": {"s2": ["B6"], "s1": ["VH"]}, "data.statistics": {}},
            "no source has landsat_oli",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        pretrain(recipe_of(landsat(tmp_path), tmp_path / "run", **changes))


def test_a_modality_that_takes_another_sensor_does_not_take_its_own(tmp_path):
    """A source of Sentinel-2 and Landsat: each model gets its own."""
    landsat(tmp_path)
    held = dict(np.load(tmp_path / "oli.npz"))
    s2 = np.full((12, 1, 32, 32), 700, np.uint16)
    np.savez(tmp_path / "both.npz", **held, s2=s2, s2_bands=np.array(["B02"]))
    source = open_source(tmp_path / "both.npz")
    assert rename_sensors(source, {"s2": "s2", "s1": "s1"}) is source
    taken = rename_sensors(source, {"s2": "landsat_oli", "s1": "s1"})
    assert taken.bands == {"s2": OLI, "s1": ("VV", "VH")}
    assert len(taken) == 12
    np.testing.assert_array_equal(taken.read(4, 0).images["s2"], held["landsat_oli"][4])
    np.testing.assert_array_equal(source.read(4, 0).images["s2"], s2[4])


def test_folders_and_shards_of_another_sensor(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    images = np.load(landsat(tmp_path) / "oli.npz")["landsat_oli"]
    folder = tmp_path / "tiffs" / "landsat_oli"
    folder.mkdir(parents=True)
    form = {"driver": "GTiff", "count": 5, "height": 32, "width": 32, "dtype": "uint16"}
    for i, image in enumerate(images[:4]):
        with rasterio.open(folder / f"{i}.tif", "w", **form) as file:
            file.write(image)
            file.descriptions = tuple(f"SR_{name}" for name in OLI)
    source = open_source(tmp_path / "tiffs")
    assert source.bands == {"landsat_oli": OLI}
    pack(source, tmp_path / "shards", progress=False)
    taken = rename_sensors(open_source(tmp_path / "shards"), {"s2": "landsat_oli"})
    for i in range(4):
        np.testing.assert_array_equal(taken.read(i, 0).images["s2"], images[i])


def test_a_source_travels_to_workers(tmp_path):
    file = NpzFile(path=str(landsat(tmp_path) / "oli.npz"), images={"landsat_oli": {"landsat_oli": OLI}})
    taken = pickle.loads(pickle.dumps(rename_sensors(NpzSource(file), {"s2": "landsat_oli"})))
    assert taken.describe(1) == "oli.npz[1]"
    assert taken.read(1, 0).images.keys() == {"s2"}


def test_pictures_are_trained_on_where_the_recipe_names_their_unit(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 3, SIDE, SIDE)).astype(np.uint8)
    (tmp_path / "rgb").mkdir()
    for i, image in enumerate(pixels):
        write_tif(tmp_path / "rgb" / f"{i}.tif", image, ("red", "green", "blue"))
    options = {
        "data.parts": [], "overrides.modalities": '["s2"]', "overrides.sensors": '{"s2": "rgb"}',
        "overrides.bands": '{"s2": ["B04", "B03", "B02"]}', "epochs": 1,
    }  # fmt: skip
    recipe = apply_overrides(small_recipe(tmp_path), options)
    backbone = rsb.create_model("croma_vit_tiny", overrides=recipe.overrides)
    with pytest.raises(ValueError, match=r"\.tif.*8-bit values are a picture"):
        open_sources(recipe, backbone)
    (use,) = open_sources(apply_overrides(recipe, {"data.units.s2": "rgb8"}), backbone)
    image = use.source.read(0, 0).images["s2"]
    measured = rsb.create_preprocess(backbone, check=False)
    wanted = measured({"s2": pixels[0].astype(np.float32) / 255 * 2750})["s2"]
    assert (use.preprocess({"s2": image})["s2"] - wanted).abs().max() <= 1 / 255 + 1e-6
