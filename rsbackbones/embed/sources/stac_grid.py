"""Where STAC items lie: the grid that they state, or the one that is asked for."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rsbackbones.embed.sources.stac_assets import as_rasters
from rsbackbones.embed.sources.stac_item import Bounds
from rsbackbones.embed.utm import zone_of

_UTM_GRID = re.compile(r"utm(?=.*[1-9])\d+(\.\d+)?m")


def check_grid(grid: Any) -> None:
    """Refuse what is no grid for items.

    Raises:
        ValueError: neither ``None``, ``utm10m`` nor an ``odc.geo`` GeoBox that is north up and has a CRS.
    """
    if grid is None or (isinstance(grid, str) and _UTM_GRID.fullmatch(grid)):
        return
    if not is_geobox(grid):
        raise ValueError(f"grid must be an odc.geo GeoBox or utmNm, such as utm10m, got {grid!r}")
    t = grid.affine
    if grid.crs is None or t.b or t.d or t.a <= 0 or t.e >= 0:
        raise ValueError(
            f"grid must be a GeoBox with a CRS whose rows go east and columns south, got {grid.crs}, {t!r}"
        )


def is_geobox(grid: Any) -> bool:
    """Tell whether a grid is a GeoBox."""
    from odc.geo.geobox import GeoBox

    return isinstance(grid, GeoBox)


def geobox_of(items: Sequence[dict[str, Any]], assets: Sequence[str], grid: Any) -> Any:
    """Return the ``odc.geo`` GeoBox around items.

    Args:
        items: as dictionaries.
        assets: whose CRS and resolution count.
        grid: a GeoBox, ``utm10m``, or ``None``: CRS and resolution of the items; see :func:`check_grid`.

    Raises:
        ValueError: items in several CRS, or items that state none.
    """
    from odc.stac import output_geobox

    if is_geobox(grid):
        return grid
    codes = {stated_crs(item["properties"], item["assets"], assets) for item in items}
    options: dict[str, Any] = {}
    if grid is not None:
        options = {"crs": "utm", "resolution": float(grid[3:-1])}
    elif len(codes) > 1:
        raise ValueError(
            f"the items lie in several CRS ({', '.join(map(str, sorted(codes, key=str)))}): choose one grid, "
            "grid='utm10m' (--grid utm10m) or a GeoBox, or embed those of each zone"
        )
    if grid is not None and len(codes) == 1 and zone_of(code := codes.pop()):
        options["crs"] = code
    box = output_geobox(parsed(items, assets), list(assets), **options)
    if box is None:
        raise ValueError(
            "the items do not state their CRS and resolution by the projection extension (proj:code, "
            "proj:transform, proj:shape, and the extension in stac_extensions): add them, or choose a grid, "
            "grid='utm10m' (--grid utm10m) or a GeoBox"
        )
    return box


def parsed(items: Sequence[Mapping[str, Any]], assets: Sequence[str]) -> list[Any]:
    """Return items as odc-stac understands them.

    Raises:
        ValueError: what one states of its place cannot be understood.
    """
    import pystac
    from odc.stac import parse_items

    read = (pystac.Item.from_dict(dict(item), migrate=False) for item in items)
    made, understood = [], parse_items(as_rasters(item, assets) for item in read)
    for item in items:
        try:
            made.append(next(understood))
        except Exception as error:  # of any library below it
            raise ValueError(f"the item {item['id']} cannot be placed: {error}") from error
    return made


def bounds_of_box(box: Any) -> Bounds:
    """Return the bounding box of a GeoBox in degrees, around the pole where it holds one."""
    from rasterio.warp import transform_bounds

    west, south, east, north = transform_bounds(box.crs.to_wkt(), "EPSG:4326", *box.boundingbox)
    return west, south, east, north


def stated_crs(
    properties: Mapping[str, Any], assets: Mapping[str, Mapping[str, Any]], keys: Sequence[str]
) -> str | None:
    """Return the CRS that an item states of some assets: ``EPSG:32633`` where it has a code."""
    from odc.geo import CRS
    from pyproj.exceptions import CRSError

    for stated in (*(assets[key] for key in keys if key in assets), properties):
        if code := stated.get("proj:code"):
            return f"EPSG:{code}" if str(code).isdecimal() else str(code)
        if epsg := stated.get("proj:epsg"):
            return f"EPSG:{epsg}"
        if crs := stated.get("proj:wkt2") or stated.get("proj:projjson"):
            text = crs if isinstance(crs, str) else json.dumps(crs)
            try:
                epsg = CRS(text).epsg
            except CRSError:  # :func:`parsed` says which item it is
                return text
            return f"EPSG:{epsg}" if epsg else text
    return None
