"""Bands by name, and the published statistics."""

import json

import numpy as np
import pytest

from rsbackbones.sensors import S1, S2, SENSORS, SSL4EO_S12, InputSpec, get_sensor
from tests.conftest import DATA


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["B1", "B2", "B8", "B8A", "B12"], ("B01", "B02", "B08", "B8A", "B12")),
        (["b01", "b8a", " B09 "], ("B01", "B8A", "B09")),
        (["red", "green", "blue", "nir", "cirrus"], ("B04", "B03", "B02", "B08", "B10")),
        (["swir16", "swir22", "nir08", "rededge3"], ("B11", "B12", "B8A", "B07")),
    ],
)
def test_providers_names_are_understood(given, expected):
    assert S2.canonical(given) == expected


def test_every_alias_means_one_band():
    for sensor in SENSORS.values():
        names = [n.lower() for b in sensor.bands for n in {b.name.lower(), *(a.lower() for a in b.aliases)}]
        assert len(names) == len(set(names))


def test_unknown_and_double_bands_are_refused():
    with pytest.raises(ValueError, match=r"no band 'B13'; its bands are B01"):
        S2.canonical(["B13"])
    with pytest.raises(ValueError, match="B02 is named more than once"):
        S2.canonical(["B02", "blue"])
    with pytest.raises(ValueError, match="unknown sensor 's4'; known sensors: s2, s1, rgb"):
        get_sensor("s4")


def test_sentinel_2_wavelengths_rise_and_resolutions_are_the_three():
    wavelengths = [band.wavelength for band in S2.bands]
    assert wavelengths == sorted(wavelengths)
    assert {band.gsd for band in S2.bands} == {10, 20, 60}
    assert [b.name for b in S2.bands if b.gsd == 10] == ["B02", "B03", "B04", "B08"]
    assert 55.4e6 < S1.bands[0].wavelength < 55.6e6  # 5.5 cm, in nm


def test_statistics_are_the_published_ones():
    published = json.loads((DATA / "ssl4eo_s12_statistics.json").read_text())
    for sensor, key in (("s2", "s2_l2a"), ("s1", "s1_grd")):
        for field in ("bands", "mean", "std"):
            assert list(getattr(SSL4EO_S12[sensor], field)) == published[key][field]


def test_input_specs_are_checked():
    good = {
        "bands": ["VV"],
        "product": "GRD",
        "unit": "db",
        "normalize": "clip_2sd",
        "mean": [1.0],
        "std": [1.0],
    }
    assert InputSpec.from_mapping("s1", good).mean == (1.0,)
    for change, message in (
        ({"mean": [1.0, 2.0]}, "2 means"),
        ({"std": [0.0]}, "positive"),
        ({"colour": 1}, "colour"),
    ):
        with pytest.raises(ValueError, match=message):
            InputSpec.from_mapping("s1", {**good, **change})
    with pytest.raises(ValueError, match="std"):
        InputSpec.from_mapping("s1", {k: v for k, v in good.items() if k != "std"})


def test_statistics_are_plausible_for_real_images(real_data):
    """Cloud-free L2A lies within the clip range, below the (cloudy) published mean, and is not flat in it."""
    stored = np.load(real_data / "s2l2a_unlabelled_1200.npz")
    spec = SSL4EO_S12["s2"]
    assert tuple(stored["bands"]) == spec.bands
    pixels = np.moveaxis(stored["images"][::4], 1, -1).reshape(-1, 12).astype(float)
    mean, std = np.array(spec.mean), np.array(spec.std)
    offset = (pixels.mean(0) - mean) / std
    assert (offset > -1).all()
    assert (offset < 0).all()
    assert (np.abs(pixels - mean) > 2 * std).mean(0).max() < 0.02
    radar = np.load(real_data / "bigearthnet_v2_pairs_80.npz")["s1"].astype(float)
    spec = SSL4EO_S12["s1"]
    for i in range(2):
        assert abs(radar[:, i].mean() - spec.mean[i]) < 0.5 * spec.std[i]
        assert 0.7 < radar[:, i].std() / spec.std[i] < 1.3
