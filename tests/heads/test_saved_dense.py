"""Dense models are saved whole: decoder and backbone come back, from a file and from a Hub repository."""

import json

import pytest
import torch
from safetensors import safe_open
from torch import nn

import rsbackbones as rsb
from rsbackbones.heads import ChangeModel, dense_model, load_dense_model
from rsbackbones.zoo.errors import CorruptCheckpointError, WeightsMismatchError
from rsbackbones.zoo.publish import write_repository
from tests.models.examples import batch, small

NAME = "croma_vit_b"
OPTIONS = {
    "upernet": {"head": "upernet", "width": 16},
    "linear of one sensor": {"head": "linear", "stream": "s2", "indices": [0], "freeze": True},
    "vit_lite": {"head": "vit_lite", "width": 16, "depth": 2, "scale": 2},
    "change": {"head": "linear", "task": "change"},
}


def model(case="linear of one sensor", **arguments):
    torch.manual_seed(1)
    return dense_model(small(NAME, **arguments), num_classes=3, **OPTIONS[case]).eval()


def images(net):
    x = batch(net.backbone)
    return {m: torch.stack((i, i.flip(0)), 1) for m, i in x.items()} if isinstance(net, ChangeModel) else x


@pytest.mark.parametrize("case", OPTIONS)
def test_a_dense_model_comes_back_with_its_decoder(case, tmp_path):
    pytest.importorskip("segmentation_models_pytorch")
    net = model(case, num_classes=7)  # the backbone has a head of its own too
    file = rsb.save_model(torch.compile(net), tmp_path / "model.safetensors")
    again = load_dense_model(str(file))
    assert type(again) is type(net)
    assert not again.training
    assert torch.equal(again(images(net)), net(images(net)))
    assert again.state_dict().keys() == net.state_dict().keys()
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in net.parameters()]
    assert not again.backbone.adaptation
    assert again.options == net.options


def test_create_model_reads_the_backbone_and_says_so(tmp_path):
    net = model()
    backbone = rsb.create_model(NAME, checkpoint=rsb.save_model(net, tmp_path / "model.safetensors"))
    (step,) = backbone.adaptation.steps
    assert (step.part, step.action) == ("decoder", "dropped")
    assert "load_dense_model" in step.detail
    x = batch(backbone)
    assert torch.equal(backbone(x), net.backbone(x))


def test_loading_adapts_the_backbone(tmp_path):
    net = model(modalities=("s2",))
    file = rsb.save_model(net, tmp_path / "model.safetensors")
    again = load_dense_model(file, bands={"s2": ("B04", "B03")}, pad=True)
    assert again(torch.rand(1, 2, 17, 20)).shape == (1, 3, 17, 20)
    assert again.backbone.adaptation.bands


def test_a_decoder_of_the_users_own_is_refused(tmp_path):
    net = model()
    net.head.classify = nn.Conv2d(net.head.classify.in_channels, 9, 1)
    with pytest.raises(ValueError, match=r"decoder is not the network of rsbackbones.heads.*classify.weight"):
        rsb.save_model(net, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_file_without_a_decoder_is_refused(tmp_path):
    file = rsb.save_model(small(NAME), tmp_path / "model.safetensors")
    with pytest.raises(WeightsMismatchError, match="no dense model"):
        load_dense_model(file)


@pytest.mark.parametrize(
    "options",
    [
        {"head": "linear"}, {"head": "none", "num_classes": 3}, {"x": 1}, [3],
        {"head": "linear", "num_classes": 2**40}, {"head": "linear", "num_classes": 2**70},
        {"head": "vit_lite", "num_classes": 3, "indices": [0], "width": 2**20},
        {"head": "vit_lite", "num_classes": 3, "indices": [0], "depth": 2**40},
        {"head": "linear", "num_classes": 4},
    ],
)  # fmt: skip
def test_damaged_options_are_refused(options, tmp_path):
    file = rsb.save_model(model(), tmp_path / "model.safetensors")
    with safe_open(file, framework="pt") as held:
        metadata = json.loads(held.metadata()["rsbackbones"])
        tensors = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118
    from safetensors.torch import save_file

    save_file(tensors, file, {"rsbackbones": json.dumps(metadata | {"dense": options})})
    with pytest.raises((CorruptCheckpointError, WeightsMismatchError)):
        load_dense_model(file)


def test_a_repository_holds_the_decoder_and_says_how_to_load_it(tmp_path):
    net = model()
    write_repository(net, "some/one", tmp_path, license="mit")
    assert 'rsb.heads.load_dense_model("hf-hub:some/one")' in (tmp_path / "README.md").read_text()
    again = load_dense_model(tmp_path / "model.safetensors")
    assert torch.equal(again(images(net)), net(images(net)))
