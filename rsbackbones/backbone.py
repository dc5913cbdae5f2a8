"""The one set of methods that every backbone answers to, and the checks of what it is given.

For streams and shapes see :mod:`rsbackbones.features`.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rsbackbones.features import Features, spread_indices, take_indices
from rsbackbones.layers.recompute import recompute_blocks
from rsbackbones.sensors import InputSpec, get_sensor

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
        images, valid = self._checked(x, dates, valid)
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
        images, valid = self._checked(x, dates, valid)
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

    # -- checks at the edge ------------------------------------------------------------------------

    def _indices(self, indices: int | Sequence[int] | None, stream: str) -> tuple[int, ...]:
        depth = self.stream_depths[stream]
        if indices is None:
            return spread_indices(depth)
        return take_indices(indices, depth, f"stream {stream!r} has {depth} blocks")

    def _checked(
        self, x: Images, dates: Tensor | None, valid: Mapping[str, Tensor] | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        if isinstance(x, Tensor):
            if len(self.modalities) > 1:
                raise ValueError(
                    f"this model takes {' and '.join(self.modalities)}: name the sensor, as in "
                    f"model({{'{self.modalities[0]}': x}})"
                )
            x = {self.modalities[0]: x}
        if not isinstance(x, Mapping):
            raise ValueError(_not_a_tensor("the model", x))
        unknown = [m for m in x if m not in self.modalities]
        if unknown or not x:
            raise ValueError(
                f"got {', '.join(map(repr, unknown)) or 'no sensor'}; this model was built for "
                f"{', '.join(map(repr, self.modalities))} (create_model(..., modalities=...) decides)"
            )
        images = {m: self._checked_image(m, x[m]) for m in self.modalities if m in x}
        shapes = [(*image.shape[:-3], *image.shape[-2:]) for image in images.values()]
        if any(shape != shapes[0] for shape in shapes[1:]):  # a set would fix the shapes of a traced program
            raise ValueError(
                "sensors must agree on batch, dates and size in pixels, got "
                + ", ".join(f"{m} {tuple(images[m].shape)}" for m in images)
                + "; resample them onto one grid"
            )
        first = next(iter(images.values()))
        series = first.ndim == 5
        frames = tuple(first.shape[:2])
        if dates is not None and not isinstance(dates, Tensor):
            raise ValueError(
                f"dates must be a tensor of days, [B, T], got {type(dates).__name__}: torch.tensor(dates)"
            )
        if dates is not None and (not series or tuple(dates.shape) != frames):
            raise ValueError(
                f"dates must be [B, T] = {list(frames)} for a series [B, T, C, H, W], got "
                f"{list(dates.shape)} for images of shape {list(first.shape)}"
            )
        if dates is not None and (dates.is_floating_point() or dates.dtype == torch.bool):
            raise ValueError(f"dates must be whole days since 1970-01-01, got dtype {dates.dtype}")
        if valid is not None and not isinstance(valid, Mapping):
            raise ValueError("valid goes by sensor: valid={'" + next(iter(images)) + "': mask}")
        valid = dict(valid or {})
        for m, mask in valid.items():
            if not isinstance(mask, Tensor):
                raise ValueError(f"valid[{m!r}] must be a tensor of booleans, got {type(mask).__name__}")
            if m not in images or not series or tuple(mask.shape) != frames or mask.dtype != torch.bool:
                raise ValueError(
                    f"valid[{m!r}] must be booleans [B, T] = {list(frames)} for a series of a given "
                    f"sensor, got {mask.dtype} {list(mask.shape)}; sensors given: {', '.join(images)}"
                )
        return images, valid

    def _checked_image(self, modality: str, image: Tensor) -> Tensor:
        bands, p = self.bands[modality], self.patch_size
        if not isinstance(image, Tensor):
            raise ValueError(_not_a_tensor(modality, image))
        if image.ndim not in (4, 5):
            raise ValueError(
                f"{modality}: expected [B, C, H, W] or a series [B, T, C, H, W], got "
                f"{list(image.shape)}; a single image needs a batch dimension, x[None]"
            )
        if image.shape[-3] != len(bands):
            hint = _channel_hint(modality, self.config.sensors[modality], image.shape[-3], bands)
            raise ValueError(
                f"{modality}: got {image.shape[-3]} channels, this model takes {len(bands)}: "
                f"{', '.join(bands)}. {hint}"
            )
        height, width = image.shape[-2:]
        if not height or not width or (not self.pad and (height % p or width % p)):
            cropped = f"crop to {height // p * p} x {width // p * p}"
            raise ValueError(
                f"{modality}: {height} x {width} pixels are not a multiple of the patch size {p}; "
                f"{cropped if min(height, width) >= p else 'enlarge them'}, or have them padded: "
                "create_model(..., pad=True)"
            )
        if not image.is_floating_point():
            raise ValueError(
                f"{modality}: got {image.dtype}, expected normalised floats; raw values go through "
                "rsbackbones.create_preprocess(model)"
            )
        weight = next(self.get_submodule(self.tokenizer_name(modality)).parameters())
        if image.device != weight.device:
            raise ValueError(
                f"{modality}: got an image on {image.device}, the model is on {weight.device}; move one of "
                f"them (x.to({str(weight.device)!r}))"
            )
        # Autocast converts all floats but double.
        if image.dtype != weight.dtype and (
            image.dtype == torch.float64 or not torch.is_autocast_enabled(image.device.type)
        ):
            raise ValueError(
                f"{modality}: got {image.dtype}, the model's parameters are {weight.dtype}; convert one "
                f"of them (x.to({weight.dtype}))"
            )
        return image


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


def _not_a_tensor(what: str, given: object) -> str:
    return (
        f"{what}: expected a tensor, or tensors by sensor, got {type(given).__name__}; "
        "rsbackbones.create_preprocess(model) makes tensors of arrays"
    )


def _channel_hint(modality: str, sensor: str, channels: int, bands: tuple[str, ...]) -> str:
    every = tuple(band.name for band in get_sensor(sensor).bands)
    extra = [name for name in every if name not in bands]
    if channels == len(every) and extra:
        keep = [i for i, name in enumerate(every) if name in bands]
        return (
            f"{channels} channels look like all of {', '.join(every)}: drop {', '.join(extra)} "
            f"(x[:, {keep}]), or name your bands and have them gathered: "
            f"create_preprocess(model, bands={{'{modality}': (...)}})"
        )
    return (
        f"Name the channels you have, in order: create_model(..., bands={{'{modality}': (...)}}) adapts "
        f"the weights to them, create_preprocess(model, bands={{'{modality}': (...)}}) gathers them"
    )


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
