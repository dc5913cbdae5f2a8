"""Evaluation and embedding with weights of one sensor: small networks, contracts as published."""

import hashlib
import json

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("rasterio")

import rasterio
from rasterio.transform import from_origin

import rsbackbones as rsb
from rsbackbones.cli import main
from rsbackbones.eval.feature_source import model_for
from rsbackbones.zoo.factory import create_untrained
from rsbackbones.zoo.manifest import entries_as_json

SMALL = {"dim": 48, "depth": 2, "num_heads": 4, "patch_size": 8, "image_size": 32}
S2, S1, OLI = "vit_s16.ssl4eo_s12_moco_s2", "vit_s16.ssl4eo_s12_mae_s1", "vit_s16.ssl4eo_l_moco_oli_sr"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder, published, entries = tmp_path_factory.mktemp("zoo"), entries_as_json(), []
    for name in (S2, S1, OLI):
        entry = {key: v for key, v in published[name].items() if not key.startswith("sha256_")}
        ((modality, contract),) = entry["inputs"].items()
        bands = {modality: tuple(contract["bands"])}
        model = rsb.create_model("vit_s16", modalities=(modality,), bands=bands, overrides=SMALL)
        file = rsb.save_in_format(model, folder / f"{name}.pth", "timm_vit")
        entry["config"] = {**entry["config"], **SMALL}
        entry |= {
            "source": {"kind": "bundled", "path": file.name},
            "bytes": None,
            "params": 0,
            "default": False,
        }
        entries.append(entry | {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()})
    (folder / "manifest.json").write_text(json.dumps({"schema_version": 1, "weights": entries}))
    return folder / "manifest.json"


@pytest.fixture(autouse=True)
def _of_the_manifest(manifest, monkeypatch):
    monkeypatch.setenv("RSBACKBONES_MANIFEST", str(manifest))


def images_of(name):
    """Twelve images of two kinds, with their bands."""
    draw, kind = np.random.default_rng(0), np.arange(12).reshape(-1, 1, 1, 1) % 2
    ((_, contract),) = entries_as_json()[name]["inputs"].items()
    shape = (12, len(contract["bands"]), 32, 32)
    if name == S1:
        return contract["bands"], (draw.normal(-14, 3, shape) + 3 * kind).astype(np.float32)
    if name == OLI:
        return contract["bands"], (draw.uniform(0, 0.2, shape) + 0.05 * kind).astype(np.float32)
    return contract["bands"], (draw.integers(300, 2000, shape) + 900 * kind).astype(np.uint16)


def write(path, image, bands):
    path.parent.mkdir(parents=True, exist_ok=True)
    grid = from_origin(500000, 5000000, 10, 10)
    with rasterio.open(
        path, "w", driver="GTiff", count=len(bands), height=32, width=32, dtype=image.dtype,
        crs="EPSG:32632", transform=grid,
    ) as raster:  # fmt: skip
        raster.write(image)
        raster.descriptions = tuple(bands)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (S2, []),
        (S1, []),
        # B5 is another band for Landsat: its sensor is named.
        (OLI, ["--sensors", "landsat_oli=landsat_oli", "--units", "landsat_oli=reflectance"]),
    ],
)
@pytest.mark.parametrize("pretrained", [True, False])
def test_weights_of_any_sensor_are_evaluated(name, options, pretrained, tmp_path, capsys):
    bands, images = images_of(name)
    for i, image in enumerate(images):
        write(tmp_path / "set" / f"kind{i % 2}" / f"{i}.tif", image, bands)
    more = ["--baselines"] if pretrained else ["--no-pretrained"]
    where = ["--model", name, "--data", str(tmp_path / "set"), "--output", str(tmp_path / "out")]
    code = main(["eval", "knn", *where, *options, *more, "--no-progress"])
    assert code == 0, capsys.readouterr().err
    rows = json.loads((tmp_path / "out" / "result.json").read_text())["rows"]
    assert {row["source"] for row in rows} == (
        {name, "random initialization", "mean and deviation per band"}
        if pretrained
        else {"random initialization"}
    )


def test_a_set_of_another_sensor_is_refused_with_the_way(tmp_path):
    from rsbackbones.data.labelled import open_labelled

    bands, images = images_of(OLI)
    for i, image in enumerate(images):
        write(tmp_path / f"kind{i % 2}" / f"{i}.tif", image, bands)
    with pytest.raises(ValueError, match=r"takes landsat_oli.*\{'landsat_oli': 'landsat_oli'\} if"):
        model_for(open_labelled(tmp_path), OLI)


@pytest.mark.parametrize("name", [S2, S1, OLI])
def test_a_trial_without_weights_is_of_their_network(name, tmp_path, capsys):
    untrained, trained = create_untrained(name), rsb.create_model(name, True)
    assert (untrained.config, untrained.inputs) == (trained.config, trained.inputs)
    assert untrained.weights_entry is None
    bands, images = images_of(name)
    write(tmp_path / "a.tif", images[0], bands)
    options = ["--units", "landsat_oli=reflectance"] if name == OLI else []
    where = ["--model", name, "--output", str(tmp_path / "o.tif"), "--no-progress", "--no-pretrained"]
    assert main(["embed", str(tmp_path / "a.tif"), *where, *options]) == 0
    err = capsys.readouterr().err
    assert "weights: RANDOM" in err
    assert f": {', '.join(bands)}\n" in err


def test_the_bands_command_takes_those_of_the_weights_sensor(capsys):
    assert main(["bands", OLI, "--bands", "B4,B3"]) == 0
    assert "dropped pretrained bands: B1, B2, B5, B6, B7" in capsys.readouterr().out


def test_pictures_are_of_the_sensor_that_is_named(tmp_path):
    from PIL import Image

    from rsbackbones.data.labelled import open_labelled

    for i in range(4):
        (tmp_path / f"kind{i % 2}").mkdir(exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), 60 * i, np.uint8)).save(tmp_path / f"kind{i % 2}" / f"{i}.png")
    assert set(open_labelled(tmp_path).bands) == {"s2"}
    data = open_labelled(tmp_path, sensors={"rgb": "rgb"})
    assert data.bands == {"rgb": ("B04", "B03", "B02")}
    assert data.units == {"rgb": "rgb8"}
