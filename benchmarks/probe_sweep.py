"""All learning rates of a probe at once against one after another: the same probes, in a share of the time.

    python -m benchmarks.probe_sweep [--output JSON]

Features are drawn: 200 and 4,000 samples, of 96 and of 768 dimensions, ten classes that overlap. *One by one*
trains the 27 rates in turn, by our own code with a single rate and as torch's layers and optimizer do it
(`torch.nn.Linear`, `torch.optim.AdamW`). Five epochs of each; whole probes take 105.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

from rsbackbones.eval.feature_table import FeatureTable
from rsbackbones.eval.linear_probe import ProbeOptions, ProbeType, train_probes
from rsbackbones.files.atomic import write_text
from rsbackbones.files.environment import environment
from rsbackbones.files.markdown import markdown_table

CLASSES, REPEATS = 10, 3
CASES: tuple[tuple[ProbeType, int, int], ...] = (
    ("linear", 200, 96), ("linear", 4000, 96), ("linear", 4000, 768), ("mlp", 200, 96), ("mlp", 4000, 96),
)  # fmt: skip
OPTIONS = ProbeOptions(warmup=1, epochs=4)


def samples(count: int, dim: int) -> FeatureTable:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, CLASSES, count)
    return FeatureTable(
        (draw.normal(size=(count, dim)) + np.eye(CLASSES, dim)[labels]).astype(np.float32), labels
    )


def ours(train: FeatureTable, kind: ProbeType, rates: tuple[float, ...]) -> None:
    """Train a probe for each rate, at once."""
    train_probes(train, classes=CLASSES, kind=kind, options=replace(OPTIONS, rates=rates))


def plain(train: FeatureTable, kind: ProbeType, rate: float) -> None:
    """Train one probe with torch's own parts."""
    sizes = [train.features.shape[1], *([OPTIONS.hidden] if kind == "mlp" else []), CLASSES]
    parts = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    model = nn.Sequential(*[m for part in parts for m in (part, nn.ReLU())][:-1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=OPTIONS.weight_decay)
    x, y = torch.from_numpy(train.features), torch.from_numpy(train.labels)
    for _ in range(OPTIONS.warmup + OPTIONS.epochs):
        for rows in torch.randperm(len(x)).split(OPTIONS.batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()


def seconds(runs: Sequence[Callable[[], None]]) -> float:
    start = time.perf_counter()
    for run in runs:
        run()
    return time.perf_counter() - start


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows, cells = [], []
    for kind, count, dim in CASES:
        train = samples(count, dim)
        ways: dict[str, list[Callable[[], None]]] = {
            "at_once": [partial(ours, train, kind, OPTIONS.rates)],
            "ours_one_by_one": [partial(ours, train, kind, (rate,)) for rate in OPTIONS.rates],
            "torch_one_by_one": [partial(plain, train, kind, rate) for rate in OPTIONS.rates],
        }
        # Taken in turn, the fastest of each: what else runs on the machine hits all alike.
        times = {name: min(seconds(runs) for _ in range(REPEATS)) for name, runs in ways.items()}
        rows.append({"kind": kind, "samples": count, "dimensions": dim, "seconds": times})
        ratios = [times[name] / times["at_once"] for name in ("ours_one_by_one", "torch_one_by_one")]
        slower = [f"{ratio:.1f} x" for ratio in ratios]
        cells.append([kind, f"{count}", f"{dim}", f"{times['at_once']:.2f}", *slower])
    names = ("probe", "samples", "dimensions", "at once, s", "ours one by one", "torch's one by one")
    print(markdown_table(names, cells, "lrrrrr"))
    if options.output:
        found = {"environment": environment(), "repeats": REPEATS, "rows": rows}
        write_text(options.output, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
