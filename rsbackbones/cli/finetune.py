"""The command that fine-tunes, in one process; ``torchrun -m rsbackbones.train.finetune`` is for several."""

import argparse

from rsbackbones.cli.options import Command


def add(command: Command) -> None:
    """Add the parser."""
    sub = command("finetune", _finetune, "fine-tune on a labelled set by a paper's recipe")
    sub.add_argument(
        "fields", nargs="*", metavar="KEY=VALUE",
        help="recipe=NAME data=PATH output=DIR and fields of the recipe; none: what there is to say",
    )  # fmt: skip
    sub.add_argument("--list", action="store_true", help="the recipes")


def _finetune(options: argparse.Namespace) -> int:
    from rsbackbones.train.finetune.__main__ import main

    return main(["--list"] if options.list else options.fields)
