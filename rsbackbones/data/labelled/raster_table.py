"""A CSV file of labels beside image files."""

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from rsbackbones.data.labelled.build import Sensors, build_dataset
from rsbackbones.data.labelled.classes import Classes, LabelCodes, found_classes
from rsbackbones.data.labelled.dataset import IGNORED, Array, LabelledDataset, Task
from rsbackbones.data.labelled.image_files import (
    PICTURE_NOTE,
    Bands,
    ImageFiles,
    find_readable_files,
    input_files,
    read_map,
)
from rsbackbones.data.labelled.missing import NOTHING, Missing
from rsbackbones.sensors import SEARCHED_SENSORS

_SEVERAL = re.compile(r"[;|]")
_IMAGES = ("path", *SEARCHED_SENSORS, "before", "after")
_KNOWN = (*_IMAGES, "label", "labels", "mask", "split", "id")


def read_raster_table(
    table: Path,
    folder: Path,
    *,
    bands: Bands | None = None,
    units: Mapping[str, str] | None = None,
    sensors: Sensors | None = None,
    classes: Classes | None = None,
    ignored: Sequence[int] = (),
    missing: Missing = NOTHING,
) -> LabelledDataset:
    """Read a CSV file with one sample on each row; paths are below ``folder``.

    Columns:

    - ``path``, one image file that holds all sensors; or ``s2`` and ``s1``, a file each, on one grid; or
      ``before`` and ``after``, the two dates of a change.
    - ``label``, one class, or several with ``;`` or ``|`` between them; in a column ``labels``, any number of
      them even where no row has several. Or ``mask``, a label raster, of which ``classes`` names the numbers.
    - ``split`` and ``id`` may be left out. The id is then the path of the first image.

    Labels that are all integers are numbers of classes where ``classes`` names those, or is left out.

    Raises:
        ValueError: missing columns, empty cells, missing files, or bands that the first row's files do not
            make clear.
    """
    rows, columns = _rows(table)
    images = [name for name in _IMAGES if name in columns]
    by_sensor = bool(images) and set(images) <= set(SEARCHED_SENSORS)
    if not by_sensor and images not in (["path"], ["before", "after"]):
        raise ValueError(
            f"{table}: expected the columns path, or {' and '.join(SEARCHED_SENSORS)}, or before and "
            f"after; got {', '.join(columns)}"
        )
    kinds = [name for name in ("label", "labels", "mask") if name in columns]
    if len(kinds) != 1:
        raise ValueError(
            f"{table}: expected one of the columns label, labels and mask; got {', '.join(columns)}"
        )
    change = images == ["before", "after"]
    if change and kinds != ["mask"]:
        raise ValueError(f"{table}: before and after go with the column mask")
    cells = [*images, *kinds, *(["id"] if "id" in columns else [])]
    for number, row in enumerate(rows, start=2):
        # A sample may have none of several classes.
        if lacking := [name for name in cells if not row[name] and name != "labels"]:
            raise ValueError(f"{table}: line {number} has no {', '.join(lacking)}")
    files = [[folder / row[name] for name in images] for row in rows]
    masks = [folder / row["mask"] for row in rows] if kinds == ["mask"] else None
    every = [path for paths in files for path in paths] + (masks or [])
    if absent := [path for path in every if not path.is_file()]:
        raise ValueError(f"{table}: {len(absent)} of {len(every)} files are missing, the first: {absent[0]}")
    if twice := [paths[0] for paths, many in Counter(map(tuple, files)).items() if many > 1]:
        raise ValueError(
            f"{table}: {len(twice)} images have several rows, the first: {twice[0]}; a row each, or the same "
            "image could be trained and tested on"
        )
    columns_of = [name if name in SEARCHED_SENSORS else None for name in images]
    probed = 1 if change else len(images)
    files_of = find_readable_files(
        [paths[:probed] for paths in files], columns_of[:probed], bands, sensors, units=units, missing=missing
    )
    task, labels, codes = _labels(table, rows, kinds[0], classes, ignored, change)
    notes = [PICTURE_NOTE] if files_of.pictures else []
    if unused := [name for name in columns if name not in _KNOWN]:
        notes.append(f"columns of {table.name} that are not used: {', '.join(unused)}")
    inputs = [input_files([*paths, *(masks[i : i + 1] if masks else ())]) for i, paths in enumerate(files)]
    return build_dataset(
        name=folder.resolve().name,
        task=task,
        bands=files_of.bands,
        units=files_of.units,
        sensors=sensors,
        ids=[row.get("id") or row[images[0]] for row in rows],
        codes=codes,
        labels=labels,
        splits=[row["split"] or None for row in rows] if "split" in columns else None,
        read=partial(_read, files_of, files, masks, change),
        content=[images, kinds, [sample.facts for sample in inputs]],
        files=inputs,
        notes=notes,
        pixel_m=files_of.pixel_m,
        missing=missing,
    )


def _rows(table: Path) -> tuple[list[dict[str, str]], list[str]]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            rows = [{k: (v or "").strip() for k, v in row.items() if k is not None} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"cannot read {table}: {error}") from error
    if len(set(columns)) < len(columns):
        raise ValueError(f"{table}: a column is there twice: {', '.join(columns)}")
    if not rows:
        raise ValueError(f"{table} holds no rows")
    return rows, columns


def _labels(
    table: Path,
    rows: Sequence[Mapping[str, str]],
    kind: str,
    classes: Classes | None,
    ignored: Sequence[int],
    change: bool,
) -> tuple[Task, Sequence[int | str] | Array | None, LabelCodes]:
    if kind == "mask":
        if classes is None:
            raise ValueError(
                f"{table}: name the classes of the label rasters, classes=('no change', 'change') "
                "(--classes 'no change,change')"
            )
        return ("change" if change else "pixels"), None, LabelCodes.of(classes, ignored)
    cells = [[word.strip() for word in _SEVERAL.split(row[kind]) if word.strip()] for row in rows]
    numbers = all(re.fullmatch(r"-?\d+", word) for words in cells for word in words)
    lists: list[list[int | str]] = [[int(word) if numbers else word for word in words] for words in cells]
    every = [label for labels in lists for label in labels]
    codes = LabelCodes.of(found_classes(every, ignored) if classes is None else classes, ignored)
    if kind == "label" and not any(_SEVERAL.search(row[kind]) for row in rows):
        return "classes", [labels[0] for labels in lists], codes
    several = np.zeros((len(rows), len(codes.names)), bool)
    for number, labels in enumerate(lists):
        try:
            places = [codes.number(label) for label in labels]
        except ValueError as error:
            raise ValueError(f"{table}: line {number + 2}: {error}") from error
        several[number, [place for place in places if place != IGNORED]] = True
    return "multilabel", several, codes


def _read(
    files: ImageFiles,
    paths: Sequence[Sequence[Path]],
    masks: Sequence[Path] | None,
    change: bool,
    index: int,
) -> dict[str, Array]:
    if change:
        before, after = (files.read([path]) for path in paths[index])
        _same_size(before, after)
        images = {m: np.stack([before[m], after[m]]) for m in before}
    else:
        images = files.read(paths[index])
    return images if masks is None else {**images, "label": read_map(masks[index])}


def _same_size(before: Mapping[str, Array], after: Mapping[str, Array]) -> None:
    for m, image in before.items():
        if image.shape != after[m].shape:
            raise ValueError(
                f"{m}: the two dates differ in size, {list(image.shape)} and {list(after[m].shape)}"
            )
