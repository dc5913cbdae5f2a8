"""What is kept of an unfinished feature map, so that a killed run goes on where it was."""

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rsbackbones.data.rasters import Array
from rsbackbones.files.atomic import write_text


class UnfinishedMap:
    """The folder of an unfinished feature map: the map so far, how many rows are done, and of what job."""

    def __init__(self, folder: Path, job: Mapping[str, Any], shape: tuple[int, ...]) -> None:
        text = json.dumps(job, indent=1, sort_keys=True)
        job_file, map_file = folder / "job.json", folder / "map.npy"
        self._rows_file = folder / "rows_done.txt"
        self.rows_done = 0
        if job_file.exists():
            if job_file.read_text() != text:
                raise ValueError(
                    f"{folder} holds an unfinished run with other inputs or settings; delete it, or "
                    "choose another output"
                )
            try:
                if self._rows_file.exists():
                    self.rows_done = int(self._rows_file.read_text())
                self.features = np.lib.format.open_memmap(map_file, mode="r+")
            except (ValueError, OSError) as error:
                raise ValueError(f"{folder} is damaged, delete it: {error}") from error
            return
        # job.json comes last: a folder that a kill left without it is begun anew.
        ours = {job_file.name, map_file.name, self._rows_file.name, job_file.name + ".tmp"}
        if folder.exists() and (not folder.is_dir() or {p.name for p in folder.iterdir()} - ours):
            raise ValueError(f"{folder} is needed for the unfinished map and holds other files; move it away")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        self.features = _create_map(map_file, shape)
        write_text(job_file, text)

    def write(self, top: int, rows: Array) -> None:
        """Store rows of the map, and only when they are on disk count them as done."""
        self.features[top : top + len(rows)] = rows
        self.features.flush()
        self.rows_done = top + len(rows)
        write_text(self._rows_file, str(self.rows_done))

    def __enter__(self) -> "UnfinishedMap":
        return self

    def __exit__(self, *_: object) -> None:
        del self.features


def _create_map(path: Path, shape: tuple[int, ...]) -> Any:
    """Create a mapped array with its place on disk: a page without one would kill the process."""
    try:
        features = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        if hasattr(os, "posix_fallocate"):
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        shutil.rmtree(path.parent)
        raise ValueError(
            f"the feature map needs {4 * math.prod(shape)} bytes in {path.parent.parent}, where "
            f"{shutil.disk_usage(path.parent.parent).free} are free: {error.strerror}"
        ) from error
    return features
