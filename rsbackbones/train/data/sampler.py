"""Which samples make which step: a function of the seed and the step alone.

Nothing is remembered from step to step. A run that is resumed, at another number of processes too, goes on
with the samples that it would have had.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

# (epoch, source, index): where the random numbers of a sample come from, too.
Key = tuple[int, int, int]

# So many blocks (shards) are shuffled together: random enough, and read file by file.
_BLOCKS_TOGETHER = 16


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """The global batch of every step. One batch is of one source.

    Attributes:
        lengths: samples of each source.
        repeats: how often an epoch goes over each source. Each time is a new order, so that a sample comes
            twice into one batch only where an order ends and the next begins.
        blocks: for each source, places that lie in one file (1: shuffle everything).
        frames: for each source, dates per place; a sample is a place at a date. By default 1.
        batch_size: of the global batch.
        seed: of the run.
    """

    lengths: tuple[int, ...]
    repeats: tuple[int, ...]
    blocks: tuple[int, ...]
    batch_size: int
    seed: int
    frames: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for i, (length, repeat) in enumerate(zip(self.lengths, self.repeats, strict=True)):
            if length * repeat < self.batch_size:
                raise ValueError(
                    f"source {i} has {length} samples, {repeat} times an epoch, which is less than one batch "
                    f"of {self.batch_size}; lower batch_size or raise the source's repeat"
                )

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch; the rest of each source is left out, another rest every epoch."""
        return sum(n * r // self.batch_size for n, r in zip(self.lengths, self.repeats, strict=True))

    def batch(self, step: int) -> list[Key]:
        """Return the keys of the global batch of a step."""
        epoch, position = divmod(step, self.steps_per_epoch)
        source, number = _schedule(self, epoch)[position]
        order = _order(self, epoch, source)
        chosen = order[number * self.batch_size : (number + 1) * self.batch_size]
        return [(epoch, int(source), int(index)) for index in chosen]


@lru_cache(maxsize=2)
def _schedule(plan: BatchPlan, epoch: int) -> list[tuple[int, int]]:
    """For each step of an epoch: the source, and which of its batches."""
    batches = [
        (source, number)
        for source, (n, r) in enumerate(zip(plan.lengths, plan.repeats, strict=True))
        for number in range(n * r // plan.batch_size)
    ]
    rng = np.random.default_rng((plan.seed, epoch))
    return [batches[i] for i in rng.permutation(len(batches))]


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
        # A pass over all files for every date: the dates of a place, which lie in one file, must not become
        # each other's negatives in one batch.
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
    """The keys of one process from a given step on: a list per forward pass.

    A global batch is cut into ``accumulate`` parts, each part into one piece per process.
    """

    def __init__(
        self, plan: BatchPlan, *, start: int, stop: int, rank: int, world_size: int, accumulate: int
    ) -> None:
        pieces = world_size * accumulate
        if plan.batch_size % pieces:
            raise ValueError(
                f"batch_size {plan.batch_size} is that of all processes together and must be a multiple of "
                f"{world_size} processes x {accumulate} accumulated passes"
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
        """Return one of the pieces of a global batch."""
        return list(keys[number * self._piece : (number + 1) * self._piece])

    def __len__(self) -> int:
        return len(self._steps) * self._accumulate
