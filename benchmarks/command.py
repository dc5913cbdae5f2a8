"""The command line of a measurement that writes NAME.json, NAME.md and NAME.png."""

import argparse
from pathlib import Path
from typing import Protocol


class Measure(Protocol):
    """Measures, writes the files to a folder and returns the page."""

    def __call__(self, output: Path, *, quick: bool) -> str: ...


def main(measure: Measure, description: str | None) -> None:
    """Measure as the command line says, and print the page."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the small model, a few minutes")
    parser.add_argument(
        "--output", type=Path, default=Path("bench"), metavar="DIR", help="where the files go; default bench"
    )
    options = parser.parse_args()
    print(measure(options.output.expanduser(), quick=options.quick), end="")
