"""The pretraining methods by name: built-in ones, and registered ones of other packages."""

from typing import TypeVar

from rsbackbones.train.objectives.auxmae import AuxmaeObjective
from rsbackbones.train.objectives.croma import CromaObjective
from rsbackbones.train.objectives.fomu import FomuObjective
from rsbackbones.train.objectives.mixmae import MixmaeObjective
from rsbackbones.train.objectives.objective import ObjectiveConfig
from rsbackbones.train.objectives.s4 import S4Objective
from rsbackbones.train.objectives.seamo import SeamoObjective

C = TypeVar("C", bound=type[ObjectiveConfig])

_METHODS: dict[str, type[ObjectiveConfig]] = {
    "croma": CromaObjective,
    "seamo": SeamoObjective,
    "auxmae": AuxmaeObjective,
    "mixmae": MixmaeObjective,
    "fomu": FomuObjective,
    "s4": S4Objective,
}


def register_objective(options: C) -> C:
    """Register a method of your own, so that recipes with it can be saved and loaded. A decorator.

    Every process that trains, exports or reads a run of the method must register it first.

    Args:
        options: a frozen dataclass, a subclass of :class:`ObjectiveConfig`, with a field ``method`` whose
            default is the method's name.

    Raises:
        ValueError: it has no name, or another class has the same name.
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
    """Check that the method of options is registered, so that they can be loaded again.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(options, _METHODS.get(options.method, ())):
        raise ValueError(
            f"the method {options.method!r} of {type(options).__name__} is not registered: decorate the "
            "class with rsbackbones.train.register_objective"
        )
