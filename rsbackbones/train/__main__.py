"""``torchrun -m rsbackbones.train recipe=NAME data.root=... output=... key=value``."""

import json
import os
import sys

from rsbackbones.train.command import run_command
from rsbackbones.train.engine.config_io import parse_arguments, to_json
from rsbackbones.train.engine.distributed import init_distributed
from rsbackbones.train.recipes import RECIPES

USAGE = """usage: [torchrun ...] -m rsbackbones.train recipe=NAME data.root=DIR output=DIR [key=value ...]

  --list       the recipes
  --dry-run    build everything, run two steps, print memory, parameters, FLOPs and the time a run would take

Running the same command again goes on with the run in output=."""


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
            stages = known.resolve_stages()
            epochs = ", then ".join(f"{stage.epochs} epochs of batch {stage.batch_size}" for stage in stages)
            print(f"{name}: {known.model}, {epochs}")
        return 0
    recipe = parse_arguments([a for a in arguments if not a.startswith("-")], RECIPES)
    is_main_process = os.environ.get("RANK", "0") == "0"
    if is_main_process:
        print(json.dumps(to_json(recipe), indent=1))
    if "--dry-run" in options:
        from rsbackbones.train.dry_run import dry_run

        print_to = sys.stdout if is_main_process else None
        dry_run(recipe, init_distributed(recipe.timeout), print_to)
        return 0
    from rsbackbones.train.pretraining import pretrain

    summary = pretrain(recipe)
    if is_main_process:
        print(f"{summary.status} at step {summary.step} of {summary.total_steps}, {summary.output}")
        if summary.status == "stopped":
            print("the same command goes on from there")
    return 0


if __name__ == "__main__":
    run_command(main, "rsbackbones.train")
