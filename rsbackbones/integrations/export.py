"""A model as one file that runs without this package: a program of torch.export, or ONNX.

The number of images (of a model that consumes series: and of dates), their height and width stay free.
Attention biases are whole tables in these files, so memory grows with the square of the patches.
"""

import json
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from rsbackbones.models.backbone import Backbone, unwrap_model
from rsbackbones.models.feature_maps import FeatureMaps
from rsbackbones.zoo.checkpoint_files import METADATA_KEY
from rsbackbones.zoo.saving import metadata, resolve_output

Method = Literal["forward", "forward_features"]


class _Named(nn.Module):
    """A model that returns a dictionary of tensors, by the names that files give them."""

    def __init__(self, model: Backbone | FeatureMaps, method: Method) -> None:
        super().__init__()
        self.model = model
        self.method = method

    def forward(self, images: dict[str, Tensor]) -> dict[str, Tensor]:
        if isinstance(self.model, FeatureMaps):
            return {f"maps_{i}": maps for i, maps in zip(self.model.indices, self.model(images), strict=True)}
        if self.method == "forward":
            return {"logits" if self.model.num_classes else "embedding": self.model(images)}
        features = self.model.forward_features(images)
        tokens = {f"tokens_{stream}": x for stream, x in features.tokens.items()}
        return tokens | {f"pooled_{stream}": x for stream, x in features.pooled.items()}


def export_program(model: Backbone | FeatureMaps, *, method: Method = "forward") -> ExportedProgram:
    """Return a model as a program of ``torch.export``, for images of all its sensors.

    ``program.module()(images)`` takes a dictionary by sensor, each [B, C, H, W], of a model that consumes
    series [B, T, C, H, W] with all dates present, and returns one of tensors: ``embedding`` [B, D], or
    ``logits`` [B, num_classes] of a model with a head. With ``method="forward_features"`` they are
    ``tokens_STREAM`` [B, N, D] and ``pooled_STREAM`` [B, D], and of a model that was built with
    ``features_only`` ``maps_INDEX`` [B, D, h, w], by index of the stage. H and W are multiples of
    ``Backbone.size_multiple``, or anything where the model pads; of more than one cell of the coarsest map,
    as torch.export tells one from many.

    Raises:
        ValueError: an unknown method, or ``forward_features`` of a model that gives maps only.
    """
    images, backbone = _example(model), unwrap_model(model)
    multiple = backbone.size_multiple
    unit = next(iter(images.values())).shape[-2] // 2
    if backbone.pad or multiple == 1:
        height, width = Dim("height", min=unit + 1), Dim("width", min=unit + 1)
    else:
        height, width = multiple * Dim("rows", min=2), multiple * Dim("columns", min=2)
    free: dict[int, Any] = {0: Dim("batch"), 2: height, 3: width}
    if backbone.consumes == "series":
        free = {0: Dim("batch"), 1: Dim("dates"), 3: height, 4: width}
    shapes: Any = (dict.fromkeys(images, free),)
    with torch.no_grad():
        return torch.export.export(_named(model, method), (images,), dynamic_shapes=shapes)


def export_onnx(model: Backbone | FeatureMaps, path: str | Path, *, method: Method = "forward") -> Path:
    """Write a model to an ONNX file, for images of all its sensors.

    Its inputs are named as the sensors, its outputs as those of :func:`export_program`. Its metadata says
    under ``rsbackbones``, in JSON, what the model is and which bands and values it takes. Weights of more
    than 2 GB lie beside it, in ``NAME.onnx.data``.

    Raises:
        ImportError: the extra ``onnx`` is not installed.
        ValueError: the path is no ``.onnx``, or as for :func:`export_program`.
    """
    path = resolve_output(path, (".onnx",))
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("ONNX needs more packages: pip install 'rsbackbones[onnx]'") from error
    images = _example(model)
    with torch.no_grad():
        outputs = list(_named(model, method)(images))
    program = export_program(model, method=method)
    file = torch.onnx.export(
        program, dynamo=True, input_names=list(images), output_names=outputs, verbose=False
    )
    assert file is not None
    file.model.metadata_props[METADATA_KEY] = json.dumps(metadata(unwrap_model(model)))
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        file.save(Path(folder) / path.name)
        for part in sorted(Path(folder).iterdir(), reverse=True):  # the file itself after its data
            part.replace(path.with_name(part.name))
    return path


def _named(model: Backbone | FeatureMaps, method: Method) -> _Named:
    if method not in ("forward", "forward_features"):
        raise ValueError(f"method must be forward or forward_features, got {method!r}")
    if isinstance(model, FeatureMaps) and method != "forward":
        raise ValueError("a features_only model gives maps only: leave out method, or features_only")
    return _Named(model, method)


def _example(model: Backbone | FeatureMaps) -> dict[str, Tensor]:
    """Images of all sensors that the model needs: other sizes than 0 and 1, which are not generalized."""
    backbone = unwrap_model(model)
    sensors = backbone.stream_inputs[model.stream] if isinstance(model, FeatureMaps) else backbone.modalities
    return {m: x for m, x in backbone.example_inputs().images.items() if m in sensors}
