"""The command that converts checkpoints."""

import argparse
import sys
from pathlib import Path

from rsbackbones.cli.options import Command, fields_of, names_in


def add(command: Command) -> None:
    """Add the parsers."""
    sub = command("convert", _convert, "convert a checkpoint between layouts")
    sub.add_argument("input", type=Path)
    sub.add_argument("output", type=Path, help="NAME.safetensors (ours), or NAME.pt with --to")
    sub.add_argument("--model", required=True, help="the architecture that the checkpoint holds")
    sub.add_argument("--to", default="rsbackbones", help="a layout: rsbackbones, croma_official, ...")
    sub.add_argument("--flat", action="store_true", help="one flat dictionary where the layout nests")
    sub.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    sub.add_argument("--modalities", help="keep only these sensors, such as s2")
    sub.add_argument("--override", action="append", default=[], metavar="FIELD=VALUE")


def _convert(options: argparse.Namespace) -> int:
    import torch

    from rsbackbones.zoo.factory import create_model
    from rsbackbones.zoo.saving import save_foreign, save_model

    if options.input.is_dir():
        raise ValueError(f"{options.input} is a folder; name the checkpoint file")
    modalities = names_in(options.modalities) if options.modalities else None
    model = create_model(
        options.model,
        checkpoint=options.input,
        modalities=modalities,
        num_classes=None,
        overrides=fields_of(options.override),
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
