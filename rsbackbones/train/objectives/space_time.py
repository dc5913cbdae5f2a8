"""The losses of S4: a contrast of space-time positions between two sensors, and cross-modal reconstruction.

Shenoy et al., "Self-Supervised Learning across the Spectrum", Remote Sensing 2024, 16, 3470, sections 5.1
(equation 2) and 5.2 (equation 3). Both are computed in float32 or wider.

Shapes: B series, D channels, T dates, h x w cells, P = T * h * w positions.
"""

from collections.abc import Sequence
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
    sampled: tuple[int, Sequence[int]] | None = None,
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
        sampled: (n, seeds): compare with n random negatives per anchor, drawn with replacement from the seed
            of the sample. This approximates the loss of the paper, which is smaller the fewer there are.

    Raises:
        ValueError: maps of unequal shape, a mask that does not fit or leaves no frame, or an option out of
            range.
    """
    _check(z_s2, z_s1, temperature, valid, negatives, chunk, sampled)
    frames, cells = z_s2.shape[2], z_s2.shape[3] * z_s2.shape[4]
    with no_autocast(z_s2):
        rows = [F.normalize(full_precision(z), dim=1).flatten(2).transpose(1, 2) for z in (z_s2, z_s1)]
        keep = torch.ones(len(z_s2), frames, dtype=torch.bool, device=z_s2.device) if valid is None else valid
        counted = keep.repeat_interleave(cells, dim=1)  # [B, P]
        owners = torch.arange(len(z_s2), device=z_s2.device)[:, None].expand_as(counted)[counted]
        one, other = (z[counted] for z in rows)  # [M, D] of all samples
        groups = [slice(0, len(one))] if negatives == "batch" else _runs(owners)
        losses = []
        for g in groups:
            drawn = None if sampled is None else _draw(sampled[0], g, sampled[1][int(owners[g.start])])
            forth = _of_anchors(one[g], other[g], temperature, chunk, drawn)
            losses.append((forth + _of_anchors(other[g], one[g], temperature, chunk, drawn)) / 2)
        # A sample counts as much as any other, however many positions it has.
        _, sample, size = owners.unique_consecutive(return_inverse=True, return_counts=True)
        loss: Tensor = (torch.cat(losses) / size[sample]).sum() / len(size)
        return loss


def _draw(count: int, group: slice, seed: int) -> Tensor:
    """Return for each of the anchors of a group the keys of ``count`` negatives, [M, count] on the CPU."""
    size = group.stop - group.start
    if size == 1:
        return torch.zeros(1, 0, dtype=torch.long)
    generator = torch.Generator().manual_seed(seed)
    others = torch.randint(size - 1, (size, count), generator=generator)
    return others + (others >= torch.arange(size)[:, None])  # all but the anchor's own


def _of_anchors(
    anchors: Tensor, keys: Tensor, temperature: float, chunk: int | None, drawn: Tensor | None
) -> Tensor:
    """Return the loss of every anchor [M, D], whose positive is the key of its own row, [M]."""
    size = chunk or len(anchors)
    pieces = []
    for i in range(0, len(anchors), size):
        others = None if drawn is None else drawn[i : i + size].to(keys.device)
        piece = (anchors[i : i + size], keys, i, temperature, others)
        whole = size >= len(anchors)
        pieces.append(_of_chunk(*piece) if whole else checkpoint(_of_chunk, *piece, use_reentrant=False))
    return torch.cat(pieces)


def _of_chunk(anchors: Tensor, keys: Tensor, start: int, temperature: float, others: Tensor | None) -> Tensor:
    own = torch.arange(start, start + len(anchors), device=keys.device)
    if others is None:
        return F.cross_entropy(anchors @ keys.T / temperature, own, reduction="none")
    compared = torch.cat((own[:, None], others), dim=1)  # [m, 1 + n], the positive first
    similarities = (keys[compared] @ anchors[..., None]).squeeze(-1)
    return F.cross_entropy(similarities / temperature, torch.zeros_like(own), reduction="none")


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
    sampled: tuple[int, Sequence[int]] | None,
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
    if sampled is not None and (sampled[0] < 1 or len(sampled[1]) != len(z_s2) or negatives != "sample"):
        raise ValueError(
            f"sampled must be a number of negatives of the sample, and a seed for each of {len(z_s2)} "
            f"samples, got {sampled[0]} and {len(sampled[1])} seeds with negatives={negatives!r}"
        )
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
