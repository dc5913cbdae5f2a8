"""``torchrun -m rsbackbones.train.finetune recipe=NAME model=... data=... output=... key=value``."""

import json
import os

from rsbackbones.train.command import run_command
from rsbackbones.train.engine.config_io import parse_arguments, to_json
from rsbackbones.train.finetune.recipes import RECIPES
from rsbackbones.train.finetune.table import recipe_table

USAGE = """usage: [torchrun ...] -m rsbackbones.train.finetune recipe=NAME data=PATH output=DIR [key=value]

  --list       the recipes
  sweep=true   a run for each of the recipe's learning rates, the best of which is reported

data is a folder of class folders, a table of labels beside images, a described .npz or .yaml, or
torchgeo:NAME with data_options.root=FOLDER. model=MODEL is another than the recipe's. Running the same
command again goes on with the run in output=."""


def main(arguments: list[str]) -> int:
    """Run the command; return its exit code."""
    options = [a for a in arguments if a.startswith("-")]
    if unknown := set(options) - {"--list", "--help", "-h"}:
        raise ValueError(f"unknown option {', '.join(sorted(unknown))}\n{USAGE}")
    if "--help" in options or "-h" in options or not arguments:
        print(USAGE)
        return 0
    if "--list" in options:
        print(recipe_table(RECIPES), end="")
        return 0
    recipe = parse_arguments(arguments, RECIPES)
    is_main_process = os.environ.get("RANK", "0") == "0"
    if is_main_process:
        print(json.dumps(to_json(recipe), indent=1))
    from rsbackbones.train.finetune.tune import finetune, said

    result = finetune(recipe)
    if is_main_process:
        print(said(result))
    return 0


if __name__ == "__main__":
    run_command(main, "rsbackbones.train.finetune")
