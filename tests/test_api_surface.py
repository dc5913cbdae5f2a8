"""The public API, by name and signature, against the file api_surface.txt.

A change of the API is a change of that file: `python -m tests.test_api_surface` writes it anew.
"""

import inspect
from pathlib import Path

import rsbackbones

RECORD = Path(__file__).parent / "api_surface.txt"


def public_api():
    lines = []
    things = [(name, getattr(rsbackbones, name)) for name in sorted(rsbackbones.__all__)]
    for module, inside in [pair for pair in things if inspect.ismodule(pair[1])]:
        things += [(f"{module}.{name}", getattr(inside, name)) for name in sorted(inside.__all__)]
    for name, thing in things:
        if inspect.isclass(thing):
            bases = ", ".join(base.__name__ for base in thing.__bases__)
            lines.append(f"class {name}({bases})")
            for member, value in sorted(vars(thing).items()):
                if member.startswith("_"):
                    continue
                if isinstance(value, staticmethod):
                    value = value.__func__
                if inspect.isfunction(value):
                    lines.append(f"  {name}.{member}({', '.join(inspect.signature(value).parameters)})")
                elif isinstance(value, property):
                    lines.append(f"  {name}.{member}")
            lines += [f"  {name}.{field}" for field in getattr(thing, "__dataclass_fields__", {})]
        elif inspect.isfunction(thing):
            parameters = []
            for parameter in inspect.signature(thing).parameters.values():
                mark = (
                    "*, "
                    if parameter.kind is parameter.KEYWORD_ONLY and "*, " not in "".join(parameters)
                    else ""
                )
                default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
                parameters.append(f"{mark}{parameter.name}{default}")
            lines.append(f"{name}({', '.join(parameters)})")
        else:
            lines.append(name)
    return "\n".join(lines) + "\n"


def test_the_public_api_is_the_recorded_one():
    assert public_api() == RECORD.read_text()


def test_everything_public_has_a_docstring():
    for name in rsbackbones.__all__:
        thing = getattr(rsbackbones, name)
        assert not callable(thing) or (thing.__doc__ or "").strip(), name


if __name__ == "__main__":
    RECORD.write_text(public_api())
