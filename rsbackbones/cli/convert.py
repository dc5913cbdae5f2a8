"""The command ``convert``: convert checkpoints between formats."""

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from rsbackbones.cli.options import FILE, CommaList, Command, mapping, option
from rsbackbones.files.json_value import parse_value


@click.command(cls=Command)
@click.argument("input", type=FILE)
@click.argument("output", type=FILE)
@option("--model", required=True, metavar="NAME",
        help="the architecture in the checkpoint, or the weights that it holds (architecture.tag): it "
        "then gets their bands and input contract")  # fmt: skip
@option("--format", default="rsbackbones", metavar="NAME",
        help="the checkpoint format to write: rsbackbones, croma_official, ...")  # fmt: skip
@option("--flat", is_flag=True, help="write one flat dictionary, even if the format nests them")
@option("--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), default="float32",
        help="the type to store; needs --format rsbackbones")  # fmt: skip
@option("--modalities", type=CommaList(), metavar="NAME,...", help="keep only these modalities, such as s2")
@mapping("--overrides", form="FIELD=VALUE", read=parse_value,
         help="change a field of the model's configuration, such as depth=4; repeatable")  # fmt: skip
@option("--trust-pickle", is_flag=True, section="Pickles",
        help="execute the pickle in a process of its own, to take out its tensors; code in it can do "
        "anything that you can")  # fmt: skip
@option("--state-dict", default="", metavar="KEY", section="Pickles",
        help="with --trust-pickle: the key of the state dict in the file, such as model")  # fmt: skip
def convert(
    input: Path,
    output: Path,
    model: str,
    format: str,
    flat: bool,
    dtype: str,
    modalities: list[str] | None,
    overrides: Mapping[str, Any],
    trust_pickle: bool,
    state_dict: str,
) -> int:
    """Convert a checkpoint between formats.

    OUTPUT is NAME.safetensors (the native format), or NAME.pt with --format.
    """
    import torch

    from rsbackbones.zoo.factory import create_from_file, create_model
    from rsbackbones.zoo.saving import save_in_format, save_model
    from rsbackbones.zoo.trusted_pickle import extract_tensors

    if input.is_dir():
        raise ValueError(f"{input} is a folder; pass a checkpoint file")
    if state_dict and not trust_pickle:
        raise ValueError("--state-dict goes with --trust-pickle")
    with tempfile.TemporaryDirectory() as folder:
        if trust_pickle:
            tensors = Path(folder) / "tensors.pt"
            print(extract_tensors(input, tensors, state_dict), file=sys.stderr)
        create: Any = create_from_file if "." in model else create_model
        built = create(
            model, checkpoint=tensors if trust_pickle else input, modalities=modalities, num_classes=None,
            overrides=dict(overrides),
        )  # fmt: skip
    if format == "rsbackbones":
        save_model(built, output, dtype=getattr(torch, dtype))
    else:
        if dtype != "float32":
            raise ValueError(f"--dtype {dtype} requires --format rsbackbones")
        save_in_format(built, output, format, flat=flat)
    print(output)
    if built.adaptation:
        print(built.adaptation, file=sys.stderr)
    return 0
