"""The contract of a backbone: the one set of methods that every network of the zoo answers to.

A family implements ``stages``, ``stem``, ``layer_groups`` and ``encode``; everything else here, and all of
loading, saving, adaptation, heads, evaluation, export and training, is written once against these. For
streams and shapes see :mod:`rsbackbones.models.features`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rsbackbones.layers.activation_checkpointing import checkpoint_activations
from rsbackbones.models.config import ModelConfig
from rsbackbones.models.features import Features, evenly_spaced, resolve_indices
from rsbackbones.models.input_validation import validate_inputs
from rsbackbones.models.stem import Stem
from rsbackbones.sensors import InputSpec

if TYPE_CHECKING:
    from rsbackbones.zoo.adapt import Adaptation
    from rsbackbones.zoo.manifest import WeightsEntry

Images = Tensor | Mapping[str, Tensor]


class Stage(NamedTuple):
    """A map that can be asked for: its channels, input pixels per cell, and the module that gives it."""

    channels: int
    stride: int
    module: str


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What :meth:`Backbone.encode` is given.

    Attributes:
        images: by modality [B, C, H, W], of a model that consumes series [B, T, C, H, W]; on one grid, H and
            W multiples of ``size_multiple``.
        valid: by modality [B] booleans (of series [B, T]), False where an image is missing. It is then
            zeros, and nothing else may depend on it. A modality that is not named has all.
        dates: days since 1970-01-01, [B, T], of a model that consumes series, where they are known.
    """

    images: dict[str, Tensor]
    valid: Mapping[str, Tensor] = field(default_factory=dict)
    dates: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What of :meth:`Backbone.encode` is wanted beside final maps and embeddings.

    Attributes:
        stages: by stream, the indices of the stages whose maps are wanted.
        norm: whether those maps go through the norm that ends the stream.
    """

    stages: Mapping[str, Sequence[int]] = field(default_factory=dict)
    norm: bool = False


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """What :meth:`Backbone.encode` gives for a stream.

    Attributes:
        features: the final map, [B, D, h, w], of the stride of the last stage.
        pooled: the embedding, [B, D].
        maps: by stage index the maps that were wanted, [B, D_i, h_i, w_i].
        series: per date, [B, T, N, D]; of a model that consumes series, where it has such.
    """

    features: Tensor
    pooled: Tensor
    maps: dict[int, Tensor] = field(default_factory=dict)
    series: Tensor | None = None


class Backbone(nn.Module):
    """The methods that all backbones share.

    A map of stride s has ceil(H / s) x ceil(W / s) cells.

    Attributes:
        architecture: the registry's name of the architecture.
        config: the family's frozen configuration, as built.
        consumes: ``"image"``: dates of a series are encoded one by one, and features have a T axis.
            ``"series"``: all dates are encoded at once, and features have none; a single image is a series
            of one date.
        size_multiple: what H and W must be multiples of: 1 of most CNNs, the patch of a ViT.
        modalities: the sensors this model was built for.
        bands: for each modality, the names of the channels that it takes, in order, of the sensor that
            ``config.sensors`` names for it.
        stream_inputs: for each stream, the sensors that it needs.
        default_stream: the stream that heads and ``model(x)`` use where the sensors feed it.
        cross_modal: whether the features of a sensor have seen the other sensors that are given with it.
        has_final_norm: whether a norm ends the streams, which the maps of single stages have not seen.
        num_features: D, the channels of the final maps and embeddings of every stream.
        inputs: the input contract of every sensor, for ``create_preprocess``.
        adaptation: what loading changed (``None`` where nothing was loaded).
        weights_entry: the manifest's entry of the loaded weights, or ``None``.
        pad: whether images that are no multiple of ``size_multiple`` are padded (below and to the right, by
            repeating their last pixels) rather than refused. Maps then cover the padded image, rounded up to
            whole cells, and embeddings average over it.
    """

    consumes: ClassVar[Literal["image", "series"]] = "image"
    cross_modal: ClassVar[bool] = False
    has_final_norm: ClassVar[bool] = False
    architecture: str = ""
    size_multiple: int = 1
    pad: bool = False
    stream_inputs: dict[str, tuple[str, ...]]
    default_stream: str
    inputs: Mapping[str, InputSpec]
    adaptation: "Adaptation | None" = None
    weights_entry: "WeightsEntry | None" = None

    def __init__(self, config: ModelConfig, *, num_features: int, num_classes: int = 0) -> None:
        """Set what every network has. By default the one modality is the one stream."""
        super().__init__()
        self.config: Any = config
        self.modalities: tuple[str, ...] = tuple(config.modalities)
        self.bands: dict[str, tuple[str, ...]] = {m: tuple(config.bands[m]) for m in self.modalities}
        self.stream_inputs = {m: (m,) for m in self.modalities}
        self.default_stream = self.modalities[0]
        self.num_features = num_features
        self.reset_classifier(num_classes)

    # -- what a family implements ------------------------------------------------------------------

    def stages(self, stream: str) -> tuple[Stage, ...]:
        """Return every map of a stream that can be asked for, in the order of computation."""
        raise NotImplementedError

    def stem(self, modality: str) -> Stem:
        """Return the layer that meets the bands of a modality."""
        raise NotImplementedError

    def layer_groups(self) -> list[list[nn.Module]]:
        """Return all layers by depth, the stem first and the head last, as layer decay counts them."""
        raise NotImplementedError

    def encode(self, inputs: Inputs, wanted: Wanted) -> dict[str, Encoded]:
        """Return the features of every stream that the images feed."""
        raise NotImplementedError

    @property
    def stride(self) -> int:
        """Pixels per cell of the final maps, along each side: the same for every stream."""
        return self.stages(self.default_stream)[-1].stride

    # -- what a family may change ------------------------------------------------------------------

    def pool(self, stream: str, features: Tensor) -> Tensor:
        """Return the embedding [B, D] of the final map [B, D, h, w] of a stream: by default its mean."""
        return features.mean(dim=(-2, -1))

    def units(self) -> list[nn.Module]:
        """Return the modules that activation checkpointing, compilation and FSDP treat one by one.

        ``encode`` has to call these modules themselves, not their parts.
        """
        names = dict.fromkeys(stage.module for s in self.stream_inputs for stage in self.stages(s))
        return [self.get_submodule(name) for name in names]

    def fuse_dates(
        self,
        streams: dict[str, Encoded],
        batch: tuple[int, int],
        valid: Mapping[str, Tensor],
        dates: Tensor | None,
    ) -> dict[str, Encoded]:
        """Return the features of all streams after the dates of a series have seen each other.

        Args:
            streams: date by date, [B * T, ...]; so is the result.
            batch: (B, T).
            valid, dates: as for :meth:`forward_features`.

        Raises:
            ValueError: this model has no block for it, or the dates cannot be ordered.
        """
        raise ValueError(
            "temporal=True needs a model with a block that joins encoded dates, and this "
            f"{self.architecture} has none; SeaMo has one, built with overrides={{'temporal': True}}"
        )

    def feature_options(self) -> dict[str, Any]:
        """Return the choices that change features and are neither configuration nor weights."""
        return {"pad": self.pad}

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

        The stream is the model's default where the given sensors feed it, else the only one. A bare tensor
        is taken by a model of one modality. Series give [B, T, ...] from a model that consumes single
        images. For the arguments and the errors see :meth:`forward_features`; a head serves the stream of
        all the model's sensors and no other.
        """
        features = self.forward_features(x, dates=dates, valid=valid, temporal=temporal)
        stream = features.default_stream
        pooled, present = features.pooled[stream], features.valid.get(stream)
        if not self.num_classes:
            return pooled
        trained = self.choose_stream()
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
        # The head must not see the NaN of missing images: they would reach its gradient.
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
        """Return the final maps and pooled embeddings of every stream.

        Args:
            x: normalized images by modality, each [B, C, H, W] or a series [B, T, C, H, W]; a bare
                tensor where the model has one modality. All on one grid; H and W multiples of
                ``size_multiple``.
            dates: days since 1970-01-01 of a series, integers, [B, T]. Models that consume single images
                check them and do not need them. That no two are equal is checked in eager mode only.
            valid: by modality [B, T] booleans, False where an image is missing.
            temporal: let the encoded dates of a series see each other, in order of ``dates`` where they are
                given and else as they stand; the model must have been built with a block for it.

        Raises:
            ValueError: a sensor, band count, size, dtype, device or shape that the model cannot serve.
        """
        given, valid = validate_inputs(self, x, dates, valid)
        if self._default_of(given) is None:
            self._check_fed(given)
        streams, present = self.encode_validated(given, valid, Wanted(), dates=dates, temporal=temporal)
        first, default = next(iter(given.values())), self._default_of(given)
        return Features(
            feature_maps={s: e.features for s, e in streams.items()},
            pooled={s: e.pooled for s, e in streams.items()},
            size=(first.shape[-2], first.shape[-1]),
            stride=self.stride,
            stream_index=-1 if default is None else list(streams).index(default),
            series={s: e.series for s, e in streams.items() if e.series is not None},
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
        """Return the maps of some stages of one stream, each [B, D_i, h_i, w_i].

        Args:
            x, dates, valid: as for :meth:`forward_features`; series give [B, T, D_i, h_i, w_i] from a model
                that consumes single images.
            indices: stage indices, negative ones from the end; a number n means the last n stages;
                ``None`` four evenly spaced, ending at the last.
            stream: by default the model's default where the given sensors feed it, else the only one.
            norm: apply the norm that ends the stream to each (off by default, as in timm), before a mean.

        Raises:
            ValueError: an unknown stream, an index out of range, a norm that the model does not have, or as
                for :meth:`forward_features`.
        """
        if norm and not self.has_final_norm:
            raise ValueError(f"{self.architecture} ends its streams without a norm: leave out norm=True")
        given, valid = validate_inputs(self, x, dates, valid)
        stream = self.choose_stream(stream, given)
        indices = self.stage_indices(indices, stream)
        seen = given if self.cross_modal else self.stream_inputs[stream]
        streams, _ = self.encode_validated(
            {m: given[m] for m in seen},
            {m: mask for m, mask in valid.items() if m in seen},
            Wanted(stages={stream: indices}, norm=norm),
            dates=dates,
        )
        return [streams[stream].maps[i] for i in indices]

    def encode_validated(
        self,
        images: Mapping[str, Tensor],
        valid: Mapping[str, Tensor],
        wanted: Wanted,
        *,
        dates: Tensor | None = None,
        temporal: bool = False,
    ) -> tuple[dict[str, Encoded], dict[str, Tensor]]:
        """Pad images, fold or keep their dates, and :meth:`encode` them.

        Args:
            images, valid: from :func:`validate_inputs`.
            wanted: maps of single stages.
            dates, temporal: as for :meth:`forward_features`.

        Returns:
            The features by stream, with a T axis where dates were folded, NaN where an image is missing; and
            by stream what is there (``Features.valid``).

        Raises:
            ValueError: ``temporal`` without a series, or of a model that cannot join its dates.
        """
        first = next(iter(images.values()))
        size, is_series = (first.shape[-2], first.shape[-1]), first.ndim == 5
        if temporal and (not is_series or self.consumes == "series"):
            raise ValueError(
                "temporal=True joins the dates of a series [B, T, C, H, W] that are encoded one by one, got "
                f"{list(first.shape)} for a model that consumes {self.consumes}s"
            )
        images = {m: _fill_missing(self._padded(x), valid.get(m)) for m, x in images.items()}
        if valid and self.training and any(isinstance(m, _BatchNorm) and m.training for m in self.modules()):
            raise ValueError(
                "missing images would be part of the statistics of BatchNorm: train this model on images "
                "that are all there (valid=None), or with its BatchNorm in eval() mode"
            )
        batch = None
        if self.consumes == "series":
            images = images if is_series else {m: x[:, None] for m, x in images.items()}
            streams = self.encode(Inputs(images=images, valid=valid, dates=dates), wanted)
            by_date = self._present(valid, streams)
            present = self._present({m: mask.any(dim=1) for m, mask in valid.items()}, streams)
        elif is_series:
            batch = (first.shape[0], first.shape[1])
            folded = {m: x.flatten(0, 1) for m, x in images.items()}
            masks = {m: mask.flatten() for m, mask in valid.items()}
            streams = self.encode(Inputs(images=folded, valid=masks), wanted)
            if temporal:
                streams = self.fuse_dates(streams, batch, valid, dates)
            present = by_date = self._present(valid, streams)
        else:
            streams = self.encode(Inputs(images=images), wanted)
            present = by_date = {}
        return {
            s: self._finished(s, encoded, size, batch, present.get(s), by_date.get(s))
            for s, encoded in streams.items()
        }, present

    def choose_stream(self, stream: str | None = None, given: Mapping[str, Any] | None = None) -> str:
        """Return a stream that sensors feed: the one named, else the model's default, else the only one.

        Args:
            stream: its name.
            given: the sensors; by default all of the model's.

        Raises:
            ValueError: there is no such stream, these sensors do not feed it, or several could be meant.
        """
        given = dict.fromkeys(self.modalities) if given is None else given
        possible = [s for s, needed in self.stream_inputs.items() if all(m in given for m in needed)]
        self._check_fed(given)
        if stream is None:
            if (default := self._default_of(given)) is None:
                raise ValueError(f"several streams, name one with stream=: {', '.join(possible)}")
            return default
        if stream not in possible:
            needs = self.stream_inputs.get(stream)
            why = f"it needs {' and '.join(needs)}" if needs else "this model has no such stream"
            raise ValueError(
                f"stream {stream!r} cannot be served from {', '.join(given)}: {why}; "
                f"possible here: {', '.join(possible)}"
            )
        return stream

    def stage_indices(self, indices: int | Sequence[int] | None, stream: str) -> tuple[int, ...]:
        """Return the indices of stages that ``forward_intermediates`` and ``features_only`` mean.

        Raises:
            ValueError: one is out of range, or there is none.
        """
        depth = len(self.stages(stream))
        if indices is None:
            return evenly_spaced(depth)
        return resolve_indices(indices, depth, f"stream {stream!r} has {depth} stages")

    def forward_streams(
        self, x: Mapping[str, Tensor], streams: Sequence[str] | None = None
    ) -> dict[str, Features]:
        """Return for every stream the features of its own sensors alone: those of stream s are at ``[s]``.

        Where sensors do not see each other this is :meth:`forward_features` once; where they do
        (``cross_modal``), ``["s2"].tokens["s2"]`` are those of a user who has no other sensor.

        Args:
            x: as for :meth:`forward_features`.
            streams: those wanted; by default all that ``x`` feeds.

        Raises:
            ValueError: a stream that ``x`` does not feed, or as :meth:`forward_features`.
        """
        fed = [s for s, needed in self.stream_inputs.items() if all(m in x for m in needed)]
        wanted = [self.choose_stream(s, x) for s in streams] if streams is not None else fed
        if not self.cross_modal:
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

    # -- what training calls -----------------------------------------------------------------------

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Train in less memory and more time: keep only the inputs of units, and compute the rest again.

        Gradients stay what they are.
        """
        checkpoint_activations(self.units(), enable)

    def set_drop_path(self, rate: float) -> None:
        """Let residual blocks drop their branches: in each stream from 0, the first, to ``rate``, the last.

        It is how a model is trained, not what its weights are of, so no file says it. Blocks that can are
        those with an attribute ``drop_path``, a rate; the only one of a stream keeps all its branches.

        Raises:
            ValueError: the rate is not from 0 to below 1, or no block can.
        """
        if not 0 <= rate < 1:
            raise ValueError(f"the rate of drop path is from 0 to below 1, got {rate}")
        found = {}
        for stream in self.stream_inputs:
            stages = [self.get_submodule(stage.module) for stage in self.stages(stream)]
            modules = [m for stage in stages for m in stage.modules()]
            found[stream] = [m for m in modules if isinstance(getattr(m, "drop_path", None), float)]
        if rate and not any(found.values()):
            raise ValueError(f"{self.architecture} has no residual blocks with drop path; set its rate to 0")
        for blocks in found.values():
            for i, block in enumerate(blocks):
                block.drop_path = rate * i / max(1, len(blocks) - 1)  # type: ignore[assignment]

    def parameter_depths(self) -> dict[str, int]:
        """Return for every parameter the number of its layer group, from 0, the stem.

        Parameters that are no module's but the backbone's own (class tokens, tables of positions) are with
        the stem.

        Raises:
            ValueError: ``layer_groups`` leaves out a layer, or names one twice.
        """
        names = {id(p): name for name, p in self.named_parameters()}
        depths = {name: 0 for name in names.values() if "." not in name}
        for depth, group in enumerate(self.layer_groups()):
            for module in group:
                for parameter in module.parameters():
                    name = names[id(parameter)]
                    if depths.setdefault(name, depth) != depth:
                        raise ValueError(f"{type(self).__name__}.layer_groups names {name} twice")
        if lacking := [name for name in names.values() if name not in depths]:
            raise ValueError(f"{type(self).__name__}.layer_groups leaves out {', '.join(lacking[:8])}")
        return depths

    def example_inputs(self) -> dict[str, Tensor]:
        """Return zeros that the model takes, small: two images of all sensors, or series of three dates."""
        weight = self.get_parameter(self.stem(self.modalities[0]).weight)
        strides = [stage.stride for s in self.stream_inputs for stage in self.stages(s)]
        unit = math.lcm(self.size_multiple, *strides)
        lead = (2, 3) if self.consumes == "series" else (2,)
        return {m: weight.new_zeros(*lead, len(b), 2 * unit, 3 * unit) for m, b in self.bands.items()}

    # -- parts of the above ------------------------------------------------------------------------

    def _check_fed(self, given: Mapping[str, Any]) -> None:
        if not any(all(m in given for m in needed) for needed in self.stream_inputs.values()):
            needs = "; ".join(f"{s!r} needs {' and '.join(n)}" for s, n in self.stream_inputs.items())
            raise ValueError(f"{' and '.join(given)} alone feed no stream of this model: {needs}")

    def _default_of(self, given: Mapping[str, Any]) -> str | None:
        possible = [s for s, needed in self.stream_inputs.items() if all(m in given for m in needed)]
        if self.default_stream in possible:
            return self.default_stream
        return possible[0] if len(possible) == 1 else None

    def _padded(self, image: Tensor) -> Tensor:
        """[..., H, W] to multiples of ``size_multiple``; see ``pad``."""
        if not self.pad:
            return image
        for dim in (-2, -1):
            whole = _ceil_div(image.shape[dim], self.size_multiple) * self.size_multiple
            # A traced program serves all sizes.
            if torch.compiler.is_compiling() or whole != image.shape[dim]:
                places = torch.arange(whole, device=image.device).clamp(max=image.shape[dim] - 1)
                image = image.index_select(dim, places)
        return image

    def _present(self, valid: Mapping[str, Tensor], streams: Mapping[str, Any]) -> dict[str, Tensor]:
        """Say by stream where all of its sensors are there; a stream that is not named is everywhere."""
        masks = {s: [valid[m] for m in self.stream_inputs[s] if m in valid] for s in streams}
        return {s: torch.stack(of_sensors).all(0) for s, of_sensors in masks.items() if of_sensors}

    def _finished(
        self,
        stream: str,
        encoded: Encoded,
        size: tuple[int, int],
        batch: tuple[int, int] | None,
        present: Tensor | None,
        by_date: Tensor | None,
    ) -> Encoded:
        """Crop maps to the cells that cover the images, unfold dates, and mark what is missing as NaN."""
        stages = self.stages(stream)

        def finished(x: Tensor, there: Tensor | None, stride: int | None = None) -> Tensor:
            if stride is not None and self.pad and self.size_multiple not in (1, stride):
                for dim, length in zip((-2, -1), size, strict=True):
                    # Gathered, not sliced: a traced program cannot tell that a slice lies within the map.
                    x = x.index_select(dim, torch.arange(_ceil_div(length, stride), device=x.device))
            x = x if batch is None else x.unflatten(0, batch)
            if there is None:
                return x
            return x.masked_fill(~there.view(*there.shape, *[1] * (x.ndim - there.ndim)), float("nan"))

        if not torch.compiler.is_compiling():
            for i, x in ((len(stages) - 1, encoded.features), *encoded.maps.items()):
                self._check_map(stages[i], x, size)
        return replace(
            encoded,
            features=finished(encoded.features, present, stages[-1].stride),
            pooled=finished(encoded.pooled, present),
            maps={i: finished(x, present, stages[i].stride) for i, x in encoded.maps.items()},
            series=None if encoded.series is None else finished(encoded.series, by_date),
        )

    def _check_map(self, stage: Stage, x: Tensor, size: tuple[int, int]) -> None:
        """Compare a map with what its stage states: maps of another size would be used at wrong places."""
        unit = self.size_multiple if self.pad else 1
        sides = [_ceil_div(_ceil_div(n, unit) * unit, stage.stride) for n in size]
        if list(x.shape[-3:]) != [stage.channels, *sides]:
            raise ValueError(
                f"{type(self).__name__}.encode gave a map {list(x.shape[-3:])} for {stage.module}, and its "
                f"stage states [{stage.channels}, {sides[0]}, {sides[1]}] for {size[0]} x {size[1]} pixels: "
                "a map of stride s has ceil(H / s) x ceil(W / s) cells, and size_multiple says which "
                "sizes are served"
            )


def unwrap_model(model: Any) -> Backbone:
    """Take off what torch.compile, data parallelism, ``features_only`` and timm put around a model."""
    while not isinstance(model, Backbone):
        for name in ("_orig_mod", "module", "backbone", "model"):
            if hasattr(model, name):
                model = getattr(model, name)
                break
        else:
            raise ValueError(f"expected a model from create_model, got {type(model).__name__}")
    return model


def _fill_missing(x: Tensor, valid: Tensor | None) -> Tensor:
    """A series [B, T, C, H, W] with zeros in place of what missing images hold.

    What a missing image holds (often NaN) must reach neither the features nor the gradients.
    """
    return x if valid is None else x.masked_fill(~valid[..., None, None, None], 0)


def _ceil_div(length: int, unit: int) -> int:
    # Without negative numbers, whose division ONNX rounds towards zero.
    return (length + unit - 1) // unit
