"""The command line: ``rsbackbones list | info | bands | download | verify | embed | convert``, and more."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 where a check failed, 2 for an error."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
        return code
    except (ValueError, ImportError, OSError) as error:
        print(f"rsbackbones {options.command}: {error}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        if "memory" not in str(error).lower() and not isinstance(error, MemoryError):
            raise
        print(f"rsbackbones {options.command}: out of memory ({error}); use a smaller --window or "
              "--batch-size", file=sys.stderr)  # fmt: skip
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    from rsbackbones import __version__

    parser = argparse.ArgumentParser(
        prog="rsbackbones", description="Pretrained backbones for remote sensing."
    )
    parser.add_argument("--version", action="version", version=f"rsbackbones {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        added.set_defaults(run=run)
        return added

    sub = command("list", _list, "list the models and the weights that exist for them")
    sub.add_argument("pattern", nargs="?", default="*", help="shell-style pattern, such as 'croma*'")
    sub.add_argument("--json", action="store_true", help="print JSON")

    sub = command("info", _info, "print the card of a model's weights")
    sub.add_argument("name", help="architecture or architecture.tag")

    sub = command("bands", _bands, "print which weights your bands would get; loads nothing")
    sub.add_argument("name", help="architecture or architecture.tag")
    sub.add_argument(
        "--mine", action="append", default=[], metavar="B02,B03,...",
        help="your bands, in order, of the model's first modality, or of another: s1=VV",
    )  # fmt: skip
    sub.add_argument(
        "--sensor", action="append", default=[], metavar="MODALITY=SENSOR",
        help="what your bands are of, where it is another sensor: s2=landsat_oli",
    )  # fmt: skip
    sub.add_argument("--missing", default="error", help="what a band unknown to the weights gets: error, "
                     "nearest, mean, zero or new")  # fmt: skip
    sub.add_argument("--scale", default="count", help="count, sqrt or none")

    sub = command("download", _download, "fetch and verify weights")
    sub.add_argument("name", help="architecture or architecture.tag")
    sub.add_argument("--to", type=Path, metavar="DIR", help="copy them into a folder to carry along")

    sub = command("verify", _verify, "hash, load and run weights, and compare golden activations")
    sub.add_argument("name", help="architecture or architecture.tag")
    sub.add_argument("--checkpoint", type=Path, metavar="DIR", help="a folder made by download --to")

    sub = command("embed", _embed, "turn GeoTIFFs into features")
    sub.add_argument("rasters", nargs="+", type=Path, help="GeoTIFFs, or folders of them")
    sub.add_argument("--model", required=True, help="architecture or architecture.tag")
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

    sub = command("convert", _convert, "convert a checkpoint between layouts")
    sub.add_argument("input", type=Path)
    sub.add_argument("output", type=Path, help="NAME.safetensors (ours), or NAME.pt with --to")
    sub.add_argument("--model", required=True, help="the architecture that the checkpoint holds")
    sub.add_argument("--to", default="rsbackbones", help="a layout: rsbackbones, croma_official, ...")
    sub.add_argument("--flat", action="store_true", help="one flat dictionary where the layout nests")
    sub.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    sub.add_argument("--modalities", help="keep only these sensors, such as s2")
    sub.add_argument("--override", action="append", default=[], metavar="FIELD=VALUE")

    sub = command("pack", _pack, "check training images and pack them into shards")
    sub.add_argument("root", type=Path, help="SSL4EO-S12 as published, a folder of GeoTIFFs, or NAME.npz")
    sub.add_argument("--to", required=True, type=Path, metavar="DIR", help="the folder of the shards")
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
    return parser


def _list(options: argparse.Namespace) -> int:
    from rsbackbones.registry import list_models, list_weights

    names = list_models(options.pattern)
    entries = list_weights(options.pattern)
    if not names and not entries:
        raise ValueError(f"nothing matches {options.pattern!r}; try: rsbackbones list")
    if options.json:
        weights = [
            {"id": e.id, "state": e.state, "license": e.license, "reason": e.source.reason or None,
             "bands": {m: s["bands"] for m, s in e.inputs.items()}}
            for e in entries
        ]  # fmt: skip
        print(json.dumps({"models": names, "weights": weights}, indent=1))
        return 0
    architectures = sorted({*names, *(entry.architecture for entry in entries)})
    for name in architectures:
        print(name)
        for entry in entries:
            if entry.architecture == name:
                bands = ", ".join(f"{m} {len(s['bands'])} bands" for m, s in entry.inputs.items())
                why = f": {entry.source.reason}" if entry.state == "none" else f", {bands}, {entry.license}"
                default = " (default)" if entry.default and entry.state != "none" else ""
                print(f"  {entry.id}{default}  {entry.state}{why}")
    return 0


def _info(options: argparse.Namespace) -> int:
    from rsbackbones.cards import model_card
    from rsbackbones.registry import find_architecture, list_weights

    find_architecture(options.name.partition(".")[0])
    entries = [e for e in list_weights() if options.name in (e.id, e.architecture)]
    if not entries:
        raise ValueError(f"the manifest has no entry {options.name}; see: rsbackbones list")
    print("\n".join(model_card(entry) for entry in entries), end="")
    return 0


def _bands(options: argparse.Namespace) -> int:
    from rsbackbones.factory import plan_adaptation
    from rsbackbones.registry import find_architecture

    if not options.mine and not options.sensor:
        raise ValueError("say which bands are yours: --mine B02,B03,B04,B08, or --sensor s2=landsat_oli")
    first = find_architecture(options.name.partition(".")[0]).config.modalities[0]
    bands: dict[str, list[str]] = {}
    for item in options.mine:
        left, equals, right = item.partition("=")
        bands[left if equals else first] = [band.strip() for band in (right if equals else left).split(",")]
    sensors = {}
    for item in options.sensor:
        modality, equals, sensor = item.partition("=")
        if not equals:
            raise ValueError(f"--sensor takes MODALITY=SENSOR, got {item!r}")
        sensors[modality] = sensor
    print(
        plan_adaptation(
            options.name, sensors=sensors, bands=bands, bands_missing=options.missing,
            bands_scale=options.scale,
        )
    )  # fmt: skip
    return 0


def _download(options: argparse.Namespace) -> int:
    from rsbackbones.manifest import find_entry
    from rsbackbones.weights import download_to, fetch, sha256_of

    entry = find_entry(options.name)
    path = download_to(entry, options.to.expanduser()) if options.to else fetch(entry)
    print(f"{entry.id}: {path}\nsha256 {sha256_of(path)}, {path.stat().st_size} bytes, as pinned")
    if options.to:
        print(f"use it with checkpoint={str(options.to)!r}, or with RSBACKBONES_WEIGHTS={options.to}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from rsbackbones.factory import create_model
    from rsbackbones.golden import compare_golden
    from rsbackbones.manifest import find_entry
    from rsbackbones.weights import fetch, sha256_of

    entry = find_entry(options.name)
    path = fetch(entry, options.checkpoint)
    pinned = "in full" if entry.sha256 else f"in the published prefix {entry.sha256_prefix}"
    print(f"{entry.id}: {path}")
    print(f"bytes: sha256 {sha256_of(path)}, as pinned {pinned}")
    model = create_model(entry.id, True, checkpoint=options.checkpoint)
    print(f"tensors: {len(model.state_dict())}, all finite, names, shapes and types as the model has")
    if entry.golden is None:
        print("features: not compared, the manifest records no golden activations for this entry")
        return 0
    if problems := compare_golden(model, entry.golden):
        print("features: NOT those recorded\n  " + "\n  ".join(problems))
        return 1
    print(f"features: within {entry.golden['tolerance']} of the golden activations")
    return 0


def _embed(options: argparse.Namespace) -> int:
    import torch

    from rsbackbones.embed import embed_patches, embed_scene
    from rsbackbones.factory import create_model
    from rsbackbones.preprocess import create_preprocess
    from rsbackbones.rasters import find_bands
    from rsbackbones.registry import find_architecture, list_weights

    config = find_architecture(options.model.partition(".")[0]).config
    if options.output.suffix.lower() not in (".tif", ".tiff", ".npz", ".parquet"):
        raise ValueError(f"--output is a .tif, .npz or .parquet, got {options.output}")
    if not options.output.parent.is_dir():
        raise ValueError(f"there is no folder {options.output.parent} to write {options.output.name} to")
    paths = _expand(options.rasters)
    names = _band_names(options.bands, paths)
    given = [name.strip() for name in options.modalities.split(",")] if options.modalities else None
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
        "overrides": _fields(options.override),
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
    lists = [[band.strip() for band in item.split(",")] for item in given]
    if len(lists) == 1:
        return lists * len(paths)
    if len(lists) != len(paths):
        raise ValueError(
            f"--bands was given {len(lists)} times for {len(paths)} rasters; once, or once per raster"
        )
    return lists


def _fields(items: Sequence[str]) -> dict[str, Any]:
    """Read FIELD=VALUE items; a value is JSON, or else a string."""
    fields: dict[str, Any] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"--override takes FIELD=VALUE, got {item!r}")
        try:
            fields[name] = json.loads(value)
        except json.JSONDecodeError:
            fields[name] = value
    return fields


def _convert(options: argparse.Namespace) -> int:
    import torch

    from rsbackbones.factory import create_model
    from rsbackbones.saving import save_foreign, save_model

    if options.input.is_dir():
        raise ValueError(f"{options.input} is a folder; name the checkpoint file")
    modalities = [m.strip() for m in options.modalities.split(",")] if options.modalities else None
    model = create_model(
        options.model,
        checkpoint=options.input,
        modalities=modalities,
        num_classes=None,
        overrides=_fields(options.override),
    )
    if options.to == "rsbackbones":
        save_model(model, options.output, dtype=getattr(torch, options.dtype))
    else:
        if options.dtype != "float32":
            raise ValueError(f"--dtype {options.dtype} goes with --to rsbackbones")
        save_foreign(model, options.output, options.to, flat=options.flat)
    print(options.output)
    if model.adaptation:
        print(model.adaptation, file=sys.stderr)
    return 0


def _pack(options: argparse.Namespace) -> int:
    from rsbackbones.train.data.open import open_source
    from rsbackbones.train.data.pack import pack

    given = {name: getattr(options, name) for name in ("product", "split", "offset", "tile")}
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    for item in options.bands:
        sensor, equals, names = item.partition("=")
        if not equals:
            raise ValueError(f"--bands takes SENSOR=B02,B03,..., got {item!r}")
        chosen.setdefault("bands", {})[sensor] = tuple(name.strip() for name in names.split(","))
    source = open_source(options.root, **chosen)
    for note in source.notes:
        print(note, file=sys.stderr)
    report = pack(
        source, options.to, per_shard=options.per_shard, max_bad_share=options.max_bad_share,
        progress=not options.quiet,
    )  # fmt: skip
    for name, reason in report.bad:
        print(f"left out: {name}: {reason}", file=sys.stderr)
    print(f"{report.folder}: {report.places} places in {report.shards} shards, {report.bytes} bytes")
    return 0


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


if __name__ == "__main__":
    sys.exit(main())
