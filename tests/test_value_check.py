"""One judgement of values for Python, scenes, patches, evaluation, packing and training."""

import io
import re
import warnings
import zipfile
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import rasterio
import torch

import rsbackbones as rsb
from rsbackbones.data.check import validate_sample
from rsbackbones.data.date_alignment import warn_of_pairs
from rsbackbones.data.geotiffs import GeoTiffSource
from rsbackbones.data.image_warnings import ImageWarnings
from rsbackbones.data.labelled.dataset import LabelledDataset
from rsbackbones.data.pack import pack
from rsbackbones.data.s2_baseline import warn_of_baseline
from rsbackbones.data.source import BadSample
from rsbackbones.embed import embed_patches, embed_scene, principal_colors
from rsbackbones.eval.batches import input_batches
from rsbackbones.eval.feature_source import describe
from rsbackbones.sensors import get_sensor
from rsbackbones.train.engine.config_io import apply_overrides
from rsbackbones.train.streams import open_sources
from rsbackbones.value_check import (
    MissingPixelsWarning,
    OffsetWarning,
    ProductWarning,
    UnitWarning,
    bands_with_holes,
    judge,
    missing_pixels,
)
from tests.data.test_rasters import write_tif
from tests.train.training import small_recipe

BANDS = {"s2": ("B02", "B03", "B04", "B08"), "s1": ("VV", "VH")}
SHAPE = {m: (len(bands), 64, 64) for m, bands in BANDS.items()}
DRAW = np.random.default_rng(0)
DN = DRAW.gamma(2, 700, SHAPE["s2"]).clip(1, 12000)
DB = DRAW.normal(-14, 4, SHAPE["s1"])
POWER = 10 ** (DB / 10)
TOWN = np.array([10, 3])[:, None, None]
PICTURE = DRAW.integers(0, 256, SHAPE["s2"])
SNOW = np.where(DN > 1400, DN + 12_000, DN).clip(max=20_000)
AMPLITUDE = DRAW.rayleigh(120, SHAPE["s1"]).astype("u2")  # of a GRD product
LEFT = np.arange(64) < 16
HALF = np.where(LEFT & (np.arange(4) == 2)[:, None, None], 0, DN)  # of one band
FEW = DRAW.random(SHAPE["s2"]) < 0.01
ONE = (np.arange(4) == 2)[:, None, None]
EDGE = np.arange(64) == 0
MIXED = DRAW.uniform(1100, 9900, SHAPE["s2"])
SEA, ICE = (np.array(factors)[:, None, None] for factors in ([10, 7, 4, 1], [6, 6, 6, 5]))
LAND = DN * np.array([0.4, 0.5, 0.4, 1.5])[:, None, None]
LOWEST, HIGHEST = (side(DN, axis=(1, 2), keepdims=True) for side in (np.min, np.max))
SCALED = (DN - LOWEST) / (HIGHEST - LOWEST)
ALL_SCALED = (DN - DN.min()) / (DN.max() - DN.min())
STRETCHED = ((DN - 400) / 2500).clip(0, 1)
WATER = np.where((np.arange(4) == 3)[:, None, None], DN / 100 - 8, DN).clip(0)
F32, MOST = np.float32, float(np.finfo(np.float32).max)


def some(x, value, count):
    """``x`` with a value in this many places, or in this share of them."""
    x = np.array(x)
    if isinstance(count, int):
        x.reshape(-1)[DRAW.choice(x.size, count, replace=False)] = value
    else:
        x[..., : round(x.shape[-1] * count)] = value
    return x


# name: modality, unit (None: the contract's), values, and what is said of them (None: they are right).
CASES = {
    "dn": ("s2", None, DN.astype("u2"), None),
    "dn, a saturated pixel": ("s2", None, some(DN, 65535, 1).astype("u2"), None),
    "dn of snow and cloud": ("s2", None, SNOW.astype("u2"), None),
    "dn of water": ("s2", None, (DN / 6 + 1).astype("u2"), None),
    "dn of a night": ("s2", None, (DN / 200).astype("u2") + 1, None),
    "dn of a lake": ("s2", None, (DN / 40).clip(1, 228).astype("u2"), UnitWarning),
    "dn with offset": ("s2", None, (DN + 1000).astype("u2"), OffsetWarning),
    "dn with offset, dark pixels": ("s2", None, some(DN + 1000, 400, 5).astype("u2"), OffsetWarning),
    "dn with offset, named": ("s2", "dn_baseline_0400", (DN + 1000).astype("u2"), None),
    "dn with offset, of clouds": ("s2", None, (DN + 2500).astype("u2"), UnitWarning),
    "dn, a band without data": ("s2", None, HALF.astype("u2"), MissingPixelsWarning),
    "reflectance, a band without data": ("s2", "reflectance", (HALF / 1e4).astype(F32), MissingPixelsWarning),
    "dn, a band of dark water": ("s2", None, WATER.astype("u2"), None),
    "dn, named as with offset": ("s2", "dn_baseline_0400", (DN / 3).astype("u2"), "units={'s2': 'dn'}"),
    "reflectance": ("s2", "reflectance", (DN / 1e4).astype(F32), None),
    "reflectance of clouds": ("s2", "reflectance", (SNOW / 1e4).astype(F32), None),
    "reflectance below zero": ("s2", "reflectance", (DN / 1e4 - 0.03).astype(F32), None),
    "reflectance as dn": ("s2", None, (DN / 1e4).astype(F32), "units={'s2': 'reflectance'}"),
    "reflectance as dn, bright pixels": ("s2", None, some(DN / 1e4, 2.8, 11).astype(F32),
                                         "units={'s2': 'reflectance'}"),
    "dn as reflectance": ("s2", "reflectance", DN.astype("u2"), "units={'s2': 'dn'}"),
    "percent as dn": ("s2", None, (DN / 100).astype(F32), "units={'s2': 'percent'}"),
    "percent as reflectance": ("s2", "reflectance", (DN / 100).astype(F32), "units={'s2': 'percent'}"),
    "percent": ("s2", "percent", (DN / 100).astype(F32), None),
    "whole percent as dn": ("s2", None, (DN / 100).round().clip(3, 56).astype("u2"), UnitWarning),
    "percent of dark water": ("s2", "percent", (DN.clip(max=1900) * SEA / 1e4).astype(F32), UnitWarning),
    "reflectance as percent": ("s2", "percent", (DN / 1e4).astype(F32), "units={'s2': 'reflectance'}"),
    "reflectance of water as percent": ("s2", "percent", (DN * SEA / 1e6).astype(F32),
                                        "units={'s2': 'reflectance'}"),
    "reflectance of ice as percent": ("s2", "percent", (DN.clip(900, 1800) * ICE / 1e4).astype(F32),
                                      "units={'s2': 'reflectance'}"),
    "whole percent as reflectance": ("s2", "reflectance", (DN / 100).round().astype("i4"),
                                     "units={'s2': 'percent'}"),
    "z-scores as dn": ("s2", None, ((DN - DN.mean()) / DN.std()).astype(F32), "look normalized already"),
    "z-scores as reflectance": ("s2", "reflectance", ((DN - DN.mean()) / DN.std()).astype(F32),
                                "look normalized already"),
    "picture": ("s2", "rgb8", PICTURE.clip(1).astype("u1"), None),
    "picture as uint16": ("s2", None, PICTURE.astype("u2"), "units={'s2': 'rgb8'}"),
    "picture as float32": ("s2", None, PICTURE.astype(F32), "units={'s2': 'rgb8'}"),
    "picture, resized": ("s2", None, (PICTURE * 0.99).astype(F32), "units={'s2': 'rgb8'}"),
    "-9999 in dn": ("s2", None, some(DN, -9999, 0.5).astype("i2"), "nodata=-9999"),
    "one -9999 in dn": ("s2", None, some(DN, -9999, 1).astype("i2"), "nodata=-9999"),
    "65535 in dn": ("s2", None, some(DN, 65535, 0.5).astype("u2"), "nodata=65535"),
    "-3.4e38 in dn": ("s2", None, some(DN, -MOST, 0.5).astype(F32), f"nodata={-MOST}"),
    "3.4e38 in dn": ("s2", None, some(DN, MOST, 0.5).astype(F32), f"nodata={MOST}"),
    "-9999 in reflectance": ("s2", "reflectance", some(DN / 1e4, -9999, 0.5).astype(F32), "nodata=-9999"),
    "-0.1 in reflectance": ("s2", "reflectance", some(DN / 1e4, -0.1, 0.5).astype(F32), "nodata=-0.1000"),
    "4.7 in reflectance": ("s2", "reflectance", some(DN / 1e4, 4.7, 40).astype(F32), None),
    "65535 in reflectance, scaled": ("s2", "reflectance", some(DN / 1e4, 6.5535, 40).astype(F32),
                                     "nodata=6.5535"),
    "dB": ("s1", None, DB.astype(F32), None),
    "dB of a town": ("s1", None, (DB + TOWN).astype(F32), None),
    "dB x 100": ("s1", None, (DB * 100).astype("i2"), "units={'s1': 'db_x100'}"),
    "dB x 100, named": ("s1", "db_x100", (DB * 100).astype("i2"), None),
    "-9999 in dB": ("s1", None, some(DB, -9999, 0.5).astype(F32), "nodata=-9999"),
    "-32768 in dB": ("s1", None, some(DB, -32768, 0.5).astype("i2"), "nodata=-32768"),
    "dB, zero without data": ("s1", None, some(DB, 0, 0.1).astype(F32), "nodata=0"),
    "dB x 100, zero without data": ("s1", "db_x100", some(DB * 100, 0, 0.1).astype("i2"), "nodata=0"),
    "dB, clipped to 0": ("s1", None, (DB + TOWN).clip(-25, 0).astype(F32), None),
    "power as dB, zero without data": ("s1", None, some(POWER, 0, 0.6).astype(F32), "units={'s1': 'linear'}"),
    "dB x 10": ("s1", None, (DB * 10).astype("i2"), "decibels x 10"),
    "dB x 10 as dB x 100": ("s1", "db_x100", (DB * 10).astype("i2"), "decibels x 10"),
    "z-scores as dB": ("s1", None, ((DB + 14) / 4).astype(F32), "look normalized already"),
    "power": ("s1", "linear", POWER.astype(F32), None),
    "power, noise removed": ("s1", "linear", some(POWER, -1e-4, 200).astype(F32), None),
    "power of ships": ("s1", "linear", some(POWER, 300, 60).astype(F32), None),
    "power, a band without data": ("s1", "linear", np.where(LEFT, [[[0]], [[1]]], 1) * POWER,
                                   MissingPixelsWarning),
    "power as dB": ("s1", None, POWER.astype(F32), "units={'s1': 'linear'}"),
    "power as dB, noise removed": ("s1", None, some(POWER, -1e-4, 20).astype(F32), "units={'s1': 'linear'}"),
    "dB as power": ("s1", "linear", DB.astype(F32), "units={'s1': 'db'}"),
    "amplitude as dB": ("s1", None, AMPLITUDE, "look like amplitudes"),
    "amplitude as power": ("s1", "linear", AMPLITUDE, "look like amplitudes"),
    "a band of reflectance in dn": ("s2", None, np.where(ONE, DN / 1e4, DN).astype(F32), "B04 alone"),
    "dn with offset, zeros": ("s2", None, some(DN + 1000, 0, 80).astype("u2"), OffsetWarning),
    "-60 dB": ("s1", None, some(DB, -60, 0.05).astype(F32), "nodata=-60"),
    "scaled by its extremes": ("s2", "reflectance", SCALED.astype(F32), "as if scaled by its extremes"),
}  # fmt: skip
# More of them, which need not take every way.
MORE = {
    # one band among others
    "a band of percent in dn": ("s2", None, np.where(ONE, DN / 100, DN.round()).astype(F32), "B04 alone"),
    "a band of dn in reflectance": ("s2", "reflectance", np.where(ONE, DN, DN / 1e4).astype(F32), "like"),
    "a picture among dn": ("s2", None, np.where(ONE, (DN / 8).clip(max=255), DN).astype("u2"), "B04 alone"),
    "a band of power in dB": ("s1", None, np.stack([DB[0], POWER[1]]).astype(F32), "VH alone"),
    "a band of dB in power": ("s1", "linear", np.stack([POWER[0], DB[1]]).astype(F32), "units={'s1': 'db'}"),
    # the offset beside pixels that are missing
    "dn with offset, pixels below zero": ("s2", None, np.where(FEW, -PICTURE, DN + 1000).astype("i2"),
                                          OffsetWarning),
    "reflectance with offset": ("s2", "reflectance", (DN / 1e4 + 0.1).astype(F32), OffsetWarning),
    "percent with offset": ("s2", "percent", (DN / 1e2 + 10).astype(F32), OffsetWarning),
    "dn, the offset subtracted twice": ("s2", None, (LAND - 1000).astype("i2"), "an offset was subtracted"),
    # values that nobody declared
    "-1 in dn": ("s2", None, some(DN.round() + 200, -1, 0.05).astype("i2"), "nodata=-1"),
    "1 in dn": ("s2", None, some(DN.round() + 200, 1, 0.05).astype("u2"), "nodata=1"),
    "-100 in dn": ("s2", None, some(DN.round() + 200, -100, 0.05).astype("i2"), "nodata=-100"),
    "-100 in a band": ("s2", None, np.where(ONE & LEFT, -100, DN + 200).astype("i2"), "nodata=-100"),
    "9999 in dn": ("s2", None, some((DN / 2).round(), 9999, 0.05).astype("u2"), "nodata=9999"),
    "-60 dB in a band": ("s1", None, np.where(LEFT, [[[-60]], [[-14]]], DB).astype(F32), "nodata=-60"),
    "-9999 in dn of 16 bits": ("s2", None, some(DN.round(), 55537, 20).astype("u2"), "nodata=55537"),
    "-9999, resampled": ("s2", None, np.where(EDGE, -MIXED, DN).astype(F32), "gdalwarp -srcnodata"),
    "-9999, resampled, reflectance": ("s2", "reflectance", np.where(EDGE, -MIXED, DN / 1e4).astype(F32),
                                      "gdalwarp -srcnodata"),
    "-9999, resampled, dB": ("s1", None, np.where(EDGE, -MIXED[:2], DB).astype(F32), "gdalwarp -srcnodata"),
    "-9999, resampled, power": ("s1", "linear", np.where(EDGE, -MIXED[:2], POWER).astype(F32),
                                "gdalwarp -srcnodata"),
    "1e-6 in power": ("s1", "linear", some(POWER, 1e-6, 0.05).astype(F32), "nodata=9.9999"),
    "dB below the noise": ("s1", None, (DB - 45).astype(F32), "too weak for backscatter"),
    # other scales
    "reflectance x 1000 as dn": ("s2", None, (LAND / 10).clip(1, 990).astype("u2"), UnitWarning),
    "reflectance x 1000 as reflectance": ("s2", "reflectance", (LAND / 10).clip(1, 990).astype("u2"),
                                          "reflectances x 1000"),
    "reflectance, divided twice": ("s2", "reflectance", (LAND / 1e8).astype(F32), "once too often"),
    "scaled by its extremes, as dn": ("s2", None, SCALED.astype(F32), "as if scaled by its extremes"),
    "scaled to -1 and 1": ("s2", "reflectance", (2 * SCALED.astype(F32) - 1), "as if scaled by its extremes"),
    "scaled by its extremes, x 10000": ("s2", None, (SCALED * 1e4).astype("u2"), "as if scaled"),
    "all scaled by the extremes": ("s2", "reflectance", ALL_SCALED.astype(F32), UnitWarning),
    "10000 in dn": ("s2", None, some((DN / 3).round(), 10000, 0.05).astype("u2"), "nodata=10000"),
    "dn, clipped at 10000": ("s2", None, (SNOW * 0.9).clip(0, 10000).astype("u2"), None),
    "stretched": ("s2", "reflectance", STRETCHED.astype(F32), "as if scaled by its extremes"),
    "reflectance, clipped": ("s2", "reflectance", (SNOW / 1e4).clip(0, 1).astype(F32), None),
    "a picture divided by 255": ("s2", "reflectance", (PICTURE.clip(1) / 255).astype(F32), "'rgb8'"),
    "amplitude (calibrated) as power": ("s1", "linear", np.sqrt(POWER).astype(F32), UnitWarning),
    "amplitude (calibrated) as dB": ("s1", None, np.sqrt(POWER).astype(F32), "square amplitudes first"),
    "dB of amplitude": ("s1", None, (DB / 2).astype(F32), UnitWarning),
}  # fmt: skip


@pytest.fixture(scope="module")
def models():
    small = {"depth": 2, "dim": 32, "num_heads": 4}
    return {
        m: rsb.create_model("croma_vit_tiny", modalities=(m,), bands={m: b}, overrides=small)
        for m, b in BANDS.items()
    }


def run_python(model, modality, unit, x, folder):
    rsb.create_preprocess(model, units={modality: unit} if unit else {})({modality: x[None]})


def run_scene(model, modality, unit, x, folder):
    path = write_tif(folder / "x.tif", x, BANDS[modality])
    embed_scene(model, [path], folder / "map.tif", units={modality: unit} if unit else {}, progress=False)


def run_patches(model, modality, unit, x, folder):
    path = write_tif(folder / "x.tif", x, BANDS[modality])
    embed_patches(model, [path], folder / "rows.npz", units={modality: unit} if unit else {}, progress=False)


def labelled(model, modality, unit, x):
    return LabelledDataset(
        name="x", task="classes", classes=("a", "b"), bands={modality: BANDS[modality]},
        units={modality: unit} if unit else {}, ids=("x",), splits={"train": np.array([0])},
        labels=np.array([0]), read=lambda _: {modality: x}, digest="x",
    )  # fmt: skip


def run_eval(model, modality, unit, x, folder):
    list(input_batches(model, labelled(model, modality, unit, x), "train", batch_size=1))


def run_pack(model, modality, unit, x, folder):
    (folder / modality).mkdir()
    write_tif(folder / modality / "x.tif", x, BANDS[modality])
    pack(GeoTiffSource(folder), folder / "packed", progress=False)


def run_training(model, modality, unit, x, folder):
    (folder / modality).mkdir()
    write_tif(folder / modality / "x.tif", x, BANDS[modality])
    options = {"data.parts": [], "overrides.modalities": f'["{modality}"]', "epochs": 1}
    options |= {f"data.units.{modality}": unit} if unit else {}
    open_sources(apply_overrides(small_recipe(folder), options), model)


ROUTES = (run_python, run_scene, run_patches, run_eval, run_pack, run_training)


@pytest.mark.parametrize(
    ("route", "name"),
    [
        *(pytest.param(r, n, id=f"{r.__name__[4:]}-{n}") for r in ROUTES for n in CASES),
        *(pytest.param(run_python, n, id=f"python-{n}") for n in MORE),
    ],
)
def test_values_are_judged_alike_everywhere(route, name, models, tmp_path):
    modality, unit, x, said = (CASES | MORE)[name]
    if route is run_pack and unit:
        pytest.skip("shards hold the units of the contract")
    if not isinstance(said, str):
        with warnings.catch_warnings():
            if said is None:
                warnings.simplefilter("error", UnitWarning)
                warnings.simplefilter("error", MissingPixelsWarning)
            with pytest.warns(said) if said else nullcontext():
                route(models[modality], modality, unit, x, tmp_path)
        return
    if route is run_pack:  # which has no option for another unit
        said = "Shards hold" if said.startswith("units=") else said.replace("nodata=", "")
    with pytest.raises(ValueError, match=re.escape(said)):
        route(models[modality], modality, unit, x, tmp_path)


def test_real_samples_are_right(real_data):
    """Clear, cloudy, snow and water, at both levels; radar in dB and as power."""
    load = lambda name, key: np.load(real_data / name)[key]  # noqa: E731
    l1c = tuple(band.name for band in get_sensor("s2").bands)
    l2a, fine = tuple(b for b in l1c if b != "B10"), ("B02", "B03", "B04", "B08")
    ten = tuple(b for b in l2a if b not in ("B01", "B09"))
    images = {
        ("s2", "dn"): [
            (fine, load("bigearthnet_v2_pairs_80.npz", "s2")),
            (fine, load("bigearthnet_v1_pairs12band_6.npz", "s2_10m")),
            (l1c, load("eurosat_ms_200.npz", "images")[::4]),
            (l2a, load("terramesh_examples_4.npz", "S2L2A")),
            (("B01", "B04", "B08", "B11"), load("gfmap_belgium_s1s2_series_1.npz", "s2")),
            (ten, load("treesatai_ts_1.npz", "s2")[::3]),
            (l1c, load("ravaen_lahinch_5dates.npz", "s2")),
        ],
        ("s1", "db"): [
            (BANDS["s1"], load("bigearthnet_v2_pairs_80.npz", "s1")),
            (BANDS["s1"], load("terramesh_examples_4.npz", "S1RTC")),
        ],
        ("s1", "linear"): [
            (BANDS["s1"], load("treesatai_ts_1.npz", "s1_asc")),
            (BANDS["s1"], load("treesatai_ts_1.npz", "s1_des")),
        ],
        ("landsat_oli", "dn"): [
            (("B2", "B3", "B4", "B5", "B6", "B7"), load("landsat8_s1_amazon_1.npz", "l8")[None])
        ],
    }  # fmt: skip
    for (sensor, unit), sets in images.items():
        for bands, x in sets:
            values = torch.from_numpy(x.astype(np.float32))
            every = values.movedim(1, 0)[:, ~missing_pixels(values, unit)]
            assert judge(every, unit, get_sensor(sensor), bands).kind == "right"
            for one in values:
                held = one[:, ~missing_pixels(one, unit)]
                verdict = judge(held, unit, get_sensor(sensor), bands)
                assert verdict.kind in ("right", "suspect"), verdict
                assert not bands_with_holes(held, unit)


def test_the_offset_of_real_images_is_seen(real_data):
    """Three of the four tiles at the top of the atmosphere carry it; the darkest value of one is 54."""
    images = torch.from_numpy(np.load(real_data / "terramesh_examples_4.npz")["S2L1C"].astype(np.float32))
    s2 = get_sensor("s2")
    bands = tuple(band.name for band in s2.bands)
    l2a = tuple(band for band in bands if band != "B10")
    found = [judge(x.flatten(1), "dn", s2, bands, cirrus=x[10]).unit for x in images]
    assert found == ["dn_baseline_0400", None, "dn_baseline_0400", "dn_baseline_0400"]
    alone = [judge(x.clamp(min=1001).flatten(1), "dn", s2, bands, cirrus=x[10]).unit for x in images]
    assert alone == found  # the cirrus band decides
    clear = np.load(real_data / "s2l2a_unlabelled_1200.npz")["images"][::40]
    judged = {
        judge(torch.from_numpy(x.astype(np.float32) + add).flatten(1), "dn", s2, l2a, alone=False).unit: add
        for x in clear
        for add in (0, 1000)
    }
    assert judged == {None: 0, "dn_baseline_0400": 1000}


def test_pictures_of_eurosat_have_the_stated_scale(real_data):
    """255 of a picture is about 2,750 dn of the original."""
    from PIL import Image

    original = np.load(real_data / "eurosat_ms_200.npz")
    with zipfile.ZipFile(real_data / "eurosat_rgb_5000.zip") as archive:
        pictures = np.stack(
            [
                np.asarray(Image.open(io.BytesIO(archive.read(f"{name.rsplit('_', 1)[0]}/{name}.jpg"))))
                for name in original["names"]
            ]
        )
    for channel, band in enumerate(("B04", "B03", "B02")):
        dn = original["images"][:, list(original["bands"]).index(band)].astype(np.float64)
        seen = pictures[..., channel].astype(np.float64)
        inside = (seen > 20) & (seen < 235)
        fit = (dn[inside] * seen[inside]).sum() / (seen[inside] ** 2).sum() * 255
        assert fit == pytest.approx(2750, rel=0.02), band
        assert np.corrcoef(dn[inside], seen[inside])[0, 1] > 0.99


# -- pixels without data ------------------------------------------------------------------------------


def test_declared_pixels_get_the_mean_of_their_image(models):
    x = some(DN.astype("f4"), -9999, 0.25)[None].repeat(2, 0)
    x[1, :, :, 16:] += 100
    made = rsb.create_preprocess(models["s2"], nodata=-9999)(x)
    means = x[..., 16:].mean((2, 3), keepdims=True)
    filled = np.where(x == -9999, means, x).astype("f4")
    expected = rsb.create_preprocess(models["s2"])(filled)
    assert (made - expected).abs().max() <= 1 / 255 + 1e-6
    with pytest.raises(ValueError, match="an image has no pixel with data"):
        rsb.create_preprocess(models["s2"], nodata=-9999)(np.full((1, 4, 8, 8), -9999.0))


@pytest.mark.parametrize(("modality", "unit"), [("s2", None), ("s2", "reflectance"), ("s1", "linear")])
def test_pixels_of_zero_in_all_bands_have_no_data(models, tmp_path, modality, unit):
    x = {"s2": DN if unit is None else DN / 1e4, "s1": POWER}[modality].astype(np.float32)
    x[..., :32] = 0
    units = {modality: unit} if unit else {}
    path = write_tif(tmp_path / "x.tif", x, BANDS[modality])
    embed_scene(models[modality], [path], tmp_path / "map.tif", units=units, progress=False)
    with rasterio.open(tmp_path / "map.tif") as found:
        missing = np.isnan(found.read(1))
    assert missing[:, :4].all()
    assert not missing[:, 4:].any()
    with pytest.raises(ValueError, match="2048 pixels have no data"):
        embed_patches(models[modality], [path], tmp_path / "rows.npz", units=units, progress=False)
    with pytest.warns(MissingPixelsWarning, match="nodata=0"):
        rsb.create_preprocess(models[modality], units=units)(x)
    rsb.create_preprocess(models[modality], units=units, nodata=0)(x)


def test_one_band_of_zero_is_measured(models, tmp_path):
    x = DN.astype("u2")
    x[3, :, :32] = 0
    path = write_tif(tmp_path / "x.tif", x, BANDS["s2"])
    embed_scene(models["s2"], [path], tmp_path / "map.tif", progress=False)
    with rasterio.open(tmp_path / "map.tif") as found:
        assert np.isfinite(found.read()).all()


# -- what files state ---------------------------------------------------------------------------------


def test_scale_and_offset_tags_state_the_unit(models, tmp_path):
    """As of products since baseline 04.00: reflectance = value / 10000 - 0.1."""
    x = (DN + 1000).astype("u2")
    (tmp_path / "root").mkdir()
    tagged = write_tif(tmp_path / "root" / "tagged.tif", x, BANDS["s2"])
    with rasterio.open(tagged, "r+") as raster:
        raster.scales, raster.offsets = (1e-4,) * 4, (-0.1,) * 4
    plain = write_tif(tmp_path / "plain.tif", DN.astype("u2"), BANDS["s2"])
    rows = []
    for path in (tagged, plain):
        embed_patches(models["s2"], [path], tmp_path / "rows.npz", progress=False)
        with np.load(tmp_path / "rows.npz") as found:
            rows.append(found["s2"][0])
    np.testing.assert_allclose(*rows, atol=1e-2)  # a value may fall on the other side of an 8-bit step
    for path, units, who in ((plain, {}, "assumed"), (plain, {"s2": "dn"}, "user"), (tagged, {}, "files")):
        embed_scene(models["s2"], [path], tmp_path / "map.tif", units=units, progress=False)
        with rasterio.open(tmp_path / "map.tif") as found:
            assert found.tags()["units_from"] == str({"s2": who})
    image = GeoTiffSource(tmp_path / "root").read(0, 0).images["s2"]
    np.testing.assert_allclose(image, DN.astype("u2"), atol=0.01)
    with pytest.raises(ValueError, match=r"look like reflectances.*not 'dn'"):
        embed_patches(models["s2"], [tagged], tmp_path / "rows.npz", units={"s2": "dn"}, progress=False)


def test_overviews_are_not_looked_at(models, tmp_path):
    """Those of a large scene hold something else here, as cubic or stale ones do."""
    x = np.tile(POWER, (1, 10, 10)).astype("f4")
    path = write_tif(tmp_path / "x.tif", x, BANDS["s1"])
    with rasterio.open(path, "r+") as raster:
        raster.build_overviews([2, 4], rasterio.enums.Resampling.nearest)
        raster.write(x * 0.5)  # which leaves the overviews as they are
        raster.build_overviews([2], rasterio.enums.Resampling.nearest)
    with rasterio.open(path, "r+", OVERVIEW_LEVEL=0) as overview:
        overview.write(np.full(overview.read().shape, -50, "f4"))
    embed_scene(
        models["s1"], [path], tmp_path / "map.tif", units={"s1": "linear"}, window=120, progress=False
    )


# -- maps without contrast ----------------------------------------------------------------------------


def test_a_map_without_variance_is_refused_and_not_stretched(models, tmp_path):
    x = np.where(DN > 1400, 15_000, 14_000).astype("u2")  # all beyond the clip of the contract
    path = write_tif(tmp_path / "x.tif", x, BANDS["s2"])
    with pytest.raises(ValueError, match="normalization clips"):
        embed_scene(models["s2"], [path], tmp_path / "map.tif", progress=False)
    write_tif(tmp_path / "x.tif", np.full(x.shape, 1234, "u2"), BANDS["s2"])  # of a scene that does not vary
    embed_scene(models["s2"], [path], tmp_path / "map.tif", progress=False)
    noise = 1 + 1e-7 * DRAW.normal(size=(8, 8, 16)).astype("f4")
    assert not principal_colors(noise)[:3].any()
    assert principal_colors(noise + DRAW.normal(size=(8, 8, 16)).astype("f4"))[:3].any()


# -- pixel size and dates -----------------------------------------------------------------------------


def test_pixels_of_another_size_are_named(models, tmp_path):
    near, far = (
        write_tif(
            tmp_path / f"{m}.tif", DN.astype("u2"), BANDS["s2"],
            transform=rasterio.Affine(m, 0, 5e5, 0, -m, 5e6),
        )
        for m in (10, 20)
    )  # fmt: skip
    degrees = write_tif(
        tmp_path / "degrees.tif", DN.astype("u2"), BANDS["s2"], crs="EPSG:4326",
        transform=rasterio.Affine(1e-4, 0, 10, 0, -1e-4, 40),
    )  # fmt: skip
    with pytest.warns(UserWarning, match=r"20\.tif: s2: the pixels are 20 m wide, .* trained on 10 m"):
        embed_patches(models["s2"], [near, far, degrees], tmp_path / "rows.npz", progress=False)
    with np.load(tmp_path / "rows.npz") as rows:
        np.testing.assert_allclose(
            rows["pixel_m"], [10, 20, 11.132 * np.cos(np.radians(40)) ** 0.5], rtol=1e-3
        )
    data = replace(labelled(models["s2"], "s2", "rgb8:3000", DN.astype("u2")), pixel_m=20.0)
    with pytest.warns(UserWarning, match="x: s2: the pixels are 20 m wide"):
        notes = describe(data, models["s2"])
    assert any("20 m wide" in note for note in notes)
    assert any("255 is taken as a reflectance of 0.3 (3000 dn)" in note for note in notes)
    with pytest.warns(UserWarning, match="20 m wide"):
        embed_scene(models["s2"], [far], tmp_path / "map.tif", progress=False)
    with rasterio.open(tmp_path / "map.tif") as found:
        assert float(found.tags()["pixel_m"]) == 20


def test_every_date_of_a_series_is_judged(models):
    series = np.stack([DN] * 8)[None]
    preprocess = rsb.create_preprocess(models["s2"])
    preprocess(series)
    series[0, 5] /= 1e4
    with pytest.raises(ValueError, match=r"image 6 of 8: values .* look like reflectances"):
        preprocess(series)
    series[0, 5] = -9999
    with pytest.raises(ValueError, match="nodata=-9999"):
        preprocess(series)
    preprocess(series, {"s2": torch.arange(8)[None] != 5})


def test_a_dark_date_of_a_series_is_no_picture(models):
    series = np.stack([DN] * 8)
    series[5] = np.round(np.random.default_rng(0).uniform(1, 254, DN.shape))
    preprocess = rsb.create_preprocess(models["s2"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        preprocess(series[None])
    with pytest.raises(ValueError, match="look like an 8-bit picture"):
        preprocess(series[5])  # alone
    series[5] = PICTURE
    with pytest.raises(ValueError, match=r"image 6 of 8: values .* look like an 8-bit picture"):
        preprocess(series[None])


def test_one_image_with_the_offset_is_named(models):
    preprocess, batch = rsb.create_preprocess(models["s2"]), np.stack([DN] * 4)
    batch[2] += 1000
    with pytest.warns(OffsetWarning, match=r"1 of 4 images \(first number 3\): hardly a value is below 950"):
        preprocess(batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch[2] += 5000  # clouds, which are no reason to doubt the others
        preprocess(batch)


def test_the_cirrus_band_tells_the_offset_of_clouds(models):
    bands = ("B10", *BANDS["s2"])
    clouds = np.concatenate([np.full((1, 64, 64), 12), DN + 5000])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rsb.create_preprocess(models["s2"], bands={"s2": bands})(clouds)
    with pytest.warns(OffsetWarning, match="cirrus band B10 is above 900"):
        rsb.create_preprocess(models["s2"], bands={"s2": bands})(clouds + 1000)
    named = rsb.create_preprocess(models["s2"], bands={"s2": bands}, units={"s2": "dn_baseline_0400"})
    named(clouds + 1000)
    with pytest.raises(ValueError, match=r"cirrus band B10 is 12.*units={'s2': 'dn'}"):
        named(clouds)


def test_embed_reads_the_cirrus_band_for_the_offset(models, tmp_path):
    """Also where the model does not take it; its missing pixels do not count."""
    cirrus = np.full((1, 64, 64), 1012)
    cirrus[:, :8] = 0
    x, bands = np.concatenate([cirrus, DN / 2 + 2500]).astype("u2"), ("B10", *BANDS["s2"])
    path = write_tif(tmp_path / "x.tif", x, bands)
    for embed, name in ((embed_scene, "map.tif"), (embed_patches, "rows.npz")):
        with pytest.warns(
            OffsetWarning,
            match=r"B10 is above 900.*dn_baseline_0400.*; in a recipe data.units.s2=dn_baseline_0400",
        ):
            embed(models["s2"], [path], tmp_path / name, progress=False)
    write_tif(path, np.concatenate([cirrus - 1000, DN / 2 + 2500]).clip(0).astype("u2"), bands)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnitWarning)
        embed_scene(models["s2"], [path], tmp_path / "map.tif", progress=False)
    with rasterio.open(tmp_path / "map.tif") as found:
        assert np.isfinite(found.read()).all()


@pytest.mark.parametrize(
    ("modality", "unit", "x"),
    [
        ("s2", "reflectance", DN / 1e4 + 0.1),
        ("s2", None, LAND.clip(1, 9900) / 10),
        ("s1", "linear", POWER**0.5),
    ],
    ids=["offset of reflectance", "reflectance x 1000", "amplitude"],
)
def test_what_is_suspected_of_many_images_is_counted(models, modality, unit, x):
    preprocess = rsb.create_preprocess(models[modality], units={modality: unit} if unit else {})
    doubts, draw = ImageWarnings(), np.random.default_rng(2)
    for i in range(6):
        with doubts.of_image(i):
            preprocess(x * (draw.uniform(0.9, 1, x.shape) if unit != "reflectance" else 1 + i / 100))
    ((_, text),) = doubts.of_set(range(6))
    assert text.startswith("all images: ")


def test_an_offset_of_one_reflectance_image_is_named(models):
    batch = np.stack([DN / 1e4] * 4)
    batch[1] += 0.1
    with pytest.warns(OffsetWarning, match=r"1 of 4 images \(first number 2\): .*subtract 0\.1"):
        rsb.create_preprocess(models["s2"], units={"s2": "reflectance"})(batch)


def test_whole_percent_is_named(models):
    with pytest.warns(UnitWarning, match=r"reflectances in percent.*units={'s2': 'percent'}"):
        rsb.create_preprocess(models["s2"])((DN / 100).round().clip(3, 56).astype("i4"))


@pytest.mark.parametrize(("doubtful", "said"), [(3, "3 of 10 images"), (2, None)])
def test_a_set_with_images_of_both_baselines_is_named(models, doubtful, said):
    preprocess, doubts = rsb.create_preprocess(models["s2"]), ImageWarnings()
    for i in range(10):
        with doubts.of_image(i):
            preprocess(DN + 1000 * (i < doubtful))
    assert [text.partition(":")[0] for _, text in doubts.of_set(range(10))] == ([said] if said else [])


def test_what_a_few_files_state_is_given_too():
    """A tag is no doubt: a set of ten files of which one has it is warned of, once, with the number."""
    found = ImageWarnings()
    for i in range(10):
        with found.of_image(i):
            warn_of_baseline({"PROCESSING_BASELINE": "05.10" if i == 7 else "02.09"})
    with pytest.warns(ProductWarning, match="set, 1 of 10 images: the tag PROCESSING_BASELINE=05.10"):
        found.warn("set", range(10))


@pytest.mark.parametrize(("dates", "said"), [(2, False), (3, True)])
def test_series_count_by_the_share_of_their_dates(models, dates, said, tmp_path):
    """Of cloudy series up to a quarter of the dates look as if they had the offset."""
    preprocess, file = rsb.create_preprocess(models["s2"]), tmp_path / "warnings"
    doubts = ImageWarnings(file)
    for i in range(6):
        series = np.stack([DN] * 10)
        series[i % 4 : i % 4 + dates] += 1000  # other numbers in every text
        with doubts.of_image(i):
            preprocess(series[None])
    for kept in (doubts, ImageWarnings(file)):
        ((text, count),) = kept.counts(range(6)).items()
        assert text.startswith("s2: single images of a series: hardly a value is below 950")
        assert count == 6
        assert [one for _, one in kept.of_set(range(6))] == ([f"all images: {text}"] if said else [])


@pytest.mark.parametrize(
    ("others", "warned"),
    [([0, 100, 200], False), ([3, 96, 210], False), ([100, 200, 300], True), ([0, 45, 145], True)],
)
def test_dates_are_not_paired_by_their_position_unasked(others, warned):
    images = {"s2": np.stack([DN] * 3).astype("u2"), "s1": np.stack([DB] * 3).astype("f4")}
    days = {"s2": np.array([0, 100, 200]), "s1": np.array(others)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(BadSample, match="days apart") if max(others) > 260 else nullcontext():
            validate_sample(images, BANDS, frames=3, dates=days)
        warn_of_pairs("set", days, {"s1": np.array([True, True, False])})
    assert any("paired by their position" in str(one.message) for one in caught) == warned


def test_landsat_holds_reflectances_that_sentinel_2_cannot():
    """Collection 2 stores them from -0.2 on, and dark water is below -0.1 in some of its pixels."""
    water = DN / 1e5
    water[0, :4] = DRAW.uniform(-0.19, -0.11, (4, 64))
    x = torch.from_numpy(water.reshape(4, -1).astype(F32))
    landsat, s2 = get_sensor("landsat_oli"), get_sensor("s2")
    assert judge(x, "reflectance", landsat, ("B2", "B3", "B4", "B5")).kind == "right"
    assert judge(x * 1e4, "dn", landsat, ("B2", "B3", "B4", "B5")).kind == "right"
    assert judge(x, "reflectance", s2, BANDS["s2"]).kind == "impossible"
    x[0, :256] *= 10
    assert judge(x, "reflectance", landsat, ("B2", "B3", "B4", "B5")).kind == "impossible"
