"""How long a model takes to come from a safetensors file, against reading and hashing the same file.

    python -m benchmarks.load_cell JSON

The JSON is a :class:`Cell`; the process (:mod:`benchmarks.processes`) is asked to ``write`` the file,
to ``load`` it, or to ``hash`` it.
"""

import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.processes import serve, side_by_side
from rsbackbones.files.sha256 import sha256_of
from rsbackbones.zoo.factory import create_model
from rsbackbones.zoo.saving import save_model


@dataclass(frozen=True, kw_only=True)
class Cell:
    """An architecture and the file of its weights."""

    model: str
    path: str
    threads: int


def measure_load(folder: Path, *, model: str, threads: int, repeats: int, seconds: float) -> dict[str, Any]:
    """Measure both in turn, each in a fresh process, on a file in ``folder`` that is deleted afterwards.

    Returns:
        Its bytes, the seconds of every repeat, and the ratio of their medians; or the ``error``.
    """
    path = folder / f"{model}.safetensors"
    cell = Cell(model=model, path=str(path), threads=threads)
    found: dict[str, Any] = {"model": model, "load": [], "hash": []}
    try:
        for what in ("write", *("load", "hash") * repeats):
            with side_by_side(__name__, {what: cell}, seconds=seconds) as processes:
                answer = processes.ask(what, what)
            if answer is None:
                return {"model": model, "error": processes.errors[what]}
            if what != "write":
                found[what].append(answer["seconds"])
        found["bytes"] = path.stat().st_size
    finally:
        path.unlink(missing_ok=True)
    return found | {"ratio": statistics.median(found["load"]) / statistics.median(found["hash"])}


def main(argument: str) -> None:
    """Answer for the cell."""
    cell = Cell(**json.loads(argument))
    path = Path(cell.path)
    torch.set_num_threads(cell.threads)

    def answer(what: str) -> dict[str, Any]:
        began = time.perf_counter()
        if what == "write":
            save_model(create_model(cell.model), path)
        elif what == "load":
            create_model(cell.model, checkpoint=path)
        elif what == "hash":
            sha256_of(path)
        return {"seconds": time.perf_counter() - began}

    serve(answer)


if __name__ == "__main__":
    main(sys.argv[1])
