"""The contract of a backbone: the methods that every network of the zoo has.

A family implements ``stages``, ``stem``, ``layer_groups`` and ``encode``. All other methods here, and
loading, saving, adaptation, heads, evaluation, export and training, only use these four. For streams and
shapes see :mod:`rsbackbones.models.features`.
"""

import math
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from rsbackbones.input_spec import InputSpec
from rsbackbones.layers.activation_checkpointing import checkpoint_activations
from rsbackbones.layers.weight_decay import collect_no_weight_decay
from rsbackbones.models import training
from rsbackbones.models.config import ModelConfig
from rsbackbones.models.encoding import Encoded, Inputs, Stage, Wanted, encode_validated
from rsbackbones.models.features import Features, evenly_spaced, resolve_indices
from rsbackbones.models.input_validation import validate_inputs
from rsbackbones.models.series_arguments import Dates, Masks, masks_by_modality
from rsbackbones.models.stem import Stem
from rsbackbones.models.training import connect_unused
from rsbackbones.models.unused import called_units, output_size
from rsbackbones.models.validity import Validity

if TYPE_CHECKING:
    from rsbackbones.zoo.adapt import Adaptation
    from rsbackbones.zoo.manifest import WeightsEntry

__all__ = ["Backbone", "Encoded", "Images", "Inputs", "Stage", "Wanted", "unwrap_model"]

Images = Tensor | Mapping[str, Tensor]
# The names of a classifier in other libraries.
_OTHER_HEADS = ("fc", "classifier", "heads")


class Backbone(nn.Module):
    """The methods that all backbones share.

    A map of stride s has ceil(H / s) x ceil(W / s) cells.

    Attributes:
        architecture: the registry's name of the architecture.
        config: the family's frozen configuration, as built.
        consumes: ``"image"``: the dates of a series are encoded one by one, and features have a T axis.
            ``"series"``: all dates are encoded at once, and features have no T axis; a single image is
            treated as a series of one date.
        size_multiple: H and W must be multiples of this: 1 for most CNNs, the patch size for a ViT.
        date_stride: of a model that consumes series and strides over time: its tokens per date are of so many
            dates, and T is rounded up to a multiple of them.
        min_size: H and W must be at least this, such as the stride of a CNN's last stage.
        modalities: the inputs that this model was built for.
        bands: by modality, the channels of its input, in order. They are bands of the sensor in
            ``config.sensors``.
        stream_inputs: by stream, the modalities that it requires.
        default_stream: the stream that heads and ``model(x)`` use, if its modalities are passed.
        cross_modal: whether the features of one modality depend on the other modalities passed with it.
        pools_map: whether embeddings are a function of the final map (see :meth:`pool`), not of a
            class token.
        has_final_norm: whether streams end with a norm. It is not applied to the maps of single stages.
        num_features: D, the channels of the final maps and embeddings of every stream.
        head: the classifier, a module from [..., D] to [..., num_classes]; ``nn.Identity`` without one. It
            may be replaced: ``model.head = nn.Linear(model.num_features, 5)``.
        inputs: the input contract of every modality, for ``create_preprocess``.
        adaptation: the changes made while loading (``None`` if nothing was loaded).
        weights_entry: the manifest entry of the loaded weights, or ``None``.
        input_size: the size (height, width) in pixels that a fine-tuned classifier was trained and scored at,
            if images were resized; ``create_preprocess`` resizes to it. ``None`` keeps the size of images.
        pad: pad images whose sides are not multiples of ``size_multiple`` (at the bottom and right, by
            repeating the last pixels) instead of raising an error. Maps then cover the padded image, rounded
            up to whole cells, and embeddings average over it.
    """

    consumes: ClassVar[Literal["image", "series"]] = "image"
    cross_modal: ClassVar[bool] = False
    has_final_norm: ClassVar[bool] = False
    pools_map: bool = True
    architecture: str = ""
    size_multiple: int = 1
    date_stride: int = 1
    min_size: int = 1
    pad: bool = False
    stream_inputs: dict[str, tuple[str, ...]]
    default_stream: str
    inputs: Mapping[str, InputSpec]
    adaptation: "Adaptation | None" = None
    weights_entry: "WeightsEntry | None" = None
    input_size: tuple[int, int] | None = None

    def __init__(self, config: ModelConfig, *, num_features: int, num_classes: int = 0) -> None:
        """Set the common attributes. By default every modality is its own stream."""
        super().__init__()
        self.config: Any = config
        self.modalities: tuple[str, ...] = tuple(config.modalities)
        self.bands: dict[str, tuple[str, ...]] = {m: tuple(config.bands[m]) for m in self.modalities}
        self.stream_inputs = {m: (m,) for m in self.modalities}
        self.default_stream = self.modalities[0]
        self.num_features = num_features
        self.reset_classifier(num_classes)

    def __setattr__(self, name: str, value: Any) -> None:
        # The forward pass would not use such a module.
        other = name in _OTHER_HEADS and name not in self._modules and isinstance(value, nn.Module)
        if other and self.architecture:
            raise ValueError(f"the classifier of this model is called head: model.head = ..., not {name}")
        super().__setattr__(name, value)

    # -- what a family implements ------------------------------------------------------------------

    def stages(self, stream: str) -> tuple[Stage, ...]:
        """Return the feature maps of a stream that can be requested, in order of computation."""
        raise NotImplementedError

    def stem(self, modality: str) -> Stem:
        """Return the input layer of a modality, whose kernel has one slice per band."""
        raise NotImplementedError

    def layer_groups(self) -> list[list[nn.Module]]:
        """Return all layers grouped by depth, from the stem to the head, for layer decay."""
        raise NotImplementedError

    def encode(self, inputs: Inputs, wanted: Wanted) -> dict[str, Encoded]:
        """Return the features of every stream whose modalities are passed."""
        raise NotImplementedError

    @property
    def stride(self) -> int:
        """The stride of the final maps in pixels, equal for all streams."""
        return self.final(self.default_stream).stride

    def final(self, stream: str) -> Stage:
        """Return the stage of a stream whose map is the final map."""
        return self.stages(stream)[self.final_stage(stream)]

    # -- methods that a family may override ------------------------------------------------------------------

    def pool(self, stream: str, features: Tensor) -> Tensor:
        """Return the embedding [B, D] of a stream's final map [B, D, h, w]. By default this is the mean.

        Raises:
            ValueError: the embedding of this model is no function of the map (it is a class token).
        """
        return features.mean(dim=(-2, -1))

    def final_stage(self, stream: str) -> int:
        """Return the index of the stage whose map is the final map of a stream. By default it is the last.

        Stages after it, such as those of a decoder, are only computed where they are requested.
        """
        return len(self.stages(stream)) - 1

    def encoder_stages(self, stream: str) -> tuple[Stage, ...]:
        """Return the stages up to the final map."""
        return self.stages(stream)[: self.final_stage(stream) + 1]

    def units(self) -> list[nn.Module]:
        """Return the modules that are checkpointed, compiled and sharded one by one.

        ``encode`` must call these modules themselves, not their parts; :func:`called_units` checks it where
        they are used. By default they are the modules of all stages up to the final map, if they
        have parameters.
        """
        names = dict.fromkeys(stage.module for s in self.stream_inputs for stage in self.encoder_stages(s))
        modules = map(self.get_submodule, names)
        return [module for module in modules if next(module.parameters(), None) is not None]

    def fuse_dates(
        self,
        streams: dict[str, Encoded],
        batch: tuple[int, int],
        valid: Mapping[str, Tensor],
        dates: Tensor | None,
    ) -> dict[str, Encoded]:
        """Fuse the encoded dates of a series.

        Args:
            streams: features per date, [B * T, ...]; the result has the same shapes.
            batch: (B, T).
            valid, dates: as for :meth:`forward_features`.

        Raises:
            ValueError: this model has no module for it, or the dates cannot be ordered.
        """
        raise ValueError(
            "temporal=True requires a model that fuses encoded dates, and this "
            f"{self.architecture} does not; SeaMo does, with overrides={{'temporal': True}}"
        )

    @property
    def fuses_dates(self) -> bool:
        """Whether :meth:`fuse_dates` has a module (``temporal=True``)."""
        return False

    def feature_options(self) -> dict[str, Any]:
        """Return settings that change the features but are not part of the configuration or the weights."""
        return {"pad": self.pad}

    # -- public methods -------------------------------------------------------------------------

    def forward(
        self,
        x: Images,
        *,
        dates: Dates | None = None,
        valid: Masks | None = None,
        temporal: bool = False,
    ) -> Tensor:
        """Return logits [B, num_classes], or the pooled embedding [B, D] without a head.

        They come from the model's default stream, or from the only stream if the passed modalities do not
        include it. A head only works on the stream that uses all modalities of the model. For a series, a
        model that consumes single images returns [B, T, ...]. For arguments and errors see
        :meth:`forward_features`.
        """
        features = self.forward_features(x, dates=dates, valid=valid, temporal=temporal)
        stream = features.default_stream
        pooled, present = features.pooled[stream], features.valid.get(stream)
        if isinstance(self.head, nn.Identity):
            return connect_unused(self, pooled)
        trained = self.choose_stream()
        if stream != trained:
            raise ValueError(
                f"the head belongs to stream {trained!r}, which requires "
                f"{' and '.join(self.stream_inputs[trained])}, but these images only have {stream!r}. For a "
                f"head on one modality build the model with modalities=({stream!r},); for embeddings call "
                "forward_features"
            )
        if present is None:
            logits: Tensor = self.head(pooled)
        else:
            # Keep the NaN of missing images away from the head, whose gradients would be NaN too.
            missing = ~present[..., None]
            logits = self.head(pooled.masked_fill(missing, 0)).masked_fill(missing, float("nan"))
        return connect_unused(self, logits)

    def forward_features(
        self,
        x: Images,
        *,
        dates: Dates | None = None,
        valid: Masks | None = None,
        temporal: bool = False,
    ) -> Features:
        """Return the final maps and pooled embeddings of every stream.

        Args:
            x: normalized images by modality, each [B, C, H, W] or a series [B, T, C, H, W], all on one grid.
                H and W are multiples of ``size_multiple``. A model with one modality also accepts a bare
                tensor. For a model that consumes series, modalities may have different T.
            dates: the dates of a series, [B, T]: days since 1970-01-01 (integers), ``datetime64``,
                timestamps or ISO dates, in a tensor, an array or lists. Models that consume single images
                only check them. Duplicates are only detected in eager mode. For a model that consumes series
                they may be given by modality.
            valid: by modality, booleans: [B, T], False for missing images of a series; or a pixel mask,
                [B, H, W] or [B, T, H, W], False for pixels that do not count (clouds, no data): tensors,
                arrays or lists, or 0 and 1 in uint8. A model with one modality also accepts a bare one.
                Invalid pixels, whatever their values, are replaced by the mean of their band (0.5 for weights
                normalized by ``clip_2sd``, 0 for ``standard`` and ``imagenet``, else the mean of the image's
                valid pixels). A cell of the map is NaN if less than half of its pixels are valid, and takes
                no part in the embedding, which is NaN if no cell is left. (A class token sees all filled
                pixels.) In ``joint`` a pixel counts if it is valid in both sensors; for a model that consumes
                series, if it is valid at any date. Shares are in ``Features.valid_share``.
            temporal: fuse the encoded dates of a series, in the order of ``dates`` or, without dates, of the
                T axis. The model must have a module for it; one that consumes series always fuses them.

        Raises:
            ValueError: the model does not accept a modality, number of bands, size, dtype, device or shape.
        """
        given, masks, days = validate_inputs(self, x, dates, valid)
        if self._default_of(given) is None:
            self._check_fed(given)
        streams, counted = encode_validated(self, given, masks, Wanted(), dates=days, temporal=temporal)
        first, default = next(iter(given.values())), self._default_of(given)
        strides = {s: self.final(s).stride for s in streams}
        present = {s: v.images(strides[s]) for s, v in counted.items()}
        shares = {s: v.share(strides[s]) for s, v in counted.items()}
        return Features(
            feature_maps={s: counted[s].hide(e.features, strides[s]) for s, e in streams.items()},
            pooled={s: e.pooled for s, e in streams.items()},
            size=(first.shape[-2], first.shape[-1]),
            stride=self.stride,
            stream_index=-1 if default is None else list(streams).index(default),
            series={s: e.series for s, e in streams.items() if e.series is not None},
            valid={s: mask for s, mask in present.items() if mask is not None},
            valid_share={s: share for s, share in shares.items() if share is not None},
        )

    def forward_intermediates(
        self,
        x: Images,
        indices: int | Sequence[int] | None = None,
        *,
        stream: str | None = None,
        norm: bool = False,
        dates: Dates | None = None,
        valid: Masks | None = None,
    ) -> list[Tensor]:
        """Return the maps of some stages of one stream, each [B, D_i, h_i, w_i].

        Args:
            x, dates, valid: as for :meth:`forward_features`. For a series, a model that consumes single
                images returns [B, T, D_i, h_i, w_i].
            indices: stage indices (negative ones count from the end), a number n for the last n stages, or
                ``None`` for up to four that end at the final map: the last four if every stage has a stride
                of its own, else four evenly spaced ones.
            stream: the default is the model's default stream, or the only stream of the passed modalities.
            norm: apply the final norm of the stream to each map (off by default, as in timm). In a stream
                that averages others, it is applied before the average.

        Raises:
            ValueError: the stream is unknown, an index is out of range, the model has no final norm, or as
                for :meth:`forward_features`.
        """
        stream, maps, counted = self.encode_stages(
            x, indices, stream=stream, norm=norm, dates=dates, valid=valid
        )
        stages = self.stages(stream)
        return [counted.hide(x, stages[i].stride) for i, x in maps]

    def encode_stages(
        self,
        x: Images,
        indices: int | Sequence[int] | None = None,
        *,
        stream: str | None = None,
        norm: bool = False,
        dates: Dates | None = None,
        valid: Masks | None = None,
        by_date: bool = False,
    ) -> tuple[str, list[tuple[int, Tensor]], Validity]:
        """As :meth:`forward_intermediates`, for decoders: cells that do not count are not set to NaN.

        ``by_date``: maps before the mean over time, of a model that consumes series; see :class:`Wanted`.

        Returns:
            The stream, its maps with their stage indices, and what counts in them.
        """
        if norm and not self.has_final_norm:
            raise ValueError(f"{self.architecture} has no final norm: leave out norm=True")
        given, masks, days = validate_inputs(self, x, dates, valid)
        stream = self.choose_stream(stream, given)
        indices = self.stage_indices(indices, stream)
        seen = given if self.cross_modal else self.stream_inputs[stream]
        streams, counted = encode_validated(
            self,
            {m: given[m] for m in seen},
            {m: mask for m, mask in masks.items() if m in seen},
            Wanted(stages={stream: indices}, norm=norm, by_date=by_date),
            dates={m: x for m, x in days.items() if m in seen},
        )
        return stream, [(i, streams[stream].maps[i]) for i in indices], counted[stream]

    def choose_stream(self, stream: str | None = None, given: Mapping[str, Any] | None = None) -> str:
        """Return a stream: the one named, else the model's default, else the only one available.

        Args:
            stream: its name.
            given: the passed modalities; by default all of the model's.

        Raises:
            ValueError: there is no such stream, its modalities are not passed, or there are several.
        """
        given = dict.fromkeys(self.modalities) if given is None else given
        possible = [s for s, needed in self.stream_inputs.items() if all(m in given for m in needed)]
        self._check_fed(given)
        if stream is None:
            if (default := self._default_of(given)) is None:
                raise ValueError(
                    f"several streams are available, choose one with stream=: {', '.join(possible)}"
                )
            return default
        if stream not in possible:
            needs = self.stream_inputs.get(stream)
            why = f"it requires {' and '.join(needs)}" if needs else "this model has no such stream"
            raise ValueError(
                f"stream {stream!r} is not available for {', '.join(given)}: {why}; "
                f"available: {', '.join(possible)}"
            )
        return stream

    def stage_indices(self, indices: int | Sequence[int] | None, stream: str) -> tuple[int, ...]:
        """Resolve the stage indices of ``forward_intermediates`` and ``features_only``.

        Raises:
            ValueError: one is out of range, or there is none.
        """
        depth = len(self.stages(stream))
        if indices is None:
            strides = [stage.stride for stage in self.encoder_stages(stream)]
            is_pyramid = len({*strides}) == len(strides)
            return tuple(range(len(strides)))[-4:] if is_pyramid else evenly_spaced(len(strides))
        return resolve_indices(indices, depth, f"stream {stream!r} has {depth} stages")

    def forward_streams(
        self,
        x: Mapping[str, Tensor],
        streams: Sequence[str] | None = None,
        *,
        valid: Masks | None = None,
    ) -> dict[str, Features]:
        """Return, for every stream s, the features computed from its own modalities only, at ``[s]``.

        In a ``cross_modal`` model, ``["s2"].tokens["s2"]`` are the features of a user without another sensor.
        In other models this is a single :meth:`forward_features`.

        Args:
            x, valid: as for :meth:`forward_features`.
            streams: the requested streams; by default all that are available for ``x``.

        Raises:
            ValueError: a stream is not available for ``x``, or as :meth:`forward_features`.
        """
        fed = [s for s, needed in self.stream_inputs.items() if all(m in x for m in needed)]
        wanted = [self.choose_stream(s, x) for s in streams] if streams is not None else fed
        if not self.cross_modal:
            return dict.fromkeys(wanted, self.forward_features(x, valid=valid))
        masks = masks_by_modality(valid, tuple(x))
        return {
            s: self.forward_features(
                {m: x[m] for m in self.stream_inputs[s]},
                valid={m: mask for m, mask in masks.items() if m in self.stream_inputs[s]},
            )
            for s in wanted
        }

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the head by a new linear one with ``num_classes`` outputs, or remove it for 0.

        The new head has the device and dtype of the model.
        """
        if num_classes < 0:
            raise ValueError(f"num_classes must be 0 (no head) or more, got {num_classes}")
        place = next(self.parameters(), None)
        self.head: nn.Module = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        if place is not None and not place.is_meta:  # a model on meta is still to be loaded
            self.head.to(place.device, place.dtype)

    def get_classifier(self) -> nn.Module:
        """Return the head: an ``nn.Linear`` or your own module, or ``nn.Identity`` without one."""
        return self.head

    @property
    def num_classes(self) -> int:
        """The number of outputs of the head; 0 without one."""
        return 0 if isinstance(self.head, nn.Identity) else output_size(self.head, self.num_features)

    def device_and_dtype(self, modality: str | None = None) -> tuple[torch.device, torch.dtype]:
        """Return the device and the dtype that images of a modality must have.

        They are those of its stem, also in a replica of ``nn.DataParallel``, whose weights are no parameters,
        and after dynamic quantization, whose weights are integers for float32 inputs.
        """
        weight = attrgetter(self.stem(modality or self.modalities[0]).weight)(self)
        weight = weight() if callable(weight) else weight  # of a quantized layer
        return weight.device, weight.dtype if weight.is_floating_point() else torch.float32

    def as_input(self, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return images on the model's device and in its dtype, for a model in half precision."""
        return {m: x.to(*self.device_and_dtype(m)) for m, x in images.items()}

    # -- methods for training -----------------------------------------------------------------------

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Enable activation checkpointing: store only the inputs of :meth:`units` and recompute the rest.

        Training takes less memory and more time. Gradients do not change.

        Raises:
            ValueError: ``encode`` does not call one of the units.
        """
        checkpoint_activations(called_units(self) if enable else self.units(), enable)

    def set_drop_path(self, rate: float) -> None:
        """Set stochastic depth, with rates that grow linearly from 0 in the first block to ``rate`` in the
        last.

        It is a training setting and is not saved with the weights. It applies to blocks with an attribute
        ``drop_path``; the only block of a stream keeps all its branches.

        Raises:
            ValueError: the rate is not in [0, 1), or no stream has such a block.
        """
        training.set_drop_path(self, rate)

    def parameter_depths(self) -> dict[str, int]:
        """Return the index of the layer group of every parameter; the stem is 0.

        Parameters of the backbone itself (class tokens, position tables) belong to the stem.

        Raises:
            ValueError: ``layer_groups`` omits a layer, lists one twice, or lists one of another model.
        """
        return training.parameter_depths(self)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters of two or more dimensions that weight decay must not shrink.

        By default those that the layers state (see :mod:`rsbackbones.layers.weight_decay`). A family with
        tokens of its own adds their names.
        """
        return collect_no_weight_decay(self)

    def example_inputs(self) -> Inputs:
        """Return small zero inputs: two images of every modality.

        A model that consumes series gets two series of a few dates, with their dates, and a mask of each
        modality in which one image is missing.
        """
        device, dtype = self.device_and_dtype()
        strides = [stage.stride for s in self.stream_inputs for stage in self.stages(s)]
        unit = math.lcm(self.size_multiple, *strides)
        unit *= math.ceil(self.min_size / (2 * unit))
        times = max(3, self.date_stride + 1)  # more than one step of the coarsest
        lead = (2, times) if self.consumes == "series" else (2,)
        size = (2 * unit, 3 * unit)
        images = {
            m: torch.zeros(*lead, len(bands), *size, device=device, dtype=dtype)
            for m, bands in self.bands.items()
        }
        if self.consumes == "image":
            return Inputs(images=images)
        dates = torch.arange(times, device=device) * torch.tensor([[10], [95]], device=device)
        present = torch.ones(2, times, dtype=torch.bool, device=device)
        present[1, 1] = False
        return Inputs(images=images, dates=dict.fromkeys(images, dates), valid=dict.fromkeys(images, present))

    # -- private helpers ------------------------------------------------------------------------

    def _check_fed(self, given: Mapping[str, Any]) -> None:
        if not any(all(m in given for m in needed) for needed in self.stream_inputs.values()):
            needs = "; ".join(f"{s!r} needs {' and '.join(n)}" for s, n in self.stream_inputs.items())
            raise ValueError(f"{' and '.join(given)} alone feed no stream of this model: {needs}")

    def _default_of(self, given: Mapping[str, Any]) -> str | None:
        possible = [s for s, needed in self.stream_inputs.items() if all(m in given for m in needed)]
        if self.default_stream in possible:
            return self.default_stream
        return possible[0] if len(possible) == 1 else None


def unwrap_model(model: Any) -> Backbone:
    """Remove the wrappers of torch.compile, data parallelism, ``features_only`` and timm from a model."""
    while not isinstance(model, Backbone):
        for name in ("_orig_mod", "module", "backbone", "model"):
            if hasattr(model, name):
                model = getattr(model, name)
                break
        else:
            raise ValueError(f"expected a model from create_model, got {type(model).__name__}")
    return model
