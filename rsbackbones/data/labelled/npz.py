"""Labelled data in ``.npz`` files: arrays under standard names, or under others that a mapping names."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rsbackbones.data.input_files import InputFiles
from rsbackbones.data.labelled.build import Sensors, build_dataset
from rsbackbones.data.labelled.classes import Classes, LabelCodes, found_classes, found_pixel_classes
from rsbackbones.data.labelled.dataset import SPLITS, Array, LabelledDataset, Task
from rsbackbones.data.labelled.missing import Missing
from rsbackbones.data.labelled.npz_reader import BandArrays, NpzReader
from rsbackbones.data.labelled.splits import find_ids
from rsbackbones.data.npz_archive import NpzArchive
from rsbackbones.files.bounds import read_yaml
from rsbackbones.sensors import SENSORS, get_sensor

_SERIES = (
    ". A series of dates with one label map is not taken: write one date, [C, H, W], or two, [2, C, H, W]"
)
_LABELS = "[N], [N, K] or [N, H, W] ([N, 1, H, W])"
_KEYS = ("name", "files", "task", "label", "classes", "ignore", "split", "id", "units")


def read_npz(
    path: Path,
    mapping: Mapping[str, Any] | None = None,
    *,
    bands: Mapping[str, Sequence[str]] | None = None,
    units: Mapping[str, str] | None = None,
    sensors: Sensors | None = None,
    classes: Classes | None = None,
    ignore: Sequence[int] = (),
    nodata: float | None = None,
) -> LabelledDataset:
    """Find the samples in a ``.npz`` file, or in those that a mapping names.

    Arrays, under these names or those of the mapping:

    - ``s2``, ``s1``, or a sensor's name: [N, C, H, W], of two dates [N, 2, C, H, W]; one place without N.
    - ``s2_bands``, ``s1_bands``: the names of the channels.
    - ``label``: [N] integers or names, one class each; [N, K] of 0 and 1, any number of classes; [N, H, W], a
      class for every pixel, of two dates: whether it changed. Maps may be [N, 1, H, W]. One place without N.
    - ``classes``: the names of the classes. ``split``: [N] words. ``id``: [N] integers or names, unique.
    - ``units``: words like ``s2=dn_baseline_0400``.

    A mapping (:func:`read_mapping` reads one from YAML) may have these keys:

    - ``name`` of the set, and ``files``: names or patterns, beside the mapping's file or absolute.
    - ``s2``, ``s1``: the name of an array; ``{ARRAY: BANDS, ...}`` for several, whose coarser pixels are
      resized to the finest (bilinear); ``{before: ..., after: ...}`` of two dates.
    - ``s2_bands``, ``s1_bands``: names, or the name of an array. ``units``: ``{s2: dn}``.
    - ``label``, ``split``, ``id``: the name of an array.
    - ``classes``: names, the name of an array, or ``{NAME: [CODES]}``: labels of no class are ignored.
    - ``ignore``: numbers that stand for no label. ``task``: where the shapes leave it open.

    Args:
        path: the file, or that of the mapping.
        mapping: where the arrays have other names.
        bands, units, classes, ignore: of the user, before those of the file.
        sensors: what the bands of an array are of, where it is not the sensor of its name.
        nodata: the value of pixels without data.

    Raises:
        ValueError: a file that cannot be read, missing arrays, or arrays that do not fit together.
    """
    described = dict(mapping or {})
    held = [name for name in SENSORS if name in described or f"{name}_bands" in described]
    if unknown := [k for k in described if k not in (*_KEYS, *held, *(f"{s}_bands" for s in held))]:
        raise ValueError(
            f"{path}: unknown keys {', '.join(unknown)}; known: {', '.join(_KEYS)}, s2, s2_bands, ..."
        )
    files = [NpzArchive(file) for file in _paths(path, described.get("files"))]
    first = files[0]
    if not held:
        held = [name for name in SENSORS if name in first.facts]
    if not held:
        raise ValueError(
            f"{first.path} has no array s2 or s1; it has {', '.join(first.facts)}. A mapping (a YAML file) "
            "names the arrays"
        )

    of = {m: sensor for m, sensor in (sensors or {}).items() if sensor not in held}

    def images_of(file: NpzArchive) -> dict[str, tuple[BandArrays, ...]]:
        # The user names bands by modality, the file may name images by the sensor that a modality takes.
        modality = {sensor: m for m, sensor in (sensors or {}).items() if sensor in held}
        yours = {s: (bands or {}).get(s, (bands or {}).get(modality.get(s, s))) for s in held}
        names = {s: yours[s] or described.get(f"{s}_bands", f"{s}_bands") for s in held}
        return {s: _sides(file, s, of.get(s, s), described.get(s, s), names[s]) for s in held}

    images = images_of(first)
    label = str(described.get("label", "label"))
    classes = classes or described.get("classes")
    for file in files[1:]:
        _alike(first, file, "bands", images, images_of(file))
        _alike(first, file, "axes of the labels", len(first.shape(label)), len(file.shape(label)))
        _alike(first, file, "classes", *(_stated_classes(f, classes) for f in (first, file)))
        if not described.get("units"):
            _alike(first, file, "units", _stated_units(first), _stated_units(file))
    every = [array for sides in images.values() for parts in sides for array in parts]
    counts = [_places(file, every, label, len(next(iter(images.values())))) for file in files]
    task = _task(files, images, label, counts, described.get("task"))
    codes, labels = _labels(files, label, task, counts, classes, ignore or described.get("ignore", ()))
    of_file = described.get("units") or _stated_units(first)
    if not isinstance(of_file, Mapping):
        raise ValueError(f"{path}: units: expected a mapping such as {{s2: dn}}, got {of_file!r}")
    stated = dict(of_file) | dict(units or {})
    used = {*every, label, *(str(described.get(k, k)) for k in ("id", "split"))}
    return build_dataset(
        name=str(described.get("name", path.stem)),
        task=task,
        bands={s: [band for names in sides[0].values() for band in names] for s, sides in images.items()},
        units=stated,
        sensors=sensors,
        ids=_ids(files, counts, described.get("id")),
        codes=codes,
        labels=labels,
        splits=_splits(files, counts, described.get("split")),
        read=NpzReader(files, counts, images, label if task in ("pixels", "change") else None),
        # Which array is what belongs to it: another mapping of the same arrays is other data.
        content=[
            {s: [list(parts.items()) for parts in sides] for s, sides in images.items()},
            label,
            [[(name, file.facts[name]) for name in sorted(used & set(file.facts))] for file in files],
        ],
        files=[InputFiles(plain=[file.path for file in files])],
        missing=Missing(nodata),
        unmarked=True,
    )


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a mapping from a YAML file.

    Raises:
        ValueError: it cannot be read, or holds no mapping.
    """
    try:
        held = read_yaml(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not isinstance(held, dict) or not all(isinstance(key, str) for key in held):
        raise ValueError(f"{path}: expected a mapping such as 's2: images', got {type(held).__name__}")
    return held


def _paths(path: Path, files: Any) -> list[Path]:
    if files is not None and not files:
        raise ValueError(f"{path}: files: names none")
    if files is None:
        if path.suffix != ".npz":
            raise ValueError(f"{path}: name the files that it maps, files: NAME.npz")
        return [path]
    patterns = [files] if isinstance(files, str) else [str(name) for name in files]
    found = []
    for pattern in patterns:
        top = Path(Path(pattern).anchor or path.parent)
        matches = sorted(top.glob(pattern.removeprefix(Path(pattern).anchor)))
        if not matches or not all(match.is_file() for match in matches):
            raise ValueError(f"{path}: there is no file {pattern}, from {top}")
        found += matches
    return found


def _alike(first: NpzArchive, file: NpzArchive, what: str, expected: Any, found: Any) -> None:
    """Refuse a file that differs from the first one, whose statements hold for all."""
    if found != expected:
        raise ValueError(
            f"{file.path.name} has other {what} than {first.path.name}: {found}, and {expected}. Files of "
            "one set must agree; open them apart"
        )


def _stated_classes(file: NpzArchive, spec: Any) -> list[str] | None:
    """The classes that a file states, unless the user or the mapping does."""
    name = spec if isinstance(spec, str) else "classes"
    if (spec is not None and not isinstance(spec, str)) or name not in file.facts:
        return None
    return [str(c) for c in file.read(name).tolist()]


def _sides(file: NpzArchive, key: str, sensor: str, spec: Any, bands: Any) -> tuple[BandArrays, ...]:
    """The arrays of a sensor, under ``key`` in the mapping, by date where there are two."""
    if isinstance(spec, Mapping) and set(spec) == {"before", "after"}:
        sides = tuple(_sides(file, key, sensor, spec[date], bands)[0] for date in ("before", "after"))
        if [*sides[0].values()] != [*sides[1].values()]:
            raise ValueError(f"{file.path}: {key}: the two dates have different bands")
        return sides
    if isinstance(spec, str):
        spec = {spec: bands}
    if not isinstance(spec, Mapping) or not spec:
        raise ValueError(
            f"{file.path}: {key}: expected the name of an array, or arrays and their bands, got {spec}"
        )
    parts = {}
    for array, names in spec.items():
        if isinstance(names, str):
            if names not in file.facts:
                raise ValueError(
                    f"{file.path} has no array {names!r} of the band names of {array}; it has "
                    f"{', '.join(file.facts)}. Name the bands in order: bands={{'{key}': ('B02', ...)}} "
                    f"(rsbackbones eval: --data-bands {key}=B02,...)"
                )
            names = [str(name) for name in file.read(names).tolist()]
        parts[str(array)] = get_sensor(sensor).canonical(tuple(names))
    return (parts,)


def _places(file: NpzArchive, images: Sequence[str], label: str, dates: int) -> int | None:
    """The number of samples in a file, ``None`` where its arrays hold one sample without an axis for it."""
    shapes = {name: file.shape(name) for name in images}
    sizes = {len(shape) for shape in shapes.values()}
    if len(sizes) > 1 or not sizes <= ({3, 4, 5} if dates == 1 else {3, 4}):
        raise ValueError(
            f"{file.path}: images are [N, C, H, W], [N, 2, C, H, W] or of one place [C, H, W], got "
            + ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        )
    held = file.shape(label)
    single = sizes == {3} or (
        sizes == {4} and dates == 1 and len(_without_channel(held)) == 2 and _two_dates(shapes)
    )
    if single:
        return None
    if not held:
        raise ValueError(
            f"{file.path}: {label} is a single value, and the images are of {shapes[images[0]][0]} samples; "
            f"expected {_LABELS}. Labels inside a text (as JSON) are not read: write them as such an array, "
            "or into a table beside image files"
        )
    lengths = {shape[0] for shape in (*shapes.values(), file.shape(label))}
    if len(lengths) > 1:
        raise ValueError(
            f"{file.path}: the arrays hold different numbers of samples: "
            + ", ".join(f"{name} {list(file.shape(name))}" for name in (*images, label))
            + (_SERIES if sizes == {4} and len(_without_channel(held)) == 2 else "")
        )
    return lengths.pop()


def _two_dates(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return all(shape[0] == 2 for shape in shapes.values())


def _without_channel(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a label map without its channel: [H, W] of [1, H, W]; other shapes are unchanged."""
    return shape[1:] if len(shape) == 3 and shape[0] == 1 else shape


def _task(
    files: Sequence[NpzArchive],
    images: Mapping[str, tuple[BandArrays, ...]],
    label: str,
    counts: Sequence[int | None],
    spec: Any,
) -> Task:
    file, count = files[0], counts[0]
    array = next(iter(next(iter(images.values()))[0]))
    axes = len(_without_channel(file.shape(label)[count is not None :]))
    dates = len(next(iter(images.values()))) == 2 or len(file.shape(array)) - (count is not None) == 4
    fits: dict[int, tuple[Task, ...]] = {
        0: ("classes",),
        1: ("multilabel",),
        2: ("change",) if dates else ("pixels",),
    }
    possible = fits.get(axes, ())
    if not possible or (dates and axes != 2):
        raise ValueError(
            f"{file.path}: {label} has the shape {list(file.shape(label))}; expected {_LABELS}"
            + (", and of two dates [N, H, W]" if dates else "")
        )
    if spec is not None and spec not in possible:
        raise ValueError(
            f"{file.path}: task {spec!r} does not fit {label} {list(file.shape(label))}: {possible[0]}"
        )
    return possible[0]


def _labels(
    files: Sequence[NpzArchive],
    name: str,
    task: Task,
    counts: Sequence[int | None],
    classes: Any,
    ignored: Any,
) -> tuple[LabelCodes, Sequence[int | str] | Array | None]:
    try:
        ignore = tuple(int(number) for number in np.atleast_1d(ignored).tolist())
    except (TypeError, ValueError) as error:
        raise ValueError(f"{files[0].path}: ignore: expected whole numbers, got {ignored!r}") from error
    if isinstance(classes, str):
        files[0].read(classes)  # an error where there is none
    classes = _stated_classes(files[0], classes) or classes
    held = [file.read(name) for file in files]
    if task in ("pixels", "change"):
        if classes is None and task == "change":
            classes = ("no change", "change")
        if classes is None:
            classes = found_pixel_classes(
                np.unique(np.concatenate([a.ravel() for a in held])).tolist(), ignore
            )
        return LabelCodes.of(classes, ignore), None
    if task == "multilabel":
        several = np.concatenate([a if c is not None else a[None] for a, c in zip(held, counts, strict=True)])
        return LabelCodes.of(classes or [str(i) for i in range(several.shape[1])], ignore), several
    flat = np.concatenate([np.atleast_1d(array) for array in held])
    if flat.dtype.kind not in "iuUS":
        raise ValueError(f"{files[0].path}: labels are integers or names, got {flat.dtype}")
    labels: list[int | str] = [int(v) if flat.dtype.kind in "iu" else _text(v) for v in flat.tolist()]
    return LabelCodes.of(found_classes(labels, ignore) if classes is None else classes, ignore), labels


def _ids(files: Sequence[NpzArchive], counts: Sequence[int | None], spec: Any) -> list[str]:
    name = spec or ("id" if "id" in files[0].facts else None)
    if name is not None:
        return _per_sample(files, counts, str(name))
    ids = []
    for file, count in zip(files, counts, strict=True):
        stem = file.path.stem
        ids += [stem] if count is None else [f"{stem}:{number}" for number in range(count)]
    return ids


def _splits(
    files: Sequence[NpzArchive], counts: Sequence[int | None], spec: Any
) -> Sequence[str | None] | None:
    """The split of every sample; a mapping may also name the files, or ids, of each: ``{test: [rennes]}``."""
    if not isinstance(spec, Mapping):
        name = spec or ("split" if "split" in files[0].facts else None)
        return None if name is None else _per_sample(files, counts, str(name))
    stems = [file.path.stem for file in files]
    if unknown := [word for word in spec if word not in SPLITS]:
        raise ValueError(f"unknown split {', '.join(map(str, unknown))}; known: {', '.join(SPLITS)}")
    of_file: list[str | None] = [None] * len(files)
    for word, names in spec.items():
        for place in find_ids(stems, [str(n) for n in names], f"split {word}"):
            if of_file[place] is not None:
                raise ValueError(f"{stems[place]} is in the splits {of_file[place]} and {word}")
            of_file[place] = word
    return [word for word, count in zip(of_file, counts, strict=True) for _ in range(count or 1)]


def _per_sample(files: Sequence[NpzArchive], counts: Sequence[int | None], name: str) -> list[str]:
    """The texts of an array that has one for every sample."""
    texts: list[str] = []
    for file, count in zip(files, counts, strict=True):
        values = np.atleast_1d(file.read(name))
        if len(values) != (count or 1):
            raise ValueError(f"{file.path}: {len(values)} values of {name!r} for {count or 1} samples")
        texts += [_text(value) for value in values.tolist()]
    return texts


def _stated_units(file: NpzArchive) -> dict[str, str]:
    if "units" not in file.facts:
        return {}
    words = [_text(word) for word in np.atleast_1d(file.read("units")).tolist()]
    if wrong := [word for word in words if word.count("=") != 1]:
        raise ValueError(f"{file.path}: units are words such as s2=dn, got {', '.join(wrong)}")
    return {sensor: unit for sensor, _, unit in (word.partition("=") for word in words)}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
