"""Small files that stand for huge values are refused at once; what people write is read."""

import io
import json
import zipfile

import numpy as np
import pytest
import yaml

from rsbackbones.data.labelled.npz import read_mapping
from rsbackbones.data.npz_archive import NpzArchive
from rsbackbones.files import bounds
from rsbackbones.files.bounds import read_json, read_yaml


def test_json_and_yaml_are_read(tmp_path):
    content = {"s2": ["B02", 1, 2.5, None, True], "ä": {"a": {}}}
    for name, dump, read in (("a.json", json.dumps, read_json), ("a.yaml", yaml.safe_dump, read_yaml)):
        (tmp_path / name).write_text(dump(content))
        assert read(tmp_path / name) == content
    (tmp_path / "b.yaml").write_text("bands: &b [B02, B03]\ntrain: {s2: *b}\ntest: {<<: {s1: VV}, s2: *b}\n")
    assert read_yaml(tmp_path / "b.yaml") == {
        "bands": ["B02", "B03"], "train": {"s2": ["B02", "B03"]}, "test": {"s1": "VV", "s2": ["B02", "B03"]},
    }  # fmt: skip
    (tmp_path / "empty.yaml").write_text("")
    assert read_yaml(tmp_path / "empty.yaml") is None


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
MERGES = "a0: &a0 {k: 1}\n" + "".join(f"a{i}: &a{i}\n  <<: [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))


@pytest.mark.parametrize(
    "text",
    [LAUGHS, MERGES, "a: &a [*a]", "[" * 100_000, "a: b\n" * 500_000, "a: !!python/object/apply:os.getcwd []",
     "a: [", "\x00", "a: *nowhere"],
    ids=["laughs", "merges", "cycle", "deep", "large", "object", "open", "control", "unknown"],
)  # fmt: skip
def test_yaml_bombs(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"a\.yaml") as caught:
        read_mapping(tmp_path / "a.yaml")
    assert len(str(caught.value)) < 2000


def test_json_bombs(tmp_path, monkeypatch):
    for text in ("[" * 100_000, '{"a":' * 100_000, "1" * 10_000, "{", "\ufeff{}"):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(ValueError):
            read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text(" " * 2000 + "{}")
    with pytest.raises(ValueError, match="more than 1000 bytes"):
        read_json(tmp_path / "a.json", most=1000)


def test_an_array_that_states_another_size(tmp_path):
    """The header of a few bytes claims 8 TB, which numpy would reserve before it reads any."""
    held = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        held, {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)}
    )
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", held.getvalue() + bytes(64))
    with pytest.raises(ValueError, match=r"cannot read a in .*states \[1000000, 1000000\]"):
        NpzArchive(tmp_path / "a.npz").read("a")


def test_an_array_that_expands(tmp_path, monkeypatch):
    monkeypatch.setattr(bounds, "_ANY_RATIO_BYTES", 2**20)
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(2**20))
    with pytest.raises(ValueError, match=r"a\.npy expands from \d+ to 8388\d+ bytes"):
        NpzArchive(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", a=np.zeros(2**20))
    np.savez_compressed(tmp_path / "c.npz", a=np.random.default_rng(0).integers(0, 9, 2**20))
    for name in ("b", "c"):
        assert NpzArchive(tmp_path / f"{name}.npz").read("a").shape == (2**20,)


def test_too_many_members(tmp_path, monkeypatch):
    monkeypatch.setattr(bounds, "MAX_ZIP_MEMBERS", 3)
    np.savez(tmp_path / "a.npz", *np.zeros((4, 1)))
    with pytest.raises(ValueError, match="4 members"):
        NpzArchive(tmp_path / "a.npz")
