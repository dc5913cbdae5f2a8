"""The training loop: steps, checkpoints, what to do with bad samples, NaN and signals."""

import json
import math
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rsbackbones.atomic import whole_file, write_text
from rsbackbones.train.beginning import check_phases
from rsbackbones.train.checkpoint import Checkpoints, finished
from rsbackbones.train.data.batch import Batch
from rsbackbones.train.distributed import Processes, StopSignal, join, leave
from rsbackbones.train.log import RunLog, StepClock
from rsbackbones.train.recipe import Recipe
from rsbackbones.train.run import Run, open_uses
from rsbackbones.train.run_folder import PHASE_1, RunFolder, TrainingError, read_log
from rsbackbones.train.steps import Steps


@dataclass(frozen=True, kw_only=True)
class Summary:
    """How a run ended: at which step of how many, and why (``finished`` or ``stopped`` by a signal)."""

    status: str
    step: int
    total_steps: int
    samples_seen: int
    seconds: float
    out: str


def train(recipe: Recipe) -> Summary:
    """Train, or go on with the run in ``recipe.out``; one of two phases in the phase that it was in.

    ``max_steps`` counts those of both phases.

    One process needs no launcher; under torchrun every process calls this.

    Raises:
        ValueError: the recipe, the data or the folder are not usable.
        TrainingError: (a ``ValueError``) the loss is NaN, too many samples are bad, a checkpoint cannot be
            written, or all are damaged.
    """
    if recipe.out is None:
        raise TrainingError("no output folder is named: say out=FOLDER")
    out = recipe.out.expanduser()
    processes = join(recipe.timeout)
    with RunFolder(out, processes) as folder, StopSignal() as stop:
        summary = _first_phase(recipe, processes, stop)
        if summary is None:
            if recipe.max_steps is not None:
                before = _steps_of_phase_1(out, processes) if recipe.first else 0
                # At least 1: who comes here with fewer is in phase 2 already, and past it.
                recipe = replace(recipe, max_steps=max(1, recipe.max_steps - before))
            summary = Training(Run(recipe, processes), folder, stop).go()
    leave(processes)
    return summary


def _first_phase(recipe: Recipe, processes: Processes, stop: StopSignal) -> Summary | None:
    """Train the first phase, where there is one and it is not over; return how the run ended in it, if so."""
    first = recipe.first_phase()
    if first is None or first.out is None or recipe.out is None:
        return None
    if processes.first_says(bool(finished(recipe.out.expanduser() / "checkpoints"))):
        return None
    # What is wrong with the second is said before the first.
    open_uses(recipe, check_phases(recipe).backbone)
    with RunFolder(first.out.expanduser(), processes) as folder:
        summary = Training(Run(first, processes), folder, stop).go()
    ended = summary.step < summary.total_steps or summary.step >= (recipe.max_steps or math.inf)
    return summary if ended else None


def _steps_of_phase_1(out: Path, processes: Processes) -> int:
    """Read them in the first process, which wrote the file: another one might not see it yet."""
    problem, file, steps = None, out / PHASE_1 / "summary.json", 0
    if processes.first:
        try:
            steps = json.loads(file.read_text(encoding="utf-8"))["total_steps"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            problem = (
                f"max_steps counts the steps of both phases, and {file} does not say those of the first "
                f"({type(error).__name__}). Put {PHASE_1} back, or leave out max_steps: the second phase "
                "goes on without it"
            )
    if problem := processes.first_says(problem):
        raise TrainingError(problem)
    return int(processes.first_says(steps))


class Training:
    """A run in its folder, from the newest checkpoint to the end.

    Raises:
        TrainingError: the folder holds another run.
    """

    def __init__(self, run: Steps, folder: RunFolder, stop: StopSignal) -> None:
        problem = None
        if run.processes.first:
            try:
                folder.begin(run.recipe, run.sources())
            except (ValueError, OSError) as error:
                problem = str(error)
        if problem := run.processes.first_says(problem):
            raise TrainingError(problem)
        self.run, self.folder, self.stop = run, folder, stop
        self.recipe, self.processes = run.recipe, run.processes
        self.bad = _BadSamples(folder.path, run, self.processes)

    def go(self) -> Summary:
        run, recipe, processes = self.run, self.recipe, self.processes
        self.bad.check()
        checkpoints = Checkpoints(self.folder.path / "checkpoints", processes, recipe.save)
        state: dict[str, Any] = {}

        def make_state(world_size: int) -> dict[str, Any]:
            state.clear()
            state.update(run.state(world_size))
            return state

        start = checkpoints.load(make_state)
        if start is not None:
            run.load_state(state)
        step = start or 0
        end = min(run.total_steps, recipe.max_steps or run.total_steps)
        if processes.first:
            self.folder.cut_log(step)
        log = RunLog(self.folder.path, recipe, start=step, steps=end, enabled=processes.first)
        log.say(f"{'from the start' if start is None else f'going on from step {step}'}, to step {end}")
        if run.beginning and start is None:
            log.say(run.beginning)

        began, clock = time.perf_counter(), StepClock()
        batches = run.batches(step, end)
        status = "finished"
        with closing(log), closing(batches):
            if start is not None:
                run.after(step, self.folder.path, log)
            while step < end:
                waiting = time.perf_counter()
                of_step = list(islice(batches, recipe.accumulate))
                clock.waited(time.perf_counter() - waiting)

                parts, norm = run.forward_backward(of_step)
                broken = not (math.isfinite(parts["loss"].item()) and math.isfinite(norm.item()))
                new_bad = self.bad.new(of_step)
                flags = processes.reduce(
                    [broken, bool(new_bad), checkpoints.failed(), self.stop.received is not None]
                )
                if flags[0] or flags[1]:
                    checkpoints.wait()  # what is being written is whole before the run may stop here
                if flags[0]:
                    self._stop_broken(step, of_step, parts)
                if flags[1]:
                    self.bad.add(new_bad, log)
                lr = run.update(step, norm)
                step += 1
                clock.step()
                line = None
                if step % recipe.log_every == 0 or step == end:
                    names = sorted(parts)
                    sums = processes.reduce([parts[name].item() for name in names], dist.ReduceOp.SUM)
                    means = {n: s / processes.world_size for n, s in zip(names, sums, strict=True)}
                    line = {"step": step, "epoch": step / run.plan.steps_per_epoch, **means,
                            "lr": lr, "grad_norm": norm.item(), **clock.read(recipe.batch_size)}  # fmt: skip
                log.step(line)
                if flags[3]:
                    status = "stopped"
                due = step % recipe.save.every == 0 or step == end or run.saves(step)
                if due or flags[2] or flags[3]:
                    checkpoints.save(step, run.state(processes.world_size))
                    run.draw(self.folder.path)
                if flags[3]:
                    break
                run.after(step, self.folder.path, log)
        checkpoints.wait()
        summary = Summary(
            status=status, step=step, total_steps=run.total_steps, samples_seen=step * recipe.batch_size,
            seconds=time.perf_counter() - began, out=str(self.folder.path),
        )  # fmt: skip
        if processes.first:
            write_text(self.folder.path / "summary.json", json.dumps(asdict(summary), indent=1))
            write_text(self.folder.path / "table.md", loss_table(self.folder.path))
        return summary

    def _stop_broken(self, step: int, batches: list[Batch], parts: Mapping[str, Any]) -> None:
        """Save the batch that gave NaN and stop; where no loss is NaN the first process saves its own."""
        lost = not math.isfinite(parts["loss"].item())
        anywhere = any(self.processes.gather(lost))
        mine = lost or (self.processes.first and not anywhere)
        path = self.folder.path / f"nan_step_{step:09d}_rank_{self.processes.rank}.pt"
        if mine:
            content = {
                "step": step,
                "parts": {name: float(value) for name, value in parts.items()},
                "batches": [batch.content() for batch in batches],
            }
            with whole_file(path) as file:
                torch.save(content, file)
        files = [f for f in self.processes.gather(path.name if mine else None) if f]
        raise TrainingError(
            f"the loss or the gradient is not finite at step {step}; no parameter was changed by it. The "
            f"batch is in {self.folder.path}: {', '.join(files)}. Look at its samples, lower optim.base_lr, "
            "or set optim.clip_grad"
        )


class _BadSamples:
    """The samples that could not be used, in ``bad_samples.jsonl``, and when they are too many."""

    def __init__(self, folder: Path, run: Steps, processes: Processes) -> None:
        self.file, self.processes = folder / "bad_samples.jsonl", processes
        self.places, self.limit = run.places, run.max_bad_share
        known: dict[str, str] = {}
        if processes.first and self.file.exists():
            known = dict(json.loads(line) for line in self.file.read_text(encoding="utf-8").splitlines())
        self.known: dict[str, str] = processes.first_says(known)

    def new(self, batches: list[Batch]) -> dict[str, str]:
        """Return the samples of these batches that were left out and are not known yet."""
        return {name: why for b in batches for name, why in b.skipped if name not in self.known}

    def add(self, new: dict[str, str], log: RunLog) -> None:
        """Note the new ones of all processes, and :meth:`check`."""
        for found in self.processes.gather(new):
            for name, why in found.items():
                if self.known.setdefault(name, why) is why:
                    log.say(f"left out {name}: {why}")
        if self.processes.first:
            write_text(self.file, "".join(json.dumps(pair) + "\n" for pair in self.known.items()))
        self.check()

    def check(self) -> None:
        """Compare their number with what the recipe allows.

        Raises:
            TrainingError: there are more than the stated share of all places.
        """
        if len(self.known) > self.limit * self.places:
            shown = "\n  ".join(f"{name}: {why}" for name, why in list(self.known.items())[:20])
            raise TrainingError(
                f"{len(self.known)} of {self.places} places cannot be used, more than data.max_bad_share="
                f"{self.limit:g} allows; all are listed in {self.file} (delete it when "
                f"they are mended):\n  {shown}"
            )


def loss_table(folder: Path, rows: int = 10) -> str:
    """Return the means of what a run logged, for each tenth of it, as a Markdown table."""
    lines = read_log(folder)
    if not lines:
        return ""
    names = [n for n in dict.fromkeys(n for line in lines for n in line) if n not in ("step", "epoch")]
    size = -(-len(lines) // rows)
    table = ["| steps | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for i in range(0, len(lines), size):
        part = lines[i : i + size]
        cells = []
        for name in names:
            values = [line[name] for line in part if name in line]
            cells.append(f"{sum(values) / len(values):.4g}" if values else "")
        table.append(f"| {part[0]['step']} to {part[-1]['step']} | " + " | ".join(cells) + " |")
    return "\n".join(table) + "\n"
