"""A ResNet-50 and a ViT-B have the features of timm's and torchgeo's networks; the page is recorded."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import peers

FOLDER = Path(peers.__file__).parent


def test_a_vit_has_the_features_of_the_peers(tmp_path):
    pytest.importorskip("torchgeo")
    path = tmp_path / "vit_b16.pth"
    peers.write_weights("vit_b16", path)
    x, features = peers.images(2), {}
    for peer in peers.PEERS:
        cell = peers.Cell(peer=peer, network="vit_b16", path=str(path), threads=1)
        with torch.inference_mode():
            features[peer] = peers.build(cell)(x)
    largest = features["timm"].abs().max()
    for found in features.values():
        assert (found - features["timm"]).abs().max() / largest <= peers.TOLERANCE


@pytest.mark.usefixtures("forks")
def test_a_measurement_has_a_row_for_every_peer():
    """In processes of their own, with the features of timm's network."""
    pytest.importorskip("torchgeo")
    found = peers.measure("resnet50", threads=1, rounds=1, batch=2)
    assert set(found) == {"rsbackbones", "timm", "torchgeo"}
    for held in found.values():
        assert "error" not in held
        assert held["difference"] <= peers.TOLERANCE
        assert held["seconds"] > 0
        assert len(held["rates"]) == 1


def test_a_peer_that_fails_does_not_stop_the_others():
    cell = peers.Cell(peer="timm", network="resnet50", path="/nowhere.pth", threads=1)
    with pytest.raises(FileNotFoundError):
        peers.build(cell)
    table = peers.table(
        {"resnet50": {"timm": {"error": "exit code 1"}, "torchgeo": {"error": "out of memory"}}}
    )
    assert "exit code 1" in table
    assert "out of memory" in table


def test_the_page_is_that_of_the_recorded_run():
    """`python -m benchmarks.peers --output benchmarks` writes both."""
    found = json.loads((FOLDER / "peers.json").read_text(encoding="utf-8"))
    assert (FOLDER / "peers.md").read_text(encoding="utf-8") == peers.page(found)
    assert all(
        h["difference"] <= peers.TOLERANCE for each in found["results"].values() for h in each.values()
    )
