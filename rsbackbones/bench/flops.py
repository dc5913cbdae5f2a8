"""The FLOPs of CROMA's pretraining step on paper, to hold against what torch counts.

A multiplication and an addition are two. Only matrix products count, as in torch's ``FlopCounterMode``. A
backward pass of a linear layer is twice its forward pass (the gradients of its input and of its weight), of
the tokenizers once, as images need no gradient; of attention 2.5 times, as its scores are computed again.
"""

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
