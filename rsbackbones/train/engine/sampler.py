"""The task and the samples of every step, as functions of the seed and the step alone.

There is no state between steps. A resumed run gets the samples that it would have had without the
interruption, also with another number of processes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

# (epoch, source, index). The random numbers of a sample are derived from it as well.
Key = tuple[int, int, int]

# The order of tasks; see BatchPlan.
TaskSchedule = Literal["proportional", "alternate", "random"]

# This many shards are shuffled together: random enough, and read file by file.
_BLOCKS_TOGETHER = 16
# The tasks of this many steps are drawn together, with a separate generator.
_TASKS_TOGETHER, _TASK_STREAM = 4096, 0x7461736B


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """The global batch of every step. All samples of a batch come from one source, and so have one task.

    An epoch passes over every source ``repeats`` times. This determines its number of steps for every
    schedule. The schedule determines which task a step belongs to:

    - ``proportional``: every task has as many steps as it has batches, in random order. Its epochs coincide
      with those of the run.
    - ``alternate``: with n tasks, step s belongs to task s mod n.
    - ``random``: the task of a step is drawn uniformly, from the seed and the step.

    The latter two give every task the same number of steps: small tasks have more epochs of their own than
    the run, large ones fewer. Sources of one task are always mixed in proportion to their size.

    Attributes:
        lengths: samples of each source.
        repeats: passes over each source per epoch. Each pass has a new order, so a batch contains a sample
            twice only if it spans the end of a pass.
        blocks: for each source, consecutive locations per file (1: shuffle everything).
        frames: for each source, dates per location, if every date is a sample. By default 1.
        tasks: for each source, the task of its samples, one of ``task_names``.
        task_names: the tasks in order. By default one, "".
        schedule: the order of tasks.
        batch_size: the size of the global batch.
        seed: the seed of the run.

    Raises:
        ValueError: a source has less than one batch, or a task has no source.
    """

    lengths: tuple[int, ...]
    repeats: tuple[int, ...]
    blocks: tuple[int, ...]
    batch_size: int
    seed: int
    frames: tuple[int, ...] = ()
    tasks: tuple[str, ...] = ()
    task_names: tuple[str, ...] = ("",)
    schedule: TaskSchedule = "proportional"

    def __post_init__(self) -> None:
        if not self.lengths:
            raise ValueError("a plan needs one source or more, got none")
        if len(self.task_names) > 1:
            if len(self.tasks) != len(self.lengths) or (set(self.tasks) - set(self.task_names)):
                raise ValueError(
                    f"with the tasks {', '.join(self.task_names)} each of {len(self.lengths)} sources needs "
                    f"one of them, got tasks={self.tasks}"
                )
            if idle := [name for name in self.task_names if name not in self.tasks]:
                raise ValueError(
                    f"no source is for the task {', '.join(idle)} (tasks={self.tasks}): give it a source, or "
                    "leave it out of task_names"
                )
        for i, (length, repeat) in enumerate(zip(self.lengths, self.repeats, strict=True)):
            if length * repeat < self.batch_size:
                task = f" of the task {self.tasks[i]}" if any(self.tasks) else ""
                raise ValueError(
                    f"source {i}{task} has {length} samples, {repeat} times an epoch, which is less than one "
                    f"batch of {self.batch_size}; lower batch_size or raise the repeats of the source"
                )

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches per epoch. The remainder of each source is dropped, a different one every epoch."""
        return self._batches(range(len(self.lengths)))

    def batch(self, step: int) -> list[Key]:
        """Return the keys of the global batch of a step."""
        sources, number = self._locate(step)
        epoch, position = divmod(number, self._batches(sources))
        source, batch = _order_of_batches(self, sources, epoch)[position]
        chosen = _order(self, epoch, source)[batch * self.batch_size : (batch + 1) * self.batch_size]
        return [(epoch, int(source), int(index)) for index in chosen]

    def task(self, step: int) -> str:
        """Return the task of a step."""
        names = self.task_names
        if len(names) == 1:
            return names[0]
        if self.schedule == "proportional":
            return self.tasks[self.batch(step)[0][1]]
        return names[self._task_index(step)]

    def epochs(self, step: int) -> dict[str, float]:
        """Return the epochs of each task before ``step``."""
        names = self.task_names
        if len(names) == 1:
            return {names[0]: step / self.steps_per_epoch}
        whole, done = 0, [0] * len(names)
        if self.schedule == "proportional":
            every = tuple(range(len(self.lengths)))
            whole, position = divmod(step, self.steps_per_epoch)
            for source, _ in _order_of_batches(self, every, whole)[:position]:
                done[names.index(self.tasks[source])] += 1
        else:
            done = self._steps_before(step)
        return {
            name: whole + count / self._batches(self._sources_of(name))
            for name, count in zip(names, done, strict=True)
        }

    def _locate(self, step: int) -> tuple[tuple[int, ...], int]:
        """Return the sources of a step's task, and the number of earlier steps with these sources."""
        names = self.task_names
        if len(names) == 1 or self.schedule == "proportional":
            return tuple(range(len(self.lengths))), step
        index = self._task_index(step)
        return self._sources_of(names[index]), self._steps_before(step)[index]

    def _task_index(self, step: int) -> int:
        count = len(self.task_names)
        if self.schedule == "alternate":
            return step % count
        block, position = divmod(step, _TASKS_TOGETHER)
        return int(_random_tasks(self.seed, count, block)[position])

    def _steps_before(self, step: int) -> list[int]:
        """Return the number of steps of each task before ``step``."""
        count = len(self.task_names)
        if self.schedule == "alternate":
            return [step // count + (k < step % count) for k in range(count)]
        block, position = divmod(step, _TASKS_TOGETHER)
        before = np.array(_random_tasks_before(self.seed, count, block))
        here = np.bincount(_random_tasks(self.seed, count, block)[:position], minlength=count)
        return [int(n) for n in before + here]

    def _sources_of(self, task: str) -> tuple[int, ...]:
        return tuple(i for i, name in enumerate(self.tasks) if name == task)

    def _batches(self, sources: Sequence[int]) -> int:
        return sum(self.lengths[i] * self.repeats[i] // self.batch_size for i in sources)


@lru_cache(maxsize=8)
def _order_of_batches(plan: BatchPlan, sources: tuple[int, ...], epoch: int) -> list[tuple[int, int]]:
    """Return (source, number of its batch) for each step of an epoch over some sources."""
    batches = [
        (source, number)
        for source in sources
        for number in range(plan.lengths[source] * plan.repeats[source] // plan.batch_size)
    ]
    rng = np.random.default_rng((plan.seed, epoch))
    return [batches[i] for i in rng.permutation(len(batches))]


@lru_cache(maxsize=4096)
def _random_tasks(seed: int, count: int, block: int) -> npt.NDArray[np.int64]:
    """The tasks of a block of steps."""
    return np.random.default_rng((seed, _TASK_STREAM, block)).integers(count, size=_TASKS_TOGETHER)


@lru_cache(maxsize=8)
def _random_tasks_before(seed: int, count: int, block: int) -> tuple[int, ...]:
    """Return the number of steps of each task in all blocks before this one."""
    total = np.zeros(count, np.int64)
    for earlier in range(block):
        total += np.bincount(_random_tasks(seed, count, earlier), minlength=count)
    return tuple(total.tolist())


@lru_cache(maxsize=32)
def _order(plan: BatchPlan, epoch: int, source: int) -> npt.NDArray[np.int64]:
    """The samples of a source in the order of an epoch."""
    rng = np.random.default_rng((plan.seed, epoch, source))
    length, block = plan.lengths[source], plan.blocks[source]
    frames = plan.frames[source] if plan.frames else 1
    places = length // frames
    orders = []
    for _ in range(plan.repeats[source]):
        if block == 1:
            orders.append(rng.permutation(length))
            continue
        # One pass over all files per date. The dates of a location are in one file, and must not become
        # negatives of each other in one batch.
        dates = rng.permuted(np.tile(np.arange(frames), (places, 1)), axis=1)
        for turn in range(frames):
            starts = rng.permutation(np.arange(0, places, block))
            for i in range(0, len(starts), _BLOCKS_TOGETHER):
                together = np.concatenate(
                    [np.arange(s, min(s + block, places)) for s in starts[i : i + _BLOCKS_TOGETHER].tolist()]
                )
                chosen = rng.permutation(together)
                orders.append(chosen * frames + dates[chosen, turn])
    return np.concatenate(orders)


class StepSampler(Sampler[list[Key]]):
    """The keys of one process from a given step on: one list per micro-batch.

    A global batch is divided into ``accumulate`` parts, and each part into one micro-batch per process.
    """

    def __init__(
        self, plan: BatchPlan, *, start: int, stop: int, rank: int, world_size: int, accumulate: int
    ) -> None:
        pieces = world_size * accumulate
        if plan.batch_size % pieces:
            raise ValueError(
                f"batch_size {plan.batch_size} is the size of the global batch and must be a multiple of "
                f"{world_size} processes x {accumulate} accumulated micro-batches"
            )
        self._plan, self._steps = plan, range(start, stop)
        self._rank, self._world_size, self._accumulate = rank, world_size, accumulate
        self._piece = plan.batch_size // pieces

    def __iter__(self) -> Iterator[list[Key]]:
        for step in self._steps:
            keys = self._plan.batch(step)
            for part in range(self._accumulate):
                yield self.piece(keys, part * self._world_size + self._rank)

    def piece(self, keys: Sequence[Key], number: int) -> list[Key]:
        """Return one micro-batch of a global batch."""
        return list(keys[number * self._piece : (number + 1) * self._piece])

    def __len__(self) -> int:
        return len(self._steps) * self._accumulate
