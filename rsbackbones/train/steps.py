"""One step of training, and the state of a run between two steps, whatever is trained."""

import signal
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, Protocol

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

from rsbackbones.train.checkpoint import rng_state, set_rng_state
from rsbackbones.train.data.batch import Batch
from rsbackbones.train.data.sampler import BatchPlan, StepSampler
from rsbackbones.train.distributed import Processes
from rsbackbones.train.ema import Ema
from rsbackbones.train.log import RunLog
from rsbackbones.train.options import RunOptions
from rsbackbones.train.parallel import synchronize_gradients


class Schedule(Protocol):
    """A function of the step, as timm's schedulers are."""

    def step_update(self, num_updates: int) -> None:
        """Set the learning rates of step ``num_updates``."""


class Steps:
    """What the loop needs of a run. A kind of run builds the attributes and says what goes beyond steps.

    Attributes:
        recipe, processes: of the run.
        objective: what is trained: batch -> loss and parts.
        module: what is called: the objective, or what parallelism put around it.
        dataset: lists of keys to batches; ``workers`` processes call it.
        plan: which samples make which step.
        total_steps: of the whole schedule.
        places: how many samples there are; ``max_bad_share`` of them may be unusable.
        beginning: what the weights that it began with are, where they are not random.
    """

    recipe: RunOptions
    processes: Processes
    objective: nn.Module
    module: nn.Module
    dataset: Dataset[Batch]
    plan: BatchPlan
    sampler_class: type[StepSampler] = StepSampler
    workers: int
    total_steps: int
    optimizer: Optimizer
    schedule: Schedule
    clip_grad: float | None = None
    ema: Ema | None = None
    places: int
    max_bad_share: float
    beginning: str | None = None

    def sources(self) -> list[dict[str, Any]]:
        """Return what is written of the data; but for their ``name`` a run goes on with the same only."""
        raise NotImplementedError

    def draw(self, folder: Path) -> None:
        """Draw the pictures of a run; after every checkpoint, by all processes."""

    def saves(self, step: int) -> bool:
        """Return whether a checkpoint is written after a step that the recipe does not say."""
        return False

    def after(self, step: int, folder: Path, log: RunLog) -> None:
        """Do what is due after a step, of which there may be a checkpoint; also where a run goes on."""

    def batches(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """Yield this process's batches of the steps from ``start`` to ``stop``, ``accumulate`` per step."""
        device = self.processes.device
        loader = DataLoader(
            self.dataset,
            batch_sampler=self.sampler_class(
                self.plan, start=start, stop=stop, rank=self.processes.rank,
                world_size=self.processes.world_size, accumulate=self.recipe.accumulate,
            ),
            num_workers=self.workers,
            collate_fn=_as_it_is,
            worker_init_fn=_leave_signals_to_the_run,
            # Its own: the loader draws from the global one otherwise, and a resumed run would differ.
            generator=torch.Generator().manual_seed(self.recipe.seed),
            pin_memory=device.type == "cuda",
        )  # fmt: skip
        batches = iter(loader)
        try:
            yield from batches
        finally:
            # Workers ignore signals, and the traceback of an error would keep them, and this process, alive.
            if self.workers:
                batches._shutdown_workers()  # type: ignore[attr-defined]

    def forward_backward(self, batches: Sequence[Batch]) -> tuple[dict[str, Tensor], Tensor]:
        """Compute the gradients of a step; return the loss and its parts on this process, and their norm."""
        sums: dict[str, Tensor] = {}
        for number, batch in enumerate(batches):
            synchronize_gradients(self.module, number == len(batches) - 1)
            device = self.processes.device
            with torch.autocast(device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
                parts = self.module(batch.to(device))
            (parts["loss"] / len(batches)).backward()
            for name, value in parts.items():
                sums[name] = sums.get(name, 0) + value.detach() / len(batches)
        norm = get_total_norm([p.grad for p in self.objective.parameters() if p.grad is not None])
        return sums, norm.full_tensor() if isinstance(norm, DTensor) else norm

    def update(self, step: int, norm: Tensor) -> float:
        """Take the optimizer's step; return the (largest) learning rate it was taken with."""
        if self.clip_grad is not None:
            clip_grads_with_norm_(list(self.objective.parameters()), self.clip_grad, norm)
        self.schedule.step_update(step + 1)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update()
        lr: float = max(group["lr"] for group in self.optimizer.param_groups)
        return lr

    def state(self, world_size: int) -> dict[str, Any]:
        """Return what a checkpoint holds, for one that ``world_size`` processes write or wrote."""
        state: dict[str, Any] = {
            "objective": get_model_state_dict(self.module),
            "optimizer": get_optimizer_state_dict(self.module, self.optimizer),
        }
        if self.ema:
            state["ema"] = self.ema.averages
        # A process that the saved run did not have keeps the state that it starts with.
        if self.processes.rank < world_size:
            state["rng"] = {str(self.processes.rank): rng_state(self.processes.device)}
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what a checkpoint was read into."""
        set_model_state_dict(self.module, state["objective"])
        set_optimizer_state_dict(self.module, self.optimizer, state["optimizer"])
        for rng in state.get("rng", {}).values():
            set_rng_state(rng, self.processes.device)


def _leave_signals_to_the_run(_: int) -> None:
    """For a loader's worker: what is sent to the whole job must not end it before the run has saved."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _as_it_is(batch: Any) -> Batch:
    """The data set makes whole batches: there is nothing to collate."""
    made: Batch = batch
    return made
