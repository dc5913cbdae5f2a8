"""One variant of the training step, measured in a process of its own.

    python -m rsbackbones.bench.cell JSON

The JSON is a :class:`Cell`. Each line on stdin is answered by a JSON line on stdout: ``step`` takes a
training step and says its seconds, ``memory`` starts to watch the peak of memory, ``end`` says the peak and,
where it is wanted, what :mod:`rsbackbones.bench.operations` finds; then the process ends.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rsbackbones.bench import croma_plain
from rsbackbones.bench.operations import Operations, product_rate
from rsbackbones.factory import create_model
from rsbackbones.models import croma
from rsbackbones.train.data.batch import Batch
from rsbackbones.train.optim import build_optimizer
from rsbackbones.train.parallel import blocks_of
from rsbackbones.train.recipe import OptimOptions
from rsbackbones.train.recipes import RECIPES

VARIANTS = ("ours", "published")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A variant: ``ours`` or ``published``; ``fp32`` or ``bf16`` (autocast); eager or compiled by blocks.

    The objective is that of the recipe ``model``; ``published`` has its mask ratio and decoder.
    """

    variant: str
    precision: str
    compiled: bool
    model: str
    batch_size: int
    side: int
    threads: int
    seed: int
    breakdown: bool

    def argument(self) -> str:
        """Return it as the command line takes it."""
        return json.dumps(asdict(self))


class Step:
    """Forward, backward and AdamW's step of a cell, on one batch of random images and masks."""

    def __init__(self, cell: Cell) -> None:
        torch.manual_seed(cell.seed)
        self.cell = cell
        backbone = create_model(cell.model, image_size=cell.side)
        options = RECIPES[cell.model].objective
        self.model: nn.Module
        if cell.variant == "ours":
            self.model = options.build(backbone).train()
        else:
            self.model = croma_plain.PlainPretraining(backbone.config, options)
        if cell.compiled:
            for block in blocks_of(self.model):
                block.compile(dynamic=None)
        self.optimizer = build_optimizer(self.model, OptimOptions(), cell.batch_size)
        patches = (cell.side // backbone.patch_size) ** 2
        self.batch = Batch(
            images={
                m: torch.rand(cell.batch_size, len(bands), cell.side, cell.side)
                for m, bands in backbone.bands.items()
            },
            bands=dict(backbone.bands),
            draws={f"{m}_noise": torch.rand(cell.batch_size, patches) for m in ("s2", "s1")},
        )

    def forward_backward(self) -> float:
        """Compute the gradients; return the loss."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.cell.precision == "bf16"):
            loss = self.model(self.batch)["loss"]
        loss.backward()
        value: float = loss.item()
        return value

    def update(self) -> None:
        """Take the optimizer's step."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def take(self) -> float:
        """Take a whole step and return its seconds."""
        began = time.perf_counter()
        self.forward_backward()
        self.update()
        return time.perf_counter() - began

    def breakdown(self) -> dict[str, Any]:
        """Return the seconds of a step by part, its FLOPs, and the rate of its matrix products alone."""
        operations = Operations(self.model)

        def counted(function: Any) -> Any:
            def call(*args: Any, **options: Any) -> Any:
                with operations.inside("bias"):
                    return function(*args, **options)

            return call

        module, name = (croma, "alibi_bias") if self.cell.variant == "ours" else (croma_plain, "gather_bias")
        with operations.following(), mock.patch.object(module, name, counted(getattr(module, name))):
            self.forward_backward()
            with operations.inside("optimizer"):
                began = time.perf_counter()
                self.update()
                optimizer = time.perf_counter() - began
        with FlopCounterMode(display=False) as counter:
            self.forward_backward()
        self.update()
        return {
            "seconds": operations.seconds | {"optimizer": optimizer},
            "flops": counter.get_total_flops(),
            "products_flop_per_s": product_rate(operations.products),
        }


def _status(name: str) -> int | None:
    """Return a line of Linux's status of this process, in bytes: VmRSS is the memory now, VmHWM its peak."""
    path = Path("/proc/self/status")
    if not path.exists():
        return None
    lines = path.read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _forget_peak() -> None:
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5", encoding="utf-8")


def main(argument: str) -> None:
    """Build the cell and obey stdin."""
    cell = Cell(**json.loads(argument))
    torch.set_num_threads(cell.threads)
    imported = _status("VmRSS")
    step = Step(cell)
    for line in sys.stdin:
        answer: dict[str, Any] = {}
        if line.strip() == "step":
            answer = {"seconds": step.take()}
        elif line.strip() == "memory":
            _forget_peak()
        else:
            peak = _status("VmHWM")
            answer["memory"] = None if peak is None or imported is None else peak - imported
            answer["parameters"] = sum(p.numel() for p in step.model.parameters())
            if cell.breakdown:
                answer |= step.breakdown()
        print(json.dumps(answer), flush=True)
        if line.strip() == "end":
            return


if __name__ == "__main__":
    main(sys.argv[1])
