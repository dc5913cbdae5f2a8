"""Plots of a run: loss curves, and reconstructions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rsbackbones.data.pictures import false_colors, new_figure, save_png, stretched
from rsbackbones.train.engine.run_dir import read_log

# Values without a panel of their own.
_NOT_DRAWN = ("step", "epoch", "task", "samples_per_s", "data_wait")


def draw_losses(folder: Path) -> None:
    """Draw ``loss.png`` from ``metrics.jsonl``, with one panel per logged value."""
    lines = read_log(folder)
    names = [name for name in dict.fromkeys(n for line in lines for n in line) if name not in _NOT_DRAWN]
    if not names:
        return
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure = new_figure(3.6 * columns, 2.6 * rows)
    for number, name in enumerate(names):
        axis = figure.add_subplot(rows, columns, number + 1)
        steps, values = zip(*((line["step"], line[name]) for line in lines if name in line), strict=True)
        axis.plot(steps, values, linewidth=0.4, color="tab:blue", alpha=0.4 if len(steps) > 100 else 1)
        if len(steps) > 100:  # single steps are noisy: also plot means over 50 parts of the run
            parts = np.array_split(np.stack([steps, values]), 50, axis=1)
            axis.plot(*np.stack([part.mean(axis=1) for part in parts], axis=1), color="tab:blue")
        axis.set_title(name.replace("_", " "), fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
    save_png(figure, folder / "loss.png")


def draw_reconstructions(
    folder: Path,
    examples: Sequence[tuple[str, Mapping[str, tuple[Any, ...]], Mapping[str, Sequence[str]]]],
) -> None:
    """Draw ``reconstruction.png``: every example image, its visible patches, and the prediction.

    An example is (name, {modality: (image, seen, predicted), each [C, H, W]}, {modality: bands}); a fourth
    element is the modality of what was seen, if it is another one.
    """
    examples = [example for example in examples if example[1]]
    if not examples:
        return
    columns = 3 * max(len(images) for _, images, _ in examples)
    shapes = [image.shape for _, by_modality, _ in examples for image, *_ in by_modality.values()]
    stretch = (
        max(width / height for _, height, width in shapes) ** 0.5
    )  # the dates of a series lie side by side
    figure = new_figure(1.9 * columns * stretch, 0.3 + (1.7 / stretch + 0.3) * len(examples))
    for row, (name, by_modality, bands) in enumerate(examples):
        column = 0
        for modality, images in by_modality.items():
            image, seen, predicted, *other = images
            shown = {
                f"{modality}, {name}"[-36:]: (image, image, modality),
                "seen": (seen, seen if other else image, *(other or [modality])),
                "reconstructed": (predicted, image, modality),
            }
            for title, (values, like, m) in shown.items():
                picture, reference = (false_colors(x.float().cpu().numpy(), bands[m]) for x in (values, like))
                column += 1
                axis = figure.add_subplot(len(examples), columns, row * columns + column)
                axis.imshow(stretched(picture, reference), interpolation="nearest")
                axis.set_title(f"{title}, {m}" if other and title == "seen" else title, fontsize=6)
                axis.set_axis_off()
    save_png(figure, folder / "reconstruction.png")
