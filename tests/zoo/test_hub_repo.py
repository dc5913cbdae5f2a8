"""Repositories on the Hub: what `push_to_hub` writes, `create_model("hf-hub:...")` reads, and nothing else.

The client is the real one, against a Hub on this machine; each child process is a fresh client.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rsbackbones as rsb
from rsbackbones.zoo import hub as hub_module
from rsbackbones.zoo.cards import repository_card
from rsbackbones.zoo.publish import write_repository
from tests.hub_client import run_client
from tests.loopback_hub import HubFile, LoopbackHub, Repo

TOKEN = "hf_writer"
FILES = {".gitattributes", "README.md", "config.json", "model.safetensors"}
SMALL = {"dim": 32, "depth": 2, "num_heads": 2}
PRELUDE = f"""
import json, torch
import rsbackbones as rsb

SMALL = {SMALL}

def model(seed=0, **options):
    torch.manual_seed(seed)
    return rsb.create_model("croma_vit_tiny", modalities=("s2",), overrides=SMALL, **options)

def push(name="zoo/small", seed=0, **options):
    return rsb.push_to_hub(model(seed), name, **({{"license": "mit"}} | options))

def total(model):
    return sum(tensor.double().abs().sum().item() for tensor in model.state_dict().values())

def load(name, **options):
    loaded = rsb.create_model(name, pretrained=True, **options)
    return {{"total": total(loaded), "revision": loaded.weights_entry.source.revision}}
"""


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as server:
        server.tokens = {TOKEN, "hf_reader"}
        server.read_only = {"hf_reader"}
        yield server


def ask(hub: LoopbackHub | None, home: Path, code: str, **env: str) -> dict:
    """Run a child, logged in as one who may write unless `env` says otherwise."""
    settings = {"HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"} | env
    settings = {name: value for name, value in settings.items() if value}
    return run_client(PRELUDE + code, hub, home, **settings).report


def commits(hub: LoopbackHub, name: str = "zoo/small") -> int:
    """How many commits there are, besides that which makes the repository."""
    return len(hub.repos[name].commits) - 1


def put(hub: LoopbackHub, folder: Path, name: str = "zoo/small", **changes: object) -> str:
    """Store a repository without the client; `changes` are to the fields of config.json."""
    folder.mkdir()
    torch.manual_seed(0)
    model = rsb.create_model("croma_vit_tiny", modalities=("s2",), overrides=SMALL)
    write_repository(model, name, folder, license="mit")
    content = json.loads((folder / "config.json").read_text())
    content["weights"] |= changes
    (folder / "config.json").write_text(json.dumps(content))
    return store(hub, name, {path.name: path.read_bytes() for path in folder.iterdir()})


def store(hub: LoopbackHub, name: str, files: dict[str, bytes]) -> str:
    sha = hashlib.sha1(name.encode()).hexdigest()
    for path, data in files.items():
        hub.add_file(name, sha, path, data, lfs=path.endswith(".safetensors"))
    return sha


# -- publishing and loading ---------------------------------------------------------------------------


def test_what_is_pushed_is_what_is_loaded(hub, tmp_path):
    pushed = ask(hub, tmp_path / "a", "report(name=push(), total=total(model()))")
    repo = hub.repos["zoo/small"]
    assert pushed["name"] == f"hf-hub:zoo/small@{repo.branches['main']}"
    assert commits(hub) == 1
    assert set(repo.commits[repo.branches["main"]]) == FILES

    hub.clear()
    loaded = ask(
        hub,
        tmp_path / "b",
        f"report(newest=load('hf-hub:zoo/small'), pinned=load({pushed['name']!r}))",
    )
    expected = {"total": pushed["total"], "revision": repo.branches["main"]}
    assert loaded == {"newest": expected, "pinned": expected}
    assert not any(request.auth for request in hub.log)  # a public repository needs no token
    assert len(hub.requests("/cdn/", "GET")) == 1  # the pinned one came from the cache


def test_a_private_repository_is_loaded_with_the_token_of_its_owner(hub, tmp_path):
    ask(hub, tmp_path / "a", "push(private=True)")
    assert hub.repos["zoo/small"].access == "private"
    assert "total" in ask(hub, tmp_path / "b", "report(**load('hf-hub:zoo/small'))")
    stranger = ask(hub, tmp_path / "c", "report(**attempt(load, 'hf-hub:zoo/small'))", HF_TOKEN="")
    assert stranger["error"] == "WeightsNotFound"
    assert "private" in stranger["text"]


def test_the_lines_of_the_card_run_and_the_whole_contract_arrives(hub, tmp_path):
    """Bands of the user's own, a head, half precision: all of it comes back."""
    code = """
mine = model(bands={"s2": ("B08", "B04", "B03")}, num_classes=5)
rsb.push_to_hub(mine, "zoo/small", license="cc-by-4.0", provenance="Of a test.", dtype=torch.float16,
                metrics={"accuracy": 0.5}, citation="@misc{test}")
x = torch.rand(2, 3, 16, 16)
from huggingface_hub import hf_hub_download
card = open(hf_hub_download("zoo/small", "README.md")).read()
names = {}
exec(card.split("```python")[1].split("```")[0], names)
theirs = names["model"]
report(card=card, error=(theirs(x) - mine(x)).abs().max().item(), bands=theirs.bands["s2"],
       same=names["preprocess"].specs == rsb.create_preprocess(mine).specs)
"""
    found = ask(hub, tmp_path, code)
    assert found["error"] < 1e-2  # of half precision
    assert found["bands"] == ["B08", "B04", "B03"]
    assert found["same"]
    facts = ('license: "cc-by-4.0"', "Of a test.", "- accuracy: 0.5", "@misc{test}", "| B08 |", "float16")
    for said in facts:
        assert said in found["card"]
    assert "| B02 |" not in found["card"]


def test_bands_that_the_weights_lack_arrive_under_every_rule(hub, tmp_path):
    """Statistics there are of all bands, of some or of none: what is said, and what is missing, arrives."""
    code = """
def contract(loaded):
    try:
        return rsb.create_preprocess(loaded).specs
    except ValueError as error:
        return str(error)

statistics = {"s2": {"B05": (1500.0, 900.0), "B11": (1000.0, 500.0)}}
own, more, none = ("B08", "B02"), ("B02", "B03", "B04", "B08", "B11"), ("B05", "B11")
raw = torch.randint(1, 4000, (2, 5, 16, 16))
cases = [("error", own), *((rule, more) for rule in ("nearest", "mean", "zero", "reinit", "reinit_all"))]
found = {}
for rule, bands in [*cases, ("zero", none), ("reinit", none)]:
    for modalities in ("s2",), ("s2", "s1"):
        mine = rsb.create_model("croma_vit_tiny", True, modalities=modalities, bands={"s2": bands},
                                missing_bands=rule)
        name = rsb.push_to_hub(mine, f"zoo/{rule}_{len(bands)}_{len(modalities)}", license="mit")
        theirs = rsb.create_model(name, True)
        asked = contract(theirs)
        x = raw[:, :len(bands)]
        given = {"statistics": {"s2": {b: statistics["s2"][b] for b in bands if b in statistics["s2"]}}}
        images = [rsb.create_preprocess(model, **given)({"s2": x}) for model in (mine, theirs)]
        images += [rsb.create_preprocess(model)({"s2": x}) for model in (mine, theirs)
                   if not isinstance(asked, str)]
        features = [model.pool_tokens("s2", model.forward_features(each).tokens["s2"])
                    for model, each in zip((mine, theirs) * 2, images)]
        found[name.split("@")[0]] = {
            "same": all(torch.equal(*pair) for pair in zip(features[::2], features[1::2])),
            "contract": asked == contract(mine) and theirs.inputs["s2"] == mine.inputs["s2"].of(bands),
            "asks": isinstance(asked, str),
        }
report(found=found)
"""
    found = ask(hub, tmp_path, code)["found"]
    assert len(found) == 16
    asks = {name for name, what in found.items() if what.pop("asks")}
    assert asks == {
        f"hf-hub:zoo/{rule}_{n}" for rule in ("reinit_5", "reinit_all_5", "reinit_2") for n in (1, 2)
    }
    assert all(what == {"same": True, "contract": True} for what in found.values()), found


def test_the_commands_take_the_name_of_a_repository(hub, tmp_path):
    code = """
import contextlib, io, pathlib
import numpy as np
from rsbackbones.cli import main

mine = model(bands={"s2": ("B08", "B04", "B03")})
pinned = rsb.push_to_hub(mine, "zoo/small", license="mit", provenance="Of a test.")
folder = pathlib.Path(FOLDER)
draw = np.random.default_rng(0)
np.savez(folder / "set.npz", s2=draw.integers(1, 4000, (12, 4, 16, 16)), label=np.arange(12) % 2,
         s2_bands=["B03", "B04", "B05", "B08"])

def run(*arguments):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main([str(argument) for argument in arguments])
    return [code, out.getvalue() + err.getvalue()]

name = "hf-hub:zoo/small"
weights = folder / "out" / "croma_vit_tiny.zoo_small.safetensors"
report(
    pinned=pinned,
    bands=run("bands", pinned, "--bands", "B04,B08"),
    info=run("info", name),
    verify=run("verify", name),
    download=run("download", name, "--output", folder / "out"),
    same=total(rsb.create_model("croma_vit_tiny", checkpoint=weights)) == total(mine),
    carried=run("verify", name, "--checkpoint", folder / "out"),
    eval=run("eval", "linear", "--model", name, "--data", folder / "set.npz", "--output", folder / "table",
             "--no-progress", "--batch-size", 4, "--baselines"),
    nosuch=[run(command, "hf-hub:zoo/nosuch") for command in ("info", "verify", "download")],
)
"""
    found = ask(hub, tmp_path / "home", code.replace("FOLDER", repr(str(tmp_path))))
    commit = hub.repos["zoo/small"].branches["main"]
    assert found["pinned"].endswith(commit)
    for command in ("bands", "info", "verify", "download", "carried", "eval"):
        assert found[command][0] == 0, found[command]
    assert "dropped pretrained bands: B03" in found["bands"][1]
    assert "Of a test." in found["info"][1]
    assert commit in found["info"][1]
    assert "tensors: " in found["verify"][1]
    assert "as pinned in full" in found["verify"][1]
    assert "croma_vit_tiny.zoo_small.safetensors'" in found["download"][1]
    assert found["same"]
    assert "random initialization" in found["eval"][1]
    assert "not used: B05" in found["eval"][1]
    assert all(code == 2 and "zoo/nosuch" in said for code, said in found["nosuch"])


def test_a_branch_moves_and_a_commit_does_not(hub, tmp_path):
    code = """
first, second = push(seed=1), push(seed=2)
report(first=load(first), second=load(second), newest=load("hf-hub:zoo/small"), again=push(seed=2) == second)
"""
    found = ask(hub, tmp_path, code)
    assert found["first"]["total"] != found["second"]["total"]
    assert found["newest"] == found["second"]
    assert found["again"]  # the same weights once more are no new commit
    assert commits(hub) == 2

    hub.clear()
    code = "report(newest=load('hf-hub:zoo/small'), other=attempt(load, 'hf-hub:zoo/other'))"
    offline = ask(hub, tmp_path, code, HF_HUB_OFFLINE="1")
    assert offline["newest"] == found["newest"]
    assert offline["other"]["error"] == "WeightsUnavailable"
    assert "HF_HUB_OFFLINE" in offline["other"]["text"]
    assert hub.log == []


# -- what a repository may not be ---------------------------------------------------------------------


def test_repositories_that_are_not_what_they_say(hub, tmp_path):
    inputs = json.loads((Path(rsb.__file__).parents[1] / "weights_manifest.json").read_text())
    contract = inputs["weights"][0]["inputs"]["s2"]
    put(hub, tmp_path / "1", "zoo/digest", sha256="0" * 64)
    put(hub, tmp_path / "2", "zoo/unknown", architecture="croma_vit_huge")
    put(hub, tmp_path / "3", "zoo/shape", config=json.loads(json.dumps(SMALL | {"dim": 64})))
    put(hub, tmp_path / "4", "zoo/mean", inputs={"s2": contract | {"mean": [1.0] * 12}})
    put(hub, tmp_path / "5", "zoo/bands", inputs={"s2": contract | {"mean": [1.0]}})
    put(hub, tmp_path / "6", "zoo/unpinned", sha256=None)
    store(hub, "zoo/foreign", {"config.json": b'{"model_type": "vit"}', "model.safetensors": b"x"})
    store(hub, "zoo/damaged", {"config.json": b'{"library_name": "rsba'})
    store(hub, "zoo/pickle", {"pytorch_model.bin": b"x"})
    newer = {"library_name": "rsbackbones", "schema_version": 99, "weights": {}}
    store(hub, "zoo/newer", {"config.json": json.dumps(newer).encode()})
    expected = {
        "digest": "WeightsIntegrityError",
        "unknown": "ValueError",
        "shape": "WeightsMismatchError",
        "mean": "WeightsMismatchError",
        "bands": "CorruptCheckpointError",
        "unpinned": "CorruptCheckpointError",
        "foreign": "WeightsMismatchError",
        "damaged": "CorruptCheckpointError",
        "pickle": "WeightsNotFound",
        "newer": "WeightsMismatchError",
        "missing": "WeightsNotFound",
    }
    code = f"for name in {list(expected)}: report(**{{name: attempt(load, f'hf-hub:zoo/{{name}}')}})"
    found = ask(hub, tmp_path, code, HF_TOKEN="")
    assert {name: answer["error"] for name, answer in found.items()} == expected
    assert "0000" in found["digest"]["text"]
    assert hub.requests(".bin") == []


def test_a_wrong_byte_is_repaired_or_refused(hub, tmp_path):
    once, always = put(hub, tmp_path / "1", "zoo/once"), put(hub, tmp_path / "2", "zoo/always")
    hub.fault("corrupt", path="/cdn/zoo/once", method="GET")
    hub.fault("corrupt", path="/cdn/zoo/always", method="GET", times=None)
    code = "report(once=load('hf-hub:zoo/once'), always=attempt(load, 'hf-hub:zoo/always'))"
    found = ask(hub, tmp_path / "a", code)
    assert found["once"]["revision"] == once
    assert len(hub.requests("/cdn/zoo/once", "GET")) == 2
    assert found["always"]["error"] == "WeightsIntegrityError"
    assert f"zoo/always/model.safetensors@{always}" in found["always"]["text"]


@pytest.mark.parametrize(
    "name", ["hf-hub:", "hf-hub:name", "hf-hub:a/b/c", "hf-hub:a/b@", "hf-hub:../b", "hf-hub:a/b@../x"]
)
def test_malformed_names(name):
    with pytest.raises(ValueError, match="ORG/NAME"):
        rsb.create_model(name, pretrained=True)


def test_a_repository_is_asked_for_with_pretrained_and_nothing_else(tmp_path):
    for options in ({}, {"pretrained": True, "checkpoint": tmp_path}):
        with pytest.raises(ValueError, match="pretrained=True"):
            rsb.create_model("hf-hub:zoo/small", **options)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repository")
    torch.manual_seed(0)
    model = rsb.create_model("croma_vit_tiny", overrides=SMALL)
    return write_repository(model, "zoo/small", folder, license="mit"), folder / "config.json"


def test_an_entry_survives_its_config(written):
    entry, path = written
    source = hub_module.hub_repo("hf-hub:zoo/small")
    commit = "0" * 40
    again = hub_module.parse_config(path, replace(source, revision=commit))
    assert (again.source.revision, again.sha256, again.bytes) == (commit, entry.sha256, entry.bytes)
    assert again.id == "croma_vit_tiny.zoo_small"
    assert again.config == json.loads(json.dumps(entry.config))
    assert "hf-hub:zoo/small" in repository_card(entry, 0)


@settings(max_examples=200)
@given(data=st.data())
def test_no_config_does_worse_than_an_error_of_ours(written, data):
    """Whatever stands in one field of config.json, reading gives an entry or a ValueError."""
    _, path = written
    content = json.loads(path.read_text())
    place = data.draw(st.sampled_from([content, content["weights"], content["weights"]["inputs"]["s2"]]))
    place[data.draw(st.sampled_from([*place, "other"]))] = data.draw(json_values)
    broken = path.with_name("broken.json")
    broken.write_text(json.dumps(content))
    source = replace(hub_module.hub_repo("hf-hub:zoo/small"), revision="0" * 40)
    try:
        entry = hub_module.parse_config(broken, source)
    except ValueError:
        return
    assert entry.format == "rsbackbones"
    assert (entry.source.repo_id, entry.source.filename) == ("zoo/small", "model.safetensors")


# -- faults of an upload ------------------------------------------------------------------------------


def test_a_failed_commit_is_made_once(hub, tmp_path):
    """Whether it took place or not, and whatever the reply says of it or does not."""
    faults = {
        "reply_lost": ("reset", {}),
        "reply_wrong": ("status", {"code": 500}),
        "request_lost": ("reset", {"unheard": True}),
        "request_refused": ("status", {"code": 500, "unheard": True}),
    }
    for name, (kind, options) in faults.items():
        hub.fault(kind, path=f"/{name}/commit/", method="POST", **options)
    code = f"for name in {list(faults)}: report(**{{name: (pushed := push(f'zoo/{{name}}'), load(pushed))}})"
    found = ask(hub, tmp_path, code)
    for name, (_, options) in faults.items():
        head = hub.repos[f"zoo/{name}"].branches["main"]
        assert found[name][0] == f"hf-hub:zoo/{name}@{head}"
        assert found[name][1]["revision"] == head
        assert commits(hub, f"zoo/{name}") == 1
        asked = hub.requests(f"/{name}/commit/", "POST")
        assert len(asked) == (2 if "unheard" in options else 1), name


def test_a_commit_is_never_made_on_top_of_somebody_elses(hub, tmp_path):
    hub.fault("overtake", path="/preupload/")
    found = ask(hub, tmp_path, "report(**attempt(push))")
    assert found["error"] == "WeightsUnavailable"
    assert "somebody else" in found["text"]
    repo = hub.repos["zoo/small"]
    assert set(repo.commits[repo.branches["main"]]) == {".gitattributes", "theirs.txt"}
    assert len(hub.requests("/commit/", "POST")) == 1


def test_a_hub_that_does_not_recover(hub, tmp_path):
    hub.fault("status", path="/commit/", method="POST", times=None, code=503, unheard=True)
    found = ask(hub, tmp_path, "report(down=attempt(push), again=attempt(load, 'hf-hub:zoo/small'))")
    assert found["down"]["error"] == "WeightsUnavailable"
    assert "503" in found["down"]["text"]
    assert len(hub.requests("/commit/", "POST")) == 4
    assert commits(hub) == 0
    assert found["again"]["error"] == "WeightsNotFound"


def test_pushes_that_are_refused(hub, tmp_path):
    store(hub, "zoo/other", {"pytorch_model.bin": b"x", "config.json": b"{}"})
    store(hub, "zoo/foreign", {"config.json": b"{}"})
    put(hub, tmp_path / "b", "zoo/base", architecture="croma_vit_b")
    store(hub, "zoo/public", {".gitattributes": b""})
    before = {name: dict(repo.commits) for name, repo in hub.repos.items()}
    code = """
report(other=attempt(push, "zoo/other"), foreign=attempt(push, "zoo/foreign"), base=attempt(push, "zoo/base"),
       public=attempt(push, "zoo/public", private=True), name=attempt(push, "small"),
       license=attempt(push, license=""))
"""
    found = ask(hub, tmp_path, code)
    assert {name: answer["error"] for name, answer in found.items()} == {
        "other": "WeightsError",
        "foreign": "WeightsMismatchError",
        "base": "WeightsError",
        "public": "WeightsError",
        "name": "ValueError",
        "license": "ValueError",
    }
    assert "pytorch_model.bin" in found["other"]["text"]
    assert "croma_vit_b" in found["base"]["text"]
    assert "public" in found["public"]["text"]
    assert "license" in found["license"]["text"]
    assert {name: repo.commits for name, repo in hub.repos.items()} == before


def test_who_may_not_write(hub, tmp_path):
    hub.repos["zoo/small"] = Repo()
    hub.repos["zoo/small"].commit({".gitattributes": HubFile(b"", lfs=False)})
    code = """
import os
for token in ("hf_reader", "hf_stranger", ""):
    os.environ["HF_TOKEN"] = token
    report(**{token: attempt(push), token + "_new": attempt(push, "zoo/new")})
"""
    found = ask(hub, tmp_path, code)
    assert {answer["error"] for answer in found.values()} == {"WeightsAccessError"}
    for token, said in {"hf_reader": "403", "hf_stranger": "401", "": "nobody is logged in"}.items():
        assert said in found[token]["text"]
        assert said in found[token + "_new"]["text"]
        assert "hf auth login" in found[token]["text"]
    assert commits(hub) == 0
    assert list(hub.repos) == ["zoo/small"]


def test_no_network_to_push_over(tmp_path):
    found = ask(None, tmp_path, "report(**attempt(push))")
    assert found["error"] == "WeightsUnavailable"
    assert "zoo/small" in found["text"]
