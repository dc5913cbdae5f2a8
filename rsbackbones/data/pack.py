"""Packing a source into shards: every place is read and checked once, and later reads are fast."""

import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rsbackbones.data.check import validate_sample
from rsbackbones.data.image_warnings import ImageWarnings
from rsbackbones.data.input_files import tree_digest
from rsbackbones.data.open import source_statistics
from rsbackbones.data.shards import (
    DATASET_FILE,
    SCHEMA,
    ShardWriter,
    read_attributes,
    read_dataset,
)
from rsbackbones.data.source import BadSample, Sample, Source
from rsbackbones.files.atomic import is_temporary, write_text
from rsbackbones.files.bounds import read_json
from rsbackbones.files.lock import LOCK, exclusive
from rsbackbones.files.progress import progress_bar
from rsbackbones.files.sha256 import sha256_of
from rsbackbones.input_spec import SSL4EO_S12
from rsbackbones.sensors import get_sensor
from rsbackbones.value_check import CIRRUS, MissingPixelsWarning, bands_with_holes, judge, missing_pixels

_JOB_FILE = "job.json"
_FILES = "source_files_sha256"
_PROBED_PLACES = 16
_SHARD = "{:06d}.zarr.zip"


@dataclass(frozen=True, kw_only=True)
class PackReport:
    """What was packed: ``bad`` are the places that were left out, by name and reason."""

    folder: Path
    places: int
    shards: int
    bytes: int
    bad: tuple[tuple[str, str], ...]


def pack(
    source: Source,
    output: str | Path,
    *,
    per_shard: int = 64,
    max_bad_share: float = 0.01,
    progress: bool = True,
) -> PackReport:
    """Write all usable places of a source, at all dates, into shards in the folder ``output``.

    A place that lacks one of the source's sensors is not usable.

    An interrupted pack resumes after its last whole shard when it is started again, and ends with the same
    bytes as an uninterrupted one. The files below ``source.root``, of sources that have it, must stay the
    same until it ends: their names, sizes and times are compared.

    The mean and deviation that a source comes with, or that are measured on a folder of series, are kept:
    ``data.statistics=dataset`` takes them.

    Args:
        source: what to pack.
        output: a folder; it is made, or holds an earlier pack of the same source.
        per_shard: places per shard; the last one may hold fewer.
        max_bad_share: the largest share of places that may be unusable.
        progress: show a bar.

    Raises:
        ValueError: no places, values that are no dn or dB, too many unusable places (they are listed), files
            that changed since the pack began, a folder that holds anything else, one that cannot be written
            to, or one that another process packs into.
    """
    folder = Path(output).expanduser()
    if not len(source):
        raise ValueError(f"{source.name} holds no places")
    if per_shard < 1:
        raise ValueError(f"per_shard must be at least 1, got {per_shard}")
    if not 0 <= max_bad_share < 1:
        raise ValueError(f"max_bad_share must be in [0, 1), got {max_bad_share}")
    most = int(max_bad_share * len(source))
    job = _describe_job(source, per_shard, folder)
    if (dataset := _finished(folder, job)) is None:
        with exclusive(folder):
            dataset = _finished(folder, job) or _pack(source, folder, job, per_shard, most, progress)
    (folder / _JOB_FILE).unlink(missing_ok=True)
    _refuse_many(dataset["bad"], most, len(source))
    return _report(folder, dataset)


def _pack(
    source: Source, folder: Path, job: Mapping[str, Any], per_shard: int, most: int, progress: bool
) -> dict[str, Any]:
    """Write what is left to write, and return the content of ``dataset.json``."""
    _check_units(source)
    statistics = source_statistics(source, keep=False)  # a file more would be another source
    shards, place, bad = _resume(folder)
    if not shards:  # first, so that a folder with shards tells what they are
        _write_json(folder / _JOB_FILE, job)
    _refuse_many(bad, most, len(source))
    bar = progress_bar(len(source), place, enabled=progress, unit="place")
    with bar, _one_thread():
        while place < len(source):
            found = _usable(source, place, bad, most)
            # Read before the file is begun: there may be no usable place left.
            if (first := next(found, None)) is None:
                break
            path = folder / _SHARD.format(len(shards))
            with _writing(folder, first[1], len(source) - first[0]), ShardWriter(path) as writer:
                for number, sample in chain([first], islice(found, per_shard - 1)):
                    writer.add(source.describe(number), sample)
                    bar.update(number + 1 - place)
                    place = number + 1
                if len(writer) < per_shard:
                    place = len(source)
                writer.finish(next=place, bad=bad)
            shards.append(_entry(path, len(writer)))
    if _describe_files(source, folder) != {name: job[name] for name in (_FILES,) if name in job}:
        raise ValueError(
            f"files of {source.name} changed while they were packed; delete {folder} and pack them again"
        )
    dataset = {
        **job,
        **({} if statistics is None else {"statistics": statistics}),
        "units": {sensor: SSL4EO_S12[sensor].unit for sensor in source.bands if sensor in SSL4EO_S12},
        "places": sum(shard["places"] for shard in shards),
        "shards": shards,
        "bad": bad,
    }
    _write_json(folder / DATASET_FILE, dataset)
    return dataset


def _check_units(source: Source) -> None:
    """Check on some places that the values are in the units that the shards state.

    Raises:
        ValueError: they are not.
    """
    found: dict[str, list[Tensor]] = {}
    doubts = ImageWarnings()
    read: list[int] = []
    for place in sorted({i * len(source) // _PROBED_PLACES for i in range(_PROBED_PLACES)}):
        try:
            sample = source.read(place)
        except (BadSample, OSError):
            continue  # it is listed as such
        read.append(place)
        for sensor in sample.images.keys() & SSL4EO_S12.keys():
            x = torch.from_numpy(np.ascontiguousarray(sample.images[sensor], np.float32)).movedim(-3, 0)
            held = x.isfinite().all(0) & ~missing_pixels(x.movedim(0, -3), SSL4EO_S12[sensor].unit)
            if (valid := sample.valid.get(sensor)) is not None:  # [T]: missing images hold zeros
                held &= torch.as_tensor(valid)[:, None, None]
            if len(x) == len(source.bands[sensor]):  # others are listed when they are packed
                values = x[:, held]
                found.setdefault(sensor, []).append(values)
                try:
                    with doubts.of_image(place):
                        _check_values(values, sensor, source, sensor, alone=False)
                except ValueError as error:
                    raise ValueError(f"{source.name}, {source.describe(place)}: {error}") from error
    for sensor, each in found.items():
        _check_values(torch.cat(each, dim=1), sensor, source, f"{source.name}, {sensor}", alone=True)
    doubts.warn(source.name, read)


def _check_values(x: Tensor, sensor: str, source: Source, what: str, *, alone: bool) -> None:
    """Refuse or warn of values [C, N] that are not in the unit that the shards state."""
    unit, bands = SSL4EO_S12[sensor].unit, source.bands[sensor]
    assert unit is not None
    cirrus = x[bands.index(CIRRUS)] if sensor == "s2" and CIRRUS in bands else None
    verdict = judge(x, unit, get_sensor(sensor), bands, cirrus=cirrus, alone=alone)
    if not alone and (holes := bands_with_holes(x, unit)):
        warnings.warn(
            f"{what}: {', '.join(bands[i] for i in holes)} holds zero in many pixels where other bands have "
            "values, as pixels without data do; they are packed as measured",
            MissingPixelsWarning,
            stacklevel=3,
        )
    if verdict.kind == "suspect":
        warnings.warn(f"{what}: {verdict.text}; shards state {unit!r}", verdict.warning, stacklevel=3)
    elif verdict.kind != "right":
        raise ValueError(f"{what}: {verdict.text}. Shards hold {unit!r}: convert the values first")


def _describe_files(source: Source, output: Path) -> dict[str, str]:
    """Return a digest of the files of a source that states where they are."""
    root: Path | None = getattr(source, "root", None)
    return {} if root is None else {_FILES: tree_digest(root, without=output)}


def _describe_job(source: Source, per_shard: int, output: Path) -> dict[str, Any]:
    """Return what a later run must share to resume: the source, its places, and how they are packed."""
    names = hashlib.sha256()
    for place in range(len(source)):
        names.update(source.describe(place).encode() + b"\n")
    return {
        "schema": SCHEMA,
        "source": type(source).__name__,
        "name": source.name,
        "bands": {sensor: list(bands) for sensor, bands in source.bands.items()},
        "frames": source.frames,
        "notes": list(source.notes),
        "per_shard": per_shard,
        "source_places": len(source),
        "source_names_sha256": names.hexdigest(),
        **_describe_files(source, output),
    }


def _finished(folder: Path, job: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the content of ``dataset.json`` if the job is done; else see that the folder can be written to.

    Raises:
        ValueError: the folder cannot be made, or holds another job or other files.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        inside = {path.name for path in folder.iterdir() if path.name != LOCK and not is_temporary(path)}
    except OSError as error:
        raise ValueError(f"cannot make the folder {folder}: {error.strerror}") from error
    complete = DATASET_FILE in inside
    if complete or _JOB_FILE in inside:
        if not complete and _SHARD.format(0) not in inside:
            return None  # a run that ended before it had done anything
        held = read_dataset(folder) if complete else _read_job(folder)
        known = {key: value for key, value in job.items() if key != _FILES or key in held}  # since 0.1
        if differ := [key for key, value in known.items() if held.get(key) != value]:
            raise ValueError(
                f"{folder} holds another pack (with other {', '.join(differ)}); choose another "
                "folder, or delete it"
            )
        return held if complete else None
    if inside:
        raise ValueError(f"{folder} holds other files; choose an empty folder, or one that does not exist")
    return None


def _read_job(folder: Path) -> Any:
    try:
        return read_json(folder / _JOB_FILE)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot read {folder / _JOB_FILE}: {error}; choose another folder, or delete it"
        ) from error


def _resume(folder: Path) -> tuple[list[dict[str, Any]], int, list[list[str]]]:
    """Return the whole shards, the next place, and the unusable places before it."""
    shards: list[dict[str, Any]] = []
    place, bad = 0, []
    while (path := folder / _SHARD.format(len(shards))).exists():
        attributes = read_attributes(path)
        shards.append(_entry(path, len(attributes["names"])))
        place, bad = attributes["next"], attributes["bad"]
    return shards, place, bad


def _usable(source: Source, place: int, bad: list[list[str]], most: int) -> Iterator[tuple[int, Sample]]:
    """Yield the usable places from ``place`` on; the others are added to ``bad``."""
    for number in range(place, len(source)):
        try:
            sample = source.read(number)
            lengths = {sensor: len(image) for sensor, image in sample.images.items()}
            frames = lengths if source.frames is None else source.frames
            sample = validate_sample(
                sample.images, source.bands, frames=frames, dates=sample.dates, valid=sample.valid
            )
        except (BadSample, OSError) as problem:
            bad.append([source.describe(number), str(problem)])
            _refuse_many(bad, most, len(source))
        else:
            yield number, sample


def _refuse_many(bad: list[list[str]], most: int, places: int) -> None:
    if len(bad) > most:
        raise ValueError(
            f"{len(bad)} unusable places, more than the {most} of {places} that max_bad_share allows "
            f"(rsbackbones pack: --max-bad-share); whole shards are kept: {_list(bad)}"
        )


def _list(bad: list[list[str]]) -> str:
    return "".join(f"\n  {name}: {reason}" for name, reason in bad)


@contextmanager
def _writing(folder: Path, sample: Sample, places: int) -> Iterator[None]:
    """Turn a failure to write into a message with the space that is needed at most, and is free."""
    try:
        yield
    except OSError as error:
        need = places * sum(image.nbytes for image in sample.images.values())
        raise ValueError(
            f"cannot write to {folder}: {error.strerror or error}; {places} places are left, at most "
            f"{need} bytes before compression, and {shutil.disk_usage(folder).free} are free. Whole shards "
            "are kept: make room and run the same again"
        ) from error


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let Blosc compress with one thread: with more, the order of its blocks is that of their completion."""
    from numcodecs import blosc

    before, blosc.use_threads = blosc.use_threads, False
    try:
        yield
    finally:
        blosc.use_threads = before


def _entry(path: Path, places: int) -> dict[str, Any]:
    return {
        "file": path.name, "places": places, "bytes": path.stat().st_size, "sha256": sha256_of(path),
    }  # fmt: skip


def _report(folder: Path, dataset: Mapping[str, Any]) -> PackReport:
    shards = dataset["shards"]
    return PackReport(
        folder=folder,
        places=dataset["places"],
        shards=len(shards),
        bytes=sum(shard["bytes"] for shard in shards),
        bad=tuple((name, reason) for name, reason in dataset["bad"]),
    )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    try:
        write_text(path, json.dumps(content, indent=1))
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from error
