"""Every published ResNet and ViT of the manifest, against torchgeo's table and timm's networks."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import timm
import torch

import rsbackbones as rsb
from rsbackbones.input_spec import InputSpec
from rsbackbones.layers.tracing import SINCE_2_7
from rsbackbones.preprocess import preprocess_for
from rsbackbones.sensors import get_sensor
from rsbackbones.zoo.cards import model_card
from rsbackbones.zoo.loading import inspect_checkpoint
from rsbackbones.zoo.manifest import find_entry
from rsbackbones.zoo.registry import find_architecture
from tests.conftest import RECORDED

TABLE = {row["id"]: row for row in json.loads((RECORDED / "torchgeo_weights.json").read_text())["weights"]}
# The table's transform is wrong; see the entries' notes.
DEVIATIONS = {
    "resnet18.seco_seco_s2_rgb": "percentiles of B04 and B02 exchanged, multiplied by 255, not clipped",
    "resnet50.seco_seco_s2_rgb": "percentiles of B04 and B02 exchanged, multiplied by 255, not clipped",
}
# The table standardizes where pretraining clipped to mean +- 2 standard deviations and stored 8 bits.
CLIPPED = [n for n in TABLE if ".ssl4eo_s12_" in n and (n.endswith("_s1") or "_softcon_" in n)]
DEVIATIONS |= dict.fromkeys(CLIPPED, "not clipped to 8 bits")
# The authors' ToTensor (cvtorchvision 0.0.1) divides float32 above 1 by 255, and nothing else is done.
SSL4ECO = [n for n in TABLE if ".ssl4eco_" in n]
DEVIATIONS |= dict.fromkeys(SSL4ECO, "divided by 10000, not by 255")


def contract(entry):
    """The entry's input contract, its modality, and a preprocessing of its own bands."""
    ((modality, fields),) = entry.inputs.items()
    spec = InputSpec.from_mapping(modality, fields)
    return modality, spec


def preprocessing(entry, **arguments):
    modality, spec = contract(entry)
    if spec.unit is None:
        arguments.setdefault("units", {modality: "db"})
    arguments.setdefault("bands", {modality: spec.bands})
    return preprocess_for({modality: spec}, {modality: spec.bands}, **arguments)


@cache
def shapes_of_timm(name, channels):
    options = {"img_size": 224} if name.startswith("vit") else {}
    with torch.device("meta"):
        network = timm.create_model(name, in_chans=channels, num_classes=0, **options)
    return {key: (tuple(t.shape), t.dtype) for key, t in network.state_dict().items()}


def test_the_manifest_has_every_row_of_the_table():
    ids = {e.id for e in rsb.list_weights() if e.format in ("torchvision", "timm_vit")}
    assert ids == set(TABLE)
    assert len(TABLE) == 83
    assert len({e.sha256_from for e in rsb.list_weights()} - {None}) == 1
    assert sum(e.sha256_from == "hub" for e in rsb.list_weights()) == 22


@pytest.mark.parametrize("name", TABLE)
def test_an_entry_fits_its_file_and_says_what_it_is(name):
    row, entry = TABLE[name], find_entry(name)
    source = entry.source
    assert (source.repo_id, source.revision, source.filename) == (
        row["repo_id"], row["revision"], row["filename"],
    )  # fmt: skip
    assert entry.sha256_prefix == row["sha256_prefix"]
    assert (entry.sha256_from == "hub") == (row["sha256_prefix"] is None)
    assert entry.license == (row["license"] or "none stated")
    architecture = find_architecture(entry.architecture)
    info = inspect_checkpoint(architecture, None, entry)
    with torch.device("meta"):
        model = architecture.family.build(info.config)
    assert sum(p.numel() for p in model.parameters()) == entry.params
    modality, spec = contract(entry)
    assert model.modalities == (modality,)
    assert model.bands[modality] == spec.bands
    assert len(spec.bands) == row["in_chans"]
    if row["bands"]:  # the table's order is the file's
        assert get_sensor(modality).canonical(row["bands"]) == spec.bands
    if not SINCE_2_7 and row["timm_model"].startswith("vit"):
        pytest.skip("timm builds no ViT on the meta device with torch 2.6")
    theirs = shapes_of_timm(row["timm_model"], row["in_chans"])
    names = architecture.formats[entry.format].to_native(theirs)
    ours = {key: (tuple(t.shape), t.dtype) for key, t in model.state_dict().items()}
    assert {names[key]: value for key, value in theirs.items()} == ours
    card = model_card(entry)
    assert entry.license in card
    assert all(band in card for band in spec.bands)
    assert entry.tag.startswith(f"{entry.data}_{entry.method}_")


def by_the_table(x, steps):
    x = x.astype(np.float32)
    for step, numbers in steps:
        numbers = np.array(numbers, dtype=np.float32).reshape(-1, 1, 1)
        x = {"subtract": np.subtract, "divide": np.divide, "multiply": np.multiply}[step](x, numbers)
    return x


@pytest.mark.parametrize("name", TABLE)
def test_preprocessing_is_the_tables(name):
    row, entry = TABLE[name], find_entry(name)
    modality, spec = contract(entry)
    rng = np.random.default_rng(0)
    high = {"uint8": 255, "tci_dn": 255, "dn": 9000, "db": 0, None: 0}[spec.unit]
    low = -30 if high == 0 else 0
    x = rng.uniform(low, high, (2, len(spec.bands), 5, 7))
    x = x.round() if high == 255 else x
    found = preprocessing(entry)({modality: x})[modality].numpy()
    expected = by_the_table(x, row["steps"])
    if name in DEVIATIONS:
        assert not np.allclose(found, expected, atol=0.1)
        return
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_radar_and_softcon_get_what_pretraining_stored():
    """``normalize`` of the authors' data sets, and ToTensor after it; the statistics are the table's."""
    assert len(CLIPPED) == 16
    for name in CLIPPED:
        (_, mean), (_, std) = TABLE[name]["steps"]
        mean, std = (np.array(numbers).reshape(-1, 1, 1) for numbers in (mean, std))
        entry = find_entry(name)
        modality, spec = contract(entry)
        x = mean + std * np.random.default_rng(0).uniform(-3, 3, (len(spec.bands), 16, 16))
        x = np.maximum(x, 0) if modality == "s2" else x  # no digital number is far below 0
        low, high = mean - 2 * std, mean + 2 * std
        expected = np.clip((x - low) / (high - low) * 255, 0, 255).astype(np.uint8) / 255
        found = preprocessing(entry)({modality: x})[modality].numpy()
        # float32 may lie on the other side of a whole number.
        assert (np.abs(found - expected) < 1e-6).mean() > 0.999
        assert np.abs(found - expected).max() <= 1 / 255 + 1e-6
        # The rule of the table is there for manifests that state it.
        standard = replace(spec, normalize="standard")
        found = preprocess_for({modality: standard}, {modality: spec.bands})({modality: x})[modality]
        np.testing.assert_allclose(found.numpy(), by_the_table(x, TABLE[name]["steps"]), atol=1e-4)


# -- what the network saw, made from reflectance ----------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in TABLE if ".ssl4eo_l_moco" in n and n.startswith("resnet18")])
def test_landsat_reflectance_becomes_the_stored_bytes(name):
    """The rule of SSL4EO-L's compression, from its scripts: TOA 0 to 0.4, SR 0 to 0.3, -25 to 45 degrees."""
    entry = find_entry(name)
    modality, spec = contract(entry)
    rng = np.random.default_rng(0)
    thermal = [band in ("B6", "B6_VCID_1", "B6_VCID_2", "B10", "B11") for band in spec.bands]
    if modality in ("landsat_oli", "landsat_oli_tirs"):
        thermal = [band in ("B10", "B11") for band in spec.bands]
    thermal = np.array(thermal).reshape(-1, 1, 1)
    reflectance = rng.uniform(0, 0.5, (len(spec.bands), 16, 16))
    kelvin = rng.uniform(240, 330, reflectance.shape)
    raw = np.where(thermal, kelvin, reflectance)
    low = np.where(thermal, 273.15 - 25, 0)
    high = np.where(thermal, 273.15 + 45, 0.3 if name.endswith("sr") else 0.4)
    stored = np.clip((raw - low) / (high - low) * 255, 0, 255).astype(np.uint8)
    expected = preprocessing(entry)({modality: stored})[modality].numpy()
    found = preprocessing(entry, units={modality: "reflectance"})({modality: raw})[modality].numpy()
    # float32 may lie on the other side of a whole number.
    assert (np.abs(found - expected) < 1e-6).mean() > 0.999
    assert np.abs(found - expected).max() <= 1 / 255 + 1e-6
    dn = np.where(thermal, raw, raw * 10000)
    again = preprocessing(entry, units={modality: "dn"})({modality: dn})[modality].numpy()
    assert (np.abs(again - expected) < 1e-6).mean() > 0.999
    if name.endswith("sr"):
        collection = (raw + 0.2) / 0.0000275
        again = preprocessing(entry, units={modality: "landsat_c2"})({modality: collection})[modality].numpy()
        assert (np.abs(again - expected) < 1e-6).mean() > 0.99


def test_seco_is_the_authors_pipeline():
    """datasets/seco_downloader.py and seco_dataset.py: stored bytes, percentiles, bytes, ImageNet."""
    entry = find_entry("resnet50.seco_seco_s2_rgb")
    rng = np.random.default_rng(0)
    reflectance = rng.uniform(0, 0.6, (3, 32, 32))
    stored = (np.clip(reflectance, 0, 1) * 255).astype(np.uint8)
    quantiles = {"B04": (0.0, 129.0), "B03": (2.0, 103.0), "B02": (3.0, 88.0)}
    expected = []
    imagenet = zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)
    for band, channel, (mean, std) in zip(("B04", "B03", "B02"), stored, imagenet, strict=True):
        low, high = quantiles[band]
        picture = np.clip((channel - low) / (high - low) * 255, 0, 255).astype(np.uint8)
        expected.append((picture / 255 - mean) / std)
    expected = np.stack(expected)
    found = preprocessing(entry)({"s2": stored})["s2"].numpy()
    assert (np.abs(found - expected) < 1e-5).mean() > 0.999
    found = preprocessing(entry, units={"s2": "reflectance"})({"s2": reflectance})["s2"].numpy()
    assert (np.abs(found - expected) < 1e-5).mean() > 0.99


def test_satlas_takes_the_true_color_image_or_what_it_is_made_of():
    entry = find_entry("resnet50.satlas_supervised_s2_si_ms")
    _, spec = contract(entry)
    rng = np.random.default_rng(0)
    dn = rng.uniform(0, 9000, (9, 16, 16))
    tci = np.clip(dn[:3] / 3558 * 255, 0, 255).astype(np.uint8)
    mixed = np.concatenate([tci, dn[3:]])
    expected = np.clip(np.concatenate([tci / 255, dn[3:] / 8160]), 0, 1)
    assert (dn[3:] > 8160).any()
    for units, raw in (({}, mixed), ({"s2": "dn"}, dn), ({"s2": "reflectance"}, dn / 10000)):
        found = preprocessing(entry, units=units)({"s2": raw})["s2"].numpy()
        assert (np.abs(found - expected) < 1e-5).mean() > 0.999
    # Four of its bands by name keep their own divisors.
    four = ("B08", "B02", "B04", "B11")
    some = preprocess_for({"s2": spec}, {"s2": four}, units={"s2": "dn"})
    where = [spec.bands.index(band) for band in four]
    assert (np.abs(some({"s2": dn[where]})["s2"].numpy() - expected[where]) < 1e-5).mean() > 0.999


@pytest.mark.parametrize("name", ["resnet50.satlas_supervised_s2_si_ms", "resnet18.ssl4eo_l_moco_oli_sr"])
def test_measured_values_are_not_taken_for_bytes(name):
    """By default a contract of stored values expects those."""
    entry = find_entry(name)
    modality, spec = contract(entry)
    reflectance = np.random.default_rng(0).uniform(0.01, 0.6, (len(spec.bands), 8, 8))
    cloud = reflectance.copy()
    cloud[:, 0, 0] = 1.3
    for values in (reflectance, cloud):
        with pytest.raises(ValueError, match=rf"0 to 255.*units=\{{'{modality}': 'reflectance'\}}"):
            preprocessing(entry)({modality: values})
    dn = (reflectance * 10000).astype(np.uint16)
    with pytest.raises(ValueError, match=rf"0 to 255.*units=\{{'{modality}': 'dn'\}}"):
        preprocessing(entry)({modality: dn})
    for values, unit in ((reflectance, "reflectance"), (dn, "dn")):
        preprocessing(entry, units={modality: unit})({modality: values})
    stored = dn // 64
    if spec.unit == "tci_dn":  # the last bands of Satlas are digital numbers
        with pytest.raises(ValueError, match="8-bit values are a picture, not digital numbers"):
            preprocessing(entry)({modality: stored.astype(np.uint8)})
        stored[3:] = dn[3:]
    preprocessing(entry)({modality: stored})
    some = ("B08", "B12") if spec.unit == "tci_dn" else spec.bands[-2:]
    some_of_them = preprocess_for({modality: spec}, {modality: some})
    some_of_them({modality: stored[[spec.bands.index(band) for band in some]]})


@pytest.mark.parametrize("name", SSL4ECO)
def test_ssl4eco_gets_digital_numbers_over_255(name):
    modality, spec = contract(find_entry(name))
    dn = np.random.default_rng(0).integers(2, 9000, (len(spec.bands), 8, 8)).astype(np.uint16)
    found = preprocessing(find_entry(name))({modality: dn})[modality].numpy()
    np.testing.assert_allclose(found, dn.astype(np.float32) / 255, rtol=1e-6)
    if modality == "s2":
        found = preprocessing(find_entry(name), units={"s2": "reflectance"})({"s2": dn / 10000})["s2"].numpy()
        np.testing.assert_allclose(found, dn.astype(np.float32) / 255, rtol=1e-5)


def test_ndvi_is_computed_where_the_bands_do_not_have_it():
    entry = find_entry("resnet50.ssl4eco_seco_eco_s2_ndvi")
    _, spec = contract(entry)
    rng = np.random.default_rng(0)
    bands = [band for band in spec.bands if band != "NDVI"]
    dn = rng.integers(0, 5000, (8, 16, 16)).astype(np.uint16)
    red, nir = (dn[bands.index(name)].astype(np.float32) for name in ("B04", "B08"))
    ndvi = np.clip((nir - red) / (nir + red + 0.00001), 0, None)
    ndvi = (ndvi * 10000).astype(np.uint16)
    given = np.concatenate([dn, ndvi[None]])
    expected = given / 255
    found = preprocessing(entry)({"s2_ndvi": given})["s2_ndvi"].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    for units, raw in (({}, dn), ({"s2_ndvi": "dn_baseline_0400"}, dn.astype(int) + 1000)):
        found = preprocessing(entry, bands={"s2_ndvi": bands}, units=units)({"s2_ndvi": raw})["s2_ndvi"]
        np.testing.assert_allclose(found.numpy()[:8], expected[:8], rtol=1e-6)
        assert (np.abs(found.numpy()[8] - expected[8]) <= 1.1 / 255).all()  # a digital number of rounding
    ratio = np.concatenate([dn / 10000, ndvi[None] / 10000])  # in the unit of the bands beside it
    with pytest.raises(ValueError, match=r"NDVI goes to 1 at most.*times 10000; leave it out"):
        preprocessing(entry, units={"s2_ndvi": "reflectance"})({"s2_ndvi": ratio})
    with pytest.raises(ValueError, match="your bands lack B08, NDVI"):
        preprocessing(entry, bands={"s2_ndvi": [band for band in bands if band != "B08"] + ["B09"]})


@pytest.mark.parametrize("name", [n for n in TABLE if "closp_s1" in n])
def test_a_unit_that_nobody_states_is_asked_for(name):
    modality, spec = contract(find_entry(name))
    assert spec.unit is None
    with pytest.raises(ValueError, match=r"nobody states the unit.*CrisisLandMark.*units=\{'s1'"):
        preprocess_for({modality: spec}, {modality: spec.bands})
    with pytest.raises(ValueError, match="unit must be one of db, linear"):
        preprocess_for({modality: spec}, {modality: spec.bands}, units={"s1": "dn"})
    x = torch.rand(2, 4, 4) - 20
    assert torch.equal(preprocess_for({modality: spec}, {modality: spec.bands}, units={"s1": "db"})(x), x)


def test_pictures_have_no_other_unit_where_nobody_states_how_they_were_made():
    entry = find_entry("resnet50.fmow_gassl_rgb")
    with pytest.raises(ValueError, match="unit must be one of uint8, rgb8, got 'reflectance'"):
        preprocessing(entry, units={"rgb": "reflectance"})


@pytest.mark.parametrize("name", ["resnet50.fmow_gassl_rgb", "resnet50.seco_seco_s2_rgb"])
def test_pictures_get_imagenets_statistics_where_the_network_saw_pictures(name):
    """Without SeCo's stretch, which made its pictures."""
    modality, _ = contract(find_entry(name))
    x = np.random.default_rng(0).integers(0, 256, (3, 8, 8)).astype(np.uint8)
    mean, std = (np.array(v).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    found = preprocessing(find_entry(name), units={modality: "rgb8"})({modality: x})[modality].numpy()
    np.testing.assert_allclose(found, (x / 255 - mean) / std, atol=1e-5)


def test_rules_without_statistics_of_a_batch_refuse_them():
    with pytest.raises(ValueError, match="for the rule clip_2sd; these weights have scale"):
        preprocessing(find_entry("resnet50.ssl4eo_s12_moco_s2"), statistics="batch")


@pytest.mark.parametrize(
    "name",
    ["resnet50.seco_seco_s2_rgb", "resnet50.satlas_supervised_s2_si_ms", "vit_s16.crisislandmark_closp_s1"],
)
def test_a_contract_survives_saving(name, tmp_path):
    entry = find_entry(name)
    modality, spec = contract(entry)
    architecture = find_architecture(entry.architecture)
    changes = {"modalities": (modality,), "bands": {modality: spec.bands}}
    model = rsb.create_model(entry.architecture, overrides={**architecture.small, **changes})
    model.inputs = {modality: spec}
    again = rsb.create_model(entry.architecture, checkpoint=rsb.save_model(model, tmp_path / "a.safetensors"))
    assert again.inputs[modality] == spec
    units = {modality: "db"} if spec.unit is None else {}
    x = torch.rand(len(spec.bands), 4, 4) * 200
    raw = rsb.create_preprocess(again, units=units, check=False)(x)
    assert torch.equal(raw, preprocessing(entry, check=False)(x))


def test_thermal_bands_are_no_reflectance():
    """What is checked of reflectance is not asked of kelvin, and other sensors' bands keep their ranges."""
    _, spec = contract(find_entry("resnet18.ssl4eo_l_moco_oli_tirs_toa"))
    modality, bands = "landsat_oli_tirs", ("B4", "B10")
    x = np.stack([np.full((4, 4), 0.2), np.full((4, 4), 300.0)])
    found = preprocess_for({modality: spec}, {modality: bands}, units={modality: "reflectance"})
    red, heat = found({modality: x})[modality][:, 0, 0].tolist()
    assert red == pytest.approx(127 / 255)
    assert heat == pytest.approx(np.floor(255 * (300 - 248.15) / 70) / 255)
    with pytest.raises(ValueError, match="look like digital numbers"):
        found({modality: x * [[[10000.0]], [[1.0]]]})
    # Level 2: surface temperature has its own scale.
    c2 = preprocess_for({modality: spec}, {modality: bands}, units={modality: "landsat_c2"})
    stored = np.stack([np.full((4, 4), (0.2 + 0.2) / 0.0000275), np.full((4, 4), (300 - 149) / 0.00341802)])
    again = c2({modality: stored})[modality][:, 0, 0].tolist()
    assert again == pytest.approx([red, heat], abs=1.01 / 255)


def test_ndvi_is_matched_by_name_only():
    from rsbackbones.zoo.adapt import match_bands

    weights = {"sensor": "s2", "weights_sensor": "s2_ndvi"}
    names = ("B04", "B08", "NDVI")
    with pytest.raises(ValueError, match=r"no band.*close in wavelength to B06"):
        match_bands("s2_ndvi", ("B06",), names, **weights)  # its wavelength lies inside NDVI's
    (match,) = match_bands("s2_ndvi", ("B06",), names, missing_bands="nearest", **weights).matches
    assert match.source in ("B04", "B08")
    with pytest.raises(ValueError, match="computed from B08 and B04"):
        match_bands("s2", ("NDVI",), ("B04",), sensor="s2_ndvi", missing_bands="nearest")


def test_landsats_wavelengths_are_those_of_the_bands():
    for name in ("landsat_tm", "landsat_etm", "landsat_oli_tirs"):
        sensor = get_sensor(name)
        assert {b.name for b in sensor.bands if b.is_thermal} == {
            "landsat_tm": {"B6"},
            "landsat_etm": {"B6_VCID_1", "B6_VCID_2"},
            "landsat_oli_tirs": {"B10", "B11"},
        }[name]
        for color, nm in (("blue", 485), ("green", 560), ("red", 660), ("swir1", 1650), ("swir2", 2210)):
            assert abs(sensor.band(color).wavelength - nm) < 45


# -- search -----------------------------------------------------------------------------------------------


def ids(**filters):
    return {entry.id for entry in rsb.list_weights(**filters)} & set(TABLE)


def test_weights_are_found_by_what_they_are():
    assert ids(sensor="landsat_tm") == {n for n in TABLE if n.endswith("tm_toa") and "_etm_" not in n}
    assert len(ids(sensor="landsat*")) == 30
    assert ids(method="softcon", sensor="s1") == {
        "resnet50.ssl4eo_s12_softcon_s1", "vit_s14.ssl4eo_s12_softcon_s1", "vit_b14.ssl4eo_s12_softcon_s1",
    }  # fmt: skip
    assert ids(data="satlas", license="permissive") == set()
    assert len(ids(license="CC0-1.0")) == 30
    assert len(ids(license="permissive")) == 83 - 8 - 8 - 1
    assert (
        ids(pattern="vit_h14") == ids(pattern="vit_h14.*") == {n for n in TABLE if n.startswith("vit_h14.")}
    )
    four = ids(sensor="s2", bands=("B02", "B03", "B04", "B08"))
    assert "resnet50.satlas_supervised_s2_si_ms" in four
    assert "resnet50.satlas_supervised_s2_si_rgb" not in four
    assert ids(bands=("B2", "B3", "B4", "B8")) >= four  # in any spelling, and of Landsat's
    with pytest.raises(ValueError, match="a sequence of names"):
        rsb.list_weights(bands="B02")
