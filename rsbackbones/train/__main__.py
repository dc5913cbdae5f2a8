"""``torchrun -m rsbackbones.train recipe=NAME data.root=... out=... key=value``."""

import json
import os
import sys

from rsbackbones.train.command import run_command
from rsbackbones.train.distributed import join
from rsbackbones.train.recipe_fields import parse_arguments, to_json
from rsbackbones.train.recipes import RECIPES

USAGE = """usage: [torchrun ...] -m rsbackbones.train recipe=NAME data.root=FOLDER out=FOLDER [key=value ...]

  --list       the recipes
  --dry-run    build everything, run two steps, print memory, parameters, FLOPs and the time a run would take

Running the same command again goes on with the run in out=."""


def main(arguments: list[str]) -> int:
    """Run the command; return its exit code."""
    options = [a for a in arguments if a.startswith("-")]
    if unknown := set(options) - {"--list", "--dry-run", "--help", "-h"}:
        raise ValueError(f"unknown option {', '.join(sorted(unknown))}\n{USAGE}")
    if "--help" in options or "-h" in options or not arguments:
        print(USAGE)
        return 0
    if "--list" in options:
        for name, known in RECIPES.items():
            begun = known.first_phase()
            before = f"{begun.epochs} epochs of a first phase, then " if begun else ""
            print(f"{name}: {known.model}, {before}{known.epochs} epochs, batch {known.batch_size}")
        return 0
    recipe = parse_arguments([a for a in arguments if not a.startswith("-")], RECIPES)
    first = os.environ.get("RANK", "0") == "0"
    if first:
        print(json.dumps(to_json(recipe), indent=1))
    if "--dry-run" in options:
        from rsbackbones.train.dry_run import dry_run

        print_to = sys.stdout if first else None
        dry_run(recipe, join(recipe.timeout), print_to)
        return 0
    from rsbackbones.train.loop import train

    summary = train(recipe)
    if first:
        print(f"{summary.status} at step {summary.step} of {summary.total_steps}, {summary.out}")
        if summary.status == "stopped":
            print("the same command goes on from there")
    return 0


if __name__ == "__main__":
    run_command(main, "rsbackbones.train")
