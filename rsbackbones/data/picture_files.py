"""Pictures of 8 bits (JPEG, PNG, plain TIFF) in folders and zip files.

Pillow decodes them; matplotlib, which the extras for training and evaluation ask for, brings it.
"""

import io
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rsbackbones.data.raster_path import UnreadableRaster, check_regular_file

Array = npt.NDArray[Any]
PICTURES = (".jpg", ".jpeg", ".png")


def read_picture(
    path: Path,
    archive: "ZipMembers | None" = None,
    *,
    modes: Sequence[str] = ("RGB",),
    edit: Callable[[Any], Any] | None = None,
) -> Array:
    """Decode a picture: [H, W, 3] of the mode ``RGB``, [H, W] of modes of one channel.

    Args:
        path: of the file, or of the member of ``archive``.
        archive: the zip file that holds it.
        modes: the modes of Pillow that are accepted.
        edit: applied to Pillow's image before it is decoded, to crop or scale it.

    Raises:
        UnreadableRaster: (a ``ValueError``) the file is absent or damaged.
        ValueError: it is of another mode, or has 16 bits for each of several channels, of which Pillow would
            keep 8.
    """
    from PIL import Image, UnidentifiedImageError

    if archive is None:
        check_regular_file(path)
    try:
        with Image.open(path if archive is None else io.BytesIO(archive.read(path.as_posix()))) as image:
            if image.mode not in modes:
                raise ValueError(
                    f"{path.name} is a picture of mode {image.mode}; expected {' or '.join(modes)}"
                )
            if image.mode == "RGB" and ";16" in str(image.tile[0][3]):
                raise ValueError(
                    f"{path.name} has 16 bits per channel, and a picture has 8; write digital numbers as "
                    "GeoTIFFs, and name their unit with units="
                )
            return np.asarray(edit(image) if edit else image)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise UnreadableRaster(f"cannot read {path} as a picture of 8 bits: {error}") from error


class ZipMembers:
    """The files in a zip file, opened anew in every process, as positions in a file are shared by fork."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: tuple[int, zipfile.ZipFile] | None = None
        try:
            with zipfile.ZipFile(path) as archive:
                self.members = {
                    i.filename: (i.file_size, i.CRC) for i in archive.infolist() if not i.is_dir()
                }
        except (OSError, zipfile.BadZipFile) as error:
            raise ValueError(f"cannot read {path} as a zip file: {error}") from error

    def read(self, name: str) -> bytes:
        """Return what a member holds.

        Raises:
            UnreadableRaster: (a ``ValueError``) it is damaged.
        """
        if self._open is None or self._open[0] != os.getpid():
            self._open = os.getpid(), zipfile.ZipFile(self.path)
        try:
            return self._open[1].read(name)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise UnreadableRaster(f"cannot read {name} in {self.path}: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None}
