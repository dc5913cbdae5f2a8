"""Files that are damaged, hostile or simply not these weights: refused at once, by name, unexecuted."""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import pickle
import random
import re
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import rsbackbones
from rsbackbones import (
    CorruptCheckpointError,
    UnsafeCheckpointError,
    WeightsError,
    WeightsIntegrityError,
    WeightsMismatchError,
    create_model,
)
from rsbackbones.zoo.manifest import read_manifest
from rsbackbones.zoo.registry import find_architecture
from rsbackbones.zoo.saving import save_in_format

ARCHITECTURE = "croma_vit_tiny"
SMALL = {"dim": 32, "depth": 2}
NAME = "encoders.s2.norm.weight"  # a tensor [32] that every model below has

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a sound file of ours."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("good") / "a.safetensors"
    rsbackbones.save_model(create_model(ARCHITECTURE, overrides=SMALL), path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def state() -> State:
    """The tensors of a sound file."""
    torch.manual_seed(0)
    return dict(create_model(ARCHITECTURE, overrides=SMALL).state_dict())


@pytest.fixture(scope="module", autouse=True)
def _warm(good: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Load once, for what torch imports on first use: the tests bound the time of each load."""
    path = tmp_path_factory.mktemp("warm") / "a.safetensors"
    create_model(ARCHITECTURE, checkpoint=written(path, good), overrides=SMALL)


def load(path: Path, **options: Any) -> Any:
    """Load a file as a user would. Nothing crafted may keep the processor busy."""
    began = time.process_time()
    try:
        return create_model(ARCHITECTURE, checkpoint=path, overrides=SMALL, **options)
    finally:
        if time.process_time() - began >= 1:  # of processor time; on a busy machine a second try decides
            began = time.process_time()
            with suppress(WeightsError):
                create_model(ARCHITECTURE, checkpoint=path, overrides=SMALL, **options)
            assert time.process_time() - began < 1


def refusal(path: Path, *kinds: type[WeightsError], match: str | None = None, **options: Any) -> str:
    """Load a file that must be refused, by an error that names it; return its text."""
    with pytest.raises(kinds, match=match) as caught:
        load(path, **options)
    assert str(path) in str(caught.value)
    return str(caught.value)


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# --- safetensors that are damaged ----------------------------------------------------------------
def split(good: bytes) -> tuple[dict[str, Any], bytes]:
    length = struct.unpack("<Q", good[:8])[0]
    return json.loads(good[8 : 8 + length]), good[8 + length :]


def joined(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def with_tensor(good: bytes, more: bytes = b"", **changes: Any) -> bytes:
    """Change what the header says of the last tensor in the file."""
    header, data = split(good)
    last = max(set(header) - {"__metadata__"}, key=lambda name: header[name]["data_offsets"])
    header[last] |= {key: f(header[last][key]) for key, f in changes.items()}
    return joined(header, data + more)


def with_metadata(good: bytes, metadata: Any) -> bytes:
    header, data = split(good)
    return joined(header | {"__metadata__": metadata}, data)


def with_many(count: int, repeat: bool) -> bytes:
    one = '"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    rows = [one % i for i in range(count)] + [one % 0] * repeat
    return joined(("{" + ",".join(rows) + "}").encode())


def twice(good: bytes) -> bytes:
    header, data = split(good)
    first = json.dumps({NAME: header[NAME]})[:-1]
    return joined((first + ", " + json.dumps(header)[1:]).encode(), data)


def offsets(by_begin: int, by_end: int) -> Callable[[list[int]], list[int]]:
    return lambda was: [was[0] + by_begin, was[1] + by_end]


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda good: b"",
    "seven bytes": lambda good: good[:7],
    "no header": lambda good: joined(b"", split(good)[1]),
    "half a header": lambda good: good[:1000],
    "no data": lambda good: joined(split(good)[0]),
    "data cut": lambda good: good[:-1],
    "trailing junk": lambda good: good + b"junk",
    "web page": lambda good: b"<!doctype html><html><body>404 not found</body></html>" * 9,
    "not JSON": lambda good: joined(json.dumps(split(good)[0]).encode()[:-1] + b" ", split(good)[1]),
    "not a table": lambda good: joined([1, 2], split(good)[1]),
    "not text": lambda good: joined(b'{"\xff\xfe": 1}'),
    "nested deeply": lambda good: joined(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "overlap": lambda good: with_tensor(good, data_offsets=offsets(-4, -4)),
    "hole": lambda good: with_tensor(good, b"hole", data_offsets=offsets(4, 4)),
    "past the end": lambda good: with_tensor(
        good, shape=lambda was: [was[0] + 1], data_offsets=offsets(0, 4)
    ),
    "backwards": lambda good: with_tensor(good, data_offsets=lambda was: was[::-1]),
    "negative shape": lambda good: with_tensor(good, shape=lambda was: [-was[0]]),
    "overflowing shape": lambda good: with_tensor(good, shape=lambda was: [2**62, 8]),
    "shape of another size": lambda good: with_tensor(good, shape=lambda was: [was[0] - 1]),
    "shape of fractions": lambda good: with_tensor(good, shape=lambda was: [was[0] + 0.5]),
    "unknown type": lambda good: with_tensor(good, dtype=lambda was: "F31"),
    "tensor is a number": lambda good: joined(split(good)[0] | {NAME: 1}, split(good)[1]),
    "metadata of numbers": lambda good: with_metadata(good, {"a": 1}),
    "metadata is a list": lambda good: with_metadata(good, [1]),
    "metadata is text": lambda good: with_metadata(good, "text"),
    "metadata is a number": lambda good: with_metadata(good, 5),
    "header of 2**63 bytes": lambda good: joined(b"{}", length=2**63),
    "header of 2**64 - 1 bytes": lambda good: joined(b"{}", length=2**64 - 1),
    "header of 200 MB": lambda good: joined(b"{}", length=200_000_000),
    # These two the safetensors library would load.
    "name given twice": twice,
    "header of 6 MB": lambda good: joined(
        json.dumps(split(good)[0]).encode() + b" " * 6_000_000, split(good)[1]
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_safetensors(good: bytes, tmp_path: Path, case: str) -> None:
    refusal(written(tmp_path / "a.safetensors", DAMAGED[case](good)), CorruptCheckpointError)


@pytest.mark.parametrize("repeat", [False, True])
def test_header_of_very_many_names(tmp_path: Path, repeat: bool) -> None:
    """It is under the cap; nothing may take the square of their number, nor recite them all."""
    path = written(tmp_path / "a.safetensors", with_many(30_000, repeat))
    assert len(refusal(path, CorruptCheckpointError, WeightsMismatchError)) < 50_000


DESCRIPTION = {"architecture": ARCHITECTURE, "config": {}, "num_classes": 0, "dtype": "float32"}
DESCRIPTIONS: dict[str, Any] = {
    "a list": [],
    "nothing in it": {},
    "config of no fields": DESCRIPTION | {"config": [1]},
    "unknown field": DESCRIPTION | {"config": {"no_such_field": 1}},
    "number in words": DESCRIPTION | {"config": {"num_heads": "many"}},
    "no heads": DESCRIPTION | {"config": {"num_heads": 0}},
    "unknown sensor": DESCRIPTION | {"config": {"modalities": ["radio"]}},
    "bands of no sensor": DESCRIPTION | {"config": {"bands": 5}},
    "tensors that no memory holds": DESCRIPTION | {"config": {"mlp_ratio": 1e9}},
    "classes in words": DESCRIPTION | {"num_classes": "some"},
    "classes below zero": DESCRIPTION | {"num_classes": -1},
    "type of no weights": DESCRIPTION | {"dtype": "int8"},
    "list of types": DESCRIPTION | {"dtype": ["float32"]},
    "other architecture": DESCRIPTION | {"architecture": "croma_vit_b"},
    "architecture of no name": DESCRIPTION | {"architecture": 7},
}


@pytest.mark.parametrize("case", [*DESCRIPTIONS, "not JSON"])
def test_damaged_description(good: bytes, tmp_path: Path, case: str) -> None:
    """What a file says of itself is not to be trusted either."""
    description = json.dumps(DESCRIPTIONS.get(case)) if case in DESCRIPTIONS else "{"
    path = written(tmp_path / "a.safetensors", with_metadata(good, {"rsbackbones": description}))
    refusal(path, CorruptCheckpointError, WeightsMismatchError)


# --- pickles -------------------------------------------------------------------------------------
class Planted:
    """Opens (and so makes) a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


def torch_file(content: Any, path: Path, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("form", ["zip", "legacy", "raw"])
def test_malicious_pickle_is_not_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, force: bool
) -> None:
    marker, path = tmp_path / "marker", tmp_path / "a.pt"
    content = {NAME: torch.ones(32), "planted": Planted(marker)}
    if form == "raw":
        path.write_bytes(pickle.dumps(content["planted"], protocol=2))
    else:
        torch_file(content, path, legacy=form == "legacy")
    if force:  # with it, plain torch.load(path) runs the code: it is a real attack
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
        if form != "raw":
            with pytest.warns(UserWarning, match="FORCE_NO_WEIGHTS_ONLY"):
                torch.load(path)
            assert marker.exists()
            marker.unlink()
    refusal(path, UnsafeCheckpointError)
    assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    [argparse.Namespace(lr=0.1), np.float64(1.0), Path("a"), nn.Linear(2, 2), Planted],
    ids=["Namespace", "float64", "Path", "Module", "class"],
)
def test_pickle_of_more_than_tensors(state: State, tmp_path: Path, content: Any) -> None:
    path = torch_file(state | {"more": content}, tmp_path / "a.pt")
    assert "convert" in refusal(path, UnsafeCheckpointError).lower()


def endless() -> dict[str, Any]:
    loop: dict[str, Any] = {}
    loop["loop"] = loop
    return loop


ODD: dict[str, Callable[[], Any]] = {
    "view that claims 4 TB": lambda: torch.zeros(1).expand(1_000_000, 1_000_000),
    "sparse": lambda: torch.sparse_coo_tensor(torch.zeros(2, 1), torch.ones(1), (10**6, 10**6)),
    "sparse rows": lambda: torch.eye(3).to_sparse_csr(),
    "without data": lambda: torch.empty(32, device="meta"),
    "list": lambda: [torch.ones(1)],
    "dictionary that contains itself": endless,
}


@pytest.mark.filterwarnings("ignore:.*[Ss]parse")
@pytest.mark.parametrize("case", ODD)
@pytest.mark.parametrize("inside", [True, False])
def test_odd_pickle(state: State, tmp_path: Path, case: str, inside: bool) -> None:
    content = state | {NAME: ODD[case]()} if inside else ODD[case]()
    refusal(torch_file(content, tmp_path / "a.pt"), CorruptCheckpointError)


TABLES: dict[str, Tensor] = {
    "a number": torch.tensor(1.0),
    "nothing, 10**6 wide": torch.zeros(1, 4, 0, 10**6),  # computing ours would take 16 TB
    "whole numbers": torch.zeros(1, 4, 9, 9, dtype=torch.long),
    "NaN": torch.full((1, 4, 9, 9), float("nan")),
}


@pytest.mark.parametrize("case", TABLES)
def test_odd_table_in_a_foreign_layout(tmp_path: Path, case: str) -> None:
    """CROMA files may carry the attention bias, which is compared with ours and not loaded."""
    content = {"s1_encoder.linear_input.weight": torch.zeros(1), "attn_bias": TABLES[case]}
    path = torch_file(content, tmp_path / "a.pt")
    refusal(path, CorruptCheckpointError, WeightsMismatchError)


@pytest.mark.parametrize("legacy", [False, True])
def test_damaged_pickle(state: State, tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "a.pt"
    data = torch_file(state, path, legacy).read_bytes()
    page = b"<!doctype html><html><body>404 not found</body></html>"
    cuts = [data[: len(data) * part // 8] for part in range(1, 8)]
    for damaged in (b"", page, data[:1], data[:-1], b"\0" * 1000, *cuts):
        refusal(written(path, damaged), CorruptCheckpointError)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_random_damage_raises_our_errors_or_none(
    good: bytes, state: State, tmp_path: Path, kind: str
) -> None:
    """Bits of payload may flip unseen (that is what the sha256 is for); nothing else may come out."""
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pt")
    data = good if kind == "safetensors" else torch_file(state, path, kind == "legacy").read_bytes()
    draw = random.Random(kind)
    # Where structure is: headers at the start, of a zip also the directory at the end.
    places = [*range(6000), *range(len(data) - 6000, len(data))]
    refused = 0
    for _ in range(80):
        damaged = bytearray(data)
        for _ in range(draw.randint(1, 3)):
            damaged[draw.choice(places)] = draw.randrange(256)
        try:
            load(written(path, bytes(damaged)))
        except WeightsError:
            refused += 1
    assert refused > 20


# --- sound files of other tensors ----------------------------------------------------------------
def save(state: dict[str, Any], path: Path) -> Path:
    """Write as either kind of file, without any of the package's own checks."""
    if path.suffix == ".pt":
        return torch_file(state, path)
    save_file(state, path)
    return path


def but(**changes: Any) -> Callable[[State], State]:
    """The state with one tensor changed (or, named by its own key, added)."""
    return lambda state: state | {key.replace("__", "."): f(state[NAME]) for key, f in changes.items()}


HERE = NAME.replace(".", "__")


def poisoned(value: float) -> Callable[[Tensor], Tensor]:
    return lambda was: torch.cat([was[:-1], torch.tensor([value])])


WRONG: dict[str, tuple[Callable[[State], State], type[WeightsError], str]] = {
    "missing": (
        lambda state: {name: t for name, t in state.items() if name != NAME},
        WeightsMismatchError,
        f"missing: {NAME}",
    ),
    "extra": (but(more__weight=torch.clone), WeightsMismatchError, "more.weight"),
    "head that nobody declared": (but(head__bias=torch.clone), WeightsMismatchError, "head.bias"),
    "other shape": (but(**{HERE: lambda t: t[:-1].clone()}), WeightsMismatchError, "31"),
    "same numbers, other shape": (
        but(**{HERE: lambda t: t.reshape(4, 8).clone()}),
        WeightsMismatchError,
        r"\[4, 8\]",
    ),
    "half": (but(**{HERE: torch.Tensor.half}), WeightsMismatchError, "float16"),
    "double": (but(**{HERE: torch.Tensor.double}), WeightsMismatchError, "float64"),
    "whole numbers": (but(**{HERE: torch.Tensor.long}), WeightsMismatchError, "int64"),
    "complex": (but(**{HERE: lambda t: t + 1j}), WeightsMismatchError, "C64|complex64"),
    "NaN": (but(**{HERE: poisoned(float("nan"))}), CorruptCheckpointError, "NaN"),
    "infinity": (but(**{HERE: poisoned(float("-inf"))}), CorruptCheckpointError, "infinity"),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "all": {},
    "one modality": {"modalities": ("s2",)},
    "other bands": {"bands": {"s2": ("B04", "B03")}},
    "head": {"num_classes": 3},
    "maps": {"features_only": True},
}


def test_the_right_tensors_load(state: State, tmp_path: Path) -> None:
    """The control for what follows."""
    load(save(state, tmp_path / "a.pt"))
    path = save(state, tmp_path / "a.safetensors")
    for options in OPTIONS.values():
        load(path, **options)


@pytest.mark.parametrize("case", WRONG)
def test_other_tensors(state: State, tmp_path: Path, case: str) -> None:
    change, kind, text = WRONG[case]
    refusal(save(change(state), tmp_path / "a.pt"), kind, match=text)
    path = save(change(state), tmp_path / "a.safetensors")
    for options in OPTIONS.values():
        refusal(path, kind, match=text, **options)


# Format -> an architecture that reads it, and a tensor of its files.
LAYOUTS = {"torchvision": ("resnet18", "bn1.weight"), "timm_vit": ("vit_s16", "norm.weight")}


@pytest.fixture(params=LAYOUTS)
def published(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, Any], str, State]:
    """An architecture, its small configuration, a tensor's name, and a sound file in a published layout."""
    architecture, name = LAYOUTS[request.param]
    small = dict(find_architecture(architecture).small)
    model = create_model(architecture, overrides=small)
    path = save_in_format(model, tmp_path / "sound.pt", request.param)
    return architecture, small, name, torch.load(path, weights_only=True)


def as_native(change: Callable[[State], State], name: str) -> Callable[[State], State]:
    """A change of ``NAME`` as one of ``name``."""

    def changed(state: State) -> State:
        renamed = change({NAME if key == name else key: tensor for key, tensor in state.items()})
        return {name if key == NAME else key: tensor for key, tensor in renamed.items()}

    return changed


@pytest.mark.parametrize(
    "case", sorted({*WRONG} - {"head that nobody declared", "same numbers, other shape"})
)
def test_other_tensors_in_published_layouts(published: Any, tmp_path: Path, case: str) -> None:
    architecture, small, name, state = published
    change, kind, _ = WRONG[case]
    path = torch_file(as_native(change, name)(state), tmp_path / "a.pt")
    with pytest.raises(kind, match=re.escape(str(path))):
        create_model(architecture, checkpoint=path, overrides=small)


@pytest.mark.parametrize("key", ["more", "optimizer"])
def test_published_layouts_do_not_run_pickles(published: Any, tmp_path: Path, key: str) -> None:
    """Not even under a name that is dropped."""
    architecture, small, _, state = published
    marker = tmp_path / "marker"
    path = torch_file(state | {key: {"x": Planted(marker)}}, tmp_path / "a.pt")
    with pytest.raises(UnsafeCheckpointError):
        create_model(architecture, checkpoint=path, overrides=small)
    assert not marker.exists()


def test_published_layouts_drop_by_name_and_nothing_else(published: Any, tmp_path: Path) -> None:
    architecture, small, name, state = published
    beside = {"head.weight": torch.zeros(3), "fc.bias": torch.zeros(3), "projector.0.weight": torch.zeros(3)}
    optimizer = {"lr": 0.1, "betas": [0.9, 0.95], "state": {"0": {"step": torch.zeros(1)}}}
    path = torch_file(state | beside | {"optimizer": optimizer}, tmp_path / "a.pt")
    model = create_model(architecture, checkpoint=path, overrides=small)
    assert model.adaptation is not None
    (step,) = [step for step in model.adaptation.steps if step.action == "not part of the model"]
    assert step.detail == "fc, head, optimizer, projector (4 tensors)"
    for extra in ({"epoch": 3}, {"heads.weight": torch.zeros(1)}, {f"module.{name}": torch.zeros(1)}):
        path = torch_file(state | extra, tmp_path / "a.pt")
        with pytest.raises((WeightsMismatchError, CorruptCheckpointError)):
            create_model(architecture, checkpoint=path, overrides=small)


def test_tensor_given_twice_in_a_pickle(state: State, tmp_path: Path) -> None:
    first, rest = NAME.split(".", 1)
    path = torch_file({first: {rest: state[NAME]}} | state, tmp_path / "a.pt")
    assert NAME in refusal(path, CorruptCheckpointError)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_loaded_weights_are_our_own_copy(state: State, tmp_path: Path, suffix: str) -> None:
    """Two names may share memory in a pickle; training one must not train the other."""
    path = save(state, tmp_path / f"a{suffix}")
    if suffix == ".pt":
        save(state | {NAME: state["encoders.s1.norm.weight"]}, path)
    weights = load(path).state_dict()
    path.write_bytes(b"\0" * path.stat().st_size)  # nor may the file still be mapped
    assert torch.equal(weights["encoders.s1.norm.weight"], state["encoders.s1.norm.weight"])
    weights[NAME].add_(1)
    assert torch.equal(weights["encoders.s1.norm.weight"], state["encoders.s1.norm.weight"])


# --- the manifest --------------------------------------------------------------------------------
ENTRY: dict[str, Any] = {
    "id": f"{ARCHITECTURE}.test",
    "architecture": ARCHITECTURE,
    "config": SMALL,
    "source": {
        "kind": "hub",
        "repo_id": "zoo/croma",
        "revision": "0123456789abcdef0123456789abcdef01234567",
        "filename": "model.safetensors",
    },
    "format": "rsbackbones",
    "sha256": "ab" * 32,
    "license": "MIT",
    "provenance": "test",
    "inputs": {},
}


def manifest(path: Path, *entries: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"schema_version": 1, "weights": entries}))
    return path


@pytest.fixture
def pretrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Load bytes as weights of a manifest, from a folder of downloaded ones."""

    def create(data: bytes, **changes: Any) -> Any:
        entry = ENTRY | {"sha256": hashlib.sha256(data).hexdigest()} | changes
        own = manifest(tmp_path / "manifest.json", entry)
        monkeypatch.setenv("RSBACKBONES_MANIFEST", str(own))
        monkeypatch.setenv("RSBACKBONES_WEIGHTS", str(tmp_path))
        (tmp_path / f"{entry['id']}.safetensors").write_bytes(data)
        return create_model(entry["id"], pretrained=True)

    return create


def test_manifest_weights_are_checked_as_files_are(
    good: bytes, state: State, tmp_path: Path, pretrained: Callable[..., Any]
) -> None:
    assert pretrained(good).weights_entry.id == ENTRY["id"]
    flipped = good[:-1] + bytes([good[-1] ^ 1])
    with pytest.raises(WeightsIntegrityError, match="expected sha256 " + "ab" * 32):
        pretrained(flipped, sha256="ab" * 32)
    with pytest.raises(WeightsIntegrityError, match=f"expected {len(good) + 1} bytes"):
        pretrained(good, bytes=len(good) + 1)
    with pytest.raises(WeightsMismatchError, match="the manifest states 7"):
        pretrained(good, params=7)
    with pytest.raises(WeightsMismatchError):
        pretrained(good, config={"dim": 64, "depth": 2})
    marker = tmp_path / "marker"
    poisoned = torch_file(state | {"more": Planted(marker)}, tmp_path / "a.pt").read_bytes()
    with pytest.raises(CorruptCheckpointError):  # a pickle behind a .safetensors name
        pretrained(poisoned)
    assert not marker.exists()


def test_every_published_row_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RSBACKBONES_MANIFEST", raising=False)
    for entry in rsbackbones.list_weights():
        if entry.availability == "unreleased":
            assert entry.source.reason
            continue
        name = entry.source.filename or entry.source.path
        if entry.availability == "hub":
            assert re.fullmatch("[0-9a-f]{40}", entry.source.revision), entry.id
        if entry.format == "rsbackbones":
            assert re.fullmatch("[0-9a-f]{64}", entry.sha256 or ""), entry.id
            assert entry.bytes, entry.id
            assert name.endswith(".safetensors"), entry.id
        else:  # somebody else's file: at least the prefix that they publish
            digits = entry.sha256 or entry.sha256_prefix or ""
            assert re.fullmatch("[0-9a-f]{8,64}", digits) or entry.sha256_from == "hub", entry.id


def source(**changes: Any) -> dict[str, Any]:
    return {"source": ENTRY["source"] | changes}


@pytest.mark.parametrize(
    "changes",
    [
        source(revision="main"),
        source(revision="0123456789ab"),
        source(revision=""),
        source(revision="0123456789ABCDEF0123456789ABCDEF01234567"),
        source(filename="model.pt"),
        source(filename="../model.safetensors"),
        source(kind="http"),
        source(kind="bundled", path="/model.safetensors"),
        source(kind="none"),
        source(url="x"),
        {"sha256": None},
        {"sha256": "ab" * 4},
        {"sha256": None, "sha256_prefix": "ab"},
        {"dtype": "int8"},
        {"typo": 1},
    ],
)
def test_manifest_row_that_is_not_pinned_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert read_manifest(manifest(tmp_path / "good.json", ENTRY))
    with pytest.raises(ValueError, match=rf"{ARCHITECTURE}\.test"):
        read_manifest(manifest(tmp_path / "bad.json", ENTRY | changes))


# --- what the package's own code may not say -----------------------------------------------------
FORBIDDEN = {"pickle.load", "pickle.loads", "pickle.Unpickler", "torch.hub.load", "eval", "exec"}
FORBIDDEN |= {"torch.hub.load_state_dict_from_url", "joblib.load", "dill.load", "shelve.open"}
DISTRIBUTED = {"dcp.load", "dcp.load_state_dict", "torch.distributed.checkpoint.load"}


def unsafe_calls(code: str, *, training: bool) -> Iterator[str]:
    """Calls that could run code out of a file, or let a wrong file pass."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if called == "torch.load" and given.get("weights_only") != "True":
                yield f"line {node.lineno}: torch.load without weights_only=True"
            if given.get("strict") == "False" or given.get("weights_only") == "False":
                yield f"line {node.lineno}: {called}(strict=False or weights_only=False)"
            if given.get("allow_pickle") == "True" and called in ("np.load", "numpy.load"):
                yield f"line {node.lineno}: {called}(allow_pickle=True)"
            if called in FORBIDDEN or (called in DISTRIBUTED and not training):
                yield f"line {node.lineno}: {called}"


def test_package_never_loads_unsafely() -> None:
    package = Path(rsbackbones.__file__).parent
    for path in sorted(package.rglob("*.py")):
        training = path.is_relative_to(package / "train")
        found = list(unsafe_calls(path.read_text(), training=training))
        if path == package / "zoo" / "trusted_pickle.py":  # `convert --trust-pickle`, and nothing else
            assert [line.partition(": ")[2] for line in found] == [
                "torch.load without weights_only=True",
                "torch.load(strict=False or weights_only=False)",
            ]
            continue
        assert not found, path
    # The rule itself: it sees what it is there for.
    for code in (
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "pickle.load(file)",
        "model.load_state_dict(state, strict=False)",
        "dcp.load(state)",
    ):
        assert list(unsafe_calls(code, training=False)), code


# --- publishing ----------------------------------------------------------------------------------
WRITERS: dict[str, Callable[[Any, Path], Path]] = {
    "a.safetensors": rsbackbones.save_model,
    "a.pt": lambda model, path: save_in_format(model, path, "croma_official"),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_written(tmp_path: Path, name: str, value: float) -> None:
    model = create_model(ARCHITECTURE, overrides=SMALL)
    model.get_parameter(NAME).data[3] = value
    path = written(tmp_path / name, b"what was there")
    with pytest.raises(ValueError, match="NaN or infinity"):
        WRITERS[name](model, path)
    assert path.read_bytes() == b"what was there"
    assert list(tmp_path.iterdir()) == [path]


def test_weights_too_large_for_their_type_are_not_written(tmp_path: Path) -> None:
    model = create_model(ARCHITECTURE, overrides=SMALL)
    model.get_parameter(NAME).data[3] = 1e6  # finite, but infinity in float16
    with pytest.raises(ValueError, match=NAME):
        rsbackbones.save_model(model, tmp_path / "a.safetensors", dtype=torch.float16)
    assert not list(tmp_path.iterdir())


def test_shared_weights_are_not_written(tmp_path: Path) -> None:
    model = create_model(ARCHITECTURE, overrides=SMALL)
    model.get_submodule("encoders.s2").add_module("norm", model.get_submodule("encoders.s1.norm"))
    with pytest.raises(ValueError, match=NAME):
        rsbackbones.save_model(model, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())
