"""Unlabelled 8-bit pictures as places: fMoW-RGB, SEN1-2, and folders or zip files of class folders.

A place is ``rgb``, uint8 [3, H, W] of red, green and blue, 0 to 255, as the file has it. The radar images of
SEN1-2 are the band VV of ``s1`` as a picture too, uint8 [1, H, W], 0 to 255: in the 8-bit scale of their
authors, not in dB. Pictures of one set may differ in size.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from rsbackbones.data.check import validate_sample
from rsbackbones.data.date_alignment import Times, undated
from rsbackbones.data.picture_files import PICTURES, Array, ZipMembers, read_picture
from rsbackbones.data.source import BadSample, Sample
from rsbackbones.files.bounds import read_json

_BANDS = {"rgb": ("B04", "B03", "B02"), "s1": ("VV",)}
_MODES = {"rgb": ("RGB",), "s1": ("L",)}
_SUFFIXES = (*PICTURES, ".tif", ".tiff")  # of UC Merced
_PROBED_PICTURES = 8
# The pictures that no bundled model is pretrained or selected on; written by benchmarks/heldout.py.
HELD_OUT = Path(__file__).with_name("held_out.json")


class PictureSource:
    """Places of one date, each a picture, or one per sensor.

    Args:
        root: the folder, or the zip file.
        files: by sensor (``rgb``, ``s1``) the paths below ``root``, one per place.
        name: for reports.
        notes: see :class:`~rsbackbones.data.source.Source`.
        archive: ``root`` is this zip file.

    Raises:
        ValueError: there is no picture, or no probed one can be read.
    """

    block = 1
    frames = 1

    def __init__(
        self,
        root: Path,
        files: Mapping[str, Sequence[str]],
        *,
        name: str | None = None,
        notes: tuple[str, ...] = (),
        archive: ZipMembers | None = None,
    ) -> None:
        self.root, self.files, self.notes, self._archive = root, dict(files), notes, archive
        self.name = name or root.stem
        self.bands = {sensor: _BANDS[sensor] for sensor in files}
        if not len(self):
            raise ValueError(f"{root} holds no pictures to train on")
        problem: BadSample | None = None
        for place in sorted({i * len(self) // _PROBED_PICTURES for i in range(_PROBED_PICTURES)}):
            try:
                self.read(place)
                return
            except BadSample as error:
                problem = error  # reported when the place is read
        raise ValueError(f"{root}: no probed picture can be used: {problem}") from problem

    def __len__(self) -> int:
        return len(self.files["rgb"])

    def describe(self, place: int) -> str:
        """Return the path of a place's picture below the root."""
        return self.files["rgb"][place]

    def read(self, place: int, frame: int | None = None) -> Sample:
        """Read a place; with ``frame`` [C, H, W], without it [1, C, H, W].

        Raises:
            BadSample: a file cannot be read, is no picture of 8 bits, or two sensors differ in size.
        """
        if frame not in (None, 0):
            raise IndexError(f"frame {frame} of 1")
        sample = self.read_images(place, dict.fromkeys(self.bands, 0))
        return sample if frame == 0 else Sample(images={s: x[None] for s, x in sample.images.items()})

    def times(self, place: int, sensors: Sequence[str]) -> dict[str, Times]:
        """See :meth:`DatedSource.times`: the images of a place count as of one date."""
        return {sensor: undated(1) for sensor in sensors if sensor in self.files}

    def read_images(self, place: int, which: Mapping[str, int]) -> Sample:
        """See :meth:`DatedSource.read_images`."""
        try:
            images = {sensor: self._picture(sensor, self.files[sensor][place]) for sensor in which}
        except ValueError as error:
            raise BadSample(str(error)) from error
        return validate_sample(images, {s: self.bands[s] for s in which}, frames=None)

    def _picture(self, sensor: str, name: str) -> Array:
        path = Path(name) if self._archive else self.root / name
        pixels = read_picture(path, self._archive, modes=_MODES[sensor], edit=self._edit(path))
        return np.ascontiguousarray(np.moveaxis(np.atleast_3d(pixels), -1, 0))

    def _edit(self, path: Path) -> Any:
        """Return what is done to Pillow's image before it is decoded."""
        return None


@dataclass(frozen=True, kw_only=True)
class PictureFiles:
    """Pictures below a folder or in a zip file, in plain types.

    Attributes:
        path: the folder or zip file.
        exclude: see :func:`open_pictures`.
    """

    path: str
    exclude: str | tuple[str, ...] = ()


def open_pictures(
    path: str | Path, *, exclude: str | Path | Sequence[str] = (), name: str | None = None
) -> PictureSource:
    """Open all pictures (JPEG, PNG, TIFF of 8 bits) below a folder, or in a zip file, such as EuroSAT RGB.

    Args:
        path: the folder or zip file.
        exclude: pictures to leave out, by file name with or without folders and suffix
            (``AnnualCrop_2901``): the names, or a JSON file of lists of names (``{"eurosat_rgb": [...]}``),
            of which other sets may have some; ``"held_out"`` is the package's list of the pictures that no
            bundled model was trained or selected on (of EuroSAT and UC Merced; a file of this name is
            ``"./held_out"``).
        name: default: that of the folder or file.

    Raises:
        ValueError: as :class:`PictureSource`, or ``exclude`` cannot be read, names no picture of the set, or
            is a list of names of which one is no picture of it.
    """
    path = Path(path)
    archive = ZipMembers(path) if path.is_file() else None
    if archive:
        names = sorted(member for member in archive.members if is_picture(member))
    else:
        names = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if is_picture(p.name))
    left_out, aliases = set(_listed(exclude)), {one: _names_of(one) for one in names}
    kept = [one for one in names if not left_out & aliases[one]]
    unknown = left_out.difference(*aliases.values())
    if left_out and (len(kept) == len(names) or (unknown and not isinstance(exclude, (str, Path)))):
        raise ValueError(
            f"exclude: {', '.join(sorted(unknown)[:3])} ({len(unknown)} of {len(left_out)} names) are no "
            f"pictures of {path}, whose first is {names[:1]}"
        )
    notes: tuple[str, ...] = ()
    if left_out:  # a run goes on with the same pictures only
        digest = hashlib.sha256("\n".join(kept).encode()).hexdigest()[:12]
        notes = (
            f"{len(names) - len(kept)} of {len(names)} pictures left out (exclude; the others: {digest})",
        )
    return PictureSource(path, {"rgb": kept}, name=name, notes=notes, archive=archive)


def is_picture(name: str) -> bool:
    """Tell whether a file is a picture, by its suffix."""
    file = PurePosixPath(name)
    return file.suffix.lower() in _SUFFIXES and not file.name.startswith(".")


def _names_of(member: str) -> set[str]:
    """Return the names that ``exclude`` may give to a picture: with or without folders and suffix."""
    file = PurePosixPath(member)
    return {member, file.name, file.stem, file.with_suffix("").as_posix()}


def _listed(exclude: str | Path | Sequence[str]) -> list[str]:
    if not isinstance(exclude, (str, Path)):
        return list(exclude)
    file = HELD_OUT if exclude == "held_out" else Path(exclude).expanduser()
    try:
        lists: Any = read_json(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"exclude: cannot read {exclude}: {error}") from error
    if not isinstance(lists, dict) or not all(isinstance(names, list) for names in lists.values()):
        raise ValueError(f"exclude: {exclude} is no JSON object of lists of names")
    return [str(name) for names in lists.values() for name in names]


class SEN12(PictureSource):
    """SEN1-2 (Schmitt, Hughes and Zhu, 2018): pairs of ``rgb`` and ``s1`` (VV), 256 x 256 pixels.

    ``ROOT/ROIs<n>_<season>/s1_<roi>/ROIs<n>_<season>_s1_<roi>_p<k>.png``, and the same with ``s2``. Halves of
    a pair are left out, and counted in the notes.

    Args:
        root: the folder.
        name: default: ``sen12``.

    Raises:
        ValueError: as :class:`PictureSource`.
    """

    def __init__(self, root: str | Path, *, name: str = "sen12") -> None:
        root = Path(root)
        found = {
            sensor: {
                p.relative_to(root).as_posix() for p in root.glob(f"ROIs*_*/{sensor}_*/*_{sensor}_*_p*.png")
            }
            for sensor in ("s2", "s1")
        }
        pairs = {one: one.replace("/s2_", "/s1_").replace("_s2_", "_s1_") for one in sorted(found["s2"])}
        whole = {optical: radar for optical, radar in pairs.items() if radar in found["s1"]}
        halves = len(found["s2"]) + len(found["s1"]) - 2 * len(whole)
        notes = (f"{halves} images left out, which lack the other of the pair",) if halves else ()
        super().__init__(root, {"rgb": [*whole], "s1": [*whole.values()]}, name=name, notes=notes)


class FMoWRGB(PictureSource):
    """The training images of fMoW-RGB (Christie et al., 2018), scaled so that the shorter side is ``size``.

    ``ROOT/train/<category>/<category>_<k>/<category>_<k>_<t>_rgb.jpg``, beside ``_rgb.json``. Every image is
    a place. Left out: ``_msrgb.jpg``, the same view from the multispectral bands, and the folders ``val`` and
    ``test``.

    Args:
        root: the folder that holds ``train``.
        size: the shorter side in pixels; 256 is FoMu-SSL's "cropped size" (appendix D).
        box: crop to the bounding box of the JSON file first; else whole images are read.
        name: default: ``fmow_rgb``.

    Raises:
        ValueError: as :class:`PictureSource`.
    """

    def __init__(
        self, root: str | Path, *, size: int = 256, box: bool = False, name: str = "fmow_rgb"
    ) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1 pixel, got {size}")
        root = Path(root)
        self.size, self.box = size, box
        files = sorted(p.relative_to(root).as_posix() for p in root.glob(FMOW_FILES))
        super().__init__(root, {"rgb": files}, name=name)

    def _edit(self, path: Path) -> Any:
        return partial(_scaled, side=self.size, box=_box(path.with_suffix(".json")) if self.box else None)


FMOW_FILES = "train/*/*/*_rgb.jpg"
SEN12_FILES = "ROIs*_*/s2_*"


def _scaled(image: Any, *, side: int, box: tuple[int, int, int, int] | None) -> Any:
    """Crop an image of Pillow to a box, and scale its shorter side to ``side``."""
    from PIL.Image import Resampling

    whole = image.size
    width, height = whole if box is None else (box[2] - box[0], box[3] - box[1])
    size = tuple(max(side, round(edge * side / min(width, height))) for edge in (width, height))
    if box is None:
        image.draft("RGB", size)  # decode large JPEGs at a half, quarter or eighth of their size
        box = (0, 0, *image.size)
    return image.resize(size, Resampling.BILINEAR, box=box, reducing_gap=2.0)


def _box(path: Path) -> tuple[int, int, int, int]:
    """Return the first bounding box of an image: left, top, right, bottom.

    Raises:
        ValueError: the file has none that is larger than 2 pixels, the limit of the data set's authors.
    """
    try:
        boxes = json.loads(path.read_text(encoding="utf-8"))["bounding_boxes"]
        every = [one["box"] for one in (boxes if isinstance(boxes, list) else [boxes])]
        left, top, width, height = next(box for box in every if min(box[2:]) > 2)
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise ValueError(f"{path} has no bounding box: {type(error).__name__}: {error}") from error
    return left, top, left + width, top + height
