"""``torchrun -m rsbackbones.train.finetune recipe=NAME model=... data=... output=... key=value``."""

import json
import os

import click

from rsbackbones.train.command import run_command
from rsbackbones.train.engine.config_io import parse_arguments, to_json
from rsbackbones.train.finetune.recipes import RECIPES
from rsbackbones.train.finetune.table import recipe_table


@click.command(no_args_is_help=True)
@click.argument("fields", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--list", "list_recipes", is_flag=True, help="Print the recipes.")
def command(fields: tuple[str, ...], list_recipes: bool) -> int:
    """Fine-tune with a recipe, in one process or under torchrun; see `rsbackbones finetune --help`."""
    if list_recipes:
        print(recipe_table(RECIPES), end="")
        return 0
    recipe = parse_arguments(fields, RECIPES)
    is_main_process = os.environ.get("RANK", "0") == "0"
    if is_main_process:
        print(json.dumps(to_json(recipe), indent=1))
    from rsbackbones.train.finetune.tune import finetune, said

    result = finetune(recipe)
    if is_main_process:
        print(said(result))
    return 0


if __name__ == "__main__":
    run_command(command, "rsbackbones.train.finetune")
