"""Markdown: tables, and generated sections of hand-written pages."""

import re
from collections.abc import Iterable, Sequence


def markdown_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], align: str, *, spaced: bool = False
) -> str:
    """Return a table, without a newline at its end.

    Args:
        header: the names of the columns.
        rows: their cells.
        align: a letter for each column: ``l`` (left) or ``r`` (right, for numbers).
        spaced: have spaces around the dashes below the header.
    """
    dashes = [{"l": "---", "r": "---:"}[letter] for letter in align]
    below = _row(dashes) if spaced else f"|{'|'.join(dashes)}|"
    return "\n".join([_row(header), below, *map(_row, rows)])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def replace_between(text: str, begin: str, end: str, content: str) -> str:
    """Replace the text between two markers, each on its own line, by ``content``."""
    pattern = f"{re.escape(begin)}.*?{re.escape(end)}"
    return re.sub(pattern, lambda _: f"{begin}\n{content}\n{end}", text, flags=re.DOTALL)
