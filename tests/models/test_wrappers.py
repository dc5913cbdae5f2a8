"""Modules whose weights are not parameters: replicas of DataParallel, quantized and parametrized layers."""

import copy
import sys

import pytest
import torch
import torch.nn.parallel.replicate
from torch import nn

from tests.models.examples import ALL, batch, dated, small, times_of


@pytest.fixture
def replicate(monkeypatch):
    """Torch's own replication; only the copy between GPUs is one on the CPU."""
    module = sys.modules["torch.nn.parallel.replicate"]

    def copies(tensors, devices, detach=False):
        return [[t.detach().clone() for t in tensors] for _ in devices]

    monkeypatch.setattr(module, "_broadcast_coalesced_reshape", copies)
    return module.replicate


@pytest.mark.parametrize("name", ALL)
def test_a_replica_of_data_parallel_computes_the_same(name, replicate):
    model = small(name, num_classes=3)
    times = times_of(model)
    x, dates = batch(model, times=times), dated(model, times)
    for replica in replicate(model, [0, 1]):
        assert not list(replica.parameters())
        assert torch.equal(replica(x, **dates), model(x, **dates))
        assert replica.num_classes == 3


@pytest.mark.filterwarnings("ignore")  # torch.ao announces its end
@pytest.mark.parametrize("name", ["croma_vit_b", "seamo_vit_b"])
def test_dynamically_quantized_linear_layers_run(name):
    model = small(name, num_classes=3)
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear})
    assert not isinstance(quantized.head, nn.Linear)
    x = batch(model)
    found, plain = quantized(x), model(x)
    assert quantized.num_classes == 3
    assert found.shape == plain.shape
    assert (found - plain).abs().max() < 0.1 * plain.abs().max()


def test_a_parametrized_stem_runs():
    """Its weight is computed at every use."""
    model = small("croma_vit_b")
    x = batch(model)
    expected = model(x)
    stem, _, weight = model.stem("s2").weight.rpartition(".")
    nn.utils.parametrize.register_parametrization(model.get_submodule(stem), weight, nn.Identity())
    assert torch.equal(model(x), expected)
    assert model.example_inputs().images.keys() == x.keys()
