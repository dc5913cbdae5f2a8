"""Sensors, their bands, and the input contract of weights, as data.

Bands are identified by name, and channels are matched by band name, never by their number. Across sensors
names differ in meaning (B5 is near infrared for Landsat and red edge for Sentinel-2), so bands are matched by
wavelength; see :mod:`rsbackbones.zoo.adapt`.

Wavelengths, and widths at half of the maximum, are in nanometers; ground sampling distances (gsd) in meters.

- Sentinel-2: Sentinel-2A (ESA, S2-SRF 3.0, and the table of the MSI user guide).
- Sentinel-1: C-band at 5.405 GHz, of which the radar may use 100 MHz.
- Landsat-8 and 9 OLI: Barsi et al., "The Spectral Response of the Landsat-8 Operational Land Imager",
  Remote Sensing 6(10), 2014; TIRS: the Landsat 8 Data Users Handbook (USGS).
- HLS: the bands of OLI, TIRS and MSI under the names of the HLS v2.0 User Guide (NASA), all on a 30 m grid.
- SuperDove (PSB.SD): the band table of Planet's PlanetScope documentation.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

# The unit of 8-bit RGB images: the model's input is value / 255, without statistics.
UINT8_RGB = "uint8_rgb"


@dataclass(frozen=True, kw_only=True)
class Band:
    """One band: ``wavelength`` is its center in nm, ``width`` its full width at half maximum in nm.

    ``gsd`` is its ground sampling distance in m.
    """

    name: str
    wavelength: float
    width: float
    gsd: float
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Sensor:
    """A sensor and its bands. Bands are only matched to bands of the same ``kind``."""

    name: str
    title: str
    kind: Literal["optical", "radar"]
    bands: tuple[Band, ...]

    def band(self, name: str) -> Band:
        """Return the band called ``name``: its own name or an alias, in any case.

        Raises:
            ValueError: the sensor has no such band.
        """
        wanted = name.strip().lower()
        for band in self.bands:
            if wanted in (band.name.lower(), *(alias.lower() for alias in band.aliases)):
                return band
        known = ", ".join(band.name for band in self.bands)
        raise ValueError(
            f"sensor '{self.name}' has no band {name!r}; its bands are {known}. "
            "Common names such as 'red' or 'nir' also work."
        )

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
        _s2("B01", 442.7, 21, 60, "coastal"),
        _s2("B02", 492.4, 66, 10, "blue"),
        _s2("B03", 559.8, 36, 10, "green"),
        _s2("B04", 664.6, 31, 10, "red"),
        _s2("B05", 704.1, 15, 20, "rededge1"),
        _s2("B06", 740.5, 15, 20, "rededge2"),
        _s2("B07", 782.8, 20, 20, "rededge3"),
        _s2("B08", 832.8, 106, 10, "nir"),
        _s2("B8A", 864.7, 21, 20, "nir08"),
        _s2("B09", 945.1, 20, 60, "nir09"),
        _s2("B10", 1373.5, 31, 60, "cirrus"),
        _s2("B11", 1613.7, 91, 20, "swir16", "swir1"),
        _s2("B12", 2202.4, 175, 20, "swir22", "swir2"),
    ),
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
)

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
    sensor.name: sensor for sensor in (S2, S1, RGB, LANDSAT_OLI, HLS_L30, HLS_S30, SUPERDOVE)
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
    names = [n.lower() for band in sensor.bands for n in {band.name, *band.aliases}]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{here}: {', '.join(twice)} names more than one band; names are case-insensitive")
    if not sensor.bands:
        raise ValueError(f"{here} has no bands")
    for band in sensor.bands:
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


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """The input contract of one modality: the raw values that the weights expect, and their normalization.

    ``unit`` is the unit of the statistics: ``dn`` (reflectance x 10000), ``db``, ...
    ``normalize`` names a rule of :mod:`rsbackbones.preprocess`. ``mean`` and ``std`` are per band. A band of
    the model that is not in ``bands`` has no statistics. ``unused_bands`` need none: their kernels are zeros
    (``missing_bands="zero"``).
    """

    bands: tuple[str, ...]
    product: str
    unit: str
    normalize: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    eight_bit: bool = True
    statistics: str = ""
    unused_bands: tuple[str, ...] = ()

    def of(self, bands: Sequence[str]) -> "InputSpec":
        """Return the contract of these ``bands``, in their order. Bands without statistics are left out."""
        known = {b: (m, s) for b, m, s in zip(self.bands, self.mean, self.std, strict=True)}
        kept = [band for band in bands if band in known]
        return replace(
            self,
            bands=tuple(kept),
            mean=tuple(known[band][0] for band in kept),
            std=tuple(known[band][1] for band in kept),
            unused_bands=tuple(band for band in bands if band in self.unused_bands),
        )

    @staticmethod
    def from_mapping(sensor: str, fields: Mapping[str, object]) -> "InputSpec":
        """Read the contract of ``sensor`` from a manifest entry's ``inputs``.

        Raises:
            ValueError: a field is missing, unknown, or the statistics do not fit the bands.
        """
        try:
            spec = InputSpec(
                **{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}  # type: ignore[arg-type]
            )
        except TypeError as error:
            raise ValueError(f"inputs.{sensor}: {error}") from error
        # Both may be empty, if no band of the model has a match in its weights.
        for name in ("bands", "unused_bands"):
            given = getattr(spec, name)
            object.__setattr__(spec, name, get_sensor(sensor).canonical(given) if given else ())
        if twice := sorted({*spec.bands} & {*spec.unused_bands}):
            raise ValueError(f"inputs.{sensor}: {', '.join(twice)} is in bands and in unused_bands")
        if not len(spec.bands) == len(spec.mean) == len(spec.std):
            raise ValueError(
                f"inputs.{sensor}: {len(spec.bands)} bands, {len(spec.mean)} means and "
                f"{len(spec.std)} standard deviations; give one of each per band"
            )
        if min(spec.std, default=1) <= 0:
            raise ValueError(f"inputs.{sensor}: standard deviations must be positive, got {spec.std}")
        return spec


# Published with the SSL4EO-S12 data loader, computed there from 50,000 samples (Wang et al., 2023).
SSL4EO_S12: dict[str, InputSpec] = {
    "s2": InputSpec(
        bands=tuple(band.name for band in S2.bands if band.name != "B10"),
        product="L2A",
        unit="dn",
        normalize="clip_2sd",
        mean=(
            752.40087073, 884.29673756, 1144.16202635, 1297.47289228, 1624.90992062, 2194.6423161,
            2422.21248945, 2517.76053101, 2581.64687018, 2645.51888987, 2368.51236873, 1805.06846033,
        ),
        std=(
            1108.02887453, 1155.15170768, 1183.6292542, 1368.11351514, 1370.265037, 1355.55390699,
            1416.51487101, 1474.78900051, 1439.3086061, 1582.28010962, 1455.52084939, 1343.48379601,
        ),
        statistics="SSL4EO-S12",
    ),
    "s1": InputSpec(
        bands=("VV", "VH"),
        product="GRD",
        unit="db",
        normalize="clip_2sd",
        mean=(-12.54847273, -20.19237134),
        std=(5.25697717, 5.91150917),
        statistics="SSL4EO-S12",
    ),
}  # fmt: skip
