"""Weights from a folder that was carried along, without any network: pinned, and verified each time."""

import hashlib
import json

import pytest
import torch

import rsbackbones as rsb
from rsbackbones.zoo.manifest import find_entry
from rsbackbones.zoo.weights import download_to, fetch
from tests.conftest import close


@pytest.fixture
def zoo(tiny, tmp_path, monkeypatch):
    """A manifest with one Hub entry for the tiny model, and a folder that holds its file."""
    folder = tmp_path / "carried"
    folder.mkdir()
    path = rsb.save_model(tiny, folder / "croma_vit_tiny.test.safetensors")
    entry = {
        "id": "croma_vit_tiny.test",
        "default": True,
        "architecture": "croma_vit_tiny",
        "source": {"kind": "hub", "repo_id": "a/b", "revision": "1" * 40, "filename": "model.safetensors"},
        "format": "rsbackbones",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
        "params": sum(p.numel() for p in tiny.parameters()),
        "license": "MIT",
        "provenance": "random",
        "inputs": {
            "s2": {"bands": list(tiny.bands["s2"]), "product": "L2A", "unit": "dn", "normalize": "clip_2sd",
                   "mean": [1000] * 12, "std": [500] * 12, "eight_bit": False},
            "s1": {"bands": ["VV", "VH"], "product": "GRD", "unit": "db", "normalize": "clip_2sd",
                   "mean": [-10, -20], "std": [5, 5]},
        },
    }  # fmt: skip
    manifest = tmp_path / "manifest.json"

    def write(**changes):
        manifest.write_text(json.dumps({"schema_version": 1, "weights": [{**entry, **changes}]}))

    write()
    monkeypatch.setenv("RSBACKBONES_MANIFEST", str(manifest))
    monkeypatch.delenv("RSBACKBONES_WEIGHTS", raising=False)
    return folder, path, write


@pytest.mark.parametrize("way", ["checkpoint", "environment"])
def test_a_folder_serves_the_pinned_file(zoo, tiny, images, monkeypatch, way):
    folder, _, _ = zoo
    if way == "environment":
        monkeypatch.setenv("RSBACKBONES_WEIGHTS", str(folder))
        model = rsb.create_model("croma_vit_tiny", pretrained=True)
    else:
        model = rsb.create_model("croma_vit_tiny.test", checkpoint=folder)
    assert close(model(images), tiny(images))
    assert model.weights_entry.id == "croma_vit_tiny.test"
    # The contract is the entry's, not the architecture's: 1000 is the mean, so 0.5.
    preprocess = rsb.create_preprocess(model)
    assert (preprocess({"s2": torch.full((1, 12, 8, 8), 1000)})["s2"] == 0.5).all()


@pytest.mark.parametrize("spoil", ["flip", "truncate", "empty"])
def test_other_bytes_are_refused_with_both_digests_and_left_alone(zoo, spoil):
    folder, path, _ = zoo
    good = path.read_bytes()
    data = bytearray(good)
    if spoil == "flip":
        data[-5] ^= 1
    else:
        data = data[: len(data) // 2 if spoil == "truncate" else 0]
    path.write_bytes(data)
    with pytest.raises(rsb.WeightsIntegrityError) as caught:
        rsb.create_model("croma_vit_tiny", checkpoint=folder)
    for content in (good, bytes(data)):
        assert hashlib.sha256(content).hexdigest() in str(caught.value)
    assert path.read_bytes() == bytes(data)  # the user's file


def test_a_prefix_is_checked_where_no_more_is_published(zoo, images):
    folder, path, write = zoo
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    write(sha256=None, sha256_prefix=digest[:8], bytes=None)
    assert rsb.create_model("croma_vit_tiny", checkpoint=folder)(images).shape == (2, 96)
    write(sha256=None, sha256_prefix="00000000" if digest[0] != "0" else "11111111", bytes=None)
    with pytest.raises(rsb.WeightsIntegrityError, match="begins"):
        rsb.create_model("croma_vit_tiny", checkpoint=folder)


def test_what_is_not_there_is_said_with_the_command(zoo, tmp_path, monkeypatch):
    folder, path, _ = zoo
    path.unlink()
    with pytest.raises(rsb.WeightsNotFound, match=r"rsbackbones download croma_vit_tiny\.test --output"):
        rsb.create_model("croma_vit_tiny", checkpoint=folder)
    monkeypatch.setenv("RSBACKBONES_WEIGHTS", str(tmp_path / "nowhere"))
    with pytest.raises(rsb.WeightsNotFound, match="named by RSBACKBONES_WEIGHTS"):
        rsb.create_model("croma_vit_tiny", pretrained=True)


def test_download_to_copies_verified_bytes(zoo, tmp_path, monkeypatch):
    folder, path, _ = zoo
    monkeypatch.setenv("RSBACKBONES_WEIGHTS", str(folder))
    entry = find_entry("croma_vit_tiny")
    target = download_to(entry, tmp_path / "new" / "deep")
    assert target.read_bytes() == path.read_bytes()
    assert [p.name for p in target.parent.iterdir()] == ["croma_vit_tiny.test.safetensors"]
    assert fetch(entry, target.parent) == target
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(rsb.WeightsCacheError, match="cannot write"):
        download_to(entry, tmp_path / "file")


def test_parameters_of_the_manifest_are_checked(zoo):
    folder, _, write = zoo
    write(params=5)
    with pytest.raises(rsb.WeightsMismatchError, match="the manifest states 5"):
        rsb.create_model("croma_vit_tiny", checkpoint=folder)


def test_half_precision_must_be_stated(zoo, tiny, images):
    folder, path, write = zoo
    rsb.save_model(tiny, path, dtype=torch.float16)
    stated = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": None, "dtype": "float16"}
    write(**stated)
    model = rsb.create_model("croma_vit_tiny", checkpoint=folder)
    torch.testing.assert_close(model(images), tiny(images), atol=5e-3, rtol=0)


def test_an_entry_without_inputs_has_no_contract(zoo):
    folder, _, write = zoo
    write(inputs={})
    model = rsb.create_model("croma_vit_tiny", checkpoint=folder)
    with pytest.raises(ValueError, match="no input contract"):
        rsb.create_preprocess(model)


def test_the_order_of_bands_is_the_manifests(zoo, tiny):
    """The entry's order labels the weights' columns; a file of ours that says otherwise is refused."""
    folder, _, write = zoo
    order = [*reversed(tiny.bands["s2"])]
    inputs = {"s2": {"bands": order, "product": "L2A", "unit": "dn", "normalize": "clip_2sd",
                     "mean": [1000] * 12, "std": [500] * 12}}  # fmt: skip
    write(inputs=inputs)
    with pytest.raises(rsb.WeightsMismatchError, match="the manifest states"):
        rsb.create_model("croma_vit_tiny", checkpoint=folder)
    from rsbackbones.zoo.saving import save_in_format

    foreign = save_in_format(tiny, folder / "croma_vit_tiny.test.pt", "croma_official")
    source = {"kind": "hub", "repo_id": "a/b", "revision": "1" * 40, "filename": "model.pt"}
    digest = hashlib.sha256(foreign.read_bytes()).hexdigest()
    write(inputs=inputs, source=source, format="croma_official", sha256=digest, bytes=None)
    model = rsb.create_model("croma_vit_tiny", checkpoint=folder)
    assert model.bands["s2"] == tuple(order)
    with pytest.raises(rsb.WeightsMismatchError, match="num_heads 4"):
        rsb.create_model("croma_vit_tiny", checkpoint=folder, overrides={"num_heads": 8})


def test_a_bundled_file_that_is_missing(zoo):
    _, _, write = zoo
    write(source={"kind": "bundled", "path": "bundled/none.safetensors"})
    with pytest.raises(rsb.WeightsNotFound, match="reinstall"):
        rsb.create_model("croma_vit_tiny", pretrained=True)
