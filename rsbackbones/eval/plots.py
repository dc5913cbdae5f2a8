"""Pictures: features in the plane, segmentations beside their labels, curves of sparse probes.

As CROMA's figures 3 to 16 (appendix A.6): UMAP and t-SNE of the features, one color per class; F1 over the
number of dimensions, a panel per class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rsbackbones.data.labelled.dataset import IGNORED, Array
from rsbackbones.data.pictures import false_colors, new_figure, save_png, stretched
from rsbackbones.eval.feature_table import FeatureTable, validate_table


@dataclass(frozen=True, kw_only=True)
class Segmented:
    """An image with its label map and a prediction.

    Attributes:
        name: over the panels.
        image: [C, H, W], raw or normalized.
        bands: the names of its channels.
        label: [H, W] int64, -1 where it is ignored.
        prediction: [H, W] int64.
    """

    name: str
    image: Array
    bands: Sequence[str]
    label: Array
    prediction: Array


def draw_features(
    samples: FeatureTable,
    names: Sequence[str],
    path: str | Path,
    *,
    title: str = "",
    method: Literal["tsne", "umap"] = "tsne",
    most: int = 5000,
    seed: int = 0,
) -> None:
    """Draw features in the plane, by t-SNE (scikit-learn) or UMAP (umap-learn), and color them by class.

    Of more than ``most`` samples so many are drawn by lot, and the picture says so. ``title`` says whose
    features they are.

    Raises:
        ValueError: samples or labels are not as they should be, fewer than 4, or of several labels each.
        ImportError: umap-learn is not installed.
    """
    samples = validate_table("picture", samples, len(names))
    if samples.task == "multilabel" or len(samples) < 4:
        raise ValueError("a picture of features needs at least 4 samples of one class each")
    count = len(samples)
    if count > most:
        samples = samples.take(np.random.default_rng(seed).permutation(count)[:most])
    places = _plane(samples.features, method, seed)
    shown = np.unique(samples.labels)
    columns = -(-len(shown) // 25)
    figure = new_figure(6.2 + 1.6 * columns, 5.6)
    axis = figure.add_subplot()
    size = float(np.clip(4000 / len(places), 3, 48))
    for label, color in zip(shown, _class_colors(len(names))[shown], strict=True):
        of_label = samples.labels == label
        axis.scatter(*places[of_label].T, s=size, color=color, linewidths=0, label=names[label])
    axis.set_title(
        (f"{title}\n" if title else "")
        + f"{'t-SNE' if method == 'tsne' else 'UMAP'}, {len(places)}"
        + (f" of {count} samples" if count > most else " samples"),
        fontsize=10,
    )
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_aspect("equal", "datalim")
    figure.legend(loc="outside right upper", fontsize=8, ncols=columns, markerscale=(36 / size) ** 0.5)
    save_png(figure, path)


def draw_segmentations(examples: Sequence[Segmented], names: Sequence[str], path: str | Path) -> None:
    """Draw each image, its labels (ignored pixels white) and the prediction, with the classes in a legend.

    Raises:
        ValueError: there is no example, or maps and images differ in size.
    """
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.patches import Patch

    if not examples:
        raise ValueError("there is no example to draw")
    for example in examples:
        sizes = {map.shape for map in (example.image[0], example.label, example.prediction)}
        if len(sizes) > 1:
            raise ValueError(f"{example.name}: image, label and prediction differ in size: {sorted(sizes)}")
    colors = _class_colors(len(names))
    table = ListedColormap(["white", *map(tuple, colors)])
    norm = BoundaryNorm(np.arange(IGNORED - 0.5, len(names)), table.N)
    figure = new_figure(3 * 2.4 + 1.8, 2.5 * len(examples))
    pictures = [false_colors(e.image.astype(np.float32), list(e.bands)) for e in examples]
    # One stretch for all of them: by its own, open water would be noise in all colors.
    every = np.concatenate([picture.reshape(-1, 3) for picture in pictures])
    for row, (example, picture) in enumerate(zip(examples, pictures, strict=True)):
        panels = ((example.name, picture), ("label", example.label), ("prediction", example.prediction))
        for column, (title, panel) in enumerate(panels):
            axis = figure.add_subplot(len(examples), 3, 3 * row + column + 1)
            if column == 0:
                axis.imshow(stretched(panel, every), interpolation="nearest")
            else:
                axis.imshow(panel, cmap=table, norm=norm, interpolation="nearest")
            axis.set_title(title[-40:], fontsize=8)
            axis.set_xticks([])
            axis.set_yticks([])
    patches = [Patch(color=color, label=name) for color, name in zip(colors, names, strict=True)]
    figure.legend(handles=patches, loc="outside right upper", fontsize=8)
    save_png(figure, path)


def draw_sparse(curves: Mapping[str, Mapping[str, Any]], names: Sequence[str], path: str | Path) -> None:
    """Draw F1 over the number of dimensions, a panel per class, a line for each of the features.

    Args:
        curves: by the name of the features, the details that :func:`rsbackbones.eval.sparse.sparse` gives.
        names: of the classes.
        path: of the PNG.
    """
    columns = min(5, len(names))
    rows = -(-len(names) // columns)
    figure = new_figure(2.5 * columns, 2.1 * rows + 0.4)
    for label, name in enumerate(names):
        axis = figure.add_subplot(rows, columns, label + 1)
        for features, details in curves.items():
            f1 = np.array([by_class[label] for by_class in details["f1"]], dtype=np.float64)  # None: NaN
            axis.plot(details["k"], f1, marker=".", linewidth=1.2, label=features if label == 0 else None)
        axis.set_xscale("log", base=2)
        axis.set_ylim(-0.03, 1.03)
        axis.set_title(name, fontsize=8)
        axis.tick_params(labelsize=7)
        if label % columns == 0:
            axis.set_ylabel("F1", fontsize=8)
        if label + columns >= len(names):
            axis.set_xlabel("dimensions", fontsize=8)
    figure.legend(loc="outside upper center", fontsize=8, ncols=min(4, len(curves)))
    save_png(figure, path)


def _plane(features: Array, method: str, seed: int) -> Array:
    """Return [n, 2]."""
    if method == "tsne":
        from sklearn.manifold import TSNE

        # 30 is usual; it must be below the number of samples.
        perplexity = min(30.0, (len(features) - 1) / 3)
        return np.asarray(
            TSNE(2, init="pca", perplexity=perplexity, random_state=seed).fit_transform(features)
        )
    if method != "umap":
        raise ValueError(f"method={method!r}: expected 'tsne' or 'umap'")
    try:
        from umap import UMAP
    except ImportError as error:
        raise ImportError("UMAP pictures need umap-learn: pip install rsbackbones[umap]") from error
    return np.asarray(UMAP(n_neighbors=min(15, len(features) - 1), random_state=seed).fit_transform(features))


def _class_colors(classes: int) -> Array:
    """Return [K, 4] colors that can be told apart, as far as there are as many."""
    from matplotlib import colormaps

    if classes <= 20:
        name = "tab10" if classes <= 10 else "tab20"
        return np.array([colormaps[name](number) for number in range(classes)])
    return np.asarray(colormaps["nipy_spectral"](np.linspace(0.04, 0.96, classes)))
