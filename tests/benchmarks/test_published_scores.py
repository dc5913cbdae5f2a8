"""The published scores are measured from downloaded weights, through the command itself."""

import json

import numpy as np
import pytest
import torch

import rsbackbones as rsb
from benchmarks import published_scores
from rsbackbones.files.sha256 import sha256_of
from rsbackbones.zoo.manifest import entries_as_json
from tests.data.labelled.test_torchgeo import EUROSAT, tif
from tests.models.test_published import theirs

torchgeo = pytest.importorskip("torchgeo")
SECO, MOCO = "resnet18.seco_seco_s2_rgb", "vit_s16.ssl4eo_s12_moco_s2"


@pytest.fixture
def eurosat(tmp_path):
    """Files in the layout of torchgeo; the classes differ in brightness."""
    root = tmp_path / "data" / "EuroSAT"
    folder = root / "ds/images/remote_sensing/otherDatasets/sentinel_2/tif"
    rng = np.random.default_rng(0)
    for split, numbers in (("train", (1, 2)), ("val", (7,)), ("test", (9,))):
        for place, name in enumerate(EUROSAT):
            for number in numbers:
                image = rng.integers(200, 400, (13, 32, 32)) + 1200 * place
                tif(folder / name / f"{name}_{number}.tif", image.astype(np.uint16))
        (root / f"eurosat-{split}.txt").write_text(
            "".join(f"{name}_{number}.jpg\n" for name in EUROSAT for number in numbers)
        )
    return root.parent


@pytest.fixture
def published(tmp_path, monkeypatch):
    """The entries, with files of random weights in the place of the published bytes."""
    entries = []
    for name, channels in ((SECO, 3), (MOCO, 13)):
        path = tmp_path / f"{name}.pth"
        torch.save(theirs(name.partition(".")[0], channels).state_dict(), path)
        entry = {k: v for k, v in entries_as_json()[name].items() if not k.startswith("sha256")}
        entries.append({
            **entry, "source": {"kind": "bundled", "path": path.name}, "bytes": path.stat().st_size,
            "sha256": sha256_of(path),
        })  # fmt: skip
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"schema_version": 1, "weights": entries}))
    monkeypatch.setenv("RSBACKBONES_MANIFEST", str(manifest))


def test_every_published_score_has_a_protocol_or_a_reason():
    found = list(published_scores.stated_scores(["*"]))
    assert len(found) == 136
    for entry, score, _ in found:
        protocol = published_scores.protocol_for(entry.id, score)
        assert (protocol is None) == (score in published_scores.NO_PROTOCOL)


def test_scores_are_measured_where_the_data_is(eurosat, published, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = ["--data", str(eurosat), "--output", str(output), "--epochs", "1"]
    published_scores.main([*arguments, "--only", SECO, MOCO])
    rows = {(r["weights"], r["score"]): r for r in json.loads((output / "scores.json").read_text())["scores"]}
    frozen, tuned = rows[SECO, "EuroSAT"], rows[MOCO, "EuroSAT"]
    assert frozen["measured"] == 100  # classes that differ in brightness are linear in random features
    result = json.loads((output / MOCO / "EuroSAT" / "result.json").read_text())
    assert tuned["measured"] == pytest.approx(100 * result["metrics"]["top1"])
    assert "is not there" in rows[SECO, "BigEarthNet"]["not_measured"]
    assert "U-Net" in rows[SECO, "OSCD"]["not_measured"]
    assert f"{SECO}, EuroSAT: published 93.14, 100.0" in capsys.readouterr().out
    assert rsb.create_model(SECO, pretrained=True).weights_entry.id == SECO
