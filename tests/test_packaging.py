"""What users install: the wheel, the sdist, and the core without any extra."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MANIFEST = (ROOT / "weights_manifest.json").read_bytes()


def run(*arguments, **options):
    result = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=400, **options
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel built from it, as `python -m build` makes them."""
    folder = tmp_path_factory.mktemp("dist")
    run("-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT))
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def test_the_wheel_holds_the_package_and_the_manifest(built):
    names = zipfile.ZipFile(built[0]).namelist()
    assert zipfile.ZipFile(built[0]).read("rsbackbones/weights_manifest.json") == MANIFEST
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "rsbackbones").rglob("*.py")}
    assert sources <= set(names)
    assert "rsbackbones/py.typed" in names
    # Nothing else: no benchmarks, no tests.
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"rsbackbones"}
    assert not [name for name in names if "bench" in name]


def test_the_sdist_holds_what_the_tests_need(built):
    with tarfile.open(built[1]) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"weights_manifest.json", "Makefile", "LICENSE", "README.md", "tests/conftest.py"} <= names
    assert {"benchmarks/encode.py", "benchmarks/encode.json", "benchmarks/results.json"} <= names


WITHOUT_EXTRAS = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"rasterio", "pyarrow", "sklearn", "matplotlib", "scipy", "pytest",
                                  "pydantic", "tqdm", "zarr"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import torch, rsbackbones as rsb
from rsbackbones.cli import main
model = rsb.create_model("croma_vit_tiny", modalities=["s2"], num_classes=2)
preprocess = rsb.create_preprocess(model)
x = preprocess({"s2": torch.randint(0, 4000, (1, 12, 16, 16))})
assert model(x).shape == (1, 2)
path = rsb.save_model(model, "m.safetensors")
again = rsb.create_model("croma_vit_tiny", checkpoint=path)
assert all(torch.equal(again.state_dict()[k], v) for k, v in model.state_dict().items() if "head" not in k)
print(rsb.__file__, [entry.id for entry in rsb.list_weights()])
print(rsb.create_model("croma_vit_tiny", pretrained=True).weights_entry.id)
assert main(["list"]) == 0
assert main(["finetune", "recipe=croma"]) == 2
sys.exit(main(["embed", "x.tif", "--model", "croma_vit_tiny", "--no-pretrained", "--output", "y.tif"]))
"""


def test_an_installed_wheel_finds_its_manifest_and_works_without_extras(built, tmp_path):
    target = tmp_path / "site"
    run("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(built[0]))
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS], cwd=tmp_path, capture_output=True, text=True, timeout=400,
        env={"PYTHONPATH": str(target), "PATH": "/usr/bin"},
    )  # fmt: skip
    assert result.returncode == 2, result.stderr
    assert str(target) in result.stdout
    assert "croma_vit_b.ssl4eo_s12" in result.stdout
    assert "\ncroma_vit_tiny." in result.stdout
    assert "pip install 'rsbackbones[geo]'" in result.stderr
    assert (
        "rsbackbones finetune: training needs more packages: pip install 'rsbackbones[train]'"
        in result.stderr
    )
    assert "Traceback" not in result.stderr
