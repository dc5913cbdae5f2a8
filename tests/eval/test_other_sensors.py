"""Sets of other sensors: what they are of is said, and the model meets their bands by wavelength."""

import json

import numpy as np
import pytest
import torch

import rsbackbones as rsb
from rsbackbones.cli import main
from rsbackbones.data.labelled import open_labelled
from rsbackbones.eval.encode import encode
from rsbackbones.eval.feature_source import describe, model_for
from rsbackbones.eval.transform import make_transform

OLI = ("B1", "B2", "B3", "B4", "B5", "B6", "B7")
# Bands of the bundled weights, and what of Landsat lies near enough to them.
KNOWN = ("B2", "B3", "B4", "B5")


def landsat(path, key="landsat_oli", bands=OLI, **more):
    """Collection 2 numbers of 12 places of two kinds."""
    draw = np.random.default_rng(3)
    images = draw.integers(8000, 12000, (12, len(bands), 16, 16)).astype(np.uint16)
    images[::2, :2] += 3000
    np.savez(
        path, **{key: images, f"{key}_bands": np.array(bands)}, label=np.arange(12) % 2,
        units=np.array([f"{key}=landsat_c2"]), **more,
    )  # fmt: skip
    return images


def tiny(**options):
    return rsb.create_model("croma_vit_tiny", True, modalities=("s2",), **options)


def features_of(model, images, bands):
    """What anybody would compute with the public functions."""
    preprocess = rsb.create_preprocess(model, bands={"s2": bands}, units={"s2": "landsat_c2"})
    with torch.inference_mode():
        return model.forward_features(preprocess({"s2": images})).pooled["s2"].numpy()


@pytest.mark.parametrize("key", ["landsat_oli", "s2"])
def test_features_are_those_of_the_model_for_the_sensor(key, tmp_path):
    images = landsat(tmp_path / "set.npz", key)
    data = open_labelled(tmp_path / "set.npz", sensors={"s2": "landsat_oli"})
    assert data.bands == {"s2": OLI}
    model = model_for(data, "croma_vit_tiny")
    assert model.bands["s2"] == KNOWN
    expected = tiny(sensors={"s2": "landsat_oli"}, bands={"s2": KNOWN})
    found = encode(model, data)
    np.testing.assert_allclose(found.stream("s2").features, features_of(expected, images, OLI), atol=1e-5)
    assert "s2: not used: B1, B6, B7" in describe(data, model)


@pytest.mark.parametrize(("rule", "scale"), [("nearest", "count"), ("mean", "sqrt"), ("reinit_all", "none")])
def test_other_rules_take_all_bands_of_the_set(rule, scale, tmp_path):
    images = landsat(tmp_path / "set.npz")
    data = open_labelled(tmp_path / "set.npz", sensors={"s2": "landsat_oli"})
    torch.manual_seed(0)
    bands = {"s2": KNOWN} if rule == "reinit_all" else None  # others of its bands have no statistics
    model = model_for(data, "croma_vit_tiny", bands=bands, missing_bands=rule, kernel_scale=scale)
    torch.manual_seed(0)
    expected = tiny(
        sensors={"s2": "landsat_oli"}, bands={"s2": KNOWN if bands else OLI}, missing_bands=rule,
        kernel_scale=scale,
    )  # fmt: skip
    found = encode(model, data)
    np.testing.assert_allclose(found.stream("s2").features, features_of(expected, images, OLI), atol=1e-5)
    assert not any("not used" in line for line in describe(data, model)) or bands


def test_a_checkpoint_of_the_sensor_meets_its_bands_by_name(tmp_path, capsys):
    images = landsat(tmp_path / "set.npz")
    kept = tiny(sensors={"s2": "landsat_oli"}, bands={"s2": ("B5", "B3", "B2")})
    rsb.save_model(kept, tmp_path / "landsat.safetensors")
    data = open_labelled(tmp_path / "set.npz", sensors={"s2": "landsat_oli"})
    model = model_for(data, "croma_vit_tiny", checkpoint=tmp_path / "landsat.safetensors")
    assert not model.adaptation
    assert describe(data, model)[-1] == "s2: not used: B1, B4, B6, B7"
    found = encode(model, data)
    np.testing.assert_allclose(found.stream("s2").features, features_of(kept, images, OLI), atol=1e-5)
    common = ["--data", str(tmp_path / "set.npz"), "--output", str(tmp_path / "out"), "--no-progress"]
    checkpoint = ["--checkpoint", str(tmp_path / "landsat.safetensors"), "--sensors", "s2=landsat_oli"]
    assert main(["eval", "knn", "--model", "croma_vit_tiny", *common, *checkpoint, "--baselines"]) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    facts = result["sources"][str(tmp_path / "landsat.safetensors")]
    assert facts["bands"] == {"s2": ["B5", "B3", "B2"]}
    assert facts["adaptation"] is None
    assert "not used: B1, B4, B6, B7" in capsys.readouterr().err


def test_the_command_takes_the_rules(tmp_path, capsys):
    landsat(tmp_path / "set.npz")
    common = ["--data", str(tmp_path / "set.npz"), "--output", str(tmp_path / "out"), "--no-progress"]
    command = ["eval", "knn", "--model", "croma_vit_tiny", *common]
    assert main(command) == 2
    assert "(--sensors s2=landsat_oli)" in capsys.readouterr().err
    rules = ["--sensors", "s2=landsat_oli", "--missing-bands", "nearest", "--kernel-scale", "sqrt"]
    assert main([*command, *rules, "--baselines"]) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    expected = tiny(
        sensors={"s2": "landsat_oli"}, bands={"s2": OLI}, missing_bands="nearest", kernel_scale="sqrt"
    )
    facts = result["sources"]["croma_vit_tiny"]
    assert facts["adaptation"] == str(expected.adaptation)
    assert {row["source"] for row in result["rows"]} > {"croma_vit_tiny", "random initialization"}


def test_sentinel_2_and_landsat_beside_each_other_are_not_mixed_up(tmp_path):
    s2 = np.random.default_rng(4).integers(300, 4000, (12, 4, 16, 16)).astype(np.uint16)
    landsat(tmp_path / "set.npz", s2=s2, s2_bands=np.array(["B02", "B03", "B04", "B08"]))
    both = open_labelled(tmp_path / "set.npz", units={"s2": "dn_baseline_0400"})
    assert both.units == {"s2": "dn_baseline_0400", "landsat_oli": "landsat_c2"}
    assert model_for(both, "croma_vit_tiny").bands["s2"] == ("B02", "B03", "B04", "B08")
    data = open_labelled(
        tmp_path / "set.npz", sensors={"s2": "landsat_oli"}, units={"s2": "dn_baseline_0400"}
    )
    assert data.bands == {"s2": OLI}
    assert data.units == {"s2": "landsat_c2"}
    assert "not used: images of s2" in data.notes
    assert data.read(0)["s2"].shape == (7, 16, 16)
    # A checkpoint of Landsat's bands and Sentinel-2 images: by wavelength again, and said.
    rsb.save_model(tiny(sensors={"s2": "landsat_oli"}, bands={"s2": KNOWN}), tmp_path / "oli.safetensors")
    model = model_for(both, "croma_vit_tiny", checkpoint=tmp_path / "oli.safetensors")
    assert model.config.sensors["s2"] == "s2"
    assert [match.rule for match in model.adaptation.bands[0].matches] == ["by wavelength"] * len(
        model.bands["s2"]
    )


def test_a_model_of_another_sensor_than_the_set_is_refused(tmp_path):
    landsat(tmp_path / "set.npz")
    data = open_labelled(tmp_path / "set.npz", sensors={"s2": "landsat_oli"})
    with pytest.raises(ValueError, match=r"bands of s2, those of set are of landsat_oli.*sensors=\{'s2': 'l"):
        make_transform(tiny(), data)
    with pytest.raises(ValueError, match=r"name superdove, or s2; set has landsat_oli"):
        open_labelled(tmp_path / "set.npz", sensors={"s2": "superdove"})
    with pytest.raises(ValueError, match="unknown sensor 'landsat'"):
        open_labelled(tmp_path / "set.npz", sensors={"s2": "landsat"})


@pytest.mark.parametrize("described", [True, False])
def test_rasters_of_another_sensor(described, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    images = landsat(tmp_path / "set.npz")[:, 1:6]
    names = ("SR_B2", "SR_B3", "SR_B4", "SR_B5", "SR_B6")
    for i, image in enumerate(images):
        folder = tmp_path / "folder" / f"class {i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        form = {"driver": "GTiff", "count": 5, "height": 16, "width": 16, "dtype": "uint16"}
        with rasterio.open(folder / f"{i:02}.tif", "w", **form) as file:
            file.write(image)
            if described:
                file.descriptions = names
    data = open_labelled(
        tmp_path / "folder", sensors={"s2": "landsat_oli"}, units={"s2": "landsat_c2"},
        bands=None if described else {"s2": names},
    )  # fmt: skip
    assert data.bands == {"s2": OLI[1:6]}
    found = encode(model_for(data, "croma_vit_tiny"), data)
    order = [int(name.split("/")[1][:2]) for name in data.ids]
    expected = features_of(tiny(sensors={"s2": "landsat_oli"}, bands={"s2": KNOWN}), images, OLI[1:6])
    np.testing.assert_allclose(found.stream("s2").features, expected[order], atol=1e-5)


def test_pictures_of_another_sensor(tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    draw = np.random.default_rng(5)
    for i in range(12):
        folder = tmp_path / f"class {i % 2}"
        folder.mkdir(exist_ok=True)
        image_module.fromarray(draw.integers(0, 256, (16, 16, 3)).astype(np.uint8)).save(folder / f"{i}.png")
    data = open_labelled(tmp_path, sensors={"s2": "superdove"})
    assert data.bands == {"s2": ("red", "green", "blue")}  # B4, B3 and B2 are other colors there
    assert sorted(model_for(data, "croma_vit_tiny").bands["s2"]) == ["blue", "green", "red"]


def test_bands_are_named_by_modality_for_arrays_named_after_the_sensor(tmp_path):
    """The order that the user says is the order of the channels, whatever the file says."""
    images = landsat(tmp_path / "set.npz")
    turned = OLI[::-1]
    for file in ("set.npz", "bare.npz"):
        with np.load(tmp_path / "set.npz") as held:
            np.savez(tmp_path / "bare.npz", **{k: v for k, v in held.items() if k != "landsat_oli_bands"})
        data = open_labelled(tmp_path / file, sensors={"s2": "landsat_oli"}, bands={"s2": turned})
        assert data.bands == {"s2": turned}
        expected = tiny(sensors={"s2": "landsat_oli"}, bands={"s2": KNOWN})
        model = model_for(data, "croma_vit_tiny", bands={"s2": KNOWN})
        found = encode(model, data).stream("s2").features
        np.testing.assert_allclose(found, features_of(expected, images, turned), atol=1e-5)


def test_bands_that_weights_do_not_look_at_serve_no_other(tmp_path):
    """Adapted under ``zero``, saved, and adapted once more: as if adapted once."""
    of_landsat = {"sensors": {"s2": "landsat_oli"}}
    model = tiny(**of_landsat, bands={"s2": OLI}, missing_bands="zero")
    file = rsb.save_model(model, tmp_path / "zero.safetensors")
    assert not rsb.create_model("croma_vit_tiny", checkpoint=file).adaptation
    x = torch.rand(2, 4, 16, 16)
    again = rsb.create_model("croma_vit_tiny", checkpoint=file, bands={"s2": KNOWN})
    assert torch.allclose(again(x), tiny(**of_landsat, bands={"s2": KNOWN})(x), atol=1e-5)
    known = rsb.save_model(tiny(**of_landsat, bands={"s2": KNOWN}), tmp_path / "known.safetensors")
    y = torch.rand(2, 5, 16, 16)
    for rule in ("nearest", "mean"):  # B8 is nearest to B4, and B9 to the zeros of B6
        for band in ("B8", "B9"):
            more = {"bands": {"s2": (*KNOWN, band)}, "missing_bands": rule}
            built, expected = (
                rsb.create_model("croma_vit_tiny", checkpoint=f, **more) for f in (file, known)
            )
            assert torch.allclose(built(y), expected(y), atol=1e-5)
    # B11 of Sentinel-2 is where Landsat's B6 is: but these weights see nothing there.
    with pytest.raises(ValueError, match=r"no band.*B11"):
        rsb.create_model(
            "croma_vit_tiny", checkpoint=file, sensors={"s2": "s2"}, bands={"s2": ("B02", "B04", "B11")}
        )


def test_the_random_baseline_is_of_the_shape_of_the_checkpoint(tmp_path, capsys):
    landsat(tmp_path / "set.npz")
    small = rsb.create_model("croma_vit_tiny", modalities=("s2",), overrides={"dim": 48, "depth": 2})
    file = rsb.save_model(small, tmp_path / "small.safetensors")
    arguments = ["--data", str(tmp_path / "set.npz"), "--sensors", "s2=landsat_oli", "--no-progress"]
    arguments += ["--model", "croma_vit_tiny", "--checkpoint", str(file), "--output", str(tmp_path / "out")]
    assert main(["eval", "knn", *arguments, "--baselines", "--cache", str(tmp_path / "cache")]) == 0
    jobs = [json.loads(f.read_text()) for f in (tmp_path / "cache").glob("*/job.json")]
    shapes = [job["layout"][0][2] for job in jobs if job["job"]["what"] == "features"]
    assert len(shapes) == 2
    assert shapes[0] == shapes[1] == [48]
    assert "the images are taken as landsat_oli, and the weights are for s2" in capsys.readouterr().out
