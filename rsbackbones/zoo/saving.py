"""Save a model: as native safetensors, or in a foreign checkpoint format. Files are written atomically."""

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rsbackbones.models.backbone import Backbone, unwrap_model
from rsbackbones.models.config import as_json
from rsbackbones.sensors import get_sensor
from rsbackbones.zoo import checkpoint_files as checkpoints
from rsbackbones.zoo.registry import find_architecture

# Weights are stored in one of these; loading refuses files of others.
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def save_model(model: Backbone | nn.Module, path: str | Path, *, dtype: torch.dtype = torch.float32) -> Path:
    """Write a model to a safetensors file. ``create_model(..., checkpoint=path)`` loads it.

    The file also holds the configuration, the bands, the input contract and the head. Wrappers
    (``torch.compile``, data parallelism, ``features_only``) are removed first.

    Args:
        model: from ``create_model``.
        path: a file that ends in ``.safetensors``.
        dtype: the dtype of the stored weights: float32, or float16 or bfloat16 for smaller files. Loading
            casts them back to float32. Integer and float64 buffers keep their dtype.

    Raises:
        ValueError: another suffix or dtype, a tensor holds NaN or infinity, or two tensors share memory.
    """
    path = resolve_output(path, (".safetensors",))
    if dtype not in _DTYPES:
        known = ", ".join(map(str, _DTYPES))
        raise ValueError(f"dtype must be one of {known}, got {dtype}")
    model = unwrap_model(model)
    stored = metadata(model) | {"dtype": str(dtype).removeprefix("torch.")}
    write_safetensors(model.state_dict(), path, dtype, {checkpoints.METADATA_KEY: json.dumps(stored)})
    return path


def metadata(model: Backbone) -> dict[str, Any]:
    """Return the configuration, bands and input contract of a model, for the metadata of a file."""
    entry = model.weights_entry
    return {
        "architecture": model.architecture,
        "config": as_json(model.config),
        "num_classes": model.num_classes,
        "input_size": model.input_size if model.num_classes else None,
        "inputs": {m: dataclasses.asdict(spec) for m, spec in model.inputs.items() if m in model.modalities},
        # The reader may have registered another sensor under the same name; wavelengths tell them apart.
        "wavelengths": {
            m: {name: get_sensor(model.config.sensors[m]).band(name).wavelength for name in model.bands[m]}
            for m in model.modalities
        },
        "weights": entry.id if entry else None,
    }


def save_in_format(model: Backbone | nn.Module, path: str | Path, format: str, *, flat: bool = False) -> Path:
    """Write a model's weights in a foreign checkpoint format, with ``torch.save``.

    Args:
        model: from ``create_model``; wrappers are removed.
        path: a file that ends in ``.pt``, ``.pth``, ``.bin`` or ``.ckpt``.
        format: a format of the model's family, such as ``croma_official``.
        flat: write one dictionary, even if the format nests its state dicts.

    Raises:
        ValueError: the format is unknown or cannot store the model (foreign formats have no head), the suffix
            is another one, or a tensor holds NaN or infinity.
    """
    path = resolve_output(path, checkpoints.PICKLE_SUFFIXES)
    model = unwrap_model(model)
    known = find_architecture(model.architecture).formats
    if format not in known:
        raise ValueError(f"unknown checkpoint format {format!r}; known: {', '.join(known)}")
    implied = known[format].implies
    if lost := [
        f"{name}={getattr(model.config, name)!r}"
        for name in implied
        if getattr(model.config, name) != implied[name]
    ]:
        raise ValueError(f"format {format} cannot store {', '.join(lost)}; use save_model")
    state = model.state_dict()
    _check_finite(state)
    names = known[format].from_native(state)
    renamed = {foreign: state[native].cpu() for native, foreign in names.items()}
    content: dict[str, Any] = renamed
    if known[format].nested and not flat:
        content = {}
        for name, tensor in renamed.items():
            part, _, rest = name.partition(".")
            content.setdefault(part, {})[rest] = tensor
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        part_file = Path(folder) / path.name
        torch.save(content, part_file)
        part_file.replace(path)
    return path


def write_safetensors(
    state: Mapping[str, Tensor], path: Path, dtype: torch.dtype, metadata: dict[str, str]
) -> None:
    """Write tensors to a safetensors file atomically.

    Floating-point tensors are cast to ``dtype``. Tensors in float64 are not cast if others have lower
    precision: they are buffers that need it.

    Raises:
        ValueError: a tensor holds NaN or infinity, or shares memory with another one.
    """
    from safetensors.torch import save_file

    memory = [t.untyped_storage().data_ptr() for t in state.values()]
    if shared := [n for n, t in state.items() if memory.count(t.untyped_storage().data_ptr()) > 1]:
        raise ValueError(
            f"refusing to write tensors that share memory: {', '.join(shared)}. Register a module or "
            "parameter that is used twice under one name only (a siamese network calls one backbone twice); "
            "for views of one tensor store clones"
        )
    floats = {t.dtype for t in state.values() if t.is_floating_point()}
    cast = floats if len(floats) == 1 else floats - {torch.float64}
    tensors = {
        name: (t.to(dtype) if t.dtype in cast else t).detach().cpu().contiguous() for name, t in state.items()
    }
    _check_finite(tensors)  # after the cast: half precision ends at 65504
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        part = Path(folder) / path.name
        save_file(tensors, part, metadata)
        part.chmod(0o644)
        part.replace(path)


def resolve_output(path: str | Path, suffixes: tuple[str, ...]) -> Path:
    """Return the path of an output file, with ``~`` expanded.

    Raises:
        ValueError: it has another suffix, or its folder does not exist.
    """
    path = Path(path).expanduser()
    if path.suffix not in suffixes:
        raise ValueError(f"expected a path that ends in {' or '.join(suffixes)}, got {path}")
    if not path.parent.is_dir():
        raise ValueError(f"the folder {path.parent} for {path.name} does not exist")
    return path


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    if bad := checkpoints.not_finite(tensors):
        raise ValueError(f"refusing to write NaN or infinity: {', '.join(bad)}")
