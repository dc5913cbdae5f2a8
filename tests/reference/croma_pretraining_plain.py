"""CROMA's pretraining losses, written plainly from the paper: one sample, one patch, one pair at a time.

The state dict is that of our objective. Biases are rows and columns of a dense table, as the paper says.
"""

import math

import torch
from torch import Tensor

from tests.reference.croma_plain import attention, bias, gelu, layer_norm, linear

State = dict[str, Tensor]


def kept_patches(noise: Tensor, ratio: float) -> list[int]:
    ranked = sorted(range(len(noise)), key=lambda i: float(noise[i]))
    return ranked[: int(len(noise) * (1 - ratio))]


def cut(image: Tensor, row: int, column: int, p: int = 8) -> Tensor:
    return image[:, row * p : row * p + p, column * p : column * p + p].reshape(-1)


def feed_forward(x: Tensor, s: State, name: str) -> Tensor:
    return linear(gelu(linear(x, s, f"{name}.fc1")), s, f"{name}.fc2")


def block(x: Tensor, s: State, name: str, table: Tensor, context: Tensor | None = None, cross=None) -> Tensor:
    """[1, K, D]; with a context a block of the joint encoder."""
    q, k, v = linear(layer_norm(x, s, f"{name}.norm1"), s, f"{name}.attn.qkv").chunk(3, -1)
    x = x + linear(attention(q, k, v, table), s, f"{name}.attn.proj")
    if context is not None:
        y, z = layer_norm(x, s, f"{name}.norm_cross"), layer_norm(context, s, f"{name}.norm_cross")
        q, k, v = (linear(t, s, f"{name}.cross.{w}") for t, w in ((y, "q"), (z, "k"), (z, "v")))
        x = x + linear(attention(q, k, v, cross), s, f"{name}.cross.proj")
    return x + feed_forward(layer_norm(x, s, f"{name}.norm2"), s, f"{name}.mlp")


def depth(s: State, prefix: str) -> int:
    return 1 + max(int(k.removeprefix(prefix).split(".")[0]) for k in s if k.startswith(prefix))


def encode(image: Tensor, kept: list[int], channels: list[int], s: State, name: str, table: Tensor) -> Tensor:
    """One image [C, H, W] to [1, K, D]; ``table`` is the dense bias of the grid, [heads, N, N]."""
    columns = image.shape[-1] // 8
    which = [c * 64 + i for c in channels for i in range(64)]
    weight = s[f"{name}.tokenizer.proj.weight"][:, which]
    x = torch.stack(
        [
            torch.einsum("i,oi->o", cut(image, n // columns, n % columns), weight)
            + s[f"{name}.tokenizer.proj.bias"]
            for n in kept
        ]
    )[None]
    for i in range(depth(s, f"{name}.blocks.")):
        x = block(x, s, f"{name}.blocks.{i}", table[:, kept][:, :, kept])
    return layer_norm(x, s, f"{name}.norm")


def position(row: int, column: int, dim: int) -> list[float]:
    half = []
    for place in (column, row):
        angles = [place / 10000 ** (i / (dim // 4)) for i in range(dim // 4)]
        half += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    return half


def decode(tokens: Tensor, kept: list[int], grid: tuple[int, int], s: State, heads: int) -> Tensor:
    """[1, K, D] to the pixels of all patches, [N, all bands * 64]."""
    rows, columns = grid
    small = linear(tokens, s, "decoder.embed")[0]
    places = [
        small[kept.index(n)] if n in kept else s["decoder.mask_token"][0, 0] for n in range(rows * columns)
    ]
    table = torch.tensor([position(n // columns, n % columns, small.shape[-1]) for n in range(len(places))])
    x = (torch.stack(places) + table)[None]
    for i in range(depth(s, "decoder.blocks.")):
        x = block(x, s, f"decoder.blocks.{i}", torch.zeros(heads, len(places), len(places), dtype=x.dtype))
    return linear(layer_norm(x, s, "decoder.norm"), s, "decoder.output")[0]


def losses(
    s: State,
    images: dict[str, Tensor],
    noise: dict[str, Tensor],
    ratios: dict[str, float],
    channels: dict[str, list[int]],
    num_bands: dict[str, int],
    heads: int,
    decoder_heads: int,
    cross_alibi: bool = True,
) -> tuple[Tensor | None, Tensor]:
    """Return contrast (``None`` with one sensor) and reconstruction. Modalities are in order s2, s1."""
    first = next(iter(images.values()))
    rows, columns = first.shape[-2] // 8, first.shape[-1] // 8
    where = [(r, c) for r in range(rows) for c in range(columns)]
    table = bias(heads, where, where).to(first.dtype)
    embeddings: dict[str, list[Tensor]] = {m: [] for m in images}
    errors: dict[str, list[Tensor]] = {m: [] for m in images}
    for b in range(len(first)):
        kept = {m: kept_patches(noise[m][b], ratios[m]) for m in images}
        tokens = {
            m: encode(images[m][b], kept[m], channels[m], s, f"backbone.encoders.{m}", table) for m in images
        }
        for m, x in tokens.items():
            name = f"backbone.embeddings.{m}"
            embeddings[m].append(feed_forward(layer_norm(x.mean(1), s, f"{name}.norm"), s, f"{name}.mlp")[0])
        if len(images) == 2:
            x, own = tokens["s1"], table[:, kept["s1"]][:, :, kept["s1"]]
            cross = table[:, kept["s1"]][:, :, kept["s2"]] * cross_alibi
            for i in range(depth(s, "backbone.joint.blocks.")):
                x = block(x, s, f"backbone.joint.blocks.{i}", own, tokens["s2"], cross)
            x, at = layer_norm(x, s, "backbone.joint.norm"), kept["s1"]
        else:
            ((m, x),) = tokens.items()
            at = kept[m]
        pixels = decode(x, at, (rows, columns), s, decoder_heads)
        for n, (row, column) in enumerate(where):
            target = {m: cut(images[m][b], row, column) for m in images}
            values = torch.cat(list(target.values()))
            mean, std = values.mean(), (values.var() + 1e-6) ** 0.5
            start = 0
            for m in num_bands:
                if m in images and n not in kept[m]:
                    which = [(start + c) * 64 + i for c in channels[m] for i in range(64)]
                    errors[m].append(((pixels[n][which] - (target[m] - mean) / std) ** 2).mean())
                start += num_bands[m]
    reconstruction = sum(torch.stack(e).mean() for e in errors.values())
    if len(images) == 1:
        return None, reconstruction
    z = {}
    for m in ("s2", "s1"):
        rows_ = [linear(e, s, f"contrast.projections.{m}") for e in embeddings[m]]
        z[m] = [r / torch.sqrt((r * r).sum()) for r in rows_]
    scale = torch.exp(s["contrast.logit_scale"][0])
    total = torch.zeros((), dtype=first.dtype)
    for mine, other in (("s2", "s1"), ("s1", "s2")):
        for i, query in enumerate(z[mine]):
            scores = torch.stack([scale * torch.einsum("d,d->", query, key) for key in z[other]])
            total = total - torch.log(torch.exp(scores[i]) / torch.exp(scores).sum())
    return total / (2 * len(first)), reconstruction
