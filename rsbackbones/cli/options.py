"""What the commands share: how one is added, and options that several of them read."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rsbackbones.cli.sensor_file import register_sensor_file

# Adds a command: its name, what runs it, what it does.
Command = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]


def add_band_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how one's bands meet those of the weights; :func:`band_rules` reads them."""
    parser.add_argument(
        "--sensor", action="append", default=[], metavar="MODALITY=SENSOR",
        help="what your bands are of, where it is another sensor: s2=landsat_oli; of one of your own a "
        "description: s2=enmap.json (see docs/bands.md)",
    )  # fmt: skip
    parser.add_argument(
        "--missing", default="error",
        help="what a band unknown to the weights gets: error (default), nearest, mean, zero, new; all_new. "
        "New bands have no statistics: give theirs from Python (create_preprocess), or units of pictures",
    )  # fmt: skip
    parser.add_argument(
        "--scale", default="count", help="where bands are left out, scale the rest by: count, sqrt or none"
    )


def band_rules(options: argparse.Namespace) -> dict[str, Any]:
    """Return what :func:`add_band_options` read, as arguments of ``create_model``.

    A sensor that a file describes is known from here on.
    """
    sensors = dict(pair(item, "--sensor", "MODALITY=SENSOR") for item in options.sensor)
    for modality, named in sensors.items():
        if named.endswith(".json"):
            sensors[modality] = register_sensor_file(Path(named).expanduser()).name
    return {"sensors": sensors, "bands_missing": options.missing, "bands_scale": options.scale}


def pair(item: str, option: str, form: str) -> tuple[str, str]:
    """Split ``NAME=VALUE``; ``form`` is how the option's help writes it."""
    left, equals, right = item.partition("=")
    if not equals:
        raise ValueError(f"{option} takes {form}, got {item!r}")
    return left.strip(), right.strip()


def names_in(text: str) -> list[str]:
    """Split names at commas."""
    return [name.strip() for name in text.split(",")]


def classes_in(text: str) -> list[str] | dict[str, list[int | str]]:
    """Read names of classes, or names with the labels of each: ``water=1,forest=311+312``."""
    if "=" not in text:
        return names_in(text)
    form = "NAME=CODE,NAME=CODE+CODE,... with codes for every class"
    pairs = [pair(item, "--classes", form) for item in names_in(text)]
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError(f"--classes {text}: a class is there twice; several codes are NAME=CODE+CODE")
    return {name: [_code(word.strip()) for word in codes.split("+")] for name, codes in pairs}


def _code(word: str) -> int | str:
    return int(word) if word.removeprefix("-").isdecimal() else word


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
