"""The images of a labelled set in batches, as a model takes them, for what needs no labels."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from rsbackbones.data.labelled.dataset import LabelledDataset
from rsbackbones.eval.inputs import model_inputs


def input_batches(
    model: nn.Module, data: LabelledDataset, split: str, *, batch_size: int
) -> Iterator[dict[str, Tensor]]:
    """Yield normalized images of a split by modality, [B, C, H, W], on the model's device.

    Raises:
        ValueError: the set lacks the split, a sensor or a band; images differ in size; or values that cannot
            be what the set says.
    """
    indices = data.splits.get(split, np.empty(0, np.int64)).tolist()
    if not indices or batch_size < 1:
        raise ValueError(
            f"{data.name}: no images in split {split!r} (it has {', '.join(data.splits)}), "
            if not indices
            else f"batch_size must be at least 1, got {batch_size}"
        )
    inputs, device = model_inputs(model, data), next(model.parameters()).device
    size: tuple[int, ...] | None = None
    for start in range(0, len(indices), batch_size):
        images: dict[str, list[Tensor]] = {}
        for index in indices[start : start + batch_size]:
            try:
                made = inputs(data.read(index))
            except ValueError as error:
                raise ValueError(f"{data.name}, {data.ids[index]}: {error}") from error
            for modality, image in made.items():
                size = size or tuple(image.shape[-2:])
                if image.shape[-2:] != size:
                    raise ValueError(
                        f"{data.name}: {data.ids[index]} has {image.shape[-2]} x {image.shape[-1]} pixels of "
                        f"{modality}, others {size[0]} x {size[1]}; one size is needed: "
                        "rsbackbones.eval.extrapolation.cropped makes it"
                    )
                images.setdefault(modality, []).append(image)
        yield {modality: torch.stack(x).to(device) for modality, x in images.items()}


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Without gradients, in ``eval()`` mode; afterwards in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)
