"""``dense_model``: build a dense prediction model from a backbone and the name of a head."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from torch import nn

from rsbackbones.heads.change import ChangeModel
from rsbackbones.heads.dense import DenseModel
from rsbackbones.heads.fusion import FusionHead, FusionModel
from rsbackbones.heads.head import DenseHead
from rsbackbones.heads.linear import LinearHead
from rsbackbones.heads.pyramid import SCALES
from rsbackbones.heads.temporal import POOLINGS, Temporal, TemporalHead
from rsbackbones.heads.unet3d import UNet3dHead
from rsbackbones.heads.upernet import UPerNet
from rsbackbones.heads.vit_lite import ViTLiteHead
from rsbackbones.models.backbone import Backbone
from rsbackbones.models.feature_maps import FeatureMaps

Head = Literal["upernet", "linear", "vit_lite", "unet3d", "temporal", "fusion"]
HEADS = ("upernet", "linear", "vit_lite", "unet3d", "temporal", "fusion")
_OF_SERIES = ("unet3d", "temporal", "fusion")
# Heads on the last map of the backbone's own decoder.
_ON_DECODER = ("unet3d", "fusion")
# Heads that take the maps of several stages; others take one.
_OF_LEVELS: dict[str, Callable[..., DenseHead]] = {"upernet": UPerNet, "temporal": TemporalHead}
# The arguments that a head has.
_SIZES = {
    "upernet": ("width",), "linear": (), "vit_lite": ("width", "depth"), "unet3d": (),
    "temporal": ("width", "temporal"), "fusion": ("reconstructed",),
}  # fmt: skip


def dense_model(
    backbone: nn.Module,
    head: Head = "upernet",
    *,
    num_classes: int,
    task: Literal["pixels", "change"] = "pixels",
    stream: str | None = None,
    indices: int | Sequence[int] | None = None,
    scale: int = 1,
    freeze: bool = False,
    width: int | None = None,
    depth: int | None = None,
    temporal: Temporal | None = None,
    reconstructed: int | None = None,
) -> DenseModel:
    """Add a head for dense prediction to a backbone.

    The model uses the backbone itself, not a copy. Backbone parameters that do not affect the head's input
    are frozen (``requires_grad`` is False); with ``freeze`` all of them are. The head is newly initialized.

    Args:
        backbone: from ``create_model``, with or without ``features_only=True``; or a module that returns a
            list of maps and has a ``feature_info``, such as a timm model with ``features_only=True``.
        head: ``upernet`` takes the maps of four depths. ``linear`` classifies every cell of the final map and
            interpolates to pixels. ``vit_lite`` applies a few transformer blocks and transposed convolutions
            to the final map. These two apply the final norm of the backbone first, if it has one. ``unet3d``
            is the last convolution of a network of series that has its own decoder (S4); all else is the
            backbone's. ``temporal`` is for series on a backbone of single images: it encodes every date, and
            reduces the dates of each level to one map before a U-Net decoder. ``fusion`` freezes a backbone
            that was pretrained to reconstruct another sensor, and trains a second network on both
            (:mod:`rsbackbones.heads.fusion`); fine-tuning builds it from a run (recipe ``s4_mmf``).
        num_classes: K, at least 2: a binary mask has two classes.
        task: ``pixels``: the model takes images. ``change``: it takes images of two dates and returns
            log-probabilities; see :class:`rsbackbones.heads.ChangeModel`.
        stream: one of the model's ``stream_inputs``; by default its default stream.
        indices: stage indices, as in ``forward_intermediates``; default four evenly spaced ones for UPerNet,
            that of the final map for other heads.
        scale: super-resolution: pixels of the result per image pixel, along each side. ``vit_lite`` learns
            it (powers of two), other heads interpolate.
        freeze: train the head only.
        width: channels of the decoder; default 256 (``upernet``), 512 (``vit_lite``), 64 (``temporal``).
        depth: number of blocks of ``vit_lite``; default 6.
        temporal: how ``temporal`` reduces dates: ``convlstm`` (the default), ``ltae`` or ``mean``.
        reconstructed: of ``fusion``, the number of bands that are made.

    Raises:
        ValueError: a head, task or stream is unknown, an index or a number is out of range, or the backbone
            does not have what the head needs (a decoder, single images).
        ImportError: ``upernet`` without segmentation-models-pytorch (the extra ``heads``).
    """
    if head not in HEADS:
        raise ValueError(f"head must be one of {', '.join(HEADS)}, got {head!r}")
    if task not in ("pixels", "change"):
        raise ValueError(f"task must be 'pixels' or 'change', got {task!r}")
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2 (a binary mask has two classes), got {num_classes}")
    if scale < 1:
        raise ValueError(f"scale must be 1 or more, got {scale}")
    sizes: dict[str, Any] = {
        "width": width,
        "depth": depth,
        "temporal": temporal,
        "reconstructed": reconstructed,
    }
    sizes = {name: value for name, value in sizes.items() if value is not None}
    for name, value in sizes.items():
        if name not in _SIZES[head]:
            takers = " and ".join(other for other, names in _SIZES.items() if name in names)
            raise ValueError(f"{name} applies to {takers}, got {value} for {head}; leave it out")
    if width is not None and width < 1:
        raise ValueError(f"width must be positive, got {width}")
    if temporal is not None and temporal not in POOLINGS:
        raise ValueError(f"temporal must be one of {', '.join(POOLINGS)}, got {temporal!r}")
    if head == "fusion" and (reconstructed is None or reconstructed < 1):
        raise ValueError(f"fusion needs reconstructed, the bands of the other sensor, got {reconstructed}")
    if head in _OF_SERIES and task == "change":
        raise ValueError(f"{head} takes the dates of a series, and change is between two images")
    if head == "fusion" and not isinstance(backbone, Backbone):
        raise ValueError("fusion takes a network of S4 from create_model, without features_only=True")
    if isinstance(backbone, FeatureMaps) or not isinstance(backbone, Backbone):
        if stream is not None or indices is not None:
            raise ValueError(
                "a backbone with features_only=True has its stream and indices; leave them out here"
            )
        if not hasattr(backbone, "feature_info"):
            raise ValueError(
                "expected a model from create_model, or a module with a feature_info, such as a timm "
                f"model with features_only=True, got {type(backbone).__name__}"
            )
    source: Any = backbone
    if isinstance(backbone, Backbone):
        source = _feature_layers(backbone, head, stream, indices)
    info = source.feature_info
    channels, reductions = list(info.channels()), list(info.reduction())
    if head not in _OF_LEVELS and len(channels) != 1:
        raise ValueError(
            f"{head} takes the map of one stage, got {len(channels)}: choose one with indices= (or "
            "out_indices= of create_model)"
        )
    build_head: Callable[[], DenseHead]
    if head in _OF_LEVELS:
        build_head = partial(_OF_LEVELS[head], channels, reductions, num_classes, **sizes)
    elif head in ("linear", "unet3d"):
        kind_of_head = LinearHead if head == "linear" else UNet3dHead
        build_head = partial(kind_of_head, channels[0], reductions[0], num_classes)
    elif head == "fusion":
        build_head = partial(
            FusionHead, source.backbone.config, source.stream, num_classes=num_classes, **sizes
        )
        freeze = True
    else:
        build_head = partial(ViTLiteHead, channels[0], reductions[0], num_classes, scale=scale, **sizes)
    kind = ChangeModel if task == "change" else FusionModel if head == "fusion" else DenseModel
    is_backbone = isinstance(source, FeatureMaps)
    stream = source.stream if is_backbone else None
    indices = source.indices if is_backbone else None
    return kind(
        source.backbone if is_backbone else backbone,
        build_head(),
        num_classes=num_classes,
        stream=stream,
        indices=indices,
        norm=head in ("linear", "vit_lite") and is_backbone and source.backbone.has_final_norm,
        scale=scale,
        frozen=freeze,
        options={
            "head": head, "num_classes": num_classes, "task": task, "stream": stream,
            "indices": indices and list(indices), "scale": scale, "freeze": freeze, **sizes,
        },
        build_head=build_head,
    )  # fmt: skip


def _feature_layers(
    backbone: Backbone, head: Head, stream: str | None, indices: int | Sequence[int] | None
) -> FeatureMaps:
    """Return the backbone with the requested stages, or the default stages of a head."""
    if head in _ON_DECODER:
        stream = backbone.choose_stream(stream)
        decoder = len(backbone.stages(stream)) - 1 > backbone.final_stage(stream)
        if backbone.consumes != "series" or not decoder:
            raise ValueError(
                f"{head} needs a network of series with a decoder, and this "
                f"{backbone.architecture} has no decoder of {stream}: of s4_unet3d the sensor is "
                f"inference_modality={stream!r}; or choose another head"
            )
        last = len(backbone.stages(stream)) - 1
        if indices is not None and backbone.stage_indices(indices, stream) != (last,):
            raise ValueError(f"{head} takes the last map of the backbone's decoder: leave out indices")
    if head == "temporal" and backbone.consumes == "series":
        raise ValueError(
            f"temporal is for backbones of single images, and {backbone.architecture} consumes series: "
            "choose unet3d or another head"
        )
    if indices is not None:
        return FeatureMaps(backbone, indices=indices, stream=stream)
    stream = backbone.choose_stream(stream)
    if head not in _OF_LEVELS:
        last = len(backbone.stages(stream)) - 1 if head in _ON_DECODER else backbone.final_stage(stream)
        return FeatureMaps(backbone, indices=[last], stream=stream)
    maps = FeatureMaps(backbone, stream=stream)
    strides = {stage.stride for stage in backbone.encoder_stages(stream)}
    if len(maps.indices) == len(SCALES) or len(strides) > 1:
        return maps
    # A stream with fewer stages repeats some of them.
    depth = len(backbone.encoder_stages(stream))
    spread = [-(-(i + 1) * depth // len(SCALES)) - 1 for i in range(len(SCALES))]
    return FeatureMaps(backbone, indices=spread, stream=stream)
