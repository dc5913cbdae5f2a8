"""From a model to a file: our own safetensors, or the layouts of others. Written whole or not at all."""

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


def save_model(model: Backbone | nn.Module, path: str | Path, *, dtype: torch.dtype = torch.float32) -> Path:
    """Write a model to a safetensors file that ``create_model(..., checkpoint=path)`` reads back.

    The file holds the configuration, the bands, the input contract and the head as well. A wrapper
    (``torch.compile``, data parallelism, ``features_only``) is taken off. ``dtype`` may be a half-precision
    type; the file says so, and reading casts back up.

    Raises:
        ValueError: the path is no ``.safetensors``, or a tensor holds NaN or infinity.
    """
    path = target_path(path, (".safetensors",))
    model = unwrap_model(model)
    said = description(model) | {"dtype": str(dtype).removeprefix("torch.")}
    write_safetensors(model.state_dict(), path, dtype, {checkpoints.METADATA_KEY: json.dumps(said)})
    return path


def description(model: Backbone) -> dict[str, Any]:
    """Say what a model is and what it takes, for the metadata of a file."""
    entry = model.weights_entry
    return {
        "architecture": model.architecture,
        "config": as_json(model.config),
        "num_classes": model.num_classes,
        "inputs": {m: dataclasses.asdict(spec) for m, spec in model.inputs.items() if m in model.modalities},
        # A sensor is known by its name only where it is registered, and there it may be another.
        "wavelengths": {
            m: {name: get_sensor(model.config.sensors[m]).band(name).wavelength for name in model.bands[m]}
            for m in model.modalities
        },
        "weights": entry.id if entry else None,
    }


def save_foreign(model: Backbone | nn.Module, path: str | Path, layout: str, *, flat: bool = False) -> Path:
    """Write a model's weights under the names of a foreign layout, as a ``torch.save`` file.

    A layout that nests its state dicts is written so, or with ``flat`` as one dictionary.

    Raises:
        ValueError: an unknown layout, a model with a head (foreign layouts have none), another suffix, or
            a tensor that holds NaN or infinity.
    """
    path = target_path(path, checkpoints.PICKLE_SUFFIXES)
    model = unwrap_model(model)
    known = find_architecture(model.architecture).layouts
    if layout not in known:
        raise ValueError(f"unknown layout {layout!r}; known: {', '.join(known)}")
    implied = known[layout].implies
    if lost := [
        f"{name}={getattr(model.config, name)!r}"
        for name in implied
        if getattr(model.config, name) != implied[name]
    ]:
        raise ValueError(f"a file of layout {layout} cannot say {', '.join(lost)}; use save_model")
    state = model.state_dict()
    _check_finite(state)
    renamed = {theirs: state[ours].cpu() for ours, theirs in known[layout].from_ours(state).items()}
    content: dict[str, Any] = renamed
    if known[layout].nested and not flat:
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
    """Write tensors to a safetensors file: to a temporary name, then renamed.

    Raises:
        ValueError: a tensor holds NaN or infinity, or shares its memory with another.
    """
    from safetensors.torch import save_file

    memory = [t.untyped_storage().data_ptr() for t in state.values()]
    if shared := [n for n, t in state.items() if memory.count(t.untyped_storage().data_ptr()) > 1]:
        raise ValueError(f"refusing to write tensors that share memory: {', '.join(shared)}")
    tensors = {
        name: (t.to(dtype) if t.is_floating_point() else t).detach().cpu().contiguous()
        for name, t in state.items()
    }
    _check_finite(tensors)  # after the cast: half precision ends at 65504
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        part = Path(folder) / path.name
        save_file(tensors, part, metadata)
        part.chmod(0o644)
        part.replace(path)


def target_path(path: str | Path, suffixes: tuple[str, ...]) -> Path:
    """Return a path to write to.

    Raises:
        ValueError: it has another suffix, or there is no such folder.
    """
    path = Path(path).expanduser()
    if path.suffix not in suffixes:
        raise ValueError(f"expected a path that ends in {' or '.join(suffixes)}, got {path}")
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent} to write {path.name} to")
    return path


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    if bad := checkpoints.not_finite(tensors):
        raise ValueError(f"refusing to write NaN or infinity: {', '.join(bad)}")
