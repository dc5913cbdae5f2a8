"""Small pickles that stand for huge values are refused before they take time or memory."""

import zipfile

import pytest
import torch

import rsbackbones as rsb
from rsbackbones.zoo import checkpoint_files
from rsbackbones.zoo.checkpoint_files import MAX_TENSORS, open_checkpoint


def opened(path):
    return open_checkpoint(path, allow_pickle=True)


def test_members_that_expand(tmp_path):
    torch.save({"a": torch.zeros(2**20)}, tmp_path / "a.pt")
    assert opened(tmp_path / "a.pt").tensors["a"].shape == (2**20,)
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as source,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert (tmp_path / "b.pt").stat().st_size < 20_000
    with pytest.raises(rsb.CorruptCheckpointError, match="is compressed"):
        opened(tmp_path / "b.pt")


def test_references_that_expand(tmp_path):
    """Thirty dictionaries, each with the one before twice: 2^30 tensors in a kilobyte."""
    inner = {"w": torch.zeros(1)}
    for _ in range(30):
        inner = {"a": inner, "b": inner}
    torch.save(inner, tmp_path / "a.pt")
    with pytest.raises(rsb.CorruptCheckpointError, match="more than 100000 values"):
        opened(tmp_path / "a.pt")


def test_too_many_tensors_and_too_long_a_pickle(tmp_path, monkeypatch):
    one = torch.zeros(1)
    torch.save({str(i): one for i in range(MAX_TENSORS + 1)}, tmp_path / "a.pt")
    with pytest.raises(rsb.CorruptCheckpointError, match=f"{MAX_TENSORS + 1} tensors"):
        opened(tmp_path / "a.pt")
    torch.save({str(i): one for i in range(MAX_TENSORS)}, tmp_path / "b.pt")
    assert len(opened(tmp_path / "b.pt").tensors) == MAX_TENSORS
    monkeypatch.setattr(checkpoint_files, "MAX_PICKLE_BYTES", 1000)
    with pytest.raises(rsb.CorruptCheckpointError, match="at most 1000"):
        opened(tmp_path / "b.pt")
