"""Bands by name, and the published statistics."""

import json
from dataclasses import replace

import numpy as np
import pytest

from rsbackbones.input_spec import SSL4EO_S12, InputSpec
from rsbackbones.sensors import S1, S2, SENSORS, Band, Sensor, get_sensor, hyperspectral, register_sensor
from tests.conftest import RECORDED


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
    published = json.loads((RECORDED / "ssl4eo_s12_statistics.json").read_text())
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
        ({"color": 1}, "color"),
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


def test_other_sensors_have_the_bands_of_their_products():
    """Counts, edges of a few bands as their providers publish them, and names that providers use."""
    counts = {"landsat_oli": 9, "hls_l30": 10, "hls_s30": 13, "superdove": 8, "rgb": 3}
    assert {name: len(get_sensor(name).bands) for name in counts} == counts
    edges = {
        ("landsat_oli", "B5"): (851, 879),
        ("landsat_oli", "pan"): (503, 676),
        ("landsat_oli", "SR_B7"): (2107, 2294),
        ("hls_l30", "B10"): (10600, 11190),
        ("superdove", "rededge"): (697, 713),
        ("superdove", "B8"): (845, 885),
        ("s2", "B08"): (780, 886),
    }
    for (sensor, name), (low, high) in edges.items():
        band = get_sensor(sensor).band(name)
        assert band.wavelength - band.width / 2 == pytest.approx(low, abs=1.5)
        assert band.wavelength + band.width / 2 == pytest.approx(high, abs=1.5)
    assert get_sensor("hls_l30").canonical(["B1", "nir08", "swir22"]) == ("B01", "B05", "B07")
    assert {band.gsd for name in ("hls_l30", "hls_s30") for band in get_sensor(name).bands} == {30}


def a_sensor(*bands, name="mine", kind="optical"):
    return Sensor(name=name, title="", kind=kind, bands=bands)


RED = Band(name="red", wavelength=650.0, width=30.0, gsd=1.0, aliases=("r",))


def test_a_sensor_of_ones_own_is_known_once_registered(own_sensors):
    sensor = a_sensor(RED)
    assert register_sensor(sensor) is sensor
    assert get_sensor("mine") is sensor
    register_sensor(a_sensor(RED))  # the same again
    with pytest.raises(ValueError, match="'mine' is already registered with other bands"):
        register_sensor(a_sensor(replace(RED, gsd=2.0)))


@pytest.mark.parametrize(
    ("sensor", "message"),
    [
        (a_sensor(RED, name="s2"), "'s2' is already registered"),
        (a_sensor(RED, kind="lidar"), "kind must be optical or radar, got 'lidar'"),
        (a_sensor(), "'mine' has no bands"),
        (a_sensor(RED, replace(RED, name="R", aliases=())), "r names more than one band"),
        (a_sensor(replace(RED, width=0.0)), "must be positive"),
        (a_sensor(replace(RED, wavelength=float("nan"))), "must be positive"),
        (a_sensor(replace(RED, wavelength=0.65)), "wavelengths are in nanometers"),
    ],
)
def test_sensors_that_cannot_be_are_refused(own_sensors, sensor, message):
    with pytest.raises(ValueError, match=message):
        register_sensor(sensor)
    assert "mine" not in SENSORS


def test_hyperspectral_sensors_keep_the_order_of_their_channels(own_sensors):
    sensor = register_sensor(hyperspectral("many", [2400.0, 420.0, 1000.5], 30, width=7.5))
    assert [(b.name, b.wavelength, b.width, b.gsd) for b in sensor.bands] == [
        ("B001", 2400.0, 7.5, 30), ("B002", 420.0, 7.5, 30), ("B003", 1000.5, 7.5, 30)
    ]  # fmt: skip
