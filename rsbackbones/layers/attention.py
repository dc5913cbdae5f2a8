"""Multi-head self-attention and cross-attention with an additive bias, without normalization."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsbackbones.layers.alibi import AlibiBias
from rsbackbones.layers.blockwise_attention import blockwise_attention
from rsbackbones.layers.flex import attend_with_flex
from rsbackbones.layers.tracing import SINCE_2_7, is_exporting

# A table that broadcasts to [B, heads, Nq, Nk], or ALiBi, whose table would be too large.
Bias = Tensor | AlibiBias | None


def _attend(q: Tensor, k: Tensor, v: Tensor, num_heads: int, bias: Bias) -> Tensor:
    """Softmax attention of [B, Nq, D] over [B, Nk, D]."""
    q, k, v = (x.unflatten(-1, (num_heads, -1)) for x in (q, k, v))  # [B, N, h, d]
    if isinstance(bias, AlibiBias) and q.is_cuda and SINCE_2_7:
        return attend_with_flex(q, k, v, bias).flatten(2)
    if isinstance(bias, AlibiBias) or _prefers_blocks(q, bias):
        if isinstance(bias, Tensor) and bias.ndim == 4:
            bias = bias.expand(q.shape[0], num_heads, q.shape[1], k.shape[1])
        return blockwise_attention(q, k, v, bias).flatten(2)
    bias = None if bias is None else bias.to(q.dtype)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)


def _prefers_blocks(q: Tensor, bias: Tensor | None) -> bool:
    """Return whether blockwise attention is faster than PyTorch's kernel, as measured on CPUs
    (benchmarks/encode.md).

    PyTorch's kernel is slow in half precision and with a mask, but its float32 backward pass is fast.
    Blockwise attention has no gradient for the bias, so a learned bias excludes it.
    """
    if q.device.type != "cpu" or is_exporting() or (bias is not None and bias.requires_grad):
        return False
    return q.dtype == torch.bfloat16 or (bias is not None and not torch.is_grad_enabled())


def _check_heads(dim: int, num_heads: int) -> None:
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f"dim must be a multiple of num_heads, got dim={dim}, num_heads={num_heads}")


def key_mask(present: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the bias [B, 1, 1, Nk] that masks keys where ``present`` [B, Nk] is False.

    If all keys of a row are masked, none are: a softmax over no keys would be NaN.
    """
    seen = present | ~present.any(dim=-1, keepdim=True)
    bias = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, float("-inf"))
    return bias[:, None, None]


class SelfAttention(nn.Module):
    """Self-attention over [B, N, D]; query, key and value in one projection."""

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool) -> None:
        super().__init__()
        _check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, bias: Bias = None) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        out: Tensor = self.proj(_attend(q, k, v, self.num_heads, bias))
        return out


class CrossAttention(nn.Module):
    """Attention of queries from [B, Nq, D] over keys and values from a context [B, Nk, D]."""

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool) -> None:
        super().__init__()
        _check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.k = nn.Linear(dim, dim, bias=qkv_bias)
        self.v = nn.Linear(dim, dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor, bias: Bias = None) -> Tensor:
        q, k, v = self.q(x), self.k(context), self.v(context)
        out: Tensor = self.proj(_attend(q, k, v, self.num_heads, bias))
        return out
