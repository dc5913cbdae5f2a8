"""MixMAE: a masked autoencoder of mixed optical and radar patches.

Linial et al. (Google Research), "Enhancing Remote Sensing Representations Through Mixed-Modality Masked
Autoencoding", section 3.3. SenseTime's MixMAE (Liu et al., CVPR 2023), which mixes the patches of two
photographs, is another method. No weights were published.

Each sensor has a patch tokenizer (the paper's "entry layers"); one encoder of standard ViT blocks follows. In
pretraining every patch of its input is either of Sentinel-2 or of Sentinel-1
(:mod:`rsbackbones.train.objectives.mixmae`). Used on images, each sensor is encoded alone: the encoder then
sees what it never saw in training, where half of the patches were of the other sensor. The paper's downstream
tasks use Sentinel-2 alone in the same way. The ``joint`` stream is the patchwise mean of both.

What the paper leaves open, and our choices:

- It states no image size ("determined by the image dimensions"): 224 pixels for ViT-B, 14 x 14 patches of 16.
- Positions are fixed sines and cosines, the same for both sensors. For another grid the table of the
  pretraining grid is interpolated, as in :mod:`rsbackbones.models.seamo`.
- There is no class token: an embedding is the mean of the final tokens.
- The blocks are pre-norm, query, key and value with bias, MLP ratio 4, exact GELU, a LayerNorm at the end;
  ViT-B has 12 heads. Initialization follows MAE: Xavier uniform weights, zero biases.
- Values are clipped to two standard deviations around the mean of SSL4EO-S12 and scaled to [0, 1].

``mixmae_vit_tiny`` is our own, for two CPU cores.

Shapes: B images, N = h * w patches in row-major order, K kept ones, D = dim.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from rsbackbones.input_spec import SSL4EO_S12_L1C, InputSpec
from rsbackbones.layers.block import Block
from rsbackbones.layers.sincos import SinCosPositions
from rsbackbones.models.vit import Intermediates, PositionTableConfig, ViTBackbone, make_tokenizer

INPUTS: dict[str, InputSpec] = SSL4EO_S12_L1C


@dataclass(frozen=True, kw_only=True)
class MixmaeConfig(PositionTableConfig):
    """The configuration of a MixMAE model."""

    patch_size: int = 16
    image_size: int | tuple[int, int] = 224
    modalities: tuple[str, ...] = ("s2", "s1")
    bands: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {modality: spec.bands for modality, spec in INPUTS.items()}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [m for m in self.modalities if m not in INPUTS]:
            raise ValueError(f"the modalities are {', '.join(INPUTS)}, got {', '.join(unknown)}")
        if self.dim % 4:
            raise ValueError(f"sine-cosine positions need a dim that is a multiple of 4, got {self.dim}")


class Mixmae(ViTBackbone):
    """A tokenizer for each sensor, and one encoder."""

    config: MixmaeConfig

    def __init__(self, config: MixmaeConfig, *, num_classes: int = 0) -> None:
        super().__init__(config, num_classes=num_classes)
        self.share_blocks(joint=("s2", "s1"))
        tokenizers = {m: make_tokenizer(config, m) for m in config.modalities}
        self.tokenizers = nn.ModuleDict(tokenizers)
        self.positions = SinCosPositions()
        self.positions.trained_grid = config.grid
        self.blocks = nn.ModuleList(
            Block(config.dim, config.num_heads, mlp_ratio=config.mlp_ratio, qkv_bias=True)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.dim)
        for part in (*(tokenizer.proj for tokenizer in tokenizers.values()), self.blocks):
            for module in part.modules():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight)
                    nn.init.zeros_(module.bias)

    def encode_tokens(
        self,
        images: Mapping[str, Tensor],
        *,
        kept: Mapping[str, Tensor] | None = None,
        channels: Mapping[str, Sequence[int]] | None = None,
        valid: Mapping[str, Tensor] | None = None,
        intermediates: Intermediates | None = None,
    ) -> dict[str, Tensor]:
        """See :meth:`ViTBackbone.encode_tokens`; every sensor is encoded alone."""
        tokens = {}
        for m, image in images.items():
            x = self.embed(m, image, kept=(kept or {}).get(m), channels=(channels or {}).get(m))
            tokens[m] = self.encode_embedded(x, m, intermediates)
        return tokens

    def embed(
        self,
        modality: str,
        image: Tensor,
        *,
        kept: Tensor | None = None,
        channels: Sequence[int] | None = None,
    ) -> Tensor:
        """Return the patches of an image before the blocks, with positions: [B, N, D], or [B, K, D].

        The arguments are those of :meth:`encode_tokens`, of one modality.
        """
        x = self.tokenizers[modality](image, kept=kept, channels=channels)
        positioned: Tensor = self.positions(x, self.grid(image), kept)
        return positioned

    def encode_embedded(
        self, x: Tensor, modality: str = "", intermediates: Intermediates | None = None
    ) -> Tensor:
        """Return the final tokens, [B, N, D], of patches from :meth:`embed`, also of several sensors."""
        for i, block in enumerate(self.blocks):
            x = block(x)
            if intermediates is not None and (modality, i) in intermediates:
                intermediates[modality, i] = x
        tokens: Tensor = self.norm(x)
        return tokens

    def pool_tokens(self, stream: str, tokens: Tensor) -> Tensor:
        """See :meth:`ViTBackbone.pool_tokens`."""
        return tokens.mean(dim=1)

    def final_norm(self, stream: str) -> nn.Module:
        """See :meth:`ViTBackbone.final_norm`."""
        return self.norm

    def tokenizer_name(self, modality: str) -> str:
        """See :meth:`ViTBackbone.tokenizer_name`."""
        return f"tokenizers.{modality}"

    def layer_groups(self) -> list[list[nn.Module]]:
        """See :meth:`Backbone.layer_groups`: the final norm is in one layer with the last block."""
        groups: list[list[nn.Module]] = [[self.tokenizers], *([block] for block in self.blocks)]
        groups[-1] += [self.norm, self.head]
        return groups


# Overrides for the tests, which build small models of every architecture.
SMALL = {"dim": 48, "depth": 2, "num_heads": 4, "patch_size": 8, "image_size": 64}

CONFIGS = {
    "mixmae_vit_tiny": MixmaeConfig(dim=96, depth=4, num_heads=4, patch_size=8, image_size=64),
    "mixmae_vit_b": MixmaeConfig(dim=768, depth=12, num_heads=12),
}


def build(config: MixmaeConfig, *, num_classes: int = 0) -> Mixmae:
    """Build a MixMAE model, randomly initialized."""
    return Mixmae(config, num_classes=num_classes)
