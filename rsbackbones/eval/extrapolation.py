"""Extrapolation: trained at one image size, evaluated at others, without further training.

Source: Fuller et al., CROMA, NeurIPS 2023, section 4.2 and table 7. There a model is fine-tuned with a linear
head on 120 x 120 pixels and scored (mIoU) on images of 48 to 504 pixels. The larger and smaller images are
cropped from larger ones: a pixel is 10 m on the ground at any size, and what changes is the area. So it is
here, with a probe of frozen features (:func:`extrapolate`) or with any trained model
(:func:`score_at_sizes`).

What the paper leaves open: how many crops of an image there are. Ours are the largest whole grid of
crops that do not overlap, in the middle of the image. At sizes that do not divide the image's the edges
count at none, so areas, and numbers with them, differ a little between sizes for that reason alone.

The rows of table 7 are models with other position encodings, ``overrides={"positions": ...}``; "with
interpolation" is the sine-cosine model after :func:`rsbackbones.layers.sincos.interpolate_positions`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from torch import nn

from rsbackbones.data.labelled.crops import Crops, Size, cropped, name_of, pair
from rsbackbones.data.labelled.dataset import Array, LabelledDataset
from rsbackbones.data.pictures import new_figure, save_png
from rsbackbones.eval.bootstrap import intervals
from rsbackbones.eval.encode import encode
from rsbackbones.eval.feature_table import FeatureTable
from rsbackbones.eval.linear_probe import CROMA_OPTIONS, ProbeOptions, ProbeType
from rsbackbones.eval.metrics import compute_metrics, primary_metric
from rsbackbones.eval.predictions import Predictions
from rsbackbones.eval.probe import probe
from rsbackbones.files.markdown import markdown_table
from rsbackbones.models.backbone import unwrap_model

# Of table 7, in pixels, and a rectangle.
SIZES: tuple[int | Size, ...] = (48, 96, 120, 224, 384, 448, 504, (96, 480))


@dataclass(frozen=True, kw_only=True)
class AtSize:
    """What was scored at one size.

    Attributes:
        size: of the images, (height, width) in pixels.
        images: how many of that size.
        metrics: of the task.
        intervals: of the metrics, over the images that were cropped; none where that was a single one.
    """

    size: Size
    images: int
    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def extrapolate(
    model: nn.Module,
    data: LabelledDataset,
    *,
    train_size: int | Size = 120,
    sizes: Sequence[int | Size] = SIZES,
    stream: str | None = None,
    kind: ProbeType = "linear",
    options: ProbeOptions = CROMA_OPTIONS,
    seed: int = 0,
    num_resamples: int = 1000,
    batch_size: int = 32,
    cache: str | Path | None = None,
    progress: bool = False,
) -> list[AtSize]:
    """Train a probe on frozen features of one image size, and score it at others.

    Where labels are maps the probe is of patches, and its predictions are scored by pixels; else it is of
    images. Its learning rate is chosen once, at the size that it is trained at.

    Args:
        model: from ``create_model``.
        data: its images are as large as the largest size, or larger.
        train_size: of the crops of ``train`` (and ``val``), in pixels, or (height, width).
        sizes: of the crops of ``test``.
        stream: as ``s2``, ``joint`` or ``s1+s2``; default: the one that all of the model's sensors feed.
        kind: of the probe, ``linear`` or ``mlp``.
        options: how it is trained.
        seed: of the probe and of the intervals.
        num_resamples: bootstrap resamples, over whole images before they are cropped.
        batch_size: images of ``train_size`` at a time, and as many pixels of larger ones.
        cache: a folder of features, as for :func:`rsbackbones.eval.encode.encode`.
        progress: show bars of the images.

    Returns:
        The scores at every size, in the order of ``sizes``.

    Raises:
        ValueError: an image is smaller than a size, or as ``encode`` and ``probe``.
    """
    backbone = unwrap_model(model)
    stream = stream or backbone.choose_stream(None, dict.fromkeys(backbone.modalities))

    def encoded(crops: LabelledDataset) -> FeatureTable:
        pixels = np.prod(pair(train_size)) / np.prod(_crops(crops).size)
        return encode(
            model,
            crops,
            streams=stream.split("+"),
            level="patch" if data.task in ("pixels", "change") else "image",
            batch_size=max(1, int(batch_size * min(1, pixels))),
            cache=cache,
            progress=progress,
        )

    # All are cropped before any is encoded: images that are too small are refused at once.
    fitted = cropped(data, train_size, splits=[s for s in data.splits if s != "test"])
    tests = [cropped(data, size, splits=("test",)) for size in sizes]
    of_fitted = encoded(fitted)
    parts = {
        split: replace(samples, groups=_sources(fitted, samples, fitted.splits[split]))
        for split in fitted.splits
        for samples in [of_fitted.stream(stream).of_images(fitted.splits[split])]
    }
    of_tests = [encoded(test) for test in tests]
    samples = [e.stream(stream).of_images(t.splits["test"]) for e, t in zip(of_tests, tests, strict=True)]
    # One probe for all sizes: they are one test split to it, and are told apart afterwards.
    predictions = probe(
        parts["train"],
        FeatureTable(
            np.concatenate([s.features for s in samples]), np.concatenate([s.labels for s in samples])
        ),
        classes=len(data.classes),
        val=parts.get("val"),
        kind=kind,
        seed=seed,
        options=options,
        metric=primary_metric(data.task, [str(number) for number in range(len(data.classes))]),
    )
    ends = np.cumsum([len(s) for s in samples])
    scores = np.split(predictions.scores, ends[:-1])
    return [
        _scored(test, part.predictions(s), seed=seed, num_resamples=num_resamples)
        for test, part, s in zip(tests, samples, scores, strict=True)
    ]


def _sources(crops: LabelledDataset, of: FeatureTable | Predictions, images: Array) -> Array:
    """The image that each sample is of: crops of one are alike, and are drawn and held out together."""
    sources: Array = _crops(crops).places[images if of.groups is None else of.groups, 0]
    return sources


def _scored(crops: LabelledDataset, predictions: Predictions, *, seed: int, num_resamples: int) -> AtSize:
    predictions = replace(predictions, groups=_sources(crops, predictions, crops.splits["test"]))
    named = (predictions, crops.task, crops.classes)
    return AtSize(
        size=_crops(crops).size,
        images=len(crops),
        metrics=compute_metrics(*named),
        intervals=intervals(*named, seed=seed, num_resamples=num_resamples),
    )


def score_at_sizes(
    score: Callable[[LabelledDataset], Mapping[str, float]],
    data: LabelledDataset,
    sizes: Sequence[int | Size] = SIZES,
) -> list[AtSize]:
    """Score a trained model at every size, such as one that was fine-tuned as in the paper.

    Args:
        score: a set of crops, all of them in ``test``, to metrics; of a dense model
            ``lambda crops: from_confusion(predict(model, crops, "test").sum(0), crops.classes)``.
        data: its ``test`` images are cropped.
        sizes: in pixels, or (height, width).

    Raises:
        ValueError: an image is smaller than a size, there is no ``test``, or what ``score`` raises.
    """
    found = []
    for size in sizes:
        crops = cropped(data, size, splits=("test",))
        found.append(AtSize(size=_crops(crops).size, images=len(crops), metrics=score(crops)))
    return found


def table(results: Mapping[str, Sequence[AtSize]], metric: str) -> str:
    """Return a Markdown table of one metric in percent: a row per model, a column per size.

    Raises:
        ValueError: there are no results, their sizes differ, or one lacks the metric.
    """
    sizes = _sizes(results, metric)
    lines = [[model, *(f"{100 * r.metrics[metric]:.1f}" for r in rows)] for model, rows in results.items()]
    return markdown_table(["", *map(name_of, sizes)], lines, "l" + "r" * len(sizes), spaced=True) + "\n"


def draw_extrapolation(
    results: Mapping[str, Sequence[AtSize]], metric: str, path: Path, *, train_size: int | Size = 120
) -> None:
    """Draw one metric over the size, a line for each model, with its intervals where there are any.

    Args:
        results: by the name of the model.
        metric: which.
        path: of the PNG.
        train_size: marked, where it is among the sizes.

    Raises:
        ValueError: as :func:`table`.
        ImportError: matplotlib is not installed.
    """
    sizes = _sizes(results, metric)
    # By area, at equal distances: from 48 to 504 pixels is a factor of 110 in area.
    order = sorted(range(len(sizes)), key=lambda i: sizes[i][0] * sizes[i][1])
    figure = new_figure(1.6 + 0.7 * len(sizes), 3.6)
    axis = figure.add_subplot()
    for i, (model, rows) in enumerate(results.items()):
        values = [100 * rows[j].metrics[metric] for j in order]
        axis.plot(values, marker="o", markersize=4, label=model, color=f"C{i}")
        bands = [rows[j].intervals.get(metric) for j in order]
        if all(bands):
            low, high = 100 * np.array(bands).T
            axis.fill_between(range(len(order)), low, high, color=f"C{i}", alpha=0.15, linewidth=0)
    if pair(train_size) in sizes:
        place = [sizes[j] for j in order].index(pair(train_size))
        axis.axvline(place, color="gray", linestyle=":", linewidth=1, zorder=0)
    axis.set_xticks(range(len(order)), [name_of(sizes[j]) for j in order])
    axis.set_xlabel(f"image size in pixels, by area (trained at {name_of(pair(train_size))})", fontsize=9)
    axis.set_ylabel(f"{metric}, %", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.legend(fontsize=8)
    save_png(figure, path)


def _crops(data: LabelledDataset) -> Crops:
    assert isinstance(data.read, Crops), "not from cropped"
    return data.read


def _sizes(results: Mapping[str, Sequence[AtSize]], metric: str) -> list[Size]:
    """The sizes of all results, which are the same."""
    lists = [[row.size for row in rows] for rows in results.values()]
    if not lists or not lists[0] or any(sizes != lists[0] for sizes in lists):
        raise ValueError(f"expected the scores of one model or more, all at the same sizes, got {lists}")
    for model, rows in results.items():
        if lacking := [name_of(row.size) for row in rows if metric not in row.metrics]:
            raise ValueError(
                f"{model} has no {metric} at {', '.join(lacking)}; it has {', '.join(rows[0].metrics)}"
            )
    return lists[0]
