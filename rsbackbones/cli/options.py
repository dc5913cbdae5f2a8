"""What the commands share: how one is added, and options that several of them read."""

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

# Adds a command: its name, what runs it, what it does.
Command = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]


def pair(item: str, option: str, form: str) -> tuple[str, str]:
    """Split ``NAME=VALUE``; ``form`` is how the option's help writes it."""
    left, equals, right = item.partition("=")
    if not equals:
        raise ValueError(f"{option} takes {form}, got {item!r}")
    return left.strip(), right.strip()


def names_in(text: str) -> list[str]:
    """Split names at commas."""
    return [name.strip() for name in text.split(",")]


def fields_of(items: Sequence[str]) -> dict[str, Any]:
    """Read FIELD=VALUE items; a value is JSON, or else a string."""
    fields: dict[str, Any] = {}
    for item in items:
        name, value = pair(item, "--override", "FIELD=VALUE")
        try:
            fields[name] = json.loads(value)
        except json.JSONDecodeError:
            fields[name] = value
    return fields
