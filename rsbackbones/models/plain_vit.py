"""Plain vision transformers of one sensor, with a class token, as timm has them.

Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, arXiv 2010.11929; the networks with 14-pixel
patches and LayerScale are those of DINOv2 (Oquab et al., arXiv 2304.07193). Published remote-sensing ViTs
store them under timm's names (the format ``timm_vit``).

- A class token, a position table that covers it, pre-norm blocks with biased query, key and value, exact
  GELU, LayerNorms with an epsilon of 1e-6, and a final norm: as timm.
- ``pool`` is the embedding: the class token (``"cls"``) or the mean of the patch tokens (``"mean"``), both
  after the final norm. (timm's average pooling moves that norm behind the mean.)
- On another grid than its own the learned table is interpolated with timm's antialiased cubic, as timm's
  ``dynamic_img_size=True`` does, so any multiple of the patch size is served.
- ``positions="sincos"`` has MAE's fixed table instead, which is computed and not stored; the class token then
  has no position.

Shapes: B images, N = h * w patches in row-major order, K kept ones, D = dim; the class token comes first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rsbackbones.input_spec import SINGLE_SENSOR_INPUTS, InputSpec
from rsbackbones.layers.block import Block
from rsbackbones.layers.position_table import LearnedPositions
from rsbackbones.layers.sincos import SinCosPositions
from rsbackbones.layers.tokenizer import ConvTokenizer, LinearTokenizer
from rsbackbones.models.checkpoint_format import CheckpointFormat
from rsbackbones.models.single_sensor import SingleSensorConfig
from rsbackbones.models.vit import Intermediates, PositionTableConfig, ViTBackbone, make_tokenizer

INPUTS: dict[str, InputSpec] = SINGLE_SENSOR_INPUTS
_CHOICES = {"positions": ("learned", "sincos"), "pool": ("cls", "mean")}
_NORM_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class PlainViTConfig(SingleSensorConfig, PositionTableConfig):
    """Everything that decides the shape of a plain ViT.

    ``pool`` is the embedding, ``"cls"`` or ``"mean"``; ``positions`` is ``"learned"`` or ``"sincos"``;
    ``layer_scale`` is the initial value of LayerScale, ``None`` for a network without it.
    """

    pool: str = "cls"
    positions: str = "learned"
    layer_scale: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.positions == "sincos" and self.dim % 4:
            raise ValueError(f"positions='sincos' needs a dim that is a multiple of 4, got {self.dim}")
        if self.layer_scale is not None and not 0 < self.layer_scale < float("inf"):
            raise ValueError(f"layer_scale must be a positive number or None, got {self.layer_scale!r}")


class PlainViT(ViTBackbone):
    """A plain ViT of one modality."""

    num_prefix_tokens = 1
    config: PlainViTConfig

    def __init__(self, config: PlainViTConfig, *, num_classes: int = 0) -> None:
        super().__init__(config, num_classes=num_classes)
        self.pools_map = config.pool != "cls"
        (modality,) = config.modalities
        self.stream_blocks, self.stream_depths = {modality: "blocks"}, {modality: config.depth}
        self.tokenizer: ConvTokenizer | LinearTokenizer
        if config.takes_wavelengths(modality):
            self.tokenizer = make_tokenizer(config, modality)
        else:
            self.tokenizer = ConvTokenizer(len(config.bands[modality]), config.dim, config.patch_size)
        self.class_token = nn.Parameter(torch.empty(1, 1, config.dim))
        nn.init.normal_(self.class_token, std=0.02)
        self.positions: LearnedPositions | SinCosPositions
        if config.positions == "learned":
            self.positions = LearnedPositions(config.grid, config.dim, prefix=1, antialias=True)
        else:
            self.positions = SinCosPositions()
            self.positions.trained_grid = config.grid
        self.blocks = nn.ModuleList(
            Block(
                config.dim,
                config.num_heads,
                mlp_ratio=config.mlp_ratio,
                qkv_bias=True,
                norm_eps=_NORM_EPS,
                layer_scale=config.layer_scale,
            )
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.dim, eps=_NORM_EPS)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):  # as in MAE's code
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def no_weight_decay(self) -> set[str]:
        """See :meth:`Backbone.no_weight_decay`."""
        return super().no_weight_decay() | {"class_token"}

    def encode_tokens(
        self,
        images: Mapping[str, Tensor],
        *,
        kept: Mapping[str, Tensor] | None = None,
        channels: Mapping[str, Sequence[int]] | None = None,
        valid: Mapping[str, Tensor] | None = None,
        intermediates: Intermediates | None = None,
    ) -> dict[str, Tensor]:
        """See :meth:`ViTBackbone.encode_tokens`: [B, 1 + N, D], or [B, 1 + K, D] of kept patches."""
        ((stream, image),) = images.items()
        places, intermediates = (kept or {}).get(stream), {} if intermediates is None else intermediates
        x = self.tokenizer(image, kept=places, channels=(channels or {}).get(stream))
        x = self._with_positions(x, self.grid(image), places)
        for i, block in enumerate(self.blocks):
            x = block(x)
            if (stream, i) in intermediates:
                intermediates[stream, i] = x[:, 1:]
        return {stream: self.norm(x)}

    def _with_positions(self, x: Tensor, grid: tuple[int, int], kept: Tensor | None) -> Tensor:
        """Put the class token before the patch tokens [B, K, D], and add positions."""
        token = self.class_token.to(x.dtype).expand(x.shape[0], -1, -1)
        if isinstance(self.positions, SinCosPositions):
            return torch.cat([token, self.positions(x, grid, kept)], dim=1)
        with_positions: Tensor = self.positions(torch.cat([token, x], dim=1), grid, kept)
        return with_positions

    def pool_tokens(self, stream: str, tokens: Tensor) -> Tensor:
        """See :meth:`ViTBackbone.pool_tokens`."""
        return tokens[:, 0] if self.config.pool == "cls" else tokens[:, 1:].mean(dim=1)

    def pool(self, stream: str, features: Tensor) -> Tensor:
        """See :meth:`Backbone.pool`."""
        if self.config.pool == "cls":
            raise ValueError(
                "the embedding of this model is its class token, which is not in the map; take "
                "forward_features(...).pooled, or build it with overrides={'pool': 'mean'}"
            )
        return features.mean(dim=(-2, -1))

    def final_norm(self, stream: str) -> nn.Module:
        """See :meth:`ViTBackbone.final_norm`."""
        return self.norm

    def tokenizer_name(self, modality: str) -> str:
        """See :meth:`ViTBackbone.tokenizer_name`."""
        return "tokenizer"

    def layer_groups(self) -> list[list[nn.Module]]:
        """See :meth:`Backbone.layer_groups`: the final norm is in one layer with the last block."""
        groups: list[list[nn.Module]] = [[self.tokenizer, self.positions]]
        groups += [[block] for block in self.blocks]
        groups[-1] += [self.norm, self.head]
        return groups


# -- foreign checkpoints ------------------------------------------------------------------------------

_BLOCK_PARTS = ("norm1", "attn.qkv", "attn.proj", "ls1", "norm2", "mlp.fc1", "mlp.fc2", "ls2")

CHECKPOINT_FORMATS = {
    # timm's state dict. Dropped: the classifier, and what pretraining leaves beside the encoder.
    "timm_vit": CheckpointFormat(
        modules={
            "tokenizer.proj": "patch_embed.proj",
            **{f"blocks.#.{part}": f"blocks.#.{part}" for part in _BLOCK_PARTS},
            "norm": "norm",
        },
        parameters={"class_token": "cls_token", "positions.table": "pos_embed"},
        dropped=("head.", "fc.", "projector.", "optimizer.", "mask_token"),
        implies={"positions": "learned", "tokenizer": "linear"},
    ),
}

# What tests build of every architecture of the family.
SMALL = {"dim": 48, "depth": 2, "num_heads": 4, "patch_size": 8, "image_size": 64}

CONFIGS = {
    "vit_s16": PlainViTConfig(dim=384, depth=12, num_heads=6, patch_size=16),
    "vit_b16": PlainViTConfig(dim=768, depth=12, num_heads=12, patch_size=16),
    "vit_l16": PlainViTConfig(dim=1024, depth=24, num_heads=16, patch_size=16),
    "vit_h14": PlainViTConfig(dim=1280, depth=32, num_heads=16, patch_size=14),
    "vit_s14": PlainViTConfig(dim=384, depth=12, num_heads=6, patch_size=14, layer_scale=1e-5),
    "vit_b14": PlainViTConfig(dim=768, depth=12, num_heads=12, patch_size=14, layer_scale=1e-5),
}


def build(config: PlainViTConfig, *, num_classes: int = 0) -> PlainViT:
    """Build a plain ViT, randomly initialized."""
    return PlainViT(config, num_classes=num_classes)
