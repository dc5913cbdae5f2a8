"""Published weights from a loopback Hub: timm's networks through the manifest's entries, and digests."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import rsbackbones as rsb
from rsbackbones.cli import main
from rsbackbones.zoo.manifest import entries_as_json, read_manifest
from rsbackbones.zoo.trusted_pickle import _state_dict, extract_tensors
from tests.hub_client import finish_client, run_client, start_client
from tests.loopback_hub import LoopbackHub
from tests.models.test_published import SHORT, theirs

# One entry of every architecture.
ENTRIES = {
    "resnet18": "resnet18.ssl4eo_l_moco_oli_sr",
    "resnet50": "resnet50.ssl4eo_s12_moco_s2",
    "resnet152": "resnet152.satlas_supervised_s2_mi_ms",
    "vit_s16": "vit_s16.ssl4eo_s12_dino_s2",
    "vit_b16": "vit_b16.ssl4eo_s12_mae_s1",
    "vit_l16": "vit_l16.crisislandmark_closp_s2",
    "vit_h14": "vit_h14.ssl4eo_s12_fgmae_s2",
    "vit_s14": "vit_s14.ssl4eo_s12_softcon_s2",
    "vit_b14": "vit_b14.ssl4eo_s12_softcon_s1",
}
SMALL = "vit_s16.ssl4eo_s12_mae_s1"  # without a published hash
SHALLOW = {"depth": 1}  # what a file is loaded from says nothing else with twelve blocks


class Zoo:
    """A loopback Hub, and a manifest whose entries are the published ones with digests of files on it."""

    def __init__(self, hub: LoopbackHub, folder: Path) -> None:
        self.hub, self.folder, self.home = hub, folder, folder / "home"
        self.manifest = folder / "manifest.json"
        self.entries: dict[str, dict[str, Any]] = {}

    def publish(
        self, name: str, data: bytes, *, lfs: bool = True, short: dict[str, Any] | None = None, **changes: Any
    ) -> None:
        """Put a file of `file_of` there; `short` are fields of the network that make it smaller."""
        entry = {key: v for key, v in entries_as_json()[name].items() if key != "sha256_prefix"}
        if short := SHALLOW if short is None else short:
            del entry["params"]
            entry["config"] = {**entry["config"], **short}
        source = entry["source"]
        self.hub.add_file(source["repo_id"], source["revision"], source["filename"], data, lfs=lfs)
        self.entries[name] = {**entry, "sha256_from": "hub", **changes}
        content = {"schema_version": 1, "weights": list(self.entries.values())}
        self.manifest.write_text(json.dumps(content))

    def client(self, code: str, **options: Any) -> dict[str, Any]:
        code = "import rsbackbones as rsb\nfrom rsbackbones.cli import main\n" + code
        client = start_client(
            code, self.hub, self.home, RSBACKBONES_MANIFEST=str(self.manifest), **options
        )  # fmt: skip
        return finish_client(client, timeout=400).report

    def load(self, name: str, **options: Any) -> dict[str, Any]:
        code = f"report(found=attempt(lambda: rsb.create_model({name!r}, pretrained=True).weights_entry.id))"
        return self.client(code, **options)["found"]


@pytest.fixture
def zoo(tmp_path: Path) -> Iterator[Zoo]:
    with LoopbackHub() as hub:
        yield Zoo(hub, tmp_path)


def channels(name: str) -> int:
    ((_, fields),) = entries_as_json()[name]["inputs"].items()
    return len(fields["bands"])


def file_of(name: str, folder: Path, short: dict[str, Any] | None = None) -> bytes:
    """A network of timm's with random weights, as the authors publish it; `short` as in `Zoo.publish`."""
    path = folder / "published.pth"
    arguments = SHALLOW if short is None else short
    torch.save(theirs(name.partition(".")[0], channels(name), **arguments).state_dict(), path)
    return path.read_bytes()


COMPARE = """
import torch
from tests.models.test_published import compare, theirs
torch.set_num_threads(1)
found = {{}}
for architecture, name, channels, short in {0!r}:
    model = rsb.create_model(name, pretrained=True)
    size = (120, 200) if architecture.startswith("resnet") else (112, 224)
    compare(theirs(architecture, channels, **short), model, torch.rand(1, channels, *size))
    found[name] = model.weights_entry.id, bool(model.adaptation)
report(**found)
"""


def test_an_entry_of_every_architecture_gives_timms_features(zoo):
    """All in one process."""
    published = []
    for architecture, name in ENTRIES.items():
        short = SHORT.get(architecture, {})
        zoo.publish(name, file_of(name, zoo.folder, short), short=short)
        published.append((architecture, name, channels(name), short))
    found = zoo.client(COMPARE.format(published))
    assert found == {name: [name, False] for name in ENTRIES.values()}


# -- digests that the Hub states -----------------------------------------------------------------------


def test_the_hubs_digest_is_checked(zoo):
    """Right bytes; a storage that lies; offline from the cache; a file for which the Hub states none."""
    data = file_of(SMALL, zoo.folder)
    zoo.publish(SMALL, data)
    source = zoo.entries[SMALL]["source"]
    zoo.hub.fault("corrupt", path=source["filename"], method="GET")
    zoo.hub.fault("corrupt", path=source["filename"], method="GET")
    found = zoo.load(SMALL)
    assert found["error"] == "WeightsIntegrityError"
    assert f"expected sha256 {hashlib.sha256(data).hexdigest()}" in found["text"]
    zoo.hub.clear()
    assert zoo.load(SMALL)["ok"] == SMALL
    before = len(zoo.hub.requests())
    assert zoo.load(SMALL, HF_HUB_OFFLINE="1")["ok"] == SMALL
    assert zoo.load(SMALL)["ok"] == SMALL
    assert len(zoo.hub.requests()) == before  # the cache records what the Hub stated
    # A cached file that is damaged is noticed: offline it is refused.
    (blob,) = (path for path in (zoo.home / "hub").rglob("blobs/*") if path.stat().st_size == len(data))
    blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert zoo.load(SMALL, HF_HUB_OFFLINE="1")["error"] == "WeightsIntegrityError"
    assert zoo.load(SMALL)["ok"] == SMALL


def test_a_hub_that_states_no_digest_is_refused_with_the_way_out(zoo):
    zoo.publish(SMALL, file_of(SMALL, zoo.folder), lfs=False)
    found = zoo.load(SMALL)
    assert found["error"] == "WeightsIntegrityError"
    assert "states no sha256" in found["text"]
    assert f"rsbackbones convert FILE OUTPUT.safetensors --model {SMALL}" in found["text"]
    assert not zoo.hub.requests(zoo.entries[SMALL]["source"]["filename"], "GET")


def test_lock_records_digests_and_sizes_and_goldens(zoo):
    """Locked entries no longer ask the Hub; what is not downloaded is left out unless asked for."""
    data = file_of(SMALL, zoo.folder)
    other = "vit_s16.ssl4eo_s12_fgmae_s1"
    zoo.publish(SMALL, data)
    zoo.publish(other, data + b"")
    zoo.load(SMALL)
    locked = zoo.folder / "mine.json"
    lock = f"report(rc=main(['manifest', 'lock', 'vit_s16.*_s1', '--output', {str(locked)!r}, {{}}]))"
    # Of the published entries that the manifest does not replace, none is in the cache.
    assert zoo.client(lock.replace(", {}", ""))["rc"] == 0
    (entry,) = read_manifest(locked)
    assert (entry.id, entry.sha256, entry.bytes) == (SMALL, hashlib.sha256(data).hexdigest(), len(data))
    assert (entry.sha256_from, entry.sha256_prefix) == (None, None)
    lock = lock.replace("vit_s16.*_s1", "vit_s16.ssl4eo_s12_*mae_s1").format("'--download', '--golden'")
    assert zoo.client(lock)["rc"] == 0
    entries = {entry.id: entry for entry in read_manifest(locked)}
    assert set(entries) == {SMALL, other}
    assert set(entries[other].golden["streams"]) == {"s1"}
    # What was recorded of an older revision does not hold for these bytes.
    content = json.loads(locked.read_text())
    (old,) = (e for e in content["weights"] if e["id"] == other)
    old["source"]["revision"] = "0" * 40
    old["golden"] = {**old["golden"], "streams": {}}
    locked.write_text(json.dumps(content))
    assert zoo.client(lock)["rc"] == 0
    (again,) = (e for e in read_manifest(locked) if e.id == other)
    assert (again.source, again.golden) == (entries[other].source, entries[other].golden)
    zoo.manifest.write_bytes(locked.read_bytes())
    verified = zoo.client(f"report(rc=main(['verify', {SMALL!r}]))")
    assert verified["rc"] == 0


# -- machines without a network ------------------------------------------------------------------------


def test_a_pattern_downloads_a_folder_that_another_machine_loads(zoo, tmp_path):
    names = (SMALL, "vit_s16.ssl4eo_s12_fgmae_s1")
    data = file_of(SMALL, zoo.folder)
    for name in names:
        zoo.publish(name, data)
    folder = tmp_path / "carried"
    code = f"report(rc=main(['download', 'vit_s16.ssl4eo_s12_*mae_s1', '--output', {str(folder)!r}]))"
    assert zoo.client(code)["rc"] == 0
    assert {path.name for path in folder.iterdir()} == {*(f"{n}.pth" for n in names), "manifest.json"}
    for entry in read_manifest(folder / "manifest.json"):
        assert (entry.availability, entry.bytes) == ("bundled", len(data))
        assert entry.sha256 == hashlib.sha256(data).hexdigest()
        assert not Path(entry.source.path).is_absolute()
    moved = folder.rename(tmp_path / "moved")
    load = f"report(entry=rsb.create_model({SMALL!r}, pretrained=True).weights_entry.id)"
    offline = {"HF_HUB_OFFLINE": "1"}
    for settings in (
        {"RSBACKBONES_MANIFEST": str(moved / "manifest.json")},
        {"RSBACKBONES_WEIGHTS": str(moved), "RSBACKBONES_MANIFEST": str(zoo.manifest)},
    ):
        found = run_client(
            "import rsbackbones as rsb\n" + load, None, tmp_path / "empty", **settings, **offline
        )
        assert found.report["entry"] == SMALL
    file = moved / f"{SMALL}.pth"
    file.write_bytes(file.read_bytes()[:-1])
    found = run_client(
        f"import rsbackbones as rsb\nreport(found=attempt(rsb.create_model, {SMALL!r}, True))",
        None, tmp_path / "empty", RSBACKBONES_WEIGHTS=str(moved), RSBACKBONES_MANIFEST=str(zoo.manifest),
    )  # fmt: skip
    assert found.report["found"]["error"] == "WeightsIntegrityError"


# -- licenses ------------------------------------------------------------------------------------------

TWICE = """
import warnings
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for name in {0!r}:
        for _ in range(2):
            rsb.create_model(name, pretrained=True)
report(said=[str(w.message) for w in said if w.category.__name__ == "LicenseNotice"])
"""


def test_a_license_with_a_condition_is_said_once(zoo):
    data = file_of(SMALL, zoo.folder)
    words = {"OpenRAIL": "restrict", "ODC-BY": "attribution", "none stated": "no right", "CC0-1.0": ""}
    base = SMALL.removesuffix("_mae_s1")
    names = [SMALL, f"{base}_fgmae_s1", "vit_s16.crisislandmark_closp_s1"]
    for name, license in zip(names, ("OpenRAIL", "ODC-BY", "none stated"), strict=True):
        zoo.publish(name, data, license=license)
    plain = f"{base}_dino_s2"
    zoo.publish(plain, file_of(plain, zoo.folder))
    said = zoo.client(TWICE.format((*names, plain)))["said"]
    assert len(said) == 3
    for text, name, word in zip(said, names, words.values(), strict=False):
        assert text.startswith(f"{name}: license")
        assert word in text


# -- pickles of more than tensors ----------------------------------------------------------------------


def test_a_pickle_with_objects_is_refused_and_can_be_converted_on_request(tmp_path, capsys):
    state = theirs("vit_s16", 2).state_dict()
    path, out = tmp_path / "full.pth", tmp_path / "model.safetensors"
    torch.save({"model": state, "args": argparse.Namespace(lr=0.1), "epoch": 3}, path)
    with pytest.raises(rsb.UnsafeCheckpointError, match=r"objects of argparse.Namespace.*--trust-pickle"):
        rsb.create_model("vit_s16", checkpoint=path, modalities=("s1",))
    convert = ["convert", str(path), str(out), "--model", "vit_s16", "--overrides", 'modalities=["s1"]']
    assert main(convert) == 2
    assert "argparse.Namespace" in capsys.readouterr().err
    assert not out.exists()
    assert main([*convert, "--trust-pickle"]) == 0
    assert "150 tensors of model; left out: args, epoch" in capsys.readouterr().err
    model = rsb.create_model("vit_s16", checkpoint=out)
    assert torch.equal(model.state_dict()["class_token"], state["cls_token"])
    assert main([*convert, "--trust-pickle", "--state-dict", "ema"]) == 2
    assert "no dictionary 'ema'; keys: model, args, epoch" in capsys.readouterr().err
    assert main([*convert, "--state-dict", "model"]) == 2
    assert "goes with --trust-pickle" in capsys.readouterr().err


@pytest.mark.parametrize("trusted", [True, False])
def test_a_file_that_holds_published_weights_gets_their_contract(trusted, tmp_path, capsys):
    """The architecture alone has other bands and another normalization."""
    name = "resnet18.ssl4eo_s12_moco_s2_rgb"
    state = theirs("resnet18", 3).state_dict()
    path, out = tmp_path / "full.pth", tmp_path / "model.safetensors"
    torch.save({"model": state, "args": argparse.Namespace(lr=0.1)} if trusted else state, path)
    with pytest.raises(ValueError, match=f"convert FILE OUTPUT.safetensors --model {name}"):
        rsb.create_model(name, checkpoint=path)
    convert = ["convert", str(path), str(out), "--model", name]
    assert main([*convert, *(["--trust-pickle"] if trusted else [])]) == 0, capsys.readouterr().err
    model = rsb.create_model("resnet18", checkpoint=out)
    assert model.bands == {"s2": ("B04", "B03", "B02")}
    assert model.weights_entry is None  # nobody has checked the bytes
    x = torch.rand(3, 8, 8) * 4000
    assert torch.allclose(rsb.create_preprocess(model)(x), x / 10000)
    assert torch.equal(model.state_dict()["trunk.conv1.weight"], state["conv1.weight"])


def test_a_trusted_pickle_runs_in_a_process_of_its_own(tmp_path):
    """What code in the file changes is gone with that process."""

    class Planted:
        def __reduce__(self):
            code = 'import os, pathlib, sys; pathlib.Path(sys.argv[2]).with_suffix(".pid")'
            return exec, (f"{code}.write_text(str(os.getpid()))",)

    path = tmp_path / "evil.pth"
    torch.save({"w": torch.zeros(2), "x": Planted()}, path)
    out = tmp_path / "tensors.pt"
    assert "1 tensors of the top level; left out: x" in extract_tensors(path, out)
    assert torch.equal(torch.load(out, weights_only=True)["w"], torch.zeros(2))
    assert int((tmp_path / "tensors.pid").read_text()) != os.getpid()
    with pytest.raises(ValueError, match="expected a dictionary, got list"):
        _state_dict([1, 2], "")
