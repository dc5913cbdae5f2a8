"""The losses of S4: a contrast of space-time positions between two sensors, and cross-modal reconstruction.

Shenoy et al., "Self-Supervised Learning across the Spectrum", Remote Sensing 2024, 16, 3470, sections 5.1
(equation 2) and 5.2 (equation 3). Both are computed in float32 or wider.

Shapes: B series, D channels, T dates, h x w cells, P = T * h * w positions.
"""

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rsbackbones.train.objectives.precision import full_precision, no_autocast

Negatives = Literal["sample", "batch"]


def space_time_contrast(
    z_s2: Tensor,
    z_s1: Tensor,
    *,
    temperature: float = 0.5,
    valid: Tensor | None = None,
    negatives: Negatives = "sample",
    chunk: int | None = 1024,
) -> Tensor:
    """Identify every space-time position among those of the other sensor's map, by cosine similarity.

    The positive of an anchor is its own position in the other map; all other positions of that map are
    negatives. The loss is the mean over the anchors of each sensor, then over the two sensors, then over the
    samples (section 5.1).

    Args:
        z_s2, z_s1: projected maps, [B, D, T, h, w].
        temperature: divides the similarities.
        valid: [B, T] booleans. Positions of other frames are neither anchors, positives nor negatives. A
            sample without any is left out of the mean.
        negatives: positions of the same sample (the paper), or of all samples of the batch.
        chunk: compare so many anchors at once, and recompute their similarities in the backward pass, so
            that memory grows with ``chunk * P`` and not with P squared; ``None`` compares all at once.

    Raises:
        ValueError: maps of unequal shape, a mask that does not fit or leaves no frame, or an option out of
            range.
    """
    _check(z_s2, z_s1, temperature, valid, negatives, chunk)
    frames, cells = z_s2.shape[2], z_s2.shape[3] * z_s2.shape[4]
    with no_autocast(z_s2):
        rows = [F.normalize(full_precision(z), dim=1).flatten(2).transpose(1, 2) for z in (z_s2, z_s1)]
        keep = torch.ones(len(z_s2), frames, dtype=torch.bool, device=z_s2.device) if valid is None else valid
        counted = keep.repeat_interleave(cells, dim=1)  # [B, P]
        owners = torch.arange(len(z_s2), device=z_s2.device)[:, None].expand_as(counted)[counted]
        one, other = (z[counted] for z in rows)  # [M, D] of all samples
        groups = [slice(0, len(one))] if negatives == "batch" else _runs(owners)
        losses = [
            (_of_anchors(one[g], other[g], temperature, chunk)
             + _of_anchors(other[g], one[g], temperature, chunk)) / 2
            for g in groups
        ]  # fmt: skip
        # A sample counts as much as any other, however many positions it has.
        _, sample, size = owners.unique_consecutive(return_inverse=True, return_counts=True)
        loss: Tensor = (torch.cat(losses) / size[sample]).sum() / len(size)
        return loss


def _of_anchors(anchors: Tensor, keys: Tensor, temperature: float, chunk: int | None) -> Tensor:
    """Return the loss of every anchor [M, D], whose positive is the key of its own row, [M]."""
    if chunk is None or chunk >= len(anchors):
        return _of_chunk(anchors, keys, 0, temperature)
    return torch.cat(
        [
            checkpoint(_of_chunk, anchors[i : i + chunk], keys, i, temperature, use_reentrant=False)
            for i in range(0, len(anchors), chunk)
        ]
    )


def _of_chunk(anchors: Tensor, keys: Tensor, start: int, temperature: float) -> Tensor:
    own = torch.arange(start, start + len(anchors), device=keys.device)
    return F.cross_entropy(anchors @ keys.T / temperature, own, reduction="none")


def _runs(owners: Tensor) -> list[slice]:
    """Return the rows of each sample."""
    ends = owners.unique_consecutive(return_counts=True)[1].cumsum(0).tolist()
    return [slice(start, end) for start, end in pairwise([0, *ends])]


def _check(
    z_s2: Tensor,
    z_s1: Tensor,
    temperature: float,
    valid: Tensor | None,
    negatives: str,
    chunk: int | None,
) -> None:
    if z_s2.ndim != 5 or z_s2.shape != z_s1.shape:
        raise ValueError(
            f"expected two maps [B, D, T, h, w] of one shape, got {list(z_s2.shape)} and {list(z_s1.shape)}: "
            "align the series of the sensors first"
        )
    if valid is not None and (valid.dtype != torch.bool or valid.shape != (z_s2.shape[0], z_s2.shape[2])):
        raise ValueError(
            f"valid must be booleans [B, T] = {[z_s2.shape[0], z_s2.shape[2]]}, one for every frame of the "
            f"maps, got {valid.dtype} {list(valid.shape)}"
        )
    if valid is not None and not valid.any():
        raise ValueError("valid leaves no frame: there is nothing to contrast")
    if negatives not in ("sample", "batch"):
        raise ValueError(f"negatives must be 'sample' or 'batch', got {negatives!r}")
    if not temperature > 0 or (chunk is not None and chunk < 1):
        raise ValueError(f"temperature and chunk must be above 0, got {temperature} and {chunk}")


def cross_modal_l1(prediction: Tensor, target: Tensor, *, valid: Tensor | None = None) -> Tensor:
    """Return the mean absolute error over T * C * H * W, then over samples (equation 3).

    Args:
        prediction, target: the other sensor's standardized series, [B, T, C, H, W].
        valid: [B, T] booleans; other frames do not count, and a sample without any is left out.

    Raises:
        ValueError: the shapes differ, or ``valid`` does not fit or leaves no frame.
    """
    if prediction.shape != target.shape or target.ndim != 5:
        raise ValueError(
            f"expected a prediction and a target [B, T, C, H, W] of one shape, got {list(prediction.shape)} "
            f"and {list(target.shape)}"
        )
    if valid is None:
        return (full_precision(prediction) - full_precision(target)).abs().mean()
    if valid.dtype != torch.bool or valid.shape != target.shape[:2] or not valid.any():
        raise ValueError(
            f"valid must be booleans [B, T] = {list(target.shape[:2])} with a frame that counts, got "
            f"{valid.dtype} {list(valid.shape)}"
        )
    hidden = ~valid[..., None, None, None]
    error = (full_precision(prediction) - full_precision(target).masked_fill(hidden, 0)).masked_fill(
        hidden, 0
    )
    of_frames = error.abs().mean(dim=(2, 3, 4))  # [B, T]
    count = valid.sum(dim=1)
    return (of_frames.sum(dim=1)[count > 0] / count[count > 0]).mean()
