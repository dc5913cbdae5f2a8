"""The files behind rasters, and whether they are still the same.

What is computed from a raster depends on all files that GDAL reads for it: sidecars (``.aux.xml``, ``.ovr``,
``.msk``, ``.tfw``), and for a VRT its sources, with theirs. Caches and unfinished work are kept under the
names, sizes, times of change and contents of all of them. Of contents longer than 64 KiB sixteen parts are
looked at, the first and the last among them: a change that keeps size and time (``cp -p``) shows there in all
likelihood, in the last part of a zip or .npz file for certain.
"""

import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen
from uuid import uuid4

from rsbackbones.data.raster_path import local_file, raster_name, web_address, without_query
from rsbackbones.files.retry import BUSY, retried

_TIMEOUT_S = 30
# A content is known by so many parts of so many bytes.
_PARTS, _PART = 16, 4096


class InputFiles:
    """The files behind some rasters, as they were when this was made.

    Local files count with size, time of change and parts of their content, also archives that GDAL looks into
    (``/vsizip/a.zip/b.tif``, ``NETCDF:a.nc:b``). Files of a web server (``https://``, ``/vsicurl/``) count
    with size and ETag, or Last-Modified. Other remote files (``s3://``, ``/vsigs/``) tell no version here:
    what depends on them is not reused.

    Args:
        rasters: paths, or strings where only GDAL knows what they name.
        plain: files that are read without GDAL, and so without sidecars; of a folder those directly in it.

    Attributes:
        facts: name, size, time and content of each file, as JSON takes it; equal where nothing changed.

    """

    def __init__(self, rasters: Iterable[str | Path] = (), *, plain: Iterable[Path] = ()) -> None:
        self._rasters, self._plain = tuple(rasters), tuple(plain)
        # Stands for the version of a remote file that tells none: equal to no other.
        self._unknown = f"unknown {uuid4().hex}"
        self._found = self._find()
        self.facts: list[str] = list(self._found.values())
        self._local = [name for name in self._found if local_file(name) is not None]
        self._seen = self._folders()

    def check(self, *, again: bool = False) -> None:
        """Refuse files that changed.

        Files that appear beside the rasters are looked for where their folder changed; with ``again``
        everywhere, and web servers are asked again.

        Raises:
            ValueError: a file changed, is missing, or is new; it is named.
        """
        folders = self._folders()
        same = all(self._facts(name) == self._found[name] for name in self._local)
        if same and not again and folders == self._seen:
            return
        found = self._find() if same else {**self._found, **{name: self._facts(name) for name in self._local}}
        if found != self._found:
            names = sorted({*found, *self._found})
            changed = [without_query(name) for name in names if found.get(name) != self._found.get(name)]
            raise ValueError(
                f"the input changed while it was read: {', '.join(changed[:5])}; run again when nothing "
                "writes to it"
            )
        self._seen = folders

    def _find(self) -> dict[str, str]:
        names = [name for path in self._rasters for name in dataset_files(path)]
        for path in self._plain:
            names += map(str, sorted(path.iterdir()) if path.is_dir() else [path])
        return {name: self._facts(name) for name in dict.fromkeys(names)}

    def _facts(self, name: str) -> str:
        short = raster_name(name)
        if web := web_address(name):
            return f"{short} {_web_version(web) or self._unknown}"
        local = local_file(name)
        if local is None:
            return f"{short} {self._unknown}"
        found = _size_and_time(local)
        return f"{short} absent" if found is None else f"{short} {found[0]} {found[1]} {_content(local)}"

    def _folders(self) -> list[tuple[int, int] | None]:
        """Return the times of the folders in which sidecars may appear."""
        names = self._local if self._rasters else []
        return [_size_and_time(folder) for folder in dict.fromkeys(Path(name).parent for name in names)]


def dataset_files(path: str | Path) -> list[str]:
    """Return the files that GDAL reads for a raster: itself, sidecars, and sources of a VRT with theirs.

    Of what cannot be opened, or without rasterio, the name alone is returned; reading it raises the error.
    """
    try:
        import rasterio
    except ImportError:
        return [str(path)]
    from rsbackbones.data.rasters import open_raster

    found: dict[str, None] = {}

    def add(name: Any) -> None:
        found[str(name)] = None
        try:
            with open_raster(name) as raster:
                driver, files = raster.driver, [file for file in raster.files if file not in found]
        except ValueError:  # a sidecar, or a source that is missing
            return
        found.update(dict.fromkeys(files))
        if driver != "GTiff":  # whose other files are no rasters
            for file in files:
                add(file)

    # Sidecars are asked for by name: the listing of a folder of thousands of files takes longer.
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="TRUE"):
        add(path)
    return list(found)


def _size_and_time(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _content(path: Path) -> str:
    """Return a digest of a file's content, of a long one of evenly spaced parts."""
    digest = hashlib.blake2b(digest_size=8)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait
            return "-"
        with path.open("rb", buffering=0) as file:
            if status.st_size <= _PARTS * _PART:
                digest.update(file.read(_PARTS * _PART))
            else:
                for i in range(_PARTS):
                    file.seek(i * (status.st_size - _PART) // (_PARTS - 1))
                    digest.update(file.read(_PART))
    except OSError:  # reading it raises the error
        return "-"
    return digest.hexdigest()


def tree_digest(root: Path, *, without: Path) -> str:
    """Return a digest of the names, sizes and times of all files below a folder, or of one file.

    Contents are not looked at: there may be millions.

    Args:
        root: the folder or file.
        without: a folder whose files do not count.
    """
    digest = hashlib.sha256()
    top = root if root.is_dir() else root.parent
    for folder, folders, names in os.walk(top) if root.is_dir() else [(str(top), [], [root.name])]:
        folders[:] = sorted(name for name in folders if Path(folder, name).resolve() != without.resolve())
        for path in (Path(folder, name) for name in sorted(names)):
            digest.update(f"{path.relative_to(top).as_posix()} {_size_and_time(path)}\n".encode())
    return digest.hexdigest()


def _web_version(url: str) -> str | None:
    """Return size and ETag of a file of a web server, or size and time; ``None``: it states none."""

    def ask() -> tuple[str | None, str | None]:
        with urlopen(Request(url, method="HEAD"), timeout=_TIMEOUT_S) as answer:
            return (
                answer.headers.get("Content-Length"),
                answer.headers.get("ETag") or answer.headers.get("Last-Modified"),
            )

    try:
        size, version = retried(ask, lambda e: isinstance(e, HTTPError) and e.code in BUSY)
    except (URLError, OSError, ValueError):
        size = version = None
    return f"{size} {version}" if version else None
