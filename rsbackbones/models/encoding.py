"""What :meth:`Backbone.encode` takes and returns, and the steps around it that all networks share.

These are padding, the dates of a series, missing images and pixels, and the check that maps have the stated
shapes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from rsbackbones.models.validity import Validity, fill_invalid, pad_to_multiple, pool_valid

if TYPE_CHECKING:
    from rsbackbones.models.backbone import Backbone


class Stage(NamedTuple):
    """A feature map that can be requested: its channels, its stride in pixels, and the module that outputs
    it.
    """

    channels: int
    stride: int
    module: str


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The inputs of :meth:`Backbone.encode`.

    Attributes:
        images: by modality, [B, C, H, W], or [B, T, C, H, W] for a model that consumes series. All are on one
            grid, and H and W are multiples of ``size_multiple`` and at least ``min_size``.
        valid: by modality, a mask [B] ([B, T] for series), False for missing images. These are zero-filled
            and must not affect the features of other images. Modalities that are not in the mapping are
            complete.
        dates: by modality, days since 1970-01-01, [B, T], for a model that consumes series, if they are
            known. T may differ between modalities.
        size: height and width of the images before they were padded; ``None``: they were not.
    """

    images: dict[str, Tensor]
    valid: Mapping[str, Tensor] = field(default_factory=dict)
    dates: Mapping[str, Tensor] = field(default_factory=dict)
    size: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Outputs requested from :meth:`Backbone.encode`, in addition to the final maps and embeddings.

    Attributes:
        stages: by stream, the indices of the requested stages.
        norm: apply the final norm of the stream to their maps.
        by_date: of a model that consumes series, maps before the mean over time, [B, t, D_i, h_i, w_i]. Those
            of a stage that keeps the dates have them first, then dates that are not there (t may exceed T).
    """

    stages: Mapping[str, Sequence[int]] = field(default_factory=dict)
    norm: bool = False
    by_date: bool = False


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """The outputs of :meth:`Backbone.encode` for one stream.

    Attributes:
        features: the final map, [B, D, h, w], with the stride of :meth:`Backbone.final`.
        pooled: the embedding, [B, D].
        maps: the requested maps by stage index, [B, D_i, h_i, w_i].
        series: tokens per date, [B, t, N, D], if the model consumes series and has them; t is T or less.
        series_valid: [B, t], which of them are there, if they are not those of the images.
        prefix: class tokens, [B, P, D], if the model has them.
    """

    features: Tensor
    pooled: Tensor
    maps: dict[int, Tensor] = field(default_factory=dict)
    series: Tensor | None = None
    series_valid: Tensor | None = None
    prefix: Tensor | None = None


def encode_validated(
    model: "Backbone",
    images: Mapping[str, Tensor],
    valid: Mapping[str, Tensor],
    wanted: Wanted,
    *,
    dates: Mapping[str, Tensor] = MappingProxyType({}),
    temporal: bool = False,
) -> tuple[dict[str, Encoded], dict[str, Validity]]:
    """Fill invalid pixels, pad, fold dates into the batch (unless the model consumes series), and encode.

    Args:
        images, valid, dates: from :func:`validate_inputs`.
        wanted: requested maps of single stages.
        temporal: as for :meth:`Backbone.forward_features`.

    Returns:
        The features by stream, with a T axis if dates were folded, and what counts in them. Maps are finite
        in cells that do not count; embeddings and tokens per date are NaN.

    Raises:
        ValueError: ``temporal`` without a series, or for a model of single images that cannot fuse dates.
    """
    first = next(iter(images.values()))
    size, is_series = (first.shape[-2], first.shape[-1]), first.ndim == 5
    if temporal and not is_series:
        raise ValueError(
            f"temporal=True fuses the dates of a series [B, T, C, H, W]; got {list(first.shape)}"
        )
    pixels = {m: mask for m, mask in valid.items() if mask.ndim == first.ndim - 1}
    valid = _by_image(valid, pixels, is_series)
    images = {m: _filled(model, m, x, valid.get(m), pixels.get(m)) for m, x in images.items()}
    images = {m: _padded(model, x) for m, x in images.items()}
    unpadded = size if model.pad else None
    if valid and model.training and any(isinstance(m, _BatchNorm) and m.training for m in model.modules()):
        raise ValueError(
            "missing images would be part of the statistics of BatchNorm: train this model on images "
            "that are all there (valid=None), or with its BatchNorm in eval() mode"
        )
    batch = None
    if model.consumes == "series":
        images = images if is_series else {m: x[:, None] for m, x in images.items()}
        streams = model.encode(Inputs(images=images, valid=valid, dates=dates, size=unpadded), wanted)
        # Streams that state which of their tokens are there may join series of different lengths.
        dated = [s for s, e in streams.items() if e.series_valid is None or wanted.by_date]
        by_date = _present(model, valid, dated)
        present = _present(model, {m: mask.any(dim=1) for m, mask in valid.items()}, streams)
        pixels = {m: mask.any(dim=1) if is_series else mask for m, mask in pixels.items()}
    elif is_series:
        batch = (first.shape[0], first.shape[1])
        folded = {m: x.flatten(0, 1) for m, x in images.items()}
        masks = {m: mask.flatten() for m, mask in valid.items()}
        streams = model.encode(Inputs(images=folded, valid=masks, size=unpadded), wanted)
        if temporal:
            streams = model.fuse_dates(streams, batch, valid, next(iter(dates.values()), None))
        present = by_date = _present(model, valid, streams)
    else:
        streams = model.encode(Inputs(images=images, size=unpadded), wanted)
        present = by_date = {}
    seen = _present(model, pixels, streams)
    counted = {
        s: Validity(present=present.get(s), by_date=by_date.get(s), pixels=seen.get(s)) for s in streams
    }
    return {s: _finished(model, s, x, size, batch, counted[s]) for s, x in streams.items()}, counted


def _by_image(
    valid: Mapping[str, Tensor], pixels: Mapping[str, Tensor], is_series: bool
) -> dict[str, Tensor]:
    """Return masks of whole images, [B, T]: those given, and those of images without one valid pixel."""
    masks = {m: mask for m, mask in valid.items() if m not in pixels}
    for m, mask in pixels.items() if is_series else ():
        there = mask.flatten(-2).any(dim=-1)
        if torch.compiler.is_compiling() or not there.all():  # a mask that hides nothing changes nothing
            masks[m] = there
    return masks


def _padded(model: "Backbone", image: Tensor) -> Tensor:
    """Pad [..., H, W] to multiples of ``size_multiple``; see ``pad``."""
    return pad_to_multiple(image, model.size_multiple) if model.pad else image


def _present(model: "Backbone", valid: Mapping[str, Tensor], streams: Iterable[str]) -> dict[str, Tensor]:
    """Return masks by stream, True where all of its modalities are valid. Complete streams have no
    mask.
    """
    masks = {s: [valid[m] for m in model.stream_inputs[s] if m in valid] for s in streams}
    return {s: torch.stack(of_sensors).all(0) for s, of_sensors in masks.items() if of_sensors}


def _finished(
    model: "Backbone",
    stream: str,
    encoded: Encoded,
    size: tuple[int, int],
    batch: tuple[int, int] | None,
    valid: Validity,
) -> Encoded:
    """Crop maps to the cells that cover the images, unfold dates, and pool the cells that count."""
    stages = model.stages(stream)

    def unfolded(x: Tensor) -> Tensor:
        return x if batch is None else x.unflatten(0, batch)

    def cropped(x: Tensor, stride: int) -> Tensor:
        if model.pad and model.size_multiple not in (1, stride):
            for dim, length in zip((-2, -1), size, strict=True):
                # Gathered, not sliced: a traced program cannot tell that a slice lies within the map.
                x = x.index_select(dim, torch.arange(_ceil_div(length, stride), device=x.device))
        return unfolded(x)

    def hidden(x: Tensor, there: Tensor | None) -> Tensor:
        x = unfolded(x)
        if there is None:
            return x
        return x.masked_fill(~there.view(*there.shape, *[1] * (x.ndim - there.ndim)), float("nan"))

    if not torch.compiler.is_compiling():
        for i, x in ((model.final_stage(stream), encoded.features), *encoded.maps.items()):
            _check_map(model, stages[i], x, size)
    stride = model.final(stream).stride
    by_date = valid.by_date if encoded.series_valid is None else encoded.series_valid
    there = valid.images(stride)
    pooled = pool_valid(model, stream, unfolded(encoded.features), unfolded(encoded.pooled), valid)
    if there is not None:
        pooled = pooled.masked_fill(~there[..., None], float("nan"))
    return replace(
        encoded,
        features=cropped(encoded.features, stride),
        pooled=pooled,
        maps={i: cropped(x, stages[i].stride) for i, x in encoded.maps.items()},
        series=None if encoded.series is None else hidden(encoded.series, by_date),
        prefix=None if encoded.prefix is None else hidden(encoded.prefix, there),
    )


def _check_map(model: "Backbone", stage: Stage, x: Tensor, size: tuple[int, int]) -> None:
    """Compare a map with what its stage states: maps of another size would be used at wrong places."""
    unit = model.size_multiple if model.pad else 1
    sides = [_ceil_div(_ceil_div(n, unit) * unit, stage.stride) for n in size]
    if list(x.shape[-3:]) != [stage.channels, *sides]:
        raise ValueError(
            f"{type(model).__name__}.encode gave a map {list(x.shape[-3:])} for {stage.module}, and its "
            f"stage states [{stage.channels}, {sides[0]}, {sides[1]}] for {size[0]} x {size[1]} pixels: "
            "a map of stride s has ceil(H / s) x ceil(W / s) cells, and size_multiple says which "
            "sizes are served"
        )


def _filled(
    model: "Backbone", modality: str, x: Tensor, valid: Tensor | None, pixels: Tensor | None
) -> Tensor:
    """Replace invalid pixels by the mean of their band, and the missing images of a series by zeros.

    Their values (often NaN) must affect neither the features nor the gradients.
    """
    if pixels is not None:
        spec = getattr(model, "inputs", {}).get(modality)
        x = fill_invalid(x, pixels, spec.normalize if spec else None)
    return x if valid is None else x.masked_fill(~valid[..., None, None, None], 0)


def _ceil_div(length: int, unit: int) -> int:
    # Without negative numbers, whose division ONNX rounds towards zero.
    return (length + unit - 1) // unit
