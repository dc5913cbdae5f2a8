"""The command line, by command and option, and the keys of recipes, against the file cli_surface.txt.

A change of the command line is a change of that file: `python -m tests.test_cli_surface` writes it anew.
"""

import dataclasses
import types
import typing
from pathlib import Path

import click

RECORD = Path(__file__).parent / "cli_surface.txt"


def surface():
    from rsbackbones.cli import commands
    from rsbackbones.train import Recipe
    from rsbackbones.train.__main__ import command as train
    from rsbackbones.train.export import command as export
    from rsbackbones.train.finetune import FinetuneRecipe
    from rsbackbones.train.finetune.__main__ import command as finetune

    lines = []
    for name, command in commands.commands.items():
        lines += [f"rsbackbones {name}", *parameters(command)]
    lines += ["python -m rsbackbones.train", *parameters(train), *keys(Recipe)]
    lines += ["python -m rsbackbones.train.export", *parameters(export)]
    lines += ["python -m rsbackbones.train.finetune", *parameters(finetune), *keys(FinetuneRecipe)]

    from rsbackbones.train.distill_tokenizer import command as distill

    lines += ["python -m rsbackbones.train.distill_tokenizer", *parameters(distill)]
    return "\n".join(lines) + "\n"


def parameters(command):
    for parameter in command.params:
        names = "/".join(parameter.opts + parameter.secondary_opts)
        if isinstance(parameter, click.Argument):
            names = names.upper()
        told = [getattr(parameter.type, "choices", None) or parameter.type]
        told += ["required"] * parameter.required + ["repeatable"] * (
            parameter.multiple or parameter.nargs < 0
        )
        # Versions of click differ in what stands for "no default".
        if parameter.default is not False and isinstance(parameter.default, (bool, int, float, str)):
            told.append(f"default {parameter.default!r}")
        yield f"  {names}  " + ", ".join(plain(part) for part in told)


def plain(thing):
    if isinstance(thing, (tuple, list)):
        return "|".join(thing)
    kind = type(thing).__name__
    if isinstance(thing, click.ParamType):
        limits = [str(getattr(thing, side, None)) for side in ("min", "max")]
        item = f"[{plain(thing.item)}]" if hasattr(thing, "item") else ""
        return kind + item + (f"({'..'.join(limits)})" if limits != ["None", "None"] else "")
    return str(thing)


def keys(kind, prefix=""):
    """Every key of a recipe with its type, ranges included, and default."""
    from rsbackbones.train.engine.config_io import _members

    hints = typing.get_type_hints(kind, include_extras=True)
    bare = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        inner = bare[field.name]
        if dataclasses.is_dataclass(inner):
            yield from keys(inner, f"{prefix}{field.name}.")
            continue
        if typing.get_origin(inner) is tuple and dataclasses.is_dataclass(typing.get_args(inner)[0]):
            yield from keys(typing.get_args(inner)[0], f"{prefix}{field.name}.N.")
            continue
        # Methods that other tests register are not part of the package.
        for member in [kind for kind in _members(inner) if kind.__module__.startswith("rsbackbones.")]:
            method = f" ({member.method})" if hasattr(member, "method") else f" ({member.__name__})"
            yield from (line + method for line in keys(member, f"{prefix}{field.name}."))
        if _members(inner):
            continue
        default = "" if field.default is dataclasses.MISSING else f" = {field.default!r}"
        yield f"  {prefix}{field.name}: {readable(hints[field.name])}{default}"


def readable(hint):
    """The same text on every version of Python and pydantic."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        bounds = (bound for extra in arguments[1:] for bound in getattr(extra, "metadata", ()))
        limits = [f"{f.name} {getattr(bound, f.name)}" for bound in bounds for f in dataclasses.fields(bound)]
        return readable(arguments[0]) + f" ({', '.join(limits)})" * bool(limits)
    if origin is typing.Literal:
        return "|".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(readable, arguments))
    name = getattr(hint, "__name__", str(hint)).replace("NoneType", "none")
    return name + f"[{', '.join('...' if a is ... else readable(a) for a in arguments)}]" * bool(arguments)


def test_the_command_line_is_the_recorded_one():
    assert surface() == RECORD.read_text()


if __name__ == "__main__":
    RECORD.write_text(surface())
