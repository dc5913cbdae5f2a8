"""The command ``pack``: pack training images into shards."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from rsbackbones.cli.options import COUNT, FILE, Command, mapping, names_in, option, progress_option


@click.command(cls=Command)
@click.argument("root", type=FILE)
@option("--output", required=True, type=FILE, metavar="DIR", help="the folder of the shards")
@option("--per-shard", type=COUNT, metavar="N", default=64, help="places per shard")
@option("--max-bad-share", type=click.FloatRange(0, 1, max_open=True), default=0.01, metavar="SHARE",
        help="stop if a larger share of the places cannot be used")  # fmt: skip
@mapping("--bands", form="SENSOR=B02,B03,...", read=lambda text: tuple(names_in(text)), section="Data",
         help="the bands of the files, in order, if the files do not name them; repeatable")  # fmt: skip
@option("--product", section="Data", metavar="NAME",
        help="the Sentinel-2 product of SSL4EO-S12: s2a or s2c; of v1.1 S2L2A or S2L1C")  # fmt: skip
@option("--split", section="Data", metavar="NAME", show_default="train",
        help="the split of SSL4EO-S12 v1.1: train or val")  # fmt: skip
@option("--offset", type=click.Choice(["detect", "none", "subtract"]), section="Data", show_default="detect",
        help="the radiometric offset of SSL4EO-S12 v1.1: subtract 1000 DN from Sentinel-2, or not; detect "
        "decides by the values")  # fmt: skip
@option("--tile", type=COUNT, metavar="PIXELS", section="Data",
        help="cut the images of NAME.npz into tiles of this side")  # fmt: skip
@progress_option
def pack(
    root: Path,
    output: Path,
    per_shard: int,
    max_bad_share: float,
    bands: Mapping[str, tuple[str, ...]],
    product: str | None,
    split: str | None,
    offset: str | None,
    tile: int | None,
    progress: bool,
) -> int:
    """Check training images and pack them into shards.

    Shards are faster to read in pretraining.

    ROOT is SSL4EO-S12 as published, a folder of GeoTIFFs or of series (set.json), or NAME.npz.
    """
    from rsbackbones.data.open import open_source
    from rsbackbones.data.pack import pack as pack_source

    given = {"product": product, "split": split, "offset": offset, "tile": tile, "bands": dict(bands) or None}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    source = open_source(root, **options)
    for note in source.notes:
        print(note, file=sys.stderr)
    report = pack_source(source, output, per_shard=per_shard, max_bad_share=max_bad_share, progress=progress)
    for name, reason in report.bad:
        print(f"left out: {name}: {reason}", file=sys.stderr)
    print(f"{report.folder}: {report.places} places in {report.shards} shards, {report.bytes} bytes")
    return 0
