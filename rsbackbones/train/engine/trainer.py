"""Training: the stages of a run, their steps and checkpoints, and the handling of NaN and signals."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from rsbackbones.device import has_bfloat16
from rsbackbones.files.atomic import atomic_write, write_text
from rsbackbones.files.bounds import read_json
from rsbackbones.train.engine.batch import Batch
from rsbackbones.train.engine.checkpoint import Checkpoints, finished
from rsbackbones.train.engine.config import RunOptions
from rsbackbones.train.engine.distributed import DistributedContext, StopSignal, destroy, init_distributed
from rsbackbones.train.engine.errors import TrainingError
from rsbackbones.train.engine.log import RunLog, StepClock, loss_table
from rsbackbones.train.engine.run_dir import RunDir
from rsbackbones.train.engine.skipped_samples import SkippedSamples
from rsbackbones.train.engine.train_step import TrainRun


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The end of a run: its step, and why it ended (``finished``, or ``stopped`` by a signal)."""

    status: str
    step: int
    total_steps: int
    samples_seen: int
    seconds: float
    output: str


class StageBuilder(Protocol):
    """A stage of a run, built when the previous one is finished. ``config.output`` is its own folder."""

    @property
    def config(self) -> RunOptions:
        """The options of the stage."""
        ...

    def check(self) -> None:
        """Raise errors that would stop this stage. Called before earlier stages are trained."""
        ...

    def build(self, processes: DistributedContext) -> TrainRun:
        """Build the run, after the previous stages are trained."""
        ...


def train(run: TrainRun | Sequence[StageBuilder]) -> Summary:
    """Train a run, or stages one after another. Resume from the output folders if they hold checkpoints.

    ``max_steps`` counts the steps of all stages. The last stage is saved in ``output`` of its options, the
    earlier ones in folders within it. A single process needs no launcher; with torchrun, call this in every
    process.

    Args:
        run: a run, or builders of its stages.

    Returns:
        The summary of the stage in which the run ended.

    Raises:
        ValueError: the options, the data or the folder cannot be used.
        TrainingError: (a ``ValueError``) the loss is NaN, too many samples are bad, a checkpoint cannot be
            written, or all checkpoints are damaged.
    """
    config = run.config if isinstance(run, TrainRun) else run[-1].config
    if config.output is None:
        raise TrainingError("no output folder: pass output=FOLDER")
    processes = run.processes if isinstance(run, TrainRun) else init_distributed(config.timeout)
    with RunDir(config.output.expanduser(), processes) as folder, StopSignal() as stop:
        if isinstance(run, TrainRun):
            summary = Trainer(run, folder, stop, max_steps=config.max_steps).fit()
        else:
            summary = _train_stages(run, processes, folder, stop)
    destroy(processes)
    return summary


def _train_stages(
    stages: Sequence[StageBuilder], processes: DistributedContext, last: RunDir, stop: StopSignal
) -> Summary:
    folders = [stage.config.output.expanduser() for stage in stages if stage.config.output is not None]
    begun = [i for i, folder in enumerate(folders) if finished(folder / "checkpoints")]
    start: int = processes.broadcast_from_rank0(max(begun, default=0))
    for stage in stages[start + 1 :]:
        stage.check()
    limit = stages[-1].config.max_steps
    before = 0 if limit is None else _steps_of(folders[:start], processes)
    for stage, path in zip(stages[start:-1], folders[start:-1], strict=True):
        with RunDir(path, processes) as folder:
            summary = Trainer(stage.build(processes), folder, stop, max_steps=_rest(limit, before)).fit()
        before += summary.total_steps
        if summary.step < summary.total_steps or (limit is not None and before >= limit):
            return summary
    return Trainer(stages[-1].build(processes), last, stop, max_steps=_rest(limit, before)).fit()


def _rest(limit: int | None, before: int) -> int | None:
    # At least 1: a stage that is reached with fewer steps left has already begun, and is past them.
    return None if limit is None else max(1, limit - before)


def _steps_of(folders: Sequence[Path], processes: DistributedContext) -> int:
    """Add the steps of finished stages. The first process reads them: others may not see its files."""
    problem, steps = None, 0
    if processes.is_main_process:
        for folder in folders:
            file = folder / "summary.json"
            try:
                steps += read_json(file)["total_steps"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                problem = (
                    f"max_steps counts the steps of all stages, and {file} does not state those of its stage "
                    f"({type(error).__name__}). Restore {folder.name}, or leave out max_steps: the run "
                    "resumes without it"
                )
                break
    if problem := processes.broadcast_from_rank0(problem):
        raise TrainingError(problem)
    return int(processes.broadcast_from_rank0(steps))


class Trainer:
    """Trains a run in its folder, from the newest checkpoint to the end.

    Raises:
        TrainingError: the folder contains another run.
    """

    def __init__(
        self, run: TrainRun, folder: RunDir, stop: StopSignal, *, max_steps: int | None = None
    ) -> None:
        problem = None
        if run.processes.is_main_process:
            try:
                folder.open(run.recipe, run.sources(), run.record())
            except (ValueError, OSError) as error:
                problem = str(error)
        if problem := run.processes.broadcast_from_rank0(problem):
            raise TrainingError(problem)
        self.run, self.folder, self.stop = run, folder, stop
        self.config, self.processes, self.max_steps = run.config, run.processes, max_steps
        self.skipped = SkippedSamples(folder.path, self.processes, places=run.places, limit=run.max_bad_share)

    def fit(self) -> Summary:
        """Train to the last step, to ``max_steps``, or until a signal."""
        run, config, processes = self.run, self.config, self.processes
        self.skipped.check()
        checkpoints = Checkpoints(self.folder.path / "checkpoints", processes, config.save)
        state: dict[str, Any] = {}

        def make_state(world_size: int) -> dict[str, Any]:
            state.clear()
            state.update(run.state(world_size))
            return state

        start = checkpoints.load(make_state)
        if start is not None:
            run.load_state(state)
        step = start or 0
        end = min(run.total_steps, self.max_steps or run.total_steps)
        if processes.is_main_process:
            self.folder.truncate_log(step)
        log = RunLog(self.folder.path, config, start=step, steps=end, enabled=processes.is_main_process)
        log.say(f"{'from the start' if start is None else f'going on from step {step}'}, to step {end}")
        if run.beginning and start is None:
            log.say(run.beginning)
        if config.precision == "bf16" and not has_bfloat16(processes.device):
            log.say("this processor has no bfloat16 instructions, so that it converts every number: "
                    "precision=fp32 is faster here")  # fmt: skip

        began, clock = time.perf_counter(), StepClock()
        batches = run.batches(step, end)
        status = "finished"
        last_losses: dict[str, torch.Tensor] = {}  # by task
        with closing(log), closing(batches):
            if start is not None:
                run.on_step_end(step, self.folder.path, log)
            while step < end:
                waiting = time.perf_counter()
                of_step = list(islice(batches, config.accumulate))
                clock.waited(time.perf_counter() - waiting)

                parts, norm = run.forward_backward(of_step)
                non_finite = not (math.isfinite(parts["loss"].item()) and math.isfinite(norm.item()))
                new_bad = self.skipped.collect(of_step)
                flags = processes.reduce(
                    [non_finite, bool(new_bad), checkpoints.failed(), self.stop.received is not None]
                )
                if flags[0] or flags[1]:
                    checkpoints.wait()  # a checkpoint in progress is finished before the run may stop here
                if flags[0]:
                    run.discard()
                    self._abort_on_nan(step, of_step, parts)
                if flags[1]:
                    self.skipped.add(new_bad, log)
                task = run.step(step).task
                last_losses = {**(last_losses if config.log_every > 1 else {}), task: parts["loss"]}
                lr = run.update(of_step, run.step(step), norm)
                step += 1
                clock.step()
                line: dict[str, Any] | None = None
                if step % config.log_every == 0 or step == end:
                    logged = {**{name: x for name, x in last_losses.items() if name}, **parts}
                    names = sorted(logged)
                    sums = processes.reduce([logged[name].item() for name in names], dist.ReduceOp.SUM)
                    means = {n: s / processes.world_size for n, s in zip(names, sums, strict=True)}
                    line = {
                        **self._progress(step),
                        **({"task": task} if task and config.log_every == 1 else {}),
                        **means,
                        "lr": lr,
                        "grad_norm": norm.item(),
                        **clock.read(config.batch_size),
                    }
                log.step(line)
                if flags[3]:
                    status = "stopped"
                due = step % config.save.every == 0 or step == end or run.should_checkpoint(step)
                if due or flags[2] or flags[3]:
                    checkpoints.save(step, run.state(processes.world_size))
                    run.plot(self.folder.path)
                if flags[3]:
                    break
                run.on_step_end(step, self.folder.path, log)
        checkpoints.wait()
        summary = Summary(
            status=status, step=step, total_steps=run.total_steps, samples_seen=step * config.batch_size,
            seconds=time.perf_counter() - began, output=str(self.folder.path),
        )  # fmt: skip
        if processes.is_main_process:
            write_text(self.folder.path / "summary.json", json.dumps(asdict(summary), indent=1))
            write_text(self.folder.path / "table.md", loss_table(self.folder.path))
        return summary

    def _progress(self, step: int) -> dict[str, float]:
        """Return the progress of the run, and of each task if there are several."""
        plan = self.run.plan
        by_task = plan.epochs(step) if len(plan.task_names) > 1 else {}
        return {
            "step": step,
            "epoch": step / plan.steps_per_epoch,
            **{f"epoch_{task}": epoch for task, epoch in by_task.items()},
        }

    def _abort_on_nan(self, step: int, batches: list[Batch], parts: Mapping[str, Any]) -> None:
        """Save the batches whose loss is NaN, and stop.

        If only a gradient is, the first process saves its batches.
        """
        lost = not math.isfinite(parts["loss"].item())
        anywhere = any(self.processes.gather(lost))
        mine = lost or (self.processes.is_main_process and not anywhere)
        path = self.folder.path / f"nan_step_{step:09d}_rank_{self.processes.rank}.pt"
        if mine:
            content = {
                "step": step,
                "parts": {name: float(value) for name, value in parts.items()},
                "batches": [batch.content() for batch in batches],
            }
            with atomic_write(path) as file:
                torch.save(content, file)
        files = [f for f in self.processes.gather(path.name if mine else None) if f]
        raise TrainingError(
            f"the loss or the gradient is not finite at step {step}; parameters and buffers are unchanged. "
            f"The batch is in {self.folder.path}: {', '.join(files)}. Inspect its samples, lower "
            "optim.base_lr, or set optim.clip_grad"
        )
