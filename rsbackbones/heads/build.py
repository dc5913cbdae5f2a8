"""``dense_model``: a backbone and the name of a head make a model of every pixel."""

from collections.abc import Sequence
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
    """Put a head on a backbone that classifies every pixel.

    The backbone is used itself, not copied. Of its parameters those that the head's maps do not depend on get
    no gradients any more (``requires_grad`` is False), all of them with ``freeze``. The head is newly
    initialized.

    Args:
        backbone: from ``create_model``, with or without ``features_only=True``; or a module that gives a list
            of maps and has a ``feature_info``, as timm's with ``features_only=True`` (a ResNet, say).
        head: ``upernet``, over four depths; ``linear``, of the last stage's map, cell by cell,
            interpolated to pixels; ``vit_lite``, a few transformer blocks over the last stage's map and
            transposed convolutions. The last two see the map after the final norm, where there is one.
        num_classes: K, at least 2: a binary mask has two classes.
        task: ``pixels``: forward takes images. ``change``: images of two dates, and it gives
            log-probabilities; see :class:`rsbackbones.heads.ChangeModel`.
        stream: one of the model's ``stream_inputs``; by default the one that all of its sensors feed.
        indices: which stages, as in ``forward_intermediates``; default four evenly spaced (UPerNet), the
            last.
        scale: super-resolution: pixels of the result per pixel of the images, along each side. ``vit_lite``
            learns it (powers of two), the others interpolate.
        freeze: train the head alone.
        width: channels of the decoder; default 256 (``upernet``), 512 (``vit_lite``).
        depth: blocks of ``vit_lite``; default 6.

    Raises:
        ValueError: an unknown head, task or stream, indices out of range, or a number that cannot be.
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
        raise ValueError(f"width is that of upernet or vit_lite and positive, got {width} for {head}")
    if depth is not None and head != "vit_lite":
        raise ValueError(f"depth is the number of blocks of vit_lite; {head} has none")
    if isinstance(backbone, FeatureMaps) or not isinstance(backbone, Backbone):
        if stream is not None or indices is not None:
            raise ValueError(
                "a backbone with features_only=True has its stream and indices; leave them out here"
            )
        if not hasattr(backbone, "feature_info"):
            raise ValueError(
                "expected a model of create_model, or one with a feature_info as timm's features_only=True "
                f"has, got {type(backbone).__name__}"
            )
    source: Any = backbone
    if isinstance(backbone, Backbone):
        source = _feature_layers(backbone, head, stream, indices)
    info = source.feature_info
    channels, reductions = list(info.channels()), list(info.reduction())
    if head != "upernet" and len(channels) != 1:
        raise ValueError(
            f"{head} takes the map of one stage, got {len(channels)}: name one with indices= (or "
            "with out_indices= of create_model)"
        )
    options = {name: value for name, value in (("width", width), ("depth", depth)) if value is not None}
    decoder: DenseHead
    if head == "upernet":
        decoder = UPerNet(channels, reductions, num_classes, **options)
    elif head == "linear":
        decoder = LinearHead(channels[0], reductions[0], num_classes)
    else:
        decoder = ViTLiteHead(channels[0], reductions[0], num_classes, scale=scale, **options)
    kind = ChangeModel if task == "change" else DenseModel
    ours = isinstance(source, FeatureMaps)
    return kind(
        source.backbone if ours else backbone,
        decoder,
        num_classes=num_classes,
        stream=source.stream if ours else None,
        indices=source.indices if ours else None,
        norm=head != "upernet" and ours and source.backbone.has_final_norm,
        scale=scale,
        frozen=freeze,
    )


def _feature_layers(
    backbone: Backbone, head: Head, stream: str | None, indices: int | Sequence[int] | None
) -> FeatureMaps:
    """The backbone with the stages that a head takes by default."""
    if indices is not None:
        return FeatureMaps(backbone, indices=indices, stream=stream)
    if head != "upernet":
        return FeatureMaps(backbone, indices=1, stream=stream)
    maps = FeatureMaps(backbone, stream=stream)
    strides = {stage.stride for stage in backbone.stages(maps.stream)}
    if len(maps.indices) == len(SCALES) or len(strides) > 1:
        return maps
    # A stream of fewer stages gives some of them twice.
    depth = len(backbone.stages(maps.stream))
    spread = [-(-(i + 1) * depth // len(SCALES)) - 1 for i in range(len(SCALES))]
    return FeatureMaps(backbone, indices=spread, stream=stream)
