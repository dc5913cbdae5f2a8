"""Names: architectures, the weights that exist for them, and what a name given by the user refers to.

A name is ``croma_vit_b``, ``croma_vit_b.TAG``, or ``hf-hub:ORG/NAME[@REVISION]``.
"""

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import import_module
from types import ModuleType
from typing import Any

from rsbackbones.models.checkpoint_format import CheckpointFormat
from rsbackbones.sensors import SENSORS
from rsbackbones.typed_fields import check_fields
from rsbackbones.zoo import hub, licenses
from rsbackbones.zoo.checkpoint_files import MAX_TENSORS
from rsbackbones.zoo.manifest import WeightsEntry, all_entries, find_entry

# Modules of the model families, imported when a name is first needed.
FAMILIES = [
    "rsbackbones.models.croma",
    "rsbackbones.models.seamo",
    "rsbackbones.models.auxmae",
    "rsbackbones.models.mixmae",
    "rsbackbones.models.s4",
    "rsbackbones.models.resnet",
    "rsbackbones.models.efficientnet",
    "rsbackbones.models.plain_vit",
]
# Attributes of a family's module: configurations by name, input contracts by modality, and the builder.
_REQUIRED = ("CONFIGS", "INPUTS", "build")
# Callbacks for newly registered families.
on_new_family: list[Callable[[], None]] = []


@dataclass(frozen=True)
class Architecture:
    """A named configuration of a family."""

    name: str
    family: ModuleType
    config: Any

    @property
    def formats(self) -> Mapping[str, CheckpointFormat]:
        """The foreign checkpoint formats that the family reads, by name."""
        formats: Mapping[str, CheckpointFormat] = getattr(self.family, "CHECKPOINT_FORMATS", {})
        return formats

    @property
    def dropped(self) -> tuple[str, ...]:
        """Prefixes of the names in foreign checkpoints that are no part of the model."""
        return tuple(prefix for format in self.formats.values() for prefix in format.dropped)

    @property
    def small(self) -> Mapping[str, Any]:
        """Configuration fields that make the model small enough for tests."""
        small: Mapping[str, Any] = getattr(self.family, "SMALL", {})
        return small


def register_family(module: str) -> None:
    """Register the model family in your own module, such as ``"mypackage.mymodel"``, with ``create_model``.

    Commands do not run your code: for them see :mod:`rsbackbones.plugins`.

    Raises:
        ValueError: the module lacks an attribute of a family or the input contract of a modality, or a name
            is already in use or contains other characters than letters, digits, ``_`` and ``-``.
    """
    if module in FAMILIES:
        return
    family = import_module(module)
    if lacking := [name for name in _REQUIRED if not hasattr(family, name)]:
        raise ValueError(
            f"{module} is not a model family: it has no {', '.join(lacking)}; "
            f"a family defines {', '.join(_REQUIRED)}"
        )
    # A dot separates the tag of weights, and a colon starts the name of a repository.
    if bad := [name for name in family.CONFIGS if not re.fullmatch(r"[A-Za-z0-9_-]+", str(name))]:
        raise ValueError(
            f"{module}: architecture names consist of letters, digits, _ and -, got "
            f"{', '.join(map(repr, bad))}; rename them in CONFIGS"
        )
    needed = dict.fromkeys(m for config in family.CONFIGS.values() for m in config.modalities)
    if lacking := [m for m in needed if m not in family.INPUTS]:
        raise ValueError(
            f"{module}: INPUTS has no input contract for {', '.join(map(repr, lacking))}; create_preprocess "
            "normalizes by it. Add one, such as rsbackbones.input_spec.SSL4EO_S12['s2']"
        )
    if taken := sorted(set(family.CONFIGS) & set(architectures())):
        raise ValueError(f"{module}: the architecture names {', '.join(taken)} are in use; rename yours")
    FAMILIES.append(module)
    for listener in on_new_family:
        listener()


def architectures() -> dict[str, Architecture]:
    """Return every architecture by name."""
    found = {}
    for family in FAMILIES:
        module = import_module(family)
        for name, config in module.CONFIGS.items():
            found[name] = Architecture(name, module, config)
    return found


def find_architecture(name: str) -> Architecture:
    """Return the architecture called ``name``.

    Raises:
        ValueError: it is unknown; the message lists the closest names.
    """
    known = architectures()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(
            f"unknown model {name!r}; {hint}known: {', '.join(sorted(known))}. (To add your own family call "
            "rsbackbones.register_family, for commands in a module that RSBACKBONES_PLUGINS names)"
        )
    return known[name]


def replace_config(config: Any, changes: Mapping[str, Any], name: str) -> Any:
    """Return ``config`` with some fields changed.

    Raises:
        ValueError: there is no such field, or a value has another type or is out of its range.
    """
    known = [f.name for f in dataclasses.fields(config)]
    if unknown := sorted(set(changes) - set(known)):
        raise ValueError(
            f"{name} has no configuration field {', '.join(unknown)}; fields: {', '.join(known)}"
        )
    try:
        changed = dataclasses.replace(config, **changes)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    except (TypeError, AttributeError, ArithmeticError):
        check_fields(type(config), changes, name)
        raise
    check_fields(type(config), changes, name)
    if changed.min_tensors() > MAX_TENSORS:
        raise ValueError(f"{name}: {changed.summary()} has more than {MAX_TENSORS} tensors")
    return changed


def override_config(config: Any, overrides: Mapping[str, Any], name: str) -> Any:
    """Return ``config`` with a user's ``overrides``, in which ``bands`` may name those of some modalities.

    (What states a whole network, a file or a manifest, must name all: see :func:`replace_config`.)

    Raises:
        ValueError: as :func:`replace_config`, or ``bands`` has an unknown modality, or none.
    """
    given = overrides.get("bands")
    if not isinstance(given, Mapping):
        return replace_config(config, overrides, name)
    unknown = [m for m in given if m not in SENSORS]
    if unknown or not given:
        named = ", ".join(map(repr, unknown)) or "none"
        raise ValueError(f"{name}: bands are by modality, such as {{'s2': ('B02', 'B03')}}, got {named}")
    return replace_config(config, {**overrides, "bands": {**config.bands, **given}}, name)


def list_models(pattern: str = "*", *, pretrained: bool = False) -> list[str]:
    """Return the names of the architectures that match a shell-style ``pattern``, sorted.

    With ``pretrained``, return ``architecture.tag`` of the weights that are available.
    """
    if not pretrained:
        return sorted(name for name in architectures() if fnmatchcase(name, pattern))
    return sorted(entry.id for entry in list_weights(pattern) if entry.availability != "unreleased")


def list_weights(
    pattern: str = "*",
    *,
    sensor: str | None = None,
    method: str | None = None,
    data: str | None = None,
    license: str | None = None,
    bands: Sequence[str] | None = None,
) -> list[WeightsEntry]:
    """Return the weights entries that match, sorted by id.

    Unreleased entries state why an architecture has no weights.

    Args:
        pattern: shell-style, for the id or the architecture.
        sensor: shell-style, for one of the sensors: ``"s2"``, ``"landsat*"``.
        method: shell-style, for the pretraining method: ``"moco"``.
        data: shell-style, for the pretraining data: ``"ssl4eo*"``.
        license: an SPDX identifier or the publisher's name, or ``"permissive"``
            (:data:`rsbackbones.zoo.licenses.PERMISSIVE`).
        bands: names of bands that the weights of one sensor must all have: ``("B02", "B03", "B04", "B08")``.

    Raises:
        ValueError: ``bands`` is a string.
    """
    if isinstance(bands, str):
        raise ValueError(f"bands must be a sequence of names, got the string {bands!r}")
    return sorted(
        (
            e
            for e in all_entries()
            if (fnmatchcase(e.id, pattern) or fnmatchcase(e.architecture, pattern))
            and (sensor is None or any(fnmatchcase(name, sensor) for name in _sensors(e).values()))
            and (method is None or fnmatchcase(e.method, method))
            and (data is None or fnmatchcase(e.data, data))
            and (license is None or licenses.matches(e.license, license))
            and (bands is None or any(_has_bands(e, m, sensor, bands) for m in e.inputs))
        ),
        key=lambda entry: entry.id,
    )


def _sensors(entry: WeightsEntry) -> dict[str, str]:
    """Return the sensor of every modality of an entry."""
    own = entry.config.get("sensors", {})
    return {modality: own.get(modality, modality) for modality in entry.inputs}


def _has_bands(entry: WeightsEntry, modality: str, sensor: str | None, bands: Sequence[str]) -> bool:
    name = _sensors(entry)[modality]
    if name not in SENSORS or (sensor is not None and not fnmatchcase(name, sensor)):
        return False
    try:
        return {*SENSORS[name].canonical(bands)} <= {*entry.inputs[modality]["bands"]}
    except ValueError:  # names of another sensor
        return False


def resolve_weights(name: str) -> WeightsEntry:
    """Return the weights entry that ``name`` refers to. For a repository, ``config.json`` is fetched.

    Raises:
        WeightsError: there are none, or the repository cannot be read or was not made by rsbackbones.
        ValueError: ``hf-hub:`` is not followed by the name of a repository.
    """
    return hub.read_entry(name) if name.startswith(hub.PREFIX) else find_entry(name)


def resolve_architecture(name: str) -> Architecture:
    """Return the architecture that ``name`` refers to. It need not have weights.

    Raises:
        WeightsError: the repository cannot be read or was not made by rsbackbones.
        ValueError: there is no such architecture.
    """
    if name.startswith(hub.PREFIX):
        return find_architecture(hub.read_entry(name).architecture)
    return find_architecture(name.partition(".")[0])


def resolve_untrained(name: str) -> WeightsEntry | None:
    """Return the entry whose network ``name`` refers to, released or not; ``None`` for an architecture.

    Raises:
        WeightsError: the repository cannot be read or was not made by rsbackbones.
        ValueError: there is no entry with this tag.
    """
    if name.startswith(hub.PREFIX):
        return hub.read_entry(name)
    if "." not in name:
        return None
    if not (entries := [entry for entry in all_entries() if entry.id == name]):
        raise ValueError(f"there are no weights {name}; see: rsbackbones list")
    return entries[0]
