"""CROMA as published, its encoders and its pretraining step, written plainly: what ours is measured against.

Fuller, Millard and Green, CROMA, NeurIPS 2023, section 2, with the choices of the public code: 2D-ALiBi is a
dense table [1, heads, N, N] of the whole square grid, made once, pair by pair of patches; attention is two
einsums around an explicit softmax. In pretraining the table is, for every batch, repeated over the samples,
flattened, and gathered at the kept queries and keys; all patches are tokenized before the kept ones are
gathered; InfoNCE lets no gradient through its keys.

The parameters have the names and shapes of :class:`rsbackbones.models.croma.Croma` and
:class:`rsbackbones.train.objectives.croma.CromaPretraining`: one state dict loads into both, and they compute
the same, in pretraining with the options of :data:`PUBLISHED`.

Shapes: B images, N = side * side patches of which K are kept, D = dim.
"""

import itertools
import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, einsum, nn

from rsbackbones.layers.alibi import grid_positions
from rsbackbones.layers.sincos import sincos_embedding
from rsbackbones.models.croma import CromaConfig
from rsbackbones.train.engine.batch import Batch
from rsbackbones.train.objectives.croma import CromaObjective

# The options with which our objective is the public code's.
PUBLISHED = CromaObjective(joint_self_bias="published", gather="published")


def looped_bias(side: int, num_heads: int) -> Tensor:
    """Return 2D-ALiBi of a square grid, [1, heads, N, N], by a loop over all pairs of patches.

    ``num_heads`` is a power of two; the slope of head m (from 1) is 2^(-8 m / heads).
    """
    slopes = torch.tensor([2 ** (-8 * (m + 1) / num_heads) for m in range(num_heads)])[:, None]
    patches = list(itertools.product(range(side), range(side)))
    columns = []
    for query in patches:
        for key in patches:
            columns.append(math.dist(query, key) * slopes * -1)
    return torch.cat(columns, dim=1).view(1, num_heads, side**2, side**2)


class PlainCroma(nn.Module):
    """The encoders of both sensors and of both together.

    Raises:
        ValueError: ``config.image_size``, which decides the one grid that it takes, is not square.
    """

    table: Tensor

    def __init__(self, config: CromaConfig) -> None:
        super().__init__()
        sides = config.image_size
        height, width = (sides, sides) if isinstance(sides, int) else sides
        if height != width:
            raise ValueError(f"the published code takes square images, got {height} x {width} pixels")
        dim, heads = config.dim, config.num_heads
        self.patch_size, self.side = config.patch_size, height // config.patch_size
        self.register_buffer("table", looped_bias(self.side, heads), persistent=False)
        depths = config.stream_depths()
        self.encoders = nn.ModuleDict({
            m: _Encoder(dim, depths[m], heads, len(config.bands[m]) * config.patch_size**2)
            for m in ("s2", "s1")
        })  # fmt: skip
        self.embeddings = nn.ModuleDict({
            m: nn.Sequential(OrderedDict(norm=nn.LayerNorm(dim), mlp=_mlp(dim))) for m in ("s2", "s1")
        })  # fmt: skip
        self.joint = _Encoder(dim, depths["joint"], heads)

    def forward(self, images: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Return (tokens [B, N, D], embedding [B, D]) of ``s2``, ``s1`` and ``joint``, of both sensors."""
        tokens = {m: self.encoders[m](patches_of(images[m], self.patch_size), self.table) for m in images}
        streams = {m: (x, self.embeddings[m](x.mean(dim=1))) for m, x in tokens.items()}
        joint = self.joint(tokens["s1"], self.table, context=tokens["s2"])
        return streams | {"joint": (joint, joint.mean(dim=1))}


class PlainPretraining(nn.Module):
    """Encoders, decoder and contrast of both sensors, for one square grid."""

    positions: Tensor

    def __init__(self, config: CromaConfig, options: CromaObjective = PUBLISHED) -> None:
        """Build it, randomly initialized; of ``options`` only the mask ratio and the decoder's size count."""
        super().__init__()
        self.backbone = PlainCroma(config)
        side = self.backbone.side
        self.keep = int(side**2 * (1 - options.mask_ratio_s2))
        positions = sincos_embedding(grid_positions(side, side), options.decoder_dim)
        self.register_buffer("positions", positions, persistent=False)
        self.widths = [len(config.bands[m]) * config.patch_size**2 for m in ("s2", "s1")]
        self.decoder = _Decoder(config.dim, sum(self.widths), options)
        self.contrast = _Contrast(config.dim)

    def units(self) -> list[nn.Module]:
        """Return the blocks, which are compiled one by one."""
        lists = [m for name, m in self.named_modules() if name.rpartition(".")[2] == "blocks"]
        return [block for blocks in lists for block in blocks.children()]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``loss``, ``contrast`` and ``reconstruction``, scalars, of a batch with both sensors."""
        kept, restore, masked = {}, {}, {}
        for m in ("s2", "s1"):
            order = torch.argsort(batch.noise[f"{m}_noise"], dim=1, stable=True)
            restore[m] = torch.argsort(order, dim=1)
            kept[m] = order[:, : self.keep]
            masked[m] = (restore[m] >= self.keep).float()
        croma = self.backbone
        biases = {
            "s1": gather_bias(croma.table, kept["s1"], kept["s1"]),
            "s2": gather_bias(croma.table, kept["s2"], kept["s2"]),
            "joint": gather_bias(croma.table, kept["s1"], kept["s2"]),
        }
        patches = {m: patches_of(batch.images[m], croma.patch_size) for m in ("s2", "s1")}
        tokens = {m: croma.encoders[m](patches[m], biases[m], kept[m]) for m in ("s2", "s1")}
        embeddings = {m: croma.embeddings[m](tokens[m].mean(dim=1)) for m in tokens}
        contrast = self.contrast(embeddings["s2"], embeddings["s1"])
        joint = croma.joint(tokens["s1"], biases["joint"], context=tokens["s2"])
        pixels = self.decoder(joint, restore["s1"], self.positions)

        target = torch.cat((patches["s2"], patches["s1"]), dim=-1)
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6) ** 0.5
        errors = (pixels - target) ** 2
        reconstruction = torch.zeros((), device=pixels.device)
        for m, error in zip(("s2", "s1"), errors.split(self.widths, dim=-1), strict=True):
            reconstruction = reconstruction + (error.mean(-1) * masked[m]).sum() / masked[m].sum()
        loss = contrast + reconstruction
        return {"loss": loss, "contrast": contrast.detach(), "reconstruction": reconstruction.detach()}


def gather_bias(table: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """Return the table [1, heads, N, N] at queries [B, Kq] and keys [B, Kk]: [B, heads, Kq, Kk]."""
    heads, num_patches = table.shape[1], table.shape[2]
    index = rearrange(queries, "b i -> b i 1") * num_patches + rearrange(keys, "b j -> b 1 j")
    index = repeat(index, "b i j -> b (i j) h", h=heads)
    flat = rearrange(table.repeat(len(queries), 1, 1, 1), "b h i j -> b (i j) h")
    return rearrange(torch.gather(flat, 1, index), "b (i j) h -> b h i j", i=queries.shape[1])


def patches_of(images: Tensor, p: int) -> Tensor:
    """[B, C, H, W] to patches of ``p`` x ``p`` pixels, [B, N, C * p * p]."""
    return rearrange(images, "b c (h i) (w j) -> b (h w) (c i j)", i=p, j=p)


class _Encoder(nn.Module):
    """Blocks and a norm: of a sensor, which projects its patches, or of both, with a context."""

    def __init__(self, dim: int, depth: int, num_heads: int, pixels: int = 0) -> None:
        super().__init__()
        if pixels:
            self.tokenizer: Any = nn.ModuleDict({"proj": nn.Linear(pixels, dim)})
        self.blocks = nn.ModuleList(_Block(dim, num_heads, cross=not pixels) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, x: Tensor, bias: Tensor, kept: Tensor | None = None, context: Tensor | None = None
    ) -> Tensor:
        """Patches [B, N, pixels], of which [B, K] are kept, or tokens with a ``context`` to [B, K, D]."""
        if context is None:
            x = self.tokenizer["proj"](x)
        if kept is not None:
            x = torch.gather(x, 1, repeat(kept, "b k -> b k d", d=x.shape[-1]))
        for block in self.blocks:
            x = block(x, bias, context)
        tokens: Tensor = self.norm(x)
        return tokens


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
