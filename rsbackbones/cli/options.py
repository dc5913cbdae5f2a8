"""Parts shared by the commands: adding a command, and options that several commands have."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rsbackbones.cli.sensor_file import register_sensor_file

# Adds a command: its name, the function that runs it, its help.
Command = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]


def add_band_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for matching bands to the pretrained ones; :func:`band_rules` reads them."""
    parser.add_argument(
        "--sensor", action="append", default=[], metavar="MODALITY=SENSOR",
        help="the sensor of your bands, if it is not the pretrained one: s2=landsat_oli; for your own sensor "
        "a JSON description: s2=enmap.json (see docs/bands.md)",
    )  # fmt: skip
    parser.add_argument(
        "--missing-bands", default="error",
        help="rule for bands without a match in the weights: error (default), nearest, mean, zero, reinit; "
        "or reinit_all. Re-initialized bands have no statistics: pass them from Python (create_preprocess), "
        "or use the unit uint8_rgb",
    )  # fmt: skip
    parser.add_argument(
        "--kernel-scale", default="count",
        help="rule that scales the remaining kernels if bands are dropped: count (default), sqrt or none",
    )  # fmt: skip


def band_rules(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options of :func:`add_band_options` as arguments of ``create_model``.

    Sensors described by a file are registered.
    """
    sensors = dict(parse_pair(item, "--sensor", "MODALITY=SENSOR") for item in options.sensor)
    for modality, named in sensors.items():
        if named.endswith(".json"):
            sensors[modality] = register_sensor_file(Path(named).expanduser()).name
    return {"sensors": sensors, "missing_bands": options.missing_bands, "kernel_scale": options.kernel_scale}


def parse_pair(item: str, option: str, form: str) -> tuple[str, str]:
    """Split ``NAME=VALUE``; ``form`` is the syntax named in the error."""
    left, equals, right = item.partition("=")
    if not equals:
        raise ValueError(f"{option} expects {form}, got {item!r}")
    return left.strip(), right.strip()


def names_in(text: str) -> list[str]:
    """Split names separated by commas."""
    return [name.strip() for name in text.split(",")]


def classes_in(text: str) -> list[str] | dict[str, list[int | str]]:
    """Parse class names, or class names with their label values: ``water=1,forest=311+312``."""
    if "=" not in text:
        return names_in(text)
    form = "NAME=CODE,NAME=CODE+CODE,... with codes for every class"
    pairs = [parse_pair(item, "--classes", form) for item in names_in(text)]
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError(f"--classes {text}: a class is listed twice; merge codes with NAME=CODE+CODE")
    return {name: [_code(word.strip()) for word in codes.split("+")] for name, codes in pairs}


def _code(word: str) -> int | str:
    return int(word) if word.removeprefix("-").isdecimal() else word


def fields_of(items: Sequence[str]) -> dict[str, Any]:
    """Parse FIELD=VALUE items. A value is JSON, or else a string."""
    fields: dict[str, Any] = {}
    for item in items:
        name, value = parse_pair(item, "--override", "FIELD=VALUE")
        try:
            fields[name] = json.loads(value)
        except json.JSONDecodeError:
            fields[name] = value
    return fields
