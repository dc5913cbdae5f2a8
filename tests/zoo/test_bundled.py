"""The weights inside the package: small, pinned, and there without a network."""

import hashlib
import json
import os
import sys
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

import rsbackbones as rsb
from rsbackbones.zoo.golden import compare_golden
from rsbackbones.zoo.weights import fetch
from tests import forked

ENTRIES = [entry for entry in rsb.list_weights() if entry.availability == "bundled"]

OFFLINE = """
import socket
def refuse(*args, **options):
    raise OSError("no network here")
socket.socket.connect = refuse
import rsbackbones as rsb
model = rsb.create_model("croma_vit_tiny", pretrained=True)
print(model.weights_entry.id, len(rsb.list_models(pretrained=True)))
"""


def test_there_is_one():
    assert [entry.architecture for entry in ENTRIES if entry.default] == [
        "auxmae_vit_tiny", "croma_vit_tiny", "fomu_resnet10t", "mixmae_vit_tiny", "s4_unet3d_tiny",
        "seamo_vit_tiny",
    ]  # fmt: skip


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.id)
def test_the_file_is_small_and_what_the_manifest_says(entry):
    path = fetch(entry)
    content = path.read_bytes()
    assert len(content) == entry.bytes <= 10_000_000
    assert hashlib.sha256(content).hexdigest() == entry.sha256
    assert entry.dtype == "float16"
    with safe_open(path, "pt") as file:
        dtypes = {file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
        assert dtypes - {torch.int64} == {torch.float16}  # int64: the counters of BatchNorm
        described = json.loads(file.metadata()["rsbackbones"])
    assert described["architecture"] == entry.architecture


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.id)
def test_it_gives_the_features_that_were_recorded(entry):
    model = rsb.create_model(entry.id, pretrained=True)
    assert entry.golden is not None
    assert compare_golden(model, entry.golden) == []
    assert not model.adaptation
    assert next(model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.id)
def test_its_recipe_lies_beside_it(entry):
    pytest.importorskip("pydantic")  # of the extra train
    from rsbackbones.train.engine.config_io import differences, from_json
    from rsbackbones.train.recipe import Recipe
    from rsbackbones.train.recipes import RECIPES

    saved = json.loads(fetch(entry).with_suffix(".recipe.json").read_text())
    recipe = RECIPES[entry.architecture]
    # Of a recipe of two stages, the first alone may be what is bundled: its card then says so.
    expected = recipe.resolve_stages()[0] if "phase 1 alone" in entry.provenance else recipe
    held = from_json(saved["recipe"], Recipe)
    if expected.data.statistics == "dataset":  # a run saves the numbers
        assert {m: tuple(of) for m, of in held.data.statistics.items()} == {
            m: tuple(spec["bands"]) for m, spec in entry.inputs.items()
        }
        expected = replace(expected, data=replace(expected.data, statistics=held.data.statistics))
    assert differences(held, expected) == []
    assert saved["environment"]["commit"]


def test_it_needs_no_network(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RSBACKBONES_", "HF_"))}
    environment["HF_HOME"] = str(tmp_path)
    result = forked.run([sys.executable, "-c", OFFLINE], cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[0] == "croma_vit_tiny.samples"
    assert not list(tmp_path.iterdir())


FOREST = {"B02": 400.0, "B03": 550.0, "B04": 400.0, "B08": 2800.0}
WATER = {"B02": 400.0, "B03": 300.0, "B04": 180.0, "B08": 100.0}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.id)
def test_it_tells_water_from_forest(entry):
    """The least that trained features must do; random ones are compared in benchmarks/."""
    modality = "s2" if "s2" in entry.inputs else "rgb"
    model = rsb.create_model(entry.id, pretrained=True, modalities=(modality,))
    preprocess = rsb.create_preprocess(model, units={modality: "dn"}, check=False)
    bands = model.bands[modality]
    assert {"B02", "B03", "B04"} <= {*bands} <= {*FOREST}
    kinds = torch.tensor([[kind[band] for band in bands] for kind in (FOREST, WATER)])
    noise = torch.randn(8, len(bands), 64, 64, generator=torch.Generator().manual_seed(0))
    images = kinds.repeat(4, 1)[..., None, None] * (1 + 0.1 * noise)
    with torch.inference_mode():
        pooled = torch.nn.functional.normalize(model(preprocess(images)), dim=-1)
    similar = pooled @ pooled.T
    same = torch.eye(2).repeat(4, 4).bool()
    assert similar[same].min() > similar[~same].max()
