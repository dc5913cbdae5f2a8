"""The order in which values are judged."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from rsbackbones.sensors import Sensor
from rsbackbones.value_check.nodata import POSSIBLE, find_marker, judge_lowest, zero_marks
from rsbackbones.value_check.offset import judge_offset
from rsbackbones.value_check.optical import judge_optical
from rsbackbones.value_check.radar import judge_radar, judge_strength, power_or_amplitude
from rsbackbones.value_check.verdict import MOST_OF_BAND, RIGHT, Values, Verdict

# Of so many pixels below the possible values an error about the unit comes first.
_SOME = 0.1


def judge(
    x: Tensor,
    unit: str,
    sensor: Sensor,
    bands: Sequence[str],
    *,
    cirrus: Tensor | None = None,
    alone: bool = True,
) -> Verdict:
    """Judge the values of one sensor.

    Args:
        x: float32 values [C, N] of reflective or radar bands, finite, at full resolution. Pixels without data
            are left out before.
        unit: of the values, as ``create_preprocess`` names it. Others than those of measurements are right.
        sensor: of the values.
        bands: of the sensor, in the order of ``x``.
        cirrus: those of Sentinel-2's band B10, where the product has it: they tell the offset, which bright
            pixels hide in other bands.
        alone: they are all that there is. Of one of several images, the brightness of clouds is no reason to
            suspect the offset, and a dark one is a picture only if it reaches 255.
    """
    if unit not in POSSIBLE or not x.numel():
        return RIGHT
    if (marker := find_marker(x, unit)) is not None:
        return marker
    each = {band: Values(values, MOST_OF_BAND) for band, values in zip(bands, x, strict=True)}
    radar = sensor.kind == "radar"
    found = _judge_radar(x, each, unit) if radar else judge_optical(x, each, unit, sensor, alone=alone)
    lowest, share = judge_lowest(x, unit, sensor)
    if lowest.kind != "right" and (share < _SOME or found.kind in ("right", "suspect")):
        return lowest
    if radar or found.kind != "right":
        return found
    return judge_offset(each, unit, sensor, cirrus=cirrus, alone=alone)


def _judge_radar(x: Tensor, each: Mapping[str, Values], unit: str) -> Verdict:
    marked = zero_marks(x, unit)
    every = Values(x[x != 0] if marked else x)
    found = power_or_amplitude(judge_radar(every, unit), each)
    if found.kind != "right":
        return found
    if marked:
        return Verdict(
            "impossible",
            f"0 in {float((x == 0).float().mean()):.2%} of the values, with hardly another value near it, "
            f"marks pixels without data, not 0 dB ({unit!r})",
            nodata=0.0,
        )
    for band, values in each.items():
        odd = judge_radar(values, unit)
        if odd.kind != "right":
            return Verdict("impossible", f"{band} alone: {odd.text}; bring all bands into one unit")
    return judge_strength(each, unit)
