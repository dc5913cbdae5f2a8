"""The command ``convert``: convert checkpoints between formats."""

import argparse
import sys
import tempfile
from pathlib import Path

from rsbackbones.cli.options import Command, fields_of, names_in


def add(command: Command) -> None:
    """Add the parsers."""
    sub = command("convert", _convert, "convert a checkpoint between formats")
    sub.add_argument("input", type=Path)
    sub.add_argument("output", type=Path, help="NAME.safetensors (native), or NAME.pt with --format")
    sub.add_argument("--model", required=True, help="the architecture in the checkpoint")
    sub.add_argument(
        "--format",
        default="rsbackbones",
        help="the checkpoint format to write: rsbackbones, croma_official, ...",
    )
    sub.add_argument(
        "--flat", action="store_true", help="write one flat dictionary, even if the format nests them"
    )
    sub.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    sub.add_argument("--modalities", help="keep only these modalities, such as s2")
    sub.add_argument("--override", action="append", default=[], metavar="FIELD=VALUE")
    sub.add_argument(
        "--trust-pickle", action="store_true",
        help="execute the pickle in a process of its own, to take out its tensors; code in it can do "
        "anything that you can",
    )  # fmt: skip
    sub.add_argument(
        "--state-dict", default="", metavar="KEY",
        help="with --trust-pickle: the key of the state dict in the file, such as model or state_dict",
    )  # fmt: skip


def _convert(options: argparse.Namespace) -> int:
    from rsbackbones.zoo.trusted_pickle import extract_tensors

    if options.input.is_dir():
        raise ValueError(f"{options.input} is a folder; pass a checkpoint file")
    if options.state_dict and not options.trust_pickle:
        raise ValueError("--state-dict goes with --trust-pickle")
    if not options.trust_pickle:
        return _write(options, options.input)
    with tempfile.TemporaryDirectory() as folder:
        tensors = Path(folder) / "tensors.pt"
        print(extract_tensors(options.input, tensors, options.state_dict), file=sys.stderr)
        return _write(options, tensors)


def _write(options: argparse.Namespace, file: Path) -> int:
    import torch

    from rsbackbones.zoo.factory import create_model
    from rsbackbones.zoo.saving import save_in_format, save_model

    modalities = names_in(options.modalities) if options.modalities else None
    model = create_model(
        options.model,
        checkpoint=file,
        modalities=modalities,
        num_classes=None,
        overrides=fields_of(options.override),
    )
    if options.format == "rsbackbones":
        save_model(model, options.output, dtype=getattr(torch, options.dtype))
    else:
        if options.dtype != "float32":
            raise ValueError(f"--dtype {options.dtype} requires --format rsbackbones")
        save_in_format(model, options.output, options.format, flat=options.flat)
    print(options.output)
    if model.adaptation:
        print(model.adaptation, file=sys.stderr)
    return 0
