"""Predictions of every pixel, whole or by tiles, and their confusion counts.

Metrics follow from the counts (:func:`rsbackbones.eval.metrics.from_confusion`): those of a set from their
sum over its images. A set of three classes of which one is scored, such as Sen1Floods11's water, has its IoU
there.
"""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from rsbackbones.data.image_warnings import ImageWarnings
from rsbackbones.data.labelled.dataset import IGNORED, Array, LabelledDataset
from rsbackbones.data.series import DatedImages, model_arguments, stack_dated
from rsbackbones.data.tiles import Tiling
from rsbackbones.eval.batches import frozen_eval
from rsbackbones.eval.metrics import confusion
from rsbackbones.eval.transform import dated_transform, load_dated
from rsbackbones.files.progress import progress_bar
from rsbackbones.models.backbone import unwrap_model


def predict(
    model: nn.Module,
    data: LabelledDataset,
    split: str,
    *,
    tile: int | None = None,
    overlap: int | None = None,
    batch_size: int = 16,
    progress: bool = False,
    warned: ImageWarnings | None = None,
) -> npt.NDArray[np.int64]:
    """Return the confusion counts of every image of a split, [n, K, K]: rows are labels, columns predictions.

    Sum them over the images for those of the set; draw images for a bootstrap. Pixels of label -1 count
    nowhere, nor do those whose scores are NaN (masked cells), which a warning counts. A model of
    ``scale`` s is scored against labels of s times the size of the images.

    Args:
        model: from ``rsbackbones.heads.dense_model``, also compiled or under data parallelism; it runs on the
            device where it is.
        data: of the task ``pixels`` or ``change``.
        split: ``train``, ``val`` or ``test``.
        tile: predict by tiles of that many pixels and take the mean of their probabilities
            (:mod:`rsbackbones.data.tiles`); default: images whole, which may be of several sizes.
        overlap: of the tiles, in pixels; default half of a tile.
        batch_size: images, or tiles, at a time.
        progress: show a progress bar.
        warned: records the warnings that images earn, for a caller who gives them. Default: they are given at
            the end, once for all.

    Raises:
        ValueError: the set has no label maps, lacks the split or what the model takes, or its labels do not
            fit.
    """
    if data.task not in ("pixels", "change"):
        raise ValueError(f"{data.name} has {data.task}, not a label for every pixel")
    if split not in data.splits or not len(data.splits[split]):
        raise ValueError(f"{data.name} has no samples in {split!r}; its splits: {', '.join(data.splits)}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if overlap is not None and tile is None:
        raise ValueError("overlap is that of tiles; name their size with tile=")
    backbone, transform = unwrap_model(model), dated_transform(model, data)
    modalities = backbone.modalities
    classes = len(data.classes)
    device, _ = backbone.device_and_dtype()
    indices = [int(i) for i in data.splits[split]]
    counts = []
    unscored: list[int] = []
    own = ImageWarnings() if warned is None else warned

    def samples() -> Iterator[tuple[int, DatedImages, Array]]:
        for index in indices:
            images, raw = load_dated(data, index, transform, own)
            yield index, replace(images.to(device), images=backbone.as_input(images.images)), raw["label"]

    def count(index: int, scores: Tensor, label: Array) -> None:
        if len(scores) != classes:
            raise ValueError(f"the model gives {len(scores)} classes, {data.name} has {classes}")
        hidden = scores.isnan().any(0).cpu().numpy()
        unscored.append(int((hidden & (label != IGNORED)).sum()) if hidden.shape == label.shape else 0)
        try:
            given = np.where(hidden, IGNORED, label) if unscored[-1] else label
            counts.append(confusion(given, scores.argmax(0).cpu().numpy(), classes))
        except ValueError as error:
            raise ValueError(f"{data.ids[index]}: {error}") from error

    with frozen_eval(model), progress_bar(len(indices), 0, enabled=progress, unit="image") as bar:
        if tile is not None:
            for index, images, label in samples():
                scores = predict_tiled(
                    model, images.images, dates=images.dates, valid=images.valid, tile=tile, overlap=overlap,
                    batch_size=batch_size,
                )  # fmt: skip
                count(index, scores, label)
                bar.update()
        else:
            for batch in _batches(samples(), batch_size):
                stacked = stack_dated([images for _, images, _ in batch])
                series = model_arguments(stacked.dates, stacked.valid, modalities)
                for (index, _, label), scores in zip(batch, model(stacked.images, **series), strict=True):
                    count(index, scores, label)
                bar.update(len(batch))
    if warned is None:
        own.warn(f"{data.name}, {split}", indices)
    if any(unscored):
        warnings.warn(
            f"{data.name}, {split}: {sum(unscored)} labelled pixels of {sum(map(bool, unscored))} images lie "
            "in masked cells and are not scored",
            stacklevel=2,
        )
    return np.stack(counts)


def predict_tiled(
    model: nn.Module,
    images: Mapping[str, Tensor],
    *,
    dates: Mapping[str, Tensor] | None = None,
    valid: Mapping[str, Tensor] | None = None,
    tile: int,
    overlap: int | None = None,
    batch_size: int = 16,
) -> Tensor:
    """Return the probabilities of one image, [K, H * scale, W * scale]: the mean of its tiles'.

    Args:
        model, tile, overlap, batch_size: as for :func:`predict`; the model in ``eval()`` mode.
        images: normalized, by modality [C, H, W], [2, C, H, W] for change, or a series [T, C, H, W], on the
            model's device.
        dates, valid: of a series, by modality [T].

    Raises:
        ValueError: tiles that the model cannot serve, or as :class:`rsbackbones.data.tiles.Tiling`.
    """
    first = next(iter(images.values()))
    modalities = unwrap_model(model).modalities if dates or valid else ()
    tiling = Tiling(first.shape[-2], first.shape[-1], tile, tile // 2 if overlap is None else overlap)

    def predictions() -> Iterator[Tensor]:
        for start in range(0, len(tiling.corners), batch_size):
            corners = tiling.corners[start : start + batch_size]
            tiles = {m: tiling.cut(image, corners) for m, image in images.items()}
            known, masks = (
                {m: x.expand(len(corners), -1) for m, x in (given or {}).items()} for given in (dates, valid)
            )
            series = model_arguments(known, masks, modalities)
            yield model(tiles, **series).float().softmax(dim=1)

    return tiling.merge(predictions())


def _batches(
    samples: Iterator[tuple[int, DatedImages, Array]], batch_size: int
) -> Iterator[list[tuple[int, DatedImages, Array]]]:
    """Put neighbors of one size together; series may differ in length."""

    def size(sample: tuple[int, DatedImages, Array]) -> dict[str, Any]:
        return {m: (image.ndim, image.shape[-2:]) for m, image in sample[1].images.items()}

    pending: list[tuple[int, DatedImages, Array]] = []
    for sample in samples:
        if pending and (len(pending) == batch_size or size(sample) != size(pending[0])):
            yield pending
            pending = []
        pending.append(sample)
    if pending:
        yield pending
