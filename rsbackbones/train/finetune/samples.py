"""Batches of labelled samples: read, normalized, resized or cropped, augmented, mixed.

A sample is a function of (seed, epoch, index), and mixing of (seed, step). Neither depends on the number of
processes or on interruptions of the run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup, mixup_target
from torch import Tensor
from torch.utils.data import Dataset

from rsbackbones.data.augment import draw_view, turn
from rsbackbones.data.image_warnings import ImageWarnings
from rsbackbones.data.labelled.dataset import IGNORED, Array, LabelledDataset
from rsbackbones.data.photometric import distort_colors
from rsbackbones.data.series import DatedImages, stack_dated
from rsbackbones.eval.transform import DatedTransform, load_dated
from rsbackbones.train.dataset import sample_generator
from rsbackbones.train.engine.batch import Batch
from rsbackbones.train.engine.sampler import BatchPlan, Key, StepSampler
from rsbackbones.train.finetune.recipe import Views

# So many samples are read before a run, for their warnings.
_PROBED = 16


@dataclass(frozen=True, kw_only=True)
class LabelledBatch(Batch):
    """A batch with labels.

    Attributes:
        target: [B, K] float for labels of images, soft if smoothed or mixed; [B, H, W] int64 for label maps.
        counted: the divisor of the loss of label maps; ``None``: the number of labelled pixels of the batch.
    """

    target: Tensor
    counted: float | None = None

    def to(self, device: torch.device) -> Self:
        """Return the batch on ``device``."""
        return replace(super().to(device), target=self.target.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """Return the batch in page-locked memory."""
        return replace(super().pin_memory(), target=self.target.pin_memory())

    def content(self) -> dict[str, Any]:
        """See :meth:`Batch.content`."""
        return super().content() | {"target": self.target}


class PairedSampler(StepSampler):
    """Micro-batches from both ends of a global batch: half from the front, half from the back.

    timm mixes the first sample of a batch with the last, the second with the last but one, and so on. With
    these micro-batches the mixed pairs are those of the global batch.
    """

    def piece(self, keys: Sequence[Key], number: int) -> list[Key]:
        """See :meth:`StepSampler.piece`."""
        half, count = self._piece // 2, len(keys)
        front = keys[number * half : (number + 1) * half]
        return [*front, *keys[count - (number + 1) * half : count - number * half]]


class LabelledPlan(BatchPlan):
    """A plan of a single source with keys (epoch, step, index): mixing depends on the step."""

    def batch(self, step: int) -> list[Key]:
        """See :meth:`BatchPlan.batch`."""
        return [(epoch, step, index) for epoch, _, index in super().batch(step)]


class LabelledSamples(Dataset[Batch]):
    """A dataset of batches: maps lists of keys to :class:`LabelledBatch`.

    Args:
        data: the labelled set, possibly cut into tiles.
        indices: the indices of the training samples.
        transform: from :func:`rsbackbones.eval.transform.dated_transform`.
        views: size and augmentation of the images.
        scale: label pixels per image pixel, along each side.
        seed: the seed of all random numbers.

    Warnings of images are not repeated for every sample: :func:`probe_samples` gives them before a run.
    """

    def __init__(
        self,
        data: LabelledDataset,
        indices: Array,
        transform: DatedTransform,
        views: Views,
        *,
        scale: int,
        seed: int,
    ) -> None:
        self.data, self.indices, self.transform, self.views = data, indices, transform, views
        self.scale, self.seed = scale, seed
        self.multilabel = data.task == "multilabel"
        self._warned = ImageWarnings()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitems__(self, keys: Sequence[Key]) -> LabelledBatch:
        """Return the batch of these keys, which all belong to one step.

        Raises:
            ValueError: a sample cannot be used, or images have different sizes.
        """
        data = self.data
        places = [int(self.indices[key[2]]) for key in keys]
        views = [
            self._view(place, sample_generator(self.seed, (epoch, 0, index)))
            for place, (epoch, _, index) in zip(places, keys, strict=True)
        ]
        if len(sizes := {tuple(x.shape[-2:]) for view, _ in views for x in view.images.values()}) > 1:
            raise ValueError(
                f"{data.name}: images of {', '.join(f'{h} x {w}' for h, w in sorted(sizes))} pixels in one "
                "batch; bring them to one size with views.size (labels of images) or views.tile (of pixels)"
            )
        stacked = stack_dated([view for view, _ in views])
        images = stacked.images
        maps = [label for _, label in views if label is not None]
        if maps:
            target = torch.stack(maps)
        else:
            assert data.labels is not None
            images, target = self._mixed(images, torch.from_numpy(data.labels[places]), step=keys[0][1])
        return LabelledBatch(
            images=images, bands={m: data.bands[m] for m in images}, noise={}, target=target,
            dates=stacked.dates, valid=stacked.valid, names=tuple(data.ids[place] for place in places),
        )  # fmt: skip

    def __getitem__(self, key: Key) -> LabelledBatch:
        return self.__getitems__([key])

    def _view(self, index: int, generator: torch.Generator) -> tuple[DatedImages, Tensor | None]:
        """Return an augmented sample, and its label map [H, W] if it has one."""
        size = self.views.size
        transform = partial(self._distorted, generator) if self.views.photometric else self.transform
        sides = None if size is None else (size, size)
        sample, raw = load_dated(self.data, index, transform, self._warned, sides)
        images = sample.images
        label = torch.from_numpy(raw["label"].astype(np.int64))[None] if "label" in raw else None
        height, width = next(iter(images.values())).shape[-2:]
        if label is not None and label.shape[1:] != (height * self.scale, width * self.scale):
            raise ValueError(
                f"{self.data.name}: {self.data.ids[index]}: the label map is {list(label.shape[1:])} for an "
                f"image of {[height, width]}; with scale={self.scale} expected "
                f"{[height * self.scale, width * self.scale]}"
            )
        if self.views.ratio_range is not None:
            assert label is not None
            images, label = zoom(images, label, self.views.ratio_range, self.scale, generator)
        whole = (1, min(height, width))
        view = draw_view(generator, height, width, crop=whole, flips=self.views.flips, rot90=self.views.rot90)
        if height != width:  # a quarter turn would change the shape
            view = replace(view, quarter_turns=view.quarter_turns // 2 * 2)
        return (
            replace(sample, images={m: turn(view, image) for m, image in images.items()}),
            None if label is None else turn(view, label)[0],
        )

    def _distorted(self, generator: torch.Generator, raw: Mapping[str, Array]) -> DatedImages:
        """Return the inputs of a raw sample whose picture, 0 to 255, gets other colors first.

        Raises:
            ValueError: it has not 8 bits.
        """
        if raw["rgb"].dtype != np.uint8:
            raise ValueError(
                f"{self.data.name}: views.photometric distorts pictures of 8 bits, got {raw['rgb'].dtype}: "
                "views.photometric=false"
            )
        colors = distort_colors(generator, torch.from_numpy(raw["rgb"]).float() / 255)
        return self.transform({**raw, "rgb": (255 * colors).round().to(torch.uint8).numpy()})

    def _mixed(
        self, images: Mapping[str, Tensor], target: Tensor, *, step: int
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Mix the images of a batch, and smooth and mix their labels, [B] or [B, K]."""
        views, classes = self.views, len(self.data.classes)
        if not (views.mixup or views.cutmix):
            return dict(images), mixup_target(target, classes, 1.0, views.label_smoothing, self.multilabel)
        mixup = Mixup(
            views.mixup, views.cutmix, switch_prob=views.switch_prob, label_smoothing=views.label_smoothing,
            num_classes=classes, multi_label=self.multilabel,
        )  # fmt: skip
        # timm draws from numpy's global generator; all micro-batches of a step must draw the same numbers.
        before = np.random.get_state()
        try:
            np.random.seed(np.random.SeedSequence((self.seed, step)).generate_state(4))
            mixed, soft = mixup(torch.cat(list(images.values()), dim=1), target)
        finally:
            np.random.set_state(before)
        parts = mixed.split([x.shape[1] for x in images.values()], dim=1)
        return {m: part.contiguous() for m, part in zip(images, parts, strict=True)}, soft


def probe_samples(samples: LabelledSamples, *, warn: bool) -> None:
    """Read some samples before a run, and give the warnings that they earn, once for all, if ``warn``.

    Raises:
        ValueError: a sample cannot be used.
    """
    indices, warned = samples.indices, ImageWarnings()
    probed = [int(indices[i * len(indices) // _PROBED]) for i in range(min(_PROBED, len(indices)))]
    for index in probed:
        load_dated(samples.data, index, samples.transform, warned)
    if warn:
        warned.warn(samples.data.name, probed)


def zoom(
    images: Mapping[str, Tensor],
    label: Tensor,
    ratio_range: tuple[float, float],
    scale: int,
    generator: torch.Generator,
) -> tuple[dict[str, Tensor], Tensor]:
    """Resize images and their label map by a random factor, and bring them back to their size.

    Larger ones are cropped at a random place. Smaller ones are filled below and to the right, by zeros and
    ignored labels.

    Args:
        images: by modality, normalized, [C, H, W] or [T, C, H, W].
        label: [1, scale * H, scale * W].
        ratio_range: of the factor.
        scale: label pixels per image pixel.
        generator: of the factor and the place.
    """
    height, width = next(iter(images.values())).shape[-2:]
    u = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    ratio = ratio_range[0] + u[0] * (ratio_range[1] - ratio_range[0])
    sides = max(1, round(height * ratio)), max(1, round(width * ratio))
    top = int(u[1] * (max(0, sides[0] - height) + 1))
    left = int(u[2] * (max(0, sides[1] - width) + 1))

    def back(x: Tensor, unit: int, fill: float) -> Tensor:
        part = x[..., top * unit : (top + height) * unit, left * unit : (left + width) * unit]
        missing = (height * unit - part.shape[-2], width * unit - part.shape[-1])
        return F.pad(part, (0, missing[1], 0, missing[0]), value=fill)

    resized = {
        m: F.interpolate(x.reshape(-1, *x.shape[-3:]), sides, mode="bilinear", antialias=True)
        for m, x in images.items()
    }
    resized = {m: x.reshape(*images[m].shape[:-2], *sides) for m, x in resized.items()}
    large = (sides[0] * scale, sides[1] * scale)
    labels = F.interpolate(label[None].float(), large, mode="nearest-exact")[0].long()
    return {m: back(x, 1, 0.0) for m, x in resized.items()}, back(labels, scale, IGNORED)
