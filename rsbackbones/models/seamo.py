"""SeaMo: a season-aware masked autoencoder of optical and radar images.

Li, Li, Vivone and Hong, "SeaMo: A Season-Aware Multimodal Foundation Model for Remote Sensing", arXiv
2412.19237, section 3.

Each sensor has a patch tokenizer. The tokens of both sensors at one date are concatenated and pass through
one ViT, whose self-attention mixes them. A single sensor works as well. Fixed sine-cosine position
embeddings are shared by both sensors, which only their tokenizers distinguish. There is no class token: an
embedding is the mean of the final tokens. The ``joint`` stream is the patchwise mean of both sensors.

After pretraining, the encoder is the backbone. The temporal-multimodal (TM) block of the pretraining
(:mod:`rsbackbones.layers.temporal_multimodal`) can be kept: ``temporal=True`` builds it, and
``forward_features(series, temporal=True)`` lets each date of a series attend to the last available date
before it. Features pair the tokens of the same location. Pretraining pairs visible tokens in the order in
which the mask keeps them (Algorithm 1), so a pair has one location in 1 of 256 cases only: the block was not
trained on what it is used for.

What the paper leaves open, and our choices:

- The patch size is not in the paper. The default is 8, as CROMA uses for the same images: 16 x 16 patches for
  128 pixels. (With 16 there would be 64 patches, of which 16 are visible under the mask.)
- The blocks are those of "standard vision transformers": pre-norm, query, key and value with bias, MLP ratio
  4, exact GELU, a LayerNorm at the end. ViT-B has 12 heads, ViT-L 16. Initialization follows MAE, whose code
  the paper builds on: Xavier uniform weights, zero biases.
- For other image sizes, the position table of the pretraining grid is interpolated (section 4.5.6; bicubic,
  as in MAE's code). ``position_grid`` is that grid. To compute positions for the new grid instead, call
  :func:`rsbackbones.layers.sincos.interpolate_positions` with ``None``.
- A sensor that is missing at a date is masked out of the attention.

``seamo_vit_tiny`` is our own, for two CPU cores: it has the width and depth of ``croma_vit_tiny``, and 64
pixels.

Shapes: B images, T dates, N = h * w patches in row-major order, K kept ones, D = dim.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rsbackbones.input_spec import SSL4EO_S12, InputSpec
from rsbackbones.layers.attention import key_mask
from rsbackbones.layers.block import Block
from rsbackbones.layers.position_table import LearnedPositions
from rsbackbones.layers.sincos import SinCosPositions
from rsbackbones.layers.temporal_multimodal import Fusion, Query, TemporalMultimodal
from rsbackbones.models.backbone import Encoded
from rsbackbones.models.checkpoint_format import CheckpointFormat
from rsbackbones.models.features import flatten_map, unflatten_tokens
from rsbackbones.models.vit import Intermediates, PositionTableConfig, ViTBackbone, make_tokenizer

INPUTS: dict[str, InputSpec] = SSL4EO_S12
CHECKPOINT_FORMATS: dict[str, CheckpointFormat] = {}  # no weights are published in another format
_CHOICES = {
    "positions": ("sincos", "learned"),
    "fusion": ("fuse", "decouple"),
    "query": ("algorithm", "text"),
}

_TRAINED_BLOCK = (
    "`python -m rsbackbones.train.export RUN --full` writes a file with a trained temporal-multimodal block; "
    "without pretrained=True, overrides={'temporal': True} builds one with random weights"
)


@dataclass(frozen=True, kw_only=True)
class SeamoConfig(PositionTableConfig):
    """The configuration of a SeaMo model.

    ``positions`` is ``"sincos"`` or a ``"learned"`` table (table 13 d). ``temporal`` builds the TM block,
    whose variants are ``fusion`` (``"fuse"``, ``"decouple"``) and ``query`` (``"algorithm"``, ``"text"``).
    """

    patch_size: int = 8
    image_size: int | tuple[int, int] = 128
    modalities: tuple[str, ...] = ("s2", "s1")
    bands: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {modality: spec.bands for modality, spec in INPUTS.items()}
    )
    positions: str = "sincos"
    temporal: bool = field(default=False, metadata={"trained": _TRAINED_BLOCK})
    fusion: Fusion = "fuse"
    query: Query = "algorithm"

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [m for m in self.modalities if m not in INPUTS]:
            raise ValueError(f"SeaMo's modalities are {', '.join(INPUTS)}, got {', '.join(unknown)}")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.dim % 4:
            raise ValueError(f"sine-cosine positions need a dim that is a multiple of 4, got {self.dim}")
        if not isinstance(self.temporal, bool):
            raise ValueError(f"temporal must be true or false, got {self.temporal!r}")


class Seamo(ViTBackbone):
    """SeaMo's encoder with the streams ``s2``, ``s1`` and their mean ``joint``; its optional TM block."""

    cross_modal = True
    config: SeamoConfig

    def __init__(self, config: SeamoConfig, *, num_classes: int = 0) -> None:
        super().__init__(config, num_classes=num_classes)
        self.share_blocks(joint=("s2", "s1"))
        made = {m: make_tokenizer(config, m) for m in config.modalities}
        self.tokenizers = nn.ModuleDict(made)
        self.blocks = nn.ModuleList(
            Block(config.dim, config.num_heads, mlp_ratio=config.mlp_ratio, qkv_bias=True)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.dim)
        self.temporal: TemporalMultimodal | None = None
        if config.temporal:
            self.temporal = TemporalMultimodal(
                config.modalities, config.dim, config.num_heads, mlp_ratio=config.mlp_ratio,
                fusion=config.fusion, query=config.query,
            )  # fmt: skip
        # MAE's initialization. The scores of wavelength tokenizers are not part of MAE and keep their own.
        for part in (*(tokenizer.proj for tokenizer in made.values()), self.blocks, self.temporal):
            for module in part.modules() if part is not None else ():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight)
                    nn.init.zeros_(module.bias)
        self.positions: SinCosPositions | LearnedPositions
        if config.positions == "learned":
            self.positions = LearnedPositions(config.grid, config.dim)
        else:
            self.positions = SinCosPositions()
            self.positions.trained_grid = config.grid

    def pool_tokens(self, stream: str, tokens: Tensor) -> Tensor:
        """See :meth:`ViTBackbone.pool_tokens`."""
        return tokens.mean(dim=1)

    def encode_tokens(
        self,
        images: Mapping[str, Tensor],
        *,
        kept: Mapping[str, Tensor] | None = None,
        channels: Mapping[str, Sequence[int]] | None = None,
        valid: Mapping[str, Tensor] | None = None,
        intermediates: Intermediates | None = None,
    ) -> dict[str, Tensor]:
        """See :meth:`ViTBackbone.encode_tokens`; tokens of missing images are masked out of the attention."""
        kept, channels, valid, intermediates = (
            kept or {},
            channels or {},
            valid or {},
            {} if intermediates is None else intermediates,
        )
        tokens = []
        for m, image in images.items():
            x = self.tokenizers[m](image, kept=kept.get(m), channels=channels.get(m))
            tokens.append(self.positions(x, self.grid(image), kept.get(m)))
        counts = [x.shape[1] for x in tokens]
        x = torch.cat(tokens, dim=1)
        mask = self._mask(dict(zip(images, tokens, strict=True)), valid)
        for i, block in enumerate(self.blocks):
            x = block(x, mask)
            for m, part in zip(images, x.split(counts, dim=1), strict=True):
                if (m, i) in intermediates:
                    intermediates[m, i] = part
        return dict(zip(images, self.norm(x).split(counts, dim=1), strict=True))

    def _mask(self, tokens: Mapping[str, Tensor], valid: Mapping[str, Tensor]) -> Tensor | None:
        """Return the bias that masks the tokens of missing images; ``None`` if no image is missing."""
        if len(tokens) == 1 or not any(m in valid for m in tokens):
            return None
        first = next(iter(tokens.values()))
        whole = torch.ones(first.shape[0], dtype=torch.bool, device=first.device)
        seen = [valid.get(m, whole)[:, None].expand(-1, x.shape[1]) for m, x in tokens.items()]
        return key_mask(torch.cat(seen, dim=1), first.dtype)

    @property
    def fuses_dates(self) -> bool:
        """See :attr:`Backbone.fuses_dates`."""
        return self.temporal is not None

    def fuse_dates(
        self,
        streams: dict[str, Encoded],
        batch: tuple[int, int],
        valid: Mapping[str, Tensor],
        dates: Tensor | None,
    ) -> dict[str, Encoded]:
        """See :meth:`Backbone.fuse_dates`: the TM block fuses each date with the one before it."""
        if self.temporal is None:
            raise ValueError(
                f"temporal=True needs the temporal-multimodal block, and this {self.architecture} has none: "
                f"{_TRAINED_BLOCK}"
            )
        maps = {m: streams[m].features for m in self.modalities if m in streams}
        grid = next(iter(maps.values())).shape[-2:]
        tokens = {m: flatten_map(x).unflatten(0, batch) for m, x in maps.items()}  # [B, T, N, D]
        fused = {m: x.flatten(0, 1) for m, x in self._fused(tokens, valid, dates).items()}
        return {
            s: Encoded(features=unflatten_tokens(x, (grid[0], grid[1])), pooled=self.pool_tokens(s, x))
            for s, x in self.with_averages(fused).items()
        }

    def _fused(
        self, tokens: dict[str, Tensor], valid: Mapping[str, Tensor], dates: Tensor | None
    ) -> dict[str, Tensor]:
        """Return the tokens of sensors, [B, T, N, D], after the TM block, in the order of ``dates``."""
        assert self.temporal is not None
        if dates is None:
            return self.temporal(tokens, valid)  # type: ignore[no-any-return]
        every = torch.ones_like(dates, dtype=torch.bool)
        order = _order_of_dates(dates, torch.stack([valid.get(m, every) for m in tokens]).any(dim=0))
        places = order[..., None, None]
        sorted_tokens = {m: torch.take_along_dim(x, places, dim=1) for m, x in tokens.items()}
        sorted_valid = {m: torch.take_along_dim(v, order, dim=1) for m, v in valid.items()}
        back = order.argsort(dim=1)[..., None, None]
        fused = self.temporal(sorted_tokens, sorted_valid)
        return {m: torch.take_along_dim(x, back, dim=1) for m, x in fused.items()}

    def final_norm(self, stream: str) -> nn.Module:
        """See :meth:`ViTBackbone.final_norm`."""
        return self.norm

    def tokenizer_name(self, modality: str) -> str:
        """See :meth:`ViTBackbone.tokenizer_name`."""
        return f"tokenizers.{modality}"

    def layer_groups(self) -> list[list[nn.Module]]:
        """See :meth:`Backbone.layer_groups`: the modules after the last block belong to its group."""
        groups: list[list[nn.Module]] = [[self.tokenizers, self.positions]]
        groups += [[block] for block in self.blocks]
        groups[-1] += [self.norm, *([] if self.temporal is None else [self.temporal]), self.head]
        return groups


def _order_of_dates(dates: Tensor, there: Tensor) -> Tensor:
    """Return the indices [B, T] that sort dates [B, T].

    Args:
        dates: days.
        there: [B, T] booleans, False where a date is missing in all sensors.

    Raises:
        ValueError: two dates of a series are equal, and neither is missing in all sensors.
    """
    order = dates.argsort(dim=1, stable=True)
    if torch.compiler.is_compiling():
        return order
    for b, (days, held) in enumerate(zip(dates.tolist(), there.tolist(), strict=True)):
        known = [day for day, here in zip(days, held, strict=True) if here]
        if twice := sorted({day for day in known if known.count(day) > 1}):
            raise ValueError(
                f"dates[{b}] has day {twice[0]} twice, so its dates cannot be ordered; remove one of the "
                "two, or leave out dates= if the series is already in order"
            )
    return order


# Overrides for the tests, which build small models of every architecture.
SMALL = {"dim": 48, "depth": 2, "num_heads": 4}

CONFIGS = {
    "seamo_vit_tiny": SeamoConfig(dim=96, depth=4, num_heads=4, image_size=64),
    "seamo_vit_b": SeamoConfig(dim=768, depth=12, num_heads=12),
    "seamo_vit_l": SeamoConfig(dim=1024, depth=24, num_heads=16),
}


def build(config: SeamoConfig, *, num_classes: int = 0) -> Seamo:
    """Build a SeaMo model, randomly initialized."""
    return Seamo(config, num_classes=num_classes)
