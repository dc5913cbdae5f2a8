"""Attention by blocks: some queries of some heads at a time, so that scores never leave the caches.

Scores of all pairs of patches, and an ALiBi bias for them, grow with the square of the patches: 17 GB at
1024 px of patch 8 with 16 heads. Here a block's bias is computed (or cut from a table), its scores are made,
used and forgotten, and the backward pass makes them again: memory grows with the patches. On CPUs this is
also faster than a kernel that reads a mask, most of all in bfloat16 (benchmarks/encode.md).

Shapes: B images, h heads of width d, Nq queries and Nk keys, [B, N, h, d] as projections leave them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from rsbackbones.layers.alibi import AlibiBias, alibi_slopes, distances

# The scores of a block take so many bytes at most, and so many for one key of one head.
_SCORES = 4 * 2**20
_COLUMN = 512
# With fewer keys the softmax of PyTorch for half precision takes longer than that for float32.
_SHORT = 128


@dataclass(frozen=True)
class _Block:
    """Images, heads and queries, and the distances of these queries to all keys where ALiBi needs them."""

    images: slice
    heads: slice
    rows: slice
    distance: Tensor | None


def attend_by_blocks(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | AlibiBias | None) -> Tensor:
    """Softmax attention of [B, Nq, h, d] over [B, Nk, h, d]: [B, Nq, h, d].

    ``bias`` is added to the scores: a table [h, Nq, Nk] or [B, h, Nq, Nk] without a gradient, or one to be
    computed.
    """
    table = bias if isinstance(bias, Tensor) else None
    queries, keys = (bias.queries, bias.keys) if isinstance(bias, AlibiBias) else (None, None)
    out: Tensor = torch.ops.rsbackbones.attend_by_blocks(q, k, v, table, queries, keys)
    return out


# Operators of our own, so that torch.compile keeps the loops out of its graphs.
@torch.library.custom_op("rsbackbones::attend_by_blocks", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, queries: Tensor | None, keys: Tensor | None
) -> Tensor:
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    with torch.autocast(q.device.type, enabled=False):
        for block in _blocks(q, k, queries, keys):
            images, heads, rows = block.images, block.heads, block.rows
            values = _weights(q, k, block, table) @ _of_heads(v[images, :, heads])
            out[images, rows, heads] = _of_images(values, heads)
    return out


@torch.library.custom_op("rsbackbones::attend_by_blocks_backward", mutates_args=())
def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor | None,
    queries: Tensor | None,
    keys: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    dq = torch.empty_like(q, memory_format=torch.contiguous_format)
    # Summed over the blocks of queries in float32, whatever the factors are.
    dk, dv = (torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (k, v))
    scale = q.shape[-1] ** -0.5
    with torch.autocast(q.device.type, enabled=False):
        for block in _blocks(q, k, queries, keys):
            images, heads, rows = block.images, block.heads, block.rows
            weights = _weights(q, k, block, table)  # [B' * h', n, Nk]
            of_out = _of_heads(grad[images, rows, heads])
            of_weights = of_out @ _of_heads(v[images, :, heads]).transpose(1, 2)
            of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            of_keys = of_scores.transpose(1, 2) @ _of_heads(q[images, rows, heads])
            dv[images, :, heads] += _of_images(weights.transpose(1, 2) @ of_out, heads)
            dk[images, :, heads] += _of_images(of_keys, heads)
            dq[images, rows, heads] = _of_images(of_scores @ _of_heads(k[images, :, heads]), heads) * scale
    return dq, (dk * scale).to(k.dtype), dv.to(v.dtype)


def _weights(q: Tensor, k: Tensor, block: _Block, table: Tensor | None) -> Tensor:
    """The attention weights of a block, [B' * h', n, Nk]."""
    images, heads, rows = block.images, block.heads, block.rows
    queries = q[images, rows, heads] * q.shape[-1] ** -0.5
    scores = torch.bmm(_of_heads(queries), _of_heads(k[images, :, heads]).transpose(1, 2))
    by_head = scores.unflatten(0, (images.stop - images.start, heads.stop - heads.start))
    if block.distance is not None:
        slopes = alibi_slopes(q.shape[2], q.device)[heads].to(q.dtype)
        by_head.addcmul_(block.distance, -slopes[:, None, None])
    elif table is not None:
        by_head.add_(table[heads, rows] if table.ndim == 3 else table[images, heads, rows])
    if scores.shape[-1] < _SHORT and scores.dtype != torch.float32:
        return scores.float().softmax(dim=-1).to(scores.dtype)
    return scores.softmax(dim=-1)


def _of_heads(x: Tensor) -> Tensor:
    """[B, N, h, d] to [B * h, N, d]."""
    return x.transpose(1, 2).flatten(0, 1)


def _of_images(x: Tensor, heads: slice) -> Tensor:
    """[B * h, N, d] to [B, N, h, d], the inverse."""
    images: Tensor = x.unflatten(0, (-1, heads.stop - heads.start)).transpose(1, 2)
    return images


def _blocks(q: Tensor, k: Tensor, queries: Tensor | None, keys: Tensor | None) -> Iterator[_Block]:
    """Cut images, heads and queries into blocks: whole heads and whole images where they are small."""
    num_images, num_queries, num_heads = q.shape[:3]
    one = max(1, k.shape[1]) * q.itemsize  # the scores of one query
    n = max(1, min(num_queries, _COLUMN // q.itemsize, _SCORES // one))
    h = max(1, min(num_heads, _SCORES // (n * one)))
    b = max(1, min(num_images, _SCORES // (n * one * h))) if h == num_heads else 1
    for rows in _slices(num_queries, n):
        for images in _slices(num_images, b):
            distance = None
            if queries is not None and keys is not None:
                distance = _distance(queries, keys, rows, images).to(q.dtype)
            for heads in _slices(num_heads, h):
                yield _Block(images, heads, rows, distance)


def _distance(queries: Tensor, keys: Tensor, rows: slice, images: slice) -> Tensor:
    """[n, Nk] where all images have the same positions, [N, 2]; else [B', 1, n, Nk]."""
    if queries.ndim == 2:
        return distances(queries[rows], keys)
    return distances(queries[images, rows], keys[images]).unsqueeze(1)


def _slices(count: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


@_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, queries: Tensor | None, keys: Tensor | None
) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


@_backward.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor | None,
    queries: Tensor | None,
    keys: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    return dq, dk, dv


def _keep(ctx: Any, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    dq, dk, dv = torch.ops.rsbackbones.attend_by_blocks_backward(grad, *ctx.saved_tensors)
    return dq, dk, dv, None, None, None


_forward.register_autograd(_gradient, setup_context=_keep)


# Two matrix products; five more make the scores and their gradients again.
@register_flop_formula(torch.ops.rsbackbones.attend_by_blocks)
def _forward_flops(q: Any, k: Any, *_: Any, **__: Any) -> int:
    images, queries, heads, width = q
    return int(2 * 2 * images * heads * queries * k[1] * width)


@register_flop_formula(torch.ops.rsbackbones.attend_by_blocks_backward)
def _backward_flops(grad: Any, q: Any, k: Any, *_: Any, **__: Any) -> int:
    return 5 * _forward_flops(q, k) // 2
