"""S4's contrast of one size, measured in a process of its own: ``python -m benchmarks.space_time_cell JSON``.

The JSON is a :class:`Cell`. Every line that it is asked (:mod:`benchmarks.processes`) is one loss with its
gradients; the answer is the memory over the inputs, in bytes, and the CPU seconds.
"""

import json
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import memory
from benchmarks.processes import serve
from rsbackbones.train.objectives.space_time import space_time_contrast


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A series of so many ``frames`` of the bottleneck, of ``side`` x ``side`` cells and ``width`` channels.

    ``chunk``: as for :func:`space_time_contrast`.
    """

    frames: int
    side: int
    width: int
    chunk: int | None


def main() -> None:
    """Answer until the end."""
    cell = Cell(**json.loads(sys.argv[1]))
    torch.manual_seed(0)
    shape = (1, cell.width, cell.frames, cell.side, cell.side)
    maps = [torch.randn(shape, requires_grad=True) for _ in range(2)]

    def answer(_: str) -> dict[str, Any]:
        for z in maps:
            z.grad = None
        memory.give_back()
        memory.forget_peak()
        held, began = memory.resident(), time.process_time()
        loss = space_time_contrast(maps[0], maps[1], chunk=cell.chunk)
        loss.backward()
        seconds, most = time.process_time() - began, memory.peak()
        assert held is not None
        assert most is not None
        return {"bytes": most - held, "seconds": seconds, "loss": loss.item()}

    serve(answer)


if __name__ == "__main__":
    main()
