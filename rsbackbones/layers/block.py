"""Pre-norm transformer blocks: self-attention + MLP, with or without cross-attention in between.

``drop_path`` is the rate of stochastic depth (:mod:`rsbackbones.layers.drop_path`), 0 as built.
"""

from torch import Tensor, nn

from rsbackbones.layers.attention import Bias, CrossAttention, SelfAttention
from rsbackbones.layers.drop_path import drop_path
from rsbackbones.layers.layer_scale import LayerScale
from rsbackbones.layers.mlp import MLP


class Block(nn.Module):
    """Self-attention, then MLP, each on normalized tokens and added to its input.

    ``layer_scale`` is the initial value of a learned factor per channel of both branches; ``None``: none.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float,
        qkv_bias: bool,
        norm_eps: float = 1e-5,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.drop_path = 0.0
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = SelfAttention(dim, num_heads, qkv_bias=qkv_bias)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = MLP(dim, int(dim * mlp_ratio))
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)

    def forward(self, x: Tensor, bias: Bias = None) -> Tensor:
        """[B, N, D] to [B, N, D]; ``bias`` broadcasts to [B, heads, N, N]."""
        x = x + drop_path(self.ls1(self.attn(self.norm1(x), bias)), self.drop_path, self.training)
        x = x + drop_path(self.ls2(self.mlp(self.norm2(x))), self.drop_path, self.training)
        return x


class CrossBlock(nn.Module):
    """Self-attention, cross-attention to a context, then MLP.

    One LayerNorm normalizes the query and the context of the cross-attention, as CROMA has it.
    """

    def __init__(self, dim: int, num_heads: int, *, mlp_ratio: float, qkv_bias: bool) -> None:
        super().__init__()
        self.drop_path = 0.0
        self.norm1 = nn.LayerNorm(dim)
        self.attn = SelfAttention(dim, num_heads, qkv_bias=qkv_bias)
        self.norm_cross = nn.LayerNorm(dim)
        self.cross = CrossAttention(dim, num_heads, qkv_bias=qkv_bias)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, int(dim * mlp_ratio))

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        bias: Bias = None,
        cross_bias: Bias = None,
    ) -> Tensor:
        """[B, Nq, D] and a context [B, Nk, D] to [B, Nq, D].

        ``bias`` broadcasts to [B, heads, Nq, Nq], ``cross_bias`` to [B, heads, Nq, Nk].
        """
        x = x + drop_path(self.attn(self.norm1(x), bias), self.drop_path, self.training)
        cross = self.cross(self.norm_cross(x), self.norm_cross(context), cross_bias)
        x = x + drop_path(cross, self.drop_path, self.training)
        x = x + drop_path(self.mlp(self.norm2(x)), self.drop_path, self.training)
        return x
