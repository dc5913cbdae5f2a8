"""How training commands run and end: errors in one line, and no launcher left waiting."""

import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import click

from rsbackbones.files.terminal import plain_output
from rsbackbones.plugins import load_plugins
from rsbackbones.train.engine.distributed import end_process


def call_command(command: click.Command, arguments: Sequence[str], module: str) -> int:
    """Run a command of ``module``, print expected errors, and return the exit code: 2 for an error."""
    with plain_output():
        return _call(command, arguments, module)


def _call(command: click.Command, arguments: Sequence[str], module: str) -> int:
    try:
        load_plugins()
        code: int = command.main(list(arguments), prog_name=f"python -m {module}", standalone_mode=False)
        return code or 0
    except (ValueError, OSError, ImportError) as error:
        print(f"{module}: {error}", file=sys.stderr)
        return 2
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:  # Ctrl-C
        print(f"{module}: interrupted", file=sys.stderr)
        return 130


def run_command(command: click.Command, module: str) -> NoReturn:
    """Run a command with the arguments of the process, and end the process."""
    try:
        code = call_command(command, sys.argv[1:], module)
    except BaseException:
        if "WORLD_SIZE" not in os.environ:
            raise
        traceback.print_exc()  # and then leave at once: a thread may still wait for a process that is gone
        code = 1
    if "WORLD_SIZE" in os.environ:
        end_process(code)
    sys.exit(code)
