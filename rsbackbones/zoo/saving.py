"""Save a model: as native safetensors, or in a foreign checkpoint format. Files are written atomically.

A model is compared with the one that loading would build, before anything is written: a file that could not
be read back, or that would give other features, is refused.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rsbackbones.files.atomic import atomic_path
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
    (``torch.compile``, data parallelism, ``features_only``) are removed first. A dense model is written with
    its decoder; :func:`rsbackbones.heads.load_dense_model` loads it, and ``create_model`` its backbone.

    Args:
        model: from ``create_model`` or ``rsbackbones.heads.dense_model``.
        path: a file that ends in ``.safetensors``.
        dtype: the dtype of the stored weights: float32, or float16 or bfloat16 for smaller files. Loading
            casts them back to float32. Integer and float64 buffers keep their dtype.

    Raises:
        ValueError: the model is not the network of its configuration (adapters, pruning, quantization, a head
            or decoder of your own), so that the file could not be read back; another suffix or dtype; a
            tensor holds NaN or infinity; or two tensors share memory.
    """
    path = resolve_output(path, (".safetensors",))
    if dtype not in _DTYPES:
        known = ", ".join(map(str, _DTYPES))
        raise ValueError(f"dtype must be one of {known}, got {dtype}")
    dense, backbone = find_dense(model), unwrap_model(model)
    state, stored = checked_state(backbone), metadata(backbone) | {"dtype": str(dtype).removeprefix("torch.")}
    if dense is not None:
        if not isinstance(dense.backbone, Backbone):
            raise ValueError(
                "only a dense model on a backbone of create_model can be written, this one is on a "
                f"{type(dense.backbone).__name__}; torch.save its state_dict()"
            )
        with torch.device("meta"):
            fresh = dense.build_head()
        _check_same_network(dense.head, fresh, "decoder", "of rsbackbones.heads.dense_model(...)")
        stored["dense"] = dict(dense.options)
        state |= {checkpoints.DENSE_PREFIX + name: t for name, t in dense.head.state_dict().items()}
    elif others := _parameters_beside(model, backbone):
        raise ValueError(
            f"{type(model).__name__} has parameters beside its backbone ({', '.join(others[:4])}"
            f"{', ...' if len(others) > 4 else ''}), which the file would not hold: save the backbone alone, "
            "save_model(model.backbone, ...), and the rest by torch.save; a dense model: build it with "
            "rsbackbones.heads.dense_model"
        )
    write_safetensors(state, path, dtype, {checkpoints.METADATA_KEY: json.dumps(stored)})
    return path


def find_dense(model: Any) -> Any:
    """Return the dense model (of ``rsbackbones.heads``) within the wrappers of a model, or ``None``."""
    while model is not None and not isinstance(model, Backbone):
        if hasattr(model, "build_head"):
            return model
        inner = (getattr(model, name, None) for name in ("_orig_mod", "module"))
        model = next((module for module in inner if module is not None), None)
    return None


def checked_state(model: Backbone) -> dict[str, Any]:
    """Return the state of a model, after comparing it with the network that ``create_model`` builds.

    Raises:
        ValueError: they differ.
    """
    build = find_architecture(model.architecture).family.build
    with torch.device("meta"):
        fresh = build(model.config, num_classes=model.num_classes)
    _check_same_network(model, fresh, "model", f"that create_model builds for {model.architecture}")
    state: dict[str, Any] = model.state_dict()
    return state


def _check_same_network(model: nn.Module, fresh: nn.Module, name: str, built: str) -> None:
    """Compare tensors and kinds of modules with those of a newly built network."""
    state, expected = model.state_dict(), fresh.state_dict()
    others = [n for n, value in state.items() if n not in expected or not isinstance(value, Tensor)]
    lacking = [n for n in expected if n not in state]
    shapes = [n for n in expected if n in state and n not in others and state[n].shape != expected[n].shape]
    kinds = {n: _kind(module) for n, module in fresh.named_modules()}
    modules = [f"{n} ({_kind(m).__name__})" for n, m in model.named_modules() if kinds.get(n) != _kind(m)]
    found = (("more tensors", others), ("missing", lacking), ("other shapes", shapes), ("modules", modules))
    if not any(names for _, names in found):
        return
    lines = "; ".join(f"{what}: {checkpoints.shorten(names)}" for what, names in found if names)
    raise ValueError(
        f"this {name} is not the network {built}, so the file could not be read back. "
        f"{_fix([*others, *lacking, *shapes, *modules])} (It differs in {lines})"
    )


def _kind(module: nn.Module) -> type:
    """Return the class of a module; FSDP's subclasses and the kinds of BatchNorm compute the same."""
    if isinstance(module, _BatchNorm):
        return _BatchNorm
    cls = type(module)
    return cls.__bases__[-1] if cls.__name__.startswith("FSDP") else cls


def _fix(names: list[str]) -> str:
    text = " ".join(names)
    if "lora" in text or "base_layer" in text or "adapter" in text.lower():
        return "Merge adapters first (peft: model = model.merge_and_unload())."
    if "parametrizations" in text:
        return (
            "Make parametrizations permanent first: "
            "torch.nn.utils.parametrize.remove_parametrizations(module, 'weight')."
        )
    if "weight_mask" in text or "bias_mask" in text:
        return "Make pruning permanent first: torch.nn.utils.prune.remove(module, 'weight')."
    if "_packed_params" in text or "uantiz" in text:
        return "Save the model before it is quantized, and quantize it again after loading."
    if all(name.startswith("head") for name in names):
        return (
            "A head that is no nn.Linear with a bias is yours to build: torch.save(model.head.state_dict(), "
            "...), then model.reset_classifier(0) and save_model; load with num_classes=0 and set model.head."
        )
    return "Undo the change first, or torch.save its state_dict() and build the model by the same code."


def _parameters_beside(model: nn.Module, backbone: Backbone) -> list[str]:
    own = {id(parameter) for parameter in backbone.parameters()}
    return [name for name, parameter in model.named_parameters() if id(parameter) not in own]


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
    state = checked_state(model)
    _check_finite(state)
    names = known[format].from_native(state)
    renamed = {foreign: state[native].cpu() for native, foreign in names.items()}
    content: dict[str, Any] = renamed
    if known[format].nested and not flat:
        content = {}
        for name, tensor in renamed.items():
            part, _, rest = name.partition(".")
            content.setdefault(part, {})[rest] = tensor
    with _writing(path) as temporary:
        torch.save(content, temporary)
    return path


def write_safetensors(
    state: Mapping[str, Tensor], path: Path, dtype: torch.dtype, metadata: dict[str, str]
) -> None:
    """Write tensors to a safetensors file atomically.

    Floating-point tensors are cast to ``dtype``. Tensors in float64 are not cast if others have lower
    precision: they are buffers that need it.

    Raises:
        ValueError: a tensor holds NaN or infinity, or shares memory with another one.
        OSError: the file cannot be written.
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
    with _writing(path) as part:
        save_file(tensors, part, metadata)
        part.chmod(0o644)


@contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """Yield a temporary path, as :func:`atomic_path`, and raise the libraries' own errors as ``OSError``."""
    from safetensors import SafetensorError

    try:
        with atomic_path(path) as part:
            yield part
    except (SafetensorError, RuntimeError) as error:
        raise OSError(f"cannot write {path}: {error}") from error


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
