"""Plugins: modules with a user's families, objectives and sensors, which commands import before they run."""

import os
from importlib import import_module


def load_plugins() -> None:
    """Import the modules listed in the environment variable ``RSBACKBONES_PLUGINS``, separated by commas.

    These modules call ``rsbackbones.register_family``, ``rsbackbones.train.register_objective`` or
    ``rsbackbones.register_sensor``.

    Raises:
        ImportError: a module cannot be imported.
    """
    for name in os.environ.get("RSBACKBONES_PLUGINS", "").split(","):
        if not (module := name.strip()):
            continue
        try:
            import_module(module)
        except ImportError as error:
            raise ImportError(
                f"RSBACKBONES_PLUGINS names {module}, which cannot be imported: {error}. Install it, or add "
                "its folder to PYTHONPATH"
            ) from error
