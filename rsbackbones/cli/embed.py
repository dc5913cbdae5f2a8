"""The command ``embed``: compute features of GeoTIFFs."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rsbackbones.cli.options import Command, add_band_options, band_rules, fields_of, names_in, parse_pair


def add(command: Command) -> None:
    """Add the parsers."""
    sub = command("embed", _embed, "compute features of GeoTIFFs")
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
    sub.add_argument("--modalities", help="sensors to use, such as s2 or s2,s1; default all in the rasters")
    add_band_options(sub)
    sub.add_argument(
        "--allow-dropped-bands", action="store_true",
        help="drop the weights of bands that the rasters lack; not needed with another --sensor. (Bands of "
        "the rasters without a match in the weights are another case: they are not used, or with another "
        "--sensor refused, unless you pass --missing-bands)",
    )  # fmt: skip
    sub.add_argument(
        "--units", action="append", default=[], metavar="SENSOR=UNIT",
        help="unit of the values: s2=reflectance, s2=dn_baseline_0400, s1=linear or "
        "s2=uint8_rgb (8-bit pictures)",
    )  # fmt: skip
    sub.add_argument(
        "--nodata", type=float, help="the value of pixels without data, if the files do not state it"
    )
    weights = sub.add_mutually_exclusive_group()
    weights.add_argument("--random-weights", action="store_true", help="use random weights, seed 0")
    weights.add_argument("--checkpoint", type=Path, help="a local checkpoint, or a download folder")
    sub.add_argument("--override", action="append", default=[], metavar="FIELD=VALUE")
    sub.add_argument("--stream", help="s2, s1 or joint; default joint if the model has it")
    sub.add_argument("--window", type=int, help="side of a window in pixels")
    sub.add_argument("--overlap", type=int, help="overlap of windows in pixels")
    sub.add_argument(
        "--pad", action="store_true",
        help="pad sides that are not multiples of the patch size; default: refuse patch files, crop scenes",
    )  # fmt: skip
    sub.add_argument("--batch-size", type=int, default=8)
    sub.add_argument("--device", default="cpu")
    sub.add_argument("--skip-nodata", action="store_true", help="skip patches with missing pixels")
    sub.add_argument("--quiet", action="store_true", help="no progress bar")


def _embed(options: argparse.Namespace) -> int:
    import torch

    from rsbackbones.embed import embed_patches, embed_scene
    from rsbackbones.sensors import UINT8_RGB, get_sensor
    from rsbackbones.zoo.factory import create_model, weights_config
    from rsbackbones.zoo.registry import resolve_random_init

    if options.output.suffix.lower() not in (".tif", ".tiff", ".npz", ".parquet"):
        raise ValueError(f"--output must end in .tif, .npz or .parquet, got {options.output}")
    if not options.output.parent.is_dir():
        raise ValueError(f"there is no folder {options.output.parent} to write {options.output.name} to")
    name = resolve_random_init(options.model) if options.random_weights else options.model
    weights: dict[str, Any] = {
        "pretrained": not options.random_weights and options.checkpoint is None,
        "checkpoint": options.checkpoint,
        "overrides": fields_of(options.override),
    }
    rules = band_rules(options)  # first: weights may be of a sensor that a file describes
    config = weights_config(name, **weights)
    units = dict(parse_pair(item, "--units", "SENSOR=UNIT") for item in options.units)
    asked = names_in(options.modalities) if options.modalities else []
    if unknown := [m for m in (*asked, *rules["sensors"]) if m not in config.modalities]:
        raise ValueError(f"{options.model} takes {', '.join(config.modalities)}, not {', '.join(unknown)}")
    sensors = {m: config.sensors[m] for m in config.modalities} | rules["sensors"]
    files = _find(options, sensors, asked or config.modalities, units)
    held = {m: {b for file in files for b in file.bands.get(m, ())} for m in sensors}
    modalities = [m for m in asked or config.modalities if held[m]]
    if lacking := [m for m in (*asked, *rules["sensors"]) if m not in modalities]:
        of = ", ".join(m if sensors[m] == m else f"{m} ({sensors[m]})" for m in lacking)
        raise ValueError(f"no raster holds bands of {of}")

    torch.manual_seed(0)
    model = create_model(
        name, **weights, **rules, modalities=modalities, pad=options.pad,
        bands=_model_bands(options, config, {m: sensors[m] for m in modalities}, held),
    )  # fmt: skip
    try:
        model.to(options.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {options.device}: {str(error).splitlines()[0]}") from error
    if options.random_weights:
        print("weights: RANDOM (seed 0); the features are meaningless", file=sys.stderr)
    else:
        which = model.weights_entry.id if model.weights_entry else options.checkpoint
        print(f"weights: {which}", file=sys.stderr)
    if model.adaptation:
        print(model.adaptation, file=sys.stderr)
    for m, bands in model.bands.items():
        print(f"{m}: read as {get_sensor(sensors[m]).title}: {', '.join(bands)}", file=sys.stderr)
    _warn_unused(files, model.bands)
    product = model.inputs["s2"].product if "s2" in model.inputs else ""
    if (
        sensors.get("s2") == "s2" and "B10" in held["s2"] and "s2" in model.bands and product == "L2A"
        and "B10" not in model.bands["s2"] and units.get("s2") != UINT8_RGB
    ):  # fmt: skip
        print(
            "note: band B10 exists only in L1C products, but the weights expect L2A (surface reflectance); "
            "B10 is not used, and features may be worse",
            file=sys.stderr,
        )
    paths = [file.path for file in files]
    common: dict[str, Any] = {
        "names": [file.names for file in files], "units": units, "nodata": options.nodata,
        "batch_size": options.batch_size, "progress": not options.quiet,
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


class _File(NamedTuple):
    """A raster, its band names from the user, its bands by modality, and its other bands."""

    path: Path
    names: list[str] | None
    bands: Mapping[str, Sequence[str]]
    ignored: Sequence[str]


def _find(
    options: argparse.Namespace,
    sensors: Mapping[str, str],
    wanted: Sequence[str],
    units: Mapping[str, str],
) -> list[_File]:
    """Find the bands of the ``wanted`` modalities in the rasters. Report rasters without any."""
    from rsbackbones.data.rasters import find_bands

    paths = _expand(options.rasters)
    files = []
    for path, names in zip(paths, _band_names(options.bands, paths), strict=True):
        if not set(find_bands(path, sensors, names, units=units)[0]) & set(wanted):
            print(f"{path.name}: left out, it holds no bands of {', '.join(wanted)}", file=sys.stderr)
            continue
        found, ignored = find_bands(path, {m: sensors[m] for m in wanted}, names, units=units)
        files.append(_File(path, names, {m: tuple(bands) for m, bands in found.items()}, ignored))
    return files


def _model_bands(
    options: argparse.Namespace, config: Any, sensors: Mapping[str, str], held: Mapping[str, set[str]]
) -> dict[str, list[str]]:
    """Return the bands to build the model for, among those of the rasters.

    For the pretrained sensor these are the pretrained bands, and with --missing-bands also bands without a
    match. For another sensor these are all bands in the rasters.
    """
    from rsbackbones.sensors import get_sensor

    chosen, lacking = {}, []
    for m, sensor in sensors.items():
        every = [band.name for band in get_sensor(sensor).bands]
        pretrained = list(config.bands[m]) if sensor == config.sensors[m] else []
        only_matched = pretrained and options.missing_bands == "error"
        more = [] if only_matched else [b for b in every if b not in pretrained]
        chosen[m] = [b for b in (*pretrained, *more) if b in held[m]]
        if absent := [b for b in pretrained if b not in held[m]]:
            lacking.append(f"{m} {', '.join(absent)}")
        if not chosen[m]:
            raise ValueError(
                f"{m}: {options.model} takes {', '.join(pretrained)} of {sensor}, and the rasters hold "
                f"{', '.join(b for b in every if b in held[m])}; choose a rule: --missing-bands nearest"
            )
    if lacking and not options.allow_dropped_bands:
        first = next(iter(sensors))
        raise ValueError(
            f"the rasters lack bands that the model takes: {'; '.join(lacking)}. Pass --allow-dropped-bands "
            "to drop the weights of these bands, or the sensor of the rasters, if it is another one: "
            f"--sensor {first}=landsat_oli"
        )
    return chosen


def _warn_unused(files: Sequence[_File], used: Mapping[str, Sequence[str]]) -> None:
    """Print the bands of the rasters that are not used, once for all rasters with the same ones."""
    alike: dict[str, list[str]] = {}
    for file in files:
        idle = [b for m, bands in file.bands.items() for b in bands if b not in used[m]]
        if unused := [*idle, *file.ignored]:
            alike.setdefault(", ".join(unused), []).append(file.path.name)
    for bands, (first, *others) in alike.items():
        rest = f" and {len(others)} more" if others else ""
        print(f"{first}{rest}: not used: {bands}", file=sys.stderr)


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
