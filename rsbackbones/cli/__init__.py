"""The command line: ``rsbackbones list | info | bands | download | verify | embed | eval``, and more.

A file a command, or a group of them; each adds its parsers and runs what they read.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

from rsbackbones.cli import convert, embed, eval, finetune, pack, zoo
from rsbackbones.plugins import load_plugins


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 where a check failed, 2 for an error."""
    options = _parser().parse_args(arguments)
    try:
        load_plugins()
        code: int = options.run(options)
        return code
    except (ValueError, ImportError, OSError) as error:
        print(f"rsbackbones {options.command}: {error}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        if "memory" not in str(error).lower() and not isinstance(error, MemoryError):
            raise
        print(f"rsbackbones {options.command}: out of memory ({error}); use a smaller --window or "
              "--batch-size", file=sys.stderr)  # fmt: skip
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    from rsbackbones import __version__

    parser = argparse.ArgumentParser(
        prog="rsbackbones", description="Pretrained backbones for remote sensing."
    )
    parser.add_argument("--version", action="version", version=f"rsbackbones {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        added.set_defaults(run=run)
        return added

    for module in (zoo, embed, eval, finetune, convert, pack):
        module.add(command)
    return parser
