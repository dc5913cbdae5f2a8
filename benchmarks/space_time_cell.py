"""S4's contrast measured in a process of its own: ``python -m benchmarks.space_time_cell ROUNDS``.

Every round computes one loss with its gradients by chunks and one with all anchors at once. A line of JSON
for each has the ``positions``, the ``chunk``, the ``bytes`` over the inputs, and the CPU ``seconds``.
"""

import json
import sys
import time
from typing import Any

import torch

from benchmarks import memory
from rsbackbones.train.objectives.space_time import space_time_contrast

# Frames of the bottleneck of series of 32 and 60 dates; 128 x 128 pixels are 32 x 32 cells of 128 channels.
FRAMES, SIDE, WIDTH, CHUNK = (8, 15), 32, 128, 1024


def measure(frames: int, chunk: int | None) -> dict[str, Any]:
    """Return what one series takes."""
    torch.manual_seed(0)
    maps = [torch.randn(1, WIDTH, frames, SIDE, SIDE, requires_grad=True) for _ in range(2)]
    memory.give_back()
    memory.forget_peak()
    held, began = memory.resident(), time.process_time()
    loss = space_time_contrast(maps[0], maps[1], chunk=chunk)
    loss.backward()
    seconds, most = time.process_time() - began, memory.peak()
    assert held is not None
    assert most is not None
    return {
        "positions": frames * SIDE * SIDE, "chunk": chunk, "bytes": most - held, "seconds": seconds,
        "loss": loss.item(),
    }  # fmt: skip


def main() -> None:
    """Measure so many rounds."""
    for frames in FRAMES:
        for _ in range(int(sys.argv[1])):
            for chunk in (CHUNK, None):
                print(json.dumps(measure(frames, chunk)), flush=True)


if __name__ == "__main__":
    main()
