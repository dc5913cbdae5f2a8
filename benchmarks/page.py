"""What the pages of several measurements share, as Markdown: the machine, numbers, where the time goes."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any


def describe(found: dict[str, Any]) -> str:
    """Return a sentence on the machine and the command of a measurement, ``found``."""
    on = found["machine"]
    gib = f", {on['memory_bytes'] / 2**30:.0f} GiB" if on["memory_bytes"] else ""
    return (
        f"{on['cpu']}, {on['instructions']}, {found['threads']} threads on {on['cores']} cores{gib}; torch "
        f"{on['torch']}, Python {on['python']}, rsbackbones {on['rsbackbones']}; seed {found['seed']}; load "
        f"{on['load_before']} before. `{found['command']}`."
    )


def number(held: Mapping[str, Any], name: str, form: str, unit: float = 1) -> str:
    """Return a number in ``unit``, or a dash where it was not measured."""
    return form.format(held[name] / unit) if held.get(name) is not None else "-"


def mean_and_deviation(values: Sequence[float]) -> str:
    """Return the mean of several seeds and their standard deviation."""
    return f"{mean(values):.1f} ± {stdev(values):.1f}"


def part_rows(cells: Sequence[Mapping[str, float]]) -> list[list[str]]:
    """Return the seconds of each part, in milliseconds and as a share, one column per cell, and their sum."""
    rows = []
    for part in cells[0]:
        rows.append([part, *(f"{1e3 * c[part]:.0f} ({c[part] / sum(c.values()):.0%})" for c in cells)])
    return [*rows, ["sum", *(f"{1e3 * sum(c.values()):.0f}" for c in cells)]]
