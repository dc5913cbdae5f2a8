"""The manifest that ships, its schema, and manifests of users' own."""

import copy
import json
from pathlib import Path

import jsonschema
import pytest
import torch

import rsbackbones as rsb
from rsbackbones.input_spec import InputSpec
from rsbackbones.sensors import get_sensor
from rsbackbones.zoo.manifest import all_entries, find_entry
from rsbackbones.zoo.registry import architectures

ROOT = Path(__file__).parents[2]
PUBLISHED = json.loads((ROOT / "weights_manifest.json").read_text())
SCHEMA = json.loads((ROOT / "weights_manifest.schema.json").read_text())

GOOD = {
    "id": "croma_vit_tiny.mine",
    "default": True,
    "architecture": "croma_vit_tiny",
    "source": {"kind": "hub", "repo_id": "me/zoo", "revision": "0" * 40, "filename": "tiny.safetensors"},
    "format": "rsbackbones",
    "sha256": "a" * 64,
    "license": "MIT",
    "provenance": "a test",
    "inputs": {},
}


def test_the_published_manifest_fits_its_schema():
    jsonschema.validate(PUBLISHED, SCHEMA)
    jsonschema.validate({"schema_version": 1, "weights": [GOOD]}, SCHEMA)


def test_the_pins_are_those_of_torchgeo():
    pins = {
        e["id"]: (e["source"], e["sha256_prefix"], e["license"])
        for e in PUBLISHED["weights"]
        if e.get("sha256_prefix")
    }
    base, large = pins["croma_vit_b.ssl4eo_s12"], pins["croma_vit_l.ssl4eo_s12"]
    assert base[0]["revision"] == "387883f08af79d777167519c57cd826eda89a16f"
    assert base[0]["filename"] == "CROMA_base-0238d814.pt"
    assert large[0]["revision"] == "92cb1a0f4e34c6c01558baf070197c01255382f6"
    assert large[0]["filename"] == "CROMA_large-921e69ad.pt"
    assert (base[1], large[1]) == ("0238d814", "921e69ad")
    assert base[2] == large[2] == "CC-BY-4.0"


@pytest.mark.parametrize("entry", all_entries(), ids=lambda e: e.id)
def test_entries_describe_models_that_can_be_built(entry):
    with torch.device("meta"):
        bands = {m: fields["bands"] for m, fields in entry.inputs.items()}
        model = rsb.create_model(entry.architecture, overrides={**entry.config, "bands": bands})
    if entry.params:
        assert entry.params == sum(p.numel() for p in model.parameters())
    for modality, fields in entry.inputs.items():
        spec = InputSpec.from_mapping(modality, fields)
        assert get_sensor(modality).canonical(spec.bands) == spec.bands == model.bands[modality]


def test_every_architecture_has_one_default_entry():
    own = [name for name, a in architectures().items() if a.family.__name__.startswith("rsbackbones.")]
    for name in own:
        assert len([e for e in all_entries() if e.architecture == name and e.default]) == 1


def test_what_a_caller_changes_in_an_entry_is_not_what_others_get():
    entry = find_entry("croma_vit_tiny.samples")
    entry.config["depth"] = 99
    assert find_entry("croma_vit_tiny.samples").config.get("depth") != 99


def write(path, *entries, version=1):
    path.write_text(json.dumps({"schema_version": version, "weights": list(entries)}))
    return path


def test_a_manifest_of_ones_own_is_added_and_counts_first(tmp_path, monkeypatch):
    before = {e.id for e in all_entries()}
    published = next(e for e in PUBLISHED["weights"] if e["id"] == "croma_vit_b.ssl4eo_s12")
    mirror = copy.deepcopy(published) | {"source": published["source"] | {"repo_id": "mirror/croma"}}
    own = GOOD | {"id": "croma_vit_b.mine", "architecture": "croma_vit_b", "default": False}
    monkeypatch.setenv("RSBACKBONES_MANIFEST", str(write(tmp_path / "m.json", GOOD, mirror, own)))
    assert {e.id for e in all_entries()} == before | {"croma_vit_tiny.mine", "croma_vit_b.mine"}
    assert find_entry("croma_vit_tiny").id == "croma_vit_tiny.mine"
    assert find_entry("croma_vit_b").source.repo_id == "mirror/croma"
    assert find_entry("croma_vit_b.mine").source.repo_id == "me/zoo"
    assert "croma_vit_tiny.mine" in rsb.list_models(pretrained=True)


BAD = [
    ({"source": GOOD["source"] | {"revision": "main"}}, "full 40-digit commit"),
    ({"source": GOOD["source"] | {"revision": "0" * 12}}, "full 40-digit commit"),
    ({"source": GOOD["source"] | {"filename": "../x.safetensors"}}, "inside the repository"),
    ({"source": GOOD["source"] | {"branch": "main"}}, "source.*branch"),
    ({"source": {"kind": "ftp"}}, "source.kind"),
    ({"source": {"kind": "unreleased"}}, "needs a reason"),
    ({"source": {"kind": "bundled", "path": "/etc/passwd"}}, "inside the package"),
    ({"sha256": "abc"}, "64 hexadecimal"),
    ({"sha256": None}, "sha256_prefix"),
    ({"source": GOOD["source"] | {"filename": "tiny.pt"}}, "a .safetensors file"),
    ({"dtype": "float64"}, "dtype must be"),
    ({"id": "croma_vit_b.mine"}, "id must be architecture.tag"),
    ({"id": "croma_vit_tiny"}, "id must be architecture.tag"),
    ({"color": "red"}, "unknown or missing fields: color"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[m[:20] + str(i) for i, (_, m) in enumerate(BAD)])
def test_malformed_entries_are_refused(tmp_path, monkeypatch, change, message):
    path = write(tmp_path / "m.json", GOOD | change)
    monkeypatch.setenv("RSBACKBONES_MANIFEST", str(path))
    with pytest.raises(ValueError, match=message) as caught:
        rsb.list_weights()
    assert str(path) in str(caught.value)
    # The schema refuses what it can state; the code is the stricter of the two.


def test_malformed_manifests_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "m.json"
    monkeypatch.setenv("RSBACKBONES_MANIFEST", str(path))
    with pytest.raises(ValueError, match=r"cannot read.*m\.json"):
        rsb.list_weights()
    path.write_text("{")
    with pytest.raises(ValueError, match="cannot read"):
        rsb.list_weights()
    write(path, GOOD, version=2)
    with pytest.raises(ValueError, match="schema_version 1"):
        rsb.list_weights()
    write(path, GOOD, GOOD)
    with pytest.raises(ValueError, match=r"more than one.*croma_vit_tiny\.mine"):
        rsb.list_weights()
    write(path, GOOD, GOOD | {"id": "croma_vit_tiny.second"})
    with pytest.raises(ValueError, match="default for croma_vit_tiny"):
        rsb.list_weights()
