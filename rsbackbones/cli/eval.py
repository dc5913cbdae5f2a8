"""The command ``eval``: evaluate frozen features on labelled images."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import click

from rsbackbones.cli.options import (
    COUNT,
    FILE,
    CommaList,
    Command,
    Size,
    band_options,
    band_rules,
    classes_in,
    mapping,
    names_in,
    option,
    pixel_options,
    refuse_two_weights,
    run_options,
    unreadable_option,
    weights_options,
)


class _Dimensions(CommaList):
    """Numbers of dimensions, or ``all``."""

    name = "dimensions"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "all" else super().convert(value, param, ctx)


@click.command("eval", cls=Command)
@click.argument("protocols", type=CommaList())
@option("--data", required=True, metavar="PATH", section="Data",
        help="a folder of class folders of JPEG, PNG or GeoTIFF; a CSV beside GeoTIFFs; NAME.npz; NAME.yaml "
        "that describes one; or torchgeo:NAME with --root")  # fmt: skip
@option("--root", type=FILE, metavar="DIR", section="Data", help="the folder of a torchgeo data set")
@option("--ids", type=FILE, metavar="FILE", section="Data",
        help="a list of ids with their splits (id,train)")  # fmt: skip
@option("--subset", type=click.FloatRange(0, 1, min_open=True), metavar="SHARE", section="Data",
        help="train on this share of the training split, such as 0.1")  # fmt: skip
@option("--classes", metavar="NAME,...", section="Data",
        help="names of the labels 0, 1, ...; or NAME=CODE,NAME=CODE+CODE,...: the labels of "
        "each class; other "
        "labels are ignored")  # fmt: skip
@option("--ignore", type=CommaList(click.INT), metavar="NUMBER,...", section="Data",
        help="label values to ignore, such as 255")  # fmt: skip
@mapping("--data-bands", form="MODALITY=B02,B03,...", section="Data", read=lambda text: tuple(names_in(text)),
         help="the bands of the images, in order, if the data do not name them; repeatable")  # fmt: skip
@mapping("--units", form="MODALITY=UNIT", section="Data",
         help="unit of the values, such as s2=reflectance, s2=dn_baseline_0400 or s1=linear; "
        "repeatable")  # fmt: skip
@pixel_options
@unreadable_option("stop at an image that cannot be read, or leave it out and name it in the result")
@weights_options
@option("--modalities", type=CommaList(), metavar="NAME,...", section="Model", show_default="all in the data",
        help="sensors to use, such as s2 or s2,s1")  # fmt: skip
@option("--streams", type=CommaList(), metavar="NAME,...", section="Model",
        show_default="each, and all together", help="features to evaluate, such as "
        "s2,s1,joint,s2+joint")  # fmt: skip
@option("--baselines", is_flag=True, section="Model", help="add an untrained model and per-band mean/std")
@mapping("--bands", form="MODALITY=B02,B03,...", section="Bands", read=names_in,
         help="bands to use; default: those of the data that the weights know, with --missing-bands all; "
         "repeatable")  # fmt: skip
@band_options
@option("--size", type=Size(), metavar="PIXELS", section="Features",
        help="resize the images, such as 120 (CROMA enlarges to that) or 96x480")  # fmt: skip
@option("--tile", type=COUNT, metavar="PIXELS", section="Features",
        help="for label maps: encode tiles of this side, and average patches where tiles "
        "overlap")  # fmt: skip
@option("--overlap", type=click.IntRange(min=0), metavar="PIXELS", section="Features",
        show_default="half a tile", help="overlap of the tiles")  # fmt: skip
@option("--pool", type=click.Choice(["pooled", "mean"]), default="pooled", section="Features",
        help="embedding of an image: the model's own, or the mean of its tokens")  # fmt: skip
@option("--seeds", type=CommaList(click.IntRange(min=0)), metavar="NUMBER,...", default="0",
        section="Protocols", help="seeds of splits, probes and random weights, such as 0,1,2")  # fmt: skip
@option("--sparse-k", type=_Dimensions(COUNT), metavar="K,...|all", section="Protocols",
        show_default="powers of two, and all at once",
        help="how many dimensions sparse probes see, in addition to 1")  # fmt: skip
@option("--sizes", type=CommaList(Size()), metavar="PIXELS,...", section="Protocols",
        show_default="48,96,120,224,384,448,504,96x480",
        help="image sizes of extrapolation, such as 48,96x480")  # fmt: skip
@option("--train-size", type=Size(), metavar="PIXELS", section="Protocols", show_default="120",
        help="image size that the probes of extrapolation are trained on")  # fmt: skip
@option("--output", required=True, type=FILE, metavar="DIR", section="Output",
        help="the folder of the results")  # fmt: skip
@option("--pictures", is_flag=True, section="Output",
        help="also draw OUTPUT/pictures/*.png: features in 2-D, label maps, sparse curves, "
        "extrapolation")  # fmt: skip
@option("--cache", type=FILE, metavar="DIR", section="Output", show_default="OUTPUT/cache",
        help="the cache of encoded features")  # fmt: skip
@run_options(batch_size=64)
def evaluate(
    protocols: list[str],
    data: str,
    root: Path | None,
    ids: Path | None,
    subset: float | None,
    classes: str | None,
    ignore: list[int] | None,
    data_bands: Mapping[str, tuple[str, ...]],
    units: Mapping[str, str],
    nodata: float | None,
    mask: Mapping[str, list[int]],
    on_unreadable: str,
    model: str,
    pretrained: bool,
    checkpoint: Path | None,
    overrides: Mapping[str, Any],
    modalities: list[str] | None,
    streams: list[str] | None,
    baselines: bool,
    bands: Mapping[str, list[str]],
    sensors: Mapping[str, str],
    missing_bands: str,
    kernel_scale: str,
    size: int | tuple[int, int] | None,
    tile: int | None,
    overlap: int | None,
    pool: str,
    seeds: list[int],
    sparse_k: list[int] | Literal["all"] | None,
    sizes: list[int | tuple[int, int]] | None,
    train_size: int | tuple[int, int] | None,
    output: Path,
    pictures: bool,
    cache: Path | None,
    batch_size: int,
    device: str,
    progress: bool,
) -> int:
    """Evaluate frozen features on labelled images.

    PROTOCOLS are knn, kmeans, linear, mlp, sparse or logistic, separated by commas, or all of these; also the
    diagnostics invariance, patches, positions or extrapolation.
    """
    from functools import cache as call_once

    from rsbackbones.data.labelled import open_labelled
    from rsbackbones.data.labelled.dataset import LabelledDataset
    from rsbackbones.data.pictures import new_figure
    from rsbackbones.device import choose_device
    from rsbackbones.eval.diagnostics import DIAGNOSTICS, DiagnosticOptions, run_diagnostics
    from rsbackbones.eval.extrapolation import SIZES
    from rsbackbones.eval.feature_source import FeatureSource, describe, model_for
    from rsbackbones.eval.plot_evaluation import plot_evaluation
    from rsbackbones.eval.readable import Readable
    from rsbackbones.eval.report import refuse_other_result, write_report
    from rsbackbones.eval.run import PROTOCOLS, chosen_streams, describe_data
    from rsbackbones.eval.run import evaluate as run_protocols
    from rsbackbones.models.config import as_json

    refuse_two_weights(pretrained, checkpoint)
    place = choose_device(device)
    every = protocols == ["all"]
    names = list(PROTOCOLS) if every else protocols
    if unknown := [name for name in names if name not in (*PROTOCOLS, *DIAGNOSTICS)]:
        raise ValueError(
            f"unknown protocol {', '.join(unknown)}; there are {', '.join((*PROTOCOLS, *DIAGNOSTICS))}"
        )
    diagnostics = [name for name in names if name in DIAGNOSTICS]
    chosen_protocols = [name for name in names if name in PROTOCOLS]
    if diagnostics and (size or tile or overlap or pool != "pooled"):
        raise ValueError(
            f"--size, --tile, --overlap and --pool only apply to protocols over features; run "
            f"{', '.join(diagnostics)} in a separate command without them"
        )
    if sparse_k and "sparse" not in names:
        raise ValueError(
            "--sparse-k only applies to the sparse protocol: add it to the protocols or drop --sparse-k"
        )
    if "extrapolation" not in names and (sizes or train_size):
        raise ValueError(
            "--sizes and --train-size only apply to the extrapolation protocol: add it to the protocols or "
            "drop them; --size resizes the images of the other protocols"
        )
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds {','.join(map(str, seeds))}: expected different numbers, such as 0,1,2")
    if pictures:
        new_figure(1, 1)  # an error where matplotlib is missing, before anything is computed
    rules = band_rules(sensors, missing_bands, kernel_scale)
    readable = Readable(progress)

    @call_once
    def open_set(seed: int) -> LabelledDataset:
        opened = open_labelled(
            data, root=root, ids=ids, subset=subset, seed=seed, bands=dict(data_bands) or None, units=units,
            sensors=rules["sensors"], classes=classes_in(classes) if classes else None, ignore=ignore or (),
            nodata=nodata, mask=mask,
        )  # fmt: skip
        return opened if on_unreadable == "fail" else readable.of(opened)

    labelled = open_set(seeds[0])
    if labelled.labels is None and pool != "pooled":
        raise ValueError(
            f"--pool {pool} makes one embedding per image, but the labels of {labelled.name} are maps, "
            "which use one token per patch; drop --pool"
        )
    if every and labelled.task == "multilabel":
        chosen_protocols.remove("kmeans")
        print("K-means is skipped: it needs one class per image", file=sys.stderr)
    chosen: dict[str, Any] = {
        "modalities": modalities,
        "bands": dict(bands) or None,
        "missing_bands": missing_bands,
        "kernel_scale": kernel_scale,
        "overrides": dict(overrides),
    }

    def build(**weights: Any) -> Any:
        return model_for(labelled, model, **chosen, **weights).to(place)

    how: dict[str, Any] = {
        "size": size, "tile": tile, "overlap": overlap, "pool": pool,
        "level": "image" if labelled.labels is not None else "patch",
        "batch_size": batch_size, "device": place, "progress": progress, "cache": cache or output / "cache",
    }  # fmt: skip
    if not pretrained:
        built = build(pretrained=False)
        sources = [FeatureSource.random_init(lambda: build(pretrained=False), how)]
        if baselines:  # the untrained model is already there
            sources.append(FeatureSource.band_statistics(built, how))
    else:
        built = build(checkpoint=checkpoint)
        sources = [FeatureSource.pretrained(str(checkpoint or model), built, how)]
        if baselines:
            # All weights are random, so the rule only affects statistics. A checkpoint may have any shape.
            own = ("modalities", "bands", "sensors")
            shape = {f: value for f, value in as_json(built.config).items() if f not in own}
            untrained = chosen | {"modalities": built.modalities, "bands": built.bands, "overrides": shape}

            def build_untrained() -> Any:
                other = model_for(labelled, built.architecture, **untrained, pretrained=False)
                other.inputs = built.inputs  # the same input for both
                return other.to(place)

            random = FeatureSource.random_init(build_untrained, how)
            sources += [random, FeatureSource.band_statistics(built, how)]
    refuse_other_result(output, model, sources[0].name, labelled.name)
    if streams:
        chosen_streams(list(built.stream_inputs), streams)
    notes = describe(labelled, built) + (_describe_encoding(how) if chosen_protocols else [])
    notes += readable.notes
    for note in [*notes, *([] if place.type == "cpu" else [f"device: {place}"])]:
        print(note, file=sys.stderr)
    run: dict[str, Any] = {"seeds": seeds, "streams": streams, "progress": progress}
    found: dict[str, Any] = describe_data(labelled, seeds) | {"rows": []}
    if chosen_protocols:
        found = run_protocols(
            chosen_protocols, sources, open_set, output, sparse_k=sparse_k, device=place, **run
        )
    found["diagnostics"] = {}
    if diagnostics:
        options = DiagnosticOptions(
            train_size=train_size or 120, sizes=sizes or SIZES, batch_size=batch_size, cache=how["cache"]
        )
        found["diagnostics"] = run_diagnostics(diagnostics, sources, open_set, output, options=options, **run)
    if chosen_protocols:
        found["encoding"] = {name: how[name] for name in ("level", "size", "tile", "overlap")}
        found["encoding"]["pool"] = how["pool"] if how["level"] == "image" else None
    notes += found.get("notes", [])
    found |= {"model": model, "notes": notes, "sources": {s.name: dict(s.facts) for s in sources}}
    print(write_report(output, found), end="")
    if pictures:
        paths, undrawn = plot_evaluation(
            output / "pictures", found, sources, labelled, streams=streams, size=size, progress=progress
        )
        print(*paths, sep="\n")
        for line in undrawn:
            print(line, file=sys.stderr)
    return 0


def _describe_encoding(how: Mapping[str, Any]) -> list[str]:
    """Return notes on the encoding options, for readers of the results."""
    from rsbackbones.data.labelled.crops import name_of
    from rsbackbones.data.labelled.crops import pair as both_sides

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
