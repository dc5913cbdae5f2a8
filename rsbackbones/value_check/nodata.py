"""Which pixels have no data: zeros, and values that nobody declared, held by many pixels."""

import math

import torch
from torch import Tensor

from rsbackbones.sensors import Sensor
from rsbackbones.value_check.offset import WITH_OFFSET
from rsbackbones.value_check.verdict import MOST, RIGHT, Verdict, format_value

# Below them a value that many pixels hold marks pixels without data; above them it does if it is one of
# _SENTINELS. The lower ones of dn and reflectance are what the offset of Sentinel-2 makes of zero.
POSSIBLE = {
    "dn": (-998.5, 30_000),
    "dn_baseline_0400": (-0.5, 31_000),
    "reflectance": (-0.0999, 3.5),
    "percent": (-9.99, 350),
    "landsat_c2": (0.5, 65_500),
    "db": (-80, 60),
    "db_x100": (-8000, 6000),
    "linear": (-0.99, 10_000),
}
# The lowest surface reflectances that products of others than Sentinel-2 hold: those of Landsat begin there.
_LOWEST = {"dn": -2000, "reflectance": -0.2, "percent": -20}
# Many pixels: this share of them, and so many at least. Values beyond _FAR are no measurement in any unit,
# and count one by one.
_MANY, _FEWEST, _FAR = 1e-3, 8, (-9990.0, 1e6)
# What files hold for pixels without data, and the scales and offsets that make it a value of the unit. In 16
# bits without a sign -32768, -9999 and -999 are 32768, 55537 and 64537.
_SENTINELS = (-32768, -9999, -999, 9999, 32766, 32767, 32768, 55537, 64537, 65534, 65535)
_TAGS = {
    "dn": ((1, 0), (1, -1000)),
    "reflectance": ((1, 0), (1e-4, 0), (1e-4, -0.1)),
    "percent": ((1, 0), (1e-2, 0), (1e-2, -10)),
    "db": ((1, 0), (1e-2, 0)),
}
# Values that differ by this are near each other; linear power is compared in decibels.
_NEAR = {
    "dn": 100, "dn_baseline_0400": 100, "reflectance": 0.01, "percent": 1, "landsat_c2": 400, "db": 1,
    "db_x100": 100, "linear": 1,
}  # fmt: skip
# Values up to this are as dark as zero; a band in which zero marks pixels without data has few of them.
_NEAR_ZERO = {
    "dn": 100, "dn_baseline_0400": 100, "reflectance": 0.01, "percent": 1, "linear": 1e-4,
}  # fmt: skip
# A band has holes if it is zero in this share of the pixels.
_HOLES = 1e-2
# A value that marks pixels is held by so many times more of them than are near it.
_TIMES = 10
# Above all other values by this factor, a value is none of saturated pixels.
_GAP = 0.7
_RADAR = ("db", "db_x100")


def missing_pixels(x: Tensor, unit: str | None, nodata: float | None = None) -> Tensor:
    """Return which pixels of [..., C, H, W] have no data, [..., H, W].

    These hold ``nodata`` in any band, or zero in all bands where the unit allows no such measurement.
    """
    missing = (x == 0).all(-3) if zero_is_missing(unit) else x.new_zeros(x.shape[:-3] + x.shape[-2:]).bool()
    return missing if nodata is None else missing | (x == torch.tensor(nodata, dtype=x.dtype)).any(-3)


def zero_is_missing(unit: str | None) -> bool:
    """Return whether zero in all bands marks a pixel without data: of reflectances and linear power."""
    return unit in POSSIBLE and unit not in ("db", "db_x100")


def bands_with_holes(x: Tensor, unit: str | None) -> list[int]:
    """Return which bands hold zero in pixels that have no data in them alone, as at the edge of a mosaic.

    Zero is then held by at least one percent of the pixels, and hardly a value of the band is near it. Dark
    water is near zero too, but not at it.

    Args:
        x: [C, N], pixels with data in any band.
        unit: of the values. Those of which zero is a measurement have no such bands.
    """
    if unit not in _NEAR_ZERO or not x.shape[1]:
        return []
    zeros = (x == 0).sum(1)
    near = ((x != 0) & (x.abs() <= _NEAR_ZERO[unit])).sum(1)
    return ((zeros >= _HOLES * x.shape[1]) & (zeros > _TIMES * near)).nonzero().flatten().tolist()


def find_marker(x: Tensor, unit: str) -> Verdict | None:
    """Find a value that marks pixels without data, of [C, N] in a unit of measurements."""
    if (value := _beyond_possible(x.flatten(), unit)) is not None:
        share = float((x == value).float().mean())
        text = f"{format_value(value)} in {share:.2%} of the values is no value of the unit {unit!r}; it"
    elif (spike := _spike(x, unit)) is not None:
        value, share, where = spike
        text = (
            f"{share:.2%} of the pixels hold exactly {format_value(value)} {where}, and hardly another one "
            "is near it; this value"
        )
    else:
        return None
    return Verdict("impossible", f"{text} marks pixels without data, likely", nodata=value)


def judge_lowest(x: Tensor, unit: str, sensor: Sensor) -> tuple[Verdict, float]:
    """Judge values [C, N] below the possible ones that no single value explains, and return their share.

    Where pixels without data were resampled with others, they hold anything between.
    """
    low = POSSIBLE[unit][0]
    if sensor.kind == "optical" and sensor.name not in WITH_OFFSET:
        low = _LOWEST.get(unit, low)
    share = float((x < low).any(0).float().mean())
    if share <= _MANY or unit == "landsat_c2":
        return RIGHT, share
    text = (
        f"{share:.2%} of the pixels hold less than {low:g}, down to {float(x.min()):.4g}, which {unit!r} has "
        "not: a value without data was mixed with others, as resampling does; declare it before (gdalwarp "
        "-srcnodata), or mask these pixels"
    )
    return Verdict("impossible", text), share


def zero_marks(x: Tensor, unit: str) -> bool:
    """Return whether zeros among decibels are a marker: many values, and few of the others are near them.

    SEN12MS-CR clips to 0 dB: there others are near.
    """
    if unit not in ("db", "db_x100"):
        return False
    near = x[x.abs() <= _NEAR[unit]]
    zeros = int((near == 0).sum())
    return max(2, _MANY * x.numel()) <= zeros < x.numel() and zeros > _TIMES * (len(near) - zeros)


def _beyond_possible(x: Tensor, unit: str) -> float | None:
    """Return the value beyond the possible ones that most values hold, if those are many or far beyond."""
    low, high = POSSIBLE[unit]
    beyond = x[(x < low) | (x > high)]
    if not len(beyond):
        return None
    held, counts = beyond[:: -(-len(beyond) // MOST)].unique(return_counts=True)
    value = float(held[counts.argmax()])
    count = int((beyond == value).sum())
    far = not _FAR[0] < value < _FAR[1]
    # Where all or various values are beyond, the unit is wrong.
    many = max(2, _MANY * len(x), len(beyond) / 2) <= count < len(x)
    return value if far or (many and (value < low or _is_sentinel(value, unit))) else None


def _is_sentinel(value: float, unit: str) -> bool:
    """Return whether a value is one that files hold for pixels without data, with their tags applied."""
    made = (held * scale + offset for held in _SENTINELS for scale, offset in _TAGS.get(unit, ((1, 0),)))
    return any(math.isclose(value, one, rel_tol=1e-5) for one in made)


def _spike(x: Tensor, unit: str) -> tuple[float, float, str] | None:
    """Return a possible value that marks pixels of [C, N], the share that hold it, and where they do.

    Many pixels hold exactly it, and hardly another one is near: -1, 1 or -100 of reflectances, -60 dB. It is
    looked for in all bands of a pixel, then at the lower end of each band, of reflectances below zero (zero
    itself is left to :func:`bands_with_holes`, and dark shadows of one band hold 1 in products of Sen2Cor).
    The largest value may be that of saturated pixels, and marks none unless files use it so, or all others
    are far below it.
    """
    y = 10 * x.clamp(min=1e-30).log10() if unit == "linear" else x
    near, pixels = _NEAR[unit], x.shape[1]
    many = max(_FEWEST, _MANY * pixels)
    alike = (x == x[0]).all(0)
    if len(x) > 1 and many <= int(alike.sum()) < pixels:
        held, counts = x[0, alike].unique(return_counts=True)
        count, second = (*counts.sort(descending=True).values[:2].tolist(), 0)[:2]
        value = float(held[counts.argmax()])
        close = int(((y - y[0, alike][x[0, alike] == value][0]).abs() <= near).all(0).sum()) - count
        if bool((x.amin(1) < value).all()):  # amid others: one value in all bands is no coincidence
            close = 0
        top = value == float(x.max()) and not _is_sentinel(value, unit)
        if top and value > 0 and unit not in ("linear", *_RADAR):  # clouds that saturate are not alone there
            top = float(x[:, ~(alike & (x[0] == value))].max()) > _GAP * value
        if count >= max(many, _TIMES * close, _TIMES * second) and not top and value != 0:
            return value, count / pixels, "in all bands"
    for i, (band, plain) in enumerate(zip(y, x, strict=True)):
        value = float(plain.min())
        count = int((plain == value).sum())
        close = int((band <= band.min() + near).sum()) - count
        if unit == "linear":  # removing the noise makes some power negative
            allowed = value > 0
        else:
            allowed = value != 0 if unit in _RADAR or len(x) == 1 else value < 0
        held_by_many = max(many, _TIMES * close) <= count < pixels
        if allowed and held_by_many and count >= _TIMES * _repeats(plain, unit):
            return value, count / pixels, f"in band number {i + 1}" if len(x) > 1 else "there"
    return None


def _repeats(band: Tensor, unit: str) -> float:
    """Return how many pixels of a radar hold a value by the median: those of a coarser grid are repeated."""
    if unit not in (*_RADAR, "linear"):
        return 0
    return float(band.unique(return_counts=True)[1].median())
