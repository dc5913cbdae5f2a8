"""The command line: ``rsbackbones list | info | bands | download | verify | embed | eval``, and more.

A file for each command, or for a group of them. Options have the names of the arguments in Python.
"""

import sys
import warnings
from collections.abc import Sequence

import click

from rsbackbones import __version__
from rsbackbones.cli.convert import convert
from rsbackbones.cli.embed import embed
from rsbackbones.cli.eval import evaluate
from rsbackbones.cli.eval_clouds import eval_clouds
from rsbackbones.cli.finetune import finetune
from rsbackbones.cli.pack import pack
from rsbackbones.cli.search import search
from rsbackbones.cli.zoo import bands, download, info, list_weights, manifest, verify
from rsbackbones.files.terminal import plain_output


class _Commands(click.Group):
    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = " ".join(args[:2])  # a command may have a name of two words
        if name in self.commands and len(args) > 1:
            return name, self.commands[name], args[2:]
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of use, not of the alphabet


@click.group(cls=_Commands, context_settings={"show_default": True, "max_content_width": 100})
@click.version_option(__version__, message="%(prog)s %(version)s")
def commands() -> None:
    """Pretrained backbones for remote sensing.

    `rsbackbones COMMAND --help` explains a command. Start with `rsbackbones list`.
    """


_ALL = (
    list_weights, info, bands, download, manifest, verify, embed, search, evaluate, eval_clouds, finetune,
    convert, pack,
)  # fmt: skip
for command in _ALL:
    commands.add_command(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 if a check failed, 2 for an error."""
    before = warnings.formatwarning
    warnings.formatwarning = _format_warning
    try:
        with plain_output():
            return _run(arguments)
    finally:
        warnings.formatwarning = before


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Return a warning as one line: the line of code that gave it says nothing to who types a command."""
    return f"{category.__name__}: {message}\n"


def _run(arguments: Sequence[str] | None) -> int:
    try:
        code: int = commands.main(
            None if arguments is None else list(arguments), prog_name="rsbackbones", standalone_mode=False
        )
        return code or 0
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        if context is not None:
            print(context.get_usage(), file=sys.stderr)
        print(
            f"{context.command_path if context else 'rsbackbones'}: {error.format_message()}", file=sys.stderr
        )
        return error.exit_code
    except click.Abort:
        print("interrupted", file=sys.stderr)
        return 130
