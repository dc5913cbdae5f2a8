"""Labelled series in our own layout (:mod:`rsbackbones.data.series_folder`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rsbackbones.data.input_files import InputFiles
from rsbackbones.data.labelled.build import Sensors, build_dataset
from rsbackbones.data.labelled.classes import Classes, LabelCodes
from rsbackbones.data.labelled.dataset import LabelledDataset
from rsbackbones.data.series import apart_in_time, warn_apart
from rsbackbones.data.series_folder import SeriesFolder
from rsbackbones.data.series_locations import LABEL, STORE
from rsbackbones.data.series_statistics import dataset_statistics
from rsbackbones.data.source import BadSample

_UNITS = {"s2": "dn", "s1": "db"}


def read_series_folder(
    folder: Path,
    *,
    units: Sensors | None = None,
    sensors: Sensors | None = None,
    classes: Classes | None = None,
    ignore: Sequence[int] = (),
) -> LabelledDataset:
    """Open the locations with a label of a folder that holds ``set.json``.

    Args:
        folder: of ``set.json``.
        units: by sensor the unit of GeoTIFFs, where it is not Sentinel-2's DN or Sentinel-1's dB.
        sensors: as for :func:`rsbackbones.data.labelled.build.build_dataset`.
        classes: instead of those of the set.
        ignore: codes that are no label, beside those of the set.

    Raises:
        ValueError: the set cannot be used, or no location has a label.
    """
    source = SeriesFolder(folder, units=units)
    held = source.set
    if (classes := classes or held.classes) is None:
        raise ValueError(f"{folder / 'set.json'} names no classes; add them, or pass classes= (--classes)")
    splits = {name: split for split, names in held.splits.items() for name in names}
    places = [place for place, name in enumerate(source.locations) if _has_label(source, place)]
    if not places:
        raise ValueError(f"{folder}: no location has a label, {LABEL}.tif or that of write_series")
    ids = [source.locations[place] for place in places]
    files = [InputFiles(plain=_files(folder / name)) for name in ids]
    dates = {name: source.times(place, list(source.bands)) for name, place in zip(ids, places, strict=True)}
    notes = warn_apart(source.name, [name for name, days in dates.items() if apart_in_time(days)], len(ids))
    without = len(source.locations) - len(places)
    return build_dataset(
        name=source.name,
        task="pixels",
        bands=source.bands,
        units={s: unit for s, unit in {**_UNITS, **(units or {})}.items() if s in source.bands},
        sensors=sensors,
        ids=ids,
        codes=LabelCodes.of(classes, (*held.ignore, *ignore)),
        labels=None,
        splits=[splits.get(name) for name in ids] if splits else None,
        read=_Reader(source, tuple(places)),
        content=[InputFiles(plain=[folder / "set.json"]).facts, [each.facts for each in files]],
        files=files,
        notes=[*notes, *([f"{without} locations without a label are left out"] if without else [])],
        series=True,
        lacking={
            sensor: [i for i, days in enumerate(dates.values()) if sensor not in days]
            for sensor in source.bands
        },
        statistics=partial(dataset_statistics, folder, units=units),
    )


@dataclass(frozen=True)
class _Reader:
    """Reads a location by its number among those with a label."""

    source: SeriesFolder
    places: tuple[int, ...]

    def __call__(self, index: int) -> dict[str, Any]:
        place = self.places[index]
        sample, cloud = self.source.read(place), self.source.cloud(place)
        clouds = {} if cloud is None else {"cloud": cloud}
        return {**sample.images, "dates": sample.dates, "label": self.source.label(place), **clouds}


def _has_label(source: SeriesFolder, place: int) -> bool:
    try:
        return source.label(place) is not None
    except BadSample as error:
        raise ValueError(f"{source.name}: {source.locations[place]}: {error}") from error


def _files(folder: Path) -> list[Path]:
    """Return the files of a location, or the folders that hold them."""
    if (folder / STORE).is_file():
        return [folder / STORE]
    return sorted(path for path in folder.iterdir() if path.is_dir() or path.name == f"{LABEL}.tif")
