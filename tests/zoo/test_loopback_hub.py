"""The loopback Hub is one for the stock client: what it serves, and that its faults are faults."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_client import run_client
from tests.loopback_hub import LoopbackHub

REVISION = "0123456789abcdef0123456789abcdef01234567"
DATA = random.Random(0).randbytes(1_000_000)
SHA256 = hashlib.sha256(DATA).hexdigest()

DOWNLOAD = f"""
import hashlib
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from pathlib import Path

def download(filename="model.safetensors", repo="zoo/croma", revision="{REVISION}", **options):
    path = hf_hub_download(repo, filename, revision=revision, **options)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
"""


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.add_file("zoo/croma", REVISION, "model.safetensors", DATA)
        hub.add_file("zoo/croma", REVISION, "README.md", b"# a model\n", lfs=False)
        yield hub


def test_download_is_byte_equal_and_the_second_asks_nothing(hub: LoopbackHub, tmp_path: Path) -> None:
    code = DOWNLOAD + "report(sha256=download(token='hf_secret'), small=download('README.md'))"
    report = run_client(code, hub, tmp_path).report
    assert report["sha256"] == SHA256
    assert report["small"] == hashlib.sha256(b"# a model\n").hexdigest()
    assert [(r.origin, r.method, r.status) for r in hub.requests("model.safetensors")] == [
        ("hub", "HEAD", 302),
        ("cdn", "GET", 200),
    ]
    # The token goes to the Hub and not beyond it.
    head, get = hub.requests("model.safetensors")
    assert head.auth == "Bearer hf_secret"
    assert get.auth is None
    assert get.bytes_sent == len(DATA)

    hub.clear()
    assert run_client(DOWNLOAD + "report(sha256=download())", hub, tmp_path).report["sha256"] == SHA256
    assert hub.log == []


def test_cut_download_is_resumed_with_range(hub: LoopbackHub, tmp_path: Path) -> None:
    large = DATA * 25  # the client writes, and so resumes, in steps of 10 MiB
    hub.add_file("zoo/croma", REVISION, "large", large)
    step = 10 * 2**20
    hub.fault("truncate", "large", "GET", after=step + 5)
    hub.fault("stall", "large", "GET", after=step + 5)
    hub.fault("no_range", "large", "GET")
    code = DOWNLOAD + "report(sha256=download('large'))"
    report = run_client(code, hub, tmp_path, HF_HUB_DOWNLOAD_TIMEOUT="1").report
    assert report["sha256"] == hashlib.sha256(large).hexdigest()
    assert [(r.range, r.status, r.bytes_sent) for r in hub.requests("large", "GET")] == [
        (None, 200, step + 5),
        (f"bytes={step}-", 206, step + 5),
        (f"bytes={2 * step}-", 200, len(large)),
    ]


def test_error_codes_become_the_classes_of_the_client(hub: LoopbackHub, tmp_path: Path) -> None:
    for access in ("private", "gated"):
        hub.add_file(f"zoo/{access}", REVISION, "model.safetensors", DATA)
        hub.repos[f"zoo/{access}"].access = access
    hub.tokens.add("hf_known")
    code = """
def error(*args, **kwargs):
    return attempt(download, *args, **kwargs).get("error")

report(
    missing=error(repo="zoo/none"),
    private=error(repo="zoo/private"),
    gated=error(repo="zoo/gated"),
    granted=error(repo="zoo/gated", token="hf_known"),
    revision=error(revision="f" * 40),
    entry=error("none.safetensors"),
)
"""
    assert run_client(DOWNLOAD + code, hub, tmp_path).report == {
        "missing": "RepositoryNotFoundError",
        "private": "RepositoryNotFoundError",
        "gated": "GatedRepoError",
        "granted": None,
        "revision": "RevisionNotFoundError",
        "entry": "RemoteEntryNotFoundError",
    }


def test_repository_is_browsable(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.repos["zoo/croma"].tags["v1"] = REVISION
    hub.add_file("datasets/zoo/tiles", REVISION, "a/b.bin", b"tile", lfs=False)
    code = """
api = HfApi()
folder = Path(snapshot_download("zoo/croma", revision="v1"))
report(
    sha=api.model_info("zoo/croma").sha,
    tags=[tag.target_commit for tag in api.list_repo_refs("zoo/croma").tags],
    commits=[commit.commit_id for commit in api.list_repo_commits("zoo/croma")],
    lfs=api.get_paths_info("zoo/croma", ["model.safetensors"])[0].lfs.sha256,
    snapshot=sorted(path.name for path in folder.iterdir()),
    tiles=api.list_repo_files("zoo/tiles", repo_type="dataset"),
    ok=not api.verify_repo_checksums("zoo/croma", revision="v1").mismatches,
)
"""
    assert run_client(DOWNLOAD + code, hub, tmp_path).report == {
        "sha": REVISION,
        "tags": [REVISION],
        "commits": [REVISION],
        "lfs": SHA256,
        "snapshot": ["README.md", "model.safetensors"],
        "tiles": ["a/b.bin"],
        "ok": True,
    }


def test_faults_show_what_the_stock_client_leaves_open(hub: LoopbackHub, tmp_path: Path) -> None:
    """The reasons for which the package has guards of its own; each file has its own fault."""
    faults = {
        "reset": {"kind": "reset", "method": "GET", "after": 300_000},
        "status": {"kind": "status", "method": "GET", "code": 500},
        "short": {"kind": "length", "method": "GET", "by": -1000},
        "size": {"kind": "header", "method": "HEAD", "name": "X-Linked-Size", "value": "999"},
        "commit": {"kind": "header", "method": "HEAD", "name": "X-Repo-Commit"},
        "corrupt": {"kind": "corrupt", "method": "GET"},
        "loop": {"kind": "redirect_loop", "times": None},
        "portal": {"kind": "captive_portal", "times": None},
    }
    for name, fault in faults.items():
        # Different bytes, since blobs of one repository are shared by their hash.
        hub.add_file("zoo/croma", REVISION, name, name.encode() + DATA)
        hub.fault(path=f"/{name}", **fault)  # type: ignore[arg-type]
    code = f"report(**{{n: attempt(download, n) for n in {list(faults)}}})"
    report = run_client(DOWNLOAD + code, hub, tmp_path).report
    assert {name: outcome.get("error") for name, outcome in report.items()} == {
        "reset": "ReadError",
        "status": "HfHubHTTPError",
        "short": "OSError",
        "size": "OSError",
        "commit": "LocalEntryNotFoundError",
        "corrupt": None,
        "loop": "TooManyRedirects",
        "portal": "LocalEntryNotFoundError",
    }
    assert report["corrupt"]["ok"] != hashlib.sha256(b"corrupt" + DATA).hexdigest()
    assert hub.requests("/reset", "GET")[0].bytes_sent == 300_000
