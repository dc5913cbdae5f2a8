"""The encoders of single sensors under timm's names and methods. Importing this module registers them.

    import timm
    import rsbackbones.integrations.timm

    timm.list_models("rsb_*")
    timm.create_model("rsb_croma_s2_vit_b", pretrained=True, features_only=True, out_indices=(2, 5, 8, 11))

A name is ``rsb_FAMILY_SENSOR_REST`` for the architecture ``FAMILY_REST``, with ``.TAG`` for particular
weights of the manifest. Four arguments say what timm does not know: ``bands``, the channels of your tensors
in order (``in_chans`` alone does not say which they are, so another number than the weights' own is refused
without it), ``sensor``, what they are of where it is not the encoder's own (``"landsat_oli"``),
``missing_bands`` and ``kernel_scale``; see :func:`rsbackbones.create_model`. Inputs are normalized by
``create_preprocess(model.backbone)``; timm's transforms are told to leave the values alone.

A ViT has one scale, so the maps of ``features_only=True`` are all of one size. A decoder that wants a
pyramid (a U-Net, an FPN) takes the name with ``_pyramid`` at its end: maps at 4, 8, 16 and 32 pixels from
four stages, resized without parameters.
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

from rsbackbones.models.backbone import Backbone, Encoded, Wanted
from rsbackbones.models.feature_maps import FeatureMaps
from rsbackbones.models.features import evenly_spaced, flatten_map, resolve_indices, unflatten_tokens
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

    Features are what they are of timm's: of a ViT tokens [B, P + N, D], of other networks maps [B, D, h, w].
    ``global_pool`` is ``embedding`` (the architecture's own embedding of an image), ``avg`` (the mean of all
    places) or ``""`` (none: logits or features of every place).

    Attributes:
        num_prefix_tokens: P: 1 for a ViT with a class token, 0 for other networks.
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
            for stage in backbone.stages(self.stream)
        ]
        self.pretrained_cfg: dict[str, Any] = {}
        self.set_pool(global_pool)

    @property
    def num_classes(self) -> int:
        """The number of classes, 0 without a head."""
        return self.backbone.num_classes

    @property
    def default_cfg(self) -> dict[str, Any]:
        """The older name of ``pretrained_cfg``."""
        return self.pretrained_cfg

    def set_pool(self, global_pool: str) -> None:
        """Choose how tokens are pooled."""
        if global_pool not in POOLINGS:
            known = ", ".join(map(repr, POOLINGS))
            raise ValueError(f"global_pool must be one of {known}, got {global_pool!r}")
        self.global_pool = global_pool

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to logits [B, num_classes], or pooled features [B, D]; unpooled, of every place."""
        encoded = self._encode(x, Wanted())
        if self.global_pool == "embedding":  # of a padded image it is that of all cells
            logits: Tensor = self.backbone.head(encoded.pooled)
            return logits
        return self.forward_head(self._final(encoded))

    def forward_features(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the final features: tokens [B, N, D] or maps [B, D, h, w].

        Raises:
            ValueError: as :meth:`Backbone.forward_features`, or not four dimensions.
        """
        return self._final(self._encode(x, Wanted()))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features to what :meth:`forward` returns; with ``pre_logits`` to what the head is given."""
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
        """Return the maps of some stages, and before them the final features unless ``intermediates_only``.

        Args:
            x: [B, C, H, W].
            indices: stage indices; a number n means the last n stages, ``None`` all.
            return_prefix_tokens: without effect; single stages have none.
            norm: apply the final norm to each.
            stop_early: without effect: all stages are run.
            output_fmt: ``NCHW`` for maps [B, D, h, w], ``NLC`` for tokens [B, N, D].
            intermediates_only: leave out the final features.

        Raises:
            ValueError: an unknown format, an index out of range, a norm that the model does not have, or as
                for :meth:`forward_features`.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NLC', got {output_fmt!r}")
        if norm and not self.backbone.has_final_norm:
            raise ValueError(f"{self.backbone.architecture} ends without a norm: leave out norm=True")
        depth = len(self.feature_info)
        wanted = self.backbone.stage_indices(depth if indices is None else indices, self.stream)
        encoded = self._encode(x, Wanted(stages={self.stream: wanted}, norm=norm))
        maps = [encoded.maps[i] for i in wanted]
        found = maps if output_fmt == "NCHW" else [flatten_map(each) for each in maps]
        return found if intermediates_only else (self._final(encoded), found)

    def _encode(self, x: Tensor, wanted: Wanted) -> Encoded:
        if x.ndim != 4:
            raise ValueError(f"timm's models take images [B, C, H, W], got {list(x.shape)}")
        images, valid = validate_inputs(self.backbone, x, None, None)
        streams, _ = self.backbone.encode_validated(images, valid, wanted)
        return streams[self.stream]

    def _final(self, encoded: Encoded) -> Tensor:
        if not self.gives_tokens:
            return encoded.features
        tokens = flatten_map(encoded.features)
        return tokens if encoded.prefix is None else torch.cat([encoded.prefix, tokens], dim=1)

    def get_classifier(self) -> nn.Module:
        """Return the head: an ``nn.Linear``, or ``nn.Identity`` where ``num_classes`` is 0."""
        return self.backbone.get_classifier()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put on a new head of ``num_classes``, or none for 0, and choose another pooling."""
        if global_pool is not None:
            self.set_pool(global_pool)
        place = next(self.parameters())
        self.backbone.reset_classifier(num_classes)
        self.backbone.head.to(place.device, place.dtype)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """See :meth:`Backbone.set_grad_checkpointing`."""
        self.backbone.set_grad_checkpointing(enable)

    def group_matcher(self, coarse: bool = False) -> Callable[[str], Any]:
        """Return what tells timm's layer-wise learning rates the depth of a parameter by its name.

        The head is a layer of its own, as it is of timm's models.
        """
        depths, above = self.backbone.parameter_depths(), len(self.backbone.layer_groups())

        def depth(name: str) -> tuple[int]:
            name = name.removeprefix("backbone.")
            return (above if name.startswith("head.") else depths[name],)

        return depth

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay, besides biases and norms: none."""
        return set()


class Pyramid(nn.Module):
    """Maps [B, D_i, ceil(H / r), ceil(W / r)] for r = 4, 8, 16 and 32 from four stages of an encoder.

    Finer than the stage they are interpolated (bilinear), coarser they are averaged. ``out_indices`` choose
    among the four.
    """

    def __init__(self, encoder: TimmEncoder, out_indices: Sequence[int]) -> None:
        super().__init__()
        self.model = encoder
        info = encoder.feature_info
        indices = evenly_spaced(len(info), len(PYRAMID))
        if len(indices) < len(PYRAMID):
            raise ValueError(f"a pyramid needs {len(PYRAMID)} stages, this encoder has {len(info)}")
        self.strides = [info[index]["reduction"] for index in indices]
        if any(stride % r and r % stride for stride, r in zip(self.strides, PYRAMID, strict=True)):
            raise ValueError(
                f"a pyramid of {PYRAMID} pixels needs stages of powers of two, got {self.strides} pixels"
            )
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
    """Maps of a stride to cells of ``reduction`` pixels that cover an image of ``size``, at their places."""
    if reduction >= stride:
        # At the edges the mean of what there is.
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
    dynamic_img_size: bool = True,  # always: any size is served
    **others: Any,
) -> nn.Module:
    # timm passes its own arguments whether they are used or not, and 0 is what switches most of them off.
    if unknown := sorted(name for name, value in others.items() if value):
        raise ValueError(
            f"rsb_ models do not support {', '.join(unknown)}; they accept in_chans, bands, sensor, "
            "missing_bands, kernel_scale, img_size, pad, num_classes, global_pool, features_only, "
            "out_indices and pretrained_cfg_overlay={'file': ...}"
        )
    if pyramid and not features_only:
        raise ValueError("the names that end in _pyramid are for features_only=True; leave out _pyramid")
    if features_only and num_classes:
        raise ValueError("features_only gives maps and has no head: leave out num_classes")
    if out_indices is not None and not features_only:
        raise ValueError("out_indices goes with features_only=True")
    overlay = dict(pretrained_cfg_overlay or {})
    checkpoint = overlay.pop("file", None) if pretrained else None
    if overlay or not isinstance(pretrained_cfg or "", str):
        raise ValueError(
            "of timm's pretrained_cfg the tag (a string) is supported, and pretrained_cfg_overlay={'file': "
            f"PATH}}; got {pretrained_cfg!r} and {pretrained_cfg_overlay!r}"
        )
    tagged = pretrained_cfg and pretrained and not checkpoint
    name = f"{architecture.name}.{pretrained_cfg}" if tagged else architecture.name
    if checkpoint is None:
        # Before anything is fetched.
        weights = inspect_checkpoint(architecture, None, find_entry(name) if pretrained else None).config
        own = weights.bands.get(modality, ())
        if sensor is not None:
            mine = register_sensor(sensor) if isinstance(sensor, Sensor) else get_sensor(sensor)
            if mine.name != weights.sensors.get(modality, modality):
                own = tuple(band.name for band in mine.bands)
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
        model = FeatureGetterNet(encoder, FeatureMaps(backbone, indices=out_indices).indices)
    model.pretrained_cfg = model.default_cfg = encoder.pretrained_cfg
    return cast(nn.Module, model)


def _check_channels(
    name: str, modality: str, own: Sequence[str], in_chans: int | None, bands: Sequence[str] | None
) -> None:
    """Refuse a number of channels that says nothing about which they are."""
    if in_chans is None or not own or in_chans == len(bands or own):
        return
    if bands:
        raise ValueError(f"in_chans is {in_chans}, and bands names {len(bands)}: {', '.join(bands)}")
    raise ValueError(
        f"{name} takes {len(own)} channels of {modality}: {', '.join(own)}. in_chans={in_chans} does not say "
        "which yours are: name them in order, bands=('B02', 'B03', ...)"
    )


def _pretrained_cfg(
    architecture: Architecture, modality: str, channels: int, entry: WeightsEntry | None
) -> PretrainedCfg:
    """What timm keeps of a model's weights; ``mean`` and ``std`` are for a transform that changes nothing."""
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
    """Return the name of an architecture's encoder of one sensor: ``rsb_croma_s2_vit_b``."""
    family = architecture.family.__name__.rpartition(".")[2]
    return f"rsb_{family}_{modality}_{architecture.name.removeprefix(family + '_')}"


def _register(architecture: Architecture, modality: str, pyramid: bool) -> None:
    def create(pretrained: bool = False, **arguments: Any) -> nn.Module:
        return _create(architecture, modality, pyramid, pretrained, **arguments)

    name = timm_name(architecture, modality) + ("_pyramid" if pyramid else "")
    create.__name__ = create.__qualname__ = name
    create.__doc__ = (
        f"``{architecture.name}`` for ``{modality}`` alone; see :mod:`rsbackbones.integrations.timm`."
    )
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
    # timm finds both by the name, in the module that defines the function.
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
    """Register with timm the architectures that it does not know yet."""
    for architecture in architectures().values():
        for modality in _modalities(architecture):
            if timm_name(architecture, modality) not in default_cfgs:
                for pyramid in (False, True):
                    _register(architecture, modality, pyramid)


register_encoders()
on_new_family.append(register_encoders)
