"""Checks of a backbone's inputs. Errors state the given value, the expected one, and the fix."""

from collections.abc import Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from rsbackbones.models.series_arguments import Dates, Masks, dates_by_modality, masks_by_modality
from rsbackbones.sensors import get_sensor

if TYPE_CHECKING:
    from rsbackbones.models.backbone import Backbone, Images


def validate_inputs(
    model: "Backbone", x: "Images", dates: Dates | None, valid: Masks | None
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Check the arguments of :meth:`Backbone.forward_features`. Return images, masks and days by modality.

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
    _check_agreement(model, images)
    first = next(iter(images.values()))
    check_bfloat16(model, first)
    if isinstance(dates, Mapping) and model.consumes == "image":
        raise ValueError(
            "dates by modality are for models that consume series; this one takes one date per timestep of "
            "all modalities, [B, T]"
        )
    days = dates_by_modality(dates, images)
    masks = masks_by_modality(valid, tuple(images), first.device)
    for m, mask in masks.items():
        _check_mask(images, m, mask)
    # On an accelerator the answer is waited for, which training cannot afford: there NaN stays NaN.
    afforded = first.device.type == "cpu" or not (model.training or first.is_meta)
    if afforded and not torch.compiler.is_compiling():
        for m, image in images.items():
            _check_finite(m, image, masks.get(m))
    return images, masks, days


def _check_agreement(model: "Backbone", images: Mapping[str, Tensor]) -> None:
    """Check that modalities have one batch and one grid, and dates that a model of single images can pair."""
    lengths = slice(2, -3) if model.consumes == "series" else slice(1, -3)
    shapes = [(len(x.shape), x.shape[0], *x.shape[lengths], *x.shape[-2:]) for x in images.values()]
    # Not a set: it would specialize a traced program to these shapes.
    if any(shape != shapes[0] for shape in shapes[1:]):
        what = "batch" if model.consumes == "series" else "batch, dates"
        raise ValueError(
            f"modalities must agree on {what} and size in pixels, got "
            + ", ".join(f"{m} {tuple(images[m].shape)}" for m in images)
            + "; resample them onto one grid"
        )


def _check_finite(modality: str, image: Tensor, mask: Tensor | None) -> None:
    """Refuse NaN where it counts, as of pixels that ``create_preprocess`` was told do not count."""
    missing = image.isnan().any(dim=-3)
    if mask is not None:
        missing = missing & (mask if mask.ndim == missing.ndim else mask[..., None, None])
    if missing.any():
        raise ValueError(
            f"{modality}: {int(missing.sum())} of {missing.numel()} pixels are NaN and would count. The "
            "preprocessing makes NaN of pixels that its mask leaves out: pass the model the same mask, "
            "model(preprocess(x, valid=valid), valid=valid); or fill them"
        )


def _check_mask(images: Mapping[str, Tensor], modality: str, mask: Tensor) -> None:
    """Check that a mask is one of images, [B, T], or of pixels, [B, H, W] or [B, T, H, W]."""
    if modality not in images:
        raise ValueError(f"valid[{modality!r}]: no such modality among the images: {', '.join(images)}")
    shape = images[modality].shape
    pixels = [*shape[:-3], *shape[-2:]]
    if list(mask.shape) != pixels and (len(shape) == 4 or list(mask.shape) != list(shape[:2])):
        one = f"[B, H, W] = {pixels}"
        series = f"[B, T] = {list(shape[:2])} for missing images, or [B, T, H, W] = {pixels}"
        raise ValueError(
            f"valid[{modality!r}] must be booleans {one if len(shape) == 4 else series}, got "
            f"{list(mask.shape)} for images {list(shape)}"
        )


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
        up = (-(-height // p) * p, -(-width // p) * p)
        resized = f"resize to {up[0]} x {up[1]} (image_size={up[0] if up[0] == up[1] else up})"
        raise ValueError(
            f"{modality}: {height} x {width} pixels are not a multiple of {p}, as this model needs; "
            f"{cropped if min(height, width) >= p else 'enlarge them'}, {resized}, or have them padded: "
            "create_model(..., pad=True); in a recipe of fine-tuning pad=true"
        )
    if not image.is_floating_point():
        raise ValueError(
            f"{modality}: got {image.dtype}, expected normalized floats; convert raw values with "
            "rsbackbones.create_preprocess(model)"
        )
    device, dtype = model.device_and_dtype(modality)
    if image.device != device:
        raise ValueError(
            f"{modality}: got an image on {image.device}, the model is on {device}; move one of "
            f"them (x.to({str(device)!r}))"
        )
    # Autocast converts all floating-point dtypes except float64.
    if image.dtype != dtype and (
        image.dtype == torch.float64 or not torch.is_autocast_enabled(image.device.type)
    ):
        raise ValueError(
            f"{modality}: got {image.dtype}, the model's parameters are {dtype}; convert one "
            f"of them (x.to({dtype}))"
        )
    return image


def check_bfloat16(model: "Backbone", image: Tensor) -> None:
    """Refuse convolutions in bfloat16 where the CPU computes them wrongly.

    Raises:
        ValueError: ``model`` convolves, and ``image`` or autocast on its device is bfloat16.
    """
    if torch.compiler.is_compiling() or image.device.type != "cpu":
        return
    autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    if not (autocast or image.dtype == torch.bfloat16) or _convolves_in_bfloat16():
        return
    if any(isinstance(module, _ConvNd) for module in model.modules()):
        raise ValueError(
            f"torch {torch.__version__} computes convolutions in bfloat16 wrongly on this CPU (oneDNN, with "
            "AMX): set ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 before Python starts, or use float32"
        )


@cache
def _convolves_in_bfloat16() -> bool:
    """Return whether convolutions of patches and of series in bfloat16 are right, up to rounding."""
    generator = torch.Generator().manual_seed(0)
    patches: Any = partial(F.conv2d, stride=16)
    series: Any = partial(F.conv3d, padding=1)
    shapes = {patches: ((1, 12, 64, 64), (96, 12, 16, 16)), series: ((1, 12, 1, 16, 16), (32, 12, 3, 3, 3))}
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        for convolve, (image, kernel) in shapes.items():
            x, w = (torch.rand(shape, generator=generator) - 0.5 for shape in (image, kernel))
            exact, rounded = convolve(x, w), convolve(x.bfloat16(), w.bfloat16()).float()
            if not (rounded - exact).abs().max() < 0.1 * exact.abs().max():
                return False
    return True


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
