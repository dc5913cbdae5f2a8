"""The command ``finetune``: in one process; ``torchrun -m rsbackbones.train.finetune`` is for several."""

import click

from rsbackbones.cli.options import Command, option

_HELP = """Fine-tune on a labelled data set with the recipe of a paper.

\b
recipe=NAME     a recipe of --list
data=PATH       what `rsbackbones eval --data` takes; torchgeo:NAME needs data_options.root=DIR
output=DIR      the folder of the run; the same command again resumes the run in it
model=NAME      a model other than the recipe's
sweep=true      one run for each learning rate of the recipe, of which the best is reported

Every other field of a recipe is a KEY=VALUE too, such as batch_size=64 or optim.base_lr=1e-4; see
docs/finetuning.md. An unknown key is an error that lists the known ones.
"""


@click.command(help=_HELP, cls=Command, no_args_is_help=True)
@click.argument("fields", nargs=-1, metavar="[KEY=VALUE]...")
@option("--list", "list_recipes", is_flag=True, help="print the recipes")
def finetune(fields: tuple[str, ...], list_recipes: bool) -> int:
    """Fine-tune on a labelled data set with the recipe of a paper."""
    from rsbackbones.train.finetune.__main__ import command

    arguments = [*fields, *(["--list"] if list_recipes else [])]
    code: int = command.main(arguments, prog_name="rsbackbones finetune", standalone_mode=False)
    return code
