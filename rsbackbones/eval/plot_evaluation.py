"""All plots of an evaluation, drawn by :mod:`rsbackbones.eval.plots`."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rsbackbones.data.labelled.crops import Size, pair
from rsbackbones.data.labelled.dataset import Array, LabelledDataset
from rsbackbones.eval.extrapolation import AtSize, draw_extrapolation
from rsbackbones.eval.feature_source import FeatureSource
from rsbackbones.eval.linear_probe import CROMA_OPTIONS, train_probes
from rsbackbones.eval.plots import Segmented, draw_features, draw_segmentations, draw_sparse
from rsbackbones.eval.run import streams_of
from rsbackbones.files.progress import progress_bar

# Points in a picture of features: t-SNE of so many takes seconds, and more would cover each other.
_MOST = 2000
# Images in a plot of segmentations, evenly spaced over the test split.
_EXAMPLES = 4

# A plot: its path, and the function that draws it.
_Picture = tuple[Path, Callable[[Path], None]]


def plot_evaluation(
    folder: str | Path,
    found: Mapping[str, Any],
    sources: Sequence[FeatureSource],
    data: LabelledDataset,
    *,
    streams: Sequence[str] | None = None,
    size: int | Size | None = None,
    progress: bool = True,
) -> tuple[list[Path], list[str]]:
    """Draw the pictures of an evaluation's first seed.

    - ``tsne_*.png`` and ``umap_*.png`` (where umap-learn is installed): the test split, in every stream.
    - ``segmentation_*.png``, where labels are maps and ``linear`` was run: images, labels, and what the
      linear probe predicts of every patch.
    - ``sparse.png`` and ``extrapolation.png``, where these were run.

    Args:
        folder: of the pictures.
        found: what was run, with ``rows``, ``diagnostics``, ``metric`` and ``seeds``.
        sources: their features.
        data: the set, split by the first seed.
        streams: as for :func:`rsbackbones.eval.run.evaluate`.
        size: that images were resized to, in pixels.
        progress: show a bar.

    Returns:
        The files, and what was not drawn, with the reason.

    Raises:
        ImportError: matplotlib is not installed.
    """
    folder, seed = Path(folder).expanduser(), found["seeds"][0]
    first = [row for row in found["rows"] if row["seed"] == seed]
    pictures: list[_Picture] = []
    notes: list[str] = []
    sparse = {f"{r['source']}, {r['stream']}": r["details"] for r in first if r["protocol"] == "sparse"}
    if sparse:
        pictures.append((folder / "sparse.png", partial(draw_sparse, sparse, data.classes)))
    if data.labels is None:
        linear = [row for row in first if row["protocol"] == "linear"]
        pictures += _segmentations(folder, linear, sources, data, size)
        if not linear:
            notes.append("segmentations show what the linear probe predicts: run linear too")
    extrapolated = {
        f"{row['source']}, {row['stream']}": row["details"]
        for row in found["diagnostics"].get("extrapolation", ())
        if row["seed"] == seed
    }
    if extrapolated:
        pictures.append((folder / "extrapolation.png", partial(_extrapolation, extrapolated)))
    if found["rows"]:  # last, as they take longest
        of_features, undrawn = _features(folder, sources, data, seed, streams)
        pictures += of_features
        notes += undrawn
    folder.mkdir(parents=True, exist_ok=True)
    with progress_bar(len(pictures), 0, enabled=progress, unit="picture") as bar:
        for path, draw in pictures:
            bar.set_postfix_str(path.name)
            draw(path)
            bar.update()
    return [path for path, _ in pictures], notes


def _features(
    folder: Path,
    sources: Sequence[FeatureSource],
    data: LabelledDataset,
    seed: int,
    streams: Sequence[str] | None,
) -> tuple[list[_Picture], list[str]]:
    methods: list[Literal["tsne", "umap"]] = ["tsne"]
    notes = []
    if find_spec("umap") is not None:
        methods.append("umap")
    else:
        notes.append("no UMAP beside t-SNE: umap-learn is not installed (pip install 'rsbackbones[umap]')")
    pictures: list[_Picture] = []
    for source in sources:
        encoded = source.features(data, seed)
        for stream in streams_of(encoded, streams):
            samples = encoded.stream(stream).of_images(data.splits["test"])
            if samples.task == "multilabel":
                return [], ["no t-SNE or UMAP: a point has one color, and these images have several labels"]
            if len(samples) < 4:
                return [], [f"no t-SNE or UMAP: {len(samples)} test samples, at least 4 are needed"]
            for method in methods:
                draw = partial(
                    draw_features, samples, data.classes, title=f"{source.name}, {stream}", method=method,
                    most=_MOST, seed=seed,
                )  # fmt: skip
                pictures.append((folder / f"{method}_{_file_part(source.name, stream)}.png", draw))
    return pictures, notes


def _segmentations(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    sources: Sequence[FeatureSource],
    data: LabelledDataset,
    size: int | Size | None,
) -> Iterator[_Picture]:
    by_name = {source.name: source for source in sources}
    for row in rows:
        draw = partial(_segmentation, row, by_name[row["source"]], data, size)
        yield folder / f"segmentation_{_file_part(row['source'], row['stream'])}.png", draw


def _segmentation(
    row: Mapping[str, Any], source: FeatureSource, data: LabelledDataset, size: int | Size | None, path: Path
) -> None:
    draw_segmentations(segmented(row, source, data, size=size), data.classes, path)


def segmented(
    row: Mapping[str, Any], source: FeatureSource, data: LabelledDataset, *, size: int | Size | None = None
) -> list[Segmented]:
    """Return some test images with what the linear probe of a row predicts, the same class all over a patch.

    Args:
        row: of ``linear``.
        source: the feature source of the row.
        data: split by the seed of the row.
        size: that images were resized to, in pixels.
    """
    assert source.model is not None, "no linear probe is run on statistics"
    seed, stream, lr = row["seed"], row["stream"], row["details"]["lr"]
    encoded = source.features(data, seed)
    train = encoded.stream(stream).of_images(data.splits["train"])
    # The probe of the chosen learning rate alone: in the sweep it was one of 27, each on its own.
    probes = train_probes(
        train,
        classes=len(data.classes),
        kind="linear",
        seed=seed,
        options=replace(CROMA_OPTIONS, rates=(lr,)),
    )
    test = data.splits["test"]
    images = test[np.linspace(0, len(test) - 1, min(_EXAMPLES, len(test))).round().astype(int)]
    patches = source.features(_with_all_patches(data, images), seed)
    predicted = probes.scores(patches.stream(stream).features, lr).argmax(1)
    examples = []
    for number, image in enumerate(images.tolist()):
        raw = data.read(image)
        modality = next(iter(data.bands))
        pixels = raw[modality] if data.task != "change" else raw[modality][-1]
        of_image = predicted[patches.groups == number]
        label = raw["label"]
        whole = pair(size) if size else (label.shape[0], label.shape[1])
        examples.append(
            Segmented(
                name=data.ids[image],
                image=pixels,
                bands=data.bands[modality],
                label=label,
                prediction=_of_pixels(of_image, source.model(seed).stride, whole, label.shape),
            )
        )
    return examples


def _with_all_patches(data: LabelledDataset, images: npt.NDArray[np.int64]) -> LabelledDataset:
    """Return some images as a set in which every pixel has a label, so that no patch is left out."""

    def read(index: int) -> dict[str, Array]:
        raw = data.read(int(images[index]))
        return {**raw, "label": np.zeros_like(raw["label"])}

    described = f"{data.digest}, every patch of {images.tolist()}"
    return replace(
        data,
        ids=tuple(data.ids[image] for image in images.tolist()),
        splits={"test": np.arange(len(images))},
        read=read,
        digest=hashlib.sha256(described.encode()).hexdigest(),
    )


def _of_pixels(
    predicted: Array, patch: int, encoded: tuple[int, int], shape: Sequence[int]
) -> npt.NDArray[np.int64]:
    """Patch predictions [n], of an image that was encoded at some size, as a map of a shape [H, W]."""
    rows, columns = (
        ((np.arange(side) + 0.5) * at / side // patch).astype(np.int64)
        for side, at in zip(shape, encoded, strict=True)
    )
    grid = predicted.reshape(-1, -(-encoded[1] // patch))
    return np.asarray(grid[rows[:, None], columns], np.int64)


def _extrapolation(details: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    results = {  # what is JSON has lists for tuples
        name: [AtSize(**{**row, "size": tuple(row["size"])}) for row in found["by_size"]]
        for name, found in details.items()
    }
    first = next(iter(details.values()))
    draw_extrapolation(results, first["metric"], path, train_size=tuple(first["train_size"]))


def _file_part(source: str, stream: str) -> str:
    """Return a part of a file's name: the name of a source may be the path of a checkpoint."""
    return re.sub(r"[^\w.+-]+", "-", f"{source}_{stream}").strip("-")
