"""The grid of STAC items: the one that they state, or the one that is asked for."""

import copy
import re
from collections.abc import Sequence
from typing import Any

from rsbackbones.data.raster_grid import Grid

_UTM_GRID = re.compile(r"utm(\d+(?:\.\d+)?)m")


def geobox_of(items: Sequence[dict[str, Any]], assets: Sequence[str], grid: Any) -> Any:
    """Return the ``odc.geo`` GeoBox around items.

    Args:
        items: as dictionaries.
        assets: whose resolution counts.
        grid: a GeoBox, ``utm10m``, or ``None``: CRS and resolution of the items.

    Raises:
        ValueError: another grid, items in several CRS, or items that state none.
    """
    import pystac
    from odc.geo.geobox import GeoBox
    from odc.stac import output_geobox, parse_items

    if isinstance(grid, GeoBox):
        t = grid.affine
        if t.b or t.d or t.a <= 0 or t.e >= 0:
            raise ValueError(f"grid must be a GeoBox whose rows go east and columns south, got {t!r}")
        return grid
    parsed = list(parse_items([pystac.Item.from_dict(copy.deepcopy(i), migrate=False) for i in items]))
    known = [a for a in assets if any(a in p.collection.aliases or (a, 1) in p.bands for p in parsed)]
    codes = {item["properties"].get("proj:code") or item["properties"].get("proj:epsg") for item in items}
    options: dict[str, Any] = {}
    if grid is not None:
        if not isinstance(grid, str) or not (stated := _UTM_GRID.fullmatch(grid)):
            raise ValueError(f"grid must be an odc.geo GeoBox or utmNm, such as utm10m, got {grid!r}")
        options = {"crs": "utm", "resolution": float(stated[1])}
    elif len(codes) > 1:
        raise ValueError(
            f"the items lie in several CRS ({', '.join(map(str, sorted(codes, key=str)))}): choose one grid, "
            "grid='utm10m' (--grid utm10m) or a GeoBox, or embed those of each zone"
        )
    if grid is not None and len(codes) == 1 and (zone := _utm_zone(codes.pop())):
        options["crs"] = f"EPSG:{zone}"
    box = output_geobox(parsed, known or None, **options)
    if box is None:
        raise ValueError(
            "the items do not state their CRS and resolution by the projection extension (proj:code, "
            "proj:transform, proj:shape, and the extension in stac_extensions): add them, or choose a grid, "
            "grid='utm10m' (--grid utm10m) or a GeoBox"
        )
    return box


def grid_of(box: Any) -> Grid:
    """Return a GeoBox as a grid."""
    from rasterio import Affine
    from rasterio.crs import CRS

    return Grid(box.height, box.width, CRS.from_wkt(box.crs.to_wkt()), Affine(*box.affine[:6]))


def zones_of(items: list[Any]) -> dict[str, list[Any]]:
    """Return ``pystac`` items by their UTM zone; of one CRS, or of others, nothing."""
    found: dict[str, list[Any]] = {}
    for item in items:
        code = item.properties.get("proj:code") or item.properties.get("proj:epsg")
        if (number := _utm_zone(code)) is None:
            return {}
        found.setdefault(f"utm{number % 100:02}{'s' if number // 100 == 327 else ''}", []).append(item)
    return dict(sorted(found.items())) if len(found) > 1 else {}


def _utm_zone(code: Any) -> int | None:
    """Return the number of EPSG of a UTM zone (on WGS 84) that an item states; of another CRS ``None``."""
    number = int(text) if (text := str(code).removeprefix("EPSG:")).isdecimal() else 0
    return number if number // 100 in (326, 327) and 1 <= number % 100 <= 60 else None
