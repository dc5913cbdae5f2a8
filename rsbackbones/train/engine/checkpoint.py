"""Checkpoints of a run: written atomically, verified before loading; the newest n are kept.

A checkpoint is a folder ``step_NNNNNNNNN`` written by torch.distributed.checkpoint (DCP): sharded, and
loadable with another number of processes. ``complete.json`` has the size and sha256 of every file. The folder
is written under a temporary name and renamed. DCP does not detect flipped bytes, so hashes are compared
first.
"""

import json
import os
import pickle
import random
import re
import shutil
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from rsbackbones.files.atomic import write_text
from rsbackbones.files.bounds import read_json
from rsbackbones.files.sha256 import sha256_of
from rsbackbones.files.unpickling import what_torch_refused
from rsbackbones.train.engine.checkpoint_reader import load_checkpoint
from rsbackbones.train.engine.config import SaveOptions
from rsbackbones.train.engine.distributed import DistributedContext
from rsbackbones.train.engine.errors import TrainingError

State = dict[str, Any]

_COMPLETE = "complete.json"


def step_of(path: Path) -> int | None:
    """Return the step of a finished checkpoint's folder; ``None`` for anything else."""
    match = re.fullmatch(r"step_(\d{9})", path.name)
    return int(match[1]) if match and path.is_dir() else None


def finished(folder: Path) -> list[Path]:
    """Return the finished checkpoints in a folder, newest first; none if the folder does not exist."""
    found = [p for p in folder.iterdir() if step_of(p) is not None] if folder.is_dir() else []
    return sorted(found, reverse=True)


def problem(path: Path, share: tuple[int, int] = (0, 1)) -> str | None:
    """Return what is wrong with the files of a checkpoint, or ``None`` if their hashes match.

    With ``share`` (rank, world size) only every world-size-th file is hashed, to divide the work.
    """
    try:
        files = read_json(path / _COMPLETE)["files"]
        for name, (size, digest) in list(files.items())[share[0] :: share[1]]:
            file = path / name
            if file.stat().st_size != size or sha256_of(file) != digest:
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


class Checkpoints:
    """The checkpoints of a run, used by all of its processes together."""

    def __init__(self, folder: Path, processes: DistributedContext, options: SaveOptions) -> None:
        self.folder, self.processes, self.options = folder, processes, options
        self._pending: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        # The writing threads communicate while the main threads train, so they need a separate group.
        self._group: Any = None
        if processes.world_size > 1:
            # The default timeout is half an hour, independent of that of the other group.
            self._group = dist.new_group(backend="gloo", timeout=processes.timeout)
        # DCP warns at every save and load in a single process.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled.*single process")
        if processes.is_main_process:
            folder.mkdir(exist_ok=True)
            self._remove_unfinished()  # left by a killed process
        processes.barrier()

    def save(self, step: int, state: State) -> None:
        """Save a checkpoint, or start to if ``asynchronous``.

        Raises:
            TrainingError: this or the previous checkpoint could not be written. Older ones are kept.
        """
        self.wait()
        self.processes.barrier()
        name = f"step_{step:09d}"
        part = self.folder / f"{name}.tmp"
        if self.options.asynchronous:
            written = async_save(state, checkpoint_id=part, process_group=self._group)
            self._pending = self._thread.submit(self._finish, written, part, step)
            return
        self._pending = Future()
        try:
            save(state, checkpoint_id=part, process_group=self._group)
            self._finish(None, part, step)
        except (CheckpointException, OSError) as error:
            self._pending.set_exception(error)
        else:
            self._pending.set_result(None)
        self.wait()

    def _finish(self, written: Any, part: Path, step: int) -> None:
        """Wait for all processes; the first one hashes and renames the checkpoint and removes old ones."""
        if written is not None:
            written.result()
        if not self.processes.is_main_process:
            return
        files = {}
        for path in sorted(part.iterdir()):
            files[path.name] = (path.stat().st_size, sha256_of(path))
        complete = {"step": step, "world_size": self.processes.world_size, "files": files}
        write_text(part / _COMPLETE, json.dumps(complete, indent=1))
        final = part.with_suffix("")
        if final.exists():  # a damaged one, whose steps were repeated
            self._remove(final)
        part.rename(final)
        _sync(self.folder)
        # Checkpoints after this step are from before a rollback; they do not count among the newest n.
        kept = [path for path in finished(self.folder) if path <= final][: self.options.keep]
        for other in set(finished(self.folder)) - set(kept):
            self._remove(other)

    def _remove(self, path: Path) -> None:
        # Renamed first: a process killed while deleting must not leave a partial checkpoint under its name.
        going = path.with_name(path.name + ".old.tmp")
        path.rename(going)
        shutil.rmtree(going)

    def _remove_unfinished(self) -> None:
        for path in self.folder.glob("step_*.tmp"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)

    def failed(self) -> bool:
        """Whether the save in progress is known to have failed."""
        pending = self._pending
        return pending is not None and pending.done() and pending.exception() is not None

    def wait(self) -> None:
        """Wait until a checkpoint in progress is written.

        Raises:
            TrainingError: it could not be written.
        """
        pending, self._pending = self._pending, None
        error = pending.exception() if pending is not None else None
        if any(self.processes.gather(error is not None)):
            if self.processes.is_main_process:
                self._remove_unfinished()
            self.processes.barrier()
            kept = finished(self.folder)
            raise TrainingError(
                f"cannot write a checkpoint to {self.folder}, where {shutil.disk_usage(self.folder).free} "
                f"bytes are free: {first_line(error)}. "
                + (f"The newest whole one is {kept[0].name}" if kept else "There is none yet")
                + "; make room and run again to go on"
            ) from error

    def load(self, make_state: Any) -> int | None:
        """Load the newest whole checkpoint into the state that ``make_state(saved_world_size)`` returns.

        Returns:
            Its step, or ``None`` where the run has no checkpoint yet.

        Raises:
            TrainingError: there are checkpoints and every one is damaged.
        """
        candidates: list[Path] = self.processes.broadcast_from_rank0(finished(self.folder))
        for path in candidates:
            wrong = problem(path, (self.processes.rank, self.processes.world_size))
            wrong = next((w for w in self.processes.gather(wrong) if w), None)
            if wrong is None:
                complete = read_json(path / _COMPLETE)
                try:
                    state = make_state(complete["world_size"])
                    load_checkpoint(state, path, process_group=self._group)
                except CheckpointException as error:  # which no `except Exception` would catch
                    raise TrainingError(
                        f"{path} is whole, and cannot be read into this run: {first_line(error)}"
                    ) from error
            if wrong is None:
                return step_of(path)
            if self.processes.is_main_process:
                warnings.warn(f"{path} is damaged ({wrong}); trying the one before", stacklevel=2)
        if candidates:
            raise TrainingError(
                f"all checkpoints in {self.folder} are damaged: {', '.join(p.name for p in candidates)}. "
                "Delete the folder to train from the start"
            )
        return None


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """Return the state of every global generator of this process as tensors of fixed shapes."""
    _, words, gauss = random.getstate()
    legacy: Any = np.random.get_state(legacy=False)
    state = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(words, dtype=torch.int64),
        "numpy": torch.tensor([*legacy["state"]["key"].tolist(), legacy["state"]["pos"]], dtype=torch.int64),
        # Numbers that the two normal generators hold back.
        "held": torch.tensor(
            [float("nan") if gauss is None else gauss, legacy["has_gauss"], legacy["gauss"]],
            dtype=torch.float64,
        ),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Restore what :func:`rng_state` returned."""
    gauss, has_gauss, cached = state["held"].tolist()
    torch.set_rng_state(state["torch"])
    random.setstate((3, tuple(state["python"].tolist()), None if gauss != gauss else gauss))
    *key, position = state["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(key, dtype=np.uint32), position, int(has_gauss), cached))
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def first_line(error: BaseException | None) -> str:
    """Return the cause in one line: DCP wraps the errors of all processes in a text of many lines."""
    if isinstance(error, CheckpointException) and error.failures:
        inner = next(iter(error.failures.values()))
        error = inner[0] if isinstance(inner, tuple) else inner
    text = what_torch_refused(error) if isinstance(error, pickle.UnpicklingError) else str(error)
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
