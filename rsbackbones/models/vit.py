"""Vision transformers: patches, tokens, blocks of equal width and a final norm.

A family of ViTs implements ``encode_tokens``, which training also calls, and names its modules. This file
derives the contract of :class:`rsbackbones.models.backbone.Backbone` from them.

Shapes: B images, N = h * w patches in row-major order, K kept ones, D = dim.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Self

from torch import Tensor, nn

from rsbackbones.layers.sincos import interpolated_from
from rsbackbones.layers.tokenizer import LinearTokenizer
from rsbackbones.layers.wavelength_tokenizer import WavelengthTokenizer
from rsbackbones.models.backbone import Backbone, Encoded, Inputs, Stage, Wanted
from rsbackbones.models.config import ModelConfig, is_count
from rsbackbones.models.features import flatten_map, unflatten_tokens
from rsbackbones.models.stem import Stem
from rsbackbones.sensors import get_sensor

TOKENIZERS = ("linear", "wavelength")
# (stream, block index) -> output [B, N, D]. The encoder fills in the keys that are present.
Intermediates = dict[tuple[str, int], Tensor | None]


@dataclass(frozen=True, kw_only=True)
class ViTConfig(ModelConfig):
    """The configuration of a ViT. A family adds its own fields and defaults.

    ``mlp_ratio`` is the width of a block's hidden layer divided by ``dim``. ``tokenizer`` is ``"linear"`` or
    ``"wavelength"`` (our own method) for optical sensors; radar always has a linear one.

    Raises:
        ValueError: a field has the wrong type or is out of range.
    """

    dim: int
    depth: int
    num_heads: int
    patch_size: int
    mlp_ratio: float = 4.0
    tokenizer: str = "linear"

    def __post_init__(self) -> None:
        for name in ("dim", "depth", "num_heads", "patch_size"):
            if not is_count(getattr(self, name)):
                raise ValueError(f"{name} must be a positive whole number, got {getattr(self, name)!r}")
        if self.dim % self.num_heads:
            raise ValueError(
                f"dim must be a multiple of num_heads, got dim={self.dim}, num_heads={self.num_heads}"
            )
        if isinstance(self.mlp_ratio, bool) or not isinstance(self.mlp_ratio, (int, float)):
            raise ValueError(f"mlp_ratio must be a number, got {self.mlp_ratio!r}")
        if not 1 <= self.dim * self.mlp_ratio < 2**31:
            raise ValueError(f"mlp_ratio must give a hidden layer of at least 1, got {self.mlp_ratio}")
        if self.tokenizer not in TOKENIZERS:
            raise ValueError(f"tokenizer must be one of {', '.join(TOKENIZERS)}, got {self.tokenizer!r}")
        super().__post_init__()
        if any(side % self.patch_size for side in self.image_sides):
            raise ValueError(
                f"image_size must be a multiple of the patch size {self.patch_size}, or (height, width) of "
                f"such, got {self.image_size!r}; resize the images, or pass pad=True and another image_size"
            )

    def summary(self) -> str:
        """See :meth:`ModelConfig.summary`."""
        return f"dim {self.dim}, depth {self.depth}, {self.num_heads} heads, patch {self.patch_size}"

    def min_tensors(self) -> int:
        """See :meth:`ModelConfig.min_tensors`."""
        return self.depth

    def takes_wavelengths(self, modality: str) -> bool:
        """See :meth:`ModelConfig.takes_wavelengths`."""
        return self.tokenizer == "wavelength" and get_sensor(modality).kind == "optical"


@dataclass(frozen=True, kw_only=True)
class PositionTableConfig(ViTConfig):
    """The configuration of a ViT whose positions belong to a grid and are interpolated to others.

    ``position_grid`` is that grid (h, w), in patches, by default that of ``image_size``.
    """

    position_grid: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.position_grid is not None:
            grid: Any = self.position_grid
            if not isinstance(grid, tuple) or len(grid) != 2 or not all(map(is_count, grid)):
                raise ValueError(f"position_grid must be (rows, columns) of patches, got {grid!r}")
            # One form for one thing, since configurations are compared: the images' own grid is not stated.
            object.__setattr__(self, "position_grid", None if grid == self._own_grid else grid)

    @property
    def grid(self) -> tuple[int, int]:
        """The grid (h, w), in patches, of the positions."""
        return self.position_grid or self._own_grid

    @property
    def _own_grid(self) -> tuple[int, int]:
        height, width = self.image_sides
        return height // self.patch_size, width // self.patch_size

    def requested(self, **changes: Any) -> Self:
        """See :meth:`ModelConfig.requested`: the positions stay those that the weights were trained with."""
        return replace(self, **({"position_grid": self.grid} | changes))


class ViTBackbone(Backbone):
    """The methods that all ViTs share.

    Attributes:
        patch_size: p, in pixels.
        num_heads: the number of attention heads.
        stream_blocks: by stream, the name of the module list with its blocks.
        stream_depths: by stream, the number of its blocks.
        averaged_streams: streams that are the patchwise mean of others: ``{"joint": ("s2", "s1")}``.
        num_prefix_tokens: P, the tokens (such as a class token) before those of the patches in the results of
            ``encode_tokens``; most families have none.
    """

    has_final_norm = True
    num_prefix_tokens = 0
    averaged_streams: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    stream_blocks: dict[str, str]
    stream_depths: dict[str, int]

    def __init__(self, config: ViTConfig, *, num_classes: int = 0) -> None:
        super().__init__(config, num_features=config.dim, num_classes=num_classes)
        self.patch_size = self.size_multiple = config.patch_size
        self.num_heads = config.num_heads

    def share_blocks(self, joint: tuple[str, ...]) -> None:
        """State that all streams come from one stack, ``blocks``.

        Where the model has all sensors of ``joint``, the stream ``joint`` is their patchwise mean.
        """
        if set(joint) <= set(self.config.modalities):
            self.stream_inputs["joint"] = joint
            self.averaged_streams = {"joint": joint}
            self.default_stream = "joint"
        self.stream_blocks = dict.fromkeys(self.stream_inputs, "blocks")
        self.stream_depths = dict.fromkeys(self.stream_inputs, self.config.depth)

    # -- methods that a family implements ------------------------------------------------------------------

    @abstractmethod
    def encode_tokens(
        self,
        images: Mapping[str, Tensor],
        *,
        kept: Mapping[str, Tensor] | None = None,
        channels: Mapping[str, Sequence[int]] | None = None,
        valid: Mapping[str, Tensor] | None = None,
        intermediates: Intermediates | None = None,
    ) -> dict[str, Tensor]:
        """Return the final tokens of every stream that has its own blocks, prefix tokens first.

        Args:
            images: by modality, [B, C, H, W], on one grid.
            kept: by modality, the indices of the patches to encode, [B, K]; the result is [B, K, D] in that
                order. By default all patches are encoded, [B, N, D].
            channels: by modality, the indices of the model's bands in the image, in order, if it lacks some.
            valid: as in :class:`rsbackbones.models.backbone.Inputs`.
            intermediates: a mapping to fill with the outputs of single blocks, without prefix tokens.
        """
        raise NotImplementedError

    @abstractmethod
    def pool_tokens(self, stream: str, tokens: Tensor) -> Tensor:
        """Return the embedding [B, D] of the tokens [B, P + N, D] of a stream, prefix tokens first."""
        raise NotImplementedError

    @abstractmethod
    def final_norm(self, stream: str) -> nn.Module:
        """Return the final LayerNorm of a stream."""
        raise NotImplementedError

    @abstractmethod
    def tokenizer_name(self, modality: str) -> str:
        """Return the name of the tokenizer module of a modality."""
        raise NotImplementedError

    # -- the contract ------------------------------------------------------------------------------

    def stages(self, stream: str) -> tuple[Stage, ...]:
        """See :meth:`Backbone.stages`: a stage is a block."""
        path, depth = self.stream_blocks[stream], self.stream_depths[stream]
        return tuple(Stage(self.num_features, self.patch_size, f"{path}.{i}") for i in range(depth))

    def stem(self, modality: str) -> Stem:
        """See :meth:`Backbone.stem`."""
        name = self.tokenizer_name(modality)
        tokenizer: Any = self.get_submodule(name)
        return Stem(
            module=name,
            weight=f"{name}.proj.weight",
            to_kernel=tokenizer.to_kernel,
            from_kernel=tokenizer.from_kernel,
        )

    def grid(self, image: Tensor) -> tuple[int, int]:
        """Return the patches (h, w) of an image [..., H, W]."""
        return image.shape[-2] // self.patch_size, image.shape[-1] // self.patch_size

    def encode(self, inputs: Inputs, wanted: Wanted) -> dict[str, Encoded]:
        """See :meth:`Backbone.encode`."""
        parts = {s: self.averaged_streams.get(s, (s,)) for s in wanted.stages}
        intermediates: Intermediates = {
            (part, i): None for s, indices in wanted.stages.items() for part in parts[s] for i in indices
        }
        tokens = self.encode_tokens(inputs.images, valid=inputs.valid, intermediates=intermediates)
        grid = self.grid(next(iter(inputs.images.values())))
        streams = {}
        for stream, x in self.with_averages(tokens).items():
            maps = {}
            for i in wanted.stages.get(stream, ()):
                outputs = [self._intermediate(intermediates, part, i, wanted.norm) for part in parts[stream]]
                maps[i] = unflatten_tokens(_mean(outputs), grid)
            prefix, patches = x[:, : self.num_prefix_tokens], x[:, self.num_prefix_tokens :]
            streams[stream] = Encoded(
                features=unflatten_tokens(patches, grid),
                pooled=self.pool_tokens(stream, x),
                maps=maps,
                prefix=prefix if self.num_prefix_tokens else None,
            )
        return streams

    def pool(self, stream: str, features: Tensor) -> Tensor:
        """See :meth:`Backbone.pool`."""
        return self.pool_tokens(stream, flatten_map(features))

    def with_averages(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tokens by stream, including the streams that average the given ones."""
        means = {
            stream: _mean([tokens[part] for part in parts])
            for stream, parts in self.averaged_streams.items()
            if all(part in tokens for part in parts)
        }
        return {**tokens, **means}

    def feature_options(self) -> dict[str, Any]:
        """See :meth:`Backbone.feature_options`."""
        return {**super().feature_options(), "positions": interpolated_from(self)}

    def _intermediate(self, intermediates: Intermediates, stream: str, index: int, norm: bool) -> Tensor:
        x = intermediates[stream, index]
        assert x is not None, f"{type(self).__name__}.encode_tokens did not fill in {stream, index}"
        normed: Tensor = self.final_norm(stream)(x) if norm else x
        return normed


def make_tokenizer(config: ViTConfig, modality: str) -> LinearTokenizer:
    """Return a new tokenizer for the bands of a modality: linear or wavelength."""
    names = config.bands[modality]
    if not config.takes_wavelengths(modality):
        return LinearTokenizer(len(names), config.dim, config.patch_size)
    bands = [get_sensor(config.sensors[modality]).band(name) for name in names]
    wavelengths, widths = [band.wavelength for band in bands], [band.width for band in bands]
    return WavelengthTokenizer(wavelengths, widths, config.dim, config.patch_size)


def _mean(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total if len(parts) == 1 else total / len(parts)
