"""Sensors, their bands, and what a set of weights expects of its input. All of it is data.

A band is known by its name; the user's channels meet the weights' channels by name, never by count.
Wavelengths are the Sentinel-2A centre wavelengths (ESA Sentinel-2 spectral responses, S2-SRF 3.0) in
nanometres; Sentinel-1's C-band is 5.405 GHz. Ground sampling distances (gsd) are in metres.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Band:
    """One band: ``wavelength`` is its centre in nm, ``gsd`` its ground sampling distance in m."""

    name: str
    wavelength: float
    gsd: float
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Sensor:
    """A sensor and its bands. ``kind`` is the class within which bands may stand in for each other."""

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
            "Common names such as 'red' or 'nir' are understood too."
        )

    def canonical(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return ``names`` in this sensor's own spelling, in the order given.

        Raises:
            ValueError: a name is unknown, or a band is named twice.
        """
        if isinstance(names, str):
            raise ValueError(f"bands must be a sequence of names, got the string {names!r}")
        resolved = tuple(self.band(name).name for name in names)
        twice = sorted({name for name in resolved if resolved.count(name) > 1})
        if twice or not resolved:
            what = f"band {', '.join(twice)} is named more than once" if twice else "no band is named"
            raise ValueError(f"sensor '{self.name}': {what} in {list(names)}; name each channel once")
        return resolved


def _s2(name: str, wavelength: float, gsd: float, *common: str) -> Band:
    # Providers write B1 or B01, and B8A also as B08A.
    spellings = (name.replace("B0", "B"),) if name != "B8A" else ("B08A",)
    return Band(name=name, wavelength=wavelength, gsd=gsd, aliases=(*spellings, *common))


S2 = Sensor(
    name="s2",
    title="Sentinel-2 MSI",
    kind="optical",
    bands=(
        _s2("B01", 442.7, 60, "coastal"),
        _s2("B02", 492.4, 10, "blue"),
        _s2("B03", 559.8, 10, "green"),
        _s2("B04", 664.6, 10, "red"),
        _s2("B05", 704.1, 20, "rededge1"),
        _s2("B06", 740.5, 20, "rededge2"),
        _s2("B07", 782.8, 20, "rededge3"),
        _s2("B08", 832.8, 10, "nir"),
        _s2("B8A", 864.7, 20, "nir08"),
        _s2("B09", 945.1, 60, "nir09"),
        _s2("B10", 1373.5, 60, "cirrus"),
        _s2("B11", 1613.7, 20, "swir16", "swir1"),
        _s2("B12", 2202.4, 20, "swir22", "swir2"),
    ),
)

_C_BAND_NM = 299_792_458 / 5.405e9 * 1e9

S1 = Sensor(
    name="s1",
    title="Sentinel-1 C-SAR",
    kind="radar",
    bands=(
        Band(name="VV", wavelength=_C_BAND_NM, gsd=10),
        Band(name="VH", wavelength=_C_BAND_NM, gsd=10),
    ),
)

# An RGB picture carries the three visible Sentinel-2 bands, under their Sentinel-2 names, so that
# weights of s2 can serve it by name.
RGB = Sensor(
    name="rgb",
    title="8-bit red, green, blue",
    kind="optical",
    bands=(
        Band(name="B04", wavelength=664.6, gsd=10, aliases=("red", "r")),
        Band(name="B03", wavelength=559.8, gsd=10, aliases=("green", "g")),
        Band(name="B02", wavelength=492.4, gsd=10, aliases=("blue", "b")),
    ),
)

SENSORS: dict[str, Sensor] = {sensor.name: sensor for sensor in (S2, S1, RGB)}


def get_sensor(name: str) -> Sensor:
    """Return the sensor called ``name``.

    Raises:
        ValueError: no sensor has that name.
    """
    if name not in SENSORS:
        raise ValueError(f"unknown sensor {name!r}; known sensors: {', '.join(SENSORS)}")
    return SENSORS[name]


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """The input contract of one sensor: what raw values the weights were trained on, and how scaled.

    ``unit`` is what the statistics are given in: ``dn`` (reflectance x 10000), ``db``, ...
    ``normalize`` names a rule of :mod:`rsbackbones.preprocess`. ``mean`` and ``std`` are per band.
    """

    bands: tuple[str, ...]
    product: str
    unit: str
    normalize: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    eight_bit: bool = True
    statistics: str = ""

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
        object.__setattr__(spec, "bands", get_sensor(sensor).canonical(spec.bands))
        if not len(spec.bands) == len(spec.mean) == len(spec.std):
            raise ValueError(
                f"inputs.{sensor}: {len(spec.bands)} bands, {len(spec.mean)} means and "
                f"{len(spec.std)} standard deviations; give one of each per band"
            )
        if min(spec.std) <= 0:
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
