"""How training commands end: errors in one line, and no launcher left waiting."""

import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

import click

from rsbackbones.plugins import load_plugins
from rsbackbones.train.engine.distributed import end_process


def run_command(main: Callable[[list[str]], int], name: str) -> NoReturn:
    """Call ``main`` with the arguments of the process and exit with its code; 2 if an argument is wrong."""
    try:
        load_plugins()
        code = main(sys.argv[1:])
    except (ValueError, OSError, ImportError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        code = 2
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.Abort:  # Ctrl-C
        print(f"{name}: interrupted", file=sys.stderr)
        code = 130
    except BaseException:
        if "WORLD_SIZE" not in os.environ:
            raise
        traceback.print_exc()  # and then leave at once: a thread may still wait for a process that is gone
        code = 1
    if "WORLD_SIZE" in os.environ:
        end_process(code)
    sys.exit(code)
