"""Whether values of Sentinel-2 carry the offset of 1000 that products have since processing baseline 04.00.

Of an image without the offset, the darkest percents of its darkest band are dark: water, shadow, vegetation
in the red. With the offset they are not. Single pixels do not decide: at an edge some are zero, resampling
makes dark ones, and pixels that were filled are below zero. Clouds or snow that cover all are bright as well,
so that the offset is suspected and never known; the cirrus band (B10) tells.
"""

from collections.abc import Mapping

from torch import Tensor

from rsbackbones.sensors import Sensor
from rsbackbones.value_check.verdict import RIGHT, OffsetWarning, UnitWarning, Values, Verdict

# The darkest band of an image in dn, at its quantile of 2 % of the values above zero. Of 1,820 images without
# the offset of 1000 it is above _LEAST in 116, almost all of them below clouds, in 36 of these below CLEAR;
# with the offset it is between 1000 and CLEAR, but for snow and cloud, and little less over water.
_DARKEST, _LEAST, CLEAR = 0.02, 950, 1900
# The darkest percent of an image, the darkest median of a band with the offset, and the cirrus band (which
# sees the ground of high mountains alone, and has a median below 60 without it).
DARK = 900
# The band that tells the offset, and the sensors that have it.
CIRRUS, WITH_CIRRUS = "B10", ("s2", "s2_ndvi")
# The sensors whose products may carry the offset; an 8-bit picture has the bands of Sentinel-2.
_PRODUCTS = "Sentinel-2 products since 2022 have an offset of"
WITH_OFFSET = (*WITH_CIRRUS, "rgb")
# The unit, and what 1 dn is in it.
_UNITS = {"dn": 1.0, "dn_baseline_0400": 1.0, "reflectance": 1e-4, "percent": 1e-2}


def judge_offset(
    each: Mapping[str, Values], unit: str, sensor: Sensor, *, cirrus: Tensor | None, alone: bool
) -> Verdict:
    """Judge whether the bands of an optical sensor carry an offset that their unit has not, or lack it."""
    if unit not in _UNITS or sensor.name not in WITH_OFFSET:
        return RIGHT
    scale = _UNITS[unit]
    if cirrus is not None and len(cirrus := cirrus[cirrus.isfinite() & (cirrus != 0)]):
        return _judge_cirrus(float(cirrus.median()) / scale, unit)
    measured = {band: v for band, v in each.items() if band != CIRRUS and v.share_above(0) > 0.5}
    if not measured:
        return RIGHT
    if unit == "dn_baseline_0400":
        median, band = min((v.median, band) for band, v in measured.items())
        text = f"the median of {band} is {median:.4g}, and with the offset few values are below 1000"
        return RIGHT if median >= DARK else Verdict("other_unit", text, unit="dn")
    low = min(v.quantile(_DARKEST, above=0) for v in measured.values()) / scale
    if low < _LEAST:
        return RIGHT
    text = f"hardly a value is below {_LEAST * scale:g}. {_PRODUCTS} {1000 * scale:g}"
    if low < CLEAR:
        return _suspect(text, unit, OffsetWarning)
    text += "; clouds or snow that cover all would be as bright"
    return _suspect(text, unit) if alone else RIGHT


def _suspect(text: str, unit: str, warning: type[UnitWarning] = UnitWarning) -> Verdict:
    if unit == "dn":
        return Verdict("suspect", text, unit="dn_baseline_0400", warning=warning)
    less = 1000 * _UNITS[unit]
    fix = f"{text}; if so subtract {less:g} (of GeoTIFFs: gdal_edit.py -scale 1 -offset {-less:g} FILE)"
    return Verdict("suspect", fix, warning=warning)


def _judge_cirrus(median: float, unit: str) -> Verdict:
    """Judge the offset by the median of the cirrus band in dn, which without it is near zero."""
    if median < DARK:
        if unit != "dn_baseline_0400":
            return RIGHT
        text = f"the median of the cirrus band B10 is {median:.4g}, and with the offset it is 1000 or more"
        return Verdict("other_unit", text, unit="dn")
    if unit == "dn_baseline_0400":
        return RIGHT
    scale = _UNITS[unit]
    text = (
        f"the median of the cirrus band B10 is above {DARK * scale:g}, and it is near 0 where no high clouds "
        f"are. {_PRODUCTS} {1000 * scale:g}"
    )
    return _suspect(text, unit, OffsetWarning)
