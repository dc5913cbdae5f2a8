"""Find a model in the checkpoint of a training loop: one of several dictionaries, or names with a prefix.

``{"epoch": 3, "model": {...}, "optimizer": {...}}`` holds the model under ``model``; data parallelism and
``torch.compile`` put ``module.`` and ``_orig_mod.`` before all names. The model is found by its tensor names,
and what was found where is reported. Names and shapes are compared strictly afterwards.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from rsbackbones.zoo import checkpoint_files as checkpoints
from rsbackbones.zoo.errors import CorruptCheckpointError, WeightsMismatchError
from rsbackbones.zoo.registry import Architecture, override_config

# A dictionary holds the model if this share of its names are names of the model.
_KNOWN_SHARE = 0.5


@dataclass(frozen=True)
class CheckpointPart:
    """The tensors of a checkpoint that belong to the model, without the prefix of their names.

    ``names`` maps them to the names in the file. ``found`` states where they were, and what was left out.
    """

    file: checkpoints.SafetensorsFile | checkpoints.PickleFile
    names: Mapping[str, str]
    found: str = ""
    tensors: dict[str, checkpoints.TensorInfo] = field(init=False)

    def __post_init__(self) -> None:
        tensors = {name: self.file.tensors[stored] for name, stored in self.names.items()}
        object.__setattr__(self, "tensors", tensors)

    @property
    def path(self) -> Path:
        """The file."""
        return self.file.path

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of the file."""
        return self.file.metadata

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return the named tensors, on the CPU."""
        wanted = list(names)
        held = self.file.read(self.names[name] for name in wanted)
        return {name: held[self.names[name]] for name in wanted}


def find_part(
    file: checkpoints.SafetensorsFile | checkpoints.PickleFile,
    architecture: Architecture,
    overrides: Mapping[str, Any] = MappingProxyType({}),
) -> CheckpointPart:
    """Return the part of a checkpoint that holds the model: the whole file, or one dictionary of it.

    ``overrides`` are fields of the configuration that the user states.

    Raises:
        WeightsMismatchError: several dictionaries hold the model, or values beside its tensors are none.
        CorruptCheckpointError: a tensor of the model is stored as something else.
    """
    if checkpoints.METADATA_KEY in file.metadata:
        return CheckpointPart(file, {name: name for name in file.tensors})
    known = _Known(architecture, overrides)
    found = _find(file, "", known)
    if len(found) > 1:
        exact = [candidate for candidate in found if known.are_all(candidate[1])]
        found = exact if len(exact) == 1 else found
    if len(found) > 1:
        places = [group.removesuffix(".") for group, _ in found]
        raise WeightsMismatchError(
            f"{file.path} holds this model several times, under {', '.join(map(repr, places))}; take one of "
            f"them: torch.save(torch.load({str(file.path)!r}, weights_only=True)"
            f"{''.join(f'[{key!r}]' for key in places[-1].split('.'))}, 'model.pt')"
        )
    if not found:
        _explain(file, known)
    group, names = found[0] if found else ("", {name: name for name in file.tensors})
    _check_others(file, group, architecture, known)
    stored = next(iter(names.items()), ("", ""))
    prefix = stored[1].removeprefix(group).removesuffix(stored[0])
    left = sorted({n.split(".")[0] for n in (*file.tensors, *file.others) if not n.startswith(group)})
    facts = [f"under {group.removesuffix('.')!r}"] if group else []
    facts += [f"names without {prefix!r}"] if prefix else []
    facts += [f"left out: {checkpoints.shorten(left)}"] if left else []
    return CheckpointPart(file, names, "; ".join(facts))


class _Known:
    """The tensor names of an architecture, its own and those of foreign formats."""

    def __init__(self, architecture: Architecture, overrides: Mapping[str, Any]) -> None:
        config = override_config(architecture.config, overrides, architecture.name)
        with torch.device("meta"):
            model = architecture.family.build(config, num_classes=1)
        self.native = set(model.state_dict())
        self.formats = architecture.formats

    def _as_native(self, names: Sequence[str]) -> list[list[str]]:
        return [list(names), *(list(f.to_native(names).values()) for f in self.formats.values())]

    def are_mostly(self, names: Sequence[str]) -> bool:
        """Return whether most of the names are the model's, in its own format or a foreign one."""
        return any(
            native and sum(name in self.native for name in native) >= _KNOWN_SHARE * len(native)
            for native in self._as_native(names)
        )

    def are_all(self, names: Iterable[str]) -> bool:
        """Return whether the names are exactly the model's, with or without a head."""
        body = {name for name in self.native if not name.startswith("head.")}
        return any(body <= set(native) <= self.native for native in self._as_native(list(names)))


def _find(file: Any, group: str, known: _Known) -> list[tuple[str, dict[str, str]]]:
    """Return the dictionaries at or below ``group`` that hold the model: their group, and names."""
    inside = [name for name in file.tensors if name.startswith(group)]
    children = [c for c in file.groups.get(group, ()) if any(name.startswith(c) for name in inside)]
    if len(children) == 1 and all(name.startswith(children[0]) for name in inside):
        return _find(file, children[0], known)
    names = [name.removeprefix(group) for name in inside]
    for prefix in _shared_prefixes(names):
        stripped = [name.removeprefix(prefix) for name in names]
        if known.are_mostly(stripped):
            return [(group, dict(zip(stripped, inside, strict=True)))]
    return [found for child in children for found in _find(file, child, known)]


def _explain(file: Any, known: _Known) -> None:
    """Raise an error that names the model's tensors within a larger module, if a file holds one."""
    if not file.tensors:
        raise WeightsMismatchError(
            f"{file.path} holds no tensors; write them: torch.save(model.state_dict(), ...)"
        )
    names = list(file.tensors)
    for shared in _shared_prefixes(names):
        firsts = list(dict.fromkeys(name.removeprefix(shared).split(".")[0] for name in names))
        for first in firsts if len(firsts) > 1 else ():
            prefix = f"{shared}{first}."
            if known.are_mostly([n.removeprefix(prefix) for n in names if n.startswith(prefix)]):
                others = checkpoints.shorten([f"{shared}{other}." for other in firsts if other != first])
                raise WeightsMismatchError(
                    f"{file.path} holds this model under {prefix!r}, and other things beside it: {others} "
                    f"Save the backbone alone: torch.save(model.{prefix}state_dict(), ...)"
                )


def _shared_prefixes(names: Sequence[str]) -> list[str]:
    """Return the dotted prefixes that all names share, the empty one first."""
    if not names:
        return []
    parts = names[0].split(".")[:-1]
    prefixes = ["", *(".".join(parts[: count + 1]) + "." for count in range(len(parts)))]
    return [prefix for prefix in prefixes if all(name.startswith(prefix) for name in names)]


def _check_others(file: Any, group: str, architecture: Architecture, known: _Known) -> None:
    """Refuse values that are no tensors among those of the model."""
    others = {
        name.removeprefix(group): kind
        for name, kind in file.others.items()
        if name.startswith(group) and not f"{name}.".startswith(architecture.dropped)
    }
    if damaged := [f"{name} is a {kind}" for name, kind in others.items() if name in known.native]:
        raise CorruptCheckpointError(f"{file.path}: not a tensor: {checkpoints.shorten(damaged)}")
    if others:
        what = checkpoints.shorten([f"{name} ({kind})" for name, kind in others.items()])
        raise WeightsMismatchError(
            f"{file.path} has values that are no tensors among its weights: {what}. Keep the weights in a "
            "dictionary of their own, and the rest beside it: torch.save({'model': model.state_dict(), "
            "'epoch': epoch}, ...)"
        )
