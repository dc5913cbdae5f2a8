"""A small method with all that a run has to keep: momentum contrast on a CNN, and runs of it.

He et al., Momentum contrast for unsupervised visual representation learning, CVPR 2020. ``python -m
tests.train.contrast FILE`` trains the runs that a JSON file lists, under torchrun on many processes.
"""

import copy
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from rsbackbones.train.engine.batch import Batch
from rsbackbones.train.engine.batch_norm import set_batch_norm
from rsbackbones.train.engine.config import OptimOptions, RunOptions, SaveOptions
from rsbackbones.train.engine.config_io import from_json
from rsbackbones.train.engine.distributed import StopSignal, destroy, end_process, init_distributed
from rsbackbones.train.engine.ema import ParameterEma
from rsbackbones.train.engine.errors import TrainingError
from rsbackbones.train.engine.module import TrainModule
from rsbackbones.train.engine.optim import build_optimizer, build_schedule, start_state
from rsbackbones.train.engine.parallel import parallelize
from rsbackbones.train.engine.run_dir import RunDir
from rsbackbones.train.engine.sampler import BatchPlan
from rsbackbones.train.engine.train_step import TrainRun
from rsbackbones.train.engine.trainer import Trainer

IMAGES, SIDE, DIM = 48, 12, 8


class Block(nn.Module):
    """A convolution and BatchNorm."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)

    def forward(self, x):
        return F.avg_pool2d(F.relu(self.norm(self.conv(x))), 2)


class Encoder(nn.Module):
    """[B, 3, H, W] to [B, DIM]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(3, 6), Block(6, DIM)])
        self.head = nn.Sequential(nn.Linear(DIM, DIM, bias=False), nn.BatchNorm1d(DIM), nn.Linear(DIM, DIM))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return F.normalize(self.head(x.mean(dim=(2, 3))), dim=-1)


class MomentumContrast(TrainModule):
    """Tell the other view of an image from a queue of views of others."""

    def __init__(self, *, queue: int = 32, momentum: float = 0.9) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.momentum_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.momentum = momentum
        self.register_buffer("queue", F.normalize(torch.randn(queue, DIM), dim=-1))
        self.register_buffer("position", torch.zeros(1, dtype=torch.int64))
        self.keys: list[torch.Tensor] = []

    def units(self):
        return [*self.encoder.layers, *self.momentum_encoder.layers]

    def forward(self, batch):
        query = self.encoder(batch.views["query"]["rgb"])
        with torch.no_grad():
            key = self.momentum_encoder(batch.views["key"]["rgb"])
        self.keys.append(key)
        logits = torch.cat([(query * key).sum(1, keepdim=True), query @ self.queue.T.clone()], dim=1) / 0.2
        loss = F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.int64))
        return {"loss": loss, "agreement": (query * key).sum(1).mean().detach()}

    def after_step(self, batches, step):
        assert len(batches) == len(self.keys)
        assert step.number < step.total
        for key, query in zip(self.momentum_encoder.parameters(), self.encoder.parameters(), strict=True):
            key.lerp_(query, 1 - self.momentum)
        for keys in self.keys:  # a micro-batch of all processes, in the order of the samples
            parts = [keys]
            if dist.is_initialized():
                parts = [torch.empty_like(keys) for _ in range(dist.get_world_size())]
                dist.all_gather(parts, keys)
            new = torch.cat(parts)
            places = (self.position + torch.arange(len(new))) % len(self.queue)
            self.queue[places] = new
            self.position += len(new)
        self.keys.clear()


@dataclass(frozen=True, kw_only=True)
class ContrastOptions(RunOptions):
    """A run of 4 steps an epoch. ``poison``: an image that is not a number from the second epoch on."""

    name: str = "contrast"
    batch_size: int = 12
    epochs: int = 3
    ema: float = 0.8
    poison: int | None = None
    precision: str = "fp32"
    log_every: int = 1
    optim: OptimOptions = field(default_factory=lambda: OptimOptions(base_lr=0.2, warmup=0))
    save: SaveOptions = field(default_factory=lambda: SaveOptions(asynchronous=False, every=1000))


class Views(torch.utils.data.Dataset):
    """Two noisy views of every image: functions of the key."""

    def __init__(self, config):
        self.config = config
        generator = torch.Generator().manual_seed(7)
        coarse = torch.randn(IMAGES, 3, 3, 3, generator=generator)
        self.images = F.interpolate(coarse, (SIDE, SIDE), mode="bilinear")

    def __getitems__(self, keys):
        views = {"query": [], "key": []}
        for epoch, _, index in keys:
            generator = torch.Generator().manual_seed(1000 * epoch + index)
            for view in views.values():
                noise = torch.randn(3, SIDE, SIDE, generator=generator)
                broken = index == self.config.poison and epoch > 0
                view.append(self.images[index] + 0.3 * noise + (float("nan") if broken else 0))
        return Batch(
            images={}, bands={"rgb": ("R", "G", "B")}, noise={},
            views={name: {"rgb": torch.stack(view)} for name, view in views.items()},
        )  # fmt: skip


class ContrastRun(TrainRun):
    """A run of :class:`MomentumContrast`."""

    def __init__(self, config, processes):
        self.config, self.processes = config, processes
        self.workers, self.places, self.max_bad_share = 0, IMAGES, 0.0
        torch.manual_seed(config.seed)
        self.objective = MomentumContrast().train()
        set_batch_norm(self.objective, config.batch_norm, config.batch_norm_group)
        self.dataset = Views(config)
        self.plan = BatchPlan(
            lengths=(IMAGES,), repeats=(1,), blocks=(1,), batch_size=config.batch_size, seed=config.seed
        )
        self.total_steps = config.epochs * self.plan.steps_per_epoch
        self.module = parallelize(self.objective, config, processes.device, unused=False)
        self.optimizer = build_optimizer(self.objective, config.optim, config.batch_size)
        start_state(self.objective, self.optimizer)
        self.schedule = build_schedule(self.optimizer, config.optim, self.total_steps)
        self.ema = ParameterEma(self.objective, config.ema) if config.ema else None

    def sources(self):
        return [{"name": "noise", "places": IMAGES}]


def full_state(run):
    """All tensors of a run's module, whole, as every process has them."""
    state = get_model_state_dict(run.module, options=StateDictOptions(full_state_dict=True))
    return {name: value.clone() for name, value in state.items()}


def fit(config, processes):
    """Train a run; save its last state, or its error and the state that it left, beside it."""
    run, error = ContrastRun(config, processes), None
    with RunDir(config.output, processes) as folder, StopSignal() as stop:
        try:
            Trainer(run, folder, stop, max_steps=config.max_steps).fit()
        except TrainingError as problem:
            error = str(problem)
    # Every process's own buffers; parameters are those of all.
    buffers = processes.gather({name: x.clone() for name, x in run.objective.named_buffers()})
    state = full_state(run)
    if processes.is_main_process:
        torch.save({"state": state, "buffers": buffers, "error": error}, config.output / "state.pt")
    return run


def main(file: Path) -> None:
    """Train what the file lists, one run after another."""
    torch.set_num_threads(1)
    processes = init_distributed(60)
    for fields in json.loads(file.read_text()):
        fit(from_json(fields, ContrastOptions), processes)
    destroy(processes)
    end_process()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
