"""The FLOPs of CROMA on paper, of encoding and of a pretraining step, to hold against what torch counts.

A multiplication and an addition are two. Only matrix products count, as in torch's ``FlopCounterMode``. A
backward pass of a linear layer is twice its forward pass (the gradients of its input and of its weight), of
the tokenizers once, as images need no gradient; of attention 2.5 times, as its scores are computed again.
"""

from collections import Counter
from dataclasses import dataclass

from rsbackbones.models.croma import CromaConfig
from rsbackbones.train.objectives.croma import CromaObjective


@dataclass(frozen=True)
class Flops:
    """FLOPs of a sample: ``forward`` and ``backward`` of all but InfoNCE's logits.

    ``logits`` are those of forward and backward of the logits, per sample and per row of the global batch.
    """

    forward: float
    backward: float
    logits: float

    def per_sample(self, batch_size: int) -> float:
        """Return the FLOPs of a sample in a global batch."""
        return self.forward + self.backward + self.logits * batch_size


def croma_flops(config: CromaConfig, options: CromaObjective, side: int) -> Flops:
    """Count a sample of ``side`` x ``side`` pixels with both sensors, contrast and reconstruction of both."""
    dim, decoder, pixels = config.dim, options.decoder_dim, config.patch_size**2
    patches = (side // config.patch_size) ** 2
    kept = {m: int(patches * (1 - options.mask_ratio(m))) for m in ("s2", "s1")}
    depths = config.stream_depths()
    bands = {m: len(config.bands[m]) for m in ("s2", "s1")}
    mlp = 2 * config.mlp_ratio * dim**2  # multiplications of a token

    tokenizers = sum(2 * kept[m] * bands[m] * pixels * dim for m in kept)
    linear = attention = 0.0
    for m, count in kept.items():
        linear += depths[m] * 2 * count * (4 * dim**2 + mlp)
        attention += depths[m] * 4 * count**2 * dim
        # The embedding of the mean token, and its projection.
        linear += 2 * mlp + 2 * dim**2
    optical, radar = kept["s2"], kept["s1"]
    # The joint encoder's queries are radar tokens; keys and values of its cross-attention optical ones.
    linear += depths["joint"] * (2 * radar * (4 * dim**2 + mlp) + 4 * (radar + optical) * dim**2)
    attention += depths["joint"] * 4 * (radar**2 + radar * optical) * dim
    linear += 2 * radar * dim * decoder + 2 * patches * decoder * sum(bands.values()) * pixels
    linear += options.decoder_depth * 2 * patches * 12 * decoder**2
    attention += options.decoder_depth * 4 * patches**2 * decoder
    return Flops(
        forward=tokenizers + linear + attention,
        backward=tokenizers + 2 * linear + 2.5 * attention,
        logits=3 * 2 * 2 * dim,  # two directions; both gradients, as the keys have them too
    )


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
