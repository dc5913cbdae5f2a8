"""A folder of class folders of images, or a zip file of one."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from rsbackbones.data.input_files import InputFiles
from rsbackbones.data.labelled.build import Sensors, build_dataset
from rsbackbones.data.labelled.classes import LabelCodes
from rsbackbones.data.labelled.dataset import Array, LabelledDataset
from rsbackbones.data.labelled.image_files import (
    PICTURE_NOTE,
    Bands,
    ImageFiles,
    find_readable_files,
    input_files,
    is_image,
)
from rsbackbones.data.labelled.missing import NOTHING, Missing
from rsbackbones.data.labelled.splits import split_of
from rsbackbones.data.picture_files import ZipMembers


def read_class_folders(
    path: Path,
    bands: Bands | None = None,
    units: Mapping[str, str] | None = None,
    sensors: Sensors | None = None,
    missing: Missing = NOTHING,
) -> LabelledDataset:
    """Find the images in ``CLASS/IMAGE``, or ``SPLIT/CLASS/IMAGE`` with the splits train, val and test.

    Images lie directly in the folder of their class. A folder that holds nothing but one folder of folders is
    looked into, as published archives are often packed so. The id of a sample is its path below there.

    Raises:
        ValueError: no images, images outside of class folders, one class, an empty folder of a split, or
            bands that the first image does not make clear.
    """
    archive = ZipMembers(path) if path.is_file() else None
    if archive is None:
        files = {p.relative_to(path).as_posix(): p for p in sorted(path.rglob("*")) if p.is_file()}
        names = [name for name in files if is_image(name)]
    else:
        names = [name for name in sorted(archive.members) if is_image(name)]
    if not names:
        raise ValueError(f"{path} holds no JPEG, PNG or GeoTIFF images")
    top = _common_folder(names)
    below = [PurePosixPath(name).relative_to(top) for name in names]
    depth = 3 if len(below[0].parts) == 3 and all(split_of(p.parts[0]) for p in below if p.parts) else 2
    if outside := [str(p) for p in below if len(p.parts) != depth]:
        raise ValueError(
            f"{path}: expected CLASS/IMAGE, or train|val|test/CLASS/IMAGE; {len(outside)} of {len(below)} "
            f"images lie elsewhere, such as {outside[0]}. Images without class folders need a CSV file of "
            "labels"
        )
    words = [p.parts[0] for p in below] if depth == 3 else None
    if words is not None and archive is None:
        folders = [p.name for p in (path / top).iterdir() if p.is_dir() and split_of(p.name)]
        if empty := [name for name in folders if name not in words]:
            raise ValueError(f"{path}: the {' and '.join(empty)} split is empty")
    kinds = Counter(p.suffix.lower() in (".tif", ".tiff") for p in below)
    if len(kinds) > 1:
        raise ValueError(f"{path} holds {kinds[True]} GeoTIFFs and {kinds[False]} pictures; which are meant?")
    labels = [p.parts[-2] for p in below]
    if len(set(labels)) < 2:
        raise ValueError(f"{path} holds images of one class ({labels[0]}): there is nothing to tell apart")
    paths = [Path(name) if archive else path / name for name in names]
    files_of = find_readable_files(
        [[path] for path in paths], [None], bands, sensors, archive, units=units, missing=missing
    )
    inputs = [InputFiles(plain=[path])] if archive else [input_files([p]) for p in paths]
    return build_dataset(
        name=path.stem,
        task="classes",
        bands=files_of.bands,
        units=files_of.units,
        sensors=sensors,
        ids=[str(p) for p in below],
        codes=LabelCodes.of(sorted(set(labels))),
        labels=labels,
        splits=words,
        read=partial(_read, files_of, paths),
        content=[archive.members[name] for name in names] if archive else [f.facts for f in inputs],
        files=inputs,
        notes=(PICTURE_NOTE,) if files_of.pictures else (),
        pixel_m=files_of.pixel_m,
        missing=missing,
    )


def _read(files: ImageFiles, paths: Sequence[Path], index: int) -> dict[str, Array]:
    return files.read([paths[index]])


def _common_folder(names: Sequence[str]) -> PurePosixPath:
    """The folder of one folder each that all images lie in; that of a class or a split is none of them."""
    top = PurePosixPath()
    while True:
        below = [PurePosixPath(name).relative_to(top).parts for name in names]
        first = {parts[0] for parts in below}
        if len(first) > 1 or any(len(parts) < 3 for parts in below) or split_of(below[0][0]):
            return top
        top /= below[0][0]
