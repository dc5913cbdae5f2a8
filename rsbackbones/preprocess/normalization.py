"""The rules by which values in the unit of the contract become the model's input."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from rsbackbones.input_spec import BandNumbers, InputSpec
from rsbackbones.sensors import Sensor

RULES = ("clip_2sd", "scale", "standard", "imagenet", "none")


def normalize(
    x: Tensor, spec: InputSpec, modality: str, *, batch_statistics: bool, counted: Tensor | None
) -> Tensor:
    """Normalize [..., C, H, W] by the rule of the contract.

    ``counted``: [..., H, W], False for pixels that do not count in batch statistics.
    """
    if spec.normalize == "none":
        return x
    if spec.normalize != "clip_2sd":
        mean, std = (torch.tensor(n, device=x.device).view(-1, 1, 1) for n in (spec.mean, spec.std))
        if spec.normalize == "imagenet":
            x = _picture(spec, x)
        x = (x - mean) / std
        return x.clamp(0, 1) if spec.clip else x
    if batch_statistics:
        flat = x.movedim(-3, 0)
        flat = flat.flatten(1) if counted is None else flat[:, counted]
        mean, std = flat.mean(1), flat.std(1)
        if flat.shape[1] < 2 or bool((std == 0).any()):
            constant = [b for b, s in zip(spec.bands, std.tolist(), strict=True) if not s > 0]
            raise ValueError(
                f"{modality}: band {', '.join(constant)} is constant, so it has no batch statistics; "
                "use statistics='dataset'"
            )
    else:
        mean = torch.tensor(spec.mean, device=x.device)
        std = torch.tensor(spec.std, device=x.device)
    mean, std = mean.view(-1, 1, 1), std.view(-1, 1, 1)
    low, high = mean - 2 * std, mean + 2 * std
    x = (x - low) / (high - low)
    if spec.eight_bit:
        return (x * 255).clamp(0, 255).to(torch.uint8).to(torch.float32) / 255
    return x.clamp(0, 1)


def _picture(spec: InputSpec, x: Tensor) -> Tensor:
    """Return 8-bit values as [0, 1], stretched where the contract has a stretch."""
    if not spec.stretch:
        return x / 255
    low, high = (
        torch.tensor(side, device=x.device).view(-1, 1, 1) for side in zip(*spec.stretch, strict=True)
    )
    x = ((x - low) / (high - low)).clamp(0, 1)
    return (x * 255).floor() / 255 if spec.eight_bit else x


def contract_for_bands(
    modality: str,
    sensor: Sensor,
    spec: InputSpec,
    bands: tuple[str, ...],
    own: Mapping[str, tuple[float, float]],
    eight_bit: bool | None,
    batch: bool,
) -> InputSpec:
    """Return the contract for the model's bands, with the user's statistics if passed."""
    if spec.normalize not in RULES:
        raise ValueError(
            f"{modality}: unknown normalization rule {spec.normalize!r}; known: {', '.join(RULES)}"
        )
    if batch and spec.normalize != "clip_2sd":
        raise ValueError(
            f"{modality}: statistics='batch' is for the rule clip_2sd; these weights have {spec.normalize}"
        )
    known = spec.rows
    for name, (mean, std) in own.items():
        band = sensor.band(name).name
        if band not in bands or not std > 0:
            raise ValueError(
                f"{modality}: statistics of {band}: ({mean}, {std}); expected a band of the model "
                f"({', '.join(bands)}) and a positive standard deviation"
            )
        known[band] = replace(known[band], mean=mean, std=std) if band in known else BandNumbers(mean, std)
    known = dict.fromkeys(spec.unused_bands, BandNumbers(0.0, 1.0)) | known  # their weights are zero
    if (lacking := [b for b in bands if b not in known]) and not batch and spec.normalize != "none":
        raise ValueError(
            f"{modality}: no statistics for {', '.join(lacking)}; pass them, measured on your data: "
            f"statistics={{'{modality}': {{'{lacking[0]}': (mean, std)}}}}"
        )
    chosen = spec.with_rows({band: known.get(band, BandNumbers(0.0, 1.0)) for band in bands})
    return replace(chosen, eight_bit=spec.eight_bit if eight_bit is None else eight_bit)
