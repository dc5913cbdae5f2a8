"""Image time series in a folder: what users collect, or what :func:`write_series` writes.

A set is ``FOLDER/set.json`` and a folder per location. A location is either ``series.zarr.zip``, a Zarr group
that :func:`write_series` writes, or GeoTIFFs on one grid, a file per date::

    FOLDER/set.json
    FOLDER/LOCATION/s2/2019-05-03.tif    the date is the first in the name, also as 20190503
    FOLDER/LOCATION/s1/2019-05-05.tif
    FOLDER/LOCATION/label.tif            classes, where the set has labels; nodata is no label
    FOLDER/LOCATION/cloud/2019-05-03.tif not 0 where there are clouds; for every image of s2, or no folder

``set.json`` needs ``bands``, and the rest where there are labels::

    {"schema": 1,
     "bands": {"s2": ["B02", "B03", "B04"], "s1": ["VV", "VH"]},
     "classes": {"maize": [1, 2], "grass": [7]},
     "ignore": [0],
     "splits": {"train": ["LOCATION", ...], "val": [...], "test": [...]}}

``bands`` are those of the files, in order, where their bands have no descriptions, else those to read.
``classes`` are the codes of the labels by class (pixels of other codes have no label), or a list of names,
whose codes are 0, 1, ...; pixels of the codes of ``ignore`` have no label. Sensors have their own dates, as
many as there are, in any order; a location may lack a sensor. Values are Sentinel-2 DN and Sentinel-1 dB, as
of any source.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rsbackbones.data.check import stack_valid, validate_sample
from rsbackbones.data.date_alignment import Times
from rsbackbones.data.file_cache import FileCache
from rsbackbones.data.labelled.classes import Classes, LabelCodes
from rsbackbones.data.labelled.dataset import SPLITS
from rsbackbones.data.raster_grid import Grid
from rsbackbones.data.series import parse_dates
from rsbackbones.data.series_locations import CLOUD, LABEL, STORE, RasterLocation, StoredLocation
from rsbackbones.data.series_set import SET_FILE, STATISTICS_FILE, SeriesSet, plain_classes, read_set
from rsbackbones.data.source import BadSample, Sample
from rsbackbones.data.zarr_zip import ZarrZip, ZarrZipWriter, narrow
from rsbackbones.files.atomic import write_text
from rsbackbones.files.lock import exclusive
from rsbackbones.sensors import get_sensor

Array = npt.NDArray[Any]


def write_series(
    folder: str | Path,
    name: str,
    *,
    images: Mapping[str, npt.ArrayLike],
    dates: Mapping[str, npt.ArrayLike],
    bands: Mapping[str, Sequence[str]],
    label: npt.ArrayLike | None = None,
    classes: Classes | None = None,
    ignore: Sequence[int] = (),
    split: str | None = None,
    cloud: npt.ArrayLike | None = None,
    crs: str | None = None,
    transform: Sequence[float] | None = None,
) -> Path:
    """Write the series of one location, and its part of ``set.json``.

    A location that exists is replaced. Several processes may write into one folder.

    Args:
        folder: the folder of the set; it is created.
        name: the name of the location.
        images: by sensor [T, C, H, W], Sentinel-2 in DN and Sentinel-1 in dB, all on one grid; T may differ.
            NaN marks an image with missing pixels.
        dates: by sensor [T], datetime64, ISO dates or days since 1970-01-01, in any order.
        bands: by sensor the names of the channels; the same for all locations of a set.
        label: [H, W] integers.
        classes: names, whose codes are 0, 1, ..., or codes by name; with ``label``, the same for all.
        ignore: codes that are no label.
        split: ``train``, ``val`` or ``test``.
        cloud: [T, H, W], not 0 where the images of ``s2`` show clouds.
        crs: such as ``EPSG:32631``.
        transform: six numbers (a, b, c, d, e, f) of the affine map from (column, row) to (x, y).

    Returns:
        The folder of the location.

    Raises:
        ValueError: arrays, dates and bands do not fit together, a label has no class, or the set holds other
            bands or classes.
    """
    folder = Path(folder).expanduser()
    if not name or Path(name).name != name or name.startswith("."):
        raise ValueError(f"the name of a location is that of a folder, got {name!r}")
    if split is not None and split not in SPLITS:
        raise ValueError(f"{name}: split must be one of {', '.join(SPLITS)}, got {split!r}")
    if (label is None) != (classes is None) or (label is None and ignore):
        raise ValueError(f"{name}: label, classes and ignore go together; name the classes of the label")
    own = {sensor: get_sensor(sensor).canonical(names) for sensor, names in bands.items()}
    arrays, times = _check_images(name, images, dates, own)
    size = next(iter(arrays.values())).shape[-2:]
    new = SeriesSet(bands=own, classes=plain_classes(classes), ignore=tuple(int(code) for code in ignore))
    if label is not None and new.codes is not None:
        arrays[LABEL] = _check_label(name, np.asarray(label), size, new.codes)
    if cloud is not None:
        arrays[CLOUD] = (np.asarray(cloud) != 0).astype(np.uint8)
        if "s2" not in own or arrays[CLOUD].shape != (len(times["s2"]), *size):
            raise ValueError(
                f"{name}: cloud must be [T, H, W] for the images of s2, got {list(arrays[CLOUD].shape)} for "
                + ", ".join(f"{s} {list(arrays[s].shape)}" for s in own)
            )
    attributes: dict[str, Any] = {"dates": {s: days.tolist() for s, days in times.items()}}
    if crs is not None:
        attributes["crs"] = str(crs)
    if transform is not None:
        attributes["transform"] = [float(value) for value in tuple(transform)[:6]]
    with exclusive(folder, patience=60):
        for path in folder.glob(f"{Path(STATISTICS_FILE).stem}*.json"):
            path.unlink()  # of other images
        content = asdict(_with_location(folder, name, new, split))
        place = folder / name
        place.mkdir(exist_ok=True)
        with ZarrZipWriter(place / STORE) as writer:
            for array_name, values in arrays.items():
                writer.array(array_name, narrow(values))
            writer.attributes(attributes)
        write_text(folder / SET_FILE, json.dumps({k: v for k, v in content.items() if v}, indent=1))
    return place


def _check_images(
    name: str,
    images: Mapping[str, npt.ArrayLike],
    dates: Mapping[str, npt.ArrayLike],
    bands: Mapping[str, tuple[str, ...]],
) -> tuple[dict[str, Array], dict[str, npt.NDArray[np.int64]]]:
    """Return images and days by sensor, as they are stored, in the order of the bands."""
    if not images or set(images) != set(dates) or set(images) != set(bands):
        raise ValueError(
            f"{name}: images, dates and bands must be of the same sensors, got {list(images)}, {list(dates)} "
            f"and {list(bands)}"
        )
    arrays = {sensor: np.asarray(images[sensor]) for sensor in bands}
    times = {}
    for sensor, values in arrays.items():
        days = parse_dates(dates[sensor], f"{name}: {sensor}")
        shape = (len(days), len(bands[sensor]))
        if values.ndim != 4 or values.shape[:2] != shape or not values.size or values.dtype.kind not in "iuf":
            raise ValueError(
                f"{name}: {sensor} must be numbers [T, C, H, W] with T = {shape[0]} dates and the {shape[1]} "
                f"bands {', '.join(bands[sensor])}, got {values.dtype} {list(values.shape)}"
            )
        times[sensor] = days.astype("datetime64[D]").astype(np.int64)
    if len({values.shape[-2:] for values in arrays.values()}) > 1:
        sizes = ", ".join(f"{s} {x.shape[-2]} x {x.shape[-1]}" for s, x in arrays.items())
        raise ValueError(f"{name}: the sensors must be on one grid of pixels, got {sizes}")
    return arrays, times


def _check_label(name: str, label: Array, size: tuple[int, ...], codes: LabelCodes) -> Array:
    if label.shape != size:
        raise ValueError(f"{name}: label must have the size of the images, {size}, got {label.shape}")
    try:
        codes.map(label)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return label


def _with_location(folder: Path, name: str, new: SeriesSet, split: str | None) -> SeriesSet:
    """Return the set with one more location."""
    held = read_set(folder) if (folder / SET_FILE).exists() else new
    own, other = {**held.bands, **new.bands}, {**new.bands, **held.bands}
    if own != other:
        raise ValueError(
            f"{name} has the bands {own}, and {folder} has {other}: one set has one list of bands"
        )
    classes = (held.classes, held.ignore) if held.classes else (new.classes, new.ignore)
    if new.classes and classes != (new.classes, new.ignore):
        raise ValueError(
            f"{name} has the classes {new.classes} and ignores {new.ignore}, and {folder} has "
            f"{classes[0]} and {classes[1]}: one set has one list of classes"
        )
    splits = {s: tuple(n for n in names if n != name) for s, names in held.splits.items()}
    if split is not None:
        splits[split] = (*splits.get(split, ()), name)
    return SeriesSet(
        bands=other,
        classes=classes[0],
        ignore=classes[1],
        splits={s: names for s, names in splits.items() if names},
    )


class SeriesFolder:
    """The locations of a set of series, in order of name.

    Images of a sensor are in order of time; those of one day keep the order of the files. Sensors have series
    of their own length: :meth:`read` gives all dates, and a method that needs pairs aligns them
    (:mod:`rsbackbones.data.aligned_series`).

    Args:
        root: the folder of the set.
        split: only the locations of this split; default all.
        units: by sensor the unit of the GeoTIFFs, where it is not that of the files; 8-bit values are refused
            without one. Values are not converted.
        name: default: the folder's name.

    Attributes:
        set: the content of ``set.json``.
        units: as given.
        locations: their names.

    Raises:
        ValueError: ``set.json`` cannot be used, there are no locations, or the split does not exist.
    """

    block = 1
    frames: int | None = None
    notes: tuple[str, ...] = ()

    def __init__(
        self,
        root: str | Path,
        *,
        split: str | None = None,
        units: Mapping[str, str] | None = None,
        name: str | None = None,
    ) -> None:
        self.root = Path(root)
        self.set = read_set(self.root)
        self.name = name or self.root.resolve().name
        self.bands = dict(self.set.bands)
        self._split, self.units = split, dict(units or {})
        self.locations = sorted(p.name for p in self.root.iterdir() if p.is_dir() and p.name[0] != ".")
        named = {name for names in self.set.splits.values() for name in names}
        if lacking := sorted(named - set(self.locations)):
            raise ValueError(
                f"{self.root}: {SET_FILE} names locations that do not exist: {', '.join(lacking[:5])}"
            )
        if split is not None:
            if split not in self.set.splits:
                raise ValueError(
                    f"{self.root} has no split {split!r}; {SET_FILE} has "
                    f"{', '.join(self.set.splits) or 'no splits'}"
                )
            self.locations = sorted(self.set.splits[split])
        if not self.locations:
            raise ValueError(f"{self.root} holds no folders of locations")
        self._stores: FileCache[ZarrZip] = FileCache(ZarrZip)

    def __len__(self) -> int:
        return len(self.locations)

    def describe(self, place: int) -> str:
        """Return the name of the location."""
        return self.locations[place]

    def read(self, place: int, frame: int | None = None) -> Sample:
        """Read all images of a location, [T, C, H, W] by sensor, each of its own length.

        Images that hold NaN or infinity, or nothing but zeros, are not ``valid``.

        Raises:
            BadSample: a date cannot be read, a sensor has no usable image, a file is damaged, or images are
                not on one grid. A location without a sensor has no images of it.
            ValueError: ``frame`` is given: the sensors have no common dates.
        """
        if frame is not None:
            raise ValueError(f"{self.name}: series have dates of their own for every sensor, and no frames")
        location = self._location(place)
        times = location.times(self.bands)
        images, valid = {}, {}
        for sensor, days in times.items():
            read = [location.read(sensor, i) for i in range(len(days))]
            if len(sizes := {image.shape[-2:] for image in read}) > 1:
                raise BadSample(f"{sensor} has images of several sizes: {sorted(sizes)}")
            images[sensor], valid[sensor] = stack_valid(sensor, read)
        return validate_sample(
            images,
            {sensor: self.bands[sensor] for sensor in times},
            frames={sensor: len(days) for sensor, days in times.items()},
            dates={s: days.astype("datetime64[D]").astype(np.int64) for s, days in times.items()},
            valid=valid,
        )

    def times(self, place: int, sensors: Sequence[str]) -> dict[str, Times]:
        """See :meth:`DatedSource.times`."""
        return self._location(place).times(sensors)

    def read_images(self, place: int, which: Mapping[str, int]) -> Sample:
        """See :meth:`DatedSource.read_images`."""
        location = self._location(place)
        times = location.times(which)
        if lacking := [sensor for sensor in which if sensor not in times]:
            raise BadSample(f"{', '.join(lacking)} is missing")
        dates = {s: times[s][[i]].astype("datetime64[D]").astype(np.int64) for s, i in which.items()}
        images = {}
        for sensor, i in which.items():
            images[sensor] = location.read(sensor, i)
            try:
                validate_sample({sensor: images[sensor]}, {sensor: self.bands[sensor]}, frames=None)
            except BadSample as problem:
                day = times[sensor][i].astype("datetime64[D]")
                raise type(problem)(f"{problem}, in the image of {day}") from problem
        return validate_sample(images, {s: self.bands[s] for s in which}, frames=None, dates=dates)

    def label(self, place: int) -> Array | None:
        """Return the label [H, W] of a location as it is stored, ``None`` where it has none.

        Raises:
            BadSample: it cannot be read, or has not the size of the images.
        """
        return self._location(place).label()

    def cloud(self, place: int) -> npt.NDArray[np.bool_] | None:
        """Return which pixels of the images of ``s2`` are cloudy, [T, H, W]; ``None`` where it is not known.

        Raises:
            BadSample: a mask cannot be read, there are not as many as images, or of another size.
        """
        return self._location(place).cloud()

    def grid(self, place: int) -> Grid | None:
        """Return where the pixels of a location lie, ``None`` where it is not known.

        Raises:
            BadSample: it cannot be read.
        """
        return self._location(place).grid()

    def _location(self, place: int) -> StoredLocation | RasterLocation:
        folder = self.root / self.locations[place]
        if (folder / STORE).is_file():
            return StoredLocation(folder, self.bands, self._stores)
        return RasterLocation(folder, self.bands, self.units)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(SeriesFolder, split=self._split, units=self.units, name=self.name), (str(self.root),)
