"""The command that turns GeoTIFFs into features."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rsbackbones.cli.options import Command, fields_of, names_in


def add(command: Command) -> None:
    """Add the parsers."""
    sub = command("embed", _embed, "turn GeoTIFFs into features")
    sub.add_argument("rasters", nargs="+", type=Path, help="GeoTIFFs, or folders of them")
    sub.add_argument("--model", required=True, help="architecture, architecture.tag or hf-hub:ORG/NAME")
    sub.add_argument(
        "--output", required=True, type=Path,
        help="NAME.tif: feature map of one scene; NAME.npz or NAME.parquet: an embedding per patch file",
    )  # fmt: skip
    sub.add_argument(
        "--bands", action="append", metavar="B02,B03,...",
        help="the bands of the rasters, in order; once for all, or once per raster",
    )  # fmt: skip
    sub.add_argument("--modalities", help="sensors to use, such as s2 or s2,s1; default all found")
    sub.add_argument(
        "--allow-missing-bands", action="store_true",
        help="leave out the weights of bands that the rasters lack",
    )  # fmt: skip
    sub.add_argument(
        "--units", action="append", default=[], metavar="SENSOR=UNIT",
        help="unit of the values, such as s2=reflectance, s2=dn+1000 or s1=linear",
    )  # fmt: skip
    sub.add_argument("--nodata", type=float, help="value without data, where the files do not say")
    weights = sub.add_mutually_exclusive_group()
    weights.add_argument("--random-weights", action="store_true", help="use random weights, seed 0")
    weights.add_argument("--checkpoint", type=Path, help="a local checkpoint, or a download folder")
    sub.add_argument("--override", action="append", default=[], metavar="FIELD=VALUE")
    sub.add_argument("--stream", help="s2, s1 or joint; default joint where there is one")
    sub.add_argument("--window", type=int, help="side of a window in pixels")
    sub.add_argument("--overlap", type=int, help="overlap of windows in pixels")
    sub.add_argument("--batch-size", type=int, default=8)
    sub.add_argument("--device", default="cpu")
    sub.add_argument("--skip-nodata", action="store_true", help="leave out patches with missing pixels")
    sub.add_argument("--quiet", action="store_true", help="no progress bar")


def _embed(options: argparse.Namespace) -> int:
    import torch

    from rsbackbones.embed import embed_patches, embed_scene
    from rsbackbones.factory import create_model
    from rsbackbones.names import architecture_named
    from rsbackbones.preprocess import create_preprocess
    from rsbackbones.rasters import find_bands
    from rsbackbones.registry import list_weights

    config = architecture_named(options.model).config
    if options.output.suffix.lower() not in (".tif", ".tiff", ".npz", ".parquet"):
        raise ValueError(f"--output is a .tif, .npz or .parquet, got {options.output}")
    if not options.output.parent.is_dir():
        raise ValueError(f"there is no folder {options.output.parent} to write {options.output.name} to")
    paths = _expand(options.rasters)
    names = _band_names(options.bands, paths)
    given = names_in(options.modalities) if options.modalities else None
    wanted = tuple(given or config.modalities)
    if unknown := [m for m in wanted if m not in config.modalities]:
        raise ValueError(f"{options.model} takes {', '.join(config.modalities)}, not {', '.join(unknown)}")
    held: dict[str, set[str]] = {}
    used: list[tuple[Path, list[str] | None]] = []
    for path, name in zip(paths, names, strict=True):
        if not set(find_bands(path, config.modalities, name)[0]) & set(wanted):
            print(f"{path.name}: left out, it holds no bands of {', '.join(wanted)}", file=sys.stderr)
            continue
        found, ignored = find_bands(path, wanted, name)
        used.append((path, name))
        for modality, bands in found.items():
            held.setdefault(modality, set()).update(bands)
        if ignored and options.output.suffix.lower() in (".tif", ".tiff"):
            print(f"{path.name}: not used: {', '.join(ignored)}", file=sys.stderr)
    paths, names = [path for path, _ in used], [name for _, name in used]
    modalities = tuple(m for m in wanted if m in held)
    if options.modalities and modalities != wanted:
        raise ValueError(f"no raster holds bands of {', '.join(m for m in wanted if m not in held)}")

    torch.manual_seed(0)
    arguments: dict[str, Any] = {
        "pretrained": not options.random_weights and options.checkpoint is None,
        "checkpoint": options.checkpoint,
        "modalities": modalities,
        "overrides": fields_of(options.override),
    }
    name = options.model
    if options.random_weights and "." in name:  # weights that exist need not be used, but must exist
        if not list_weights(name):
            raise ValueError(f"there are no weights {name}; see: rsbackbones list")
        name = name.partition(".")[0]
    model = create_model(name, **arguments)
    lacking = {m: [b for b in model.bands[m] if b not in held[m]] for m in modalities}
    if any(lacking.values()):
        text = "; ".join(f"{m} {', '.join(bands)}" for m, bands in lacking.items() if bands)
        if not options.allow_missing_bands:
            raise ValueError(
                f"the rasters lack bands that the model takes: {text}. Add --allow-missing-bands to leave "
                "the weights of these bands out"
            )
        kept = {m: [b for b in model.bands[m] if b in held[m]] for m in modalities}
        torch.manual_seed(0)
        model = create_model(name, **arguments, bands=kept)
    try:
        model.to(options.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {options.device}: {str(error).splitlines()[0]}") from error
    if options.random_weights:
        print("weights: RANDOM (seed 0); the features mean nothing", file=sys.stderr)
    else:
        which = model.weights_entry.id if model.weights_entry else options.checkpoint
        print(f"weights: {which}", file=sys.stderr)
    if model.adaptation:
        print(model.adaptation, file=sys.stderr)

    contract = create_preprocess(model).specs
    if "B10" in held.get("s2", ()) and "B10" not in model.bands["s2"] and contract["s2"].product == "L2A":
        print(
            "note: the band B10 is only in L1C products, and the weights expect L2A (surface reflectance); "
            "B10 is not used, and features may be off",
            file=sys.stderr,
        )
    units = dict(item.split("=", 1) if "=" in item else (item, "") for item in options.units)
    common: dict[str, Any] = {
        "names": names, "units": units, "nodata": options.nodata, "batch_size": options.batch_size,
        "progress": not options.quiet,
    }  # fmt: skip
    if options.output.suffix.lower() in (".tif", ".tiff"):
        embed_scene(
            model, paths, options.output, stream=options.stream, window=options.window,
            overlap=options.overlap, **common,
        )  # fmt: skip
        print(f"{options.output}\n{options.output.with_suffix('.png')}")
    else:
        skipped = embed_patches(model, paths, options.output, skip_nodata=options.skip_nodata, **common)
        print(options.output)
        for path in skipped:
            print(f"left out, pixels without data: {path}", file=sys.stderr)
    return 0


def _expand(paths: Sequence[Path]) -> list[Path]:
    """Replace folders by the GeoTIFFs in them, in order of name."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in (".tif", ".tiff"))
            if not inside:
                raise ValueError(f"there is no .tif in the folder {path}")
            found += inside
        else:
            found.append(path)
    return found


def _band_names(given: Sequence[str] | None, paths: Sequence[Path]) -> Sequence[list[str] | None]:
    if not given:
        return [None] * len(paths)
    lists = [names_in(item) for item in given]
    if len(lists) == 1:
        return lists * len(paths)
    if len(lists) != len(paths):
        raise ValueError(
            f"--bands was given {len(lists)} times for {len(paths)} rasters; once, or once per raster"
        )
    return lists
