"""The FLOPs of encoding with CROMA on paper, to hold against what torch counts.

A multiplication and an addition are two. Only matrix products count, as in torch's ``FlopCounterMode``.
"""

from collections import Counter

from rsbackbones.models.croma import CromaConfig


def encode_products(
    config: CromaConfig, size: tuple[int, int], batch_size: int
) -> Counter[tuple[int, int, int]]:
    """Count the matrix products, (rows, inner, columns), of the linear layers in a forward pass.

    ``size`` is (height, width) in pixels; the sensors are those of ``config``.
    """
    dim, pixels = config.dim, config.patch_size**2
    hidden = int(dim * config.mlp_ratio)
    rows = batch_size * _patches(config, size)
    products: Counter[tuple[int, int, int]] = Counter()
    for m in config.modalities:
        products[rows, len(config.bands[m]) * pixels, dim] += 1
        products[batch_size, dim, hidden] += 1  # of the embedding of the mean token
        products[batch_size, hidden, dim] += 1
    for stream, depth in config.stream_depths().items():
        products[rows, dim, 3 * dim] += depth
        # The projection after attention; a cross-attention has four.
        products[rows, dim, dim] += depth * (5 if stream == "joint" else 1)
        products[rows, dim, hidden] += depth
        products[rows, hidden, dim] += depth
    return products


def encode_flops(config: CromaConfig, size: tuple[int, int]) -> float:
    """Count the FLOPs of a forward pass of one image of ``size``, (height, width) in pixels."""
    linear = sum(2 * m * k * n * count for (m, k, n), count in encode_products(config, size, 1).items())
    attentions = sum(d * (2 if s == "joint" else 1) for s, d in config.stream_depths().items())
    return linear + attentions * 4.0 * _patches(config, size) ** 2 * config.dim


def _patches(config: CromaConfig, size: tuple[int, int]) -> int:
    return (size[0] // config.patch_size) * (size[1] // config.patch_size)
