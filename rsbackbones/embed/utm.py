"""UTM zones on WGS 84 by name: ``utm32`` in the north, ``utm32s`` in the south."""

import re
from typing import Any

import numpy as np

from rsbackbones.data.rasters import Array

_CODE = re.compile(r"EPSG:32(?P<side>[67])(?P<zone>0[1-9]|[1-5]\d|60)")
# Tells the hemispheres of a zone apart where its distance in degrees does not.
_OTHER_HEMISPHERE = 1e-9


def zone_of(crs: str | None) -> str | None:
    """Return the name of the zone of a CRS, ``EPSG:32632``; of another CRS ``None``."""
    found = _CODE.fullmatch(crs or "")
    return None if found is None else f"utm{found['zone']}{'s' if found['side'] == '7' else ''}"


def degrees_from_zone(zone: str, lon: Any, lat: Any) -> Array:
    """Return how far places [N] lie from the central meridian of a zone, in degrees; a bit more on the other
    side of the equator.
    """
    meridian, south = int(zone[3:5]) * 6 - 183, zone.endswith("s")
    away = np.abs((np.asarray(lon) - meridian + 180) % 360 - 180)
    found: Array = away + _OTHER_HEMISPHERE * ((np.asarray(lat) < 0) != south)
    return found
