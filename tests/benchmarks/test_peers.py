"""A ResNet-50 and a ViT-B have the features of timm's and torchgeo's networks; the page is recorded."""

import json
from pathlib import Path

import pytest

from benchmarks import peers

FOLDER = Path(peers.__file__).parent


@pytest.mark.slow
@pytest.mark.parametrize("network", peers.NETWORKS)
def test_features_are_those_of_the_peers(network):
    pytest.importorskip("torchgeo")
    found = peers.measure(network, threads=1, rounds=1, batch=2)
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
