"""What is done stays done: every finished row of an evaluation in a file of its own."""

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import rsbackbones
from rsbackbones.data.labelled.dataset import LabelledSet
from rsbackbones.files.atomic import write_text


def kept(folder: Path, job: Mapping[str, Any], make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Return the row of a job from its file, or make it and write the file, anew where it is damaged.

    Args:
        folder: of the files; it is made where it does not exist.
        job: all that decides the row, as JSON takes it. It is part of the row, with the version.
        make: gives the rest.
    """
    stated = {"version": rsbackbones.__version__, **job}
    path = folder / f"{hashlib.sha256(json.dumps(stated).encode()).hexdigest()[:16]}.json"
    if path.exists():
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            if {name: row[name] for name in stated} != json.loads(json.dumps(stated)):
                raise ValueError("it is of another job")
            return dict(row)
        except (OSError, ValueError, TypeError, KeyError) as error:
            warnings.warn(f"{path} is damaged and made anew: {error}", stacklevel=2)
    # As it will be read: a first run and a later one give the same, tuples or not.
    text = json.dumps({**stated, **make()})
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, text + "\n")
    made: dict[str, Any] = json.loads(text)
    return made


def split_digest(data: LabelledSet) -> str:
    """Return what changes with the data or its splits."""
    digest = hashlib.sha256(data.digest.encode())
    for name in sorted(data.splits):
        digest.update(name.encode() + np.asarray(data.splits[name], np.int64).tobytes())
    return digest.hexdigest()
