"""Blockwise (chunked) attention: a few queries and heads at a time, so that the scores stay in the CPU
caches.

The scores of all pairs of patches and their ALiBi bias grow quadratically with the number of patches: 17 GB
at 1024 px, patch size 8 and 16 heads. Here the bias of one block is computed (or sliced from a table), its
scores are computed, used and discarded, and the backward pass recomputes them. Memory grows linearly with the
number of patches. On CPUs this is also faster than a kernel that reads a mask, especially in bfloat16
(benchmarks/encode.md).

Shapes: B images, h heads of width d, Nq queries and Nk keys, [B, N, h, d] as projections leave them.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from rsbackbones.layers.alibi import AlibiBias, alibi_slopes, distances

# Queries of one head per block. A block takes more heads and images up to this many bytes of scores.
_ROWS = 128
_SCORES = 4 * 2**20
# Distances computed at a time, so that intermediate results stay in the caches.
_DISTANCES = 2**17
# With fewer keys, PyTorch's softmax is slower in half precision than in float32.
_SHORT = 128


@dataclass(frozen=True)
class _Block:
    """A range of (image, head) pairs and a range of queries: some heads of one image, or several images."""

    pairs: slice
    images: slice
    heads: slice
    rows: slice


def blockwise_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | AlibiBias | None) -> Tensor:
    """Softmax attention of [B, Nq, h, d] over [B, Nk, h, d]: [B, Nq, h, d].

    ``bias`` is added to the scores. It is a table [h, Nq, Nk] or [B, h, Nq, Nk] without a gradient, or an
    :class:`AlibiBias`, which is computed block by block.
    """
    table = bias if isinstance(bias, Tensor) else None
    queries, keys = (bias.queries, bias.keys) if isinstance(bias, AlibiBias) else (None, None)
    out: Tensor = torch.ops.rsbackbones.blockwise_attention(q, k, v, table, queries, keys)
    return out


# Custom operators, so that torch.compile does not trace the loops.
@torch.library.custom_op("rsbackbones::blockwise_attention", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, queries: Tensor | None, keys: Tensor | None
) -> Tensor:
    heads = q.shape[2]
    with torch.autocast(q.device.type, enabled=False):
        work = _Work(q, k, table, queries, keys)
        v = _of_pairs(v)
        out = torch.empty_like(work.q)
        for block in work.blocks():
            torch.bmm(work.weights(block), v[block.pairs], out=out[block.pairs, block.rows])
    return _of_images(out, heads)


@torch.library.custom_op("rsbackbones::blockwise_attention_backward", mutates_args=())
def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor | None,
    queries: Tensor | None,
    keys: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    heads = q.shape[2]
    with torch.autocast(q.device.type, enabled=False):
        work = _Work(q, k, table, queries, keys)
        grad, v = _of_pairs(grad), _of_pairs(v)
        dq = torch.empty_like(work.q)
        # Accumulate over query blocks in float32, whatever the input dtype is.
        dk, dv = (torch.zeros(v.shape, dtype=torch.float32, device=v.device) for _ in range(2))
        for block in work.blocks():
            pairs, rows = block.pairs, block.rows
            weights = work.weights(block)
            of_weights = grad[pairs, rows] @ v[pairs].transpose(1, 2)
            of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            dv[pairs] += weights.transpose(1, 2) @ grad[pairs, rows]
            dk[pairs] += of_scores.transpose(1, 2) @ work.q[pairs, rows]  # q is scaled, so this is as well
            dq[pairs, rows] = of_scores @ work.k[pairs].transpose(1, 2)
        dq *= q.shape[-1] ** -0.5
    return _of_images(dq, heads), _of_images(dk, heads).to(k.dtype), _of_images(dv, heads).to(v.dtype)


class _Work:
    """State shared by the blocks of one call: queries and keys grouped by head, and reused buffers.

    Allocating fresh memory for each block would cost more than the computation.
    """

    def __init__(
        self, q: Tensor, k: Tensor, table: Tensor | None, queries: Tensor | None, keys: Tensor | None
    ) -> None:
        self.images, self.num_queries, self.heads = q.shape[:3]
        self.q = _of_pairs(q * q.shape[-1] ** -0.5)
        self.k = k.permute(0, 2, 3, 1).contiguous().flatten(0, 1)  # [B * h, d, Nk]
        self.table, self.queries, self.keys = table, queries, keys
        num_keys = k.shape[1]
        one = max(1, num_keys) * q.itemsize  # the scores of one query
        self.step = max(1, min(self.num_queries, _ROWS))
        self.heads_step = max(1, min(self.heads, _SCORES // (self.step * one)))
        whole = self.heads_step == self.heads
        of_image = self.step * one * self.heads
        self.images_step = max(1, min(self.images, _SCORES // of_image)) if whole else 1
        self.scores = q.new_empty(self.images_step * self.heads_step * self.step * num_keys)
        self.slopes = -alibi_slopes(self.heads, q.device)[:, None, None].to(q.dtype)
        self.distance = q.new_empty(0)

    def blocks(self) -> Iterator[_Block]:
        """Yield all blocks. Small heads and images are combined into one block."""
        for rows in _slices(self.num_queries, self.step):
            for images in _slices(self.images, self.images_step):
                if self.queries is not None and self.keys is not None:
                    self._measure(self.queries, self.keys, images, rows)
                for heads in _slices(self.heads, self.heads_step):
                    first = images.start * self.heads + heads.start
                    count = (images.stop - images.start) * (heads.stop - heads.start)
                    yield _Block(slice(first, first + count), images, heads, rows)

    def weights(self, block: _Block) -> Tensor:
        """Return the attention weights [pairs, n, Nk] of a block. The next block overwrites them."""
        q, k = self.q[block.pairs, block.rows], self.k[block.pairs]
        scores = _part(self.scores, (*q.shape[:2], k.shape[2]))
        torch.bmm(q, k, out=scores)
        by_head = scores.unflatten(0, (-1, block.heads.stop - block.heads.start))
        if self.queries is not None:
            by_head.addcmul_(self.distance, self.slopes[block.heads])
        elif self.table is not None:
            cut = (block.heads, block.rows)
            by_head.add_(self.table[cut if self.table.ndim == 3 else (block.images, *cut)])
        if scores.shape[-1] < _SHORT and scores.dtype != torch.float32:
            return scores.copy_(scores.float().softmax(dim=-1))
        return torch.softmax(scores, dim=-1, out=scores)

    def _measure(self, queries: Tensor, keys: Tensor, images: slice, rows: slice) -> None:
        """Compute the distances from a block's queries to all keys: [n, Nk], or [B', 1, n, Nk] with positions
        per image.
        """
        q = queries[rows] if queries.ndim == 2 else queries[images, rows]
        k = keys if keys.ndim == 2 else keys[images]
        shape = (*q.shape[:-1], k.shape[-2])
        if self.distance.numel() < math.prod(shape):
            self.distance = self.scores.new_empty(math.prod(shape))
        distance = _part(self.distance, shape)
        for some in _slices(shape[-2], max(1, _DISTANCES // shape[-1])):
            distance[..., some, :] = distances(q[..., some, :], k)
        self.distance = distance if queries.ndim == 2 else distance.unsqueeze(1)


def _part(memory: Tensor, shape: tuple[int, ...]) -> Tensor:
    return memory.flatten()[: math.prod(shape)].view(shape)


def _of_pairs(x: Tensor) -> Tensor:
    """[B, N, h, d] to contiguous [B * h, N, d]."""
    return x.transpose(1, 2).contiguous().flatten(0, 1)


def _of_images(x: Tensor, heads: int) -> Tensor:
    """[B * h, N, d] to [B, N, h, d], the inverse."""
    images: Tensor = x.unflatten(0, (-1, heads))
    return images.transpose(1, 2).contiguous()


def _slices(count: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


@_forward.register_fake
def _(q: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


@_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    return dq, dk, dv


def _keep(ctx: Any, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    dq, dk, dv = torch.ops.rsbackbones.blockwise_attention_backward(grad, *ctx.saved_tensors)
    return dq, dk, dv, None, None, None


_forward.register_autograd(_gradient, setup_context=_keep)


# Two matrix products forward. Backward has five: one recomputes the scores.
@register_flop_formula(torch.ops.rsbackbones.blockwise_attention)
def _forward_flops(q: Any, k: Any, *_: Any, **__: Any) -> int:
    images, queries, heads, width = q
    return int(2 * 2 * images * heads * queries * k[1] * width)


@register_flop_formula(torch.ops.rsbackbones.blockwise_attention_backward)
def _backward_flops(grad: Any, q: Any, k: Any, *_: Any, **__: Any) -> int:
    return 5 * _forward_flops(q, k) // 2
