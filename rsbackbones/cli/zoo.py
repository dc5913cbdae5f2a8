"""The commands about models and weights: list, info, bands, download, verify."""

import argparse
import json
from pathlib import Path

from rsbackbones.cli.options import Command, add_band_options, band_rules, names_in

_FILTERS = {
    "sensor": "weights of this sensor: s2, 'landsat*'",
    "method": "weights of this pretraining method: moco",
    "data": "weights pretrained on these data: 'ssl4eo*'",
    "license": "weights under this license: CC0-1.0, or permissive",
    "bands": "weights of one sensor that have all of these bands: B02,B03,B04,B08",
}
_NAME = "architecture, architecture.tag or hf-hub:ORG/NAME[@REVISION]"


def add(command: Command) -> None:
    """Add the parsers."""
    sub = command("list", _list, "list the models and the weights that exist for them")
    sub.add_argument("pattern", nargs="?", default="*", help="shell-style pattern, such as 'croma*'")
    for name, text in _FILTERS.items():
        sub.add_argument(f"--{name}", help=text)
    sub.add_argument("--json", action="store_true", help="print JSON")

    sub = command("info", _info, "print the card of a model's weights")
    sub.add_argument("name", help=_NAME)

    sub = command("bands", _bands, "print how your bands are matched; loads no weights")
    sub.add_argument("name", help=_NAME)
    sub.add_argument(
        "--bands", action="append", default=[], metavar="B02,B03,...",
        help="your bands, in order, of the model's first modality; of another one as MODALITY=BANDS: s1=VV",
    )  # fmt: skip
    add_band_options(sub)
    sub.add_argument("--checkpoint", type=Path, help="a local checkpoint, or a download folder")

    sub = command("download", _download, "fetch and verify weights")
    sub.add_argument("name", help=f"{_NAME}, or a shell-style pattern: 'vit_s16.*'")
    sub.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="copy the weights and a manifest of them into this folder, for machines without network",
    )

    sub = command("manifest", _manifest, "record digests and sizes of downloaded weights in a manifest")
    sub.add_argument("action", choices=("lock",), help="lock: write the sha256 and the size of each file")
    sub.add_argument("pattern", nargs="?", default="*", help="shell-style pattern, such as 'vit_s16.*'")
    sub.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="the manifest to write or update"
    )
    sub.add_argument("--download", action="store_true", help="fetch what is not in the cache")
    sub.add_argument("--golden", action="store_true", help="also record golden activations where none are")

    sub = command("verify", _verify, "hash, load and run weights, and compare their features")
    sub.add_argument("name", help=_NAME)
    sub.add_argument("--checkpoint", type=Path, metavar="DIR", help="a folder made by download --output")


def _list(options: argparse.Namespace) -> int:
    from rsbackbones.zoo.licenses import notice
    from rsbackbones.zoo.registry import list_models, list_weights

    wanted = {name: getattr(options, name) for name in _FILTERS if getattr(options, name)}
    given = " ".join([repr(options.pattern), *(f"--{name} {value}" for name, value in wanted.items())])
    if "bands" in wanted:
        wanted["bands"] = names_in(wanted["bands"])
    entries = list_weights(options.pattern, **wanted)
    names = [] if wanted else list_models(options.pattern)
    if not names and not entries:
        raise ValueError(f"nothing matches {given}; try: rsbackbones list")
    if options.json:
        weights = [
            {"id": e.id, "availability": e.availability, "license": e.license,
             "method": e.method, "data": e.data,
             "reason": e.source.reason or None,
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


def _info(options: argparse.Namespace) -> int:
    from rsbackbones.zoo.cards import model_card
    from rsbackbones.zoo.hub import PREFIX
    from rsbackbones.zoo.registry import find_architecture, list_weights, resolve_weights

    if options.name.startswith(PREFIX):
        entries = [resolve_weights(options.name)]
    else:
        find_architecture(options.name.partition(".")[0])
        entries = [e for e in list_weights() if options.name in (e.id, e.architecture)]
    if not entries:
        raise ValueError(f"the manifest has no entry {options.name}; see: rsbackbones list")
    print("\n".join(model_card(entry) for entry in entries), end="")
    return 0


def _bands(options: argparse.Namespace) -> int:
    from rsbackbones.zoo.factory import plan_adaptation
    from rsbackbones.zoo.registry import resolve_architecture

    if not options.bands and not options.sensor:
        raise ValueError("pass your bands: --bands B02,B03,B04,B08, or your sensor: --sensor s2=landsat_oli")
    first = resolve_architecture(options.name).config.modalities[0]
    bands: dict[str, list[str]] = {}
    for item in options.bands:
        left, equals, right = item.partition("=")
        bands[left if equals else first] = names_in(right if equals else left)
    rules = band_rules(options)
    print(plan_adaptation(options.name, bands=bands, checkpoint=options.checkpoint, **rules))
    return 0


def _download(options: argparse.Namespace) -> int:
    from rsbackbones.files.sha256 import sha256_of
    from rsbackbones.zoo.hub import PREFIX
    from rsbackbones.zoo.lock import download_entries
    from rsbackbones.zoo.manifest import FOLDER_MANIFEST
    from rsbackbones.zoo.registry import list_weights, resolve_weights
    from rsbackbones.zoo.weights import fetch

    if any(sign in options.name for sign in "*?["):
        entries = [e for e in list_weights(options.name) if e.availability != "unreleased"]
        if not entries:
            raise ValueError(f"no weights match {options.name!r}; try: rsbackbones list")
    else:
        entries = [resolve_weights(options.name)]
    output = options.output.expanduser() if options.output else None
    for entry in entries:
        path = download_entries([entry], output)[0] if output else fetch(entry)
        print(
            f"{entry.id}: {path}\nsha256 {sha256_of(path)}, {path.stat().st_size} bytes, as pinned",
            flush=True,
        )
    if output:
        # A folder is looked up by manifest ids; weights of a repository are passed as a file.
        use = path if options.name.startswith(PREFIX) else options.output
        print(f"to use it pass checkpoint={str(use)!r}, or set RSBACKBONES_WEIGHTS={options.output}")
        if not options.name.startswith(PREFIX):
            print(f"or RSBACKBONES_MANIFEST={options.output / FOLDER_MANIFEST}")
    return 0


def _manifest(options: argparse.Namespace) -> int:
    from rsbackbones.zoo.lock import lock_entries
    from rsbackbones.zoo.registry import list_weights

    entries = [e for e in list_weights(options.pattern) if e.availability == "hub"]
    if not entries:
        raise ValueError(f"no weights on the Hub match {options.pattern!r}; try: rsbackbones list")
    output = options.output.expanduser()
    locked = lock_entries(entries, output, download=options.download, golden=options.golden)
    print(f"{output}: {len(locked)} of {len(entries)} entries recorded")
    return 0 if locked else 1


def _verify(options: argparse.Namespace) -> int:
    from rsbackbones.files.sha256 import sha256_of
    from rsbackbones.zoo.factory import create_model
    from rsbackbones.zoo.golden import compare_golden
    from rsbackbones.zoo.hub import PREFIX
    from rsbackbones.zoo.registry import resolve_weights
    from rsbackbones.zoo.weights import fetch

    entry = resolve_weights(options.name)
    path = fetch(entry, options.checkpoint)
    pinned = "in full" if entry.sha256 else f"by the published prefix {entry.sha256_prefix}"
    if entry.sha256_from == "hub" and not entry.sha256:
        pinned = "by what the Hub states for the commit"
    print(f"{entry.id}: {path}")
    print(f"bytes: sha256 {sha256_of(path)}, as pinned {pinned}")
    if not options.name.startswith(PREFIX):
        model = create_model(entry.id, True, checkpoint=options.checkpoint)
    elif options.checkpoint:
        model = create_model(entry.architecture, checkpoint=path)
    else:
        model = create_model(options.name, True)
    print(f"tensors: {len(model.state_dict())}, all finite, names, shapes and types as the model expects")
    if entry.golden is None:
        print("features: not compared, since none are recorded for these weights")
        return 0
    if problems := compare_golden(model, entry.golden):
        print("features: DIFFERENT from those recorded\n  " + "\n  ".join(problems))
        return 1
    print(f"features: within {entry.golden['tolerance']} of those recorded")
    return 0
