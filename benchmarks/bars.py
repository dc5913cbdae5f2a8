"""Bars of several measured things, side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One set of bars: for each series a value per group, 0 where there is none; ``log`` of the scale."""

    title: str
    values: Mapping[str, Sequence[float]]
    log: bool = False


def draw_bars(panels: Sequence[Panel], groups: Sequence[str], title: str, path: Path) -> None:
    """Draw the panels next to each other, their groups along the axis, to a PNG at ``path``."""
    # The object itself rather than pyplot: no global state, no display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(4.0, 0.9 * len(groups)) * len(panels), 3.2), layout="constrained")
    for number, panel in enumerate(panels):
        axis = figure.add_subplot(1, len(panels), number + 1)
        width = 0.8 / len(panel.values)
        for place, (series, values) in enumerate(panel.values.items()):
            shift = (place - (len(panel.values) - 1) / 2) * width
            # On a logarithmic axis a bar without height is an invisible one.
            axis.bar([i + shift for i in range(len(groups))], values, width=0.95 * width, label=series)
        axis.set_xticks(range(len(groups)), groups, fontsize=7)
        if panel.log:
            axis.set_yscale("log")
        axis.set_title(panel.title, fontsize=10)
        axis.tick_params(axis="y", labelsize=8)
        axis.legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    part = path.with_name(path.name + ".tmp")
    figure.savefig(part, dpi=110, format="png")
    part.replace(path)
