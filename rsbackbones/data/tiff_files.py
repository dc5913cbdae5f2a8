"""Files named ``.tif`` are opened as TIFFs, and so are the files that GDAL reads beside them.

GDAL chooses the format by content. A virtual raster (VRT) that is named ``.tif``, or lies beside one as its
overviews or mask, fetches URLs and returns the bytes of any file that the user may read.
"""

from pathlib import Path

_SUFFIXES = (".tif", ".tiff")
_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MAX_AUX_BYTES = 16 * 2**20


def driver_of(path: str | Path) -> str | None:
    """Return the GDAL driver for a file, or ``None``, where GDAL may choose it: files of other suffixes.

    Raises:
        ValueError: a file beside a local TIFF would make GDAL read other files.
    """
    suffix = Path(str(path).partition("?")[0]).suffix.lower()
    if suffix not in _SUFFIXES:
        return None
    if Path(path).is_file():
        _check_sidecars(Path(path))
    return "GTiff"


def _check_sidecars(path: Path) -> None:
    # By name: the listing of a folder of thousands of files takes longer than reading one of them.
    for ending in (".ovr", ".OVR", ".msk", ".MSK"):
        beside = path.with_name(path.name + ending)
        if not beside.is_file():
            continue
        with beside.open("rb") as file:
            if file.read(4) not in _MAGIC:
                raise ValueError(
                    f"{beside} lies beside {path.name} as its overviews or mask and is no TIFF: it may read "
                    "other files. Remove it"
                )
        _check_sidecars(beside)
    for ending in (".aux.xml", ".AUX.XML"):
        beside = path.with_name(path.name + ending)
        if beside.is_file() and (
            beside.stat().st_size > _MAX_AUX_BYTES or b"OVERVIEW_FILE" in beside.read_bytes()
        ):
            raise ValueError(f"{beside} names another file as the overviews of {path.name}; remove it")
