"""CROMA's forward pass, written plainly from the paper over the released checkpoint layout.

Loops over pairs of patches for the bias, explicit softmax, no module classes.
"""

import math

import torch
from torch import Tensor

State = dict[str, dict[str, Tensor]]


def slopes(heads: int) -> list[float]:
    """ALiBi's slopes, by its published recursive rule."""
    if math.log2(heads).is_integer():
        first = 2 ** (-8 / heads)
        return [first ** (i + 1) for i in range(heads)]
    below = 2 ** int(math.log2(heads))
    return slopes(below) + slopes(2 * below)[0::2][: heads - below]


def bias(heads: int, queries: list[tuple[int, int]], keys: list[tuple[int, int]]) -> Tensor:
    table = torch.empty(heads, len(queries), len(keys), dtype=torch.float64)
    for h, slope in enumerate(slopes(heads)):
        for i, (row, column) in enumerate(queries):
            for j, (other_row, other_column) in enumerate(keys):
                table[h, i, j] = -slope * math.hypot(row - other_row, column - other_column)
    return table


def layer_norm(x: Tensor, s: dict[str, Tensor], name: str) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-5) * s[f"{name}.weight"] + s[f"{name}.bias"]


def linear(x: Tensor, s: dict[str, Tensor], name: str) -> Tensor:
    y = torch.einsum("...i,oi->...o", x, s[f"{name}.weight"])
    return y + s[f"{name}.bias"] if f"{name}.bias" in s else y


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def attention(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
    heads, d = table.shape[0], q.shape[-1] // table.shape[0]
    out = []
    for h in range(heads):
        part = slice(h * d, (h + 1) * d)
        scores = torch.einsum("bid,bjd->bij", q[..., part], k[..., part]) / math.sqrt(d) + table[h]
        weights = torch.exp(scores - scores.amax(-1, keepdim=True))
        out.append(torch.einsum("bij,bjd->bid", weights / weights.sum(-1, keepdim=True), v[..., part]))
    return torch.cat(out, -1)


def self_attention(x: Tensor, s: dict[str, Tensor], name: str, table: Tensor) -> Tensor:
    y = layer_norm(x, s, f"{name}.input_norm")
    q, k, v = linear(y, s, f"{name}.to_qkv").chunk(3, -1)
    return x + linear(attention(q, k, v, table), s, f"{name}.to_out")


def cross_attention(x: Tensor, context: Tensor, s: dict[str, Tensor], name: str, table: Tensor) -> Tensor:
    y, z = layer_norm(x, s, f"{name}.input_norm"), layer_norm(context, s, f"{name}.input_norm")
    q, k, v = linear(y, s, f"{name}.to_q"), linear(z, s, f"{name}.to_k"), linear(z, s, f"{name}.to_v")
    return x + linear(attention(q, k, v, table), s, f"{name}.to_out")


def feed_forward(x: Tensor, s: dict[str, Tensor], name: str) -> Tensor:
    y = gelu(linear(layer_norm(x, s, f"{name}.input_norm"), s, f"{name}.net.0"))
    return x + linear(y, s, f"{name}.net.3")


def depth(s: dict[str, Tensor], prefix: str) -> int:
    return 1 + max(int(k.removeprefix(prefix).split(".")[0]) for k in s if k.startswith(prefix))


def encode(image: Tensor, s: dict[str, Tensor], heads: int) -> Tensor:
    """[B, C, H, W] to [B, N, D], patches of 8 pixels."""
    patches = []
    for top in range(0, image.shape[-2], 8):
        for left in range(0, image.shape[-1], 8):
            patches.append(image[:, :, top : top + 8, left : left + 8].reshape(len(image), -1))
    where = [(r, c) for r in range(image.shape[-2] // 8) for c in range(image.shape[-1] // 8)]
    table = bias(heads, where, where).to(image.dtype)
    x = linear(torch.stack(patches, 1), s, "linear_input")
    for i in range(depth(s, "transformer.layers.")):
        x = self_attention(x, s, f"transformer.layers.{i}.0", table)
        x = feed_forward(x, s, f"transformer.layers.{i}.1")
    return layer_norm(x, s, "transformer.norm_out")


def embedding(tokens: Tensor, s: dict[str, Tensor]) -> Tensor:
    return linear(gelu(linear(layer_norm(tokens.mean(1), s, "0"), s, "1")), s, "3")


def croma(images: dict[str, Tensor], state: State, heads: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return tokens and pooled embeddings of every stream that ``images`` feed."""
    tokens, pooled = {}, {}
    for sensor, image in images.items():
        tokens[sensor] = encode(image, state[f"{sensor}_encoder"], heads)
        pooled[sensor] = embedding(tokens[sensor], state[f"{sensor}_GAP_FFN"])
    if len(images) == 2:
        s, x = state["joint_encoder"], tokens["s1"]
        image = images["s2"]
        where = [(r, c) for r in range(image.shape[-2] // 8) for c in range(image.shape[-1] // 8)]
        table = bias(heads, where, where).to(image.dtype)
        for i in range(depth(s, "layers.")):
            x = self_attention(x, s, f"layers.{i}.0", table)
            x = cross_attention(x, tokens["s2"], s, f"layers.{i}.1", table)
            x = feed_forward(x, s, f"layers.{i}.2")
        tokens["joint"] = layer_norm(x, s, "norm_out")
        pooled["joint"] = tokens["joint"].mean(1)
    return tokens, pooled
