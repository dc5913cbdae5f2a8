"""The images of a labelled data set in batches, checked: of one size, without NaN; errors name the sample."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from rsbackbones.data.image_warnings import ImageWarnings
from rsbackbones.data.labelled.crops import Size
from rsbackbones.data.labelled.dataset import Array, LabelledDataset, label_scale
from rsbackbones.eval.transform import Transform, load_inputs, make_transform
from rsbackbones.models.backbone import unwrap_model


@dataclass
class BatchReader:
    """Reads batches of samples.

    Attributes:
        data: the data set.
        modalities: those to read.
        transform: raw images to inputs.
        size: that label maps are resized to, and images by the transform; ``None``: they stay as they are.
        same_size: refuse images of different sizes.
        maps: return label maps too.
        hides: pixels with NaN are no error, as they are hidden from the model.
        fix: what the error about sizes recommends.
        warned: the warnings that the images earned.
    """

    data: LabelledDataset
    modalities: Sequence[str]
    transform: Transform
    size: Size | None = None
    same_size: bool = True
    maps: bool = True
    hides: bool = False
    fix: str = "name one size for all, size= (--size)"
    warned: ImageWarnings = field(default_factory=ImageWarnings)
    _seen: Size | None = field(default=None, init=False)

    def __call__(self, indices: Sequence[int]) -> tuple[dict[str, Tensor], Array | None]:
        """Return by sensor [B, C, H, W], or [B, 2, C, H, W] of two dates, and [B, H, W] of label maps."""
        images: dict[str, list[Tensor]] = {m: [] for m in self.modalities}
        maps = []
        for index in indices:
            # One by one: what an image becomes does not depend on its neighbors.
            inputs, sample = load_inputs(self.data, index, self._checked, self.warned)
            for m, x in inputs.items():
                images[m].append(x)
            if self.maps and "label" in sample:
                label_scale(sample)
                height, width = sample[self.modalities[0]].shape[-2:]
                maps.append(_nearest(sample["label"], self.size or (height, width)))
        return {m: torch.stack(held) for m, held in images.items()}, np.stack(maps) if maps else None

    def _checked(self, sample: Mapping[str, Array | Tensor]) -> dict[str, Tensor]:
        for m in self.modalities:
            image = np.asarray(sample[m])
            if not self.hides and image.dtype.kind == "f" and not np.isfinite(image).all():
                bad = ~np.isfinite(image).all(axis=tuple(range(image.ndim - 2)))
                raise ValueError(
                    f"{m} has NaN or infinity in {int(bad.sum())} of {bad.size} pixels; fill them, leave the "
                    "sample out, or name what marks them: open_labelled(..., nodata=, mask=) (eval: "
                    "--nodata, --mask)"
                )
            shape = (image.shape[-2], image.shape[-1])
            self._seen = self._seen or shape
            if self.same_size and shape != self._seen and self.size is None:
                raise ValueError(
                    f"{m} has {shape[0]} x {shape[1]} pixels, others of the set have {self._seen[0]} x "
                    f"{self._seen[1]}; {self.fix}"
                )
        return self.transform(sample)


def input_batches(
    model: nn.Module, data: LabelledDataset, split: str, *, batch_size: int
) -> Iterator[dict[str, Tensor]]:
    """Yield normalized images of a split by modality, [B, C, H, W], on the model's device.

    Raises:
        ValueError: the set lacks the split, a sensor or a band; images differ in size; or values that cannot
            be in the unit of the set.
    """
    indices = data.splits.get(split, np.empty(0, np.int64)).tolist()
    if not indices:
        raise ValueError(f"{data.name}: no images in split {split!r} (it has {', '.join(data.splits)})")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    fix = "one size is needed: rsbackbones.eval.extrapolation.cropped makes it"
    backbone = unwrap_model(model)
    modalities = backbone.modalities
    read = BatchReader(data, modalities, make_transform(model, data), maps=False, fix=fix)
    for start in range(0, len(indices), batch_size):
        images, _ = read(indices[start : start + batch_size])
        yield backbone.as_input(images)
    read.warned.warn(data.name, indices)


@contextmanager
def frozen_eval(model: nn.Module) -> Iterator[None]:
    """Without gradients, in ``eval()`` mode; afterwards in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def _nearest(labels: Array, size: Size) -> Array:
    """A label map to a size: the label under the center of every new pixel."""
    if labels.shape == size:
        return labels
    height, width = labels.shape
    rows = ((np.arange(size[0]) + 0.5) * height / size[0]).astype(np.int64)
    columns = ((np.arange(size[1]) + 0.5) * width / size[1]).astype(np.int64)
    resized: Array = labels[rows[:, None], columns]
    return resized
