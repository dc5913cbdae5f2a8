"""The pretraining methods by name: ours, and your own once they are registered."""

from typing import TypeVar

from rsbackbones.train.objectives.croma import CromaObjective
from rsbackbones.train.objectives.objective import ObjectiveConfig
from rsbackbones.train.objectives.seamo import SeamoObjective

C = TypeVar("C", bound=type[ObjectiveConfig])

_METHODS: dict[str, type[ObjectiveConfig]] = {"croma": CromaObjective, "seamo": SeamoObjective}


def register_objective(options: C) -> C:
    """Make a method of your own known, so that recipes with it can be saved and read back. A decorator.

    Every process that trains, exports or reads a run of the method registers it first.

    Args:
        options: a frozen dataclass, a subclass of :class:`ObjectiveConfig`, with a field ``method`` whose
            default is the method's name.

    Raises:
        ValueError: it has no name, or another class has it.
    """
    name = getattr(options, "method", None)
    if not isinstance(name, str) or not name:
        raise ValueError(f'{options.__name__} needs a field that names the method: method: str = "mine"')
    held = _METHODS.get(name, options)
    if (held.__module__, held.__qualname__) != (options.__module__, options.__qualname__):
        raise ValueError(
            f"method {name!r} is {held.__module__}.{held.__qualname__} already; choose another name"
        )
    _METHODS[name] = options
    return options


def registered_objectives() -> tuple[type[ObjectiveConfig], ...]:
    """Return the options classes of all methods."""
    return tuple(_METHODS.values())


def check_registered(options: ObjectiveConfig) -> None:
    """Refuse options that could not be read back.

    Raises:
        ValueError: their method is not registered.
    """
    if not isinstance(options, _METHODS.get(options.method, ())):
        raise ValueError(
            f"the method {options.method!r} of {type(options).__name__} is not registered: decorate the "
            "class with "
            "rsbackbones.train.register_objective"
        )
