"""Modules of your own that commands import first, so that they know your families, objectives and sensors."""

import os
from importlib import import_module


def load_plugins() -> None:
    """Import the modules that ``RSBACKBONES_PLUGINS`` names, separated by commas.

    They call ``rsbackbones.register_family``, ``rsbackbones.train.register_objective`` or
    ``rsbackbones.register_sensor``.

    Raises:
        ImportError: one cannot be imported.
    """
    for name in os.environ.get("RSBACKBONES_PLUGINS", "").split(","):
        if name.strip():
            import_module(name.strip())
