"""The log of a run: a progress bar, ``metrics.jsonl``, and optionally TensorBoard."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rsbackbones.files.markdown import markdown_table
from rsbackbones.train.engine.config import RunOptions
from rsbackbones.train.engine.run_dir import METRICS, read_log


class StepClock:
    """Measures the duration of steps, and the share of it that is spent waiting for data."""

    def __init__(self) -> None:
        self._since = time.perf_counter()
        self._waited, self._steps = 0.0, 0

    def waited(self, seconds: float) -> None:
        """Add time spent waiting for a batch."""
        self._waited += seconds

    def step(self) -> None:
        """Count a step."""
        self._steps += 1

    def read(self, batch_size: int) -> dict[str, float]:
        """Return samples per second and the waiting share since the last call."""
        now = time.perf_counter()
        elapsed = now - self._since
        numbers = {
            "samples_per_s": self._steps * batch_size / elapsed,
            "data_wait": self._waited / elapsed,
        }
        self._since, self._waited, self._steps = now, 0.0, 0
        return numbers


class RunLog:
    """The log of the first process. Other processes have a disabled one."""

    def __init__(self, folder: Path, recipe: RunOptions, *, start: int, steps: int, enabled: bool) -> None:
        self.enabled = enabled
        self._board: Any = None
        self._bar = tqdm(
            total=steps, initial=start, unit="step", disable=not enabled, file=sys.stderr, mininterval=1.0,
            dynamic_ncols=True,
        )  # fmt: skip
        if enabled:
            self._file = (folder / METRICS).open("a", encoding="utf-8")
            if recipe.tensorboard:
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start)

    def step(self, line: dict[str, Any] | None) -> None:
        """Count a step, and log ``line`` if it is given."""
        self._bar.update()
        if not self.enabled or line is None:
            return
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self._bar.set_postfix_str(
            f"loss {line['loss']:.4f}, lr {line['lr']:.2e}, {line['samples_per_s']:.0f} samples/s, "
            f"waiting for data {line['data_wait']:.0%}"
        )
        if self._board is not None:
            for name, value in line.items():
                if name not in ("step", "task"):
                    self._board.add_scalar(name, value, line["step"])

    def say(self, text: str) -> None:
        """Print a line above the progress bar."""
        if self.enabled:
            tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        """Close the progress bar and the files."""
        self._bar.close()
        if self.enabled:
            self._file.close()
        if self._board is not None:
            self._board.close()


def loss_table(folder: Path, rows: int = 10) -> str:
    """Return the means of all logged values over ``rows`` equal parts of a run, as a Markdown table."""
    lines = read_log(folder)
    if not lines:
        return ""
    logged = dict.fromkeys(n for line in lines for n in line)
    names = [n for n in logged if n != "task" and not n.startswith(("step", "epoch"))]
    size = -(-len(lines) // rows)
    table = []
    for i in range(0, len(lines), size):
        part = lines[i : i + size]
        cells = [f"{part[0]['step']} to {part[-1]['step']}"]
        for name in names:
            values = [line[name] for line in part if name in line]
            cells.append(f"{sum(values) / len(values):.4g}" if values else "")
        table.append(cells)
    return markdown_table(["steps", *names], table, "l" + "r" * len(names)) + "\n"
