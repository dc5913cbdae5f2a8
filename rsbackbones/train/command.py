"""How the commands of training end: errors as one line, and no launcher left waiting."""

import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from rsbackbones.plugins import load_plugins
from rsbackbones.train.engine.distributed import end_process


def run_command(main: Callable[[list[str]], int], name: str) -> NoReturn:
    """Call ``main`` with the process's arguments and exit with its code; 2 where what was given is wrong."""
    try:
        load_plugins()
        code = main(sys.argv[1:])
    except (ValueError, OSError, ImportError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        code = 2
    except BaseException:
        if "WORLD_SIZE" not in os.environ:
            raise
        traceback.print_exc()  # and then leave at once: a thread may still wait for a process that is gone
        code = 1
    if "WORLD_SIZE" in os.environ:
        end_process(code)
    sys.exit(code)
