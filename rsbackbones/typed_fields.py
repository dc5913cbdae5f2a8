"""Values from JSON, compared with the annotations of the dataclass that they become.

Manifests, the metadata of checkpoints and repositories on the Hub are written by others. A value of another
type, an infinite number or a text without end is refused here, with the name of its field. What a field
means (a range, a name that must be known) is checked by the dataclass.
"""

import functools
import reprlib
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

MAX_TEXT, MAX_ITEMS, MAX_WHOLE, MAX_DEPTH = 100_000, 10_000, 2**53, 16
# Products of two such numbers fit float32.
MAX_NUMBER = 1e12
_MAX_NAME = 200
_show = reprlib.Repr()
_show.maxlevel, _show.maxstring, _show.maxother, _show.maxlong = 2, 80, 80, 40


def check_fields(kind: type, values: Any, here: str, *, also: Mapping[str, Any] | None = None) -> None:
    """Compare values by name with the annotations of ``kind``, a dataclass. JSON's lists stand for tuples.

    Args:
        kind: its fields and their types are those expected.
        values: a mapping. Fields may be missing.
        here: what the values belong to, for errors.
        also: types of further names.

    Raises:
        ValueError: ``values`` is no mapping, has an unknown name, or a value of another type, out of bounds,
            or not finite. The message names the field.
    """
    hints = _hints(kind) | dict(also or {})
    if not isinstance(values, Mapping):
        raise ValueError(f"{here}: expected an object with the fields {', '.join(hints)}, got {show(values)}")
    if unknown := [name for name in values if name not in hints]:
        raise ValueError(
            f"{here}: unknown field {', '.join(map(show, unknown[:8]))}; fields: {', '.join(hints)}"
        )
    for name, value in values.items():
        if wrong := find_misfit(value, hints[name], str(name)):
            raise ValueError(f"{here}: {wrong.path} must be {describe(wrong.hint)}, got {show(wrong.value)}")


def show(value: Any) -> str:
    """Return a value in a few words, for an error, whatever its size."""
    return _show.repr(value)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


class Misfit(NamedTuple):
    """A value that does not have its type; ``path`` names it: ``bands.s2.0``."""

    path: str
    hint: Any
    value: Any


def find_misfit(value: Any, hint: Any, path: str, depth: int = 0) -> Misfit | None:
    """Return the first value, of those within ``value`` too, that does not have its type."""
    if hint is Any:
        hint = next((form for kind, form in _JSON if isinstance(value, kind)), Any)
    if hint in _SCALARS:
        return None if _SCALARS[hint](value) else Misfit(path, hint, value)
    origin, inner = _parts(hint)
    if origin in (types.UnionType, typing.Union):
        found = [find_misfit(value, kind, path, depth) for kind in inner]
        # The type that a value comes nearest to is the one with the innermost reason.
        nearest = max(found, key=lambda misfit: misfit.path.count(".") if misfit else 0)
        within = nearest is not None and nearest.path != path
        return None if None in found else nearest if within else Misfit(path, hint, value)
    items = _items(value, hint) if depth <= MAX_DEPTH else None
    if items is None:
        return Misfit(path, hint, value)
    inside = (find_misfit(item, kind, f"{path}.{name}", depth + 1) for name, item, kind in items)
    return next((misfit for misfit in inside if misfit), None)


def _items(value: Any, hint: Any) -> list[tuple[str, Any, Any]] | None:
    """Return name, value and type of what a value contains; ``None`` if it is itself of another type."""
    origin, inner = _parts(hint)
    if origin is typing.Literal:
        return [] if any(value == known and type(value) is type(known) for known in inner) else None
    if origin is tuple:
        if not isinstance(value, list | tuple) or len(value) > MAX_ITEMS:
            return None
        kinds = (inner[0],) * len(value) if inner[1:] == (...,) else inner
        names = map(str, range(len(value)))
        return list(zip(names, value, kinds, strict=True)) if len(kinds) == len(value) else None
    if not isinstance(value, Mapping):  # a mapping, or a class that stands for its JSON
        return [] if isinstance(hint, type) and isinstance(value, hint) else None
    of_names, held = inner if len(inner) == 2 else (str, Any)
    if hint is Any or len(value) > MAX_ITEMS:
        return None
    if any(find_misfit(name, of_names, "") or len(name) > _MAX_NAME for name in value):
        return None
    return [(name, item, held) for name, item in value.items()]


@functools.cache
def _parts(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    return typing.get_origin(hint), typing.get_args(hint)


def _is_number(value: Any, kind: Any, most: float) -> bool:
    # NaN is not at most anything.
    return isinstance(value, kind) and not isinstance(value, bool) and abs(value) <= most


_SCALARS: dict[Any, Callable[[Any], bool]] = {
    None: lambda value: value is None,
    type(None): lambda value: value is None,
    bool: lambda value: isinstance(value, bool),
    int: lambda value: _is_number(value, int, MAX_WHOLE),
    float: lambda value: _is_number(value, (int, float), MAX_NUMBER),
    str: lambda value: isinstance(value, str) and len(value) <= MAX_TEXT,
}
# What Any stands for, by the type of a value.
_JSON: tuple[tuple[Any, Any], ...] = (
    (type(None), None), (bool, bool), (int, int), (float, float), (str, str),
    ((list, tuple), tuple[Any, ...]), (Mapping, Mapping[str, Any]),
)  # fmt: skip
_WORDS = {None: "null", type(None): "null", bool: "true or false", int: "a whole number", str: "text",
          float: f"a finite number of at most {MAX_NUMBER:g}", Any: "plain values"}  # fmt: skip


def describe(hint: Any) -> str:
    """Return the type in words."""
    if hint in _WORDS:
        return _WORDS[hint]
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(describe, inner))
    if origin is tuple:
        every = inner[:1] if inner[1:] == (...,) else inner
        return f"a list ({', '.join(map(describe, every))}{', ...' if inner[1:] == (...,) else ''})"
    if len(inner) == 2:
        return f"an object of {describe(inner[1])}"
    return "an object"
