"""The input contract of weights: the raw values that they expect, and their normalization, as data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rsbackbones.sensors import (
    LANDSAT_ETM,
    LANDSAT_OLI,
    LANDSAT_OLI_TIRS,
    LANDSAT_TM,
    RGB,
    S2,
    Sensor,
    get_sensor,
)
from rsbackbones.typed_fields import check_fields, show

# The unit of 8-bit RGB images: the model's input is value / 255, without statistics.
RGB8 = "rgb8"
# The units and rules that an input contract may state, with ``None`` for a unit that nobody states.
ContractUnit = Literal["dn", "db", "uint8", "tci_dn"]
ContractRule = Literal["clip_2sd", "scale", "standard", "imagenet", "none"]
# A standard deviation below it would make infinities of pixels.
_SMALLEST_STD = 1e-9


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
