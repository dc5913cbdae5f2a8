"""Who may import whom, what an import costs, and that nothing optional is loaded with the package."""

import ast
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import rsbackbones

PACKAGE = Path(rsbackbones.__file__).parent

# Room -> the rooms that it may import when it is loaded: imports go down. A room within "train" is one of its
# own, as far as it is named here; "__init__" is the public API.
ALLOWED = {
    "__init__": {"input_spec", "integrations", "models", "preprocess", "sensors", "zoo"},
    "arrays": set(),
    "typed_fields": set(),
    "sensors": set(),
    "input_spec": {"sensors", "typed_fields"},
    "layers": set(),
    "files": set(),
    "plugins": set(),
    "device": set(),
    "models": {"arrays", "input_spec", "layers", "sensors"},
    "value_check": {"input_spec", "sensors"},
    "preprocess": {"arrays", "input_spec", "models", "sensors", "value_check"},
    "zoo": {"files", "input_spec", "models", "preprocess", "sensors", "typed_fields"},
    "integrations": {"layers", "models", "sensors", "zoo"},
    "heads": {"layers", "models", "zoo"},
    "data": {"files", "input_spec", "preprocess", "sensors", "typed_fields", "value_check"},
    "embed": {"arrays", "data", "device", "files", "models", "preprocess", "sensors", "value_check", "zoo"},
    "eval": {"data", "device", "files", "heads", "input_spec", "models", "preprocess", "sensors",
             "value_check", "zoo"},
    "train/engine": {"device", "files", "layers"},
    "train": {"data", "files", "input_spec", "layers", "models", "plugins", "preprocess", "sensors",
              "train/engine", "zoo"},
    "train/finetune": {"data", "eval", "files", "heads", "input_spec", "models", "preprocess", "sensors",
                       "train", "train/engine", "typed_fields", "zoo"},
    "__main__": {"cli"},
    "cli": {"data", "device", "embed", "eval", "files", "input_spec", "models", "plugins", "preprocess",
            "sensors", "typed_fields", "zoo"},
}  # fmt: skip
# Third-party packages a room may import when it is loaded; elsewhere inside functions only.
OUTSIDE = {
    "__init__": set(),
    "arrays": {"torch"},
    "typed_fields": set(),
    "sensors": set(),
    "input_spec": set(),
    "layers": {"einops", "torch"},
    "files": {"filelock", "numpy", "torch"},
    "device": {"torch"},
    "models": {"torch"},
    "value_check": {"torch"},
    "preprocess": {"torch"},
    "zoo": {"torch"},
    "integrations": {"timm", "torch"},
    "data": {"numpy", "torch"},
    "embed": {"numpy", "torch"},
    "train/engine": {"numpy", "pydantic", "timm", "torch", "tqdm"},
    "cli": {"click"},
}


@functools.cache
def parsed(path):
    return ast.parse(path.read_text())


@functools.cache
def imports(path):
    """Modules that a file imports when loaded (not inside functions, not for type checking only)."""
    found, stack = set(), list(parsed(path).body)
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            stack += node.orelse
        elif isinstance(node, (ast.If, ast.Try, ast.With, ast.ClassDef)):
            stack += ast.iter_child_nodes(node)
    return found


def room(names):
    """The room of a module, given the parts of its dotted name below the package; ``None``: not ours."""
    within = "/".join(names[:2])
    return within if within in ALLOWED else names[0] if names and names[0] in ALLOWED else None


FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path):
    return room(path.relative_to(PACKAGE).with_suffix("").parts)


def test_every_file_is_in_a_room_and_there_are_not_many():
    assert not [path for path in FILES if room_of(path) is None]
    beside = [p.name for p in PACKAGE.iterdir() if not p.name.startswith("__pycache__")]
    assert len(beside) < 25


def test_imports_go_down():
    """Of every file; all that go elsewhere are named."""
    wrong = {}
    for path in FILES:
        here = room_of(path)
        named = [name.split(".")[1:] for name in imports(path) if name.startswith("rsbackbones.")]
        inside = {room(names) for names in named} - {None} - ALLOWED[here] - {here}
        outside = {name.split(".")[0] for name in imports(path)} - {*sys.stdlib_module_names, "rsbackbones"}
        if found := inside | (outside - OUTSIDE.get(here, outside)):
            wrong[str(path.relative_to(PACKAGE))] = found
    assert not wrong


def test_rooms_have_no_circle():
    done, left = set(), dict(ALLOWED)
    while left:
        free = [name for name, below in left.items() if below <= done]
        assert free, f"these import each other: {sorted(left)}"
        done |= set(free)
        left = {name: below for name, below in left.items() if name not in free}


@pytest.mark.parametrize(("named", "by"), [("rsbackbones.train", {"train", "cli"}), ("benchmarks", set())])
def test_nothing_else_names_train_and_nothing_names_the_benchmarks(named, by):
    """Not even inside a function; the command line may there, and the test above says: only there."""
    for path in FILES:
        if room_of(path).partition("/")[0] not in by:
            for node in ast.walk(parsed(path)):
                module = getattr(node, "module", None) or ""
                names = [alias.name for alias in getattr(node, "names", []) if isinstance(alias, ast.alias)]
                assert not any(name.startswith(named) for name in (module, *names)), path


# Warnings are errors from the start, of torch's own import too. Counted in modules, not seconds: what is
# imported beyond torch stays small.
IMPORTED_AND_USED = """
import json, socket, sys
import torch
before = set(sys.modules)
class Refuse(socket.socket):
    def __init__(self, *a, **k): raise AssertionError("a socket was opened")
socket.socket = Refuse
import rsbackbones as rsb
print(json.dumps([sorted(set(sys.modules) - before), sorted(sys.modules)]))
rsb.list_models(); rsb.list_weights(); rsb.create_model("croma_vit_tiny", num_classes=2)
m = rsb.create_model("croma_vit_tiny"); p = rsb.create_preprocess(m)
m({"s2": p({"s2": torch.full((1, 12, 16, 16), 900)})["s2"]})
"""


def test_import_and_use_load_little_open_no_socket_and_warn_of_nothing():
    """In a new interpreter, as the import itself is looked at; models without weights need no network.

    Telemetry of the Hub's client would open a socket, and is on.
    """
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORTED_AND_USED], capture_output=True, text=True, timeout=400,
        env={**os.environ, "HF_HUB_DISABLE_TELEMETRY": "0"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    added, loaded = json.loads(result.stdout)
    top = {name.split(".")[0] for name in added}  # torch itself loads tqdm where it is installed
    forbidden = {"torchvision", "timm", "rasterio", "webdataset", "sklearn", "matplotlib", "huggingface_hub",
                 "safetensors", "pyarrow", "tqdm", "scipy"}  # fmt: skip
    assert not top & forbidden
    assert "rsbackbones.train" not in loaded
    others = [name for name in added if not name.startswith("rsbackbones")]
    assert len(others) < 60, others
