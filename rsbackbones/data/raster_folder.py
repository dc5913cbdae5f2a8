"""The rasters in a folder: GeoTIFFs and JPEG 2000 files, or the bands of a Sentinel-2 product (SAFE)."""

import re
from pathlib import Path

from rsbackbones.data.band_names import is_auxiliary

_SUFFIXES = (".tif", ".tiff", ".jp2")
_BAND_FILE = re.compile(r"(?i)(.*_|)(B\d\d|B8A)(?:_(\d+)m)?")


def rasters_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the rasters of a folder in order of name, and those that are left out.

    Of a Sentinel-2 product, and of any folder with a file per band, those are left out that hold none (SCL,
    TCI), and bands in coarser pixels than another file has them.

    Raises:
        ValueError: there is no raster.
    """
    images = sorted(folder.rglob("IMG_DATA"))
    within = [path for data in images for path in data.rglob("*")] if images else folder.iterdir()
    found = sorted(p for p in within if p.suffix.lower() in _SUFFIXES and not p.name.startswith("."))
    if not found:
        raise ValueError(f"there is no {', '.join(_SUFFIXES)} in the folder {folder}")
    finest: dict[tuple[str, str], tuple[int, Path]] = {}
    for path in found:
        if band := _BAND_FILE.fullmatch(path.stem):
            key, pixel = (band[1].lower(), band[2].upper()), int(band[3] or 0)
            if key not in finest or pixel < finest[key][0]:
                finest[key] = pixel, path
    if not finest:
        return found, []
    best = {path for _, path in finest.values()}
    kept = [p for p in found if p in best or not (_BAND_FILE.fullmatch(p.stem) or is_auxiliary(p.stem))]
    return kept, [path for path in found if path not in kept]
