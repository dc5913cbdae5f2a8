"""Image files as sensors: 8-bit pictures (JPEG, PNG), and GeoTIFFs of any bands."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rsbackbones.data.class_masks import ClassMaskReader, masked_names
from rsbackbones.data.input_files import InputFiles
from rsbackbones.data.labelled.build import Sensors
from rsbackbones.data.labelled.dataset import Array
from rsbackbones.data.labelled.missing import NOTHING, Missing
from rsbackbones.data.picture_files import PICTURES, ZipMembers, read_picture
from rsbackbones.data.raster_path import UnreadableRaster
from rsbackbones.data.rasters import (
    RasterStack,
    check_fits_memory,
    find_bands,
    not_understood,
    open_raster,
    reading,
)
from rsbackbones.data.unit_conversion import convert_unit
from rsbackbones.input_spec import RGB8
from rsbackbones.sensors import SEARCHED_SENSORS, get_sensor

RASTERS = (".tif", ".tiff")
_PROBED = 16
_COLORS = ("red", "green", "blue")  # which every optical sensor knows
Bands = Mapping[str, Sequence[str]]
PICTURE_NOTE = "the images are 8-bit pictures of red, green and blue"


def is_image(name: str) -> bool:
    """Tell whether a file is an image of a supported format, by its suffix."""
    return Path(name).suffix.lower() in (*PICTURES, *RASTERS) and not Path(name).name.startswith(".")


@dataclass(frozen=True)
class ImageFiles:
    """Reads the files of a sample, which together hold the bands; like in all samples.

    Attributes:
        bands: by sensor, in the order of the arrays.
        pictures: files hold 8-bit red, green and blue, or three bands that the user named.
        names: for every file of a sample the names of its channels, ``None``: as the files describe them.
        archive: the paths are of members of this zip file.
        named: by sensor the units that the user named; GeoTIFFs of 8 bits need one.
        stated: by sensor those that the files of the first sample state. Files that state another one, as
            products of another processing baseline do, are converted to it.
        pixel_m: the side of a pixel in meters, where the files are georeferenced.
        missing: which pixels of GeoTIFFs do not count.
    """

    bands: Mapping[str, tuple[str, ...]]
    pictures: bool
    names: tuple[tuple[str, ...] | None, ...]
    archive: ZipMembers | None = None
    named: Mapping[str, str] = field(default_factory=dict)
    stated: Mapping[str, str] = field(default_factory=dict)
    pixel_m: float | None = None
    missing: Missing = NOTHING

    @property
    def units(self) -> dict[str, str]:
        return {**(dict.fromkeys(self.bands, RGB8) if self.pictures else {}), **self.stated, **self.named}

    def read(self, paths: Sequence[Path]) -> dict[str, Array]:
        """Return by sensor [C, H, W]: uint8 of pictures; float32 of rasters, NaN where there is no data.

        Raises:
            ValueError: a file cannot be read, or lacks a band.
        """
        if self.pictures:
            (modality,) = self.bands
            return {modality: _picture(paths[0], self.archive)}
        names, mask = list(self.names), self.missing.mask
        with (
            RasterStack(
                list(paths), tuple(self.bands), wanted=self.bands, units=self.named,
                names=[masked_names(each, mask) for each in names], nodata=self.missing.nodata,
            ) as stack,
            ClassMaskReader(stack, mask, {m: m for m in self.bands}, names=names) as masks,
        ):  # fmt: skip
            for m, bands in self.bands.items():
                if lacking := [b for b in bands if b not in stack.bands.get(m, ())]:
                    raise ValueError(
                        f"{paths[0].name} has no {m} {', '.join(lacking)}, which others of the set have"
                        f"{not_understood(stack.ignored)}"
                    )
            arrays, valid = stack.read()
            for m, unit in {m: self._unit_of(m, stack.stated_units, paths[0]) for m in arrays}.items():
                if unit is not None:
                    arrays[m] = convert_unit(arrays[m], stack.bands[m], m, unit, self.units[m])
            counts = masks.read()
        images = {m: arrays[m][[stack.bands[m].index(b) for b in bands]] for m, bands in self.bands.items()}
        there = {m: valid & counts.get(m, True) for m in images}
        return {
            m: x if there[m].all() else np.where(there[m], x, np.float32(np.nan)) for m, x in images.items()
        }

    def _unit_of(self, sensor: str, stated: Mapping[str, str], path: Path) -> str | None:
        """Return the unit that the files of a sample state, ``None`` where the user names it or none do.

        Raises:
            ValueError: they state one and the files of the set's first sample state none, or the reverse.
        """
        if sensor in self.named:
            return None
        if (sensor in stated) != (sensor in self.stated):
            here, first = (held.get(sensor, "none") for held in (stated, self.stated))
            raise ValueError(
                f"{path.name}: {sensor}: its files state the unit {here}, those of the set's first sample "
                f"{first}; name one for all: units={{'{sensor}': ...}} (--units {sensor}=...)"
            )
        return stated.get(sensor)


def input_files(paths: Sequence[Path]) -> InputFiles:
    """Return the files behind the images and maps of a sample."""
    plain = [path for path in paths if path.suffix.lower() in PICTURES]
    return InputFiles([path for path in paths if path not in plain], plain=plain)


def find_files(
    paths: Sequence[Path],
    sensors: Sequence[str | None],
    bands: Bands | None,
    of: Sensors | None = None,
    archive: ZipMembers | None = None,
    *,
    units: Mapping[str, str] | None = None,
    missing: Missing = NOTHING,
) -> ImageFiles:
    """Inspect the files of one sample and return a reader for files like them.

    Args:
        paths: of one sample, members of ``archive`` where it is given.
        sensors: the sensor of every file, ``None`` for any.
        bands: by sensor the names of the files' channels, in order, where files do not describe them; of a
            file of several sensors, one sensor's channels after another's.
        of: by modality the sensor of its images, where it is another.
        units: by sensor those that the user names.
        missing: which pixels of GeoTIFFs do not count; pictures have all of theirs.

    Raises:
        ValueError: a file cannot be read, its bands are not clear, or it holds 8 bits and no unit is named.
    """
    of = of or {}
    named_units = {of.get(m, m): unit for m, unit in (units or {}).items()}
    bands = {of.get(m, m): names for m, names in bands.items()} if bands else None
    sensors = [None if name is None else of.get(name, name) for name in sensors]
    # Names such as B5 differ in meaning: where other sensors are named, only those are searched for.
    searched = [of.get(m, m) for m in SEARCHED_SENSORS] if {*of} <= {*SEARCHED_SENSORS} else [*of.values()]
    for sensor in bands or {}:
        get_sensor(sensor)
    if all(_is_picture(path, bands, archive) for path in paths):
        if missing:
            raise ValueError(
                f"{paths[0].name} is a picture, and nodata and mask (--nodata, --mask) are for GeoTIFFs"
            )
        named = dict(bands or {searched[0]: _COLORS})
        if len(paths) > 1 or len(named) != 1 or any(len(names) != 3 for names in named.values()):
            raise ValueError(
                f"{paths[0].name} is a picture: one file for each sample, with three bands of one sensor, "
                f"got {len(paths)} files and the bands {named}"
            )
        sensor = sensors[0] or next(iter(named))
        (names,) = named.values()
        found = ImageFiles({sensor: get_sensor(sensor).canonical(names)}, True, (None,), archive, named_units)
        found.read(paths)
        return found
    if archive is not None:
        raise ValueError(f"{archive.path} holds GeoTIFFs: unpack it, and name the folder")
    held: dict[str, tuple[str, ...]] = {}
    of_files: list[tuple[str, ...] | None] = []
    for path, here in zip(paths, sensors, strict=True):
        wanted = tuple(bands or searched) if here is None else (here,)
        channels = tuple(name for m in wanted for name in (bands or {}).get(m, ())) or None
        unmasked = masked_names(channels, missing.mask)
        found_bands, _ = find_bands(path, wanted, unmasked, units=named_units)
        if twice := [m for m in found_bands if m in held]:
            raise ValueError(f"{path.name}: {', '.join(twice)} is in another file of the sample too")
        held |= {m: tuple(held_here) for m, held_here in found_bands.items()}
        of_files.append(channels)
    read = [masked_names(names, missing.mask) for names in of_files]
    with RasterStack(list(paths), tuple(held), names=read, units=named_units) as stack:
        stated, pixel = stack.stated_units, stack.grid.pixel_in_meters
    return ImageFiles(
        held, False, tuple(of_files), named=named_units, stated=stated, pixel_m=pixel, missing=missing
    )


def find_readable_files(samples: Sequence[Sequence[Path]], *arguments: Any, **options: Any) -> ImageFiles:
    """Return a reader as :func:`find_files` does, of the first of some samples that can be read.

    Raises:
        ValueError: none can, or as :func:`find_files`.
    """
    unreadable: UnreadableRaster | None = None
    for paths in samples[:_PROBED]:
        try:
            return find_files(paths, *arguments, **options)
        except UnreadableRaster as error:  # reading that sample names it
            unreadable = unreadable or error
    assert unreadable is not None
    raise unreadable


def read_map(path: Path) -> Array:
    """Read a label raster of one band, [H, W], in its own numbers.

    Raises:
        ValueError: the file cannot be read, or has several bands.
    """
    if path.suffix.lower() in PICTURES:
        labels = read_picture(path, modes=("L", "P", "I;16", "I", "1"))
        return labels.astype(np.uint8) if labels.dtype == bool else labels
    with open_raster(path) as raster:
        if raster.count != 1:
            raise ValueError(f"{path.name}: a label raster has one band, got {raster.count}")
        labels = _array(raster, 1)
        nodata = raster.nodata
    if nodata is not None and np.isfinite(nodata):
        return np.where(labels == nodata, -1, labels.astype(np.int64))
    return labels


def _is_picture(path: Path, bands: Bands | None, archive: ZipMembers | None) -> bool:
    if path.suffix.lower() in PICTURES:
        return True
    if archive is not None or bands is not None:
        return False
    with open_raster(path) as raster:  # a TIFF may be a picture too, as those of UC Merced are
        plain = not any(raster.descriptions)
        return bool(plain and raster.count == 3 and set(raster.dtypes) == {"uint8"})


def _picture(path: Path, archive: ZipMembers | None) -> Array:
    if path.suffix.lower() in RASTERS:
        with open_raster(path) as raster:
            if raster.count != 3 or set(raster.dtypes) != {"uint8"}:
                raise ValueError(f"{path.name}: expected three bands of 8 bits, as others of the set have")
            return _array(raster, None)
    return np.ascontiguousarray(read_picture(path, archive).transpose(2, 0, 1))


def _array(raster: Any, index: int | None) -> Array:
    check_fits_memory(
        raster.name, (raster.count if index is None else 1, *raster.shape), np.dtype(raster.dtypes[0])
    )
    with reading(raster):
        array: Array = raster.read() if index is None else raster.read(index)
    return array
