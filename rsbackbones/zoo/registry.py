"""The names of the zoo: architectures, and the weights that exist for them."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import import_module
from types import ModuleType
from typing import Any

from rsbackbones.models.checkpoint_format import Layout
from rsbackbones.zoo.manifest import WeightsEntry, all_entries

# A family is a module, imported when its name is first needed.
FAMILIES = ["rsbackbones.models.croma", "rsbackbones.models.seamo"]
# What the module of a family has: configurations by name, input contracts by modality, and the builder.
_REQUIRED = ("CONFIGS", "INPUTS", "build")
# Called when a family has been added.
on_new_family: list[Callable[[], None]] = []


@dataclass(frozen=True)
class Architecture:
    """A named configuration of a family."""

    name: str
    family: ModuleType
    config: Any

    @property
    def layouts(self) -> Mapping[str, Layout]:
        """The checkpoints of others that the family reads, by the name of their layout."""
        layouts: Mapping[str, Layout] = getattr(self.family, "LAYOUTS", {})
        return layouts

    @property
    def small(self) -> Mapping[str, Any]:
        """The fields of the configuration that make a model small enough for a test."""
        small: Mapping[str, Any] = getattr(self.family, "SMALL", {})
        return small


def register_family(module: str) -> None:
    """Add the family in a module of your own, ``"mypackage.mymodel"``, to those that ``create_model`` knows.

    For commands, which import nothing of yours, see :mod:`rsbackbones.plugins`.

    Raises:
        ValueError: the module lacks what a family has, or a name is taken.
    """
    if module in FAMILIES:
        return
    family = import_module(module)
    if lacking := [name for name in _REQUIRED if not hasattr(family, name)]:
        raise ValueError(
            f"{module} is no model family: it lacks {', '.join(lacking)}; a family has {', '.join(_REQUIRED)}"
        )
    if taken := sorted(set(family.CONFIGS) & set(architectures())):
        raise ValueError(f"{module}: there is another architecture called {', '.join(taken)}; rename yours")
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
        ValueError: there is none; names the closest ones.
    """
    known = architectures()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(
            f"unknown model {name!r}; {hint}known: {', '.join(sorted(known))}. (A family of your own: "
            "rsbackbones.register_family, for commands in a module that RSBACKBONES_PLUGINS names)"
        )
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
