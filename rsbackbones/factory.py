"""``create_model``: from a name, weights and the user's sensors and bands to a model; and back to a file."""

import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor

from rsbackbones import adapt, checkpoints, layouts, weights
from rsbackbones.adapt import Adaptation, Change
from rsbackbones.errors import CorruptCheckpointError, WeightsMismatchError
from rsbackbones.features import Backbone, FeatureMaps
from rsbackbones.manifest import WeightsEntry, find_entry
from rsbackbones.registry import Architecture, find_architecture
from rsbackbones.sensors import get_sensor

_METADATA_KEY = "rsbackbones"


@overload
def create_model(
    name: str,
    pretrained: bool = False,
    *,
    modalities: Sequence[str] | None = None,
    bands: Mapping[str, Sequence[str]] | None = None,
    bands_missing: str = "error",
    image_size: int | tuple[int, int] | None = None,
    num_classes: int | None = 0,
    features_only: Literal[False] = False,
    out_indices: int | Sequence[int] | None = None,
    stream: str | None = None,
    checkpoint: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Backbone: ...


@overload
def create_model(
    name: str,
    pretrained: bool = False,
    *,
    modalities: Sequence[str] | None = None,
    bands: Mapping[str, Sequence[str]] | None = None,
    bands_missing: str = "error",
    image_size: int | tuple[int, int] | None = None,
    num_classes: int | None = 0,
    features_only: Literal[True],
    out_indices: int | Sequence[int] | None = None,
    stream: str | None = None,
    checkpoint: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> FeatureMaps: ...


def create_model(
    name: str,
    pretrained: bool = False,
    *,
    modalities: Sequence[str] | None = None,
    bands: Mapping[str, Sequence[str]] | None = None,
    bands_missing: str = "error",
    image_size: int | tuple[int, int] | None = None,
    num_classes: int | None = 0,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    stream: str | None = None,
    checkpoint: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Backbone | FeatureMaps:
    """Create a model, in ``eval()`` mode.

    Args:
        name: an architecture (``croma_vit_b``), or ``architecture.tag`` for particular weights.
        pretrained: load the manifest's weights, verified. False builds random weights.
        modalities: which sensors to build and load; default all that the weights know.
        bands: the channel order of *your* tensors, by sensor; default the weights' own bands. The
            weights are gathered by band name.
        bands_missing: what a band unknown to the weights gets: ``error``, ``nearest``, ``mean``,
            ``zero`` or ``new``; see :mod:`rsbackbones.adapt`.
        image_size: the size in pixels you mean to use, a multiple of the patch, or (height, width);
            sizes may differ from call to call all the same.
        num_classes: more than 0 adds a linear head, newly initialised unless ``checkpoint`` holds one of
            as many classes; ``None`` keeps the head of ``checkpoint`` as it is.
        features_only: return a model that gives a list of maps; see ``FeatureMaps``.
        out_indices, stream: for ``features_only``: which blocks of which stream.
        checkpoint: a local ``.safetensors`` or ``.pt`` file instead of the Hub, or a folder made by
            ``rsbackbones download --to``.
        overrides: fields of the architecture's configuration to change; they describe the
            checkpoint too (``{"dim": 32}`` for a checkpoint of that width).

    Raises:
        ValueError: an unknown name, sensor, band, field or value.
        WeightsError: (a ``ValueError``) weights that do not exist, cannot be had, are not the pinned
            bytes, or do not fit; see :mod:`rsbackbones.errors`.
    """
    if not features_only and (out_indices is not None or stream is not None):
        raise ValueError("out_indices and stream go with features_only=True")
    if bands_missing not in adapt.MISSING_RULES:
        raise ValueError(
            f"bands_missing must be one of {', '.join(adapt.MISSING_RULES)}, got {bands_missing!r}"
        )
    architecture_name, _, tag = name.partition(".")
    architecture = find_architecture(architecture_name)
    entry: WeightsEntry | None = None
    file: checkpoints.CheckpointFile | None = None
    if checkpoint is not None and not Path(checkpoint).expanduser().is_dir():
        if tag:
            raise ValueError(
                f"{name}: a tag names weights of the manifest, and checkpoint names a file; give one of them"
            )
        file = checkpoints.open_checkpoint(Path(checkpoint).expanduser(), allow_pickle=True)
    elif pretrained or checkpoint is not None:
        entry = find_entry(name)
        folder = None if checkpoint is None else Path(checkpoint).expanduser()
        path = weights.fetch(entry, folder)
        file = checkpoints.open_checkpoint(path, allow_pickle=entry.format != "rsbackbones")
    elif tag:
        raise ValueError(
            f"{name} names weights: pass pretrained=True to load them, or leave out .{tag} for a "
            "randomly initialised model"
        )

    # What the weights are of, then what the user wants of it.
    described = _described(architecture, file, entry)
    theirs = _replace(architecture.config, {**described.config, **(overrides or {})}, architecture.name)
    mine = _wanted(theirs, modalities, bands, image_size)
    classes = described.num_classes if num_classes is None else num_classes
    build = architecture.family.build
    if file is None:
        model: Backbone = build(mine, num_classes=classes)
    else:
        with torch.device("meta"):
            model = build(mine, num_classes=classes)
            full = build(theirs, num_classes=described.num_classes).state_dict()
        changes = _load(model, file, full, theirs, architecture, entry, described, bands_missing)
        model.adaptation = Adaptation(tuple(changes))
    model.architecture = architecture.name
    model.weights_entry = entry
    model.eval()
    return FeatureMaps(model, indices=out_indices, stream=stream) if features_only else model


def save_model(model: Backbone, path: str | Path, *, dtype: torch.dtype = torch.float32) -> Path:
    """Write a model to a safetensors file that ``create_model(..., checkpoint=path)`` reads back.

    The file holds the configuration, the bands and the head as well. ``dtype`` may be a half-precision
    type; the file says so, and reading casts back up.

    Raises:
        ValueError: the path is no ``.safetensors``, or a tensor holds NaN or infinity.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"expected a path that ends in .safetensors, got {path}")
    config = dataclasses.asdict(model.config)
    config["bands"] = {m: list(config["bands"][m]) for m in model.modalities}
    entry = model.weights_entry
    description = {
        "architecture": model.architecture,
        "config": config,
        "num_classes": model.num_classes,
        "dtype": str(dtype).removeprefix("torch."),
        "weights": entry.id if entry else None,
    }
    write_safetensors(model.state_dict(), path, dtype, {_METADATA_KEY: json.dumps(description)})
    return path


def save_foreign(model: Backbone, path: str | Path, layout: str, *, flat: bool = False) -> Path:
    """Write a model's weights under the names of a foreign layout, as a ``torch.save`` file.

    A layout that nests its state dicts is written so, or with ``flat`` as one dictionary.

    Raises:
        ValueError: an unknown layout, a model with a head (foreign layouts have none), or another suffix.
    """
    path = Path(path)
    if path.suffix not in checkpoints.PICKLE_SUFFIXES:
        raise ValueError(f"expected a path that ends in {checkpoints.PICKLE_SUFFIXES}, got {path}")
    known: Mapping[str, layouts.Layout] = find_architecture(model.architecture).family.LAYOUTS
    if layout not in known:
        raise ValueError(f"unknown layout {layout!r}; known: {', '.join(known)}")
    state = model.state_dict()
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

    if bad := checkpoints.not_finite(state):
        raise ValueError(f"refusing to write NaN or infinity: {', '.join(bad)}")
    memory = [t.untyped_storage().data_ptr() for t in state.values()]
    if shared := [n for n, t in state.items() if memory.count(t.untyped_storage().data_ptr()) > 1]:
        raise ValueError(f"refusing to write tensors that share memory: {', '.join(shared)}")
    tensors = {
        name: (t.to(dtype) if t.is_floating_point() else t).detach().cpu().contiguous()
        for name, t in state.items()
    }
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        part = Path(folder) / path.name
        save_file(tensors, part, metadata)
        part.chmod(0o644)
        part.replace(path)


# -- configuration ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Described:
    """What a file says of itself; files that say nothing are as the architecture is."""

    config: Mapping[str, Any]
    num_classes: int = 0
    dtype: torch.dtype = torch.float32


def _described(
    architecture: Architecture, file: checkpoints.CheckpointFile | None, entry: WeightsEntry | None
) -> _Described:
    says = entry.config if entry else {}
    dtype = getattr(torch, entry.dtype) if entry else torch.float32
    if file is None or _METADATA_KEY not in file.metadata:
        return _Described(says, dtype=dtype)
    try:
        own = json.loads(file.metadata[_METADATA_KEY])
        name, config, classes, stored = (
            own[key] for key in ("architecture", "config", "num_classes", "dtype")
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptCheckpointError(f"{file.path}: its description is damaged: {error}") from error
    if name != architecture.name:
        raise WeightsMismatchError(f"{file.path} holds {name}, not {architecture.name}")
    if stored not in ("float32", "float16", "bfloat16"):
        raise CorruptCheckpointError(f"{file.path}: unknown dtype {stored!r} in its description")
    config = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
    return _Described({**config, **says}, int(classes), getattr(torch, stored))


def _replace(config: Any, changes: Mapping[str, Any], name: str) -> Any:
    known = [f.name for f in dataclasses.fields(config)]
    if unknown := sorted(set(changes) - set(known)):
        raise ValueError(
            f"{name} has no configuration field {', '.join(unknown)}; fields: {', '.join(known)}"
        )
    return dataclasses.replace(config, **changes)


def _wanted(
    theirs: Any,
    modalities: Sequence[str] | None,
    bands: Mapping[str, Sequence[str]] | None,
    image_size: int | tuple[int, int] | None,
) -> Any:
    """The user's configuration: ``theirs`` with the user's sensors, bands and size."""
    known = tuple(theirs.modalities)
    wanted = known if modalities is None else tuple(modalities)
    if isinstance(modalities, str) or not wanted or len(set(wanted)) < len(wanted):
        raise ValueError(f"modalities must be different names such as {known}, got {modalities!r}")
    if unknown := [m for m in wanted if m not in known]:
        raise ValueError(
            f"unknown modality {', '.join(map(repr, unknown))}; these weights know "
            f"{', '.join(map(repr, known))}"
        )
    if unknown := [m for m in bands or {} if m not in wanted]:
        raise ValueError(f"bands names {', '.join(unknown)}, but the model's modalities are {wanted}")
    mine = {m: tuple(theirs.bands[m]) for m in wanted}
    mine |= {m: get_sensor(m).canonical(names) for m, names in (bands or {}).items()}
    changes: dict[str, Any] = {"modalities": wanted, "bands": mine}
    if image_size is not None:
        sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        p = theirs.patch_size
        if len(sides) != 2 or any(not isinstance(s, int) or s < p or s % p for s in sides):
            raise ValueError(
                f"image_size must be a multiple of the patch size {p}, or (height, width) of such, got "
                f"{image_size!r}"
            )
        changes["image_size"] = image_size
    return dataclasses.replace(theirs, **changes)


# -- loading ------------------------------------------------------------------------------------------


def _load(
    model: Backbone,
    file: checkpoints.CheckpointFile,
    full: Mapping[str, Tensor],
    theirs: Any,
    architecture: Architecture,
    entry: WeightsEntry | None,
    described: _Described,
    bands_missing: str,
) -> list[Change]:
    """Fill a model on the meta device. ``full`` is the state dict, on meta, of what the file must hold."""
    what = f"{entry.id} ({file.path})" if entry else str(file.path)
    known: Mapping[str, layouts.Layout] = architecture.family.LAYOUTS
    layout = entry.format if entry else layouts.recognise(file.tensors, known)
    if layout != "rsbackbones" and layout not in known:
        raise WeightsMismatchError(f"{what}: unknown format {layout!r}; known: {', '.join(known)}")
    changes: list[Change] = []
    if layout == "rsbackbones":
        names = {name: name for name in file.tensors}
    else:
        names = known[layout].to_ours(file.tensors)
        changes += _check_rest(file, known[layout], names, theirs, what)
    _compare(what, file, names, full, described.dtype, entry)

    built = model.state_dict()
    needed = {name: ours for name, ours in names.items() if ours in built}
    state = {needed[name]: tensor for name, tensor in file.read(needed).items()}
    if bad := checkpoints.not_finite(state):
        raise CorruptCheckpointError(f"{what}: NaN or infinity in {', '.join(bad)}")
    state = {name: tensor.float() for name, tensor in state.items()}

    for modality in model.modalities:
        old, new = tuple(theirs.bands[modality]), model.bands[modality]
        sources = adapt.match_bands(modality, new, old, bands_missing)
        key = f"{model.tokenizer_name(modality)}.proj.weight"
        if new != old:
            fresh = torch.nn.Linear(built[key].shape[1], built[key].shape[0]).weight.data
            state[key] = adapt.adapt_linear_tokenizer(state[key], sources, old, fresh)
        changes += adapt.describe_bands(modality, sources, old)
    if left_out := [m for m in theirs.modalities if m not in model.modalities]:
        changes.append(Change("modalities", "left out", ", ".join(left_out)))
    changes += _fit_head(model, state, described.num_classes)
    model.load_state_dict(state, strict=True, assign=True)
    return changes


def _check_rest(
    file: checkpoints.CheckpointFile,
    layout: layouts.Layout,
    names: Mapping[str, str],
    config: Any,
    what: str,
) -> list[Change]:
    """Check the tables that a foreign file stores and we compute; report what is no part of the model."""
    for name, check in layout.derived.items():
        if name in file.tensors:
            try:
                check(file.read([name])[name], config)
            except ValueError as error:
                raise WeightsMismatchError(f"{what}: {name}: {error}") from error
    rest = [name for name in file.tensors if name not in names]
    parts = sorted({name.split(".")[0] for name in rest})
    detail = f"{', '.join(parts)} ({len(rest)} tensors)"
    return [Change("checkpoint", "not part of the model", detail)] if rest else []


def _compare(
    what: str,
    file: checkpoints.CheckpointFile,
    names: Mapping[str, str],
    full: Mapping[str, Tensor],
    dtype: torch.dtype,
    entry: WeightsEntry | None,
) -> None:
    """Compare a file with the model it must hold, before anything is loaded."""
    ours = list(names.values())
    twice = sorted({name for name in ours if ours.count(name) > 1})
    problems = [("given twice", twice)] if twice else []
    problems.append(("missing", sorted(set(full) - set(ours))))
    problems.append(("not in the model", sorted(t for t, name in names.items() if name not in full)))
    shapes, dtypes = [], []
    for name, our_name in names.items():
        info = file.tensors[name]
        if our_name not in full:
            continue
        if info.shape != tuple(full[our_name].shape):
            shapes.append(f"{name} {list(info.shape)} instead of {list(full[our_name].shape)}")
        if info.dtype != dtype:
            dtypes.append(f"{name} {info.dtype} instead of {dtype}")
    problems += [("of another shape", shapes), ("of another type", dtypes)]
    if any(found for _, found in problems):
        lines = "; ".join(f"{kind}: {', '.join(found)}" for kind, found in problems if found)
        raise WeightsMismatchError(
            f"{what} does not hold this model: {lines}. For a checkpoint of another size pass its "
            "configuration in overrides="
        )
    params = sum(tensor.numel() for tensor in full.values())
    if entry is not None and entry.params and entry.params != params:
        raise WeightsMismatchError(f"{what}: {params} parameters, the manifest says {entry.params}")


def _fit_head(model: Backbone, state: dict[str, Tensor], stored_classes: int) -> list[Change]:
    """Give the model a new head, or drop a stored one, where the numbers of classes differ."""
    if model.num_classes == stored_classes:
        return []
    for name in [name for name in state if name.startswith("head.")]:
        del state[name]
    if not model.num_classes:
        return [Change("head", "left out", f"{stored_classes} classes")]
    with torch.device("cpu"):
        model.reset_classifier(model.num_classes)
    state |= {f"head.{name}": tensor for name, tensor in model.head.state_dict().items()}
    return [Change("head", "new", f"{model.num_classes} classes, to be trained")]
