"""Whether raw values can be in the unit that they are said to be in.

One judgement for every caller: :func:`judge` looks at quantiles and shares of a sensor's values, never at
single extremes, and says that the values are right, that they are likely in another unit, or that they are
impossible. Its limits are physical: a reflectance rarely exceeds 2 (snow, clouds and glint reach it), C-band
backscatter has a median between -45 and 10 dB. Pixels without data do not count: those that hold zero in all
bands of an optical sensor or in linear power, as ESA's products mark them.

Limits that are not physical are measured on 1,849 Sentinel-2 images of both levels, clear and cloudy, without
the offset: the brightest permille of two, of dark water, is below 100 digital numbers, and the darkest
permille of every band is above 1000 only where clouds cover all (6 %).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rsbackbones.sensors import RGB8, Sensor

# Quantiles are those of at most this many values, evenly spaced over all of them.
_MOST = 2**18
# The darkest percent of an image in dn. Of 1,200 clear L2A images without the offset of 1000 it is below 600
# in 99 % and never above 855; with the offset it is therefore between 1000 and 1900, but for snow and cloud.
# The cirrus band (B10), which sees the ground of high mountains alone, has a median below 60 without it.
DARK, CLEAR = 900, 1900
# Whole numbers may be percent where the brightest permille is between these; at night all are smaller.
_WHOLE_PERCENT = (35, 120)
# Below them a value that many pixels hold marks pixels without data; above them it does if it is one of
# _SENTINELS. The lower ones of dn and reflectance are what the offset of Sentinel-2 makes of zero.
_POSSIBLE = {
    "dn": (-998.5, 30_000),
    "dn_baseline_0400": (-0.5, 31_000),
    "reflectance": (-0.0999, 3.5),
    "percent": (-9.99, 350),
    "landsat_c2": (0.5, 65_500),
    "db": (-80, 60),
    "db_x100": (-8000, 6000),
    "linear": (-0.99, 10_000),
}
# The sensors whose products may carry the offset; an 8-bit picture has the bands of Sentinel-2.
_WITH_OFFSET = ("s2", "s2_ndvi", "rgb")
# Many pixels: this share of them. Values beyond _FAR are no measurement in any unit, and count one by one.
_MANY, _FAR = 1e-3, (-9990.0, 1e6)
# What files hold for pixels without data, and the scales and offsets that make it a value of the unit.
_SENTINELS = (-32768, -9999, -999, 9999, 32766, 32767, 65534, 65535)
_TAGS = {
    "dn": ((1, 0), (1, -1000)),
    "reflectance": ((1, 0), (1e-4, 0), (1e-4, -0.1)),
    "percent": ((1, 0), (1e-2, 0), (1e-2, -10)),
    "db": ((1, 0), (1e-2, 0)),
}
# Values up to this are as dark as zero; a band in which zero marks pixels without data has few of them.
_NEAR_ZERO = {
    "dn": 100, "dn_baseline_0400": 100, "reflectance": 0.01, "percent": 1, "linear": 1e-4,
}  # fmt: skip
# A band has holes if it is zero in this share of the pixels.
_HOLES = 1e-2
_IN_WORDS = {
    "dn": "digital numbers (reflectance x 10000)",
    "dn_baseline_0400": "digital numbers with an offset of 1000",
    "reflectance": "reflectances (0 to 1)",
    "percent": "reflectances in percent",
    "landsat_c2": "Landsat Collection 2 numbers",
    "db": "decibels",
    "db_x100": "decibels x 100",
    "linear": "linear power",
    RGB8: "an 8-bit picture (0 to 255)",
}


class UnitWarning(UserWarning):
    """The values may be in another unit than the stated one; they do not tell."""


class OffsetWarning(UnitWarning):
    """Hardly a value is below 1000: the values may include the radiometric offset of Sentinel-2 products."""


class MissingPixelsWarning(UserWarning):
    """Pixels hold zero in all bands or in one, as those without data do, and nobody says so."""


@dataclass(frozen=True)
class Verdict:
    """What :func:`judge` finds.

    Attributes:
        kind: ``right``; ``other_unit``: likely another one; ``suspect``: right, or another unit, which the
            values do not tell; or ``impossible``.
        text: the finding in words, to follow the name of the sensor.
        unit: the other unit, by the name that ``create_preprocess`` knows it by.
        nodata: the value that marks pixels without data.
        warning: the category of a warning of what is suspected.
    """

    kind: Literal["right", "other_unit", "suspect", "impossible"] = "right"
    text: str = ""
    unit: str | None = None
    nodata: float | None = None
    warning: type[UnitWarning] = UnitWarning


_RIGHT = Verdict()


def missing_pixels(x: Tensor, unit: str | None, nodata: float | None = None) -> Tensor:
    """Return which pixels of [..., C, H, W] have no data, [..., H, W].

    These hold ``nodata`` in any band, or zero in all bands where the unit allows no such measurement.
    """
    missing = (x == 0).all(-3) if zero_is_missing(unit) else x.new_zeros(x.shape[:-3] + x.shape[-2:]).bool()
    return missing if nodata is None else missing | (x == torch.tensor(nodata, dtype=x.dtype)).any(-3)


def zero_is_missing(unit: str | None) -> bool:
    """Return whether zero in all bands marks a pixel without data: of reflectances and linear power."""
    return unit in _POSSIBLE and unit not in ("db", "db_x100")


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
    return ((zeros >= _HOLES * x.shape[1]) & (zeros > 10 * near)).nonzero().flatten().tolist()


def judge(
    x: Tensor, unit: str, sensor: Sensor, *, cirrus: Tensor | None = None, alone: bool = True
) -> Verdict:
    """Judge the values of one sensor.

    Args:
        x: float32 values, finite, of reflective or radar bands, of any shape, at full resolution. Pixels
            without data are left out before.
        unit: of the values, as ``create_preprocess`` names it. Others than those of measurements are right.
        sensor: of the values.
        cirrus: those of Sentinel-2's band B10, where the product has it: they tell the offset, which bright
            pixels hide in other bands.
        alone: they are all that there is. Of one of several images, the brightness of clouds is no reason to
            suspect the offset.
    """
    if unit not in _POSSIBLE or not x.numel():
        return _RIGHT
    x = x.flatten()
    if (marker := _marker(x, unit)) is not None:
        share = float((x == marker).float().mean())
        value = format_value(marker)
        return Verdict(
            "impossible",
            f"{value} in {share:.2%} of the values is no value of the unit "
            f"{unit!r}; it marks pixels without data, likely",
            nodata=marker,
        )
    if sensor.kind != "radar":
        found = _judge_optical(_Values(x), unit, sensor, alone)
        known = cirrus is not None and cirrus.numel() > 0 and found.unit in (None, "dn_baseline_0400")
        return _judge_cirrus(found, float(cirrus.median()), unit) if cirrus is not None and known else found
    marked = _zero_marks(x, unit)
    found = _judge_radar(_Values(x[x != 0] if marked else x), unit)
    if not marked or found.kind != "right":
        return found
    return Verdict(
        "impossible",
        f"0 in {float((x == 0).float().mean()):.2%} of the values, with hardly another value near it, marks "
        f"pixels without data, not 0 dB ({unit!r})",
        nodata=0.0,
    )


def format_value(value: float) -> str:
    """Return a number so that it reads back as the same one."""
    return str(int(value)) if value == int(value) and abs(value) < 1e9 else repr(value)


class _Values:
    """Quantiles and shares of some values."""

    def __init__(self, x: Tensor) -> None:
        step = -(-len(x) // _MOST)
        while step > 1 and any(step % factor == 0 for factor in (2, 3, 5)):  # not the columns of an image
            step += 1
        self._sorted = x[::step].sort().values
        self.smallest, self.largest = float(x.min()), float(x.max())
        self.low, self.median, self.high = (self.quantile(q) for q in (0.001, 0.5, 0.999))
        self.whole = bool((self._sorted % 1 == 0).all())

    def quantile(self, share: float) -> float:
        return float(self._sorted[round(share * (len(self._sorted) - 1))])

    def share_above(self, value: float) -> float:
        below = int(
            torch.searchsorted(self._sorted, torch.tensor(value, device=self._sorted.device), right=True)
        )
        return 1 - below / len(self._sorted)

    def share_below(self, value: float) -> float:
        below = int(torch.searchsorted(self._sorted, torch.tensor(value, device=self._sorted.device)))
        return below / len(self._sorted)

    @property
    def range(self) -> str:
        return f"values from {self.smallest:.4g} to {self.largest:.4g} (median {self.median:.4g})"

    def like(self, other: str, unit: str, *, sure: bool = True) -> Verdict:
        kind: Literal["other_unit", "suspect"] = "other_unit" if sure else "suspect"
        text = f"{self.range} look like" if sure else "the values may be"
        return Verdict(kind, f"{text} {_IN_WORDS[other]}, not {unit!r}", unit=other)

    def impossible(self, unit: str, why: str, fix: str = "") -> Verdict:
        return Verdict("impossible", f"{self.range} {why}, not {unit!r}{fix and ': '}{fix}")


def _marker(x: Tensor, unit: str) -> float | None:
    """Return the value beyond the possible ones that most values hold, if those are many or far beyond."""
    low, high = _POSSIBLE[unit]
    beyond = x[(x < low) | (x > high)]
    if not len(beyond):
        return None
    held, counts = beyond[:: -(-len(beyond) // _MOST)].unique(return_counts=True)
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


def _zero_marks(x: Tensor, unit: str) -> bool:
    """Return whether zeros among decibels are a marker: many values, and few of the others are near them.

    SEN12MS-CR clips to 0 dB: there others are near.
    """
    if unit not in ("db", "db_x100"):
        return False
    near = x[x.abs() <= (100 if unit == "db_x100" else 1)]
    zeros = int((near == 0).sum())
    return max(2, _MANY * len(x)) <= zeros < len(x) and zeros > 10 * (len(near) - zeros)


def _judge_cirrus(found: Verdict, median: float, unit: str) -> Verdict:
    """Judge the offset by the median of the cirrus band, which without it is near zero."""
    if found.kind == "impossible" or unit not in ("dn", "dn_baseline_0400"):
        return found
    if median < DARK:
        if unit == "dn" or found.kind != "right":
            return _RIGHT if found.kind == "suspect" else found
        text = f"the median of the cirrus band B10 is {median:.4g}, and with the offset it is 1000 or more"
        return Verdict("other_unit", text, unit="dn")
    if unit == "dn_baseline_0400":
        return found
    text = (
        f"the median of the cirrus band B10 is {median:.4g}, which is near 0 where no high clouds are. "
        "Sentinel-2 products since 2022 have an offset of 1000"
    )
    return Verdict("suspect", text, unit="dn_baseline_0400", warning=OffsetWarning)


def _judge_optical(v: _Values, unit: str, sensor: Sensor, alone: bool) -> Verdict:
    if v.high < 0:
        return Verdict(
            "impossible",
            f"no value is above zero, the values go from {v.smallest:.4g} to {v.largest:.4g}; fill or leave "
            "out pixels without data first",
        )
    if not v.whole and v.low < -0.5 and v.high < 20 and v.share_below(0) > 0.05:
        return v.impossible(unit, "look normalized already (mean 0, deviation 1)", "pass the original values")
    reflectance = not v.whole and v.low >= -0.2 and v.share_above(2) <= 0.01 and v.high <= 20
    if unit == "reflectance":
        if v.low >= -0.2 and v.share_above(2) <= 0.01 and v.high <= 20:
            return _RIGHT
        return v.like(_optical_unit(v, sensor), unit)
    if unit == "percent":
        if reflectance and v.high <= 2.5:
            return v.like("reflectance", unit)
        return _RIGHT if v.share_above(200) <= 0.01 else v.like(_optical_unit(v, sensor), unit)
    if reflectance:
        return v.like("reflectance", unit)
    likely = _optical_unit(v, sensor)
    if likely in ("percent", RGB8):
        # Dark water has such numbers too (6 of 80 patches of BigEarthNet, none above 228), and night.
        sure = not v.whole or v.high >= 240
        return v.like(likely, unit, sure=sure) if sure or v.high >= _WHOLE_PERCENT[0] else _RIGHT
    if unit == "landsat_c2":
        return _RIGHT if v.median >= 5000 else v.like("dn", unit)
    if v.share_above(21_000) > 0.01:  # with or without the offset
        if likely == "landsat_c2":
            return v.like("landsat_c2", unit)
        return v.impossible(unit, "are too bright for reflectances (2 and more)")
    if unit == "dn_baseline_0400":
        return _RIGHT if v.median >= DARK else v.like("dn", unit)
    if likely == "landsat_c2":
        return v.like("landsat_c2", unit, sure=False)
    if sensor.name not in _WITH_OFFSET or v.low < DARK or v.quantile(0.01) < 1000:
        return _RIGHT
    text = f"hardly a value is below {DARK}. Sentinel-2 products since 2022 have an offset of 1000"
    if v.quantile(0.01) < CLEAR:
        return Verdict("suspect", text, unit="dn_baseline_0400", warning=OffsetWarning)
    text += "; clouds or snow that cover all would be as bright"
    return Verdict("suspect", text, unit="dn_baseline_0400") if alone else _RIGHT


def _optical_unit(v: _Values, sensor: Sensor) -> str:
    """Return the likely unit of optical values that are no reflectances."""
    if not v.whole and v.low >= -20 and v.high <= 130:
        return "percent"
    if v.smallest >= 0 and v.largest <= 255:
        return "percent" if v.whole and v.high <= _WHOLE_PERCENT[1] else RGB8
    landsat = sensor.name.startswith("landsat")
    return "landsat_c2" if landsat and v.quantile(0.01) >= 5000 and v.median >= 7000 else "dn"


def _judge_radar(v: _Values, unit: str) -> Verdict:
    negative = v.share_below(0)
    if -300 < v.median < -100:
        return v.impossible(unit, "look like decibels x 10", "divide them by 10")
    if unit == "db_x100":
        return _RIGHT if v.median < -100 else v.like("db" if v.median < -1 else "linear", unit)
    if v.smallest == v.largest == 0:
        return _RIGHT
    if -6000 <= v.median < -100:
        return v.like("db_x100", unit)
    if negative < 0.05 and (v.median > 20 or (v.whole and v.median > 2)):
        return v.impossible(
            unit,
            "look like amplitudes (the digital numbers of GRD products) or scaled decibels",
            "calibrate them to sigma nought (SNAP); WorldCereal stores dB = 20 log10(value) - 83",
        )
    if v.low < -0.5 and v.low > -8 and abs(v.median) < 1.5 and negative > 0.05 and v.high < 8:
        return v.impossible(unit, "look normalized already (mean 0, deviation 1)", "pass the original values")
    if unit == "db":
        return v.like("linear", unit) if negative < 0.05 else _RIGHT
    # Removing the thermal noise makes some power negative; decibels are so in most pixels.
    return v.like("db", unit) if v.median < 0 or v.low < -0.5 else _RIGHT
