"""Values of others: every field of a manifest, of a file's metadata and of a ``config.json``, each with
values that it must not have. None may load, and none may end in anything but an error that names the field.
"""

import copy
import json
import math
import typing

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import rsbackbones as rsb
from rsbackbones.files.sha256 import sha256_of
from rsbackbones.input_spec import ContractRule, ContractUnit
from rsbackbones.preprocess import RULES, UNITS
from rsbackbones.typed_fields import MAX_ITEMS, MAX_TEXT
from rsbackbones.zoo import hub
from rsbackbones.zoo.checkpoint_files import METADATA_KEY
from rsbackbones.zoo.loading import inspect_checkpoint
from rsbackbones.zoo.manifest import Source, read_manifest
from rsbackbones.zoo.registry import find_architecture


def nested(depth=100):
    return [nested(depth - 1)] if depth else []


VALUES = {
    "null": None, "true": True, "fraction": 3.5, "nan": math.nan, "inf": math.inf, "negative": -1,
    "zero": 0, "word": "no", "no text": "", "no list": [], "no object": {}, "list": [1, "a"],
    "object": {"a": 1}, "huge": 10**400, "large": 1e300, "long": "x" * (MAX_TEXT + 1), "deep": nested(),
    "numbers": {"s2": 3}, "many": list(range(MAX_ITEMS + 1)),
}  # fmt: skip
TEXT = {"word", "no text"}
# The values that a field may have, of those above.
ALLOWED = {
    "default": {"true"}, "citation": TEXT | {"null"}, "bytes": {"null"}, "image_size": {"zero"},
    "params": {"zero"}, "license": TEXT, "provenance": TEXT, "method": TEXT, "data": TEXT,
    "metrics": {"null", "no object", "object", "numbers"},
    "golden": {"null", "no object", "object", "numbers"},
    "config": {"no object"}, "sha256_prefix": {"null"}, "sha256_from": {"null"},
    "inputs": {"no object"}, "source.private": {"true"}, "source.reason": TEXT,
    "source.repo_id": TEXT, "source.revision": TEXT, "source.filename": {"no text"},
    "inputs.s2.mean.0": {"fraction", "negative", "zero"}, "inputs.s2.std.0": {"fraction"},
    "inputs.s2.product": TEXT, "inputs.s2.statistics": TEXT, "inputs.s2.notes": TEXT,
    "inputs.s2.unit": {"null"}, "inputs.s2.eight_bit": {"true"}, "inputs.s2.clip": {"true"},
    "inputs.s2.unused_bands": {"no list"}, "inputs.s2.stored_range": {"no list"},
    "inputs.s2.stretch": {"no list"}, "config.sensors": {"no object"}, "config.position_grid": {"null"},
    "config.cross_alibi": {"true"}, "wavelengths": {"no object"},
    "wavelengths.s2": {"no object"}, "num_classes": {"zero"},
}  # fmt: skip
INPUT_FIELDS = (
    "bands", "bands.0", "product", "unit", "normalize", "mean", "mean.0", "std", "std.0", "eight_bit", "clip",
    "statistics", "unused_bands", "stored_range", "stretch", "notes",
)  # fmt: skip
CONFIG_FIELDS = (
    "image_size", "modalities", "modalities.0", "bands", "bands.s2", "bands.s2.0", "sensors", "dim", "depth",
    "num_heads", "patch_size", "mlp_ratio", "tokenizer", "positions", "cross_alibi",
)  # fmt: skip
ENTRY_FIELDS = (
    "id", "architecture", "source", "format", "license", "provenance", "inputs", "default", "method", "data",
    "config", "sha256", "sha256_prefix", "sha256_from", "bytes", "image_size", "params", "dtype", "citation",
    "metrics", "golden", "source.kind", "source.path", "source.private", "source.reason", "source.repo_id",
    "source.revision", "source.filename", "inputs.s2",
    *(f"inputs.s2.{name}" for name in INPUT_FIELDS), *(f"config.{name}" for name in CONFIG_FIELDS),
)  # fmt: skip


def changed(content, field, value):
    """A copy with another value; the field is a path of keys and indices."""
    result = copy.deepcopy(content)
    inner, (*above, last) = result, [int(key) if key.isdecimal() else key for key in field.split(".")]
    for key in above:
        inner = inner[key]
    inner[last] = value
    return result


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A small file, its metadata, and an entry about it."""
    folder = tmp_path_factory.mktemp("tiny")
    model = rsb.create_model("croma_vit_tiny", modalities=["s2"])
    file = rsb.save_model(model, folder / "tiny.safetensors")
    with safe_open(file, framework="pt") as opened:
        metadata = json.loads(opened.metadata()[METADATA_KEY])
    entry = {
        "id": "croma_vit_tiny.mine", "default": True, "architecture": "croma_vit_tiny", "method": "",
        "data": "",
        "source": {"kind": "bundled", "path": file.name}, "format": "rsbackbones", "sha256": sha256_of(file),
        "bytes": file.stat().st_size, "license": "MIT", "provenance": "a test", "dtype": "float32",
        "config": metadata["config"], "inputs": {"s2": metadata["inputs"]["s2"]}, "image_size": 120,
    }  # fmt: skip
    return file, metadata, entry


def problems(fields, load, content, names, **allowed):
    """For every field and value what is wrong with the answer: it loads, or the error is of another kind."""
    found, allowed = [], ALLOWED | {name.replace("__", "."): labels for name, labels in allowed.items()}
    for field in fields:
        for label, value in VALUES.items():
            try:
                load(changed(content, field, value))
            except ValueError as error:
                word = next(key for key in reversed(field.split(".")) if not key.isdecimal())
                text = str(error)
                # What is wrong may be named by what it should fit: a file, a commit, another field.
                if not any(name in text for name in names) or word not in text or len(text) > 3000:
                    found.append(f"{field}={label}: {text[:300]}")
                elif label in allowed.get(field, ()):
                    found.append(f"{field}={label} is refused: {text[:300]}")
            except Exception as error:  # what is looked for
                found.append(f"{field}={label}: {type(error).__name__}: {error}"[:300])
            else:
                if label not in allowed.get(field, ()):
                    found.append(f"{field}={label} is loaded")
    return found


def test_the_control_loads(tiny, monkeypatch):
    file, _, entry = tiny
    (file.parent / "m.json").write_text(json.dumps({"schema_version": 1, "weights": [entry]}))
    monkeypatch.setenv("RSBACKBONES_MANIFEST", str(file.parent / "m.json"))
    assert rsb.create_model("croma_vit_tiny.mine", True).weights_entry.license == "MIT"


def test_every_field_of_a_manifest(tiny, monkeypatch):
    file, _, entry = tiny
    path = file.parent / "m.json"
    monkeypatch.setenv("RSBACKBONES_MANIFEST", str(path))

    def load(content):
        path.write_text(json.dumps({"schema_version": 1, "weights": [content]}))
        read_manifest(path)  # refuses most, before any model is built
        model = rsb.create_model("croma_vit_tiny.mine", True)
        if model.inputs:
            rsb.create_preprocess(model, units={"s2": "dn"})

    assert problems(ENTRY_FIELDS, load, entry, ["croma_vit_tiny.mine", "m.json"]) == []


METADATA_FIELDS = (
    "architecture", "config", "num_classes", "dtype", "inputs", "inputs.s2", "wavelengths", "wavelengths.s2",
    "wavelengths.s2.B02", *(f"inputs.s2.{name}" for name in INPUT_FIELDS),
    *(f"config.{name}" for name in CONFIG_FIELDS),
)  # fmt: skip


def test_every_field_of_a_file(tiny, tmp_path):
    file, metadata, _ = tiny
    tensors, path = load_file(file), tmp_path / "changed.safetensors"

    def load(content):
        save_file(tensors, path, {METADATA_KEY: json.dumps(content)})
        model = rsb.create_model("croma_vit_tiny", checkpoint=path)
        if model.inputs:
            rsb.create_preprocess(model, units={"s2": "dn"})

    load(metadata)
    assert problems(METADATA_FIELDS, load, metadata, [path.name], config=set()) == []


REPOSITORY_FIELDS = tuple(
    name for name in ENTRY_FIELDS if name.partition(".")[0] not in (*hub.LOCAL_ONLY_FIELDS, "sha256_from")
)


def test_every_field_of_a_repository(tiny, tmp_path):
    _, _, entry = tiny
    source = Source(kind="hub", repo_id="me/mine", revision="0" * 40, filename=hub.WEIGHTS_FILE)
    path = tmp_path / hub.CONFIG_FILE
    fields = {name: value for name, value in entry.items() if name not in hub.LOCAL_ONLY_FIELDS}

    def load(content):
        path.write_text(json.dumps({"library_name": "rsbackbones", "schema_version": 1, "weights": content}))
        assembled = hub.parse_config(path, source)
        inspect_checkpoint(find_architecture("croma_vit_tiny"), None, assembled)

    load(fields)
    of_others = {"architecture": {"word"}, "config__mlp_ratio": {"fraction"}}  # the file has to agree
    assert problems(REPOSITORY_FIELDS, load, fields, ["me/mine", "me_mine"], **of_others) == []
    for whole in ([], None, "text", {"library_name": "rsbackbones", "schema_version": 1},
                  {"library_name": "rsbackbones", "schema_version": 1, "weights": []}):  # fmt: skip
        path.write_text(json.dumps(whole))
        with pytest.raises(rsb.WeightsError, match="me/mine"):
            hub.parse_config(path, source)


def test_a_token_is_sent_for_true_only(tiny, tmp_path):
    _, _, entry = tiny
    for value in ("no", "true", 1, None, [], {}):
        content = changed(entry, "source.private", value)
        (tmp_path / "m.json").write_text(json.dumps({"schema_version": 1, "weights": [content]}))
        with pytest.raises(ValueError, match=r"croma_vit_tiny\.mine.*source: private must be true or false"):
            read_manifest(tmp_path / "m.json")


def test_contracts_may_state_what_preprocessing_knows():
    assert set(typing.get_args(ContractUnit)) == set(UNITS)
    assert set(typing.get_args(ContractRule)) == set(RULES)
