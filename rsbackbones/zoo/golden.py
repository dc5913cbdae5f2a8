"""Golden activations: reference features of a fixed input, to detect changes by a port or a library upgrade.

The input is computed arithmetically, not randomly, so that it does not depend on library versions.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rsbackbones.models.backbone import Backbone

TOLERANCE = 1e-4
_DATES = 3


def golden_input(model: Backbone, size: tuple[int, int]) -> dict[str, Tensor]:
    """Return images in [0, 1] for every sensor of the model, [1, C, H, W], textured in 256 steps.

    A model that consumes series gets three dates, [1, 3, C, H, W], with different textures.
    """
    height, width = size
    images = {}
    for modality, bands in model.bands.items():
        band = torch.arange(len(bands)).view(-1, 1, 1)
        row, column = torch.arange(height).view(1, -1, 1), torch.arange(width).view(1, 1, -1)
        texture = row * 7 + column * 13 + band * 29 + (row // 8) * (column // 8) * 31
        if model.consumes == "series":
            texture = texture + 17 * torch.arange(_DATES).view(-1, 1, 1, 1)
        images[modality] = (texture % 256 / 255.0)[None]
    return images


def compute_golden(model: Backbone, size: tuple[int, int]) -> dict[str, Any]:
    """Return the golden record for the manifest: a few numbers from the features of every stream.

    Of a stream with a decoder also the means of its last map.
    """
    images = model.as_input(golden_input(model, size))
    with torch.inference_mode():
        features = model.forward_features(images)
    streams: dict[str, dict[str, Any]] = {
        stream: {
            "pooled": _round(features.pooled[stream][0, :8]),
            "first_token": _round(tokens[0, 0, :8]),
            "last_token": _round(tokens[0, -1, :8]),
            "mean_abs": _round(tokens.abs().mean()[None])[0],
        }
        for stream, tokens in features.tokens.items()
    }
    for stream, numbers in streams.items():
        if len(model.stages(stream)) > len(model.encoder_stages(stream)):
            with torch.inference_mode():
                (decoded,) = model.forward_intermediates(images, [-1], stream=stream)
            numbers["decoded"] = _round(decoded[0, :8].mean(dim=(-2, -1)))
    return {"size": list(size), "tolerance": TOLERANCE, "streams": streams}


def _round(x: Tensor) -> list[float]:
    return [round(float(value), 6) for value in x]


def compare_golden(model: Backbone, golden: Mapping[str, Any]) -> list[str]:
    """Return the differences beyond the tolerance, one line each; an empty list if the features agree.

    Streams that the model was built without are not compared.
    """
    height, width = golden["size"]
    found = compute_golden(model, (height, width))["streams"]
    problems = []
    for stream, numbers in found.items():
        for what, values in golden["streams"][stream].items():
            computed, expected = torch.tensor(numbers[what]), torch.tensor(values)
            difference = float((computed - expected).abs().max())
            if not difference <= golden["tolerance"]:
                problems.append(f"{stream} {what}: differs by {difference:.3g}")
    return problems
