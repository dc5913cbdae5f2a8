"""Foreign checkpoint layouts: the names their tensors have, and the translation from and to ours.

A model family describes each layout as a :class:`Layout`; the two functions here are all that reads it.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The names that a foreign checkpoint gives to a family's modules.

    ``modules`` pairs our module names with theirs; ``#`` stands for the index of a block. ``nested``:
    the file is a dictionary of state dicts, written so again; reading takes both forms. ``dropped``:
    beginnings of names that are no part of our model. ``derived``: tables that we compute, each with a
    check ``(tensor, config)`` that raises ``ValueError`` where the stored one differs. ``implies``: fields of
    the configuration that leave no trace in the tensors and that every file of the layout has so.
    """

    modules: Mapping[str, str]
    nested: bool = False
    dropped: tuple[str, ...] = ()
    derived: Mapping[str, Callable[[Tensor, Any], None]] = field(default_factory=dict)
    implies: Mapping[str, Any] = field(default_factory=dict)

    def to_ours(self, names: Iterable[str]) -> dict[str, str]:
        """Map the names of a file to ours: ``{theirs: ours}``, without dropped and derived ones.

        A name that no template fits maps to itself, so that the comparison with the model reports it.
        """
        pairs = [(theirs, ours) for ours, theirs in self.modules.items()]
        kept = (n for n in names if n not in self.derived and not n.startswith(self.dropped))
        return {name: _translate(name, pairs) or name for name in kept}

    def from_ours(self, names: Iterable[str]) -> dict[str, str]:
        """Map our names to this layout's: ``{ours: theirs}``.

        Raises:
            ValueError: the layout has no place for a name (a classification head, say).
        """
        pairs = list(self.modules.items())
        translated = {name: _translate(name, pairs) for name in names}
        homeless = sorted(name for name, theirs in translated.items() if theirs is None)
        if homeless:
            raise ValueError(f"this layout has no place for {', '.join(homeless)}")
        return {name: theirs for name, theirs in translated.items() if theirs is not None}


def _translate(name: str, pairs: Iterable[tuple[str, str]]) -> str | None:
    module, _, parameter = name.rpartition(".")
    for source, target in pairs:
        match = re.fullmatch(re.escape(source).replace(r"\#", r"(\d+)"), module)
        if match:
            return f"{target.replace('#', match[1]) if match.groups() else target}.{parameter}"
    return None


def recognise(names: Iterable[str], layouts: Mapping[str, Layout]) -> str:
    """Return the layout a file is in: the one that knows most of its names, else ``"rsbackbones"``."""
    names = list(names)
    known = {
        key: sum(ours != theirs for theirs, ours in layout.to_ours(names).items())
        for key, layout in layouts.items()
    }
    best = max(known, key=lambda key: known[key], default="rsbackbones")
    return best if known.get(best) else "rsbackbones"
