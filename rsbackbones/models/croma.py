"""CROMA: contrastive radar-optical masked autoencoders.

Fuller, Millard and Green, "CROMA: Remote Sensing Representations with Contrastive Radar-Optical Masked
Autoencoders", NeurIPS 2023, arXiv 2311.00566, section 2.

An optical ViT of ``depth`` blocks, a radar ViT of ``depth / 2`` blocks, and a joint encoder of
``depth / 2`` blocks (self-attention, cross-attention, MLP) that takes the radar tokens at the bottom and
cross-attends to the optical tokens. No position embeddings: all attention is biased by 2D-ALiBi, the
cross-attention by X-ALiBi, so any grid is served. The embedding of an image is an MLP of the mean token
for each sensor, and the mean token itself for joint.

What the paper leaves open, and the choices of the public code and of this file:

- As in the public code: pre-norm blocks, query/key/value without bias, one LayerNorm for the query and the
  context of a cross-attention, a LayerNorm at the end of each encoder, MLP ratio 4, exact GELU.
- As in the public code: the MLP of the embedding starts with its own LayerNorm and has no residual.
- Initialization: torch's defaults, as in the public code, with which the published numbers were obtained.
- Image series are encoded date by date; dates are not used.
- Section 4.1 compares other position encodings: ``positions="sincos"`` (added to the tokens of both sensors)
  and ``"peg"`` (after the first block of all three encoders), both without an attention bias.
  ``cross_alibi=False`` is 2D-ALiBi without X-ALiBi.
- In pretraining the encoders process only the kept patches, with the biases between those. The joint
  encoder's self-attention uses the bias between radar patches. The public code, and thus the published
  weights, uses the X-ALiBi table (radar to optical) there, which differs for independent masks:
  ``joint_self_bias="published"``.

``croma_vit_b`` and ``croma_vit_l`` are from the paper, with 16 heads. ``croma_vit_s`` and ``croma_vit_tiny``
are our own. ``s`` has 8 heads: this gives the head width of ``b``, 48, and a power of two, for which the
slopes are one geometric sequence. ``tiny`` has 4 heads of width 24 for the same reason.

Shapes: B images, N = h * w patches in row-major order, D = dim.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rsbackbones.input_spec import SSL4EO_S12, InputSpec
from rsbackbones.layers.alibi import alibi_bias, bias_between, grid_positions
from rsbackbones.layers.attention import Bias
from rsbackbones.layers.block import Block, CrossBlock
from rsbackbones.layers.mlp import MLP
from rsbackbones.layers.peg import PositionEncodingGenerator
from rsbackbones.layers.sincos import SinCosPositions
from rsbackbones.models.checkpoint_format import CheckpointFormat
from rsbackbones.models.vit import Intermediates, ViTBackbone, ViTConfig, make_tokenizer

INPUTS: dict[str, InputSpec] = SSL4EO_S12
POSITIONS = ("alibi", "sincos", "peg")


@dataclass(frozen=True, kw_only=True)
class CromaConfig(ViTConfig):
    """The configuration of a CROMA model. ``depth`` is the depth of the optical encoder.

    ``positions`` is the position encoding; ``cross_alibi``: use X-ALiBi with ``"alibi"``.
    """

    patch_size: int = 8
    image_size: int | tuple[int, int] = 120
    modalities: tuple[str, ...] = ("s2", "s1")
    bands: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {modality: spec.bands for modality, spec in INPUTS.items()}
    )
    positions: str = "alibi"
    cross_alibi: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [m for m in self.modalities if m not in INPUTS]:
            raise ValueError(f"CROMA's modalities are {', '.join(INPUTS)}, got {', '.join(unknown)}")
        if self.depth % 2:
            raise ValueError(
                f"depth must be even and at least 2 (the radar and the joint encoder have half the blocks), "
                f"got {self.depth}"
            )
        if self.positions not in POSITIONS:
            raise ValueError(f"positions must be one of {', '.join(POSITIONS)}, got {self.positions!r}")
        if self.positions == "sincos" and self.dim % 4:
            raise ValueError(f"positions='sincos' needs a dim that is a multiple of 4, got {self.dim}")
        if not isinstance(self.cross_alibi, bool):
            raise ValueError(f"cross_alibi must be true or false, got {self.cross_alibi!r}")

    def stream_depths(self) -> dict[str, int]:
        """Return the number of blocks of every available stream."""
        depths = {"s2": self.depth, "s1": self.depth // 2, "joint": self.depth // 2}
        streams = (*self.modalities, "joint") if len(self.modalities) == 2 else self.modalities
        return {stream: depths[stream] for stream in streams}


@dataclass(frozen=True)
class Patches:
    """The patches of one sensor to encode: all of a grid (h, w), or the ``kept`` ones, [B, K].

    ``positions`` are their (row, column), [N, 2] or [B, K, 2].
    """

    grid: tuple[int, int]
    positions: Tensor
    kept: Tensor | None


class Encoder(nn.Module):
    """The ViT of one sensor."""

    def __init__(self, config: CromaConfig, modality: str) -> None:
        super().__init__()
        self.tokenizer = make_tokenizer(config, modality)
        self.blocks = nn.ModuleList(
            Block(config.dim, config.num_heads, mlp_ratio=config.mlp_ratio, qkv_bias=False)
            for _ in range(config.stream_depths()[modality])
        )
        self.norm = nn.LayerNorm(config.dim)
        self.peg = PositionEncodingGenerator(config.dim) if config.positions == "peg" else None
        self.sincos = SinCosPositions() if config.positions == "sincos" else None
        self.stream = modality

    def forward(
        self,
        image: Tensor,
        patches: Patches,
        bias: Bias,
        channels: Sequence[int] | None,
        intermediates: Intermediates,
    ) -> Tensor:
        """[B, C, H, W] and the bias between its patches to [B, K, D]."""
        x = self.tokenizer(image, kept=patches.kept, channels=channels)
        if self.sincos is not None:
            x = self.sincos(x, patches.grid, patches.kept)
        for i, block in enumerate(self.blocks):
            x = block(x, bias)
            if i == 0 and self.peg is not None:
                x = self.peg(x, patches.grid, patches.kept)
            if (self.stream, i) in intermediates:
                intermediates[self.stream, i] = x
        tokens: Tensor = self.norm(x)
        return tokens


class JointEncoder(nn.Module):
    """Radar tokens that cross-attend to optical tokens."""

    def __init__(self, config: CromaConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            CrossBlock(config.dim, config.num_heads, mlp_ratio=config.mlp_ratio, qkv_bias=False)
            for _ in range(config.stream_depths()["joint"])
        )
        self.norm = nn.LayerNorm(config.dim)
        self.peg = PositionEncodingGenerator(config.dim) if config.positions == "peg" else None

    def forward(
        self,
        radar: Tensor,
        optical: Tensor,
        patches: Patches,
        bias: Bias,
        cross_bias: Bias,
        intermediates: Intermediates,
    ) -> Tensor:
        """Radar tokens [B, K, D], at ``patches``, and optical [B, K', D] to joint tokens [B, K, D]."""
        x = radar
        for i, block in enumerate(self.blocks):
            x = block(x, optical, bias, cross_bias)
            if i == 0 and self.peg is not None:
                x = self.peg(x, patches.grid, patches.kept)
            if ("joint", i) in intermediates:
                intermediates["joint", i] = x
        tokens: Tensor = self.norm(x)
        return tokens


class ImageEmbedding(nn.Module):
    """The full-image representation of one sensor: [B, N, D] to [B, D] (section 2, FFN(MeanPool))."""

    def __init__(self, config: CromaConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.dim)
        self.mlp = MLP(config.dim, int(config.dim * config.mlp_ratio))

    def forward(self, tokens: Tensor) -> Tensor:
        embedding: Tensor = self.mlp(self.norm(tokens.mean(dim=1)))
        return embedding


class Croma(ViTBackbone):
    """CROMA's encoders: optical (``s2``), radar (``s1``) and, with both, ``joint``."""

    config: CromaConfig

    def __init__(self, config: CromaConfig, *, num_classes: int = 0) -> None:
        super().__init__(config, num_classes=num_classes)
        self.encoders = nn.ModuleDict({m: Encoder(config, m) for m in config.modalities})
        self.embeddings = nn.ModuleDict({m: ImageEmbedding(config) for m in config.modalities})
        self.stream_blocks = {m: f"encoders.{m}.blocks" for m in config.modalities}
        self.joint: JointEncoder | None = None
        if len(config.modalities) == 2:
            self.joint = JointEncoder(config)
            self.stream_inputs["joint"] = ("s2", "s1")
            self.stream_blocks["joint"] = "joint.blocks"
            self.default_stream = "joint"
        self.stream_depths = config.stream_depths()

    def pool_tokens(self, stream: str, tokens: Tensor) -> Tensor:
        """See :meth:`ViTBackbone.pool_tokens`."""
        pooled: Tensor = tokens.mean(dim=1) if stream == "joint" else self.embeddings[stream](tokens)
        return pooled

    def encode_tokens(
        self,
        images: Mapping[str, Tensor],
        *,
        kept: Mapping[str, Tensor] | None = None,
        channels: Mapping[str, Sequence[int]] | None = None,
        valid: Mapping[str, Tensor] | None = None,
        intermediates: Intermediates | None = None,
        joint: bool = True,
        joint_self_bias: Literal["radar", "published"] = "radar",
    ) -> dict[str, Tensor]:
        """See :meth:`ViTBackbone.encode_tokens`; joint tokens are at the kept radar patches.

        ``valid`` is not used: a stream with a missing sensor has no meaningful tokens, and the other streams
        do not depend on that sensor.

        Args:
            images, kept, channels, valid, intermediates: as in :meth:`ViTBackbone.encode_tokens`.
            joint: compute the joint tokens, if both sensors are passed.
            joint_self_bias: ``radar``, or ``published`` for the bias of the public code; that requires equal
                numbers of kept patches of both sensors.
        """
        intermediates = {} if intermediates is None else intermediates
        channels = channels or {}
        first = next(iter(images.values()))
        grid = self.grid(first)
        positions = grid_positions(*grid, device=first.device)  # [N, 2]
        patches = {
            m: Patches(grid, positions, None) if kept is None else Patches(grid, positions[kept[m]], kept[m])
            for m in images
        }
        # The sensors are aligned, so on a whole grid 2D-ALiBi and X-ALiBi have the same table (section 2).
        whole = self._bias(positions, positions, grid) if kept is None else None

        def bias(queries: str, keys: str) -> Bias:
            return whole if kept is None else self._bias(patches[queries].positions, patches[keys].positions)

        own = {m: bias(m, m) for m in images}
        tokens = {
            m: self.encoders[m](image, patches[m], own[m], channels.get(m), intermediates)
            for m, image in images.items()
        }
        if joint and self.joint is not None and len(tokens) == 2:
            cross = bias("s1", "s2")
            self_bias = cross if joint_self_bias == "published" else own["s1"]
            tokens["joint"] = self.joint(
                tokens["s1"],
                tokens["s2"],
                patches["s1"],
                self_bias,
                cross if self.config.cross_alibi else None,
                intermediates,
            )
        return tokens

    def _bias(self, queries: Tensor, keys: Tensor, grid: tuple[int, int] | None = None) -> Bias:
        if self.config.positions != "alibi":
            return None
        device = queries.device.type
        # Cast once: if every block cast the bias itself, each copy would be kept for the backward pass.
        autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else self.device_and_dtype()[1]
        return bias_between(queries, keys, self.num_heads, dtype, grid=grid)

    def final_norm(self, stream: str) -> nn.Module:
        """See :meth:`ViTBackbone.final_norm`."""
        return self.get_submodule("joint.norm" if stream == "joint" else f"encoders.{stream}.norm")

    def tokenizer_name(self, modality: str) -> str:
        """See :meth:`ViTBackbone.tokenizer_name`."""
        return f"encoders.{modality}.tokenizer"

    def layer_groups(self) -> list[list[nn.Module]]:
        """See :meth:`Backbone.layer_groups`: the last blocks of both sensors precede the first joint block.

        Final norms and poolings belong to the group of the last block before them.
        """
        encoders: list[Any] = list(self.encoders.values())
        joint = [] if self.joint is None else list(self.joint.blocks)
        deepest = max(len(encoder.blocks) for encoder in encoders)
        groups: list[list[nn.Module]] = [[] for _ in range(1 + deepest + len(joint))]
        for encoder in encoders:
            first = deepest - len(encoder.blocks)
            groups[first] += [m for m in (encoder.tokenizer, encoder.peg) if m is not None]
            for depth, block in enumerate(encoder.blocks, start=first + 1):
                groups[depth].append(block)
            groups[deepest].append(encoder.norm)
        for depth, block in enumerate(joint, start=deepest + 1):
            groups[depth].append(block)
        if self.joint is not None:
            groups[deepest] += [self.joint.peg] if self.joint.peg is not None else []
            groups[-1].append(self.joint.norm)
        groups[-1] += [self.embeddings, self.head]
        return groups


# -- foreign checkpoints ------------------------------------------------------------------------------


def _module_names(
    *, encoder: str, embedding: str, joint: str, s1: str, s2: str, qkv: str, out: str, q: str, fc2: int
) -> dict[str, str]:
    """Map native module names to those of a file of the authors; ``#`` is the index of a block."""
    names: dict[str, str] = {}
    for native, foreign in (("s1", s1), ("s2", s2)):
        vit = encoder.format(foreign)
        names |= {
            f"encoders.{native}.tokenizer.proj": f"{vit}.linear_input",
            f"encoders.{native}.blocks.#.norm1": f"{vit}.transformer.layers.#.0.input_norm",
            f"encoders.{native}.blocks.#.attn.qkv": f"{vit}.transformer.layers.#.0.{qkv}",
            f"encoders.{native}.blocks.#.attn.proj": f"{vit}.transformer.layers.#.0.{out}",
            f"encoders.{native}.blocks.#.norm2": f"{vit}.transformer.layers.#.1.input_norm",
            f"encoders.{native}.blocks.#.mlp.fc1": f"{vit}.transformer.layers.#.1.net.0",
            f"encoders.{native}.blocks.#.mlp.fc2": f"{vit}.transformer.layers.#.1.net.{fc2}",
            f"encoders.{native}.norm": f"{vit}.transformer.norm_out",
            f"embeddings.{native}.norm": f"{embedding.format(foreign)}.0",
            f"embeddings.{native}.mlp.fc1": f"{embedding.format(foreign)}.1",
            f"embeddings.{native}.mlp.fc2": f"{embedding.format(foreign)}.3",
        }
    return names | {
        "joint.blocks.#.norm1": f"{joint}.layers.#.0.input_norm",
        "joint.blocks.#.attn.qkv": f"{joint}.layers.#.0.{qkv}",
        "joint.blocks.#.attn.proj": f"{joint}.layers.#.0.{out}",
        "joint.blocks.#.norm_cross": f"{joint}.layers.#.1.input_norm",
        "joint.blocks.#.cross.q": f"{joint}.layers.#.1.{q}q",
        "joint.blocks.#.cross.k": f"{joint}.layers.#.1.{q}k",
        "joint.blocks.#.cross.v": f"{joint}.layers.#.1.{q}v",
        "joint.blocks.#.cross.proj": f"{joint}.layers.#.1.to_out",
        "joint.blocks.#.norm2": f"{joint}.layers.#.2.input_norm",
        "joint.blocks.#.mlp.fc1": f"{joint}.layers.#.2.net.0",
        "joint.blocks.#.mlp.fc2": f"{joint}.layers.#.2.net.{fc2}",
        "joint.norm": f"{joint}.norm_out",
    }


def _check_attention_table(table: Tensor, config: CromaConfig) -> None:
    """Compare a stored ALiBi table [1, heads, N, N] (torchgeo's ``state_dict`` has one) with ours."""
    side = round(table.shape[-1] ** 0.5) if table.ndim == 4 else 0
    shape = (1, config.num_heads, side * side, side * side)
    right = tuple(table.shape) == shape and side > 0 and table.is_floating_point()
    if right:
        positions = grid_positions(side, side)
        expected = alibi_bias(positions, positions, config.num_heads)
        right = torch.allclose(table[0].float(), expected, atol=1e-4)
    if not right:
        raise ValueError(
            f"the stored attention bias, {table.dtype} {list(table.shape)}, is not the 2D-ALiBi of "
            f"{config.num_heads} heads"
        )


CHECKPOINT_FORMATS = {
    # The released files: a dictionary of state dicts, or one flat dictionary.
    "croma_official": CheckpointFormat(
        modules=_module_names(
            encoder="{}_encoder", embedding="{}_GAP_FFN", joint="joint_encoder", s1="s1", s2="s2",
            qkv="to_qkv", out="to_out", q="to_", fc2=3,
        ),
        nested=True,
        implies={"positions": "alibi", "cross_alibi": True, "tokenizer": "linear"},
        derived={"attn_bias": _check_attention_table},
    ),
    # The state dict of the authors' pretraining model; its decoder and projections are not part of a
    # backbone.
    "croma_pretrain": CheckpointFormat(
        modules=_module_names(
            encoder="{}_encoder", embedding="GAP_FFN_{}", joint="cross_encoder", s1="radar", s2="optical",
            qkv="create_qkv", out="out", q="create_", fc2=2,
        ),
        dropped=("decoder.", "global_contrast_loss."),
        implies={"positions": "alibi", "cross_alibi": True, "tokenizer": "linear"},
    ),
}  # fmt: skip

# Overrides for the tests, which build small models of every architecture.
SMALL = {"dim": 48, "depth": 2, "num_heads": 4}

CONFIGS = {
    "croma_vit_tiny": CromaConfig(dim=96, depth=4, num_heads=4),
    "croma_vit_s": CromaConfig(dim=384, depth=12, num_heads=8),
    "croma_vit_b": CromaConfig(dim=768, depth=12, num_heads=16),
    "croma_vit_l": CromaConfig(dim=1024, depth=24, num_heads=16),
}


def build(config: CromaConfig, *, num_classes: int = 0) -> Croma:
    """Build a CROMA model, randomly initialized."""
    return Croma(config, num_classes=num_classes)
