"""The command that packs training images into shards."""

import argparse
import sys
from pathlib import Path
from typing import Any

from rsbackbones.cli.options import Command, names_in, parse_pair


def add(command: Command) -> None:
    """Add the parsers."""
    sub = command("pack", _pack, "check training images and pack them into shards")
    sub.add_argument("root", type=Path, help="SSL4EO-S12 as published, a folder of GeoTIFFs, or NAME.npz")
    sub.add_argument("--output", required=True, type=Path, metavar="DIR", help="the folder of the shards")
    sub.add_argument("--per-shard", type=int, default=64, metavar="N", help="places per shard, default 64")
    sub.add_argument(
        "--max-bad-share", type=float, default=0.01, metavar="SHARE",
        help="give up if a larger share of the places cannot be used, default 0.01",
    )  # fmt: skip
    sub.add_argument(
        "--bands", action="append", default=[], metavar="SENSOR=B02,B03,...",
        help="the bands of the files, in order, where they do not name them",
    )  # fmt: skip
    sub.add_argument("--product", help="the Sentinel-2 product: s2a or s2c; S2L2A or S2L1C (v1.1)")
    sub.add_argument("--split", help="SSL4EO-S12 v1.1: train (default) or val")
    sub.add_argument(
        "--offset", choices=("detect", "none", "subtract"),
        help="SSL4EO-S12 v1.1: subtract 1000 DN from Sentinel-2; default: detect from the values",
    )  # fmt: skip
    sub.add_argument("--tile", type=int, metavar="PIXELS", help="NAME.npz: cut the images into tiles")
    sub.add_argument("--quiet", action="store_true", help="no progress bar")


def _pack(options: argparse.Namespace) -> int:
    from rsbackbones.data.open import open_source
    from rsbackbones.data.pack import pack

    given = {name: getattr(options, name) for name in ("product", "split", "offset", "tile")}
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    for item in options.bands:
        sensor, names = parse_pair(item, "--bands", "SENSOR=B02,B03,...")
        chosen.setdefault("bands", {})[sensor] = tuple(names_in(names))
    source = open_source(options.root, **chosen)
    for note in source.notes:
        print(note, file=sys.stderr)
    report = pack(
        source, options.output, per_shard=options.per_shard, max_bad_share=options.max_bad_share,
        progress=not options.quiet,
    )  # fmt: skip
    for name, reason in report.bad:
        print(f"left out: {name}: {reason}", file=sys.stderr)
    print(f"{report.folder}: {report.places} places in {report.shards} shards, {report.bytes} bytes")
    return 0
