"""Take the tensors out of a pickle that holds more, for ``rsbackbones convert --trust-pickle``.

Reading such a file executes code in it. This is the only place that does, in a process of its own, and only
that command calls it: ``create_model`` never does.
"""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rsbackbones.zoo.errors import CorruptCheckpointError

# Keys under which training code keeps the state dict of a model.
STATE_DICT_KEYS = ("state_dict", "model", "model_state_dict")


def extract_tensors(path: Path, output: Path, key: str = "") -> str:
    """Write the tensors of the state dict in ``path`` to ``output``, and return what was taken and left.

    Args:
        path: a pickle that you trust.
        output: a file that ends in ``.pt``.
        key: where the state dict is in the file; by default the file itself or one of
            :data:`STATE_DICT_KEYS`.

    Raises:
        CorruptCheckpointError: the file cannot be read, or has no state dict there.
    """
    command = [sys.executable, "-m", "rsbackbones.zoo.trusted_pickle", str(path), str(output), key]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise CorruptCheckpointError(f"{path}: {lines[-1]}")
    return done.stdout.strip().splitlines()[-1]


def _extract(path: Path, output: Path, key: str) -> str:
    content = torch.load(path, map_location="cpu", weights_only=False)
    found, where = _state_dict(content, key)
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    left = sorted({*map(str, content), *map(str, found)} - {*map(str, tensors)} - {where})
    place, rest = where or "the top level", ", ".join(left)
    if not tensors:
        raise ValueError(f"no tensors under {place}; pass --state-dict, one of: {rest}")
    torch.save(tensors, output)
    return f"{path}: {len(tensors)} tensors of {place}; left out: {rest or 'nothing'}"


def _state_dict(content: Any, key: str) -> tuple[Mapping[str, Any], str]:
    if not isinstance(content, Mapping):
        raise ValueError(f"expected a dictionary, got {type(content).__name__}")
    if key:
        if not isinstance(content.get(key), Mapping):
            raise ValueError(f"there is no dictionary {key!r}; keys: {', '.join(map(str, content))}")
        return content[key], key
    held = [name for name in STATE_DICT_KEYS if isinstance(content.get(name), Mapping)]
    if len(held) > 1:
        raise ValueError(f"state dicts under {', '.join(held)}: choose one with --state-dict")
    return (content[held[0]], held[0]) if held else (content, "")


if __name__ == "__main__":
    try:
        print(_extract(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")
