"""Fetching weights while the Hub, the network or the disk fails: real client, real faults.

What the stock client makes of each fault is in ``test_loopback_hub.py``; here is what the package
promises instead. Each child process imports the package anew, so cases share one where they can:
every weights file has its own name, and faults are matched by it.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.hub_client import Client, finish_client, start_client
from tests.loopback_hub import LoopbackHub

REVISION = "0123456789abcdef0123456789abcdef01234567"
REPO = "zoo/weights"
SIZE = 300_000

FETCH = """
import hashlib
from rsbackbones.zoo import weights
from rsbackbones.zoo.manifest import find_entry

def fetch(tag):
    path = weights.fetch(find_entry("croma_vit_tiny." + tag))
    return hashlib.sha256(path.read_bytes()).hexdigest()
"""
CREATE = """
import rsbackbones

def create(tag):
    model = rsbackbones.create_model("croma_vit_tiny." + tag, pretrained=True)
    return sum(tensor.double().abs().sum().item() for tensor in model.state_dict().values())
"""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


class Zoo:
    """Weights on a loopback Hub, a manifest that pins them, and a Hub cache for the clients."""

    def __init__(self, hub: LoopbackHub, folder: Path) -> None:
        self.hub, self.folder = hub, folder
        self.home = folder / "home"
        self.entries: dict[str, dict[str, Any]] = {}
        self.data: dict[str, bytes] = {}

    def publish(self, tag: str, data: bytes | None = None, **changes: Any) -> bytes:
        """Put weights on the Hub and in the manifest; `changes` to the manifest's `source`."""
        data = data or random.Random(tag).randbytes(SIZE)
        file = {"repo_id": REPO, "revision": REVISION, "filename": f"{tag}.safetensors"}
        source = {"kind": "hub"} | file | changes
        entry: dict[str, Any] = {"id": f"croma_vit_tiny.{tag}", "architecture": "croma_vit_tiny"}
        entry |= {"source": source, "format": "rsbackbones", "inputs": {}}
        entry |= {"sha256": sha256(data), "bytes": len(data), "license": "MIT", "provenance": "test"}
        self.hub.add_file(source["repo_id"], source["revision"], source["filename"], data)
        self.entries[tag] = entry
        self.data[tag] = data
        self.write_manifest()
        return data

    def write_manifest(self) -> None:
        content = {"schema_version": 1, "weights": list(self.entries.values())}
        (self.folder / "manifest.json").write_text(json.dumps(content))

    def plant(self, tag: str, data: bytes | None = None) -> Path:
        """Put a file into the cache as the client would have; other `data` makes it a bad file."""
        blob = self.blobs / sha256(self.data[tag])
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(self.data[tag] if data is None else data)
        link = self.blobs.parent / "snapshots" / REVISION / f"{tag}.safetensors"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
        return blob

    @property
    def blobs(self) -> Path:
        return self.home / "hub" / f"models--{REPO.replace('/', '--')}" / "blobs"

    def assert_cache_is_clean(self) -> None:
        """Every blob has the content that its name says; no partial files, no dangling links."""
        for path in self.blobs.glob("*"):
            assert path.name == sha256(path.read_bytes())
        for link in (self.blobs.parent / "snapshots").rglob("*"):
            assert link.exists()

    def start(self, code: str, **options: Any) -> Client:
        manifest = str(self.folder / "manifest.json")
        code = FETCH + CREATE + code
        return start_client(code, self.hub, self.home, RSBACKBONES_MANIFEST=manifest, **options)

    def client(self, code: str, **options: Any) -> dict[str, Any]:
        return finish_client(self.start(code, **options)).report

    def fetch(self, *tags: str, **options: Any) -> dict[str, Any]:
        """Fetch each in one fresh process; outcomes by tag, see `attempt` in hub_client.py."""
        return self.fetch_apart(tags, **options)

    def fetch_apart(self, *groups: Sequence[str], **options: Any) -> dict[str, Any]:
        """The same with a process for each group, side by side: most of the time is waiting."""
        code = "report(**{{tag: attempt(fetch, tag) for tag in {}}})"
        children = [self.start(code.format(tuple(group)), **options) for group in groups]
        found: dict[str, Any] = {}
        for child in children:
            found |= finish_client(child).report
        for tag, outcome in found.items():
            if "error" not in outcome:
                assert outcome["ok"] == sha256(self.data[tag])
            else:  # every error is ours, has its cause, and names the file and where it is from
                assert "WeightsError" in outcome["kinds"], outcome
                source = self.entries[tag]["source"]
                where = f"{source['repo_id']}/{source['filename']}@{source['revision']}"
                assert where in outcome["text"]
        return found

    def gets(self, tag: str) -> int:
        """How often the bytes of a file were asked for."""
        return len(self.hub.requests(f"/{tag}.safetensors", "GET"))


@pytest.fixture
def zoo(tmp_path: Path) -> Iterator[Zoo]:
    with LoopbackHub() as hub:
        yield Zoo(hub, tmp_path)


def errors(outcomes: dict[str, Any]) -> dict[str, str | None]:
    return {tag: outcome.get("error") for tag, outcome in outcomes.items()}


# --- the good case -------------------------------------------------------------------------------
def test_pinned_weights_load_and_a_second_time_nothing_is_asked(zoo: Zoo) -> None:
    import rsbackbones

    model = rsbackbones.create_model("croma_vit_tiny")
    file = rsbackbones.save_model(model, zoo.folder / "model.safetensors")
    zoo.publish("a", file.read_bytes())
    expected = sum(tensor.double().abs().sum().item() for tensor in model.state_dict().values())

    assert zoo.client("report(sum=create('a'))")["sum"] == expected
    assert [(r.origin, r.method, r.status) for r in zoo.hub.log] == [
        ("hub", "HEAD", 302),
        ("cdn", "GET", 200),
    ]
    zoo.assert_cache_is_clean()

    zoo.hub.clear()
    assert zoo.client("report(sum=create('a'))")["sum"] == expected
    assert zoo.hub.log == []


# --- wrong bytes ---------------------------------------------------------------------------------
def test_wrong_byte_is_repaired_once_and_never_accepted(zoo: Zoo) -> None:
    for tag in ("once", "always"):
        zoo.publish(tag)
    zoo.hub.fault("corrupt", "/once", "GET")
    zoo.hub.fault("corrupt", "/always", "GET", times=None)
    found = zoo.fetch("once", "always")
    assert errors(found) == {"once": None, "always": "WeightsIntegrityError"}
    assert (zoo.gets("once"), zoo.gets("always")) == (2, 2)
    data = zoo.data["always"]
    assert sha256(data) in found["always"]["text"]
    assert sha256(flipped(data)) in found["always"]["text"]
    # Nothing is left that another library, sharing the cache, would load without a check.
    assert [path.name for path in zoo.blobs.iterdir()] == [sha256(zoo.data["once"])]
    zoo.assert_cache_is_clean()


BAD_CACHE: dict[str, Callable[[bytes], bytes]] = {
    "flipped": flipped,
    "truncated": lambda data: data[:1000],
    "emptied": lambda data: b"",
    "lengthened": lambda data: data + b"\0",
}


def test_bad_cache_is_repaired_online(zoo: Zoo) -> None:
    for tag, spoil in BAD_CACHE.items():
        zoo.plant(tag, spoil(zoo.publish(tag)))
    zoo.publish("dangling")
    zoo.plant("dangling").unlink()
    assert set(errors(zoo.fetch(*zoo.data)).values()) == {None}
    assert [zoo.gets(tag) for tag in zoo.data] == [1] * len(zoo.data)
    zoo.assert_cache_is_clean()


def test_bad_cache_is_refused_offline(zoo: Zoo) -> None:
    for tag, spoil in BAD_CACHE.items():
        zoo.plant(tag, spoil(zoo.publish(tag)))
    found = zoo.fetch(*BAD_CACHE, HF_HUB_OFFLINE="1")
    assert set(errors(found).values()) == {"WeightsIntegrityError"}
    for tag in BAD_CACHE:
        assert sha256(zoo.data[tag]) in found[tag]["text"]
        assert sha256(BAD_CACHE[tag](zoo.data[tag])) in found[tag]["text"]
    assert zoo.hub.log == []
    zoo.assert_cache_is_clean()


# --- the network ---------------------------------------------------------------------------------
def test_passing_faults_are_retried(zoo: Zoo) -> None:
    faults: dict[str, dict[str, Any]] = {
        "reset_body": {"kind": "reset", "method": "GET", "after": SIZE // 2},
        "reset_get": {"kind": "reset", "method": "GET"},
        "reset_head": {"kind": "reset", "method": "HEAD"},
        "cut": {"kind": "truncate", "method": "GET", "after": SIZE // 2},
        "stall": {"kind": "stall", "method": "GET", "after": SIZE // 2},
        "get_500": {"kind": "status", "method": "GET", "times": 2, "code": 500},
        "head_503": {"kind": "status", "method": "HEAD", "code": 503},
        "get_429": {
            "kind": "status",
            "method": "GET",
            "code": 429,
            "headers": {"Retry-After": "0"},
        },
        "short": {"kind": "length", "method": "GET", "by": -1000},
        "long": {"kind": "length", "method": "GET", "by": 1000},
        "size": {"kind": "header", "method": "HEAD", "name": "X-Linked-Size", "value": "999"},
    }
    for tag, fault in faults.items():
        zoo.publish(tag)
        zoo.hub.fault(path=f"/{tag}.", **fault)
    found = zoo.fetch(*faults, HF_HUB_DOWNLOAD_TIMEOUT="1")
    assert errors(found) == dict.fromkeys(faults)
    assert [fault.hits for fault in zoo.hub.faults] == [f.times for f in zoo.hub.faults]
    assert max(zoo.gets(tag) for tag in faults) == 3  # the one that failed twice
    zoo.assert_cache_is_clean()


def test_lasting_faults_end_in_an_error_that_says_so(zoo: Zoo) -> None:
    faults: dict[str, dict[str, Any]] = {
        "reset": {"kind": "reset", "method": "GET", "after": SIZE // 2},
        "get_503": {"kind": "status", "method": "GET", "code": 503},
        "short": {"kind": "length", "method": "GET", "by": -1000},
        "size": {"kind": "header", "method": "HEAD", "name": "X-Linked-Size", "value": "999"},
        "portal": {"kind": "captive_portal"},
        "loop": {"kind": "redirect_loop"},
    }
    for tag, fault in faults.items():
        zoo.publish(tag)
        zoo.hub.fault(path=f"/{tag}.", times=None, **fault)
    found = zoo.fetch_apart(("reset", "portal"), ("get_503", "loop"), ("short",), ("size",))
    assert errors(found) == {
        "reset": "WeightsUnavailable",
        "get_503": "WeightsUnavailable",
        "short": "WeightsIntegrityError",
        "size": "WeightsIntegrityError",
        "portal": "WeightsUnavailable",
        "loop": "WeightsUnavailable",
    }
    assert "503" in found["get_503"]["text"]
    assert {tag: zoo.gets(tag) for tag in ("reset", "get_503")} == {"reset": 4, "get_503": 4}
    assert max(outcome["seconds"] for outcome in found.values()) < 60
    assert {outcome["cause"] for outcome in found.values()}.isdisjoint({"NoneType"})
    zoo.assert_cache_is_clean()
    assert not list(zoo.blobs.glob("*"))  # no partial file


def test_lasting_faults_that_the_client_retries_itself_are_bounded(zoo: Zoo) -> None:
    faults: dict[str, dict[str, Any]] = {
        "head_503": {"kind": "status", "method": "HEAD", "code": 503},
        "long": {"kind": "length", "method": "GET", "by": 1000},
        "one_byte": {"kind": "truncate", "method": "GET", "after": 1},
        "silent": {"kind": "stall", "method": "GET"},
    }
    for tag, fault in faults.items():
        zoo.publish(tag)
        zoo.hub.fault(path=f"/{tag}.", times=None, **fault)
    found = zoo.fetch_apart(*((tag,) for tag in faults), HF_HUB_DOWNLOAD_TIMEOUT="1")
    assert errors(found) == dict.fromkeys(faults, "WeightsUnavailable")
    assert "503" in found["head_503"]["text"]
    assert max(outcome["seconds"] for outcome in found.values()) < 60
    zoo.assert_cache_is_clean()
    assert not list(zoo.blobs.glob("*"))


def test_refusals_have_the_right_class_and_say_what_to_do(zoo: Zoo) -> None:
    for tag in ("entry", "http_403", "http_401"):
        zoo.publish(tag)
    zoo.publish("revision", revision="f" * 40)
    for name in ("missing", "private", "gated"):
        zoo.publish(name, repo_id=f"zoo/{name}")
        zoo.hub.repos[f"zoo/{name}"].access = name
    del zoo.hub.repos[REPO].commits[REVISION]["entry.safetensors"]
    del zoo.hub.repos[REPO].commits["f" * 40]
    del zoo.hub.repos["zoo/missing"]
    zoo.hub.fault("status", "/http_403.", times=None, code=403)
    zoo.hub.fault("status", "/http_401.", times=None, code=401)
    found = zoo.fetch(*zoo.entries)
    assert errors(found) == {
        "entry": "WeightsNotFound",
        "http_403": "WeightsAccessError",
        "http_401": "WeightsAccessError",
        "revision": "WeightsNotFound",
        "missing": "WeightsNotFound",
        "private": "WeightsNotFound",
        "gated": "WeightsAccessError",
    }
    for tag in ("missing", "private"):  # the Hub does not tell which
        assert "missing" in found[tag]["text"]
        assert "private" in found[tag]["text"]
    assert "https://huggingface.co/zoo/gated" in found["gated"]["text"]
    assert "403" in found["http_403"]["text"]
    # A refusal is asked for once: it will not change, and accounts get locked.
    assert [r.method for r in zoo.hub.log] == ["HEAD"] * len(found)


def test_no_fallback_to_a_pickle(zoo: Zoo) -> None:
    faults = {"head_403": ("HEAD", 403), "get_403": ("GET", 403), "get_503": ("GET", 503)}
    for tag, (method, code) in faults.items():
        zoo.publish(tag)
        zoo.hub.fault("status", f"/{tag}.", method, times=None, code=code)
        for name in (f"{tag}.bin", f"{tag}.pt", "pytorch_model.bin", "config.json"):
            zoo.hub.add_file(REPO, REVISION, name, b"anything")
    found = zoo.client(f"report(**{{tag: attempt(create, tag) for tag in {list(faults)}}})")
    assert errors(found) == {
        "head_403": "WeightsAccessError",
        "get_403": "WeightsAccessError",
        "get_503": "WeightsUnavailable",
    }
    assert {Path(r.path).suffix for r in zoo.hub.log} == {".safetensors"}


def test_offline(zoo: Zoo) -> None:
    for tag in ("cached", "uncached"):
        zoo.publish(tag)
    zoo.plant("cached")
    found = zoo.fetch("cached", "uncached", HF_HUB_OFFLINE="1")
    assert errors(found) == {"cached": None, "uncached": "WeightsUnavailable"}
    for hint in ("HF_HUB_OFFLINE", "rsbackbones download croma_vit_tiny.uncached --output"):
        assert hint in found["uncached"]["text"]
    assert zoo.hub.log == []


def test_cached_weights_need_no_hub(zoo: Zoo) -> None:
    """Not even one that is up: with a cached file, the Hub failing is no event."""
    zoo.publish("cached")
    zoo.plant("cached")
    zoo.hub.fault("reset", times=None)
    found = zoo.fetch("cached")
    assert errors(found) == {"cached": None}
    assert zoo.hub.log == []


# --- the disk ------------------------------------------------------------------------------------
def heed_permissions() -> None:
    """Take from root, in a child before it runs, the privilege to ignore file permissions."""
    override, read_search = 1, 2
    libc, header, data = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522), (ctypes.c_uint32 * 6)()
    libc.capget(header, data)
    data[0] &= ~(1 << override | 1 << read_search)  # of the effective ones
    libc.capset(header, data)


@pytest.fixture
def chmod() -> Iterator[Callable[[Path, int], None]]:
    """Change modes, and give them back so that pytest can tidy up."""
    before: list[tuple[Path, int]] = []

    def change(path: Path, mode: int) -> None:
        before.append((path, path.stat().st_mode))
        path.chmod(mode)

    yield change
    for path, mode in reversed(before):
        path.chmod(mode)


def test_read_only_cache(zoo: Zoo, chmod: Callable[[Path, int], None]) -> None:
    for tag in ("cached", "uncached", "unreadable", "spoiled"):
        zoo.publish(tag)
    zoo.plant("cached")
    zoo.plant("spoiled", flipped(zoo.data["spoiled"]))
    chmod(zoo.plant("unreadable"), 0o000)
    for path in [zoo.home, *(p for p in zoo.home.rglob("*") if p.is_dir())]:
        chmod(path, 0o555)
    found = zoo.fetch("cached", "uncached", "unreadable", "spoiled", limits=heed_permissions)
    assert errors(found) == {
        "cached": None,
        "uncached": "WeightsCacheError",
        "unreadable": "WeightsCacheError",
        "spoiled": "WeightsCacheError",  # known to be bad, and no room for a good one
    }
    for tag in ("uncached", "unreadable", "spoiled"):
        assert "HF_HOME" in found[tag]["text"]


def test_cache_in_a_closed_or_impossible_place(zoo: Zoo, chmod: Callable[[Path, int], None]) -> None:
    zoo.publish("a")
    closed, file = zoo.folder / "closed", zoo.folder / "file"
    closed.mkdir()
    file.touch()
    chmod(closed, 0o000)
    for place in (closed / "home", file / "home"):
        zoo.home = place
        assert errors(zoo.fetch("a", limits=heed_permissions)) == {"a": "WeightsCacheError"}


def test_read_only_mount(zoo: Zoo) -> None:
    for tag in ("cached", "uncached"):
        zoo.publish(tag)
    zoo.plant("cached")
    mount = f"mount --bind {zoo.home} {zoo.home} && mount -o remount,ro,bind {zoo.home}"
    found = zoo.fetch("cached", "uncached", limits=in_own_mounts(mount))
    assert errors(found) == {"cached": None, "uncached": "WeightsCacheError"}
    assert "HF_HOME" in found["uncached"]["text"]


def in_own_mounts(mount: str) -> Callable[[], None]:
    """Return what mounts something for one process alone, called in it."""
    probe = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip(f"mounting is not allowed here: {probe.stderr.decode().strip()}")
    return partial(mount_apart, mount)


def mount_apart(mount: str) -> None:
    assert ctypes.CDLL(None).unshare(0x00020000) == 0  # CLONE_NEWNS
    subprocess.run(["sh", "-ec", f"mount --make-rprivate /; {mount}"], check=True)


def test_full_disk_is_seen_before_the_download(zoo: Zoo) -> None:
    zoo.home.mkdir()
    for tag in ("large", "unstated"):
        zoo.publish(tag, random.Random(tag).randbytes(12_000_000))
    zoo.entries["unstated"]["bytes"] = None  # then the size is known from the HEAD only
    zoo.write_manifest()
    code = """
from pathlib import Path
report(large=attempt(fetch, "large"), unstated=attempt(fetch, "unstated"))
report(left=[str(p) for p in Path(os.environ["HF_HOME"]).rglob("*") if p.stat().st_size > 1000])
"""
    mount = f"mount -t tmpfs -o size=10m tmpfs {zoo.home}"
    found = zoo.client("import os" + code, limits=in_own_mounts(mount))
    left = found.pop("left")
    assert errors(found) == dict.fromkeys(found, "WeightsCacheError")
    assert "12000000 bytes" in found["large"]["text"]
    free = f"{10 * 2**20} free"
    assert free in found["large"]["text"]
    assert all("HF_HOME" in outcome["text"] for outcome in found.values())
    assert not zoo.hub.requests(method="GET")
    assert left == []


def test_disk_that_fills_up_during_the_download(zoo: Zoo) -> None:
    """A limit on the size of files stands in for a disk that someone else fills meanwhile."""
    zoo.publish("large", random.Random(0).randbytes(3_000_000))

    limits = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    found = zoo.fetch("large", limits=limits)
    assert errors(found) == {"large": "WeightsCacheError"}
    assert "needed 3000000 bytes, free " in found["large"]["text"]
    assert zoo.gets("large") == 1
    assert not list(zoo.blobs.glob("*"))


# --- several processes, and processes that die ---------------------------------------------------
def wait_for(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {seconds} s"
        time.sleep(0.02)


def test_four_processes_at_once_download_once(zoo: Zoo) -> None:
    zoo.publish("fresh")
    zoo.publish("spoiled")
    zoo.plant("spoiled", flipped(zoo.data["spoiled"]))
    zoo.hub.fault("slow", "/fresh.", "GET", times=None, pause=0.2)
    code = """
import os
from pathlib import Path

folder = Path({!r})
(folder / f"ready-{{os.getpid()}}").touch()
while not (folder / "go").exists():
    time.sleep(0.01)
report(fresh=attempt(fetch, "fresh"), spoiled=attempt(fetch, "spoiled"))
"""
    children = [zoo.start(code.format(str(zoo.folder))) for _ in range(4)]
    wait_for(lambda: len(list(zoo.folder.glob("ready-*"))) == 4, "the start of four processes")
    (zoo.folder / "go").touch()
    for child in children:
        report = finish_client(child).report
        assert report["fresh"].get("ok") == sha256(zoo.data["fresh"]), report
        assert report["spoiled"].get("ok") == sha256(zoo.data["spoiled"]), report
    assert zoo.gets("fresh") == 1
    zoo.assert_cache_is_clean()


def test_killed_in_mid_download(zoo: Zoo) -> None:
    """The one that waits for the lock takes over; what the dead one left is never loaded."""
    zoo.publish("a")
    zoo.hub.fault("stall", "/a.", "GET", after=SIZE // 2)
    owner = zoo.start("fetch('a')")
    wait_for(lambda: zoo.gets("a") == 1, "the first download")
    waiter = zoo.start("report(a=attempt(fetch, 'a'))")
    wait_for(lambda: len(zoo.hub.requests("/a.", "HEAD")) == 2, "the second process's HEAD")
    time.sleep(0.2)
    owner.process.kill()
    finish_client(owner)
    found = finish_client(waiter).report
    assert found["a"].get("ok") == sha256(zoo.data["a"])
    assert zoo.gets("a") == 2
    partial = list(zoo.blobs.glob("*.incomplete"))
    assert len(partial) == 1
    # What removes it. (It removes every pinned file too: none of them has a branch or tag.)
    hf = [sys.executable, "-m", "huggingface_hub.cli.hf", "cache", "prune", "--yes"]
    environment = {**os.environ, "HF_HOME": str(zoo.home), "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    subprocess.run(hf, env=environment, check=True, capture_output=True)
    assert not partial[0].exists()


# --- what is sent, and xet -----------------------------------------------------------------------
def test_token_is_sent_only_where_the_manifest_asks(zoo: Zoo) -> None:
    zoo.publish("public")
    zoo.publish("closed", repo_id="zoo/closed", private=True)
    zoo.hub.repos["zoo/closed"].access = "private"
    zoo.hub.tokens.add("hf_secret")
    found = zoo.fetch("public", "closed", HF_TOKEN="hf_secret", HF_HUB_DISABLE_TELEMETRY="0")
    assert errors(found) == {"public": None, "closed": None}
    sent = {(r.origin, r.auth) for r in zoo.hub.requests("/closed.")}
    assert sent == {("hub", "Bearer hf_secret"), ("cdn", None)}
    assert {r.auth for r in zoo.hub.log if "/closed." not in r.path} == {None}


def test_xet_storage_out_of_reach(zoo: Zoo) -> None:
    zoo.publish("a")
    zoo.hub.fault("dead_xet", "/resolve/", times=None)
    # Without this the client tries for 67 s; one HEAD shows that we do not multiply that.
    found = zoo.fetch("a", HF_XET_CLIENT_RETRY_MAX_ATTEMPTS="0")
    if "error" in found["a"]:
        assert found["a"]["error"] == "WeightsUnavailable"
        assert "HF_HUB_DISABLE_XET" in found["a"]["text"]
    assert len(zoo.hub.requests("xet-read-token")) == 1
    assert len(zoo.hub.requests("/resolve/", "HEAD")) == 1
    assert errors(zoo.fetch("a", HF_HUB_DISABLE_XET="1")) == {"a": None}
