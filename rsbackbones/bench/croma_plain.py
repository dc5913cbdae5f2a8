"""CROMA's pretraining step as published, written plainly: what ours is measured against.

Fuller, Millard and Green, CROMA, NeurIPS 2023, section 2, with the choices of the public code: 2D-ALiBi is a
dense table [1, heads, N, N] of the whole grid, made once; for every batch it is repeated over the samples,
flattened, and gathered at the kept queries and keys; attention is two einsums around an explicit softmax; all
patches are tokenised before the kept ones are gathered; InfoNCE lets no gradient through its keys.

The parameters have the names and shapes of :class:`rsbackbones.train.objectives.croma.CromaPretraining`: one
state dict loads into both, and with the options of :data:`PUBLISHED` they compute the same.

Shapes: B images, N = side * side patches of which K are kept, D = dim.
"""

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, einsum, nn

from rsbackbones.layers.alibi import alibi_bias, grid_positions
from rsbackbones.layers.sincos import sincos_embedding
from rsbackbones.models.croma import CromaConfig
from rsbackbones.train.data.batch import Batch
from rsbackbones.train.objectives.croma import CromaObjective

# The options with which our objective is the public code's.
PUBLISHED = CromaObjective(joint_self_bias="published", gather="published")


class PlainPretraining(nn.Module):
    """Encoders, decoder and contrast of both sensors; ``config.image_size`` decides the one grid it takes."""

    table: Tensor
    positions: Tensor

    def __init__(self, config: CromaConfig, options: CromaObjective = PUBLISHED) -> None:
        """Build it, randomly initialised; of ``options`` only the mask ratio and the decoder's size count."""
        super().__init__()
        dim, patch = config.dim, config.patch_size
        sides = config.image_size
        height, width = (side // patch for side in ((sides, sides) if isinstance(sides, int) else sides))
        self.patch_size, self.num_heads = patch, config.num_heads
        self.keep = int(height * width * (1 - options.mask_ratio_s2))
        grid = grid_positions(height, width)
        self.register_buffer("table", alibi_bias(grid, grid, config.num_heads)[None], persistent=False)
        self.register_buffer("positions", sincos_embedding(grid, options.decoder_dim), persistent=False)

        def blocks(depth: int, cross: bool = False) -> nn.ModuleList:
            return nn.ModuleList(_Block(dim, config.num_heads, cross=cross) for _ in range(depth))

        depths = config.stream_depths()
        self.backbone: Any = nn.ModuleDict({
            "encoders": nn.ModuleDict({
                m: nn.ModuleDict({
                    "tokenizer": nn.ModuleDict({"proj": nn.Linear(len(config.bands[m]) * patch**2, dim)}),
                    "blocks": blocks(depths[m]),
                    "norm": nn.LayerNorm(dim),
                })
                for m in ("s2", "s1")
            }),
            "embeddings": nn.ModuleDict({
                m: nn.Sequential(OrderedDict(norm=nn.LayerNorm(dim), mlp=_mlp(dim))) for m in ("s2", "s1")
            }),
            "joint": nn.ModuleDict({
                "blocks": blocks(depths["joint"], cross=True), "norm": nn.LayerNorm(dim),
            }),
        })  # fmt: skip
        self.num_bands = {m: len(config.bands[m]) for m in ("s2", "s1")}
        self.decoder = _Decoder(dim, sum(self.num_bands.values()) * patch**2, options)
        self.contrast = _Contrast(dim)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``loss``, ``contrast`` and ``reconstruction``, scalars, of a batch with both sensors."""
        kept, restore, masked = {}, {}, {}
        for m in ("s2", "s1"):
            order = torch.argsort(batch.draws[f"{m}_noise"], dim=1, stable=True)
            restore[m] = torch.argsort(order, dim=1)
            kept[m] = order[:, : self.keep]
            masked[m] = (restore[m] >= self.keep).float()
        biases = {
            "s1": gather_bias(self.table, kept["s1"], kept["s1"]),
            "s2": gather_bias(self.table, kept["s2"], kept["s2"]),
            "joint": gather_bias(self.table, kept["s1"], kept["s2"]),
        }
        patches = {m: _patches(batch.images[m], self.patch_size) for m in ("s2", "s1")}

        tokens = {}
        for m in ("s2", "s1"):
            encoder = self.backbone["encoders"][m]
            x = encoder["tokenizer"]["proj"](patches[m])
            x = torch.gather(x, 1, repeat(kept[m], "b k -> b k d", d=x.shape[-1]))
            for block in encoder["blocks"]:
                x = block(x, biases[m])
            tokens[m] = encoder["norm"](x)
        embeddings = {m: self.backbone["embeddings"][m](tokens[m].mean(dim=1)) for m in tokens}
        contrast = self.contrast(embeddings["s2"], embeddings["s1"])

        x = tokens["s1"]
        for block in self.backbone["joint"]["blocks"]:
            x = block(x, biases["joint"], tokens["s2"])
        pixels = self.decoder(self.backbone["joint"]["norm"](x), restore["s1"], self.positions)

        target = torch.cat((patches["s2"], patches["s1"]), dim=-1)
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6) ** 0.5
        errors = (pixels - target) ** 2
        reconstruction = torch.zeros((), device=x.device)
        for m, error in zip(("s2", "s1"), errors.split(self._widths(), dim=-1), strict=True):
            reconstruction = reconstruction + (error.mean(-1) * masked[m]).sum() / masked[m].sum()
        loss = contrast + reconstruction
        return {"loss": loss, "contrast": contrast.detach(), "reconstruction": reconstruction.detach()}

    def _widths(self) -> list[int]:
        return [count * self.patch_size**2 for count in self.num_bands.values()]


def gather_bias(table: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """Return the table [1, heads, N, N] at queries [B, Kq] and keys [B, Kk]: [B, heads, Kq, Kk]."""
    heads, num_patches = table.shape[1], table.shape[2]
    index = rearrange(queries, "b i -> b i 1") * num_patches + rearrange(keys, "b j -> b 1 j")
    index = repeat(index, "b i j -> b (i j) h", h=heads)
    flat = rearrange(table.repeat(len(queries), 1, 1, 1), "b h i j -> b (i j) h")
    return rearrange(torch.gather(flat, 1, index), "b (i j) h -> b h i j", i=queries.shape[1])


def _patches(images: Tensor, p: int) -> Tensor:
    return rearrange(images, "b c (h i) (w j) -> b (h w) (c i j)", i=p, j=p)


def _mlp(dim: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(fc1=nn.Linear(dim, 4 * dim), act=nn.GELU(), fc2=nn.Linear(4 * dim, dim)))


class _SelfAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        out: Tensor = self.proj(_attend(q, k, v, self.num_heads, bias))
        return out


class _CrossAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q, self.k, self.v = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor, bias: Tensor | None) -> Tensor:
        out: Tensor = self.proj(_attend(self.q(x), self.k(context), self.v(context), self.num_heads, bias))
        return out


def _attend(q: Tensor, k: Tensor, v: Tensor, num_heads: int, bias: Tensor | None) -> Tensor:
    q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=num_heads) for x in (q, k, v))
    scores = einsum("b h i d, b h j d -> b h i j", q, k) * q.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias
    out = einsum("b h i j, b h j d -> b h i d", scores.softmax(dim=-1), v)
    return rearrange(out, "b h n d -> b n (h d)")


class _Block(nn.Module):
    """Self-attention, cross-attention where there is a context, MLP; one bias for both attentions."""

    def __init__(self, dim: int, num_heads: int, *, cross: bool = False) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), _SelfAttention(dim, num_heads)
        if cross:
            self.norm_cross, self.cross = nn.LayerNorm(dim), _CrossAttention(dim, num_heads)
        self.norm2, self.mlp = nn.LayerNorm(dim), _mlp(dim)

    def forward(self, x: Tensor, bias: Tensor | None, context: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x), bias)
        if context is not None:
            x = x + self.cross(self.norm_cross(x), self.norm_cross(context), bias)
        x = x + self.mlp(self.norm2(x))
        return x


class _Decoder(nn.Module):
    def __init__(self, encoder_dim: int, pixels: int, options: CromaObjective) -> None:
        super().__init__()
        dim = options.decoder_dim
        self.embed = nn.Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.blocks = nn.ModuleList(_Block(dim, options.decoder_heads) for _ in range(options.decoder_depth))
        self.norm = nn.LayerNorm(dim)
        self.output = nn.Linear(dim, pixels)

    def forward(self, tokens: Tensor, restore: Tensor, positions: Tensor) -> Tensor:
        x = self.embed(tokens)
        hidden = self.mask_token.repeat(len(x), restore.shape[1] - x.shape[1], 1)
        x = torch.cat((x, hidden.to(x.dtype)), dim=1)
        x = torch.gather(x, 1, repeat(restore, "b n -> b n d", d=x.shape[-1])) + positions
        for block in self.blocks:
            x = block(x, None)
        pixels: Tensor = self.output(self.norm(x))
        return pixels


class _Contrast(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.projections = nn.ModuleDict({m: nn.Linear(dim, dim) for m in ("s2", "s1")})
        self.logit_scale = nn.Parameter(torch.tensor([1 / 0.07]).log())

    def forward(self, optical: Tensor, radar: Tensor) -> Tensor:
        a, b = self.projections["s2"](optical), self.projections["s1"](radar)
        a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
        own = torch.arange(len(a), device=a.device)
        scale = self.logit_scale.exp()
        # Keys that come from other processes have no gradient in the public code, nor have its own.
        first = F.cross_entropy(scale * a @ b.detach().t(), own)
        return (first + F.cross_entropy(scale * b @ a.detach().t(), own)) / 2
