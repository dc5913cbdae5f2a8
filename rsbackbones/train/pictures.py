"""The pictures of a run: loss curves, and what was seen and reconstructed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from rsbackbones.train.run_folder import read_log

# What is no curve of interest on its own.
_NOT_DRAWN = ("step", "epoch", "samples_per_s", "data_wait")


def draw_losses(folder: Path) -> None:
    """Draw ``loss.png`` from ``metrics.jsonl``: a panel for every number that is logged."""
    figure_class = _figure()
    lines = read_log(folder)
    names = [name for name in dict.fromkeys(n for line in lines for n in line) if name not in _NOT_DRAWN]
    if not names:
        return
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure = figure_class(figsize=(3.6 * columns, 2.6 * rows), layout="constrained")
    for number, name in enumerate(names):
        axis = figure.add_subplot(rows, columns, number + 1)
        steps, values = zip(*((line["step"], line[name]) for line in lines if name in line), strict=True)
        axis.plot(steps, values, linewidth=0.4, color="tab:blue", alpha=0.4 if len(steps) > 100 else 1)
        if len(steps) > 100:  # single steps are noisy: the mean of fiftieths of the run over them
            parts = np.array_split(np.stack([steps, values]), 50, axis=1)
            axis.plot(*np.stack([part.mean(axis=1) for part in parts], axis=1), color="tab:blue")
        axis.set_title(name.replace("_", " "), fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
    _save(figure, folder / "loss.png")


def draw_reconstructions(
    folder: Path,
    examples: Sequence[tuple[str, Mapping[str, tuple[Tensor, Tensor, Tensor]], Mapping[str, Sequence[str]]]],
) -> None:
    """Draw ``reconstruction.png``: for every example image, what the encoder saw, and the prediction.

    An example is (name, {modality: (image, seen, predicted), each [C, H, W]}, {modality: bands}).
    """
    rows = [
        (name, modality, images, bands[modality])
        for name, by_modality, bands in examples
        for modality, images in by_modality.items()
    ]
    if not rows:
        return
    figure = _figure()(figsize=(7.5, 2.4 * len(rows)), layout="constrained")
    for number, (name, modality, images, bands) in enumerate(rows):
        pictures = [_colours(image.float().cpu().numpy(), modality, bands) for image in images]
        known = pictures[0].reshape(-1, pictures[0].shape[-1])
        low, high = np.percentile(known, (2, 98), axis=0)
        for column, title in enumerate((name, "seen", "reconstructed")):
            axis = figure.add_subplot(len(rows), 3, number * 3 + column + 1)
            stretched = np.clip((pictures[column] - low) / np.maximum(high - low, 1e-6), 0, 1)
            axis.imshow(np.nan_to_num(stretched, nan=0.5), interpolation="nearest")
            axis.set_title(title if column else f"{modality}: {title}"[-34:], fontsize=7)
            axis.set_axis_off()
    _save(figure, folder / "reconstruction.png")


def _colours(image: npt.NDArray[Any], modality: str, bands: Sequence[str]) -> npt.NDArray[Any]:
    """[C, H, W] to [H, W, 3]: true colour, or VV, VH and their difference, else the first band in grey."""
    if all(band in bands for band in ("B04", "B03", "B02")):
        chosen = image[[bands.index(band) for band in ("B04", "B03", "B02")]]
    elif all(band in bands for band in ("VV", "VH")):
        vv, vh = image[bands.index("VV")], image[bands.index("VH")]
        chosen = np.stack([vv, vh, vv - vh])
    else:
        chosen = np.repeat(image[:1], 3, axis=0)
    return np.moveaxis(chosen, 0, -1)


def _figure() -> Any:
    # The object itself rather than pyplot: no global state, no display, whatever the user has set up.
    from matplotlib.figure import Figure

    return Figure


def _save(figure: Any, path: Path) -> None:
    part = path.with_name(path.name + ".tmp")
    figure.savefig(part, dpi=110, format="png")
    part.replace(path)
