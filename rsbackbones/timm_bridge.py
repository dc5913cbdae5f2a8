"""The encoders of single sensors under timm's names and methods. Importing this module registers them.

    import timm
    import rsbackbones.timm_bridge

    timm.list_models("rsb_*")
    timm.create_model("rsb_croma_s2_vit_b", pretrained=True, features_only=True, out_indices=(2, 5, 8, 11))

A name is ``rsb_FAMILY_SENSOR_REST`` for the architecture ``FAMILY_REST``, with ``.TAG`` for particular
weights of the manifest. Four arguments say what timm does not know: ``bands``, the channels of your tensors
in order (``in_chans`` alone does not say which they are, so another number than the weights' own is refused
without it), ``sensor``, what they are of where it is not the encoder's own (``"landsat_oli"``),
``bands_missing`` and ``bands_scale``; see :func:`rsbackbones.create_model`. Inputs are normalised by
``create_preprocess(model.backbone)``; timm's transforms are told to leave the values alone.

A ViT has one scale, so the maps of ``features_only=True`` are all of one size. A decoder that wants a
pyramid (a U-Net, an FPN) takes the name with ``_pyramid`` at its end: maps at 4, 8, 16 and 32 pixels from
four blocks, resized without parameters.
"""

import re
from collections import deque
from collections.abc import Sequence
from typing import Any, cast

import torch.nn.functional as F
from timm.models import FeatureInfo, register_model
from timm.models._features import FeatureGetterNet
from timm.models._pretrained import DefaultCfg, PretrainedCfg
from torch import Tensor, nn

from rsbackbones.backbone import Backbone
from rsbackbones.factory import create_model
from rsbackbones.feature_maps import FeatureMaps
from rsbackbones.features import spread_indices, take_indices
from rsbackbones.loading import describe
from rsbackbones.manifest import WeightsEntry, all_entries, find_entry
from rsbackbones.registry import Architecture, architectures
from rsbackbones.sensors import Sensor, get_sensor, register_sensor

POOLINGS = ("embedding", "avg", "")
PYRAMID = (4, 8, 16, 32)


class TimmEncoder(nn.Module):
    """A backbone of one sensor with the methods of timm's vision transformers.

    ``global_pool`` is ``embedding`` (the architecture's own embedding of an image), ``avg`` (the mean token)
    or ``""`` (none: logits or features of every token). There is no class token.
    """

    num_prefix_tokens = 0
    has_class_token = False

    def __init__(self, backbone: Backbone, *, global_pool: str = "embedding") -> None:
        super().__init__()
        self.backbone = backbone
        (self.stream,) = backbone.stream_depths
        self.depth = backbone.stream_depths[self.stream]
        self.num_features = self.embed_dim = self.head_hidden_size = backbone.num_features
        self.in_chans = len(backbone.bands[self.stream])
        self.feature_info = [
            {"module": f"blocks.{i}", "num_chs": backbone.num_features, "reduction": backbone.patch_size}
            for i in range(self.depth)
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
        """[B, C, H, W] to logits [B, num_classes], or pooled features [B, D]; unpooled, of every token."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to normalised tokens [B, N, D].

        Raises:
            ValueError: as :meth:`Backbone.forward_features`, or not four dimensions.
        """
        if x.ndim != 4:
            raise ValueError(f"timm's models take images [B, C, H, W], got {list(x.shape)}")
        return self.backbone.forward_features(x).tokens[self.stream]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens [B, N, D] to what :meth:`forward` returns; with ``pre_logits`` to what the head is given."""
        if self.global_pool == "embedding":
            x = self.backbone.pool(self.stream, x)
        elif self.global_pool == "avg":
            x = x.mean(dim=1)
        if pre_logits:
            return x
        logits: Tensor = self.backbone.head(x)
        return logits

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
        """Return the outputs of some blocks, and before them the final tokens unless ``intermediates_only``.

        Args:
            x: [B, C, H, W].
            indices: block indices; a number n means the last n blocks, ``None`` all.
            return_prefix_tokens: as in timm without effect, where there are none.
            norm: apply the final LayerNorm to each.
            stop_early: without effect: all blocks are run.
            output_fmt: ``NCHW`` for maps [B, D, h, w], ``NLC`` for tokens [B, N, D].
            intermediates_only: leave out the final tokens.

        Raises:
            ValueError: an unknown format, an index out of range, or as for :meth:`forward_features`.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NLC', got {output_fmt!r}")
        if x.ndim != 4:
            raise ValueError(f"timm's models take images [B, C, H, W], got {list(x.shape)}")
        every = f"there are {self.depth} blocks"
        wanted = take_indices(self.depth if indices is None else indices, self.depth, every)
        *maps, last = self.backbone.forward_intermediates(x, (*wanted, self.depth - 1))
        final = self.backbone.final_norm(self.stream)
        if norm:
            maps = [final(_tokens(each)).transpose(1, 2).unflatten(2, each.shape[2:]) for each in maps]
        found = maps if output_fmt == "NCHW" else [_tokens(each) for each in maps]
        return found if intermediates_only else (final(_tokens(last)), found)

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

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the patterns by which timm's layer-wise learning rates tell depths apart."""
        (modality,) = self.backbone.modalities
        return {
            "stem": rf"^backbone\.{re.escape(self.backbone.tokenizer_name(modality))}\.",
            "blocks": r"^backbone\.(?:.*\.)?blocks\.(\d+)\.",
        }

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay, besides biases and norms: none."""
        return set()


def _tokens(maps: Tensor) -> Tensor:
    """[B, D, h, w] to [B, N, D]."""
    return maps.flatten(2).transpose(1, 2)


class Pyramid(nn.Module):
    """Maps [B, D, ceil(H / r), ceil(W / r)] for r = 4, 8, 16 and 32 from four blocks of an encoder.

    Finer than the patch they are interpolated (bilinear), coarser they are averaged. ``out_indices`` choose
    among the four.
    """

    def __init__(self, encoder: TimmEncoder, out_indices: Sequence[int]) -> None:
        super().__init__()
        self.model = encoder
        blocks = spread_indices(encoder.depth, len(PYRAMID))
        if len(blocks) < len(PYRAMID):
            raise ValueError(f"a pyramid needs {len(PYRAMID)} blocks, this encoder has {encoder.depth}")
        self.patch_size = encoder.backbone.patch_size
        if any(self.patch_size % r and r % self.patch_size for r in PYRAMID):
            raise ValueError(
                f"a pyramid of {PYRAMID} pixels needs patches of a power of two, got {self.patch_size}"
            )
        levels = [
            {"module": f"blocks.{block}", "num_chs": encoder.num_features, "reduction": reduction}
            for block, reduction in zip(blocks, PYRAMID, strict=True)
        ]
        self.feature_info = FeatureInfo(levels, tuple(out_indices))
        self.blocks = [blocks[i] for i in out_indices]

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, C, H, W] to a list of maps."""
        maps = self.model.backbone.forward_intermediates(x, self.blocks)
        levels = zip(maps, self.feature_info.reduction(), strict=True)
        return [_at(each, self.patch_size, reduction, x.shape[2:]) for each, reduction in levels]


def _at(maps: Tensor, patch_size: int, reduction: int, size: Sequence[int]) -> Tensor:
    """Maps of patches to cells of ``reduction`` pixels that cover an image of ``size``, at their places."""
    if reduction >= patch_size:
        # At the edges the mean of what there is.
        return F.avg_pool2d(maps, reduction // patch_size, ceil_mode=True, count_include_pad=False)
    fine = F.interpolate(maps, scale_factor=patch_size / reduction, mode="bilinear", align_corners=False)
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
    bands_missing: str = "error",
    bands_scale: str = "count",
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
            f"rsb_ models do not support {', '.join(unknown)}; they take in_chans, bands, sensor, "
            "bands_missing, bands_scale, img_size, pad, num_classes, global_pool, features_only, out_indices "
            "and pretrained_cfg_overlay={'file': ...}"
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
        weights = describe(architecture, None, find_entry(name) if pretrained else None).config
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
        bands_missing=bands_missing,
        bands_scale=bands_scale,
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
        model = Pyramid(encoder, take_indices(levels, len(PYRAMID), f"there are {len(PYRAMID)} levels"))
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
    create.__doc__ = f"``{architecture.name}`` for ``{modality}`` alone; see :mod:`rsbackbones.timm_bridge`."
    known = [
        entry
        for entry in all_entries()
        if entry.architecture == architecture.name and entry.state != "none" and modality in entry.inputs
    ]
    own = len(architecture.config.bands[modality])
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
for _architecture in architectures().values():
    for _modality in _architecture.config.modalities:
        for _pyramid in (False, True):
            _register(_architecture, _modality, _pyramid)
