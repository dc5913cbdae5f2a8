"""Spellings of bands in descriptions and file names: understood where they are clear, and never guessed."""

import pytest

from rsbackbones.data.band_names import bands_of_description, bands_of_file, is_auxiliary, product_of_file
from rsbackbones.data.rasters import RasterStack, find_bands
from rsbackbones.sensors import get_sensor
from tests.data.test_rasters import ramp, write_tif

# GDAL's Sentinel-2 driver, s2_get_band_description: its names and central wavelengths.
GDAL_S2 = {"B1": 443, "B2": 490, "B3": 560, "B4": 665, "B5": 705, "B6": 740, "B7": 783, "B8": 842, "B8A": 865,
           "B9": 945, "B10": 1375, "B11": 1610, "B12": 2190}  # fmt: skip
CLEAR = {
    "s2": {
        f"{name}, central wavelength {nm} nm": name if name == "B8A" else f"B{int(name[1:]):02}"
        for name, nm in GDAL_S2.items()
    }
    | {
        "B08_10m": "B08", "B8_10m": "B08", "B8A_20m": "B8A", "S2_B08": "B08", "Sentinel-2 B4": "B04",
        "S2A_L2A_B11_20m": "B11", "NIR_BROAD": "B08", "nir narrow": "B8A", "Red Edge 1": "B05", "RE3": "B07",
        "rededge075": "B06", "SWIR_1": "B11", "swir22": "B12", "B04 red": "B04", "blue (490 nm)": "B02",
        "20200604T054639_20200604T054831_T43RCP_B2": "B02", "B02_BOA": "B02",
    },
    "s1": {
        "Sigma0_VV_db": "VV", "VV_dB": "VV", "VH (dB)": "VH", "S1_VV": "VV", "gamma0_vh": "VH",
        "Sentinel-1 VH": "VH",
    },
    "landsat_oli": {"SR_B4": "B4", "Landsat 8 B5": "B5", "B5_30m": "B5", "nir": "B5"},
}  # fmt: skip
NOT = {
    "s2": (
        "SCL", "nir1", "B8A NIR", "B08_std", "B02_mean", "SR_B5", "LC08_B5", "VV", "cloud probability",
        "B4, central wavelength 865 nm", "AOT, Aerosol Optical Thickness map (at 550nm)", "B05 red edge",
        "infrared",
    ),
    "s1": ("Amplitude_VV", "Beta0_VV", "VV_VH", "VV/VH ratio", "angle", "Sigma0_VV_mst_05Jun2020"),
    "landsat_oli": ("S2_B8", "LE07_B4"),
}  # fmt: skip


@pytest.mark.parametrize("sensor", CLEAR)
def test_spellings_of_providers_are_understood(sensor):
    found = {text: bands_of_description(get_sensor(sensor), text) for text in CLEAR[sensor]}
    assert found == {text: (band,) for text, band in CLEAR[sensor].items()}


@pytest.mark.parametrize("sensor", NOT)
def test_what_is_not_clear_names_no_band(sensor):
    assert {text: bands_of_description(get_sensor(sensor), text) for text in NOT[sensor]} == dict.fromkeys(
        NOT[sensor], ()
    )


def test_a_description_that_may_be_several_bands_is_refused_by_name(tmp_path):
    assert bands_of_description(get_sensor("s2"), "rededge") == ("B05", "B06", "B07")
    path = write_tif(tmp_path / "a.tif", ramp(2), ("B02", "SWIR"))
    with pytest.raises(
        ValueError, match=r"a\.tif: 'SWIR' may be s2 B11 or s2 B12; name its bands.*'-'.*--bands"
    ):
        find_bands(path, ("s2",))
    assert find_bands(path, ("s2",), ["B02", "B12"])[0] == {"s2": {"B02": 1, "B12": 2}}


FILES = {
    ("s2", "T32TQM_20200601T101031_B02_10m"): ("B02",),
    ("s2", "T32TQM_20200601T101031_B8A_20m"): ("B8A",),
    ("s2", "S2A_MSIL2A_20170613T101031_87_48_B12"): ("B12",),
    ("s2", "red_river_B08"): ("B08",),
    ("s2", "red"): ("B04",),
    ("s2", "S2_nir08_20m"): ("B8A",),
    ("s2", "red_river"): (),
    ("s2", "B02_B03"): ("B02", "B03"),
    ("s2", "LC08_L2SP_193024_20200604_02_T1_SR_B5"): (),
    ("landsat_oli", "LC08_L2SP_193024_20200604_02_T1_SR_B5"): ("B5",),
    ("s2", "HLS.L30.T32TQM.2020153T100547.v2.0.B05"): (),
    ("hls_l30", "HLS.L30.T32TQM.2020153T100547.v2.0.B05"): ("B05",),
    ("s1", "s1a-iw-grd-vv-20200601t052621-20200601t052646-032818-03cd25-001"): ("VV",),
    ("s2", "s1a-iw-grd-vv-20200601t052621-20200601t052646-032818-03cd25-001"): (),
}


@pytest.mark.parametrize(("of", "bands"), FILES.items())
def test_file_names_tell_the_band_of_their_sensor(of, bands):
    assert bands_of_file(get_sensor(of[0]), of[1]) == bands


def test_files_of_a_product_share_what_is_left():
    assert {product_of_file(f"P1_{band}") for band in ("B02_10m", "B8A_20m", "B02")} == {"P1"}
    assert product_of_file("/a/R10m/T_B02_10m.jp2") == product_of_file("/a/R20m/T_B05_20m.jp2")
    assert product_of_file("/a/B02.tif") == product_of_file("/a/B03.tif") != product_of_file("/b/B03.tif")
    assert product_of_file("20200601_VV") != product_of_file("20200613_VV")
    assert [stem for stem in ("T32_SCL_20m", "T32_B02_10m", "TCI", "aot") if not is_auxiliary(stem)] == [
        "T32_B02_10m"
    ]


def test_a_single_band_is_named_by_its_file_and_a_stack_is_not(tmp_path):
    for name, description in (("P_B04_10m.tif", None), ("P_B05.tif", "Band 1"), ("P_B06.tif", "Gray")):
        path = write_tif(tmp_path / name, ramp(1), [description] if description else None)
        assert find_bands(path, ("s2",))[0] == {"s2": {name[2:5]: 1}}
    described = write_tif(tmp_path / "P_B07.tif", ramp(1), ["B02"])
    assert find_bands(described, ("s2",))[0] == {"s2": {"B02": 1}}
    for name in ("T32_B04.tif", "patch.tif"):
        bare = write_tif(tmp_path / name, ramp(2 if "B04" in name else 1))
        with pytest.raises(ValueError, match=r"band 1 of \d has no description; name its bands in order"):
            find_bands(bare, ("s2",))
    both = write_tif(tmp_path / "B02_B03.tif", ramp(1))
    with pytest.raises(ValueError, match=r"'B02_B03\.tif' may be s2 B02 or s2 B03"):
        find_bands(both, ("s2",))


def test_band_tags_name_what_has_no_description(tmp_path):
    import rasterio

    path = write_tif(tmp_path / "a.tif", ramp(2))
    with rasterio.open(path, "r+") as raster:
        raster.update_tags(1, BANDNAME="B4")
        raster.update_tags(2, common_name="nir")
    assert find_bands(path, ("s2",))[0] == {"s2": {"B04": 1, "B08": 2}}


def test_a_dash_skips_a_band(tmp_path):
    data = ramp(4)
    path = write_tif(tmp_path / "a.tif", data)
    with RasterStack([path], ("s2",), names=[("B02", "-", "B03", "-")]) as stack:
        assert stack.bands == {"s2": ("B02", "B03")}
        assert stack.ignored == {}
        assert (stack.read()[0]["s2"] == data[[0, 2]]).all()
