"""Checks of a backbone's inputs. Errors state the given value, the expected one, and the fix."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rsbackbones.arrays import to_mask
from rsbackbones.sensors import get_sensor

if TYPE_CHECKING:
    from rsbackbones.models.backbone import Backbone, Images


def validate_inputs(
    model: "Backbone", x: "Images", dates: Tensor | None, valid: Mapping[str, Tensor] | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Check the arguments of :meth:`Backbone.forward_features`. Return images and masks by modality.

    Raises:
        ValueError: the model does not accept a modality, number of bands, size, dtype, device or shape.
    """
    if isinstance(x, Tensor):
        if len(model.modalities) > 1:
            raise ValueError(
                f"this model takes {' and '.join(model.modalities)}: pass a mapping by modality, as in "
                f"model({{'{model.modalities[0]}': x}})"
            )
        x = {model.modalities[0]: x}
    if not isinstance(x, Mapping):
        raise ValueError(_not_a_tensor("the model", x))
    unknown = [m for m in x if m not in model.modalities]
    if unknown or not x:
        raise ValueError(
            f"got {', '.join(map(repr, unknown)) or 'no modality'}; this model was built for "
            f"{', '.join(map(repr, model.modalities))}; to change that pass modalities= to create_model"
        )
    images = {m: _checked_image(model, m, x[m]) for m in model.modalities if m in x}
    shapes = [(*image.shape[:-3], *image.shape[-2:]) for image in images.values()]
    # Not a set: it would specialize a traced program to these shapes.
    if any(shape != shapes[0] for shape in shapes[1:]):
        raise ValueError(
            "modalities must agree on batch, dates and size in pixels, got "
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
    return images, _checked_masks(images, valid)


def _checked_masks(images: Mapping[str, Tensor], valid: object) -> dict[str, Tensor]:
    """Return masks of images, [B, T], or of pixels, [B, H, W] or [B, T, H, W], as booleans by modality."""
    if valid is None:
        return {}
    if not isinstance(valid, Mapping):
        if len(images) > 1:
            raise ValueError(
                f"valid must be a mapping by modality, valid={{{next(iter(images))!r}: mask}}, got "
                f"{type(valid).__name__}"
            )
        valid = dict.fromkeys(images, valid)
    masks = {}
    for m, given in valid.items():
        if m not in images:
            raise ValueError(f"valid[{m!r}]: no such modality among the images: {', '.join(images)}")
        mask = to_mask(given, f"valid[{m!r}]").to(images[m].device)
        shape = images[m].shape
        pixels = [*shape[:-3], *shape[-2:]]
        if list(mask.shape) != pixels and (images[m].ndim == 4 or list(mask.shape) != list(shape[:2])):
            one = f"[B, H, W] = {pixels}"
            series = f"[B, T] = {list(shape[:2])} for missing images, or [B, T, H, W] = {pixels}"
            raise ValueError(
                f"valid[{m!r}] must be booleans {one if images[m].ndim == 4 else series}, got "
                f"{list(mask.shape)} for images {list(shape)}"
            )
        masks[m] = mask
    return masks


def _checked_image(model: "Backbone", modality: str, image: Tensor) -> Tensor:
    bands, p = model.bands[modality], model.size_multiple
    if not isinstance(image, Tensor):
        raise ValueError(_not_a_tensor(modality, image))
    if image.ndim not in (4, 5):
        raise ValueError(
            f"{modality}: expected [B, C, H, W] or a series [B, T, C, H, W], got "
            f"{list(image.shape)}; a single image needs a batch dimension, x[None]"
        )
    if image.shape[-3] != len(bands):
        hint = _channel_hint(modality, model.config.sensors[modality], image.shape[-3], bands)
        raise ValueError(
            f"{modality}: got {image.shape[-3]} channels, this model takes {len(bands)}: "
            f"{', '.join(bands)}. {hint}"
        )
    height, width = image.shape[-2:]
    if height < model.min_size or width < model.min_size:
        raise ValueError(
            f"{modality}: {height} x {width} pixels are too few, this model needs at least "
            f"{model.min_size} x {model.min_size}; use larger images, or interpolate them"
        )
    if not model.pad and (height % p or width % p):
        cropped = f"crop to {height // p * p} x {width // p * p}"
        raise ValueError(
            f"{modality}: {height} x {width} pixels are not a multiple of {p}, as this model needs; "
            f"{cropped if min(height, width) >= p else 'enlarge them'}, or have them padded: "
            "create_model(..., pad=True)"
        )
    if not image.is_floating_point():
        raise ValueError(
            f"{modality}: got {image.dtype}, expected normalized floats; convert raw values with "
            "rsbackbones.create_preprocess(model)"
        )
    weight = model.get_parameter(model.stem(modality).weight)
    if image.device != weight.device:
        raise ValueError(
            f"{modality}: got an image on {image.device}, the model is on {weight.device}; move one of "
            f"them (x.to({str(weight.device)!r}))"
        )
    # Autocast converts all floating-point dtypes except float64.
    if image.dtype != weight.dtype and (
        image.dtype == torch.float64 or not torch.is_autocast_enabled(image.device.type)
    ):
        raise ValueError(
            f"{modality}: got {image.dtype}, the model's parameters are {weight.dtype}; convert one "
            f"of them (x.to({weight.dtype}))"
        )
    return image


def _not_a_tensor(what: str, given: object) -> str:
    return (
        f"{what}: expected a tensor, or tensors by modality, got {type(given).__name__}; "
        "rsbackbones.create_preprocess(model) converts arrays"
    )


def _channel_hint(modality: str, sensor: str, channels: int, bands: tuple[str, ...]) -> str:
    every = tuple(band.name for band in get_sensor(sensor).bands)
    extra = [name for name in every if name not in bands]
    if channels == len(every) and extra:
        keep = [i for i, name in enumerate(every) if name in bands]
        return (
            f"{channels} channels look like all of {', '.join(every)}: drop {', '.join(extra)} "
            f"(x[:, {keep}]), or name your bands, and have them selected by "
            f"create_preprocess(model, bands={{'{modality}': (...)}})"
        )
    return (
        f"Name the channels you have, in order: create_model(..., bands={{'{modality}': (...)}}) adapts "
        f"the weights to them, create_preprocess(model, bands={{'{modality}': (...)}}) gathers them"
    )
