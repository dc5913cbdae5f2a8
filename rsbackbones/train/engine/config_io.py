"""Options of a run as JSON and as ``key=value`` arguments, and the differences between two runs."""

import dataclasses
import difflib
import json
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from rsbackbones.files.bounds import read_json
from rsbackbones.files.json_value import parse_value
from rsbackbones.train.engine.config import RunOptions

R = TypeVar("R", bound=RunOptions)
# A recipe's field that holds, for every stage, the fields of the recipe that differ in it.
STAGES = "stages"
_LONGEST_VALUE = 100  # characters of a value in an error
_MOST_ERRORS = 4  # in one text


def to_json(options: Any) -> dict[str, Any]:
    """Return options (a dataclass: a recipe, or a part of one) as JSON values."""
    fields: dict[str, Any] = TypeAdapter(type(options)).dump_python(options, mode="json")
    return fields


def from_json(fields: Mapping[str, Any], kind: type[R]) -> R:
    """Return the recipe that :func:`to_json` wrote.

    Raises:
        ValueError: a field is missing, unknown, of another type or out of its range.
    """
    if not isinstance(fields, Mapping):
        raise ValueError(f"a recipe is an object of fields, got {type(fields).__name__}")
    try:
        return TypeAdapter(kind).validate_python(fields)
    except ValidationError as error:
        found = [_describe(e, fields, kind) for e in error.errors()]
        more = [f"and {len(found) - _MOST_ERRORS} more"] if len(found) > _MOST_ERRORS else []
        raise ValueError("; ".join(found[:_MOST_ERRORS] + more)) from error


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
            ``optim.base_lr``, ``data.parts.0.repeats``, ``stages.1.data.root``. A dictionary without
            ``method`` has the options of the recipe's method; those that it leaves out have their defaults.

    Raises:
        ValueError: an unknown key, or a value that does not fit.
    """
    fields = to_json(recipe)
    for key, value in changes.items():
        path = key.split(".")
        if isinstance(value, str):
            value = _parse_value(key, value, _walk(type(recipe), fields, path)[0])
        inner: Any = fields
        for depth, name in enumerate(path):
            if not isinstance(inner, list | dict):
                raise ValueError(f"unknown key {key!r}: {'.'.join(path[:depth])} has no fields")
            place: Any = _index(inner, path, depth, key) if isinstance(inner, list) else name
            if depth == len(path) - 1:
                before = inner.get(place) if isinstance(inner, dict) else inner[place]
                if isinstance(value, Mapping) and isinstance(before, Mapping) and "method" in before:
                    value = {"method": before["method"], **value}
                inner[place] = value
            else:
                inner = inner.setdefault(name, {}) if isinstance(inner, dict) else inner[place]
    return from_json(fields, type(recipe))


def _index(items: Sequence[Any], path: Sequence[str], depth: int, key: str) -> int:
    """Return which element of a list ``path[depth]`` names."""
    name, whole = path[depth], ".".join(path[:depth])
    if not name.isdecimal() or int(name) >= len(items):
        there = f"0 to {len(items) - 1}" if items else f"none: pass {whole}=[...] first"
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
        if not equals:
            raise ValueError(f"expected key=value, got {argument!r}")
        if key in changes:
            raise ValueError(f"{key} is given twice: {key}={changes[key]} and {argument}; pass each key once")
        changes[key] = value
    name = changes.pop("recipe", None)
    if name is not None and name.endswith(".json"):
        try:
            saved = read_json(Path(name).expanduser())
            fields = saved.get("recipe", saved) if isinstance(saved, dict) else saved
            recipe = from_json(fields, type(next(iter(known.values()))))
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read the recipe {name}: {error}") from error
        return apply_overrides(recipe, changes)
    if name is None or name not in known:
        given = "no recipe is given" if name is None else f"unknown recipe {name!r}"
        raise ValueError(f"{given}; pass recipe=NAME, one of {', '.join(known)}, or recipe=FILE.json")
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


def union_member(hint: Any, value: Any) -> Any:
    """Return the dataclass of a union that a value is meant for: by its ``method``, else by its fields.

    Raises:
        ValueError: no class has this method.
    """
    several = _members(hint)
    if not several:
        return hint
    held = value if isinstance(value, Mapping) else {}
    methods = {kind.method: kind for kind in several if hasattr(kind, "method")}
    if methods and "method" in held:
        if held["method"] not in methods:
            raise ValueError(
                f"unknown method {held['method']!r}; known: {', '.join(methods)}. Register a method of your "
                "own with register_objective"
            )
        return methods[held["method"]]
    return max(
        several, key=lambda kind: len(set(held) & set(_names(kind))) - len(set(held) - set(_names(kind)))
    )


def _members(hint: Any) -> list[Any]:
    """Return the dataclasses of a union, or those that a class names in ``members()``."""
    if typing.get_origin(hint) is tuple:
        return []
    kinds = hint.members() if hasattr(hint, "members") else typing.get_args(hint)
    return [kind for kind in kinds if dataclasses.is_dataclass(kind)]


def _names(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def _children(value: Any) -> dict[str, Any]:
    """Return the fields of an object, or the elements of a list, by their part of a key."""
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    return {str(step): child for step, child in value.items()} if isinstance(value, Mapping) else {}


def _walk(kind: Any, value: Any, path: Sequence[str]) -> tuple[Any, Any]:
    """Return the type of a key of ``kind`` and its value; ``Any`` and ``None`` if they are not known."""
    if path[:1] == [STAGES] and len(path) > 2:  # a stage has the fields of the recipe
        return _walk(kind, value, path[2:])
    for name in path:
        arguments = typing.get_args(kind)
        if dataclasses.is_dataclass(kind):
            kind = typing.get_type_hints(kind).get(name, Any)
        elif typing.get_origin(kind) is dict:
            kind = arguments[1]
        else:
            repeated = typing.get_origin(kind) is tuple and arguments[1:] == (...,)
            kind = arguments[0] if repeated else Any
        value = _children(value).get(name)
        kind = union_member(kind, value)
    return kind, value


def _describe(error: Mapping[str, Any], fields: Mapping[str, Any], kind: Any) -> str:
    """Return an error of pydantic in one line: the key, what is wrong, and the value."""
    # Of the steps to the error some are names that pydantic has for types.
    path: list[str] = []
    value: Any = fields
    for step in map(str, error["loc"]):
        if step in (children := _children(value)):
            path.append(step)
            value = children[step]
    if error["type"] == "unexpected_keyword_argument":
        return _unknown_key(path, fields, kind)
    if error["type"] == "missing":
        path.append(str(error["loc"][-1]))
        return f"{'.'.join(path)} is missing"
    key, text = ".".join(path), str(error["msg"])
    if error["type"] == "value_error":  # one of our own checks, which names the value
        return f"{key}: " * bool(path) + text.removeprefix("Value error, ")
    text = text.replace("Input should", " must") if text.startswith("Input should") else f": {text}"
    given = repr(error["input"])
    return f"{key}{text}, got {given if len(given) <= _LONGEST_VALUE else given[:_LONGEST_VALUE] + '...'}"


def _unknown_key(path: Sequence[str], fields: Mapping[str, Any], kind: Any) -> str:
    """Return what is wrong with a key, with the key that was probably meant."""
    *above, name = path
    here, _ = _walk(kind, fields, above)
    near = _shallow(key for key in _keys(here) if key.rpartition(".")[2] == name)  # size: data.size
    near = near or difflib.get_close_matches(name, _names(here), n=1)
    if not near:  # lr: base_lr
        words = set(name.split("_"))
        near = _shallow(key for key in _keys(here) if words <= set(key.rpartition(".")[2].split("_")))
    meant = f", did you mean {' or '.join(repr('.'.join([*above, key])) for key in near)}?" if near else "."
    return f"unknown key {'.'.join(path)!r}{meant} Known keys: {', '.join(_names(here))}"


def _shallow(keys: Iterable[str]) -> list[str]:
    """Return those of the keys with the fewest dots, at most three."""
    every = list(keys)
    return [key for key in every if key.count(".") == min(other.count(".") for other in every)][:3]


def _keys(kind: Any) -> Iterator[str]:
    """Yield all keys of a dataclass, with those of its fields."""
    hints = typing.get_type_hints(kind)
    for name in _names(kind):
        yield name
        for member in (hints[name], *_members(hints[name])):
            if dataclasses.is_dataclass(member):
                yield from (f"{name}.{key}" for key in _keys(member))


def _parse_value(key: str, text: str, hint: Any) -> Any:
    """Read the text of an argument: as JSON, unless its field holds text. ``60,180`` is a tuple too."""
    kinds = (hint, *typing.get_args(hint))
    if text in ("none", "null") and type(None) in kinds:
        return None
    if any(typing.get_origin(kind) is typing.Literal and text in typing.get_args(kind) for kind in kinds):
        return text
    if any(typing.get_origin(kind) in (tuple, dict) for kind in kinds):
        if not text.startswith(("[", "{")):
            return [parse_value(item) for item in text.split(",")]
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{key}: {text!r} is not JSON: {error}") from error
    if any(kind in (str, Path) or typing.get_origin(kind) is typing.Literal for kind in kinds):
        return text
    return parse_value(text)
