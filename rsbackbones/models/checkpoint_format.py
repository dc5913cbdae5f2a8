"""Foreign checkpoint formats: the tensor names they use, and the mapping from and to native names.

A model family declares each format as a :class:`CheckpointFormat`. Only the functions of this file read it.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class CheckpointFormat:
    """The names that a foreign checkpoint gives to a family's modules.

    ``modules`` maps native module names to foreign ones; ``#`` stands for the index of a block.
    ``parameters`` maps whole tensor names that do not follow from their modules'.
    ``nested``: the file is a dictionary of state dicts, and is written as one; reading also accepts a flat
        one.
    ``dropped``: prefixes of names that are not part of the model.
    ``derived``: tables that the model computes itself, each with a check ``(tensor, config)`` that raises a
    ``ValueError`` if the stored table differs.
    ``implies``: configuration fields that leave no trace in the tensors; all files of the format have these
        values.
    """

    modules: Mapping[str, str]
    parameters: Mapping[str, str] = field(default_factory=dict)
    nested: bool = False
    dropped: tuple[str, ...] = ()
    derived: Mapping[str, Callable[[Tensor, Any], None]] = field(default_factory=dict)
    implies: Mapping[str, Any] = field(default_factory=dict)

    def to_native(self, names: Iterable[str]) -> dict[str, str]:
        """Map the tensor names of a file to native ones, ``{foreign: native}``, without dropped and derived
        ones.

        A name that matches no template maps to itself; the comparison with the model reports it later.
        """
        pairs = [(foreign, native) for native, foreign in self.modules.items()]
        whole = {foreign: native for native, foreign in self.parameters.items()}
        kept = (n for n in names if n not in self.derived and not n.startswith(self.dropped))
        return {name: whole.get(name) or _translate(name, pairs) or name for name in kept}

    def from_native(self, names: Iterable[str]) -> dict[str, str]:
        """Map native tensor names to this format's, ``{native: foreign}``.

        Raises:
            ValueError: the format cannot store a tensor (that of a classification head, for example).
        """
        pairs = list(self.modules.items())
        translated = {name: self.parameters.get(name) or _translate(name, pairs) for name in names}
        unmapped = sorted(name for name, foreign in translated.items() if foreign is None)
        if unmapped:
            raise ValueError(f"this checkpoint format cannot store {', '.join(unmapped)}; use save_model")
        return {name: foreign for name, foreign in translated.items() if foreign is not None}


def _translate(name: str, pairs: Iterable[tuple[str, str]]) -> str | None:
    module, _, parameter = name.rpartition(".")
    for source, target in pairs:
        match = re.fullmatch(re.escape(source).replace(r"\#", r"(\d+)"), module)
        if match:
            return f"{target.replace('#', match[1]) if match.groups() else target}.{parameter}"
    return None


def detect_format(names: Iterable[str], formats: Mapping[str, CheckpointFormat]) -> str:
    """Return the format with the most matching tensor names, or ``"rsbackbones"`` if none matches."""
    names = list(names)
    matches = {
        key: sum(native != foreign for foreign, native in format.to_native(names).items())
        for key, format in formats.items()
    }
    best = max(matches, key=lambda key: matches[key], default="rsbackbones")
    return best if matches.get(best) else "rsbackbones"
