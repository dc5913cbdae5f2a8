"""One training step, and the state of a run between steps, for any module."""

import signal
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from rsbackbones.train.engine.batch import Batch
from rsbackbones.train.engine.checkpoint import rng_state, set_rng_state
from rsbackbones.train.engine.config import RunOptions
from rsbackbones.train.engine.distributed import DistributedContext
from rsbackbones.train.engine.ema import ParameterEma
from rsbackbones.train.engine.log import RunLog
from rsbackbones.train.engine.module import TrainModule
from rsbackbones.train.engine.optim import Schedule
from rsbackbones.train.engine.parallel import broadcast_buffers, synchronize_gradients
from rsbackbones.train.engine.sampler import BatchPlan, StepSampler
from rsbackbones.train.engine.step import Step


class TrainRun:
    """The interface of a run to the trainer. Subclasses set the attributes and override hooks.

    Attributes:
        config: the options of the run.
        recipe: the options that are saved with the run: ``config``, or the whole recipe of a last stage.
        processes: the process group, and this process in it.
        objective: the module to train: batch -> loss and parts.
        module: the objective, possibly wrapped for data parallelism. A step calls it.
        dataset: maps lists of keys to batches, in ``workers`` loader processes.
        plan: the samples of every step.
        total_steps: the length of the whole schedule.
        places: the number of samples. At most the share ``max_bad_share`` of them may be unusable.
        beginning: a description of the initial weights, if they are not random.
    """

    config: RunOptions
    processes: DistributedContext
    objective: TrainModule
    module: nn.Module
    dataset: Dataset[Batch]
    plan: BatchPlan
    sampler_class: type[StepSampler] = StepSampler
    workers: int
    total_steps: int
    optimizer: Optimizer
    schedule: Schedule
    clip_grad: float | None = None
    ema: ParameterEma | None = None
    places: int
    max_bad_share: float
    beginning: str | None = None
    _buffers: dict[str, Tensor]

    @property
    def recipe(self) -> RunOptions:
        """See above."""
        return self.config

    def step(self, number: int) -> Step:
        """Return the step with this number, counted from 0."""
        return Step(number, self.total_steps, self.plan.task(number))

    def sources(self) -> list[dict[str, Any]]:
        """Return the saved description of the data. A resumed run must have the same (except names)."""
        raise NotImplementedError

    def record(self) -> dict[str, Any]:
        """Return what else is saved in ``recipe.json`` and must be the same when the run is resumed."""
        return {}

    def plot(self, folder: Path) -> None:
        """Plot the state of a run. Called on every process after every checkpoint."""

    def should_checkpoint(self, step: int) -> bool:
        """Return whether a checkpoint is due after a step, in addition to those of ``save.every``."""
        return False

    def on_step_end(self, step: int, folder: Path, log: RunLog) -> None:
        """Called after every step and its checkpoint, and for the last step when a run is resumed."""

    def batches(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """Yield this process's micro-batches from step ``start`` to ``stop``, ``accumulate`` per step."""
        device = self.processes.device
        loader = DataLoader(
            self.dataset,
            batch_sampler=self.sampler_class(
                self.plan, start=start, stop=stop, rank=self.processes.rank,
                world_size=self.processes.world_size, accumulate=self.config.accumulate,
            ),
            num_workers=self.workers,
            collate_fn=_as_it_is,
            worker_init_fn=_leave_signals_to_the_run,
            # Otherwise the loader draws from the global generator, and a resumed run would differ.
            generator=torch.Generator().manual_seed(self.config.seed),
            pin_memory=device.type == "cuda",
        )  # fmt: skip
        batches = iter(loader)
        try:
            yield from batches
        finally:
            # Workers ignore signals; the traceback of an error would keep them and this process alive.
            if self.workers:
                batches._shutdown_workers()  # type: ignore[attr-defined]

    def forward_backward(self, batches: Sequence[Batch]) -> tuple[dict[str, Tensor], Tensor]:
        """Compute the gradients of a step. Return the loss and its parts on this process, and the norm."""
        self._buffers = {name: buffer.clone() for name, buffer in self.objective.named_buffers()}
        sums: dict[str, Tensor] = {}
        device = self.processes.device
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bf16")
        with torch.no_grad(), autocast:
            batches = self.objective.before_step(batches)
        for number, batch in enumerate(batches):
            synchronize_gradients(self.module, number == len(batches) - 1)
            with autocast:
                parts = self.module(batch.to(device))
            (parts["loss"] / len(batches)).backward()
            for name, value in parts.items():
                sums[name] = sums.get(name, 0) + value.detach() / len(batches)
        norm = get_total_norm([p.grad for p in self.objective.parameters() if p.grad is not None])
        return sums, norm.full_tensor() if isinstance(norm, DTensor) else norm

    @torch.no_grad()
    def discard(self) -> None:
        """Undo :meth:`forward_backward`: restore buffers and clear gradients."""
        for name, buffer in self.objective.named_buffers():
            buffer.copy_(self._buffers[name])
        self.optimizer.zero_grad(set_to_none=True)

    def update(self, batches: Sequence[Batch], step: Step, norm: Tensor) -> float:
        """Take the optimizer step. Return its (largest) learning rate."""
        if self.clip_grad is not None:
            clip_grads_with_norm_(list(self.objective.parameters()), self.clip_grad, norm)
        self.schedule.step_update(step.number + 1)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            self.objective.after_step([batch.to(self.processes.device) for batch in batches], step)
        if self.ema:
            self.ema.update()
        lr: float = max(group["lr"] / group.get("lr_scale", 1.0) for group in self.optimizer.param_groups)
        return lr

    def state(self, world_size: int) -> dict[str, Any]:
        """Return the content of a checkpoint that ``world_size`` processes write or wrote.

        If buffers differ between processes (statistics of their own micro-batches), those of the first
        process are copied to all, so that the saved, evaluated and resumed states are the same.
        """
        broadcast_buffers([*self.objective.buffers(), *(self.ema.buffers() if self.ema else [])])
        state: dict[str, Any] = {
            "objective": get_model_state_dict(self.module),
            "optimizer": get_optimizer_state_dict(self.module, self.optimizer),
        }
        if self.ema:
            state["ema"] = self.ema.averages
        # A process that the saved run did not have keeps its initial state.
        if self.processes.rank < world_size:
            state["rng"] = {str(self.processes.rank): rng_state(self.processes.device)}
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Set the state to that of a checkpoint."""
        set_model_state_dict(self.module, state["objective"])
        set_optimizer_state_dict(self.module, self.optimizer, state["optimizer"])
        for rng in state.get("rng", {}).values():
            set_rng_state(rng, self.processes.device)


def _leave_signals_to_the_run(_: int) -> None:
    """Ignore signals in loader workers: they must not end before the run has saved its state."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _as_it_is(batch: Any) -> Batch:
    """Collate nothing: the dataset returns whole batches."""
    made: Batch = batch
    return made
