"""Labelled data sets from files; the content of a path decides which reader opens it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rsbackbones.data.class_masks import ClassMasks
from rsbackbones.data.labelled.build import Sensors
from rsbackbones.data.labelled.class_folders import read_class_folders
from rsbackbones.data.labelled.classes import Classes
from rsbackbones.data.labelled.dataset import LabelledDataset
from rsbackbones.data.labelled.missing import Missing
from rsbackbones.data.labelled.npz import read_mapping, read_npz
from rsbackbones.data.labelled.pastis import read_pastis
from rsbackbones.data.labelled.raster_table import read_raster_table
from rsbackbones.data.labelled.splits import Lists, assign_splits
from rsbackbones.data.labelled.torchgeo_sets import PREFIX, read_torchgeo
from rsbackbones.data.pastis import Orbit, is_pastis
from rsbackbones.sensors import SEARCHED_SENSORS, Sensor, get_sensor, register_sensor

__all__ = ["open_labelled"]

TABLE = "labels.csv"


def open_labelled(
    path: str | Path,
    *,
    labels: str | Path | None = None,
    mapping: str | Path | Mapping[str, Any] | None = None,
    root: str | Path | None = None,
    bands: Mapping[str, Sequence[str]] | None = None,
    units: Mapping[str, str] | None = None,
    sensors: Mapping[str, str | Sensor] | None = None,
    classes: Classes | None = None,
    ignore: Sequence[int] = (),
    ids: Lists | None = None,
    subset: float | None = None,
    seed: int = 0,
    stratify: bool = True,
    nodata: float | None = None,
    mask: ClassMasks | None = None,
    orbit: Orbit | None = None,
) -> LabelledDataset:
    """Open a labelled data set. Images are read on access.

    ``path`` is one of

    - a folder of class folders of JPEG, PNG or GeoTIFF, below folders train, val and test where there are
      splits; or a zip file of pictures so arranged (:mod:`rsbackbones.data.labelled.class_folders`);
    - a CSV file of labels beside images, or a folder that holds ``labels.csv``
      (columns: :func:`rsbackbones.data.labelled.raster_table.read_raster_table`);
    - a described ``.npz``, or a ``.yaml`` that maps one or several whose arrays have other names
      (:func:`rsbackbones.data.labelled.npz.read_npz`);
    - a folder of series in our own layout (:mod:`rsbackbones.data.series_folder`);
    - the folder of PASTIS-R or PASTIS, series with label maps (:mod:`rsbackbones.data.labelled.pastis`);
    - ``torchgeo:NAME``, with ``root`` (:mod:`rsbackbones.data.labelled.torchgeo_sets`).

    Of pictures, 8 bits of red, green and blue, the bands are ``s2`` B04, B03 and B02, and the unit is
    ``rgb8``: 255 is a reflectance of 0.275 (:mod:`rsbackbones.preprocess`).

    Args:
        path: what to open.
        labels: of a folder, a CSV file elsewhere.
        mapping: of a ``.npz``, the content of a mapping, or its YAML file.
        root: of a torchgeo set.
        bands: by sensor the names of the images' channels, in order, where files do not name them.
        units: by sensor the unit of the values, where it is not that of the model's input contract; see
            :func:`rsbackbones.create_preprocess`.
        sensors: by modality the sensor of its images, where it is not the modality's own, as in
            ``create_model``: ``{"s2": "landsat_oli"}``. Images that the files name after that sensor
            (``landsat_oli`` [N, C, H, W] of a ``.npz``), or else after the modality (``s2``), are then the
            set's ``s2``, and the names of their bands are Landsat's.
        classes: of labels that are numbers: the classes' names; or ``{NAME: [CODES]}``, and labels of no
            class are ignored.
        ignore: numbers that stand for no label; they are no class, also where they have a name.
        ids: lists of ids, of papers for example: which sample is in which split. A file with ``ID,SPLIT`` on
            each line; one with an id on each line, of training samples; or files of ids by split.
        subset: the share of the training samples to use, chosen by a hash of the id: 0.1 is 10 %.
        seed: of that choice, and of the split where neither files nor ``ids`` state one.
        stratify: that split has 80 % of every class; else of all samples, whatever their classes.
        nodata: of GeoTIFFs and ``.npz`` the value of pixels without data, where the files do not state it.
        mask: of GeoTIFFs, by a band or the path of a raster, the classes of pixels that do not count:
            ``{"SCL": (3, 8, 9, 10)}``. Where either is named, pixels without data are no error: of label maps
            their labels are ignored, and otherwise :func:`rsbackbones.eval.encode.encode` hides them from the
            model.
        orbit: of the radar images of PASTIS-R: ``ascending`` (the default), ``descending`` or ``both``.

    Raises:
        ImportError: rasterio or torchgeo is needed and not installed.
        ValueError: the data cannot be used; the message names what was found and expected.
    """
    of: Sensors = {
        m: (register_sensor(sensor) if isinstance(sensor, Sensor) else get_sensor(sensor)).name
        for m, sensor in (sensors or {}).items()
    }
    of = {m: sensor for m, sensor in of.items() if sensor != m or m not in SEARCHED_SENSORS}
    data = _read(
        path, labels, mapping, root, bands, units, of, classes, tuple(ignore), Missing(nodata, mask or {}),
        orbit,
    )  # fmt: skip
    return assign_splits(data, lists=ids, subset=subset, seed=seed, stratify=stratify)


def _read(
    path: str | Path,
    labels: str | Path | None,
    mapping: str | Path | Mapping[str, Any] | None,
    root: str | Path | None,
    bands: Mapping[str, Sequence[str]] | None,
    units: Mapping[str, str] | None,
    sensors: Sensors,
    classes: Classes | None,
    ignore: tuple[int, ...],
    missing: Missing,
    orbit: Orbit | None,
) -> LabelledDataset:
    given = {"labels": labels, "mapping": mapping, "root": root, "bands": bands, "units": units,
             "sensors": sensors, "classes": classes, "ignore": ignore, "mask": missing.mask, "orbit": orbit,
             "nodata": None if missing.nodata is None else str(missing.nodata)}  # fmt: skip

    def only(kind: str, *names: str) -> None:
        if unused := [name for name, value in given.items() if value and name not in names]:
            raise ValueError(f"{path} is {kind}; it does not take {', '.join(unused)}")

    if str(path).startswith(PREFIX):
        only("a data set of torchgeo", "root", "sensors")
        if root is None:
            raise ValueError(f"{path}: name the folder of its files, root= (--root)")
        return read_torchgeo(str(path).removeprefix(PREFIX), Path(root), sensors)
    here = Path(path).expanduser()
    if not here.exists():
        raise ValueError(f"there is no {here}")
    suffix = here.suffix.lower()
    if suffix in (".npz", ".yaml", ".yml"):
        only("a .npz or a mapping", "mapping", "bands", "units", "sensors", "classes", "ignore", "nodata")
        if suffix != ".npz":
            if mapping is not None:
                raise ValueError(f"{here} is a mapping; mapping= takes no second one")
            mapping = here
        spec = mapping if isinstance(mapping, Mapping) or mapping is None else read_mapping(Path(mapping))
        return read_npz(
            here, spec, bands=bands, units=units, sensors=sensors, classes=classes, ignore=ignore,
            nodata=missing.nodata,
        )  # fmt: skip
    table = Path(labels).expanduser() if labels else here / TABLE if here.is_dir() else here
    if table.suffix.lower() == ".csv" and table.is_file():
        only("a folder with a table of labels", "labels", "bands", "units", "sensors", "classes", "ignore",
             "nodata", "mask")  # fmt: skip
        folder = here if here.is_dir() else here.parent
        return read_raster_table(
            table, folder, bands=bands, units=units, sensors=sensors, classes=classes, ignored=ignore,
            missing=missing,
        )  # fmt: skip
    # Here, since the readers of series take their classes from this package.
    from rsbackbones.data.labelled.series_folders import read_series_folder
    from rsbackbones.data.series_set import SET_FILE

    if labels is None and (here / SET_FILE).is_file():
        only("a folder of series", "units", "sensors", "classes", "ignore")
        return read_series_folder(here, units=units, sensors=sensors, classes=classes, ignore=ignore)
    if labels is None and is_pastis(here):
        only("PASTIS", "ignore", "nodata", "orbit")
        return read_pastis(here, orbit=orbit or "ascending", ignore=ignore, missing=missing)
    if labels is not None:
        raise ValueError(f"labels must be a CSV file, there is none at {labels}")
    if here.is_dir() or suffix == ".zip":
        only("a folder of class folders", "bands", "units", "sensors", "nodata", "mask")
        return read_class_folders(here, bands, units, sensors, missing)
    raise ValueError(
        f"{here} is of no known kind: expected a folder, .zip, .csv, .npz, .yaml, or torchgeo:NAME"
    )
