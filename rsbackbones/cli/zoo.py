"""The commands about models and weights: list, info, bands, download, manifest, verify."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from rsbackbones.cli.options import (
    FILE,
    CommaList,
    Command,
    band_options,
    band_rules,
    device_option,
    names_in,
    option,
)

_name = click.argument("name", metavar="NAME")


@click.command("list", cls=Command)
@click.argument("pattern", default="*")
@option("--sensor", metavar="PATTERN", section="Filters", help="weights of this sensor: s2, 'landsat*'")
@option("--method", metavar="PATTERN", section="Filters", help="weights of this pretraining method: moco")
@option("--data", metavar="PATTERN", section="Filters", help="weights pretrained on these data: 'ssl4eo*'")
@option("--license", metavar="NAME", section="Filters",
        help="weights under this license: CC0-1.0, or permissive")  # fmt: skip
@option("--bands", type=CommaList(), metavar="B02,B03,...", section="Filters",
        help="weights of one sensor that have all of these bands")  # fmt: skip
@option("--json", "as_json", is_flag=True, help="print JSON")
def list_weights(pattern: str, as_json: bool, **filters: Any) -> int:
    """List the models, and the weights that exist for them.

    PATTERN is a shell-style pattern, such as 'croma*'.
    """
    from rsbackbones.zoo import registry
    from rsbackbones.zoo.licenses import notice

    wanted = {name: value for name, value in filters.items() if value is not None}
    entries = registry.list_weights(pattern, **wanted)
    names = [] if wanted else registry.list_models(pattern)
    if not names and not entries:
        given = " ".join([repr(pattern), *(f"--{name} {_text(value)}" for name, value in wanted.items())])
        raise ValueError(f"nothing matches {given}; try: rsbackbones list")
    if as_json:
        weights = [
            {"id": e.id, "availability": e.availability, "license": e.license,
             "method": e.method, "data": e.data,
             "reason": e.source.reason or None, "pinned": e.pinned or None,
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
                why = (
                    f": {entry.source.reason}"
                    if entry.availability == "unreleased"
                    else f", {bands}, {entry.license}"
                )
                default = " (default)" if entry.default and entry.availability != "unreleased" else ""
                marked = " (see its card)" if notice(entry.license) else ""
                print(f"  {entry.id}{default}  {entry.availability}{why}{marked}")
    return 0


def _text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else ",".join(value)


@click.command(cls=Command)
@_name
def info(name: str) -> int:
    """Print the card of a model's weights.

    The card states the source, license, bands and input contract of the weights.

    NAME is an architecture, architecture.tag or hf-hub:ORG/NAME[@REVISION].
    """
    from rsbackbones.zoo.cards import model_card
    from rsbackbones.zoo.hub import PREFIX
    from rsbackbones.zoo.manifest import find_entry
    from rsbackbones.zoo.registry import find_architecture, list_weights, resolve_weights

    if name.startswith(PREFIX):
        entries = [resolve_weights(name)]
    else:
        find_architecture(name.partition(".")[0])
        entries = [e for e in list_weights() if name in (e.id, e.architecture)]
    if not entries:
        entries = [find_entry(name)]  # raises, and names weights that exist
    print("\n".join(model_card(entry) for entry in entries), end="")
    return 0


@click.command(cls=Command)
@_name
@option(
    "--bands", multiple=True, metavar="B02,B03,...", section="Bands",
    help="your bands, in order, of the model's first modality; of another one as MODALITY=BANDS: s1=VV; "
    "repeatable",
)  # fmt: skip
@band_options
@option("--checkpoint", type=FILE, metavar="FILE", help="a local checkpoint, or a download folder")
def bands(
    name: str,
    bands: tuple[str, ...],
    sensors: Mapping[str, str],
    missing_bands: str,
    kernel_scale: str,
    checkpoint: Path | None,
) -> int:
    """Print how your bands match those of the weights.

    No weights are loaded.

    NAME is an architecture, architecture.tag or hf-hub:ORG/NAME[@REVISION].
    """
    from rsbackbones.zoo.factory import plan_adaptation, weights_config

    if not bands and not sensors:
        raise ValueError("pass your bands: --bands B02,B03,B04,B08, or your sensor: --sensors s2=landsat_oli")
    first = weights_config(name, pretrained=True, checkpoint=checkpoint).modalities[0]
    given: dict[str, list[str]] = {}
    for item in bands:
        left, equals, right = item.partition("=")
        modality = left if equals else first
        if modality in given:
            raise ValueError(f"the bands of {modality} are given twice; name them once: --bands B02,B03,B04")
        given[modality] = names_in(right if equals else left)
    rules = band_rules(sensors, missing_bands, kernel_scale)
    print(plan_adaptation(name, bands=given, checkpoint=checkpoint, **rules))
    return 0


@click.command(cls=Command)
@_name
@option(
    "--output", type=FILE, metavar="DIR",
    help="copy the weights and a manifest of them into this folder, for machines without network; default: "
    "the cache only",
)  # fmt: skip
def download(name: str, output: Path | None) -> int:
    """Fetch weights and verify their bytes.

    NAME is an architecture, architecture.tag or hf-hub:ORG/NAME[@REVISION], or a shell-style pattern, such as
    'vit_s16.*'.
    """
    from rsbackbones.files.sha256 import sha256_of
    from rsbackbones.zoo import registry
    from rsbackbones.zoo.hub import PREFIX
    from rsbackbones.zoo.lock import download_entries
    from rsbackbones.zoo.manifest import FOLDER_MANIFEST
    from rsbackbones.zoo.weights import fetch

    if any(sign in name for sign in "*?["):
        entries = [e for e in registry.list_weights(name) if e.availability != "unreleased"]
        if not entries:
            raise ValueError(f"no weights match {name!r}; try: rsbackbones list")
    else:
        entries = [registry.resolve_weights(name)]
    folder = output.expanduser() if output else None
    for entry in entries:
        path = download_entries([entry], folder)[0] if folder else fetch(entry)
        print(
            f"{entry.id}: {path}\nsha256 {sha256_of(path)}, {path.stat().st_size} bytes, as pinned",
            flush=True,
        )
    if output:
        # A folder is looked up by manifest ids; weights of a repository are passed as a file.
        use = path if name.startswith(PREFIX) else output
        print(f"to use it pass checkpoint={str(use)!r}, or set RSBACKBONES_WEIGHTS={output}")
        if not name.startswith(PREFIX):
            print(f"or RSBACKBONES_MANIFEST={output / FOLDER_MANIFEST}")
    return 0


@click.command(cls=Command)
@click.argument("action", type=click.Choice(["lock"]))
@click.argument("pattern", default="*")
@option("--output", type=FILE, required=True, metavar="FILE", help="the manifest to write or update")
@option("--download", is_flag=True, help="fetch what is not in the cache")
@option("--golden", is_flag=True, help="also record golden activations of entries that have none")
def manifest(action: str, pattern: str, output: Path, download: bool, golden: bool) -> int:
    """Record digests and sizes of downloaded weights in a manifest.

    ACTION is lock: write the sha256 and the size of each file. PATTERN is a shell-style pattern, such as
    'vit_s16.*'.
    """
    from rsbackbones.zoo import registry
    from rsbackbones.zoo.lock import lock_entries

    entries = [e for e in registry.list_weights(pattern) if e.availability == "hub"]
    if not entries:
        raise ValueError(f"no weights on the Hub match {pattern!r}; try: rsbackbones list")
    path = output.expanduser()
    locked = lock_entries(entries, path, download=download, golden=golden)
    print(f"{path}: {len(locked)} of {len(entries)} entries recorded")
    return 0 if locked else 1


@click.command(cls=Command)
@_name
@option("--checkpoint", type=FILE, metavar="DIR", help="a folder made by `rsbackbones download --output`")
@device_option("cpu")
def verify(name: str, checkpoint: Path | None, device: str) -> int:
    """Check weights and the features they compute.

    Hashes the bytes, loads the weights and compares their features with the recorded ones. Those were
    computed on a CPU; a GPU may differ by more than the tolerance. NAME is an architecture, architecture.tag
    or hf-hub:ORG/NAME[@REVISION].
    """
    from rsbackbones.device import choose_device
    from rsbackbones.files.sha256 import sha256_of
    from rsbackbones.zoo.factory import create_model
    from rsbackbones.zoo.golden import compare_golden
    from rsbackbones.zoo.hub import PREFIX
    from rsbackbones.zoo.registry import resolve_weights
    from rsbackbones.zoo.weights import fetch

    place = choose_device(device)
    entry = resolve_weights(name)
    path = fetch(entry, checkpoint)
    pinned = {"sha256": "in full", "hub": "by what the Hub states for the commit"}.get(
        entry.pinned, f"by the published prefix {entry.sha256_prefix}"
    )
    print(f"{entry.id}: {path}")
    print(f"bytes: sha256 {sha256_of(path)}, as pinned {pinned}")
    if not name.startswith(PREFIX):
        model = create_model(entry.id, True, checkpoint=checkpoint)
    elif checkpoint:
        model = create_model(entry.architecture, checkpoint=path)
    else:
        model = create_model(name, True)
    print(f"tensors: {len(model.state_dict())}, all finite, names, shapes and types as the model expects")
    if entry.golden is None:
        print("features: not compared, because none are recorded for these weights")
        return 0
    if problems := compare_golden(model.to(place), entry.golden):
        print("features: DIFFERENT from those recorded\n  " + "\n  ".join(problems))
        return 1
    print(f"features: within {entry.golden['tolerance']} of those recorded")
    return 0
