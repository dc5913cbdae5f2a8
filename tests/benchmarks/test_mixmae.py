"""The comparison of AuxMAE and MixMAE runs, and its page holds what was measured."""

import numpy as np
import pytest

from benchmarks import mixmae
from rsbackbones.eval import logistic
from rsbackbones.train import apply_overrides

pytestmark = pytest.mark.usefixtures("without_pictures")


@pytest.fixture
def less_data(real_data, tmp_path):
    """The real data, with six images of each class of EuroSAT instead of twenty."""
    folder = tmp_path / "data"
    folder.mkdir()
    for path in real_data.iterdir():
        (folder / path.name).symlink_to(path)
    name = mixmae.SETS["EuroSAT MS"].file
    held = np.load(real_data / name)
    labels = held["labels"]
    kept = np.sort(np.concatenate([np.flatnonzero(labels == label)[:6] for label in np.unique(labels)]))
    (folder / name).unlink()
    of_images = {key: x[kept] if len(x) == len(labels) else x for key, x in held.items()}
    np.savez(folder / name, **of_images)
    return folder


def test_two_steps_are_trained_measured_and_put_on_a_page(less_data, tmp_path, monkeypatch):
    small = {
        name: apply_overrides(mixmae.RECIPES[name], {"batch_size": 8}) for name in mixmae.METHODS.values()
    }
    monkeypatch.setattr(mixmae, "RECIPES", small)
    monkeypatch.setattr(logistic, "_MOST_STEPS", 20)  # its scores need not be good
    how = {"lengths": (2,), "seeds": (0, 1), "sets": ("EuroSAT MS",), "protocols": ("knn",)}
    record = mixmae.measure(less_data, tmp_path / "out", **how)
    scores = record["sets"]["EuroSAT MS"]["scores"]
    labels = [f"{method}, 2 steps" for method in mixmae.METHODS]
    assert [*scores][:3] == labels
    assert len(scores) == 5  # random weights, and the statistics of the bands
    assert all(0 <= value <= 100 for of in scores.values() for column in of.values() for value in column)
    # A masked image, then also a whole one, then a whole mixture and two decoders.
    flops = [record["forward_flops"][method] for method in mixmae.METHODS]
    assert flops == sorted(flops)
    assert 1.5 < flops[1] / flops[0] < 2.5 < flops[2] / flops[0] < 4
    text = mixmae.page(record)
    assert all(f"| {label} | " in text for label in labels)
