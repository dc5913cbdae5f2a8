"""The command that measures."""

import argparse
from pathlib import Path

from rsbackbones.cli.options import Command


def add(command: Command) -> None:
    """Add the parsers."""
    sub = command("bench", _bench, "measure encoding, or pretraining: its step here, or many GPUs on paper")
    sub.add_argument("what", nargs="?", choices=("encode", "train", "scaling"), default="encode")
    sub.add_argument("--quick", action="store_true", help="encode, train: the small model, a few minutes")
    sub.add_argument(
        "--output", type=Path, default=Path("bench"), metavar="DIR",
        help="encode, train: the folder of WHAT.json, WHAT.md and WHAT.png; default bench",
    )  # fmt: skip
    sub.add_argument(
        "--measured", type=Path, default=Path("benchmarks/scaling.json"), metavar="FILE.json",
        help="scaling: what was measured once; measured and written where it does not exist",
    )  # fmt: skip


def _bench(options: argparse.Namespace) -> int:
    if options.what == "scaling":
        from rsbackbones.bench.scaling import scaling

        print(scaling(options.measured.expanduser()), end="")
        return 0
    if options.what == "train":
        from rsbackbones.bench.train import bench_train as measure
    else:
        from rsbackbones.bench.encode import bench_encode as measure

    print(measure(options.output.expanduser(), quick=options.quick), end="")
    return 0
