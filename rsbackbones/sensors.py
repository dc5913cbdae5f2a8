"""Sensors, their bands, and the input contract of weights, as data.

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rsbackbones.typed_fields import check_fields, show

# The unit of 8-bit RGB images: the model's input is value / 255, without statistics.
RGB8 = "rgb8"
# The units and rules that an input contract may state, with ``None`` for a unit that nobody states.
ContractUnit = Literal["dn", "db", "uint8", "tci_dn"]
ContractRule = Literal["clip_2sd", "scale", "standard", "imagenet", "none"]
# A standard deviation below it would make infinities of pixels.
_SMALLEST_STD = 1e-9
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


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """The input contract of one modality: the raw values that the weights expect, and their normalization.

    ``unit`` is the unit that the numbers below are given in: ``dn`` (reflectance x 10000, temperatures in
    kelvin), ``db``, ``uint8`` (the 8-bit values of the training set) or ``tci_dn`` (the same for the bands of
    Sentinel-2's true color image, dn for others). ``None``: nobody states it.
    ``normalize`` names a rule of :mod:`rsbackbones.preprocess`. ``mean`` and ``std`` are per band. A band of
    the model that is not in ``bands`` has no statistics. ``unused_bands`` need none: their kernels are zeros
    (``missing_bands="zero"``).

    ``stored_range``: how the training set's 8-bit values were made: per band the values in dn (kelvin) that
    are stored as 0 and 255, ``None`` for a band that is not stored in 8 bits. Empty: nobody states it.
    ``stretch``: for the rule ``imagenet``, the 8-bit values per band that become 0 and 1; empty: 0 and 255.
    ``clip``: for the rule ``scale``, clip the result to [0, 1].
    ``notes``: what is known about the contract, and what is not.
    """

    bands: tuple[str, ...]
    product: str
    unit: str | None
    normalize: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    eight_bit: bool = True
    statistics: str = ""
    unused_bands: tuple[str, ...] = ()
    stored_range: tuple[tuple[float, float] | None, ...] = ()
    stretch: tuple[tuple[float, float], ...] = ()
    clip: bool = False
    notes: str = ""

    @property
    def rows(self) -> dict[str, "BandNumbers"]:
        """The numbers of every band."""
        ranges = self.stored_range or (None,) * len(self.bands)
        stretches = self.stretch or (None,) * len(self.bands)
        numbers = zip(self.mean, self.std, ranges, stretches, strict=True)
        return {band: BandNumbers(*each) for band, each in zip(self.bands, numbers, strict=True)}

    def with_rows(self, rows: Mapping[str, "BandNumbers"], unused_bands: Sequence[str] = ()) -> "InputSpec":
        """Return the contract of other bands, with the numbers of each."""
        each = list(rows.values())
        return replace(
            self,
            bands=tuple(rows),
            mean=tuple(row.mean for row in each),
            std=tuple(row.std for row in each),
            stored_range=tuple(row.stored_range for row in each) if self.stored_range else (),
            stretch=tuple(row.stretch or (0.0, 255.0) for row in each) if self.stretch else (),
            unused_bands=tuple(unused_bands),
        )

    def of(self, bands: Sequence[str]) -> "InputSpec":
        """Return the contract of these ``bands``, in their order. Bands without statistics are left out."""
        known = self.rows
        unused = [band for band in bands if band in self.unused_bands]
        return self.with_rows({band: known[band] for band in bands if band in known}, unused)

    @staticmethod
    def check_mapping(sensor: str, fields: object) -> None:
        """Check the types of a contract's fields, without looking up the sensor.

        Raises:
            ValueError: a field is unknown, of another type, or not finite; it is named.
        """
        known = {
            "unit": ContractUnit | None, "normalize": ContractRule, "scale": float | tuple[float, ...]
        }  # fmt: skip
        check_fields(InputSpec, fields, f"inputs.{sensor}", also=known)

    @staticmethod
    def from_mapping(sensor: str, fields: Mapping[str, object]) -> "InputSpec":
        """Read the contract of ``sensor`` from a manifest entry's ``inputs``.

        ``scale``, one number or one per band, stands for ``mean`` 0 and that ``std``.

        Raises:
            ValueError: a field is missing, unknown, or the statistics do not fit the bands.
        """
        InputSpec.check_mapping(sensor, fields)
        values: dict[str, Any] = {k: _tuples(v) for k, v in fields.items()}
        if "scale" in values:
            scale, count = values.pop("scale"), len(values.get("bands", ()))
            values |= {
                "mean": (0.0,) * count,
                "std": scale if isinstance(scale, tuple) else (scale,) * count,
            }
        values.setdefault("eight_bit", values.get("normalize") == "clip_2sd")
        try:
            spec = InputSpec(**values)
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
                f"{len(spec.std)} standard deviations; mean and std have one number per band"
            )
        if min(spec.std, default=1) < _SMALLEST_STD:
            raise ValueError(f"inputs.{sensor}: std must be positive, got {show(spec.std)}")
        for name in ("stored_range", "stretch"):
            pairs = getattr(spec, name)
            if pairs and len(pairs) != len(spec.bands):
                raise ValueError(f"inputs.{sensor}: {name} must have one (low, high) per band, got {pairs}")
            if any(pair is not None and not pair[0] < pair[1] for pair in pairs):
                raise ValueError(f"inputs.{sensor}: {name} must go from low to high, got {pairs}")
        return spec


@dataclass(frozen=True)
class BandNumbers:
    """The numbers of one band in an :class:`InputSpec`."""

    mean: float
    std: float
    stored_range: tuple[float, float] | None = None
    stretch: tuple[float, float] | None = None


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


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

# The same of the images at the top of the atmosphere, which are not stored in 8 bits.
SSL4EO_S12_L1C: dict[str, InputSpec] = {
    "s2": InputSpec(
        bands=tuple(band.name for band in S2.bands),
        product="L1C",
        unit="dn",
        normalize="clip_2sd",
        mean=(
            1605.57504906, 1390.78157673, 1314.8729939, 1363.52445545, 1549.44374991, 2091.74883118,
            2371.7172463, 2299.90463006, 2560.29504086, 830.06605044, 22.10351321, 2177.07172323,
            1524.06546312,
        ),
        std=(
            786.78685367, 850.34818441, 875.06484736, 1138.84957046, 1122.17775652, 1161.59187054,
            1274.39184232, 1248.42891965, 1345.52684884, 577.31607053, 51.15431158, 1336.09932639,
            1136.53823676,
        ),
        eight_bit=False,
        statistics="SSL4EO-S12",
    ),
    "s1": replace(SSL4EO_S12["s1"], eight_bit=False),
}  # fmt: skip

# Landsat of SSL4EO-L (Stewart et al., NeurIPS 2023), 8-bit: reflectance from 0 to 0.4 at the top of the
# atmosphere and to 0.3 at the surface, brightness temperature from -25 to 45 degrees Celsius. The ranges are
# in the scripts that compressed the data set, torchgeo's experiments/ssl4eo/landsat/compress_*.sh; the newest
# revision of compress_dataset.py multiplies by 255 (an older one by 256, at most one level more).
_TOA, _SR, _KELVIN = (0.0, 4000.0), (0.0, 3000.0), (248.15, 318.15)


def _ssl4eo_l(sensor: Sensor, product: str, bands: Sequence[str] | None = None) -> InputSpec:
    chosen = [band for band in sensor.bands if bands is None or band.name in bands]
    reflectance = _SR if product == "SR" else _TOA
    return InputSpec(
        bands=tuple(band.name for band in chosen),
        product=product,
        unit="uint8",
        normalize="scale",
        mean=(0.0,) * len(chosen),
        std=(255.0,) * len(chosen),
        eight_bit=False,
        statistics="SSL4EO-L",
        stored_range=tuple(_KELVIN if band.is_thermal else reflectance for band in chosen),
    )


# The default contracts of architectures with one sensor, where no weights state another.
SINGLE_SENSOR_INPUTS: dict[str, InputSpec] = {
    **SSL4EO_S12,
    "s2_ndvi": InputSpec(
        bands=("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "NDVI"),
        product="L2A",
        unit="dn",
        normalize="scale",
        mean=(0.0,) * 9,
        std=(10000.0,) * 9,
        eight_bit=False,
        statistics="SSL4Eco",
    ),
    "rgb": InputSpec(
        bands=tuple(band.name for band in RGB.bands),
        product="8-bit picture",
        unit="uint8",
        normalize="imagenet",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        eight_bit=False,
        statistics="ImageNet",
        stored_range=((0.0, 2750.0),) * 3,  # our choice, that of the unit rgb8
    ),
    "landsat_tm": _ssl4eo_l(LANDSAT_TM, "TOA"),
    "landsat_etm": _ssl4eo_l(LANDSAT_ETM, "TOA"),
    "landsat_oli_tirs": _ssl4eo_l(LANDSAT_OLI_TIRS, "TOA"),
    "landsat_oli": _ssl4eo_l(LANDSAT_OLI, "SR", ("B1", "B2", "B3", "B4", "B5", "B6", "B7")),
}
