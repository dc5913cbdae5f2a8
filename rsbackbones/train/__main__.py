"""``torchrun -m rsbackbones.train recipe=NAME data.root=... output=... key=value``."""

import json
import os
import sys

import click

from rsbackbones.train.command import run_command
from rsbackbones.train.engine.config_io import parse_arguments, to_json
from rsbackbones.train.engine.distributed import init_distributed
from rsbackbones.train.recipes import RECIPES

_HELP = """Pretrain with a recipe, in one process or under torchrun.

\b
recipe=NAME     a recipe of --list, or the recipe.json of a run
data.root=DIR   the training data
output=DIR      the folder of the run; the same command again resumes the run in it

Every other field of a recipe is a KEY=VALUE too, such as batch_size=64 or optim.base_lr=1e-4; see
docs/training.md. An unknown key is an error that lists the known ones.
"""


@click.command(help=_HELP, no_args_is_help=True)
@click.argument("fields", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--list", "list_recipes", is_flag=True, help="Print the recipes.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Run two steps, and print memory, parameters, FLOPs and the expected time of a run.",
)
def command(fields: tuple[str, ...], list_recipes: bool, dry_run: bool) -> int:
    """Pretrain with a recipe, in one process or under torchrun."""
    if list_recipes:
        for name, known in RECIPES.items():
            stages = known.resolve_stages()
            epochs = ", then ".join(f"{stage.length} of batch {stage.batch_size}" for stage in stages)
            print(f"{name}: {known.model}, {epochs}")
        return 0
    recipe = parse_arguments(fields, RECIPES)
    is_main_process = os.environ.get("RANK", "0") == "0"
    if is_main_process:
        print(json.dumps(to_json(recipe), indent=1))
    if dry_run:
        from rsbackbones.train.dry_run import dry_run as run_two_steps

        print_to = sys.stdout if is_main_process else None
        run_two_steps(recipe, init_distributed(recipe.timeout), print_to)
        return 0
    from rsbackbones.train.pretraining import pretrain

    summary = pretrain(recipe)
    if is_main_process:
        print(f"{summary.status} at step {summary.step} of {summary.total_steps}, {summary.output}")
        if summary.status == "stopped":
            print("the same command resumes the run")
    return 0


if __name__ == "__main__":
    run_command(command, "rsbackbones.train")
