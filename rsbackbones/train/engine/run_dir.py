"""The folder of a run: locked by one job, with one recipe, and a log that is truncated on resume."""

import json
import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rsbackbones.files.atomic import write_text
from rsbackbones.files.bounds import read_json
from rsbackbones.files.environment import environment
from rsbackbones.files.lock import LOCK, LockedError, exclusive
from rsbackbones.train.engine.config import RunOptions
from rsbackbones.train.engine.config_io import differences, from_json, to_json
from rsbackbones.train.engine.distributed import DistributedContext
from rsbackbones.train.engine.errors import TrainingError

RECIPE = "recipe.json"
# How long a restarted job waits for the processes of the previous one to end.
_LOCK_PATIENCE_S = 10.0
# One line per logged step, and per evaluation.
METRICS, EVALUATIONS = "metrics.jsonl", "evaluations.jsonl"
# The folder of a run with several stages contains those of the earlier ones, each a run in itself.
_STAGE = re.compile(r"stage_\d+")


def stage_folder(out: Path, index: int, count: int) -> Path:
    """Return the folder of a stage: ``out`` for the last of ``count``, else ``out/stage_1``, ..."""
    return out if index == count - 1 else out / f"stage_{index + 1}"


class RunDir:
    """The folder of a run, locked by the first process until the end of ``with``."""

    def __init__(self, path: Path, processes: DistributedContext) -> None:
        self.path = path
        self._lock = ExitStack()
        problem = None
        if processes.is_main_process:
            try:
                self._lock.enter_context(exclusive(path, patience=_LOCK_PATIENCE_S))
            except LockedError:
                problem = f"another job is running in {path} (it holds {path / LOCK})"
            except ValueError as error:
                problem = str(error)
        if problem := processes.broadcast_from_rank0(problem):
            raise TrainingError(f"{problem}; choose another with output=")

    def __enter__(self) -> "RunDir":
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def open(
        self, recipe: RunOptions, sources: list[dict[str, Any]], others: Mapping[str, Any] | None = None
    ) -> None:
        """Save the recipe, or compare it with the saved one. Called on the first process only.

        ``others`` is saved beside it, and compared too.

        Raises:
            TrainingError: the folder contains a run of another recipe or on other data, or other files.
        """
        file = self.path / RECIPE
        if file.exists():
            try:
                record = read_json(file)
                before = from_json(record["recipe"], type(recipe))
                held = [_content(source) for source in record["sources"]]
            except (ValueError, KeyError, TypeError) as error:
                raise TrainingError(
                    f"{file} is not the recipe of a run that can be resumed: {error}"
                ) from error
            if changed := differences(before, recipe):
                raise TrainingError(
                    f"{self.path} holds a run of another recipe ({'; '.join(changed)}); choose another "
                    "output=, or delete it"
                )
            if held != (now := [_content(source) for source in sources]):
                raise TrainingError(
                    f"{self.path} holds a run on other data: {held}, now {now}. Its steps would differ; "
                    "choose another output="
                )
            for name, value in (others or {}).items():
                if record.get(name) != value:
                    raise TrainingError(
                        f"{self.path} holds a run with another {name}: {record.get(name)}, now {value}; name "
                        "the same, or choose another output="
                    )
            return
        if foreign := sorted(
            p.name for p in self.path.iterdir() if p.name != LOCK and not _STAGE.fullmatch(p.name)
        ):
            raise TrainingError(
                f"{self.path} is not empty and not an rsbackbones run: it holds {', '.join(foreign[:8])}; "
                "choose another output="
            )
        content = {"recipe": to_json(recipe), "sources": sources, "environment": environment()}
        content |= others or {}
        write_text(file, json.dumps(content, indent=1))

    def truncate_log(self, step: int) -> None:
        """Remove log lines after ``step``, which will be computed again. Called on the first process only."""
        for file in (self.path / METRICS, self.path / EVALUATIONS):
            if file.exists():
                kept = [line for line in read_log(self.path, file.name) if line["step"] <= step]
                write_text(file, "".join(json.dumps(line) + "\n" for line in kept))


def _content(source: Mapping[str, Any]) -> dict[str, Any]:
    """What a source holds; its name is that of a folder, which may have moved."""
    return {name: value for name, value in source.items() if name != "name"}


def read_log(path: Path, name: str = METRICS) -> list[Mapping[str, Any]]:
    """Return the lines of a log in a run's folder; a last line that a kill cut short is left out."""
    lines = []
    for text in (path / name).read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
