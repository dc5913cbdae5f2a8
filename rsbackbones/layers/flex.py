"""Attention with an ALiBi bias in one CUDA kernel, which computes the bias from the two positions."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from rsbackbones.layers.alibi import AlibiBias, alibi_slopes


def attend_with_flex(q: Tensor, k: Tensor, v: Tensor, bias: AlibiBias) -> Tensor:
    """Softmax attention of [B, Nq, h, d] over [B, Nk, h, d]: [B, Nq, h, d], with FlexAttention."""
    from torch.nn.attention.flex_attention import flex_attention

    slopes = alibi_slopes(bias.num_heads, q.device)
    batched = bias.queries.ndim == 3
    queries, keys = (x if batched else x[None] for x in (bias.queries, bias.keys))

    def score(value: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        image = b if batched else b * 0
        down = queries[image, i, 0] - keys[image, j, 0]
        right = queries[image, i, 1] - keys[image, j, 1]
        return value - slopes[h] * (down * down + right * right).sqrt()

    # Uncompiled, FlexAttention would build the full bias table.
    attend = _compiled() if q.is_cuda and not torch.compiler.is_compiling() else flex_attention
    out: Tensor = attend(*(x.transpose(1, 2) for x in (q, k, v)), score_mod=score)
    return out.transpose(1, 2)


@cache
def _compiled() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)
