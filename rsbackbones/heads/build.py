"""``dense_model``: build a dense prediction model from a backbone and the name of a head."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from torch import nn

from rsbackbones.heads.change import ChangeModel
from rsbackbones.heads.dense import DenseModel
from rsbackbones.heads.head import DenseHead
from rsbackbones.heads.linear import LinearHead
from rsbackbones.heads.pyramid import SCALES
from rsbackbones.heads.upernet import UPerNet
from rsbackbones.heads.vit_lite import ViTLiteHead
from rsbackbones.models.backbone import Backbone
from rsbackbones.models.feature_maps import FeatureMaps

Head = Literal["upernet", "linear", "vit_lite"]
HEADS = ("upernet", "linear", "vit_lite")


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
) -> DenseModel:
    """Add a head for dense prediction to a backbone.

    The model uses the backbone itself, not a copy. Backbone parameters that do not affect the head's input
    are frozen (``requires_grad`` is False); with ``freeze`` all of them are. The head is newly initialized.

    Args:
        backbone: from ``create_model``, with or without ``features_only=True``; or a module that returns a
            list of maps and has a ``feature_info``, such as a timm model with ``features_only=True``.
        head: ``upernet`` takes the maps of four depths. ``linear`` classifies every cell of the final map and
            interpolates to pixels. ``vit_lite`` applies a few transformer blocks and transposed convolutions
            to the final map. The last two apply the final norm of the backbone first, if it has one.
        num_classes: K, at least 2: a binary mask has two classes.
        task: ``pixels``: the model takes images. ``change``: it takes images of two dates and returns
            log-probabilities; see :class:`rsbackbones.heads.ChangeModel`.
        stream: one of the model's ``stream_inputs``; by default its default stream.
        indices: stage indices, as in ``forward_intermediates``; default four evenly spaced ones for UPerNet,
            that of the final map for other heads.
        scale: super-resolution: pixels of the result per image pixel, along each side. ``vit_lite`` learns
            it (powers of two), other heads interpolate.
        freeze: train the head only.
        width: channels of the decoder; default 256 (``upernet``), 512 (``vit_lite``).
        depth: number of blocks of ``vit_lite``; default 6.

    Raises:
        ValueError: a head, task or stream is unknown, an index or a number is out of range.
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
    if width is not None and (head == "linear" or width < 1):
        raise ValueError(
            f"width applies to upernet and vit_lite and must be positive, got {width} for {head}"
        )
    if depth is not None and head != "vit_lite":
        raise ValueError(f"depth is the number of blocks of vit_lite; leave it out for {head}")
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
    if head != "upernet" and len(channels) != 1:
        raise ValueError(
            f"{head} takes the map of one stage, got {len(channels)}: choose one with indices= (or "
            "out_indices= of create_model)"
        )
    sizes = {name: value for name, value in (("width", width), ("depth", depth)) if value is not None}
    build_head: Callable[[], DenseHead]
    if head == "upernet":
        build_head = partial(UPerNet, channels, reductions, num_classes, **sizes)
    elif head == "linear":
        build_head = partial(LinearHead, channels[0], reductions[0], num_classes)
    else:
        build_head = partial(ViTLiteHead, channels[0], reductions[0], num_classes, scale=scale, **sizes)
    kind = ChangeModel if task == "change" else DenseModel
    is_backbone = isinstance(source, FeatureMaps)
    stream = source.stream if is_backbone else None
    indices = source.indices if is_backbone else None
    return kind(
        source.backbone if is_backbone else backbone,
        build_head(),
        num_classes=num_classes,
        stream=stream,
        indices=indices,
        norm=head != "upernet" and is_backbone and source.backbone.has_final_norm,
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
    if indices is not None:
        return FeatureMaps(backbone, indices=indices, stream=stream)
    stream = backbone.choose_stream(stream)
    if head != "upernet":
        return FeatureMaps(backbone, indices=[backbone.final_stage(stream)], stream=stream)
    maps = FeatureMaps(backbone, stream=stream)
    strides = {stage.stride for stage in backbone.encoder_stages(stream)}
    if len(maps.indices) == len(SCALES) or len(strides) > 1:
        return maps
    # A stream with fewer stages repeats some of them.
    depth = len(backbone.encoder_stages(stream))
    spread = [-(-(i + 1) * depth // len(SCALES)) - 1 for i in range(len(SCALES))]
    return FeatureMaps(backbone, indices=spread, stream=stream)
