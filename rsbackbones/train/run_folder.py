"""The folder of a run: one job at a time, one recipe, and a log that ends where the run goes on."""

import fcntl
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from rsbackbones.atomic import write_text
from rsbackbones.environment import environment
from rsbackbones.train.distributed import Processes
from rsbackbones.train.options import RunOptions
from rsbackbones.train.recipe_fields import differences, from_json, to_json

RECIPE = "recipe.json"
# A restarted job waits so long for the processes of the one before to be gone.
_LOCK_PATIENCE_S = 10.0
# A line per logged step; a line per evaluation, where a run has any.
METRICS, EVALUATIONS = "metrics.jsonl", "evaluations.jsonl"
# A run of two phases keeps the first one, a run in itself, in its folder.
PHASE_1 = "phase_1"


class TrainingError(ValueError):
    """A run that cannot begin or cannot go on; says why and what to do."""


class RunFolder:
    """The folder, locked by the first process until ``with`` ends."""

    def __init__(self, path: Path, processes: Processes) -> None:
        self.path = path
        self._lock: TextIO | None = None
        problem = None
        if processes.first:
            try:
                path.mkdir(parents=True, exist_ok=True)
                self._lock = _locked(path / "lock")
            except OSError as error:
                problem = f"cannot write to the output folder {path}: {error.strerror}"
            else:
                if self._lock is None:
                    problem = f"another job is running in {path} (it holds {path / 'lock'})"
        if problem := processes.first_says(problem):
            raise TrainingError(f"{problem}; choose another with out=")

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()

    def begin(self, recipe: RunOptions, sources: list[dict[str, Any]]) -> None:
        """Save the recipe, or compare it with the saved one. For the first process.

        Raises:
            TrainingError: the folder holds a run of another recipe, or files that are no run.
        """
        file = self.path / RECIPE
        if file.exists():
            try:
                record = json.loads(file.read_text(encoding="utf-8"))
                before = from_json(record["recipe"], type(recipe))
                held = [_content(source) for source in record["sources"]]
            except (ValueError, KeyError, TypeError) as error:
                raise TrainingError(f"{file} is no recipe of a run that could go on: {error}") from error
            if changed := differences(before, recipe):
                raise TrainingError(
                    f"{self.path} holds a run of another recipe ({'; '.join(changed)}); choose another out=, "
                    "or delete it"
                )
            if held != (now := [_content(source) for source in sources]):
                raise TrainingError(
                    f"{self.path} holds a run on other data: {held}, now {now}. Its steps would be others; "
                    "choose another out="
                )
            return
        if foreign := sorted(
            p.name for p in self.path.iterdir() if p.name not in ("lock", "recipe.json.tmp", PHASE_1)
        ):
            raise TrainingError(f"{self.path} is not empty and no run of ours: {', '.join(foreign[:8])}")
        content = {"recipe": to_json(recipe), "sources": sources, "environment": environment()}
        write_text(file, json.dumps(content, indent=1))

    def cut_log(self, step: int) -> None:
        """Take from the logs what comes after ``step``: it will be computed again. For the first process."""
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


def _locked(path: Path) -> TextIO | None:
    """Open and lock a file; ``None`` where another process has it."""
    file = path.open("a", encoding="utf-8")
    end = time.monotonic() + _LOCK_PATIENCE_S
    while True:
        try:
            # Not flock, which the loader's workers would inherit and hold when this process is killed.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            if time.monotonic() > end:
                file.close()
                return None
            time.sleep(0.2)
        else:
            return file
