"""The names of the zoo: architectures, and the weights that exist for them."""

import difflib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import import_module
from types import ModuleType
from typing import Any

from rsbackbones.manifest import WeightsEntry, all_entries

# A family is one module of rsbackbones.models, imported when its name is first needed.
FAMILIES = ("croma", "seamo")


@dataclass(frozen=True)
class Architecture:
    """A named configuration of a family."""

    name: str
    family: ModuleType
    config: Any


def architectures() -> dict[str, Architecture]:
    """Return every architecture by name."""
    found = {}
    for family in FAMILIES:
        module = import_module(f"rsbackbones.models.{family}")
        for name, config in module.CONFIGS.items():
            found[name] = Architecture(name, module, config)
    return found


def find_architecture(name: str) -> Architecture:
    """Return the architecture called ``name``.

    Raises:
        ValueError: there is none; names the closest ones.
    """
    known = architectures()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(f"unknown model {name!r}; {hint}known: {', '.join(sorted(known))}")
    return known[name]


def list_models(pattern: str = "*", *, pretrained: bool = False) -> list[str]:
    """Return the names of the architectures that match a shell-style ``pattern``, sorted.

    With ``pretrained`` the names are ``architecture.tag``, for weights that can be had.
    """
    if not pretrained:
        return sorted(name for name in architectures() if fnmatchcase(name, pattern))
    return sorted(entry.id for entry in list_weights(pattern) if entry.state != "none")


def list_weights(pattern: str = "*") -> list[WeightsEntry]:
    """Return the weights entries whose id or architecture matches a shell-style ``pattern``, by id.

    Entries of state ``none`` say why an architecture has no weights.
    """
    return sorted(
        (e for e in all_entries() if fnmatchcase(e.id, pattern) or fnmatchcase(e.architecture, pattern)),
        key=lambda entry: entry.id,
    )
