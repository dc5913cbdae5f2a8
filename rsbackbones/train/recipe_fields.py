"""The fields of a recipe, of pretraining or of fine-tuning: as JSON, as ``key=value``, and compared."""

import dataclasses
import difflib
import json
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rsbackbones.train.options import RunOptions

if TYPE_CHECKING:
    from rsbackbones.train.recipe import Part

R = TypeVar("R", bound=RunOptions)


def to_json(recipe: "RunOptions | Part") -> dict[str, Any]:
    """Return a recipe, or a part of its data, as JSON values."""
    from pydantic import TypeAdapter

    fields: dict[str, Any] = TypeAdapter(type(recipe)).dump_python(recipe, mode="json")
    return fields


def from_json(fields: Mapping[str, Any], kind: type[R]) -> R:
    """Return the recipe of :func:`to_json`, which is of a ``kind``: of pretraining, of fine-tuning.

    Raises:
        ValueError: a field is missing, unknown, of another type or out of its range.
    """
    from pydantic import TypeAdapter, ValidationError

    if not isinstance(fields, Mapping):
        raise ValueError(f"a recipe is an object of fields, got {type(fields).__name__}")
    _check_keys(kind, fields, "")
    try:
        return TypeAdapter(kind).validate_python(fields)
    except ValidationError as error:
        placed = [(_place(kind, fields, e["loc"]), e) for e in error.errors()]
        problems = [
            f"{place}: " * bool(place)
            + e["msg"].removeprefix("Value error, ")
            + f", got {e['input']!r}" * (e["type"] != "value_error")  # our own checks name the value
            for place, e in placed
            if place is not None
        ]
        raise ValueError("; ".join(problems)) from error


def merge_fields(fields: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``fields`` with ``changes``, field by field where both have fields."""
    merged = dict(fields)
    for name, value in changes.items():
        inner = merged.get(name)
        both = isinstance(inner, Mapping) and isinstance(value, Mapping)
        merged[name] = merge_fields(dict(inner or {}), value) if both else value
    return merged


def replace_fields(recipe: R, changes: Mapping[str, Any]) -> R:
    """Return a recipe with some fields changed; a key names a field within a field by dots.

    Raises:
        ValueError: an unknown key, or a value that does not fit.
    """
    fields = to_json(recipe)
    for key, value in changes.items():
        *path, last = key.split(".")
        inner: Any = fields
        kind: Any = type(recipe)
        for name in path:
            hint = _field_type(kind, name, key)
            if isinstance(inner, dict) and (path[0] == "first" or not dataclasses.is_dataclass(kind)):
                inner.setdefault(name, {})  # it holds only what is different (overrides, a first phase)
            inner = inner.get(name) if isinstance(inner, dict) else None
            kind = type(recipe) if kind is type(recipe) and name == "first" else _member(hint, inner)
        hint = _field_type(kind, last, key)
        if not isinstance(inner, dict):
            raise ValueError(f"unknown key {key!r}: {'.'.join(path)} has no fields")
        inner[last] = _listed(key, value, hint)
        if path[:1] == ["first"]:  # whose fields nobody else brings to their types
            inner[last] = _typed(inner[last])
    return from_json(fields, type(recipe))


def parse_arguments(arguments: Sequence[str], known: Mapping[str, R]) -> R:
    """Return the recipe that ``recipe=NAME key=value ...`` names; ``recipe=FILE.json`` reads a saved one.

    Raises:
        ValueError: no or an unknown recipe, an unknown key, a value that does not fit.
    """
    changes: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key in changes:
            raise ValueError(f"expected key=value, each key once, got {argument!r}")
        changes[key] = value
    name = changes.pop("recipe", None)
    if name is not None and name.endswith(".json"):
        try:
            saved = json.loads(Path(name).expanduser().read_text(encoding="utf-8"))
            fields = saved.get("recipe", saved) if isinstance(saved, dict) else saved
            recipe = from_json(fields, type(next(iter(known.values()))))
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read the recipe {name}: {error}") from error
        return replace_fields(recipe, changes)
    if name is None or name not in known:
        given = "no recipe is named" if name is None else f"unknown recipe {name!r}"
        raise ValueError(f"{given}; say recipe=NAME, one of {', '.join(known)}, or recipe=FILE.json")
    return replace_fields(known[name], changes)


def differences(old: RunOptions, new: RunOptions) -> list[str]:
    """Return the fields in which a run would not be the same run, as ``key: old -> new``."""
    found = []
    before, after = _flat(to_json(old)), _flat(to_json(new))
    for key in {**before, **after}:
        plain = key.removeprefix("first.")  # what may be another in a run may be in its first phase
        if any(plain == free or plain.startswith(free + ".") for free in new.may_change()):
            continue
        if before.get(key) != after.get(key):
            found.append(f"{key}: {before.get(key)} -> {after.get(key)}")
    return found


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in fields.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _field_type(kind: Any, name: str, key: str) -> Any:
    """Return the type of a field; ``key`` is all of what the user named."""
    if not dataclasses.is_dataclass(kind):
        return Any
    hints = typing.get_type_hints(kind)
    if name not in hints:
        close = difflib.get_close_matches(name, hints, n=1)
        raise ValueError(
            f"unknown key {key!r}" + (f", did you mean {close[0]!r}?" if close else "")
            + f" Keys there: {', '.join(hints)}"
        )  # fmt: skip
    return hints[name]


def _member(hint: Any, value: Any) -> Any:
    """Return which of the dataclasses of a union a value is of: that of its ``method``, else the first."""
    several = [kind for kind in typing.get_args(hint) if dataclasses.is_dataclass(kind)]
    if not several or not isinstance(value, Mapping):
        return hint
    methods = {kind.method: kind for kind in several if hasattr(kind, "method")}
    if methods and value.get("method", next(iter(methods))) not in methods:
        raise ValueError(f"unknown method {value['method']!r}; known: {', '.join(methods)}")
    named = [kind for method, kind in methods.items() if method == value.get("method")]
    holds = [kind for kind in several if set(value) <= {f.name for f in dataclasses.fields(kind)}]
    return (named or holds or several)[0]


def _place(kind: Any, value: Any, steps: Sequence[int | str]) -> str | None:
    """Return where an error of pydantic is, by dots; ``None``: in a member of a union that is not meant."""
    path = []
    for step in steps:
        union = len([t for t in typing.get_args(kind) if dataclasses.is_dataclass(t)]) > 1
        if union and isinstance(value, Mapping):
            kind = _member(kind, value)
            if step != kind.__name__:
                return None
            continue  # pydantic names the member, and the user does not
        path.append(str(step))
        hints = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
        kind = hints.get(str(step)) or next(iter(typing.get_args(kind)), Any)
        held = dict(enumerate(value)) if isinstance(value, list | tuple) else value
        value = held.get(step) if isinstance(held, Mapping) else None
    return ".".join(path)


def _check_keys(kind: Any, fields: Mapping[str, Any], prefix: str) -> None:
    for name, value in fields.items():
        inner = _member(_field_type(kind, name, prefix + name), value)
        if isinstance(value, Mapping) and dataclasses.is_dataclass(inner):
            _check_keys(inner, value, f"{prefix}{name}.")
        if isinstance(value, Sequence) and typing.get_origin(inner) is tuple:
            for i, item in enumerate(value):
                member = _member(typing.get_args(inner)[0], item)
                if isinstance(item, Mapping) and dataclasses.is_dataclass(member):
                    _check_keys(member, item, f"{prefix}{name}.{i}.")


def _typed(value: Any) -> Any:
    """Read text that is JSON, and that in a list; other text stays."""
    if isinstance(value, list):
        return [_typed(item) for item in value]
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def _listed(key: str, value: Any, hint: Any) -> Any:
    """Read JSON where a field holds several values, or any; "60,180" is understood for a tuple too."""
    if not isinstance(value, str) or hint is str:
        return value
    if value in ("none", "null") and type(None) in typing.get_args(hint):
        return None
    kinds = (hint, *typing.get_args(hint))
    if value.startswith("{") and any(dataclasses.is_dataclass(t) for t in kinds):
        hint = Any
    several = any(typing.get_origin(t) in (tuple, dict) for t in kinds)
    if several and not value.startswith(("[", "{")):
        return value.split(",")
    if several or hint is Any:
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            if several:
                raise ValueError(f"{key}: {value!r} is no JSON: {error}") from error
    return value
