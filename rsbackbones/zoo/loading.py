"""From a checkpoint file to the parameters of a model: compared first, then adapted, then loaded strictly."""

import dataclasses
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from rsbackbones.models import checkpoint_format as layouts
from rsbackbones.models.backbone import Backbone
from rsbackbones.sensors import SENSORS, InputSpec, get_sensor
from rsbackbones.zoo import adapt
from rsbackbones.zoo import checkpoint_files as checkpoints
from rsbackbones.zoo.adapt import Adaptation, BandTable, Change
from rsbackbones.zoo.errors import CorruptCheckpointError, WeightsMismatchError
from rsbackbones.zoo.manifest import WeightsEntry
from rsbackbones.zoo.registry import Architecture

# So many tensors are named in an error; a wrong size concerns hundreds.
_NAMED = 8


@dataclasses.dataclass(frozen=True)
class Description:
    """What a file holds, as the file itself, the manifest, or else the architecture says.

    ``stated`` is False where only the architecture speaks: a file of others without a manifest entry.
    """

    config: Any
    inputs: Mapping[str, InputSpec]
    stated: bool = True
    num_classes: int = 0
    dtype: torch.dtype = torch.float32


def replace_config(config: Any, changes: Mapping[str, Any], name: str) -> Any:
    """Return ``config`` with some fields changed.

    Raises:
        ValueError: there is no such field, or a value is out of its range.
    """
    known = [f.name for f in dataclasses.fields(config)]
    if unknown := sorted(set(changes) - set(known)):
        raise ValueError(
            f"{name} has no configuration field {', '.join(unknown)}; fields: {', '.join(known)}"
        )
    return dataclasses.replace(config, **changes)


def describe(
    architecture: Architecture, file: checkpoints.CheckpointFile | None, entry: WeightsEntry | None
) -> Description:
    """Read what a file of our own and the manifest say; one that says nothing is as the architecture is.

    Raises:
        CorruptCheckpointError: the file's description of itself is damaged.
        WeightsMismatchError: the file holds another architecture, or not what the manifest says.
        ValueError: the manifest's configuration is not one of the architecture.
    """
    inputs: Mapping[str, InputSpec] = architecture.family.INPUTS
    says: dict[str, Any] = {}
    if entry:
        sensors = entry.config.get("sensors", {})
        inputs = {m: InputSpec.from_mapping(sensors.get(m, m), spec) for m, spec in entry.inputs.items()}
        # The order of the weights' bands is the one that the manifest states.
        stated = {**architecture.config.bands, **{m: spec.bands for m, spec in inputs.items()}}
        says = {"bands": stated, **entry.config}
    base = replace_config(architecture.config, says, architecture.name)
    # A band without statistics is in the config alone.
    if entry and any(
        spec.of(base.bands[m]).bands != spec.bands for m, spec in inputs.items() if m in base.bands
    ):
        raise WeightsMismatchError(f"{entry.id}: its config and its inputs state different bands")
    dtype = entry.dtype if entry else "float32"
    if file is None or checkpoints.METADATA_KEY not in file.metadata:
        # A state dict of ours without a description still shows whether it has a head.
        head = file.tensors.get("head.weight") if file else None
        classes = head.shape[0] if head and len(head.shape) == 2 else 0
        return Description(base, inputs, file is None or entry is not None, classes, getattr(torch, dtype))
    try:
        own = json.loads(file.metadata[checkpoints.METADATA_KEY])
        name, fields, classes, stored = (own[k] for k in ("architecture", "config", "num_classes", "dtype"))
        if name != architecture.name:
            raise WeightsMismatchError(f"{file.path} holds {name}, not {architecture.name}")
        if unknown := [s for s in fields.get("sensors", {}).values() if s not in SENSORS]:
            raise WeightsMismatchError(
                f"{file.path} takes bands of {', '.join(map(repr, unknown))}, which is no known sensor; "
                "register it before loading: rsbackbones.register_sensor(Sensor(...))"
            )
        _check_wavelengths(own.get("wavelengths", {}), fields.get("sensors", {}), file.path)
        config = replace_config(architecture.config, fields, architecture.name)
        # What would be built must be no more than what is there.
        if not 0 <= int(classes) <= 2**20 or config.min_tensors() > len(file.tensors):
            raise ValueError(f"{config.summary()}, {classes} classes, {len(file.tensors)} tensors")
        if stored not in ("float32", "float16", "bfloat16"):
            raise ValueError(f"unknown dtype {stored!r}")
        if not entry and "inputs" in own:
            inputs = {
                m: InputSpec.from_mapping(config.sensors.get(m, m), contract)
                for m, contract in own["inputs"].items()
            }
    except WeightsMismatchError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptCheckpointError(f"{file.path}: its description is damaged: {error}") from error
    if entry and (stored != dtype or replace_config(config, says, entry.id) != config):
        raise WeightsMismatchError(
            f"{file.path} says {stored} and {config}, the manifest says {dtype} and {says}"
        )
    return Description(config, inputs, True, int(classes), getattr(torch, stored))


def _check_wavelengths(
    wavelengths: Mapping[str, Mapping[str, float]], sensors: Mapping[str, str], path: Path
) -> None:
    """Compare the bands that a file was written for with those that its sensors have here."""
    for modality, stated in wavelengths.items():
        sensor = get_sensor(sensors.get(modality, modality))
        here = {band.name: band for band in sensor.bands}
        for name, wavelength in stated.items():
            if name not in here or abs(here[name].wavelength - wavelength) > here[name].width / 2:
                found = f"at {here[name].wavelength:g} nm" if name in here else "missing"
                raise WeightsMismatchError(
                    f"{path} takes the band {name} of {sensor.name} at {wavelength:g} nm; the sensor "
                    f"registered here under this name has it {found}: it is another one. Register the "
                    "sensor that the file was written for"
                )


def plan_bands(
    theirs: Any,
    mine: Any,
    missing: str,
    scale: str,
    *,
    named: Collection[str] = (),
    inputs: Mapping[str, InputSpec] = MappingProxyType({}),
) -> tuple[BandTable, ...]:
    """Say for every modality of the configuration ``mine`` which weights of ``theirs`` its bands get.

    ``named`` are the modalities whose bands or sensor the user gave: where there are any, ``all_new`` is of
    those only. ``inputs`` are the contracts of the weights, which tell the bands that they do not look at.

    Raises:
        ValueError: as :func:`rsbackbones.zoo.adapt.match_bands`, or a rule that makes kernels where they are
            made from wavelengths.
    """
    tables = []
    for modality in mine.modalities:
        if modality not in theirs.modalities:
            continue  # a sensor that a model without weights is built for
        rule, made = missing, theirs.takes_wavelengths(modality)
        if missing == "all_new" and named and modality not in named:
            rule = "error"  # these are the weights' own bands, and lack none
        if made and rule in ("mean", "zero", "all_new"):
            raise ValueError(
                f"{modality}: these weights make the kernels of any bands from their wavelengths, so "
                f"bands_missing={missing!r} has no meaning; leave it (--missing) out, or say 'nearest' for "
                "the input statistics of the nearest bands"
            )
        if made and rule == "error":
            rule = "new"  # only the statistics of the input can be missing, and create_preprocess asks
        table = adapt.match_bands(
            modality, mine.bands[modality], theirs.bands[modality], sensor=mine.sensors[modality],
            weights_sensor=theirs.sensors[modality], missing=rule, scale=scale,
            ignored=inputs[modality].ignored if modality in inputs else (),
        )  # fmt: skip
        tables.append(adapt.made_from_wavelengths(table) if made else table)
    return tuple(tables)


def adapted_inputs(described: Description, theirs: Any, tables: Sequence[BandTable]) -> dict[str, InputSpec]:
    """Return the input contracts for the bands of a model whose weights are as ``theirs`` says."""
    inputs = dict(described.inputs)
    for table in tables:
        spec = inputs.get(table.modality)
        if spec is None:
            continue
        stated = described.config.sensors.get(table.modality, table.modality)
        if stated != table.weights_sensor:  # overrides= say that the weights are of another sensor
            known = adapt.match_bands(
                table.modality, theirs.bands[table.modality], spec.bands, sensor=table.weights_sensor,
                weights_sensor=stated, missing="new",
            )  # fmt: skip
            spec = adapt.adapt_contract(spec, known)
        inputs[table.modality] = adapt.adapt_contract(spec, table)
    return inputs


def load_weights(
    model: Backbone,
    file: checkpoints.CheckpointFile,
    described: Description,
    theirs: Any,
    architecture: Architecture,
    entry: WeightsEntry | None,
    tables: Sequence[BandTable],
) -> Adaptation:
    """Fill a model that was built on the meta device; return what was changed on the way.

    ``theirs`` is the configuration of the whole model that the file must hold, no more and no less;
    ``tables`` say what the bands of each of the model's sensors get, from :func:`plan_bands`.

    Raises:
        WeightsMismatchError: the file holds other tensors.
        CorruptCheckpointError: a tensor holds NaN or infinity.
    """
    with torch.device("meta"):
        whole: Backbone = architecture.family.build(theirs, num_classes=described.num_classes)
    full = whole.state_dict()
    known = architecture.layouts
    what = f"{entry.id} ({file.path})" if entry else str(file.path)
    layout = entry.format if entry else layouts.recognise(file.tensors, known)
    if layout != "rsbackbones" and layout not in known:
        raise WeightsMismatchError(f"{what}: unknown format {layout!r}; known: {', '.join(known)}")
    changes: list[Change] = []
    if not described.stated:
        changes.append(Change("configuration", "assumed", f"{theirs.summary()}: the file does not say"))
    if layout == "rsbackbones":
        names = {name: name for name in file.tensors}
    else:
        names = known[layout].to_ours(file.tensors)
        changes += _check_rest(file, known[layout], names, theirs, what)
    params = sum(parameter.numel() for parameter in whole.parameters())
    _compare(what, file, names, full, described.dtype, entry, params)

    built = model.state_dict()
    needed = {name: ours for name, ours in names.items() if ours in built}
    state = {needed[name]: tensor for name, tensor in file.read(needed).items()}
    if bad := checkpoints.not_finite(state):
        raise CorruptCheckpointError(f"{what}: NaN or infinity in {', '.join(bad)}")
    # A copy of our own: what was read is mapped onto the file, and would follow its changes.
    state = {
        name: tensor.to(built[name].dtype, copy=True, memory_format=torch.contiguous_format)
        for name, tensor in state.items()
    }

    for table in tables:
        changes += _adapt_stem(model, whole, state, table)
    if left_out := [m for m in theirs.modalities if m not in model.modalities]:
        changes.append(Change("modalities", "left out", ", ".join(left_out)))
    changes += _adapt_head(model, state, described.num_classes)
    model.load_state_dict(state, strict=True, assign=True)
    if empty := [name for name, buffer in model.named_buffers() if buffer.is_meta]:
        raise WeightsMismatchError(
            f"{what}: no file holds the buffers {', '.join(empty)}, which are not persistent: let the "
            'network compute them when they are needed, or build them with device="cpu"'
        )
    return Adaptation(tuple(changes), tuple(table for table in tables if table))


def zero_stem_channels(model: Backbone, tables: Sequence[BandTable]) -> None:
    """Set to zero what a model of random weights has for bands under the rule ``zero``."""
    for table in tables:
        if zero := [i for i, row in enumerate(table.rows) if row.rule == "zero"]:
            stem = model.stem(table.modality)
            weight = model.get_parameter(stem.weight)
            with torch.no_grad():
                kernel = stem.to_kernel(weight).clone()
                kernel[:, zero] = 0
                weight.copy_(stem.from_kernel(kernel))


def _adapt_stem(model: Backbone, whole: Backbone, state: dict[str, Tensor], table: BandTable) -> list[Change]:
    """Turn the weight of a stem of the ``whole`` model into that of ``model``: its bands and patches."""
    stem, stored = model.stem(table.modality), whole.stem(table.modality)
    kernel = stored.to_kernel(state[stem.weight])
    sides = stem.to_kernel(model.get_parameter(stem.weight)).shape[2:]
    if table and not table.made:
        fan_in = len(table.rows) * kernel[0, 0].numel()
        fresh = kernel.new_empty(kernel.shape[0], len(table.rows), *kernel.shape[2:])
        if any(row.rule == "new" for row in table.rows):
            fresh.uniform_(-(fan_in**-0.5), fan_in**-0.5)  # as torch initialises linear maps and convolutions
        else:
            fresh.zero_()
        kernel = adapt.adapt_bands(kernel, table, fresh)
    before = kernel.shape[2:]
    if before != sides:
        kernel = adapt.resize_kernel(kernel, sides[-1])
    state[stem.weight] = stem.from_kernel(kernel).contiguous()
    if before == sides:
        return []
    detail = f"{before[-1]} to {sides[-1]} pixels, pseudo-inverse resize"
    return [Change(f"{table.modality} tokenizer", "patch resized", detail)]


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
    params: int,
) -> None:
    """Compare a file with the model it must hold, before anything is loaded."""
    ours = Counter(names.values())
    twice = sorted(name for name, count in ours.items() if count > 1)
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
        own = full[our_name].dtype
        expected = dtype if own.is_floating_point else own  # counters keep their type
        if info.dtype != expected:
            dtypes.append(f"{name} {info.dtype} instead of {expected}")
    problems += [("of another shape", shapes), ("of another type", dtypes)]
    if any(found for _, found in problems):
        lines = "; ".join(f"{kind}: {_some(found)}" for kind, found in problems if found)
        raise WeightsMismatchError(
            f"{what} does not hold this model: {lines}. A file without a description of "
            "its own is taken to hold the architecture as it is; where it differs in size, sensors or bands "
            "say so: overrides={'dim': ..., 'modalities': ('s2',)} (on the command line: --override dim=...)"
        )
    if entry is not None and entry.params and entry.params != params:
        raise WeightsMismatchError(f"{what}: {params} parameters, the manifest says {entry.params}")


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _adapt_head(model: Backbone, state: dict[str, Tensor], stored_classes: int) -> list[Change]:
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
