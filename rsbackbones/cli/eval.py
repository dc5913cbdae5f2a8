"""The command that evaluates frozen features."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from rsbackbones.cli.options import (
    Command,
    add_band_options,
    band_rules,
    classes_in,
    fields_of,
    names_in,
    parse_pair,
)


def add(command: Command) -> None:
    """Add the parser."""
    sub = command("eval", _eval, "evaluate frozen features on labelled images")
    sub.add_argument(
        "protocols",
        help="knn, kmeans, linear, mlp, sparse or logistic, separated by commas, or all of these; also "
        "invariance, patches, positions or extrapolation",
    )
    sub.add_argument("--model", required=True, help="architecture, architecture.tag or hf-hub:ORG/NAME")
    sub.add_argument(
        "--data", required=True,
        help="a folder of class folders of JPEG, PNG or GeoTIFF; a CSV beside GeoTIFFs; NAME.npz; NAME.yaml "
        "that describes one; or torchgeo:NAME with --root",
    )  # fmt: skip
    sub.add_argument("--output", required=True, type=Path, metavar="DIR", help="the folder of the results")
    sub.add_argument("--root", type=Path, help="the folder of a torchgeo data set")
    sub.add_argument("--ids", type=Path, metavar="FILE", help="a list of ids with their splits (id,train)")
    sub.add_argument("--subset", type=float, metavar="SHARE", help="train on this share, such as 0.1")
    sub.add_argument(
        "--classes", metavar="NAME,...",
        help="names of the labels 0, 1, ...; or NAME=CODE,NAME=CODE+CODE,...: the labels of each "
        "class; other labels are ignored",
    )  # fmt: skip
    sub.add_argument("--ignore", metavar="NUMBER,...", help="label values to ignore, such as 255")
    sub.add_argument("--seeds", default="0", help="seeds of splits, probes and random weights, such as 0,1,2")
    sub.add_argument("--streams", help="such as s2,s1,joint,s2+joint; default: each, and all together")
    sub.add_argument("--pool", default="pooled", help="pooled (the model's own, default) or mean (of tokens)")
    sub.add_argument(
        "--size", type=_size, metavar="PIXELS",
        help="resize the images, such as 120 (CROMA enlarges to that) or 96x480",
    )  # fmt: skip
    sub.add_argument(
        "--sparse-k", metavar="K,...|all",
        help="how many dimensions sparse probes see, 1 among them; default: powers of two, and all at once",
    )  # fmt: skip
    sub.add_argument(
        "--tile", type=int, metavar="PIXELS",
        help="for label maps: encode tiles of this side, and average patches where tiles overlap",
    )  # fmt: skip
    sub.add_argument(
        "--overlap", type=int, metavar="PIXELS", help="overlap of the tiles; default half a tile"
    )
    sub.add_argument(
        "--sizes", metavar="PIXELS,...",
        help="image sizes for extrapolation, such as 48,96x480; default 48,96,120,224,384,448,504,96x480",
    )  # fmt: skip
    sub.add_argument(
        "--train-size", type=_size, metavar="PIXELS", help="training size for extrapolation; default 120"
    )
    sub.add_argument("--modalities", help="sensors to use, such as s2 or s2,s1; default all in the data")
    sub.add_argument(
        "--bands", action="append", default=[], metavar="MODALITY=B02,B03,...",
        help="bands to use; default: those of the data that the weights know, and with --missing-bands all",
    )  # fmt: skip
    add_band_options(sub)
    sub.add_argument(
        "--data-bands", action="append", default=[], metavar="MODALITY=B02,B03,...",
        help="the bands of the images, in order, where they do not name them",
    )  # fmt: skip
    sub.add_argument(
        "--units", action="append", default=[], metavar="MODALITY=UNIT",
        help="unit of the values, such as s2=reflectance, s2=dn_baseline_0400 or s1=linear",
    )  # fmt: skip
    weights = sub.add_mutually_exclusive_group()
    weights.add_argument("--random-weights", action="store_true", help="evaluate an untrained model only")
    weights.add_argument("--checkpoint", type=Path, help="a local checkpoint, or a download folder")
    sub.add_argument("--override", action="append", default=[], metavar="FIELD=VALUE")
    sub.add_argument("--baselines", action="store_true", help="add an untrained model and per-band mean/std")
    sub.add_argument(
        "--pictures", action="store_true",
        help="also draw OUTPUT/pictures/*.png: features in 2-D, label maps, sparse curves, extrapolation",
    )  # fmt: skip
    sub.add_argument(
        "--cache", type=Path, metavar="DIR", help="the cache of encoded features; default OUTPUT/cache"
    )
    sub.add_argument("--batch-size", type=int, default=64)
    sub.add_argument("--device", default="cpu", help="device of the encoder and the probes; default cpu")
    sub.add_argument("--quiet", action="store_true", help="no progress bar")


def _eval(options: argparse.Namespace) -> int:
    from functools import cache

    from rsbackbones.data.labelled import open_labelled
    from rsbackbones.data.labelled.dataset import LabelledDataset
    from rsbackbones.eval.diagnostics import DIAGNOSTICS, DiagnosticOptions, run_diagnostics
    from rsbackbones.eval.extrapolation import SIZES
    from rsbackbones.eval.feature_source import FeatureSource, describe, model_for
    from rsbackbones.eval.plot_evaluation import plot_evaluation
    from rsbackbones.eval.report import write_report
    from rsbackbones.eval.run import PROTOCOLS, chosen_streams, describe_data, evaluate
    from rsbackbones.models.config import as_json
    from rsbackbones.zoo.registry import resolve_random_init

    names = PROTOCOLS if options.protocols == "all" else names_in(options.protocols)
    if unknown := [name for name in names if name not in (*PROTOCOLS, *DIAGNOSTICS)]:
        raise ValueError(
            f"unknown protocol {', '.join(unknown)}; there are {', '.join((*PROTOCOLS, *DIAGNOSTICS))}"
        )
    diagnostics = [name for name in names if name in DIAGNOSTICS]
    protocols = [name for name in names if name in PROTOCOLS]
    if diagnostics and (options.size or options.tile or options.overlap or options.pool != "pooled"):
        raise ValueError(
            f"--size, --tile, --overlap and --pool only apply to protocols over features; run "
            f"{', '.join(diagnostics)} in a separate command without them"
        )
    if options.sparse_k and "sparse" not in names:
        raise ValueError(
            "--sparse-k only applies to the sparse protocol: add it to the protocols or drop --sparse-k"
        )
    if "extrapolation" not in names and (options.sizes or options.train_size):
        raise ValueError(
            "--sizes and --train-size only apply to the extrapolation protocol: add it to the protocols or "
            "drop them; --size resizes the images of the other protocols"
        )
    seeds = [int(seed) if seed.isdecimal() else -1 for seed in names_in(options.seeds)]
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds {options.seeds}: expected different whole numbers, such as 0,1,2")
    given = {
        m: tuple(names_in(b)) for m, b in _pairs(options.data_bands, "--data-bands", "MODALITY=B02,B03,...")
    }

    rules = band_rules(options)

    @cache
    def open_set(seed: int) -> LabelledDataset:
        return open_labelled(
            options.data, root=options.root, ids=options.ids, subset=options.subset, seed=seed,
            bands=given or None, units=dict(_pairs(options.units, "--units", "MODALITY=UNIT")),
            sensors=rules["sensors"],
            classes=classes_in(options.classes) if options.classes else None,
            ignore=[int(number) for number in names_in(options.ignore)] if options.ignore else (),
        )  # fmt: skip

    data = open_set(seeds[0])
    if data.labels is None and options.pool != "pooled":
        raise ValueError(
            f"--pool {options.pool} makes one embedding per image, but the labels of {data.name} are maps, "
            "which use one token per patch; drop --pool"
        )
    if options.protocols == "all" and data.task == "multilabel":
        protocols.remove("kmeans")
        print("K-means is skipped: it needs one class per image", file=sys.stderr)
    bands = {m: names_in(b) for m, b in _pairs(options.bands, "--bands", "MODALITY=B02,B03,...")}
    chosen: dict[str, Any] = {
        "modalities": names_in(options.modalities) if options.modalities else None,
        "bands": bands or None,
        "missing_bands": rules["missing_bands"],
        "kernel_scale": rules["kernel_scale"],
        "overrides": fields_of(options.override),
    }

    wanted = resolve_random_init(options.model) if options.random_weights else options.model

    def build(**weights: Any) -> Any:
        return model_for(data, wanted, **chosen, **weights).to(options.device)

    how = {
        "size": options.size, "tile": options.tile, "overlap": options.overlap, "pool": options.pool,
        "level": "image" if data.labels is not None else "patch",
        "batch_size": options.batch_size, "device": options.device, "progress": not options.quiet,
        "cache": options.cache or options.output / "cache",
    }  # fmt: skip
    if options.random_weights:
        model = build(pretrained=False)
        subjects = [FeatureSource.random_init(lambda: build(pretrained=False), how)]
        if options.baselines:  # the untrained model is already there
            subjects.append(FeatureSource.band_statistics(model, how))
    else:
        model = build(checkpoint=options.checkpoint)
        subjects = [FeatureSource.pretrained(str(options.checkpoint or options.model), model, how)]
        if options.baselines:
            # All weights are random, so the rule only affects statistics. A checkpoint may have any shape.
            own = ("modalities", "bands", "sensors")
            shape = {f: value for f, value in as_json(model.config).items() if f not in own}
            untrained = chosen | {"modalities": model.modalities, "bands": model.bands, "overrides": shape}
            random = FeatureSource.random_init(
                lambda: model_for(data, model.architecture, **untrained, pretrained=False).to(options.device),
                how,
            )
            subjects += [random, FeatureSource.band_statistics(model, how)]
    if options.streams:
        chosen_streams(list(model.stream_inputs), names_in(options.streams))
    notes = describe(data, model) + (_describe_encoding(how) if protocols else [])
    for note in notes:
        print(note, file=sys.stderr)
    run: dict[str, Any] = {
        "seeds": seeds, "streams": names_in(options.streams) if options.streams else None,
        "progress": not options.quiet,
    }  # fmt: skip
    found: dict[str, Any] = describe_data(data, seeds) | {"rows": []}
    if protocols:
        ks = _numbers(options.sparse_k) if options.sparse_k else None
        found = evaluate(
            protocols, subjects, open_set, options.output, sparse_k=ks, device=options.device, **run
        )
    found["diagnostics"] = {}
    if diagnostics:
        how_measured = DiagnosticOptions(
            train_size=options.train_size or 120,
            sizes=[_size(size) for size in names_in(options.sizes)] if options.sizes else SIZES,
            batch_size=options.batch_size,
            cache=how["cache"],
        )
        found["diagnostics"] = run_diagnostics(
            diagnostics, subjects, open_set, options.output, options=how_measured, **run
        )
    if protocols:
        found["encoding"] = {name: how[name] for name in ("level", "size", "tile", "overlap")}
        found["encoding"]["pool"] = how["pool"] if how["level"] == "image" else None
    found |= {"model": options.model, "notes": notes, "subjects": {s.name: dict(s.facts) for s in subjects}}
    print(write_report(options.output, found), end="")
    if options.pictures:
        paths, undrawn = plot_evaluation(
            options.output / "pictures", found, subjects, data, streams=run["streams"], size=options.size,
            progress=not options.quiet,
        )  # fmt: skip
        print(*paths, sep="\n")
        for line in undrawn:
            print(line, file=sys.stderr)
    return 0


def _describe_encoding(how: Mapping[str, Any]) -> list[str]:
    """Return notes on the encoding options, for readers of the results."""
    from rsbackbones.data.crops import name_of
    from rsbackbones.data.crops import pair as both_sides

    lines = []
    if how["size"]:
        lines.append(f"images were resized to {name_of(both_sides(how['size']))} pixels")
    if how["tile"]:
        lines.append(
            f"encoded in tiles of {how['tile']} pixels that overlap by "
            f"{'half' if how['overlap'] is None else how['overlap']}; the features of a patch are averaged "
            "over its tiles"
        )
    if how["pool"] != "pooled":
        lines.append("embeddings are the mean of a stream's tokens")
    return lines


def _size(text: str) -> int | tuple[int, int]:
    """Parse ``120``, or ``96x480`` for height and width."""
    words = text.lower().split("x")
    sides = [int(word) for word in words if word.strip().isdecimal()]
    if len(sides) != len(words) or len(sides) > 2 or min(sides) < 1:
        raise ValueError(f"a size is PIXELS or HEIGHTxWIDTH, such as 120 or 96x480, got {text!r}")
    return (sides[0], sides[1]) if len(sides) == 2 else sides[0]


def _numbers(text: str) -> list[int] | Literal["all"]:
    if text == "all":
        return "all"
    if wrong := [word for word in names_in(text) if not word.isdecimal()]:
        raise ValueError(f"--sparse-k expects whole numbers such as 1,2,5, or all; got {', '.join(wrong)}")
    return [int(word) for word in names_in(text)]


def _pairs(items: list[str], option: str, form: str) -> list[tuple[str, str]]:
    return [parse_pair(item, option, form) for item in items]
