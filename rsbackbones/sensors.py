"""Sensors and their bands, as data.

Bands are identified by name, and channels are matched by band name, never by their number. Across sensors
names differ in meaning (B5 is near infrared for Landsat and red edge for Sentinel-2), so bands are matched by
wavelength; see :mod:`rsbackbones.zoo.adapt`.

Wavelengths, and widths at half of the maximum, are in nanometers; ground sampling distances (gsd) in meters.

- Sentinel-2: Sentinel-2A (ESA, S2-SRF 3.0, and the table of the MSI user guide).
- Sentinel-1: C-band at 5.405 GHz, of which the radar may use 100 MHz.
- Landsat-8 and 9 OLI: Barsi et al., "The Spectral Response of the Landsat-8 Operational Land Imager",
  Remote Sensing 6(10), 2014; TIRS: the Landsat 8 Data Users Handbook (USGS).
- Landsat-4 and 5 TM, Landsat-7 ETM+: the edges of the bands in "What are the band designations for the
  Landsat satellites?" (USGS).
- HLS: the bands of OLI, TIRS and MSI under the names of the HLS v2.0 User Guide (NASA), all on a 30 m grid.
- SuperDove (PSB.SD): the band table of Planet's PlanetScope documentation.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

_THERMAL_NM = (3e3, 1e5)


@dataclass(frozen=True, kw_only=True)
class Band:
    """One band: ``wavelength`` is its center in nm, ``width`` its full width at half maximum in nm.

    ``gsd`` is its ground sampling distance in m. ``index``: the band is no measurement but computed from
    these two bands of its sensor, the normalized difference (a - b) / (a + b), of a radar the ratio a / b,
    which is a - b in dB; it is only matched by name.
    """

    name: str
    wavelength: float
    width: float
    gsd: float
    aliases: tuple[str, ...] = ()
    index: tuple[str, ...] = ()

    @property
    def is_thermal(self) -> bool:
        """Whether the band measures emitted heat (a temperature in kelvin), not reflected sunlight."""
        return _THERMAL_NM[0] <= self.wavelength <= _THERMAL_NM[1]


@dataclass(frozen=True, kw_only=True)
class Sensor:
    """A sensor and its bands. Bands are only matched to bands of the same ``kind``.

    ``derived`` bands may be named as others are, and are not among those that the sensor has by default.
    """

    name: str
    title: str
    kind: Literal["optical", "radar"]
    bands: tuple[Band, ...]
    derived: tuple[Band, ...] = ()

    def band(self, name: str) -> Band:
        """Return the band called ``name``: its own name or an alias, in any case.

        Raises:
            ValueError: the sensor has no such band.
        """
        if found := self._by_name.get(name.strip().lower()):
            return found
        known = ", ".join(band.name for band in (*self.bands, *self.derived))
        raise ValueError(
            f"sensor '{self.name}' has no band {name!r}; its bands are {known}. "
            "Common names such as 'red' or 'nir' also work."
        )

    @functools.cached_property
    def _by_name(self) -> dict[str, Band]:
        """The bands by all their names in lower case; of two bands with one name the first."""
        bands = reversed((*self.bands, *self.derived))
        return {name.lower(): band for band in bands for name in (band.name, *band.aliases)}

    def canonical(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return ``names`` in this sensor's own spelling, in the order given.

        Raises:
            ValueError: a name is unknown, or a band is named twice.
        """
        if isinstance(names, str):
            raise ValueError(f"bands must be a sequence of names, got the string {names!r}")
        if any(not isinstance(name, str) for name in names):
            raise ValueError(f"bands must be names such as {self.bands[0].name!r}, got {list(names)!r}")
        resolved = tuple(self.band(name).name for name in names)
        twice = sorted({name for name in resolved if resolved.count(name) > 1})
        if twice or not resolved:
            what = f"band {', '.join(twice)} is named more than once" if twice else "no band is named"
            raise ValueError(f"sensor '{self.name}': {what} in {list(names)}; name each channel once")
        return resolved


def _s2(name: str, wavelength: float, width: float, gsd: float, *common: str) -> Band:
    # Providers write B1 or B01, and B8A also as B08A.
    spellings = (name.replace("B0", "B"),) if name != "B8A" else ("B08A",)
    return Band(name=name, wavelength=wavelength, width=width, gsd=gsd, aliases=(*spellings, *common))


S2 = Sensor(
    name="s2",
    title="Sentinel-2 MSI",
    kind="optical",
    bands=(
        _s2("B01", 442.7, 21, 60, "coastal", "coastal_aerosol"),
        _s2("B02", 492.4, 66, 10, "blue"),
        _s2("B03", 559.8, 36, 10, "green"),
        _s2("B04", 664.6, 31, 10, "red"),
        _s2("B05", 704.1, 15, 20, "rededge1", "rededge071", "re1"),
        _s2("B06", 740.5, 15, 20, "rededge2", "rededge075", "re2"),
        _s2("B07", 782.8, 20, 20, "rededge3", "rededge078", "re3"),
        _s2("B08", 832.8, 106, 10, "nir", "nir_broad", "broad_nir"),
        _s2("B8A", 864.7, 21, 20, "nir08", "nir_narrow", "narrow_nir"),
        _s2("B09", 945.1, 20, 60, "nir09"),
        _s2("B10", 1373.5, 31, 60, "cirrus"),
        _s2("B11", 1613.7, 91, 20, "swir16", "swir1"),
        _s2("B12", 2202.4, 175, 20, "swir22", "swir2"),
    ),
)

# Seasonal contrast on SSL4Eco adds NDVI to the bands. Its wavelength, between the two, is of no use.
S2_NDVI = Sensor(
    name="s2_ndvi",
    title="Sentinel-2 MSI, with NDVI",
    kind="optical",
    bands=(*S2.bands, Band(name="NDVI", wavelength=748.7, width=168.2, gsd=10, index=("B08", "B04"))),
)

_C_BAND_HZ = 5.405e9
_C_BAND_NM = 299_792_458 / _C_BAND_HZ * 1e9
_C_BAND_WIDTH_NM = _C_BAND_NM * 100e6 / _C_BAND_HZ

S1 = Sensor(
    name="s1",
    title="Sentinel-1 C-SAR",
    kind="radar",
    bands=tuple(
        Band(name=name, wavelength=_C_BAND_NM, width=_C_BAND_WIDTH_NM, gsd=10) for name in ("VV", "VH")
    ),
    # The third band of PASTIS-R.
    derived=(
        Band(
            name="VV/VH", wavelength=_C_BAND_NM, width=_C_BAND_WIDTH_NM, gsd=10, index=("VV", "VH"),
        ),
    ),
)  # fmt: skip

# An RGB picture carries the three visible Sentinel-2 bands, under their Sentinel-2 names.
RGB = Sensor(
    name="rgb",
    title="8-bit red, green, blue",
    kind="optical",
    bands=(
        Band(name="B04", wavelength=664.6, width=31, gsd=10, aliases=("red", "r")),
        Band(name="B03", wavelength=559.8, width=36, gsd=10, aliases=("green", "g")),
        Band(name="B02", wavelength=492.4, width=66, gsd=10, aliases=("blue", "b")),
    ),
)


def _landsat(number: int, wavelength: float, width: float, gsd: float, *common: str) -> Band:
    # USGS writes B1 (and SR_B1 for surface reflectance), NASA's HLS B01.
    spellings = (f"B{number:02}", f"SR_B{number}") if number < 10 else ()
    return Band(name=f"B{number}", wavelength=wavelength, width=width, gsd=gsd, aliases=(*spellings, *common))


LANDSAT_OLI = Sensor(
    name="landsat_oli",
    title="Landsat-8 and Landsat-9 OLI",
    kind="optical",
    bands=(
        _landsat(1, 443.0, 16, 30, "coastal"),
        _landsat(2, 482.0, 60, 30, "blue"),
        _landsat(3, 561.4, 57, 30, "green"),
        _landsat(4, 654.6, 37, 30, "red"),
        _landsat(5, 864.7, 28, 30, "nir08", "nir"),
        _landsat(6, 1608.9, 85, 30, "swir16", "swir1"),
        _landsat(7, 2200.7, 187, 30, "swir22", "swir2"),
        _landsat(8, 589.5, 172, 15, "pan"),
        _landsat(9, 1373.4, 20, 30, "cirrus"),
    ),
)

LANDSAT_OLI_TIRS = Sensor(
    name="landsat_oli_tirs",
    title="Landsat-8 and Landsat-9 OLI and TIRS",
    kind="optical",
    bands=(
        *LANDSAT_OLI.bands,
        _landsat(10, 10895, 590, 100, "tir1", "lwir11"),
        _landsat(11, 12005, 1010, 100, "tir2", "lwir12"),
    ),
)


def _between(number: int, low: float, high: float, gsd: float, *common: str) -> Band:
    return _landsat(number, (low + high) / 2, high - low, gsd, *common)


LANDSAT_TM = Sensor(
    name="landsat_tm",
    title="Landsat-4 and Landsat-5 TM",
    kind="optical",
    bands=(
        _between(1, 450, 520, 30, "blue"),
        _between(2, 520, 600, 30, "green"),
        _between(3, 630, 690, 30, "red"),
        _between(4, 760, 900, 30, "nir"),
        _between(5, 1550, 1750, 30, "swir16", "swir1"),
        _between(6, 10400, 12500, 120, "tir"),
        _between(7, 2080, 2350, 30, "swir22", "swir2"),
    ),
)

_ETM_THERMAL = _between(6, 10400, 12500, 60)
LANDSAT_ETM = Sensor(
    name="landsat_etm",
    title="Landsat-7 ETM+",
    kind="optical",
    bands=(
        _between(1, 450, 520, 30, "blue"),
        _between(2, 520, 600, 30, "green"),
        _between(3, 630, 690, 30, "red"),
        _between(4, 770, 900, 30, "nir"),
        _between(5, 1550, 1750, 30, "swir16", "swir1"),
        # The thermal band at low and at high gain.
        replace(_ETM_THERMAL, name="B6_VCID_1", aliases=("B6L",)),
        replace(_ETM_THERMAL, name="B6_VCID_2", aliases=("B6H",)),
        _between(7, 2090, 2350, 30, "swir22", "swir2"),
        _between(8, 520, 900, 15, "pan"),
    ),
)

HLS_L30 = Sensor(
    name="hls_l30",
    title="Harmonized Landsat Sentinel-2, from Landsat",
    kind="optical",
    bands=(
        *(
            replace(band, name=f"B0{band.name[1:]}", gsd=30, aliases=(band.name, *band.aliases[2:]))
            for band in LANDSAT_OLI.bands
            if band.name != "B8"
        ),
        Band(name="B10", wavelength=10895, width=590, gsd=30, aliases=("tir1", "lwir11")),
        Band(name="B11", wavelength=12005, width=1010, gsd=30, aliases=("tir2", "lwir12")),
    ),
)

HLS_S30 = Sensor(
    name="hls_s30",
    title="Harmonized Landsat Sentinel-2, from Sentinel-2",
    kind="optical",
    bands=tuple(replace(band, gsd=30) for band in S2.bands),
)


def _superdove(number: int, name: str, wavelength: float, width: float, *common: str) -> Band:
    return Band(name=name, wavelength=wavelength, width=width, gsd=3, aliases=(f"B{number}", *common))


SUPERDOVE = Sensor(
    name="superdove",
    title="PlanetScope SuperDove",
    kind="optical",
    bands=(
        _superdove(1, "coastal_blue", 443, 20, "coastal"),
        _superdove(2, "blue", 490, 50),
        _superdove(3, "green_i", 531, 36),
        _superdove(4, "green", 565, 36),
        _superdove(5, "yellow", 610, 20),
        _superdove(6, "red", 665, 31),
        _superdove(7, "rededge", 705, 15, "rededge1"),
        _superdove(8, "nir", 865, 40, "nir08"),
    ),
)

SENSORS: dict[str, Sensor] = {
    sensor.name: sensor
    for sensor in (
        S2,
        S1,
        RGB,
        S2_NDVI,
        LANDSAT_TM,
        LANDSAT_ETM,
        LANDSAT_OLI,
        LANDSAT_OLI_TIRS,
        HLS_L30,
        HLS_S30,
        SUPERDOVE,
    )
}

# The sensors whose bands files are searched for where nobody says which sensor they are of.
SEARCHED_SENSORS = ("s2", "s1")


def get_sensor(name: str) -> Sensor:
    """Return the sensor called ``name``.

    Raises:
        ValueError: no sensor has that name.
    """
    if name not in SENSORS:
        raise ValueError(
            f"unknown sensor {name!r}; known sensors: {', '.join(SENSORS)}. One of your own must be "
            "registered first: rsbackbones.register_sensor(Sensor(...))"
        )
    return SENSORS[name]


def register_sensor(sensor: Sensor) -> Sensor:
    """Register your own sensor under its name, in this process, and return it.

    Raises:
        ValueError: another sensor has that name, two bands share a name, or a number is out of range.
    """
    here = f"sensor {sensor.name!r}"
    if SENSORS.get(sensor.name, sensor) != sensor:
        raise ValueError(f"{here} is already registered with other bands; choose another name")
    if sensor.kind not in ("optical", "radar"):
        raise ValueError(f"{here}: kind must be optical or radar, got {sensor.kind!r}")
    every = (*sensor.bands, *sensor.derived)
    names = [n.lower() for band in every for n in {band.name, *band.aliases}]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{here}: {', '.join(twice)} names more than one band; names are case-insensitive")
    if not sensor.bands:
        raise ValueError(f"{here} has no bands")
    for band in every:
        if not all(math.isfinite(v) and v > 0 for v in (band.wavelength, band.width, band.gsd)):
            raise ValueError(f"{here}: wavelength, width and gsd must be positive, got {band}")
        if band.wavelength < 100:
            raise ValueError(
                f"{here}: band {band.name} lies at {band.wavelength} nm; wavelengths are in nanometers, "
                "1000 to the micrometer"
            )
    SENSORS[sensor.name] = sensor
    return sensor


def hyperspectral(name: str, wavelengths: Sequence[float], gsd: float, *, width: float = 10.0) -> Sensor:
    """Return a sensor of many narrow bands, called ``B001``, ``B002``, ... in the order given.

    Args:
        name: of the sensor.
        wavelengths: the centers of its bands in nm, in the order of the channels; 200 and more.
        gsd: ground sampling distance in m.
        width: full width at half maximum of the bands in nm. It is only used to match bands to weights that
            were trained on this sensor.

    The values are checked by :func:`register_sensor` and ``create_model(sensors=...)``, not here.
    """
    bands = tuple(
        Band(name=f"B{number:03}", wavelength=float(wavelength), width=width, gsd=gsd)
        for number, wavelength in enumerate(wavelengths, start=1)
    )
    return Sensor(name=name, title=f"{name}, {len(bands)} bands", kind="optical", bands=bands)
