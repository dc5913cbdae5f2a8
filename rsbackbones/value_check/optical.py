"""Units of reflectances, and what is mistaken for them: pictures, percents, values that were scaled."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from rsbackbones.input_spec import RGB8
from rsbackbones.sensors import Sensor
from rsbackbones.value_check.verdict import RIGHT, Values, Verdict

# Whole numbers may be percent where the brightest permille is between these; at night all are smaller.
_WHOLE_PERCENT = (35, 120)
# 1 dn in a unit.
_DN = {"dn": 1.0, "reflectance": 1e-4, "percent": 1e-2}
# Products that correct for the atmosphere have values below zero over dark water, but not below this in dn.
_BELOW_ZERO = -100
# Land reflects more in the near infrared than in the visible, by this factor; water less. The brightest
# permille of land is above this, in dn: of 1,820 real images 6 are not, of one plot in the shadow of winter.
_LAND, _DARK_LAND = 1.5, 1000
# Water reflects less in the near infrared than in the visible, by this factor at least, and less than this in
# the visible. So values above it that have its spectrum are percent rather than reflectances.
_WATER, _BRIGHT_WATER = 0.5, 0.3
_VISIBLE_NM, _NEAR_INFRARED_NM = (400, 700), (740, 1000)
# Values that were scaled by their extremes: single pixels hold these, of a stretch many.
_EXTREMES = ((0, 1), (-1, 1), (0, 10_000))
_SINGLE, _PLATEAU, _FEW = 5e-4, 3e-3, 3
# So many steps of 1 / 255 are no coincidence.
_STEPS = 4


def judge_optical(
    x: Tensor, each: Mapping[str, Values], unit: str, sensor: Sensor, *, alone: bool = True
) -> Verdict:
    """Judge reflective values [C, N], ``each`` band of them: all together, then band by band."""
    scaled = _scaled(x)
    if scaled.kind == "impossible":
        return scaled
    every = Values(x)
    found = _judge_all(every, unit, sensor, alone)
    if unit == "percent" and found.unit == "reflectance" and _is_too_bright_water(each, sensor):
        return every.like("reflectance", unit, sure=False)
    dark_land = _is_dark_land(every, each, unit, sensor)
    if found.kind != "right" and not (found.unit == RGB8 and found.kind == "suspect" and dark_land):
        return found
    for band, values in each.items():
        if unit in _DN and values.median < _BELOW_ZERO * _DN[unit]:
            return Verdict(
                "impossible",
                f"the median of {band} is {values.median:.4g}, and reflectance is hardly below zero: an "
                "offset was subtracted that the values did not have, or their tags state one",
            )
        others_whole = all(v.whole for name, v in each.items() if name != band)
        if len(each) > 1 and (odd := _odd_band(values, unit, every, others_whole)):
            return Verdict("impossible", f"{band} alone: {odd}; bring all bands into one unit")
    if not dark_land:
        return scaled
    smaller = "reflectances x 1000" if unit == "dn" else "values that were divided twice"
    return Verdict(
        "suspect",
        f"the values are dark, and as of land brighter in the near infrared than in visible light: they may "
        f"be {smaller}, not {unit!r}; if so multiply them (reflectances x 1000 in a GeoTIFF: gdal_edit.py "
        "-scale 0.001 FILE)",
    )


def _scaled(x: Tensor) -> Verdict:
    """Judge whether values [C, N] were scaled by their own extremes, or are a divided picture."""
    low, high = x.amin(1), x.amax(1)
    for bottom, top in _EXTREMES:
        if not bool((low == bottom).all() and (high == top).all()):
            continue
        at_bottom, at_top = ((x == value).float().mean(1) for value in (bottom, top))
        single = max(_SINGLE, 2 / x.shape[1])
        plateaus = bool((at_bottom >= _PLATEAU).all() and (at_top >= _PLATEAU).all())
        # A bright pixel saturates in all bands.
        apart = len(x) == 1 or len(x.argmax(1).unique()) > 1
        if plateaus or (apart and bool((at_top <= single).all())):
            text = f"every band goes from exactly {bottom:g} to exactly {top:g}, as if scaled by its extremes"
            return Verdict("impossible", f"{text}; pass the original values")
    if float(high.max()) != 1 and not 0 <= float(low.min()) <= float(high.max()) < 1:
        return RIGHT
    some = x.flatten()[:: -(-x.numel() // 2**18)]
    whole = (some * 255).round()
    if float((some * 255 - whole).abs().max()) < 1e-3 and len(whole.unique()) >= _STEPS:
        return Verdict(
            "impossible",
            f"all values are multiples of 1 / 255, as of a divided picture: multiply them by 255, and name "
            f"the unit {RGB8!r}",
        )
    ends = [int((x == value).sum()) for value in (0, 1)]
    if float(low.min()) == 0 and all(0 < count <= _FEW for count in ends) and bool((some % 1 != 0).any()):
        text = "the values go from exactly 0 to exactly 1, each held by hardly a pixel: they may be scaled"
        return Verdict("suspect", f"{text} by their extremes; if so pass the original values")
    return RIGHT


def _is_dark_land(every: Values, each: Mapping[str, Values], unit: str, sensor: Sensor) -> bool:
    """Whether values are too dark for land, and yet have its spectrum."""
    if unit not in _DN or every.high >= _DARK_LAND * _DN[unit]:
        return False
    infrared, visible = (_medians(each, sensor, nm) for nm in (_NEAR_INFRARED_NM, _VISIBLE_NM))
    return bool(infrared and visible) and max(infrared) > max(0.0, _LAND * min(visible))


def _is_too_bright_water(each: Mapping[str, Values], sensor: Sensor) -> bool:
    """Whether values have the spectrum of water, and as reflectances are too bright for it."""
    infrared, visible = (_medians(each, sensor, nm) for nm in (_NEAR_INFRARED_NM, _VISIBLE_NM))
    return bool(infrared and visible) and max(_BRIGHT_WATER, max(infrared) / _WATER) < max(visible)


def _medians(each: Mapping[str, Values], sensor: Sensor, nm: tuple[float, float]) -> list[float]:
    """Return the medians of the bands between two wavelengths."""
    return [v.median for band, v in each.items() if nm[0] <= sensor.band(band).wavelength < nm[1]]


def _odd_band(v: Values, unit: str, every: Values, others_whole: bool) -> str:
    """Return what is wrong with a band among others that are right, empty if nothing is."""
    if unit in ("reflectance", "percent"):
        limit = 2 if unit == "reflectance" else 200
        return f"{v.range} are no {unit!r}" if v.share_above(limit) > 0.01 or v.high > 10 * limit else ""
    if not v.whole and v.largest > 0 and _is_reflectance(v):
        return f"{v.range} look like reflectances, not {unit!r}"
    if not v.whole and others_whole and v.high <= 130:
        return f"{v.range} look like percent, not {unit!r}"
    if v.whole and v.smallest >= 0 and v.high == v.largest == 255 and every.largest > 600:
        return f"{v.range} look like an 8-bit picture, not {unit!r}"
    if unit == "landsat_c2" and v.median < 5000:
        return f"{v.range} are no {unit!r}"
    return ""


def _is_reflectance(v: Values) -> bool:
    return v.low >= -0.2 and v.share_above(2) <= 0.01 and v.high <= 20


def _judge_all(v: Values, unit: str, sensor: Sensor, alone: bool) -> Verdict:
    if v.high < 0:
        return Verdict(
            "impossible",
            f"no value is above zero, the values go from {v.smallest:.4g} to {v.largest:.4g}; fill or leave "
            "out pixels without data first",
        )
    if not v.whole and v.low < -0.5 and v.high < 20 and v.share_below(0) > 0.05:
        return v.impossible(unit, "look normalized already (mean 0, deviation 1)", "pass the original values")
    reflectance = not v.whole and _is_reflectance(v)
    if unit == "reflectance" and 0 < v.high < _DN[unit]:
        return v.impossible(unit, "are below 1 dn", "they were divided, or scaled by tags, once too often")
    if unit == "reflectance":
        if _is_reflectance(v):
            return RIGHT
        found = v.like(_likely_unit(v, sensor), unit)
        if found.unit != "dn" or v.high > 1500:
            return found
        return replace(found, text=f"{found.text}, or like reflectances x 1000: divide those by 1000 instead")
    if unit == "percent":
        if reflectance and v.high <= 2.5:
            return v.like("reflectance", unit)
        return RIGHT if v.share_above(200) <= 0.01 else v.like(_likely_unit(v, sensor), unit)
    if reflectance:
        return v.like("reflectance", unit)
    likely = _likely_unit(v, sensor)
    if likely in ("percent", RGB8):
        # Dark water has such numbers too (6 of 80 patches of BigEarthNet, none above 228), and night.
        sure = not v.whole or v.high >= 240
        # A dark date of a series does not end exactly at 255, as pictures do.
        sure &= alone or likely == "percent" or v.largest == 255
        return v.like(likely, unit, sure=sure) if sure or v.high >= _WHOLE_PERCENT[0] else RIGHT
    if unit == "landsat_c2":
        return RIGHT if v.median >= 5000 else v.like("dn", unit)
    if v.share_above(21_000) > 0.01:  # with or without the offset
        if likely == "landsat_c2":
            return v.like("landsat_c2", unit)
        return v.impossible(unit, "are too bright for reflectances (2 and more)")
    if unit == "dn_baseline_0400":
        return RIGHT
    return v.like("landsat_c2", unit, sure=False) if likely == "landsat_c2" else RIGHT


def _likely_unit(v: Values, sensor: Sensor) -> str:
    """Return the likely unit of optical values that are no reflectances."""
    if not v.whole and v.low >= -20 and v.high <= 130:
        return "percent"
    if v.smallest >= 0 and v.largest <= 255:
        return "percent" if v.whole and v.high <= _WHOLE_PERCENT[1] else RGB8
    landsat = sensor.name.startswith("landsat")
    return "landsat_c2" if landsat and v.quantile(0.01) >= 5000 and v.median >= 7000 else "dn"
