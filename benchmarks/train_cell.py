"""One variant of the training step, measured in a process of its own.

    python -m benchmarks.train_cell JSON

The JSON is a :class:`Cell`. It is asked (:mod:`benchmarks.processes`) for a training ``step``, and
says its seconds; ``memory`` starts to watch the peak of memory; ``end`` says the peak and, where it is
wanted, what :mod:`benchmarks.operations` finds.
"""

import json
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import croma_plain, memory
from benchmarks.operations import OUR_BIAS, STEP_PARTS, Operations, product_rate, step_part
from benchmarks.processes import serve
from rsbackbones.train.engine.batch import Batch
from rsbackbones.train.engine.config import OptimOptions
from rsbackbones.train.engine.optim import build_optimizer
from rsbackbones.train.objectives.croma import CromaObjective
from rsbackbones.train.objectives.objective import Objective
from rsbackbones.train.recipes import RECIPES
from rsbackbones.zoo.factory import create_model

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


class Step:
    """Forward, backward and AdamW's step of a cell, on one batch of random images and masks."""

    def __init__(self, cell: Cell) -> None:
        torch.manual_seed(cell.seed)
        self.cell = cell
        backbone = create_model(cell.model, image_size=cell.side)
        options = RECIPES[cell.model].objective
        self.model: Objective | croma_plain.PlainPretraining
        if cell.variant == "ours":
            self.model = options.build(backbone).train()
        else:
            assert isinstance(options, CromaObjective)
            self.model = croma_plain.PlainPretraining(backbone.config, options)
        if cell.compiled:
            for block in self.model.units():
                block.compile(dynamic=None)
        self.optimizer = build_optimizer(self.model, OptimOptions(), cell.batch_size)
        patches = (cell.side // backbone.stride) ** 2
        self.batch = Batch(
            images={
                m: torch.rand(cell.batch_size, len(bands), cell.side, cell.side)
                for m, bands in backbone.bands.items()
            },
            bands=dict(backbone.bands),
            noise={f"{m}_noise": torch.rand(cell.batch_size, patches) for m in ("s2", "s1")},
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
        operations = Operations(self.model, STEP_PARTS, step_part)
        bias = OUR_BIAS if self.cell.variant == "ours" else ((croma_plain, "gather_bias"),)
        with operations.following(), operations.counting(bias, "bias"):
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


def main(argument: str) -> None:
    """Build the cell and answer."""
    cell = Cell(**json.loads(argument))
    torch.set_num_threads(cell.threads)
    imported = memory.resident()
    step = Step(cell)

    def answer(what: str) -> dict[str, Any]:
        if what == "step":
            return {"seconds": step.take()}
        if what == "memory":
            memory.forget_peak()
            return {}
        peak = memory.peak()
        said: dict[str, Any] = {
            "memory": None if peak is None or imported is None else peak - imported,
            "parameters": sum(p.numel() for p in step.model.parameters()),
        }
        return said | (step.breakdown() if cell.breakdown else {})

    serve(answer)


if __name__ == "__main__":
    main(sys.argv[1])
