"""Who may import whom, what an import costs, and that nothing optional is loaded with the package."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import rsbackbones

PACKAGE = Path(rsbackbones.__file__).parent

# Part of the package -> the parts that it may import when it is loaded. "cli" and everything that is
# not named here may import all parts but train and bench; train may import all but bench, bench all.
# The engine of train is a part of its own.
ENGINE = "train/engine"
ALLOWED = {
    "errors": set(),
    "files": set(),
    "plugins": set(),
    ENGINE: {"files", "layers"},
    "heads": {"heads", "layers", "models"},
    "sensors": set(),
    "layouts": set(),
    "layers": {"layers"},
    "models": {"layers", "layouts", "sensors"},
    "manifest": {"errors"},
    "weights": {"errors", "files", "manifest"},
    "checkpoints": {"errors"},
    "adapt": {"layers", "sensors"},
    "registry": {"layouts", "manifest", "models"},
    "golden": {"models"},
    "preprocess": {"models", "sensors"},
    "loading": {"adapt", "models", "checkpoints", "errors", "layouts", "manifest", "registry", "sensors"},
    "saving": {"models", "checkpoints", "layouts", "registry", "sensors"},
    "hub": {"checkpoints", "errors", "manifest", "sensors", "weights"},
    "names": {"hub", "manifest", "registry"},
    "export": {"models", "checkpoints", "saving"},
    "publish": {"models", "errors", "files", "hub", "manifest", "saving", "weights"},
    "cards": {"loading", "manifest", "registry"},
    "timm_bridge": {"models", "factory", "loading", "manifest", "registry",
                    "sensors"},
    "factory": {"adapt", "models", "checkpoints", "errors", "hub", "loading", "manifest",
                "names", "registry", "sensors", "weights"},
    "rasters": {"sensors"},
    "embed": {"files", "models", "embed", "preprocess", "rasters"},
    "simulator": set(),
}  # fmt: skip
# Third-party packages a part may import when it is loaded; elsewhere inside functions only.
OUTSIDE = {
    "errors": set(),
    "files": {"torch"},
    ENGINE: {"numpy", "timm", "torch", "tqdm"},
    "sensors": set(),
    "layers": {"torch", "einops"},
    "models": {"torch"},
    "manifest": set(),
    "weights": set(),
    "checkpoints": {"torch"},
    "layouts": {"torch"},
    "adapt": {"torch"},
    "registry": set(),
    "golden": {"torch"},
    "preprocess": {"torch"},
    "factory": {"torch"},
    "loading": {"torch"},
    "saving": {"torch"},
    "hub": set(),
    "names": set(),
    "export": {"torch"},
    "publish": {"torch"},
    "timm_bridge": {"timm", "torch"},
    "rasters": {"numpy"},
    "embed": {"numpy", "torch"},
    "cli": set(),
    "cards": set(),
    "simulator": {"numpy"},
}


def imports(path):
    """Modules that a file imports when loaded (not inside functions, not for type checking only)."""
    found, stack = set(), list(ast.parse(path.read_text()).body)
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


def part(path):
    return part_named(path.relative_to(PACKAGE).with_suffix("").parts)


def part_named(names):
    return ENGINE if tuple(names[:2]) == ("train", "engine") else names[0]


FILES = [p for p in sorted(PACKAGE.rglob("*.py")) if p.name != "__init__.py" or p.parent != PACKAGE]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    here = part(path)
    known = {part(p) for p in FILES}
    inside = {
        part_named(name.split(".")[1:]) for name in imports(path) if name.startswith("rsbackbones.")
    } & known
    assert here == "bench" or "bench" not in inside
    if here not in ("train", "bench"):
        allowed = ALLOWED.get(here, known - {"train", ENGINE})
        assert inside <= allowed | {here} - {"layers"} | ({"layers"} if here == "layers" else set())
    outside = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names) - {"rsbackbones"}
    assert outside <= OUTSIDE.get(here, outside), f"{here} imports {outside}"


@pytest.mark.parametrize(
    ("named", "by"), [("train", {"train", ENGINE, "bench", "cli"}), ("bench", {"bench", "cli"})]
)
def test_nothing_else_names_train_or_bench(named, by):
    """Not even inside a function; the command line may there, and the test above says: only there."""
    for path in FILES:
        if part(path) not in by:
            for node in ast.walk(ast.parse(path.read_text())):
                module = getattr(node, "module", None) or ""
                names = [alias.name for alias in getattr(node, "names", []) if isinstance(alias, ast.alias)]
                assert not module.startswith(f"rsbackbones.{named}"), path
                assert not any(name.startswith(f"rsbackbones.{named}") for name in names), path


def child(code, *flags):
    result = subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, timeout=400)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_import_loads_nothing_optional_and_little_else():
    """Counted in modules, not seconds: what is imported beyond torch stays small."""
    out = child(
        "import sys, json, torch, numpy; before = set(sys.modules); import rsbackbones;"
        "print(json.dumps([sorted(set(sys.modules) - before), sorted(sys.modules)]))"
    )
    added, loaded = json.loads(out)
    top = {name.split(".")[0] for name in added}  # torch itself loads tqdm where it is installed
    forbidden = {"torchvision", "timm", "rasterio", "webdataset", "sklearn", "matplotlib", "huggingface_hub",
                 "safetensors", "pyarrow", "tqdm", "scipy"}  # fmt: skip
    assert not top & forbidden
    assert "rsbackbones.train" not in loaded
    others = [name for name in added if not name.startswith("rsbackbones")]
    assert len(others) < 60, others


def test_import_and_use_are_clean_under_warnings_as_errors():
    # Warnings of torch's own import are torch's.
    child(
        "import torch, warnings; warnings.simplefilter('error'); import rsbackbones as rsb;"
        "m = rsb.create_model('croma_vit_tiny'); p = rsb.create_preprocess(m);"
        "m({'s2': p({'s2': torch.full((1, 12, 16, 16), 900)})['s2']}); rsb.list_weights()"
    )
    child("import rsbackbones", "-W", "error")


def test_no_network_is_needed_without_weights():
    child(
        "import socket\n"
        "class Refuse(socket.socket):\n"
        "    def __init__(self, *a, **k): raise AssertionError('a socket was opened')\n"
        "socket.socket = Refuse\n"
        "import rsbackbones as rsb\n"
        "rsb.list_models(); rsb.list_weights(); rsb.create_model('croma_vit_tiny', num_classes=2)"
    )
