"""Export a model to run without this package: as a torch.export program, or as ONNX.

The batch size, height and width are dynamic, and the number of dates for a model that consumes series.
Exported ViTs build the full table of their attention bias, so memory grows with the square of the number of
patches.
"""

import json
import math
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from rsbackbones.layers.tracing import SINCE_2_7
from rsbackbones.models.backbone import Backbone, unwrap_model
from rsbackbones.models.feature_maps import FeatureMaps
from rsbackbones.zoo.checkpoint_files import METADATA_KEY
from rsbackbones.zoo.saving import metadata, resolve_output

Method = Literal["forward", "forward_features"]


class _Named(nn.Module):
    """Wraps a model to return a dictionary of tensors, by output name."""

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
        maps = {f"maps_{stream}": x for stream, x in features.feature_maps.items()}
        return maps | {f"pooled_{stream}": x for stream, x in features.pooled.items()}


def export_program(model: Backbone | FeatureMaps, *, method: Method = "forward") -> ExportedProgram:
    """Return a model as a ``torch.export`` program for images of all its modalities.

    ``program.module()(images)`` takes a dictionary by modality, each [B, C, H, W]; for a model that consumes
    series [B, T, C, H, W], with all dates present. It returns a dictionary of tensors:

    - ``embedding`` [B, D], or ``logits`` [B, num_classes] for a model with a head;
    - with ``method="forward_features"``: ``maps_STREAM`` [B, D, h, w] and ``pooled_STREAM`` [B, D];
    - for a model built with ``features_only``: ``maps_INDEX`` [B, D_i, h_i, w_i], by stage index.

    H and W are multiples of ``Backbone.size_multiple`` (any size if the model pads) and at least
    ``Backbone.min_size``. They span more than one cell of the coarsest map, and a series more dates than
    ``Backbone.date_stride``, because torch.export specializes programs to sizes of 1.

    Raises:
        ValueError: the method is unknown, or ``forward_features`` is requested from a ``features_only``
        model.
        ImportError: torch is older than 2.7.
    """
    if not SINCE_2_7:
        raise ImportError(
            f"export needs torch 2.7 or newer, found {torch.__version__}: pip install 'rsbackbones[onnx]'"
        )
    images, backbone = _example(model), unwrap_model(model)
    multiple = backbone.size_multiple
    unit = next(iter(images.values())).shape[-2] // 2
    if backbone.pad or multiple == 1:
        least = max(unit + 1, backbone.min_size)
        height, width = Dim("height", min=least), Dim("width", min=least)
    else:
        least = max(2, math.ceil(backbone.min_size / multiple))
        height, width = multiple * Dim("rows", min=least), multiple * Dim("columns", min=least)
    free: dict[int, Any] = {0: Dim("batch"), 2: height, 3: width}
    if backbone.consumes == "series":
        dates = Dim("dates", min=max(2, backbone.date_stride + 1))
        free = {0: Dim("batch"), 1: dates, 3: height, 4: width}
    shapes: Any = (dict.fromkeys(images, free),)
    with torch.no_grad():
        return torch.export.export(_named(model, method), (images,), dynamic_shapes=shapes)


def export_onnx(model: Backbone | FeatureMaps, path: str | Path, *, method: Method = "forward") -> Path:
    """Write a model to an ONNX file, for images of all its modalities.

    Inputs have the names of the modalities, outputs those of :func:`export_program`. The metadata entry
    ``rsbackbones`` (JSON) has the configuration, the bands and the input contract. Weights of more than 2 GB
    are stored in a second file, ``NAME.onnx.data``.

    Raises:
        ImportError: the extra ``onnx`` is not installed.
        ValueError: the path does not end in ``.onnx``, or as for :func:`export_program`.
    """
    path = resolve_output(path, (".onnx",))
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("ONNX export requires more packages: pip install 'rsbackbones[onnx]'") from error
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
        for part in sorted(Path(folder).iterdir(), reverse=True):  # the data first
            part.replace(path.with_name(part.name))
    return path


def _named(model: Backbone | FeatureMaps, method: Method) -> _Named:
    if method not in ("forward", "forward_features"):
        raise ValueError(f"method must be forward or forward_features, got {method!r}")
    if isinstance(model, FeatureMaps) and method != "forward":
        raise ValueError(
            f"a features_only model has no method {method}: leave out method=, or features_only="
        )
    return _Named(model, method)


def _example(model: Backbone | FeatureMaps) -> dict[str, Tensor]:
    """Return example images of the modalities that the model requires."""
    backbone = unwrap_model(model)
    sensors = backbone.stream_inputs[model.stream] if isinstance(model, FeatureMaps) else backbone.modalities
    return {m: x for m, x in backbone.example_inputs().images.items() if m in sensors}
