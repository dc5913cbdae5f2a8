"""Units of backscatter: decibels, linear power, and what is mistaken for them."""

import math
from collections.abc import Mapping

from rsbackbones.value_check.verdict import RIGHT, Values, Verdict

# Decibels of one unit.
_DB = {"db": 1.0, "db_x100": 0.01}
# Medians above these, in dB, of cross-polarized values, or of VV or HH alone, are rarely power: of 307 real
# images of Sentinel-1 the strongest medians are -11.9 (VH) and -7.1 dB (VV). The amplitude is the square
# root of power, so that in decibels it is half as far below zero: VH of -20 to -14 is at -10 to -7.
_STRONG_CROSS, _STRONG = -10.0, -4.0
_WEAKEST = -45.0


def judge_radar(v: Values, unit: str) -> Verdict:
    """Judge the values of one band, or of all."""
    negative = v.share_below(0)
    if -300 < v.median < -100:
        return v.impossible(unit, "look like decibels x 10", "divide them by 10")
    if unit == "db_x100":
        return RIGHT if v.median < -100 else v.like("db" if v.median < -1 else "linear", unit)
    if v.smallest == v.largest == 0:
        return RIGHT
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
        if negative < 0.05:
            return v.like("linear", unit)
        return v.impossible(unit, "are too weak for backscatter") if v.median < _WEAKEST else RIGHT
    # Removing the thermal noise makes some power negative; decibels are so in most pixels.
    return v.like("db", unit) if v.median < 0 or v.low < -0.5 else RIGHT


def judge_strength(each: Mapping[str, Values], unit: str) -> Verdict:
    """Suspect amplitudes, the square roots of power, by the medians of the bands."""
    decibels = {band: _to_db(values.median, unit) for band, values in each.items()}
    cross = {band: db for band, db in decibels.items() if len(band) == 2 and band[0] != band[1]}
    limit = _STRONG_CROSS if cross else _STRONG
    strong = [band for band, db in (cross or decibels).items() if db > limit]
    if not strong:
        return RIGHT
    fix = "their decibels are 20 log10(amplitude)" if unit in _DB else "square them: x ** 2"
    return Verdict(
        "suspect",
        f"the median of {', '.join(strong)} is above {limit:g} dB, which is strong for power. Amplitudes, "
        f"its square roots, look so; if so {fix}",
    )


def power_or_amplitude(found: Verdict, each: Mapping[str, Values]) -> Verdict:
    """Return a verdict that names linear power, but for values that are more likely its square roots."""
    if found.unit != "linear" or judge_strength(each, "linear") is RIGHT:
        return found
    return Verdict(
        "impossible",
        f"{found.text.partition(' look like')[0]} look like amplitudes, or like linear power that is strong, "
        "not like decibels: square amplitudes first (x ** 2), and name the unit of power, units={'s1': "
        "'linear'} (--units s1=linear)",
    )


def _to_db(value: float, unit: str) -> float:
    return value * _DB[unit] if unit in _DB else 10 * math.log10(max(value, 1e-10))
