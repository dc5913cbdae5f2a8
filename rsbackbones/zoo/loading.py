"""Load a checkpoint file into a model: check its tensors, adapt them, then load them strictly."""

import dataclasses
import json
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from rsbackbones.input_spec import InputSpec
from rsbackbones.models.backbone import Backbone
from rsbackbones.models.checkpoint_format import CheckpointFormat, detect_format
from rsbackbones.models.config import is_count
from rsbackbones.sensors import SENSORS, get_sensor
from rsbackbones.typed_fields import check_fields
from rsbackbones.zoo import adapt
from rsbackbones.zoo import checkpoint_files as checkpoints
from rsbackbones.zoo.adapt import Adaptation, AdaptationStep, BandMapping
from rsbackbones.zoo.checkpoint_parts import CheckpointPart
from rsbackbones.zoo.errors import CorruptCheckpointError, WeightsMismatchError
from rsbackbones.zoo.manifest import WeightsEntry
from rsbackbones.zoo.registry import Architecture, list_weights, override_config, replace_config

# The dtypes of weights that training loops store, a whole model in one; loading casts them to the model's.
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclasses.dataclass(frozen=True)
class CheckpointInfo:
    """The contents of a checkpoint, according to its metadata, else its manifest entry, else the
    architecture.

    ``is_explicit`` is False if only the architecture is known: a foreign file without a manifest entry.
    """

    config: Any
    inputs: Mapping[str, InputSpec]
    is_explicit: bool = True
    num_classes: int = 0
    dtype: torch.dtype = torch.float32
    # The arguments of ``dense_model``, if the file holds a decoder too.
    dense: Mapping[str, Any] | None = None
    assumed: str = ""  # whose configuration it is, if the file does not state it
    input_size: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class _Metadata:
    """What :func:`rsbackbones.zoo.saving.metadata` writes, as far as it is read."""

    architecture: str
    config: Mapping[str, Any]
    num_classes: int
    input_size: tuple[int, int] | None
    dtype: Literal["float32", "float16", "bfloat16"]
    inputs: Mapping[str, Mapping[str, Any]]
    wavelengths: Mapping[str, Mapping[str, float]]
    dense: Mapping[str, Any] | None


def read_metadata(file: checkpoints.CheckpointFile | CheckpointPart) -> dict[str, Any]:
    """Return the metadata that ``save_model`` wrote; empty if the file has none.

    Raises:
        CorruptCheckpointError: it is damaged.
    """
    try:
        own = json.loads(file.metadata.get(checkpoints.METADATA_KEY, "{}"))
    except (ValueError, TypeError, RecursionError) as error:
        raise CorruptCheckpointError(f"{file.path}: its metadata is damaged: {error}") from error
    return own if isinstance(own, dict) else {}


def inspect_checkpoint(
    architecture: Architecture,
    file: CheckpointPart | None,
    entry: WeightsEntry | None,
    overrides: Mapping[str, Any] = MappingProxyType({}),
) -> CheckpointInfo:
    """Read the metadata of a checkpoint and its manifest entry. Without either, assume the architecture's
    defaults, or the configuration of published weights of the same shapes; see :func:`_assume`.

    ``overrides`` are fields of the configuration that the user states.

    Raises:
        CorruptCheckpointError: the metadata of the file is damaged.
        WeightsMismatchError: the file holds another architecture, or contradicts the manifest.
        ValueError: the manifest entry's configuration does not fit the architecture.
    """
    inputs: Mapping[str, InputSpec] = architecture.family.INPUTS
    entry_config: dict[str, Any] = {}
    if entry:
        check_fields(type(architecture.config), entry.config, f"{entry.id}: config")
        inputs = _read_contracts(entry.inputs, entry.config.get("sensors", {}), f"{entry.id}: ")
        # The manifest states the order of the pretrained bands.
        bands = {**architecture.config.bands, **{m: spec.bands for m, spec in inputs.items()}}
        entry_config = {"bands": bands, **entry.config}
    where = f"{entry.id}: config" if entry else architecture.name
    base = replace_config(architecture.config, entry_config, where)
    # A band without statistics is listed in the config only.
    if entry and any(
        spec.of(base.bands[m]).bands != spec.bands for m, spec in inputs.items() if m in base.bands
    ):
        raise WeightsMismatchError(f"{entry.id}: its config and its inputs state different bands")
    dtype = entry.dtype if entry else "float32"
    if file is None or checkpoints.METADATA_KEY not in file.metadata:
        # The tensors of a native file without metadata show whether it has a head; foreign formats drop it.
        native = (
            file
            and (entry.format if entry else detect_format(file.tensors, architecture.formats))
            == "rsbackbones"
        )
        head = file.tensors.get("head.weight") if file and native else None
        classes = head.shape[0] if head and len(head.shape) == 2 else 0
        if file and not entry:
            return dataclasses.replace(_assume(architecture, file, overrides), num_classes=classes)
        return CheckpointInfo(base, inputs, file is None or entry is not None, classes, getattr(torch, dtype))
    own = read_metadata(file)
    try:
        known = {f.name for f in dataclasses.fields(_Metadata)}
        check_fields(_Metadata, {k: own[k] for k in known if k in own}, "rsbackbones")
        name, fields, classes, stored = (own[k] for k in ("architecture", "config", "num_classes", "dtype"))
        if name != architecture.name:
            raise WeightsMismatchError(
                f"{file.path} holds {name}, not {architecture.name}: another architecture"
            )
        check_fields(type(architecture.config), fields, "config")
        if unknown := [s for s in fields.get("sensors", {}).values() if s not in SENSORS]:
            raise WeightsMismatchError(
                f"{file.path} was trained on bands of {', '.join(map(repr, unknown))}, an unknown sensor; "
                "register it before loading: rsbackbones.register_sensor(Sensor(...))"
            )
        _check_wavelengths(own.get("wavelengths", {}), fields.get("sensors", {}), file.path)
        config = replace_config(architecture.config, fields, architecture.name)
        # Refuse to build a model larger than the file.
        if not 0 <= classes <= 2**20 or config.min_tensors() > len(file.tensors):
            raise ValueError(f"{config.summary()}, num_classes {classes}, {len(file.tensors)} tensors")
        size = own.get("input_size")
        if size is not None and not all(map(is_count, size)):
            raise ValueError(f"input_size must be (height, width) in pixels, got {size}")
        if not entry and "inputs" in own:
            inputs = _read_contracts(own["inputs"], config.sensors)
    except WeightsMismatchError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptCheckpointError(f"{file.path}: its metadata is damaged: {error}") from error
    if entry and (stored != dtype or replace_config(config, entry_config, entry.id) != config):
        raise WeightsMismatchError(
            f"{file.path} states {stored} and {config}, but {entry.id} in the manifest states {dtype} and "
            f"{entry_config}"
        )
    return CheckpointInfo(
        config, inputs, True, classes, getattr(torch, stored), own.get("dense"),
        input_size=None if size is None else tuple(size),
    )  # fmt: skip


def _read_contracts(
    contracts: Mapping[str, Mapping[str, Any]], sensors: Mapping[str, str], where: str = ""
) -> dict[str, InputSpec]:
    """Return input contracts by modality. ``where`` begins the text of errors."""
    try:
        return {m: InputSpec.from_mapping(sensors.get(m, m), spec) for m, spec in contracts.items()}
    except ValueError as error:
        raise ValueError(f"{where}{error}") from error


def _assume(architecture: Architecture, file: CheckpointPart, overrides: Mapping[str, Any]) -> CheckpointInfo:
    """Return the configuration of a file that does not state it, from the shapes of its tensors.

    It is the architecture's own, or that of published weights of the same shapes; or one of these for fewer
    modalities. If no shapes match, it is the architecture's own, and loading names the differences.

    Raises:
        WeightsMismatchError: weights with different bands or input contracts have these shapes.
    """
    format = architecture.formats.get(detect_format(file.tensors, architecture.formats))
    names = format.to_native(file.tensors) if format else {name: name for name in file.tensors}
    shapes = {n: file.tensors[stored].shape for stored, n in names.items() if not n.startswith("head.")}

    def fits(config: Any) -> bool:
        if config.min_tensors() > len(shapes):
            return False
        with torch.device("meta"):
            body = architecture.family.build(config, num_classes=0).state_dict()
        return shapes == {name: tuple(tensor.shape) for name, tensor in body.items()}

    stored = {file.tensors[name].dtype for name in names}
    floats = [dtype for dtype in _FLOATS if dtype in stored]
    dtype = floats[0] if len(floats) == 1 else torch.float32

    def contents(entry: WeightsEntry | None) -> CheckpointInfo | None:
        info = inspect_checkpoint(architecture, None, entry)
        try:
            config = override_config(info.config, overrides, architecture.name)
        except ValueError:
            if entry is None:
                raise
            return None  # the user states something else
        whose = f"that of {entry.id}" if entry else ""
        return dataclasses.replace(info, config=config, is_explicit=False, dtype=dtype, assumed=whose)

    entries = [e for e in list_weights(f"{architecture.name}.*") if e.availability != "unreleased"]
    for group, fewer in (((None,), False), (entries, False), ((None,), True), (entries, True)):
        found: list[CheckpointInfo] = []
        for info in filter(None, map(contents, group)):
            for config in _with_fewer_modalities(info.config) if fewer else (info.config,):
                known = any((config, info.inputs) == (other.config, other.inputs) for other in found)
                if not known and fits(config):
                    found.append(dataclasses.replace(info, config=config))
        if len(found) > 1:
            ids = [info.assumed.removeprefix("that of ") for info in found]
            raise WeightsMismatchError(
                f"{file.path} has no metadata, and the shapes of weights with different bands or input "
                f"contracts: {', '.join(ids)}. Say which: rsbackbones convert {file.path} "
                f"OUTPUT.safetensors --model {ids[0]}; or state what it holds: "
                "overrides={'bands': {'s2': ('B02', ...)}}"
            )
        if found:
            return found[0]
    own = contents(None)
    assert own is not None
    return own


def _with_fewer_modalities(config: Any) -> Iterator[Any]:
    """Yield a configuration for every smaller choice of its modalities."""
    for count in range(1, len(config.modalities)):
        for modalities in combinations(config.modalities, count):
            yield dataclasses.replace(config, modalities=modalities)


def _check_wavelengths(
    wavelengths: Mapping[str, Mapping[str, float]], sensors: Mapping[str, str], path: Path
) -> None:
    """Check that the sensors registered here have the bands that the file was written for."""
    for modality, stated in wavelengths.items():
        sensor = get_sensor(sensors.get(modality, modality))
        here = {band.name: band for band in (*sensor.bands, *sensor.derived)}
        for name, wavelength in stated.items():
            if name not in here or abs(here[name].wavelength - wavelength) > here[name].width / 2:
                found = f"at {here[name].wavelength:g} nm" if name in here else "missing"
                raise WeightsMismatchError(
                    f"{path} was trained on band {name} of {sensor.name} at {wavelength:g} nm, but in the "
                    f"sensor registered here under this name it is {found}. Register the sensor that the "
                    "file was written for"
                )


def match_model_bands(
    source_config: Any,
    target_config: Any,
    missing_bands: str,
    kernel_scale: str,
    *,
    requested: Collection[str] = (),
    inputs: Mapping[str, InputSpec] = MappingProxyType({}),
) -> tuple[BandMapping, ...]:
    """Match the bands of ``target_config`` to those of ``source_config``, for every modality of the target.

    ``requested`` are the modalities whose bands or sensor the user passed. If there are any, ``reinit_all``
    applies to them only. ``inputs`` are the input contracts of the weights; they list the bands whose kernels
    are zeros.

    Raises:
        ValueError: as :func:`rsbackbones.zoo.adapt.match_bands`, or a rule for kernels was passed although
            the weights generate kernels from wavelengths.
    """
    mappings = []
    for modality in target_config.modalities:
        if modality not in source_config.modalities:
            continue  # an extra sensor of a model without weights
        rule, generated = missing_bands, source_config.takes_wavelengths(modality)
        if missing_bands == "reinit_all" and requested and modality not in requested:
            rule = "error"  # these are the pretrained bands: all of them match
        if generated and rule in ("mean", "zero", "reinit_all"):
            raise ValueError(
                f"{modality}: these weights generate kernels from wavelengths, so "
                f"missing_bands={missing_bands!r} does not apply; leave out missing_bands= "
                "(--missing-bands), or choose 'nearest' to take the input statistics of the nearest bands"
            )
        if generated and rule == "error":
            rule = "reinit"  # only input statistics can be missing, and create_preprocess checks those
        mapping = adapt.match_bands(
            modality, target_config.bands[modality], source_config.bands[modality],
            sensor=target_config.sensors[modality], weights_sensor=source_config.sensors[modality],
            missing_bands=rule, kernel_scale=kernel_scale,
            unused_bands=inputs[modality].unused_bands if modality in inputs else (),
        )  # fmt: skip
        mappings.append(adapt.from_wavelengths(mapping) if generated else mapping)
    return tuple(mappings)


def adapt_input_specs(
    info: CheckpointInfo, source_config: Any, mappings: Sequence[BandMapping]
) -> dict[str, InputSpec]:
    """Return the input contracts of a model's bands, from those of weights with ``source_config``."""
    inputs = dict(info.inputs)
    for mapping in mappings:
        spec = inputs.get(mapping.modality)
        if spec is None:
            continue
        stated = info.config.sensors.get(mapping.modality, mapping.modality)
        if stated != mapping.weights_sensor:  # overrides= changed the sensor of the weights
            known = adapt.match_bands(
                mapping.modality, source_config.bands[mapping.modality], spec.bands,
                sensor=mapping.weights_sensor, weights_sensor=stated, missing_bands="reinit",
            )  # fmt: skip
            spec = adapt.adapt_input_spec(spec, known)
        inputs[mapping.modality] = adapt.adapt_input_spec(spec, mapping)
    return inputs


def load_weights(
    model: Backbone,
    file: CheckpointPart,
    info: CheckpointInfo,
    source_config: Any,
    architecture: Architecture,
    entry: WeightsEntry | None,
    mappings: Sequence[BandMapping],
) -> Adaptation:
    """Load a file into a model that was built on the meta device. Return what was adapted.

    ``source_config`` is the configuration of the full model: the file must hold exactly its tensors, and may
    lack those of modalities that are not loaded.
    ``mappings`` are the band mappings of the model's modalities, from :func:`match_model_bands`.

    Raises:
        WeightsMismatchError: the file holds other tensors.
        CorruptCheckpointError: a tensor holds NaN or infinity.
    """
    with torch.device("meta"):
        whole: Backbone = architecture.family.build(source_config, num_classes=info.num_classes)
    full = whole.state_dict()
    known = architecture.formats
    what = f"{entry.id} ({file.path})" if entry else str(file.path)
    format = entry.format if entry else detect_format(file.tensors, known)
    if format != "rsbackbones" and format not in known:
        raise WeightsMismatchError(f"{what}: unknown format {format!r}; known: {', '.join(known)}")
    steps = [AdaptationStep("checkpoint", "found", file.found)] if file.found else []
    if not info.is_explicit:
        bands = ", ".join(f"{m} {' '.join(source_config.bands[m])}" for m in source_config.modalities)
        whose = f"{info.assumed}, " if info.assumed else ""
        detail = f"{whose}{source_config.summary()}, bands {bands}: the file has no metadata"
        steps.append(AdaptationStep("configuration", "assumed", detail))
    if format == "rsbackbones":
        decoder = () if info.dense is None else (checkpoints.DENSE_PREFIX,)
        names = {name: name for name in file.tensors if not name.startswith(decoder)}
        if info.dense is not None:
            detail = f"{info.dense.get('head')}; rsbackbones.heads.load_dense_model loads the whole model"
            steps.append(AdaptationStep("decoder", "dropped", detail))
    else:
        names = known[format].to_native(file.tensors)
        steps += _check_unused_tensors(file, known[format], names, source_config, what)
    params = sum(parameter.numel() for parameter in whole.parameters())
    fields = [f.name for f in dataclasses.fields(source_config)]
    built = model.state_dict()
    required = {name for name in full if name in built or name.startswith("head.")}
    _check_tensors(what, file, names, full, required, info.dtype, entry, params, fields)
    steps += _casts(file, names, full) if not info.is_explicit else []

    needed = {name: native for name, native in names.items() if native in built}
    state = {needed[name]: tensor for name, tensor in file.read(needed).items()}
    if bad := checkpoints.not_finite(state):
        raise CorruptCheckpointError(f"{what}: NaN or infinity in {', '.join(bad)}")
    # Copy: the tensors are mapped onto the file, and would follow its changes.
    state = {
        name: tensor.to(built[name].dtype, copy=True, memory_format=torch.contiguous_format)
        for name, tensor in state.items()
    }

    for mapping in mappings:
        steps += _adapt_stem(model, whole, state, mapping)
    if dropped := [m for m in source_config.modalities if m not in model.modalities]:
        steps.append(AdaptationStep("modalities", "dropped", ", ".join(dropped)))
    steps += _adapt_head(model, state, info.num_classes)
    model.load_state_dict(state, strict=True, assign=True)
    if empty := [name for name, buffer in model.named_buffers() if buffer.is_meta]:
        raise WeightsMismatchError(
            f"{what}: no file holds the buffers {', '.join(empty)}, which are not persistent: let the "
            'network compute them when they are needed, or build them with device="cpu"'
        )
    return Adaptation(tuple(steps), tuple(mapping for mapping in mappings if mapping))


def zero_stem_channels(model: Backbone, mappings: Sequence[BandMapping]) -> None:
    """Zero the stem kernels of bands under the rule ``zero``, in a model with random weights."""
    for mapping in mappings:
        if zero := [i for i, match in enumerate(mapping.matches) if match.rule == "zero"]:
            stem = model.stem(mapping.modality)
            weight = model.get_parameter(stem.weight)
            with torch.no_grad():
                kernel = stem.to_kernel(weight).clone()
                kernel[:, zero] = 0
                weight.copy_(stem.from_kernel(kernel))


def _adapt_stem(
    model: Backbone, whole: Backbone, state: dict[str, Tensor], mapping: BandMapping
) -> list[AdaptationStep]:
    """Adapt a stem's weight from the ``whole`` pretrained model to the bands and patch size of ``model``."""
    stem, stored = model.stem(mapping.modality), whole.stem(mapping.modality)
    kernel = stored.to_kernel(state[stem.weight])
    sides = stem.to_kernel(model.get_parameter(stem.weight)).shape[2:]
    if mapping and not mapping.generated:
        fan_in = len(mapping.matches) * kernel[0, 0].numel()
        fresh = kernel.new_empty(kernel.shape[0], len(mapping.matches), *kernel.shape[2:])
        if any(match.rule == "reinit" for match in mapping.matches):
            fresh.uniform_(-(fan_in**-0.5), fan_in**-0.5)  # as torch initializes linear maps and convolutions
        else:
            fresh.zero_()
        kernel = adapt.adapt_kernel(kernel, mapping, fresh)
    before = kernel.shape[2:]
    if before != sides:
        kernel = adapt.resize_kernel(kernel, sides[-1])
        if kernel.shape[2:] != sides:
            raise WeightsMismatchError(
                f"{mapping.modality}: the model has a kernel of {list(sides)}, and that of the weights, "
                f"{list(before)}, can only be resized to other square patches; leave out patch_size="
            )
    state[stem.weight] = stem.from_kernel(kernel).contiguous()
    if before == sides:
        return []
    detail = f"{before[-1]} to {sides[-1]} pixels, pseudo-inverse resize"
    return [AdaptationStep(f"{mapping.modality} stem", "patch resized", detail)]


def _check_unused_tensors(
    file: CheckpointPart,
    format: CheckpointFormat,
    names: Mapping[str, str],
    config: Any,
    what: str,
) -> list[AdaptationStep]:
    """Check the mappings that a foreign file stores and we compute; report what is no part of the model."""
    for name, check in format.derived.items():
        if name in file.tensors:
            try:
                check(file.read([name])[name], config)
            except ValueError as error:
                raise WeightsMismatchError(f"{what}: {name}: {error}") from error
    rest = [name for name in file.tensors if name not in names]
    parts = sorted({name.split(".")[0] for name in rest})
    detail = f"{', '.join(parts)} ({len(rest)} tensors)"
    return [AdaptationStep("checkpoint", "not part of the model", detail)] if rest else []


def _check_tensors(
    what: str,
    file: CheckpointPart,
    names: Mapping[str, str],
    full: Mapping[str, Tensor],
    required: Collection[str],
    dtype: torch.dtype,
    entry: WeightsEntry | None,
    params: int,
    fields: Sequence[str],
) -> None:
    """Compare the tensors of a file with those of the full model, before anything is loaded.

    ``required`` are the names that it must hold.
    """
    native = Counter(names.values())
    twice = sorted(name for name, count in native.items() if count > 1)
    problems = [("stored twice", twice)] if twice else []
    problems.append(("missing", sorted(set(required) - set(native))))
    problems.append(("not in the model", sorted(t for t, name in names.items() if name not in full)))
    shapes, dtypes = [], []
    for name, native_name in names.items():
        info = file.tensors[name]
        if native_name not in full:
            continue
        if info.shape != tuple(full[native_name].shape):
            shapes.append(f"{name} {list(info.shape)} instead of {list(full[native_name].shape)}")
        own = full[native_name].dtype
        expected = dtype if own.is_floating_point else own  # counters keep their dtype
        # Buffers in float64 are stored as they are, unless the whole model was cast to another dtype.
        if info.dtype != expected and not info.dtype == own == torch.float64:
            dtypes.append(f"{name} {info.dtype} instead of {expected}")
    problems += [("wrong shape", shapes), ("wrong dtype", dtypes)]
    if any(found for _, found in problems):
        lines = "; ".join(f"{kind}: {checkpoints.shorten(found)}" for kind, found in problems if found)
        raise WeightsMismatchError(
            f"{what} does not hold this model: {lines}. A file without metadata is assumed to hold the "
            "default configuration of the architecture. If its size, sensors or bands differ, pass them: "
            f"overrides={{'modalities': ('s2',), 'bands': {{'s2': ('B02', ...)}}, ...}} (command "
            "line: --overrides FIELD=VALUE); "
            f"fields: {', '.join(fields)}"
        )
    if entry is not None and entry.params and entry.params != params:
        raise WeightsMismatchError(f"{what}: {params} parameters, but the manifest states {entry.params}")


def _casts(
    file: CheckpointPart, names: Mapping[str, str], full: Mapping[str, Tensor]
) -> list[AdaptationStep]:
    """Report the tensors whose floating-point dtype is not the model's."""
    pairs = [
        (str(file.tensors[name].dtype).removeprefix("torch."), str(full[native].dtype).removeprefix("torch."))
        for name, native in names.items()
    ]
    cast = Counter(pair for pair in pairs if pair[0] != pair[1])
    return [
        AdaptationStep("checkpoint", "cast", f"{stored} to {own} ({count} tensors)")
        for (stored, own), count in cast.items()
    ]


def _adapt_head(model: Backbone, state: dict[str, Tensor], stored_classes: int) -> list[AdaptationStep]:
    """Add a new head, or drop the stored one, if the numbers of classes differ."""
    if model.num_classes == stored_classes:
        return []
    for name in [name for name in state if name.startswith("head.")]:
        del state[name]
    if not model.num_classes:
        return [AdaptationStep("head", "dropped", f"{stored_classes} classes")]
    if stored_classes:
        warnings.warn(
            f"the weights have a trained head of {stored_classes} classes; num_classes={model.num_classes} "
            "makes a new one of random values in its place, to be trained; num_classes=None keeps it",
            stacklevel=5,
        )
    with torch.device("cpu"):
        model.reset_classifier(model.num_classes)
    state |= {f"head.{name}": tensor for name, tensor in model.head.state_dict().items()}
    return [AdaptationStep("head", "new", f"{model.num_classes} classes, to be trained")]
