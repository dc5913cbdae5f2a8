"""timm integration: encoders of single sensors with timm's names and methods. Importing this registers them.

    import timm
    import rsbackbones.integrations.timm

    timm.list_models("rsb_*")
    timm.create_model("rsb_croma_s2_vit_b", pretrained=True, features_only=True, out_indices=(2, 5, 8, 11))

The architecture ``FAMILY_REST`` is registered as ``rsb_FAMILY_SENSOR_REST``; append ``.TAG`` for specific
weights of the manifest. Four arguments are not timm's: ``bands``, the channels of your tensors in order
(``in_chans`` does not tell which bands they are, so it must equal the number of pretrained bands unless
``bands`` is passed); ``sensor``, their sensor, if it is not the encoder's own (``"landsat_oli"``);
``missing_bands`` and ``kernel_scale``; see :func:`rsbackbones.create_model`. Normalize inputs with
``create_preprocess(model.backbone)``. The ``pretrained_cfg`` makes timm's transforms leave values unchanged.

A ViT outputs one resolution. For decoders that expect a feature pyramid (a U-Net, an FPN), use the
``*_pyramid`` models: the maps of four stages, resized without parameters to strides 4, 8, 16 and 32.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.models import FeatureInfo, register_model
from timm.models._features import FeatureGetterNet
from timm.models._pretrained import DefaultCfg, PretrainedCfg
from torch import Tensor, nn

from rsbackbones.models.backbone import Backbone
from rsbackbones.models.encoding import Encoded, Wanted, encode_validated
from rsbackbones.models.features import flatten_map, resolve_indices, unflatten_tokens
from rsbackbones.models.input_validation import validate_inputs
from rsbackbones.models.vit import ViTBackbone
from rsbackbones.sensors import Sensor, get_sensor, register_sensor
from rsbackbones.zoo.factory import create_model
from rsbackbones.zoo.loading import inspect_checkpoint
from rsbackbones.zoo.manifest import WeightsEntry, all_entries, find_entry
from rsbackbones.zoo.registry import Architecture, architectures, on_new_family

POOLINGS = ("embedding", "avg", "")
PYRAMID = (4, 8, 16, 32)


class TimmEncoder(nn.Module):
    """A backbone of one sensor with the methods of timm's models.

    As in timm, the features of a ViT are tokens [B, P + N, D], and those of other networks maps [B, D, h, w].
    ``global_pool`` is ``embedding`` (the architecture's own pooling), ``avg`` (the mean over all positions)
    or ``""`` (none: logits or features per position).

    Attributes:
        num_prefix_tokens: P: 1 for a ViT with a class token, 0 for other networks.
        feature_info: the stages up to the final map; those of a decoder are none of an encoder.
    """

    def __init__(self, backbone: Backbone, *, global_pool: str = "embedding") -> None:
        super().__init__()
        self.backbone = backbone
        (modality,) = backbone.modalities
        self.stream = backbone.choose_stream()
        self.gives_tokens = isinstance(backbone, ViTBackbone)
        self.num_prefix_tokens = backbone.num_prefix_tokens if isinstance(backbone, ViTBackbone) else 0
        self.has_class_token = self.num_prefix_tokens > 0
        self.num_features = self.embed_dim = self.head_hidden_size = backbone.num_features
        self.in_chans = len(backbone.bands[modality])
        self.feature_info: list[dict[str, Any]] = [
            {"module": stage.module, "num_chs": stage.channels, "reduction": stage.stride}
            for stage in backbone.encoder_stages(self.stream)
        ]
        self.pretrained_cfg: dict[str, Any] = {}
        self.set_pool(global_pool)

    @property
    def num_classes(self) -> int:
        """The number of classes; 0 without a head."""
        return self.backbone.num_classes

    @property
    def default_cfg(self) -> dict[str, Any]:
        """The older name of ``pretrained_cfg``."""
        return self.pretrained_cfg

    def set_pool(self, global_pool: str) -> None:
        """Choose the pooling, one of ``embedding``, ``avg`` and ``""``.

        Raises:
            ValueError: the pooling is unknown.
        """
        if global_pool not in POOLINGS:
            known = ", ".join(map(repr, POOLINGS))
            raise ValueError(f"global_pool must be one of {known}, got {global_pool!r}")
        self.global_pool = global_pool

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to logits [B, num_classes], or embeddings [B, D]; per position without pooling."""
        encoded = self._encode(x, Wanted())
        if self.global_pool == "embedding":  # the embedding of a padded image covers the padding
            logits: Tensor = self.backbone.head(encoded.pooled)
            return logits
        return self.forward_head(self._final(encoded))

    def forward_features(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the final features: tokens [B, N, D] or maps [B, D, h, w].

        Raises:
            ValueError: as :meth:`Backbone.forward_features`, or the input does not have four dimensions.
        """
        return self._final(self._encode(x, Wanted()))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool features and apply the head, as :meth:`forward` does; with ``pre_logits`` only pool them."""
        if self.global_pool == "embedding":
            backbone = self.backbone
            pool = backbone.pool_tokens if isinstance(backbone, ViTBackbone) else backbone.pool
            pooled = pool(self.stream, x)
        else:
            tokens = x[:, self.num_prefix_tokens :] if self.gives_tokens else flatten_map(x)
            pooled = tokens.mean(dim=1) if self.global_pool else tokens
        if not pre_logits:
            pooled = self.backbone.head(pooled)
        if self.global_pool or self.gives_tokens:
            return pooled
        return unflatten_tokens(pooled, (x.shape[-2], x.shape[-1]))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the final features and the maps of some stages, or only the maps (``intermediates_only``).

        Args:
            x: [B, C, H, W].
            indices: stage indices; a number n means the last n stages, ``None`` all.
            return_prefix_tokens: no effect; single stages have none.
            norm: apply the final norm to each map.
            stop_early: no effect; all stages are computed.
            output_fmt: ``NCHW`` for maps [B, D, h, w], ``NLC`` for tokens [B, N, D].
            intermediates_only: return only the maps.

        Raises:
            ValueError: the format is unknown, an index is out of range, the model has no final norm, or as
                for :meth:`forward_features`.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NLC', got {output_fmt!r}")
        if norm and not self.backbone.has_final_norm:
            raise ValueError(f"{self.backbone.architecture} has no final norm: leave out norm=True")
        wanted = self.stage_indices(len(self.feature_info) if indices is None else indices)
        encoded = self._encode(x, Wanted(stages={self.stream: wanted}, norm=norm))
        maps = [encoded.maps[i] for i in wanted]
        found = maps if output_fmt == "NCHW" else [flatten_map(each) for each in maps]
        return found if intermediates_only else (self._final(encoded), found)

    def stage_indices(self, indices: int | Sequence[int] | None) -> tuple[int, ...]:
        """Resolve indices into ``feature_info``; ``None`` are those of ``Backbone.forward_intermediates``.

        Raises:
            ValueError: one is out of range, or there is none.
        """
        if indices is None:
            return self.backbone.stage_indices(None, self.stream)
        depth = len(self.feature_info)
        return resolve_indices(indices, depth, f"this encoder has {depth} stages")

    def _encode(self, x: Tensor, wanted: Wanted) -> Encoded:
        if x.ndim != 4:
            raise ValueError(f"timm's models take images [B, C, H, W], got {list(x.shape)}")
        images, valid, _ = validate_inputs(self.backbone, x, None, None)
        streams, _ = encode_validated(self.backbone, images, valid, wanted)
        return streams[self.stream]

    def _final(self, encoded: Encoded) -> Tensor:
        if not self.gives_tokens:
            return encoded.features
        tokens = flatten_map(encoded.features)
        return tokens if encoded.prefix is None else torch.cat([encoded.prefix, tokens], dim=1)

    def get_classifier(self) -> nn.Module:
        """Return the head: an ``nn.Linear``, or ``nn.Identity`` if ``num_classes`` is 0."""
        return self.backbone.get_classifier()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a new one for ``num_classes`` (0: remove it), and optionally the pooling."""
        if global_pool is not None:
            self.set_pool(global_pool)
        self.backbone.reset_classifier(num_classes)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """See :meth:`Backbone.set_grad_checkpointing`."""
        self.backbone.set_grad_checkpointing(enable)

    def group_matcher(self, coarse: bool = False) -> Callable[[str], Any]:
        """Return a function from a parameter name to its layer index, for timm's layer decay.

        As in timm's models, the head is its own layer.
        """
        depths, above = self.backbone.parameter_depths(), len(self.backbone.layer_groups())

        def depth(name: str) -> tuple[int]:
            name = name.removeprefix("backbone.")
            return (above if name.startswith("head.") else depths[name],)

        return depth

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay, besides biases and norms."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}


class Pyramid(nn.Module):
    """Resizes the maps of four stages to [B, D_i, ceil(H / r), ceil(W / r)] for the strides r = 4, 8, 16, 32.

    To finer strides, maps are interpolated bilinearly; to coarser ones they are averaged. ``out_indices``
    selects among the four levels.

    Raises:
        ValueError: the encoder has fewer than four stages, or strides that are not powers of two.
    """

    def __init__(self, encoder: TimmEncoder, out_indices: Sequence[int]) -> None:
        super().__init__()
        self.model = encoder
        info = encoder.feature_info
        indices = encoder.stage_indices(None)
        if len(indices) < len(PYRAMID):
            raise ValueError(f"a pyramid needs {len(PYRAMID)} stages, this encoder has {len(info)}")
        self.strides = [info[index]["reduction"] for index in indices]
        if any(stride % r and r % stride for stride, r in zip(self.strides, PYRAMID, strict=True)):
            raise ValueError(f"a pyramid requires stages whose strides are powers of two, got {self.strides}")
        levels = [{**info[i], "reduction": r} for i, r in zip(indices, PYRAMID, strict=True)]
        self.feature_info = FeatureInfo(levels, tuple(out_indices))
        self.stages = [indices[i] for i in out_indices]
        self.strides = [self.strides[i] for i in out_indices]

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, C, H, W] to a list of maps."""
        maps = self.model.backbone.forward_intermediates(x, self.stages)
        levels = zip(maps, self.strides, self.feature_info.reduction(), strict=True)
        return [_at(each, stride, reduction, x.shape[2:]) for each, stride, reduction in levels]


def _at(maps: Tensor, stride: int, reduction: int, size: Sequence[int]) -> Tensor:
    """Resize aligned maps from ``stride`` to the stride ``reduction``, to cover an image of ``size``."""
    if reduction >= stride:
        # At the edges, average only the existing cells.
        return F.avg_pool2d(maps, reduction // stride, ceil_mode=True, count_include_pad=False)
    fine = F.interpolate(maps, scale_factor=stride / reduction, mode="bilinear", align_corners=False)
    return fine[..., : -(-size[0] // reduction), : -(-size[1] // reduction)]


# -- what timm.create_model calls ---------------------------------------------------------------------


def _create(
    architecture: Architecture,
    modality: str,
    pyramid: bool,
    pretrained: bool = False,
    *,
    in_chans: int | None = None,
    bands: Sequence[str] | None = None,
    sensor: str | Sensor | None = None,
    missing_bands: str = "error",
    kernel_scale: str = "count",
    img_size: int | tuple[int, int] | None = None,
    pad: bool = False,
    num_classes: int = 0,
    global_pool: str = "embedding",
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    dynamic_img_size: bool = True,  # no effect: models accept any size
    **others: Any,
) -> nn.Module:
    # timm always passes its own arguments; most of them are off if they are 0 or None.
    if unknown := sorted(name for name, value in others.items() if value):
        raise ValueError(
            f"rsb_ models do not support {', '.join(unknown)}; they accept in_chans, bands, sensor, "
            "missing_bands, kernel_scale, img_size, pad, num_classes, global_pool, features_only, "
            "out_indices and pretrained_cfg_overlay={'file': ...}"
        )
    if pyramid and not features_only:
        raise ValueError(
            "names that end in _pyramid require features_only=True; otherwise leave out _pyramid"
        )
    if features_only and num_classes:
        raise ValueError("features_only returns maps and has no head: leave out num_classes")
    if out_indices is not None and not features_only:
        raise ValueError("out_indices requires features_only=True")
    overlay = dict(pretrained_cfg_overlay or {})
    checkpoint = overlay.pop("file", None) if pretrained else None
    if overlay or not isinstance(pretrained_cfg or "", str):
        raise ValueError(
            "pretrained_cfg must be a tag (a string) and pretrained_cfg_overlay {'file': PATH}; "
            f"got {pretrained_cfg!r} and {pretrained_cfg_overlay!r}"
        )
    tagged = pretrained_cfg and pretrained and not checkpoint
    name = f"{architecture.name}.{pretrained_cfg}" if tagged else architecture.name
    if checkpoint is None:
        # Check the channels before fetching weights.
        weights = inspect_checkpoint(architecture, None, find_entry(name) if pretrained else None).config
        own = weights.bands.get(modality, ())
        if sensor is not None:
            given = register_sensor(sensor) if isinstance(sensor, Sensor) else get_sensor(sensor)
            if given.name != weights.sensors.get(modality, modality):
                own = tuple(band.name for band in given.bands)
        _check_channels(name, modality, own, in_chans, bands)
    backbone = create_model(
        name,
        pretrained,
        modalities=(modality,),
        sensors=None if sensor is None else {modality: sensor},
        bands={modality: bands} if bands else None,
        missing_bands=missing_bands,
        kernel_scale=kernel_scale,
        image_size=img_size,
        pad=pad,
        num_classes=num_classes,
        checkpoint=checkpoint,
    )
    if checkpoint is not None:
        _check_channels(str(checkpoint), modality, backbone.bands[modality], in_chans, bands)
    encoder = TimmEncoder(backbone, global_pool=global_pool)
    encoder.pretrained_cfg = _pretrained_cfg(
        architecture, modality, encoder.in_chans, backbone.weights_entry
    ).to_dict()
    if not features_only:
        return encoder
    model: Any
    if pyramid:
        levels = len(PYRAMID) if out_indices is None else out_indices
        model = Pyramid(encoder, resolve_indices(levels, len(PYRAMID), f"there are {len(PYRAMID)} levels"))
    else:
        strides = [stage["reduction"] for stage in encoder.feature_info]
        if strides != sorted(strides):
            raise ValueError(
                f"timm's features_only requires strides that never fall, and {architecture.name} has "
                f"{strides}; rsbackbones.create_model({architecture.name!r}, features_only=True) serves any"
            )
        model = FeatureGetterNet(encoder, encoder.stage_indices(out_indices))
    model.pretrained_cfg = model.default_cfg = encoder.pretrained_cfg
    return cast(nn.Module, model)


def _check_channels(
    name: str, modality: str, own: Sequence[str], in_chans: int | None, bands: Sequence[str] | None
) -> None:
    """Refuse ``in_chans`` if it is not the number of the pretrained bands and the bands are not named."""
    if in_chans is None or not own or in_chans == len(bands or own):
        return
    if bands:
        raise ValueError(f"in_chans is {in_chans}, but bands has {len(bands)}: {', '.join(bands)}")
    raise ValueError(
        f"{name} takes {len(own)} channels of {modality}: {', '.join(own)}. in_chans={in_chans} does not "
        "tell which bands yours are: pass their names in order, bands=('B02', 'B03', ...)"
    )


def _pretrained_cfg(
    architecture: Architecture, modality: str, channels: int, entry: WeightsEntry | None
) -> PretrainedCfg:
    """Return timm's record of a model's weights. Its ``mean`` and ``std`` leave values unchanged."""
    size = (entry.image_size if entry else 0) or architecture.config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return PretrainedCfg(
        hf_hub_id=entry.source.repo_id or None if entry else None,
        hf_hub_filename=entry.source.filename or None if entry else None,
        file=str(entry.folder / entry.source.path) if entry and entry.source.path else None,
        architecture=timm_name(architecture, modality),
        tag=entry.tag if entry else None,
        input_size=(channels, height, width),
        crop_pct=1.0,
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        num_classes=0,
        classifier="backbone.head",
        license=entry.license if entry else None,
        description=entry.provenance if entry else None,
    )


def timm_name(architecture: Architecture, modality: str) -> str:
    """Return timm's name for the encoder of one sensor, such as ``rsb_croma_s2_vit_b``."""
    family = architecture.family.__name__.rpartition(".")[2]
    return f"rsb_{family}_{modality}_{architecture.name.removeprefix(family + '_')}"


def _register(architecture: Architecture, modality: str, pyramid: bool) -> None:
    def create(pretrained: bool = False, **arguments: Any) -> nn.Module:
        return _create(architecture, modality, pyramid, pretrained, **arguments)

    name = timm_name(architecture, modality) + ("_pyramid" if pyramid else "")
    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"``{architecture.name}`` for ``{modality}``; see :mod:`rsbackbones.integrations.timm`."
    known = [
        entry
        for entry in all_entries()
        if entry.architecture == architecture.name
        and entry.availability != "unreleased"
        and modality in entry.inputs
    ]
    own = len(architecture.config.bands.get(modality, ()))  # without weights
    known.sort(key=lambda entry: not entry.default)
    cfgs = {
        entry.tag: _pretrained_cfg(architecture, modality, len(entry.inputs[modality]["bands"]), entry)
        for entry in known
    }
    # timm looks up both by name in the module that defines the function.
    default_cfgs[name] = DefaultCfg(
        tags=deque(cfgs or [""]),
        cfgs=cfgs or {"": _pretrained_cfg(architecture, modality, own, None)},
        is_pretrained=bool(cfgs),
    )
    globals()[name] = create
    register_model(create)


default_cfgs: dict[str, DefaultCfg] = {}


def _modalities(architecture: Architecture) -> tuple[str, ...]:
    """Return the modalities that an architecture may be built for, by default or by its published weights."""
    published = [m for e in all_entries() if e.architecture == architecture.name for m in e.inputs]
    return tuple(dict.fromkeys([*architecture.config.modalities, *published]))


def register_encoders() -> None:
    """Register all architectures with timm that are not registered yet."""
    for architecture in architectures().values():
        for modality in _modalities(architecture):
            if timm_name(architecture, modality) not in default_cfgs:
                for pyramid in (False, True):
                    _register(architecture, modality, pyramid)


register_encoders()
on_new_family.append(register_encoders)
