"""Labelled samples as batches: read, normalized, resized or cut, turned, mixed.

A sample is a function of (seed, epoch, index), and how samples are mixed of (seed, step): neither depends on
how many processes there are, nor on when a run was interrupted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from timm.data.mixup import Mixup, mixup_target
from torch import Tensor
from torch.utils.data import Dataset

from rsbackbones.data.augment import draw_view, turn
from rsbackbones.data.labelled.dataset import Array, LabelledSet
from rsbackbones.eval.image_reader import resized
from rsbackbones.eval.inputs import Inputs
from rsbackbones.train.dataset import sample_generator
from rsbackbones.train.engine.batch import Batch
from rsbackbones.train.engine.sampler import BatchPlan, Key, StepSampler
from rsbackbones.train.finetune.recipe import Views


@dataclass(frozen=True, kw_only=True)
class LabelledBatch(Batch):
    """Images and what they are trained toward.

    ``target``: [B, K] float of labels of images, soft where smoothed or mixed; [B, H, W] int64 of pixels.
    ``counted``: what the losses of its pixels are divided by; ``None``: how many of them are labelled.
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
        """Return what is saved of a batch that a person should look at."""
        return super().content() | {"target": self.target}


class PairedSampler(StepSampler):
    """Pieces from both ends of a global batch: half of each from the front, half from the back.

    timm mixes the first of a batch with the last, the second with the last but one, and so on. So dealt, the
    pairs of all pieces are those of the whole batch.
    """

    def piece(self, keys: Sequence[Key], number: int) -> list[Key]:
        """See :meth:`StepSampler.piece`."""
        half, count = self._piece // 2, len(keys)
        front = keys[number * half : (number + 1) * half]
        return [*front, *keys[count - (number + 1) * half : count - number * half]]


class LabelledPlan(BatchPlan):
    """A plan for one set, whose keys are (epoch, step, index): what is mixed follows from the step."""

    def batch(self, step: int) -> list[Key]:
        """See :meth:`BatchPlan.batch`."""
        return [(epoch, step, index) for epoch, _, index in super().batch(step)]


class LabelledSamples(Dataset[Batch]):
    """Batches of keys to batches of samples of a set.

    Args:
        data: the set; tiles of images where they are cut.
        indices: of its samples, those to train on.
        inputs: what turns raw images into the model's.
        views: how they are seen.
        scale: label pixels per image pixel.
        seed: of everything random.
    """

    def __init__(
        self, data: LabelledSet, indices: Array, inputs: Inputs, views: Views, *, scale: int, seed: int
    ) -> None:
        self.data, self.indices, self.inputs, self.views = data, indices, inputs, views
        self.scale, self.seed = scale, seed
        self.multilabel = data.task == "multilabel"

    def __len__(self) -> int:
        return len(self.indices)

    def __getitems__(self, keys: Sequence[Key]) -> LabelledBatch:
        """Make the batch of these keys, all of one step.

        Raises:
            ValueError: a sample cannot be used, or images vary in size.
        """
        data = self.data
        places = [int(self.indices[key[2]]) for key in keys]
        views = [
            self._view(place, sample_generator(self.seed, (epoch, 0, index)))
            for place, (epoch, _, index) in zip(places, keys, strict=True)
        ]
        if len(sizes := {tuple(x.shape[-2:]) for view, _ in views for x in view.values()}) > 1:
            raise ValueError(
                f"{data.name}: images of {', '.join(f'{h} x {w}' for h, w in sorted(sizes))} pixels in one "
                "batch; bring them to one size with views.size (labels of images) or views.tile (of pixels)"
            )
        images = {m: torch.stack([view[m] for view, _ in views]) for m in views[0][0]}
        maps = [label for _, label in views if label is not None]
        if maps:
            target = torch.stack(maps)
        else:
            assert data.labels is not None
            images, target = self._mixed(images, torch.from_numpy(data.labels[places]), step=keys[0][1])
        return LabelledBatch(
            images=images, bands={m: data.bands[m] for m in images}, noise={}, target=target,
            names=tuple(data.ids[place] for place in places),
        )  # fmt: skip

    def __getitem__(self, key: Key) -> LabelledBatch:
        return self.__getitems__([key])

    def _view(self, index: int, generator: torch.Generator) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return a sample as the model sees it, and the map [H, W] of its labels where they are one."""
        raw = self.data.read(index)
        images = normalized(self.inputs, self.data, raw, index, self.views.size)
        label = torch.from_numpy(raw["label"].astype(np.int64))[None] if "label" in raw else None
        height, width = next(iter(images.values())).shape[-2:]
        if label is not None and label.shape[1:] != (height * self.scale, width * self.scale):
            raise ValueError(
                f"{self.data.name}: {self.data.ids[index]}: the label map is {list(label.shape[1:])} for an "
                f"image of {[height, width]}; with scale={self.scale} expected "
                f"{[height * self.scale, width * self.scale]}"
            )
        whole = (1, min(height, width))
        view = draw_view(generator, height, width, crop=whole, flips=self.views.flips, rot90=self.views.rot90)
        if height != width:  # a quarter turn would change the shape
            view = replace(view, quarter_turns=view.quarter_turns // 2 * 2)
        return (
            {m: turn(view, image) for m, image in images.items()},
            None if label is None else turn(view, label)[0],
        )

    def _mixed(
        self, images: Mapping[str, Tensor], target: Tensor, *, step: int
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Mix the samples of a batch with each other, and smooth and mix their labels, [B] or [B, K]."""
        views, classes = self.views, len(self.data.classes)
        if not (views.mixup or views.cutmix):
            return dict(images), mixup_target(target, classes, 1.0, views.label_smoothing, self.multilabel)
        mixup = Mixup(
            views.mixup, views.cutmix, switch_prob=views.switch_prob, label_smoothing=views.label_smoothing,
            num_classes=classes, multi_label=self.multilabel,
        )  # fmt: skip
        # timm draws from numpy's global generator: all pieces of a step must draw the same.
        before = np.random.get_state()
        try:
            np.random.seed(np.random.SeedSequence((self.seed, step)).generate_state(4))
            mixed, soft = mixup(torch.cat(list(images.values()), dim=1), target)
        finally:
            np.random.set_state(before)
        parts = mixed.split([x.shape[1] for x in images.values()], dim=1)
        return {m: part.contiguous() for m, part in zip(images, parts, strict=True)}, soft


def normalized(
    inputs: Inputs, data: LabelledSet, raw: Mapping[str, Array], index: int, size: int | None
) -> dict[str, Tensor]:
    """Return a raw sample as a model takes it, resized to ``size`` where that is a number.

    Raises:
        ValueError: its values are not usable; names the sample.
    """
    try:
        images = inputs(raw)
    except ValueError as error:
        raise ValueError(f"{data.name}: {data.ids[index]}: {error}") from error
    return {m: resized(x, None if size is None else (size, size)) for m, x in images.items()}
