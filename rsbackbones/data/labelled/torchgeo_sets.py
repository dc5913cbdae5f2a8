"""Benchmarks through torchgeo's data sets, which know their files: ``torchgeo:NAME`` with ``root``.

What each holds (sensors, order of bands, splits, what a label is) is a table, :data:`KNOWN`. Nothing is
downloaded. Needs the extra ``data``.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rsbackbones.data.input_files import InputFiles
from rsbackbones.data.labelled.build import Sensors, build_dataset
from rsbackbones.data.labelled.classes import Classes, LabelCodes
from rsbackbones.data.labelled.dataset import Array, LabelledDataset, Task
from rsbackbones.input_spec import RGB8

PREFIX = "torchgeo:"
_TWELVE = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
_THIRTEEN = (*_TWELVE[:10], "B10", "B11", "B12")
_SPLITS = {name: {"split": name} for name in ("train", "val", "test")}
_UNITS = {"s2": "dn", "s1": "db"}  # in all files of these data sets but pictures
_WHOLE_DB = "torchgeo reads the radar bands as whole decibels"


@dataclass(frozen=True, kw_only=True)
class Known:
    """A data set of torchgeo.

    Attributes:
        classes_of: by sensor the class that reads it; all list their samples in the same order.
        bands: by sensor the channels, in the order that torchgeo gives.
        task: what a label is.
        classes: their names, from an opened data set.
        files: what changes with a sample: (data set, index) -> its paths. The first names the sample.
        label: of a sample, where labels are not maps, without reading its images.
        splits: the arguments that open each.
        options: further arguments.
        units: by sensor, where it is not :data:`_UNITS`.
        take: (data set, sample of torchgeo, sensor) -> the image, where it is not under ``image``.
        mask: the label map of a sample of torchgeo.
        notes: what a user should know.
    """

    classes_of: Mapping[str, str]
    bands: Mapping[str, tuple[str, ...]]
    task: Task
    classes: Callable[[Any], Classes]
    files: Callable[[Any, int], Sequence[str]]
    label: Callable[[Any, int], Any] | None = None
    splits: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: _SPLITS)
    options: Mapping[str, Any] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    take: Callable[[Mapping[str, Any], str], Any] = lambda sample, sensor: sample["image"]
    mask: Callable[[Mapping[str, Any]], Any] = lambda sample: sample["mask"]
    notes: tuple[str, ...] = ()


def _eurosat(name: str) -> Known:
    return Known(
        classes_of={"s2": name},
        # As published: B8A comes last.
        bands={"s2": (*_THIRTEEN[:8], "B09", "B10", "B11", "B12", "B8A")},
        task="classes",
        classes=lambda ds: ds.classes,
        files=lambda ds, i: [ds.imgs[i][0]],
        label=lambda ds, i: ds.targets[i],
    )


def _class_in_name(ds: Any, index: int) -> int:
    return int(ds.classes.index(ds.files[index].split("_")[0]))


def _middle(sample: Mapping[str, Any], sensor: str) -> Any:
    """A series [T, C, H, W] as one image, the median of its dates: clouds and gaps are in few of them."""
    return np.median(np.asarray(sample["image"]), axis=0).astype(np.float32)


def _bigearthnet_all(sample: Mapping[str, Any], sensor: str) -> Any:
    return sample["image"][:2] if sensor == "s1" else sample["image"][2:]


KNOWN: dict[str, Known] = {
    "EuroSAT": _eurosat("EuroSAT"),
    "EuroSATSpatial": _eurosat("EuroSATSpatial"),
    "EuroSAT100": _eurosat("EuroSAT100"),
    "EuroSAT-SAR": Known(
        classes_of={"s1": "CopernicusBenchEuroSATS1"},
        bands={"s1": ("VV", "VH")},
        task="classes",
        classes=lambda ds: ds.classes,
        files=lambda ds, i: [str(Path(ds.root, ds.directory, "all_imgs", ds.files[i].split("_")[0],
                                      ds.files[i].replace(".jpg", ".tif")))],
        label=_class_in_name,
    ),
    "BigEarthNet": Known(
        classes_of={"s1": "BigEarthNet", "s2": "BigEarthNet"},
        # Files are sorted by name, so VH comes first, unlike torchgeo's documentation.
        bands={"s1": ("VH", "VV"), "s2": _TWELVE},
        task="multilabel",
        classes=lambda ds: ds.class_sets[19],
        files=lambda ds, i: [ds.folders[i]["s2"], ds.folders[i]["s1"]],
        label=lambda ds, i: ds._load_target(i).numpy(),
        options={"bands": "all", "num_classes": 19},
        take=_bigearthnet_all,
        notes=(_WHOLE_DB, "19 classes"),
    ),
    "BigEarthNetV2": Known(
        classes_of={"s1": "BigEarthNetV2", "s2": "BigEarthNetV2"},
        bands={"s1": ("VH", "VV"), "s2": _TWELVE},
        task="multilabel",
        classes=lambda ds: ds.class_set,
        files=lambda ds, i: [_v2_folder(ds, i, "patch_id", "s2", 2), _v2_folder(ds, i, "s1_name", "s1", 3)],
        label=lambda ds, i: ds._load_target(i).numpy(),
        options={"bands": "all"},
        take=lambda sample, sensor: sample[f"image_{sensor}"],
        notes=(_WHOLE_DB, "19 classes"),
    ),
    "OSCD": Known(
        classes_of={"s2": "OSCD"},
        bands={"s2": _THIRTEEN},
        task="change",
        classes=lambda ds: ("no change", "change"),
        files=lambda ds, i: [ds.files[i]["mask"], *ds.files[i]["images1"], *ds.files[i]["images2"]],
        splits={name: {"split": name} for name in ("train", "test")},
        mask=lambda sample: sample["mask"][0],
    ),
    "PASTIS": Known(
        classes_of={"s2": "PASTIS"},
        bands={"s2": ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")},
        task="pixels",
        classes=lambda ds: {name: [code] for code, name in enumerate(ds.classes) if name != "void_label"},
        files=lambda ds, i: [ds.files[i]["s2"], ds.files[i]["semantic"]],
        splits={"train": {"folds": (1, 2, 3)}, "val": {"folds": (4,)}, "test": {"folds": (5,)}},
        options={"bands": "s2", "mode": "semantic"},
        take=_middle,
        notes=("one image for each series, the median of its dates", "the void label is ignored"),
    ),
    "DFC2020": Known(
        classes_of={"s1": "CopernicusBenchDFC2020S1", "s2": "CopernicusBenchDFC2020S2"},
        bands={"s1": ("VV", "VH"), "s2": _THIRTEEN},
        task="pixels",
        classes=lambda ds: {name: [code] for code, name in enumerate(ds.classes) if name != "Background"},
        files=lambda ds, i: [
            str(Path(ds.root, ds.directory, kind, ds.files[i].replace("dfc", kind)))
            for kind in ("dfc", "s1", "s2")
        ],
        notes=("the files and splits of Copernicus-Bench", "the label 0, background, is ignored"),
    ),
    "UCMerced": Known(
        classes_of={"s2": "UCMerced"},
        bands={"s2": ("B04", "B03", "B02")},
        task="classes",
        classes=lambda ds: ds.classes,
        files=lambda ds, i: [ds.imgs[i][0]],
        label=lambda ds, i: ds.targets[i],
        units={"s2": RGB8},
        notes=("8-bit pictures: value / 255 is the model's input, without statistics",),
    ),
}  # fmt: skip


def _v2_folder(ds: Any, index: int, column: str, sensor: str, words: int) -> str:
    name = str(ds.metadata_df.iloc[index][column])
    return str(Path(ds.root, ds.dir_file_names[sensor], "_".join(name.split("_")[:-words]), name))


def read_torchgeo(name: str, root: Path, sensors: Sensors | None = None) -> LabelledDataset:
    """Open a data set of :data:`KNOWN` that lies under ``root`` as torchgeo's documentation says.

    ``sensors`` names modalities that take the images of another sensor: ``{"rgb": "s2"}``.

    Raises:
        ImportError: torchgeo is not installed.
        ValueError: an unknown name, or files that are not there.
    """
    if name not in KNOWN:
        raise ValueError(f"unknown data set torchgeo:{name}; known: {', '.join(KNOWN)}")
    try:
        sets = importlib.import_module("torchgeo.datasets")
    except ImportError as error:
        raise ImportError(
            f"torchgeo:{name} needs torchgeo ({error}): pip install 'rsbackbones[data]'"
        ) from error
    known = KNOWN[name]
    opened: dict[str, dict[str, Any]] = {}
    for split, arguments in known.splits.items():
        made: dict[str, Any] = {}
        for kind in dict.fromkeys(known.classes_of.values()):
            try:
                made[kind] = getattr(sets, kind)(root=str(root), **arguments, **known.options)
            except (sets.DatasetNotFoundError, FileNotFoundError) as error:
                raise ValueError(
                    f"torchgeo finds no {kind} ({split}) in {root}; put the files there as its documentation "
                    "says"
                ) from error
        opened[split] = made
    first = next(iter(next(iter(opened.values())).values()))
    places = [(split, i) for split, made in opened.items() for i in range(len(next(iter(made.values()))))]
    files = [known.files(next(iter(opened[split].values())), i) for split, i in places]
    labels: Sequence[int] | Array | None = None
    if known.label is not None:
        found = [known.label(next(iter(opened[split].values())), i) for split, i in places]
        labels = np.stack(found) if known.task == "multilabel" else [int(label) for label in found]
    if missing := [path for paths in files for path in paths if not Path(path).exists()]:
        raise ValueError(f"{len(missing)} files of {name} are missing, the first: {missing[0]}")
    inputs = [InputFiles(plain=map(Path, paths)) for paths in files]
    return build_dataset(
        name=name,
        task=known.task,
        bands=known.bands,
        units={sensor: _UNITS[sensor] for sensor in known.bands} | dict(known.units),
        sensors=sensors,
        ids=[Path(paths[0]).relative_to(root).as_posix() for paths in files],
        codes=LabelCodes.of(known.classes(first)),
        labels=labels,
        splits=[split for split, _ in places],
        read=_Read(name, opened, tuple(places)),
        content=[sample.facts for sample in inputs],
        files=inputs,
        notes=known.notes,
    )


@dataclass(frozen=True)
class _Read:
    """Reads through the opened data sets: by split and torchgeo's class; ``places`` are (split, index)."""

    name: str
    opened: Mapping[str, Mapping[str, Any]]
    places: tuple[tuple[str, int], ...]

    def __call__(self, index: int) -> dict[str, Array]:
        known = KNOWN[self.name]
        split, place = self.places[index]
        samples = {kind: ds[place] for kind, ds in self.opened[split].items()}
        images = {
            sensor: np.asarray(known.take(samples[kind], sensor)) for sensor, kind in known.classes_of.items()
        }
        if known.label is None:
            images["label"] = np.asarray(known.mask(next(iter(samples.values()))))
        return images
