"""The head of a model: one that is replaced is used, trained and counted, in every family."""

import pytest
import torch
from torch import nn

import rsbackbones as rsb
from tests.models.examples import ALL, batch, dated, small, times_of


def inputs(model):
    times = times_of(model)
    return batch(model, times=times), dated(model, times)


HEADS = {
    "linear": lambda d: nn.Linear(d, 5),
    "no bias": lambda d: nn.Linear(d, 5, bias=False),
    "layers": lambda d: nn.Sequential(nn.LayerNorm(d), nn.BatchNorm1d(d), nn.Dropout(0.5), nn.Linear(d, 5)),
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ALL)
def test_a_replaced_head_is_used_and_trains(name, head):
    model = small(name, num_classes=3)
    x, dates = inputs(model)
    pooled = model.forward_features(x, **dates)
    model.head = HEADS[head](model.num_features)
    assert model.num_classes == 5
    assert model.get_classifier() is model.head
    model.eval()
    torch.testing.assert_close(model(x, **dates), model.head(pooled.pooled[pooled.default_stream]))
    model.train()
    nn.functional.cross_entropy(model(x, **dates), torch.tensor([0, 4])).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.head.parameters())
    stem = model.get_parameter(model.stem(model.modalities[0]).weight)
    assert stem.grad is not None
    assert stem.grad.abs().sum() > 0
    assert {n for n in model.parameter_depths() if n.startswith("head.")} == {
        f"head.{n}" for n, _ in model.head.named_parameters()
    }
    model.reset_classifier(0)
    assert (model.num_classes, type(model.head)) == (0, nn.Identity)
    assert model(x, **dates).shape == (2, model.num_features)


def test_counting_the_outputs_of_a_head_changes_nothing():
    model = small("croma_vit_b")
    norm = nn.BatchNorm1d(model.num_features).double()
    model.head = nn.Sequential(norm, nn.Linear(model.num_features, 4).double()).train()
    assert model.num_classes == 4
    assert norm.training
    assert norm.num_batches_tracked == 0
    model.head = nn.Sequential(nn.Linear(model.num_features + 1, 4))
    with pytest.raises(ValueError, match=f"embeddings .B, {model.num_features}."):
        _ = model.num_classes


@pytest.mark.parametrize("name", ["fc", "classifier", "heads"])
def test_a_head_under_another_librarys_name_is_refused(name):
    model = small("croma_vit_b")
    with pytest.raises(ValueError, match=r"model\.head"):
        setattr(model, name, nn.Linear(model.num_features, 5))
    model.projection = nn.Linear(model.num_features, 5)  # other modules are the user's own
    assert not hasattr(model, name)


@pytest.mark.parametrize("name", ALL)
def test_a_replaced_linear_head_is_saved_with_its_classes(name, tmp_path):
    model = small(name)
    model.head = nn.Linear(model.num_features, 5)
    file = rsb.save_model(model, tmp_path / "model.safetensors")
    again = rsb.create_model(name, checkpoint=file, num_classes=None)
    x, dates = inputs(model)
    assert again.num_classes == 5
    assert torch.equal(again(x, **dates), model(x, **dates))
