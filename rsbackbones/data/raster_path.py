"""Where a raster is: a local file, or a name that only GDAL can open (/vsi..., URLs, subdatasets)."""

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

# A string is never made a Path, which would join the slashes of https://.
RasterPath = Path | str
_GDAL_NAME = re.compile(r"/vsi[a-z0-9_]+/|[A-Za-z][\w+.-]+:", re.ASCII)
# Virtual file systems over a local file: /vsizip/a.zip/b.tif, zip://a.zip!b.tif.
_ARCHIVE = re.compile(r"/vsi(?:zip|gzip|tar|7z|rar|sparse)/|(?:zip|gzip|tar|file)(?:\+file)?://")
_HTTP = re.compile(r"(?:/vsicurl/)?(https?://.*)", re.DOTALL)
_SUBDATASET = re.compile(r'[A-Za-z0-9_]+:"?(.+?)"?(?::[^/\\]*)?', re.DOTALL)
_COLLAPSED = re.compile(r"/vsi|[A-Za-z][\w+.-]+:/", re.ASCII)


class UnreadableRaster(ValueError):
    """A raster that cannot be opened or read: it is absent, damaged, or no raster at all."""


def raster_path(given: str | os.PathLike[str]) -> RasterPath:
    """Return a local file as a ``Path``, and a name for GDAL as the string that it is.

    Names for GDAL begin with ``/vsi...``, a scheme (``https://``, ``s3://``, ``zip://``) or a driver
    (``NETCDF:"file.nc":B02``). A local file of such a name is a local file.

    Raises:
        ValueError: a ``Path`` made of such a name, which may have lost slashes.
    """
    text = os.fspath(given)
    if not isinstance(given, str):
        if _COLLAPSED.match(text) and not Path(text).exists():
            raise ValueError(f"{text} is no local file; pass it as a string, as a Path joins its slashes")
        return Path(text)
    return text if _GDAL_NAME.match(text) and not Path(text).exists() else Path(text)


def raster_paths(given: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[RasterPath]:
    """Return one or several rasters as a list, see :func:`raster_path`."""
    return [raster_path(p) for p in ([given] if isinstance(given, (str, os.PathLike)) else given)]


def local_file(name: RasterPath) -> Path | None:
    """Return the local file that a raster lies in, of an archive or subdataset too; ``None``: it is remote.

    A local path of no file is returned as it is.
    """
    inner = re.sub("[{}]", "", _ARCHIVE.sub("", str(name)))  # /vsizip/{a.zip}/b.tif
    subdataset = _SUBDATASET.fullmatch(inner)
    for candidate in (inner, inner.partition("!")[0], subdataset[1] if subdataset else inner):
        path = Path(candidate)
        if found := next((place for place in (path, *path.parents) if place.is_file()), None):
            return found
    return None if inner.startswith("/vsi") or "://" in inner else Path(inner)


def web_address(name: RasterPath) -> str | None:
    """Return the URL of a raster on a web server, ``None`` for others."""
    found = _HTTP.fullmatch(str(name))
    return found[1] if found else None


def without_query(name: str) -> str:
    """Return a name without the query of a URL, which may hold a signature."""
    return name.partition("?")[0] if web_address(name) else name


def raster_name(path: RasterPath) -> str:
    """Return the last part of a path, of a URL without its query."""
    return re.split(r"[/\\]", str(path).split("?")[0].rstrip('/"'))[-1]


def check_regular_file(path: RasterPath) -> None:
    """Refuse what no raster can be in: opening a named pipe would wait forever.

    Raises:
        UnreadableRaster: a local path is absent, a folder, a pipe or another special file, or empty.
    """
    if isinstance(path, str):
        return
    try:
        status = path.stat()
    except OSError as error:
        raise UnreadableRaster(f"cannot read {path}: {error.strerror or error}") from error
    if not stat.S_ISREG(status.st_mode):
        what = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file (a pipe or a device)"
        raise UnreadableRaster(f"cannot read {path}: it is {what}")
    if not status.st_size:
        raise UnreadableRaster(f"cannot read {path}: it is empty (0 bytes)")
