"""The options of a run as JSON, as ``key=value``, and compared."""

import dataclasses
import difflib
import json
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rsbackbones.train.engine.config import RunOptions

R = TypeVar("R", bound=RunOptions)
# A recipe's field that holds, for every stage, the fields of the recipe that differ in it.
STAGES = "stages"


def to_json(options: Any) -> dict[str, Any]:
    """Return options (a dataclass: a recipe, or a part of one) as JSON values."""
    from pydantic import TypeAdapter

    fields: dict[str, Any] = TypeAdapter(type(options)).dump_python(options, mode="json")
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
        placed = [(_path(kind, fields, e["loc"]), e) for e in error.errors()]
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


def apply_overrides(recipe: R, changes: Mapping[str, Any]) -> R:
    """Return a recipe with some fields changed.

    Args:
        recipe: the recipe.
        changes: by key. Dots name a field within a field, or an element of a list by its index from 0:
            ``optim.base_lr``, ``data.parts.0.repeat``, ``stages.1.data.root``.

    Raises:
        ValueError: an unknown key, or a value that does not fit.
    """
    fields = to_json(recipe)
    for key, value in changes.items():
        *path, last = key.split(".")
        inner: Any = fields
        kind: Any = type(recipe)
        for depth, name in enumerate(path):
            hint = _field_type(kind, name, key)
            if isinstance(inner, list):
                inner, kind = inner[_index(inner, path, depth, key)], hint
            else:
                if isinstance(inner, dict) and (path[0] == STAGES or not dataclasses.is_dataclass(kind)):
                    inner.setdefault(name, {})  # it holds only what is different (overrides, a stage)
                inner = inner.get(name) if isinstance(inner, dict) else None
                kind = tuple[type(recipe), ...] if (depth, name) == (0, STAGES) else hint  # type: ignore[misc]
            kind = _union_member(kind, inner)
        hint = _field_type(kind, last, key)
        value = _parse_value(key, value, hint)
        if path[:1] == [STAGES]:  # whose fields nobody else brings to their types
            value = _parse_json(value)
        if isinstance(inner, list):
            inner[_index(inner, [*path, last], len(path), key)] = value
        elif isinstance(inner, dict):
            inner[last] = value
        else:
            raise ValueError(f"unknown key {key!r}: {'.'.join(path)} has no fields")
    return from_json(fields, type(recipe))


def _index(items: Sequence[Any], path: Sequence[str], depth: int, key: str) -> int:
    """Return which element of a list ``path[depth]`` names."""
    name, whole = path[depth], ".".join(path[:depth])
    if not name.isdecimal() or int(name) >= len(items):
        there = f"0 to {len(items) - 1}" if items else f"none: say {whole}=[...] first"
        raise ValueError(f"unknown key {key!r}: {whole} is a list, its elements are {there}")
    return int(name)


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
        return apply_overrides(recipe, changes)
    if name is None or name not in known:
        given = "no recipe is named" if name is None else f"unknown recipe {name!r}"
        raise ValueError(f"{given}; say recipe=NAME, one of {', '.join(known)}, or recipe=FILE.json")
    return apply_overrides(known[name], changes)


def differences(old: RunOptions, new: RunOptions) -> list[str]:
    """Return the fields in which a run would not be the same run, as ``key: old -> new``."""
    found = []
    before, after = _flat(to_json(old)), _flat(to_json(new))
    for key in {**before, **after}:
        plain = re.sub(rf"^{STAGES}\.\d+\.", "", key)  # what may change in a run may change in a stage
        if any(plain == free or plain.startswith(free + ".") for free in new.resumable_fields()):
            continue
        if before.get(key) != after.get(key):
            found.append(f"{key}: {before.get(key)} -> {after.get(key)}")
    return found


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in fields.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            for i, item in enumerate(value):
                flat |= {f"{prefix}{key}.{i}": {}, **_flat(item, f"{prefix}{key}.{i}.")}  # even an empty one
        else:
            flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _field_type(kind: Any, name: str, key: str) -> Any:
    """Return the type of a field; ``key`` is all of what the user named."""
    if typing.get_origin(kind) is tuple and typing.get_args(kind)[1:] == (...,):
        return typing.get_args(kind)[0]
    if not dataclasses.is_dataclass(kind):
        return Any
    hints = typing.get_type_hints(kind)
    if name not in hints:
        close = difflib.get_close_matches(name, hints, n=1)
        raise ValueError(
            f"unknown key {key!r}" + (f", did you mean {close[0]!r}?" if close else ".")
            + f" Keys there: {', '.join(hints)}"
        )  # fmt: skip
    return hints[name]


def _members(hint: Any) -> list[Any]:
    """Return the dataclasses of a union, or those that a class says stand for it (``members()``)."""
    kinds = hint.members() if hasattr(hint, "members") else typing.get_args(hint)
    return [kind for kind in kinds if dataclasses.is_dataclass(kind)]


def _union_member(hint: Any, value: Any) -> Any:
    """Return which of the dataclasses of a union a value is of: that of its ``method``, else the first."""
    several = _members(hint)
    if not several or not isinstance(value, Mapping):
        return hint
    methods = {kind.method: kind for kind in several if hasattr(kind, "method")}
    if methods and value.get("method", next(iter(methods))) not in methods:
        raise ValueError(
            f"unknown method {value['method']!r}; known: {', '.join(methods)}. A method of your own is known "
            "once "
            "register_objective was called"
        )
    named = [kind for method, kind in methods.items() if method == value.get("method")]
    holds = [kind for kind in several if set(value) <= {f.name for f in dataclasses.fields(kind)}]
    return (named or holds or several)[0]


def _path(kind: Any, value: Any, steps: Sequence[int | str]) -> str | None:
    """Return where an error of pydantic is, by dots; ``None``: in a member of a union that is not meant."""
    path = []
    for step in steps:
        union = len(_members(kind)) > 1
        if union and isinstance(value, Mapping):
            kind = _union_member(kind, value)
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
        inner = _union_member(_field_type(kind, name, prefix + name), value)
        if isinstance(value, Mapping) and dataclasses.is_dataclass(inner):
            _check_keys(inner, value, f"{prefix}{name}.")
        if isinstance(value, Sequence) and typing.get_origin(inner) is tuple:
            for i, item in enumerate(value):
                member = _union_member(typing.get_args(inner)[0], item)
                if isinstance(item, Mapping) and dataclasses.is_dataclass(member):
                    _check_keys(member, item, f"{prefix}{name}.{i}.")


def _parse_json(value: Any) -> Any:
    """Read text that is JSON, and that in a list; other text stays."""
    if isinstance(value, list):
        return [_parse_json(item) for item in value]
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def _parse_value(key: str, value: Any, hint: Any) -> Any:
    """Read JSON where a field holds several values, or any; "60,180" is understood for a tuple too."""
    if not isinstance(value, str) or hint is str:
        return value
    if value in ("none", "null") and type(None) in typing.get_args(hint):
        return None
    kinds = (hint, *typing.get_args(hint), *_members(hint))
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
