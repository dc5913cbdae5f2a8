"""``save_model`` writes what ``create_model`` reads back, or nothing: adapters, pruning, own parts."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import rsbackbones as rsb
from rsbackbones.zoo.publish import write_repository
from tests.models.examples import ALL, batch, dated, small, times_of

NAME = "croma_vit_b"


class Lora(nn.Module):
    """A low-rank adapter around a linear layer, as peft builds it."""

    def __init__(self, base, rank=2):
        super().__init__()
        self.base_layer = base
        self.in_features, self.out_features = base.in_features, base.out_features
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x):
        return self.base_layer(x) + self.lora_B(self.lora_A(x))

    def merged(self):
        layer = copy.deepcopy(self.base_layer)
        layer.weight.data += self.lora_B.weight @ self.lora_A.weight
        return layer


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def doubled(layer, kind):
    other = kind(layer.in_features, layer.out_features)
    other.load_state_dict(layer.state_dict())
    return other


def mlp(model):
    return model.encoders["s2"].blocks[0].mlp


def adapt(model):
    mlp(model).fc1 = Lora(mlp(model).fc1)


def merge(model):
    mlp(model).fc1 = mlp(model).fc1.merged()


# What a user does, the fix that the error names, and the fix itself.
CHANGES = {
    "LoRA": (adapt, "Merge adapters first", merge),
    "pruned": (
        lambda m: prune.l1_unstructured(mlp(m).fc1, "weight", 0.3),
        "prune.remove",
        lambda m: prune.remove(mlp(m).fc1, "weight"),
    ),
    "weight norm": (
        lambda m: parametrizations.weight_norm(mlp(m).fc1),
        "remove_parametrizations",
        lambda m: parametrize.remove_parametrizations(mlp(m).fc1, "weight"),
    ),
    "head of several layers": (
        lambda m: setattr(m, "head", nn.Sequential(nn.Dropout(), nn.Linear(m.num_features, 5))),
        "reset_classifier",
        lambda m: m.reset_classifier(0),
    ),
    "head without bias": (
        lambda m: setattr(m, "head", nn.Linear(m.num_features, 5, bias=False)),
        "model.head.state_dict",
        lambda m: m.reset_classifier(0),
    ),
    "a layer of another kind": (  # no tensor tells
        lambda m: setattr(mlp(m), "fc1", doubled(mlp(m).fc1, Doubled)),
        "Undo the change",
        lambda m: setattr(mlp(m), "fc1", doubled(mlp(m).fc1, nn.Linear)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_could_not_be_read_back_is_refused_and_its_fix_works(change, tmp_path):
    apply, text, fix = CHANGES[change]
    model = small(NAME)
    apply(model)
    path = tmp_path / "model.safetensors"
    writers = (
        lambda: rsb.save_model(model, path),
        lambda: rsb.save_in_format(model, tmp_path / "model.pt", "croma_official"),
        lambda: write_repository(model, "some/one", tmp_path, license="mit"),
    )
    for write in writers:
        with pytest.raises(ValueError, match=text):
            write()
    assert not list(tmp_path.iterdir())
    with torch.no_grad():
        expected = model.forward_features(batch(model)).pooled["joint"]
    fix(model)
    again = rsb.create_model(NAME, checkpoint=rsb.save_model(model, path))
    found = again.forward_features(batch(model)).pooled["joint"]
    if change == "a layer of another kind":
        assert not torch.equal(found, expected)
    else:
        torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("ignore")  # torch.ao announces its end
def test_a_quantized_model_is_refused(tmp_path):
    quantized = torch.ao.quantization.quantize_dynamic(small(NAME), {nn.Linear})
    with pytest.raises(ValueError, match="before it is quantized"):
        rsb.save_model(quantized, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_decoder_of_the_users_own_is_not_dropped_in_silence(tmp_path):
    class Segmenter(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.decoder = small(NAME), nn.Conv2d(32, 2, 1)

    model = Segmenter()
    with pytest.raises(ValueError, match=r"decoder\.weight.*dense_model"):
        rsb.save_model(model, tmp_path / "model.safetensors")
    assert rsb.save_model(model.backbone, tmp_path / "model.safetensors").exists()


def test_a_model_without_a_name_is_refused(tmp_path):
    """Built by its family and not by create_model, it could not be found again."""
    named = small(NAME)
    model = type(named)(named.config)
    with pytest.raises(ValueError, match="unknown model ''"):
        rsb.save_model(model, tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ALL)
def test_wrapped_averaged_and_trained_models_are_written(name, tmp_path):
    """None of these changes the network: checkpointing, drop path, half precision, averages, compile."""
    model = small(name, num_classes=3)
    times = times_of(model)
    x, dates = batch(model, times=times), dated(model, times)
    expected = model(x, **dates)
    nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.set_grad_checkpointing()
    wrapped = torch.compile(torch.optim.swa_utils.AveragedModel(model))
    again = rsb.create_model(
        name, checkpoint=rsb.save_model(wrapped, tmp_path / "model.safetensors"), num_classes=None
    )
    assert torch.equal(again(x, **dates), expected)
