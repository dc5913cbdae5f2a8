"""Whether raw values can be in the unit that they are said to be in, and which pixels have no data.

One judgement for every caller: :func:`judge` looks at quantiles and shares of a sensor's values, of all bands
together and of each band, never at single extremes. It says that the values are right, that they are likely
in another unit, or that they are impossible. Its limits are physical: a reflectance rarely exceeds 2 (snow,
clouds and glint reach it), C-band backscatter has a median between -45 and 10 dB. Pixels without data do not
count: those that hold zero in all bands of an optical sensor or in linear power, as ESA's products mark them.

====================  =======================================================================================
module                what it tells
====================  =======================================================================================
``judgement``         :func:`judge`: the order in which the others are asked
``nodata``            zeros, and undeclared values that mark pixels without data
``optical``           units of reflectances; values that were scaled by their extremes
``offset``            the offset of 1000 that products of Sentinel-2 have since processing baseline 04.00
``radar``             units of backscatter
``verdict``           quantiles of values, the finding in words, and the categories of warnings
====================  =======================================================================================

Limits that are not physical are measured on real images: 1,820 of Sentinel-2 of both levels, clear and
cloudy, without the offset, and 307 of Sentinel-1.
"""

from rsbackbones.value_check.judgement import judge
from rsbackbones.value_check.nodata import bands_with_holes, missing_pixels, zero_is_missing
from rsbackbones.value_check.offset import CIRRUS, CLEAR, DARK, WITH_CIRRUS
from rsbackbones.value_check.verdict import (
    MissingPixelsWarning,
    OffsetWarning,
    ProductWarning,
    UnitWarning,
    Verdict,
    format_value,
)

__all__ = [
    "CIRRUS",
    "CLEAR",
    "DARK",
    "WITH_CIRRUS",
    "MissingPixelsWarning",
    "OffsetWarning",
    "ProductWarning",
    "UnitWarning",
    "Verdict",
    "bands_with_holes",
    "format_value",
    "judge",
    "missing_pixels",
    "zero_is_missing",
]
