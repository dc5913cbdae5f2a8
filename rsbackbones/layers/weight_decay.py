"""Parameters without weight decay that a rule on their shape does not find: tokens and position tables.

A module that owns such parameters has a method ``no_weight_decay() -> set[str]``, as timm's models do: the
names of its parameters, relative to itself. Biases, norms and other vectors are not named.
"""

from torch import nn


def find_no_weight_decay(module: nn.Module) -> set[str]:
    """Return what a module states, or else what the modules inside it state, as names relative to it."""
    stated = getattr(module, "no_weight_decay", None)
    return set(stated()) if callable(stated) else collect_no_weight_decay(module)


def collect_no_weight_decay(module: nn.Module) -> set[str]:
    """Return what the modules inside ``module`` state, as names relative to it.

    The names that a module states include those of the modules inside it.
    """
    return {
        f"{name}.{inner}" for name, child in module.named_children() for inner in find_no_weight_decay(child)
    }
