"""What the commands share: the command class, types of options, and options of several commands."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import click

from rsbackbones.cli.sensor_file import register_sensor_file
from rsbackbones.data.raster_path import RasterPath, raster_path
from rsbackbones.files.json_value import parse_value
from rsbackbones.plugins import load_plugins
from rsbackbones.zoo.adapt import MISSING_RULES, SCALE_RULES

# Adds options to a function that becomes a command.
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

FILE = click.Path(path_type=Path)
COUNT = click.IntRange(min=1)


class Command(click.Command):
    """A command that groups its options in the help, and reports expected errors in one line."""

    def invoke(self, ctx: click.Context) -> int:
        """Run the command; return its exit code: 0, 1 if a check failed, 2 for an error."""
        try:
            load_plugins()
            code: int = super().invoke(ctx)
            sys.stdout.flush()
            return code
        except BrokenPipeError:  # the reader of a pipe, such as `head`, has what it wants
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more
            return 0
        except (ValueError, ImportError, OSError) as error:
            print(f"{ctx.command_path}: {error}", file=sys.stderr)
        except (RuntimeError, MemoryError) as error:
            if "memory" not in str(error).lower() and not isinstance(error, MemoryError):
                raise
            print(f"{ctx.command_path}: out of memory ({error}); use a smaller --window or --batch-size",
                  file=sys.stderr)  # fmt: skip
        return 2

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, section by section, in the order of the code."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record and isinstance(parameter, click.Option):  # the text above describes the arguments
                sections.setdefault(getattr(parameter, "section", "Options"), []).append(record)
        for section, records in sections.items():
            with formatter.section(section):
                formatter.write_dl(records)


class _Option(click.Option):
    def __init__(self, *names: Any, section: str, **settings: Any) -> None:
        super().__init__(*names, **settings)
        self.section = section


def option(*names: str, section: str = "Options", **settings: Any) -> Decorator:
    """Add an option, which the help lists in a section."""
    return click.option(*names, cls=_Option, section=section, **settings)


def mapping(*names: str, form: str, read: Callable[[str], Any] = str, **settings: Any) -> Decorator:
    """Add an option ``--name KEY=VALUE`` that may be given several times; the command gets a dictionary.

    Args:
        names: as for ``click.option``.
        form: of a value, for help and errors: ``MODALITY=SENSOR``.
        read: reads the text after ``=``.
        settings: as for ``click.option``.
    """

    def collect(ctx: click.Context, parameter: click.Parameter, items: Sequence[str]) -> dict[str, Any]:
        found = {}
        for item in items:
            name, equals, value = item.partition("=")
            if not equals:
                raise click.BadParameter(f"expected {form}, got {item!r}", ctx, parameter)
            if name.strip() in found:
                raise click.BadParameter(
                    f"{name.strip()} is given twice, the second as {item!r}", ctx, parameter
                )
            found[name.strip()] = read(value.strip())
        return found

    return option(*names, multiple=True, metavar=form, callback=collect, **settings)


class CommaList(click.ParamType[Any]):
    """Values separated by commas."""

    name = "list"

    def __init__(self, item: click.ParamType[Any] = click.STRING) -> None:
        self.item = item

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[Any]:
        """Split the text and read every part."""
        if not isinstance(value, str):
            return list(value)
        return [self.item.convert(part.strip(), param, ctx) for part in value.split(",")]


class Raster(click.ParamType[Any]):
    """A raster file or folder as a path, a name for GDAL (/vsizip/..., https://...) as a string."""

    name = "raster"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> RasterPath:
        """Leave strings for GDAL as they are."""
        return raster_path(value)


class Size(click.ParamType[Any]):
    """A size in pixels: ``120``, or ``96x480`` for height and width."""

    name = "size"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | tuple[int, int]:
        """Read one side, or two."""
        words = str(value).lower().split("x")
        sides = [int(word) for word in words if word.strip().isdecimal()]
        if len(sides) != len(words) or len(sides) > 2 or min(sides) < 1:
            self.fail(f"expected PIXELS or HEIGHTxWIDTH, such as 120 or 96x480, got {value!r}", param, ctx)
        return (sides[0], sides[1]) if len(sides) == 2 else sides[0]


def names_in(text: str) -> list[str]:
    """Split names separated by commas."""
    return [name.strip() for name in text.split(",")]


def classes_in(text: str) -> list[str] | dict[str, list[int | str]]:
    """Parse class names, or class names with their label values: ``water=1,forest=311+312``."""
    if "=" not in text:
        return names_in(text)
    pairs = [item.partition("=")[::2] for item in names_in(text)]
    if wrong := [name for name, codes in pairs if not codes]:
        raise ValueError(
            f"--classes expects NAME=CODE,NAME=CODE+CODE,... with codes for every class, got {wrong[0]!r}"
        )
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError(f"--classes {text}: a class is listed twice; merge codes with NAME=CODE+CODE")
    return {name.strip(): [_code(word.strip()) for word in codes.split("+")] for name, codes in pairs}


def codes_in(text: str) -> list[int]:
    """Parse whole numbers and ranges of them: ``3,8-10``."""
    codes: list[int] = []
    for word in names_in(text):
        first, dash, last = word.partition("-")
        if (
            not first.isdecimal()
            or (dash and not last.isdecimal())
            or (dash and int(last) - int(first) > 65535)
        ):
            raise click.BadParameter(f"expected classes such as 3,8-10, got {word!r} in {text!r}")
        codes += range(int(first), int(last or first) + 1)
    return codes


def _code(word: str) -> int | str:
    return int(word) if word.removeprefix("-").isdecimal() else word


def together(*decorators: Decorator) -> Decorator:
    """Return one decorator that adds several options, in this order."""
    return lambda function: reduce(lambda inner, add: add(inner), reversed(decorators), function)


# The weights of a model: pretrained, random, or from a file.
weights_options: Decorator = together(
    option("--model", required=True, metavar="NAME", section="Model",
           help="architecture, architecture.tag or hf-hub:ORG/NAME"),
    option("--pretrained/--no-pretrained", default=True, section="Model",
           help="use the published weights, or random weights (seed 0)"),
    option("--checkpoint", type=FILE, metavar="FILE", section="Model",
           help="use the weights of a local checkpoint, or of a folder of `rsbackbones download`"),
    mapping("--overrides", form="FIELD=VALUE", read=parse_value, section="Model",
            help="change a field of the model's configuration, such as depth=4; repeatable"),
)  # fmt: skip

# How bands are matched to the pretrained ones; :func:`band_rules` reads them.
band_options: Decorator = together(
    mapping("--sensors", form="MODALITY=SENSOR", section="Bands",
            help="the sensor of your bands, if it is not the pretrained one: s2=landsat_oli; for a sensor of "
            "your own a JSON description: s2=enmap.json (see docs/bands.md); repeatable"),
    option("--missing-bands", type=click.Choice(MISSING_RULES), default="error", section="Bands",
           help="rule for bands without a match in the weights. Re-initialized bands have no statistics: "
           "pass them from Python (create_preprocess)"),
    option("--kernel-scale", type=click.Choice(SCALE_RULES), default="count", section="Bands",
           help="rule that scales the remaining kernels if bands are dropped"),
)  # fmt: skip

# Which pixels do not count.
pixel_options: Decorator = together(
    option("--nodata", type=float, metavar="VALUE", section="Values",
           help="the value of pixels without data, if the files do not state it"),
    mapping("--mask", form="NAME=CLASS,...", read=codes_in, section="Values",
            help="pixels that do not count, such as clouds: SCL=3,8,9,10 by a band of the rasters, "
            "scl.tif=3,8-10 by another raster (of the optical sensors; s1:NAME names the sensor), resampled "
            "by nearest neighbor; repeatable. Cells of which less than half the pixels count are NaN"),
)  # fmt: skip

progress_option: Decorator = option(
    "--progress/--no-progress", default=True, section="Run", help="show a progress bar"
)


def unreadable_option(text: str) -> Decorator:
    """Add ``--on-unreadable``; ``text`` is its help."""
    return option("--on-unreadable", type=click.Choice(("fail", "skip")), default="fail", section="Values",
                  help=text)  # fmt: skip


def device_option(default: str) -> Decorator:
    """Add ``--device``."""
    return option("--device", default=default, metavar="DEVICE", section="Run",
                  help="auto (a GPU if there is one), cuda, cuda:1, mps or cpu")  # fmt: skip


def run_options(batch_size: int) -> Decorator:
    """Add the options for how a model runs."""
    size: Decorator = option("--batch-size", type=COUNT, default=batch_size, metavar="N", section="Run",
                                  help="images at a time")  # fmt: skip
    return together(size, device_option("auto"), progress_option)


def band_rules(sensors: Mapping[str, str], missing_bands: str, kernel_scale: str) -> dict[str, Any]:
    """Return the options of :func:`band_options` as arguments of ``create_model``.

    Sensors described by a file are registered.
    """
    named = {
        modality: register_sensor_file(Path(name).expanduser()).name if name.endswith(".json") else name
        for modality, name in sensors.items()
    }
    return {"sensors": named, "missing_bands": missing_bands, "kernel_scale": kernel_scale}


def refuse_two_weights(pretrained: bool, checkpoint: Path | None) -> None:
    """Refuse random weights together with a checkpoint."""
    if not pretrained and checkpoint is not None:
        raise click.UsageError("--no-pretrained (random weights) and --checkpoint exclude each other")
