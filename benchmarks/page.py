"""What the pages of several measurements share, as Markdown: the machine, numbers, where the time goes."""

from collections.abc import Mapping, Sequence
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


def table_row(cells: Sequence[str]) -> str:
    """Return a row of a table."""
    return "| " + " | ".join(cells) + " |"


def table_head(names: Sequence[str], *, texts: int = 1) -> list[str]:
    """Return the head of a table whose first ``texts`` columns are text and whose others are numbers."""
    return [table_row(names), "|" + "---|" * texts + "---:|" * (len(names) - texts)]


def number(held: Mapping[str, Any], name: str, form: str, unit: float = 1) -> str:
    """Return a number in ``unit``, or a dash where it was not measured."""
    return form.format(held[name] / unit) if held.get(name) is not None else "-"


def part_lines(cells: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return a table of the seconds of each part, in milliseconds and as a share, one column per cell."""
    lines = table_head(["", *cells])
    for part in next(iter(cells.values())):
        shares = [f"{1e3 * c[part]:.0f} ({c[part] / sum(c.values()):.0%})" for c in cells.values()]
        lines.append(table_row([part, *shares]))
    return [*lines, table_row(["sum", *(f"{1e3 * sum(c.values()):.0f}" for c in cells.values())])]
