"""The one set of methods that every backbone answers to.

For streams and shapes see :mod:`rsbackbones.features`.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rsbackbones.checked_inputs import checked_inputs
from rsbackbones.features import Features, spread_indices, take_indices
from rsbackbones.layers.recompute import recompute_blocks
from rsbackbones.sensors import InputSpec

if TYPE_CHECKING:
    from rsbackbones.adapt import Adaptation
    from rsbackbones.manifest import WeightsEntry

Images = Tensor | Mapping[str, Tensor]
# (stream, index of a block) -> its output [B, N, D], filled in by an encoder where the key is present.
Taps = dict[tuple[str, int], Tensor | None]


class Backbone(nn.Module):
    """The methods that all backbones share. A family implements the first four, and what it can of the next.

    Attributes:
        architecture: the registry's name of the architecture.
        config: the family's frozen configuration, as built.
        modalities: the sensors this model was built for.
        bands: for each modality, the names of the channels that it takes, in order, of the sensor that
            ``config.sensors`` names for it.
        stream_inputs: for each stream, the sensors that it needs.
        stream_depths: for each stream, the number of its blocks.
        mean_streams: streams that are the mean, patch by patch, of others: ``{"joint": ("s2", "s1")}``.
        mixes_sensors: whether the tokens of a sensor have seen the other sensors that are given with it.
        num_features: D, the width of every stream.
        inputs: the input contract of every sensor, for ``create_preprocess``.
        adaptation: what loading changed (``None`` where nothing was loaded).
        weights_entry: the manifest's entry of the loaded weights, or ``None``.
        pad: whether images that are no multiple of the patch are padded (below and to the right, by
            repeating their last pixels) rather than refused. The patches of the edge become tokens as all
            others do: the grid is rounded up, and embeddings average over it.
    """

    architecture: str = ""
    pad: bool = False
    stream_inputs: dict[str, tuple[str, ...]]
    stream_depths: dict[str, int]
    mean_streams: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    mixes_sensors: bool = False
    inputs: Mapping[str, InputSpec]
    adaptation: "Adaptation | None" = None
    weights_entry: "WeightsEntry | None" = None

    def __init__(self, config: Any, *, num_classes: int = 0) -> None:
        super().__init__()
        self.config = config
        self.modalities: tuple[str, ...] = tuple(config.modalities)
        self.bands: dict[str, tuple[str, ...]] = {m: tuple(config.bands[m]) for m in self.modalities}
        self.patch_size: int = config.patch_size
        self.num_features: int = config.dim
        self.reset_classifier(num_classes)

    # -- what a family implements ------------------------------------------------------------------

    def encode(
        self, images: dict[str, Tensor], taps: Taps, present: Mapping[str, Tensor]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Return (tokens [B, N, D], pooled [B, D]) of every stream that ``images`` feed; fill ``taps``.

        ``present``: by sensor, [B] booleans, False where an image is missing (it is then zeros): nothing
        else may look at it. A sensor that is not named has all.
        """
        raise NotImplementedError

    def pool(self, stream: str, tokens: Tensor) -> Tensor:
        """Return the embedding [B, D] of the tokens [B, N, D] of a stream."""
        raise NotImplementedError

    def final_norm(self, stream: str) -> nn.Module:
        """Return the LayerNorm that ends a stream."""
        raise NotImplementedError

    def tokenizer_name(self, modality: str) -> str:
        """Return the name of the module that turns images of a modality into tokens."""
        raise NotImplementedError

    def across_dates(
        self, tokens: dict[str, Tensor], valid: Mapping[str, Tensor], dates: Tensor | None
    ) -> dict[str, Tensor]:
        """Return the tokens of all streams, [B, T, N, D], after the dates of a series have seen each other.

        Args:
            tokens: of the sensors' own streams, [B, T, N, D].
            valid, dates: as for :meth:`forward_features`.

        Raises:
            ValueError: this model has no blocks for it, or the dates cannot be ordered.
        """
        raise ValueError(
            f"temporal=True needs a model whose dates look at each other, and this {self.architecture} "
            "looks at single images; SeaMo does, built with overrides={'temporal': True}"
        )

    def blocks_across_dates(self) -> nn.Module | None:
        """Return what :meth:`across_dates` alone uses: single images give its parameters no gradient."""
        return None

    # -- what a user calls -------------------------------------------------------------------------

    def forward(
        self,
        x: Images,
        *,
        dates: Tensor | None = None,
        valid: Mapping[str, Tensor] | None = None,
        temporal: bool = False,
    ) -> Tensor:
        """Return logits [B, num_classes], or the pooled embedding [B, D] where ``num_classes`` is 0.

        The stream is ``joint`` where the given sensors feed it, else the only one. A bare tensor is
        taken by a model of one modality. Series give [B, T, ...]. For the arguments and the errors see
        :meth:`forward_features`; a head serves the stream of all the model's sensors and no other.
        """
        features = self.forward_features(x, dates=dates, valid=valid, temporal=temporal)
        stream = features.main_stream
        pooled, present = features.pooled[stream], features.valid.get(stream)
        if not self.num_classes:
            return pooled
        trained = self.choose_stream(None, dict.fromkeys(self.modalities))
        if stream != trained:
            raise ValueError(
                f"the head is of stream {trained!r}, which needs "
                f"{' and '.join(self.stream_inputs[trained])}; these images feed {stream!r} only. For a head "
                f"on one sensor build the model with modalities=({stream!r},); for the embedding alone use "
                "forward_features"
            )
        if present is None:
            logits: Tensor = self.head(pooled)
            return logits
        # The head must not see the NaN of missing frames: they would reach its gradient.
        missing = ~present[..., None]
        logits = self.head(pooled.masked_fill(missing, 0))
        return logits.masked_fill(missing, float("nan"))

    def forward_features(
        self,
        x: Images,
        *,
        dates: Tensor | None = None,
        valid: Mapping[str, Tensor] | None = None,
        temporal: bool = False,
    ) -> Features:
        """Return tokens and pooled embeddings of every stream.

        Args:
            x: normalised images by modality, each [B, C, H, W] or a series [B, T, C, H, W]; a bare
                tensor where the model has one modality. All on one grid; H and W multiples of the patch.
            dates: days since 1970-01-01 of a series, integers, [B, T]. Models that look at single
                images check them and do not need them. That no two are equal is checked in eager mode only.
            valid: by modality [B, T] booleans, False where a frame is missing.
            temporal: let the dates of a series see each other, in order of ``dates`` where they are given
                and else as they stand; the model must have been built with blocks for it.

        Raises:
            ValueError: a sensor, band count, size, dtype, device or shape that the model cannot serve.
        """
        images, valid = checked_inputs(self, x, dates, valid)
        first = next(iter(images.values()))
        size, grid = (first.shape[-2], first.shape[-1]), self._grid(first)
        images = {m: self._padded(image) for m, image in images.items()}
        if temporal and first.ndim == 4:
            raise ValueError(f"temporal=True needs a series [B, T, C, H, W], got {list(first.shape)}")
        if first.ndim == 4:
            streams = self.encode(images, {}, {})
            return Features(
                tokens={s: tokens for s, (tokens, _) in streams.items()},
                pooled={s: pooled for s, (_, pooled) in streams.items()},
                grid=grid,
                size=size,
                patch_size=self.patch_size,
            )
        batch = first.shape[:2]
        streams = self.encode(_fold(images, valid), {}, {m: mask.flatten() for m, mask in valid.items()})
        if temporal:
            own = {m: streams[m][0].unflatten(0, batch) for m in images}
            across = {s: t.flatten(0, 1) for s, t in self.across_dates(own, valid, dates).items()}
            streams = {s: (t, self.pool(s, t)) for s, t in across.items()}
        present = {
            s: torch.stack([valid[m] for m in self.stream_inputs[s] if m in valid]).all(0)
            for s in streams
            if any(m in valid for m in self.stream_inputs[s])
        }
        return Features(
            tokens={s: _unfold(t, batch, present.get(s)) for s, (t, _) in streams.items()},
            pooled={s: _unfold(p, batch, present.get(s)) for s, (_, p) in streams.items()},
            grid=grid,
            size=size,
            patch_size=self.patch_size,
            valid=present,
        )

    def forward_intermediates(
        self,
        x: Images,
        indices: int | Sequence[int] | None = None,
        *,
        stream: str | None = None,
        norm: bool = False,
        dates: Tensor | None = None,
        valid: Mapping[str, Tensor] | None = None,
    ) -> list[Tensor]:
        """Return the outputs of some blocks of one stream as maps, each [B, D, h, w].

        Args:
            x, dates, valid: as for :meth:`forward_features`; series give [B, T, D, h, w].
            indices: block indices, negative ones from the end; a number n means the last n blocks;
                ``None`` four blocks evenly spaced, ending at the last.
            stream: ``joint`` by default where the given sensors feed it, else the only one.
            norm: apply the stream's final LayerNorm to each (off by default, as in timm), before a mean.

        Raises:
            ValueError: an unknown stream, an index out of range, or as for :meth:`forward_features`.
        """
        images, valid = checked_inputs(self, x, dates, valid)
        stream = self.choose_stream(stream, images)
        indices = self._indices(indices, stream)
        seen = images if self.mixes_sensors else self.stream_inputs[stream]
        images = {m: self._padded(images[m]) for m in seen}
        first = next(iter(images.values()))
        grid = self._grid(first)
        parts = self.mean_streams.get(stream, (stream,))
        taps: Taps = {(part, i): None for part in parts for i in indices}
        if first.ndim == 4:
            self.encode(images, taps, {})
        else:
            self.encode(_fold(images, valid), taps, {m: mask.flatten() for m, mask in valid.items()})
        present = [valid[m] for m in self.stream_inputs[stream] if m in valid]
        maps = []
        for i in indices:
            of_parts = []
            for part in parts:
                tapped = taps[part, i]
                assert tapped is not None, f"{type(self).__name__}.encode did not fill tap {part, i}"
                of_parts.append(self.final_norm(part)(tapped) if norm else tapped)
            tokens = of_parts[0] if len(of_parts) == 1 else torch.stack(of_parts).mean(dim=0)
            if first.ndim == 5:
                mask = torch.stack(present).all(0) if present else None
                tokens = _unfold(tokens, first.shape[:2], mask)
            maps.append(tokens.transpose(-1, -2).unflatten(-1, grid))
        return maps

    def choose_stream(self, stream: str | None, given: Mapping[str, Any]) -> str:
        """Return a stream that the sensors ``given`` feed: the one named, else ``joint``, else the only one.

        Raises:
            ValueError: there is no such stream, these sensors do not feed it, or several could be meant.
        """
        possible = [s for s, needed in self.stream_inputs.items() if all(m in given for m in needed)]
        if stream is None:
            if "joint" in possible or len(possible) == 1:
                return "joint" if "joint" in possible else possible[0]
            raise ValueError(f"several streams, name one with stream=: {', '.join(possible)}")
        if stream not in possible:
            needs = self.stream_inputs.get(stream)
            why = f"it needs {' and '.join(needs)}" if needs else "this model has no such stream"
            raise ValueError(
                f"stream {stream!r} cannot be served from {', '.join(given)}: {why}; "
                f"possible here: {', '.join(possible)}"
            )
        return stream

    def forward_streams(
        self, x: Mapping[str, Tensor], streams: Sequence[str] | None = None
    ) -> dict[str, Features]:
        """Return for every stream the features of its own sensors alone: those of stream s are at ``[s]``.

        Where sensors do not see each other this is :meth:`forward_features` once; where they do
        (``mixes_sensors``), ``["s2"].tokens["s2"]`` are those of a user who has no other sensor.

        Args:
            x: as for :meth:`forward_features`.
            streams: those wanted; by default all that ``x`` feeds.

        Raises:
            ValueError: a stream that ``x`` does not feed, or as :meth:`forward_features`.
        """
        fed = [s for s, needed in self.stream_inputs.items() if all(m in x for m in needed)]
        wanted = [self.choose_stream(s, x) for s in streams] if streams is not None else fed
        if not self.mixes_sensors:
            return dict.fromkeys(wanted, self.forward_features(x))
        return {s: self.forward_features({m: x[m] for m in self.stream_inputs[s]}) for s in wanted}

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new linear head of ``num_classes`` on the embedding, or none for 0."""
        if num_classes < 0:
            raise ValueError(f"num_classes must be 0 (no head) or more, got {num_classes}")
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def get_classifier(self) -> nn.Module:
        """Return the head: an ``nn.Linear``, or ``nn.Identity`` where ``num_classes`` is 0."""
        return self.head

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Train in less memory and more time: keep only the inputs of blocks, and compute the rest again.

        Gradients stay what they are.
        """
        recompute_blocks(self, enable)

    # -- sizes -------------------------------------------------------------------------------------

    def _grid(self, image: Tensor) -> tuple[int, int]:
        """The number of patches, (h, w), that cover an image."""
        p = self.patch_size
        return (image.shape[-2] + p - 1) // p, (image.shape[-1] + p - 1) // p

    def _padded(self, image: Tensor) -> Tensor:
        """[..., H, W] to whole patches; see ``pad``."""
        if not self.pad:
            return image
        for dim, patches in zip((-2, -1), self._grid(image), strict=True):
            whole = patches * self.patch_size
            # A traced program serves all sizes.
            if torch.compiler.is_compiling() or whole != image.shape[dim]:
                places = torch.arange(whole, device=image.device).clamp(max=image.shape[dim] - 1)
                image = image.index_select(dim, places)
        return image

    def _indices(self, indices: int | Sequence[int] | None, stream: str) -> tuple[int, ...]:
        depth = self.stream_depths[stream]
        if indices is None:
            return spread_indices(depth)
        return take_indices(indices, depth, f"stream {stream!r} has {depth} blocks")


def unwrapped(model: Any) -> Backbone:
    """Take off what torch.compile, data parallelism, ``features_only`` and timm put around a model."""
    while not isinstance(model, Backbone):
        for name in ("_orig_mod", "module", "backbone", "model"):
            if hasattr(model, name):
                model = getattr(model, name)
                break
        else:
            raise ValueError(f"expected a model from create_model, got {type(model).__name__}")
    return model


def _fold(images: dict[str, Tensor], valid: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """[B, T, C, H, W] to [B * T, C, H, W], with zeros in place of what missing frames hold.

    What a missing frame holds (often NaN) must reach neither the features nor the gradients.
    """
    return {
        m: (x.masked_fill(~valid[m][..., None, None, None], 0) if m in valid else x).flatten(0, 1)
        for m, x in images.items()
    }


def _unfold(x: Tensor, batch: Sequence[int], present: Tensor | None) -> Tensor:
    """[B * T, ...] to [B, T, ...], NaN where a frame is missing."""
    x = x.unflatten(0, tuple(batch))
    if present is None:
        return x
    return x.masked_fill(~present.view(*present.shape, *[1] * (x.ndim - 2)), float("nan"))
