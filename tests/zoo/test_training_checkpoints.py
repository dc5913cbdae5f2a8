"""Checkpoints that training loops write: the model in them is found by its names, and reported."""

import pytest
import torch
from safetensors.torch import save_file

import rsbackbones as rsb
from rsbackbones.zoo.errors import CorruptCheckpointError, UnsafeCheckpointError, WeightsMismatchError
from rsbackbones.zoo.registry import find_architecture
from tests.models.examples import ALL, batch, dated, small, times_of

NAME = "croma_vit_tiny"
OVERRIDES = {"dim": 32, "depth": 2, "num_heads": 4}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return rsb.create_model(NAME, overrides=OVERRIDES)


@pytest.fixture(scope="module")
def state(model):
    return model.state_dict()


@pytest.fixture(scope="module")
def optimizer(model):
    trained = rsb.create_model(NAME, overrides=OVERRIDES)
    optimizer = torch.optim.AdamW(trained.parameters())
    trained(batch(trained)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def load(content, path, **arguments):
    torch.save(content, path)
    return rsb.create_model(NAME, checkpoint=path, overrides=OVERRIDES, **arguments)


def report(model):
    return {step.action: step.detail for step in model.adaptation.steps}


def prefixed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


FILES = {
    "state_dict": (lambda s, o: {"state_dict": s}, "under 'state_dict'"),
    "an epoch beside": (lambda s, o: {"model": s, "epoch": 3}, "under 'model'; left out: epoch"),
    "torch's tutorial": (
        lambda s, o: {"model_state_dict": s, "optimizer_state_dict": o, "epoch": 3, "loss": 0.5},
        "under 'model_state_dict'; left out: epoch, loss, optimizer_state_dict",
    ),
    "Lightning": (
        lambda s, o: {
            "epoch": 3, "global_step": 9, "pytorch-lightning_version": "2.6.6", "loops": {"fit": {"n": 1}},
            "hyper_parameters": {"lr": 1e-3, "name": None}, "state_dict": prefixed(s, "model."),
            "optimizer_states": [o], "lr_schedulers": [],
        },
        "under 'state_dict'; names without 'model.'; left out: epoch, global_step, hyper_parameters, loops, "
        "lr_schedulers, optimizer_states, pytorch-lightning_version",
    ),
    "nested": (lambda s, o: {"run": {"best": {"net": s}}, "tag": "x"}, "under 'run.best.net'; left out: tag"),
    "DDP": (lambda s, o: prefixed(s, "module."), "names without 'module.'"),
    "compiled": (lambda s, o: prefixed(s, "_orig_mod."), "names without '_orig_mod.'"),
    "several": (
        lambda s, o: prefixed(s, "module._orig_mod.backbone."),
        "names without 'module._orig_mod.backbone.'",
    ),
    "another network beside": (
        lambda s, o: {"teacher": {"fc.weight": torch.ones(2, 2)}, "student": s},
        "under 'student'; left out: teacher",
    ),
    "a teacher with a head": (  # only one has exactly the names of the model
        lambda s, o: {"teacher": s | {"projector.weight": torch.ones(2)}, "student": s},
        "under 'student'; left out: teacher",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_the_model_is_found_and_reported(model, state, optimizer, tmp_path, case):
    build, found = FILES[case]
    again = load(build(state, optimizer), tmp_path / "checkpoint.ckpt")
    assert report(again)["found"] == found
    x = batch(model)
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize("name", ALL)
def test_every_family_is_found_with_its_buffers_and_its_head(name, tmp_path):
    model = small(name, num_classes=3)
    path = tmp_path / "checkpoint.pt"
    torch.save({"epoch": 1, "ema": prefixed(model.state_dict(), "module.")}, path)
    overrides = dict(find_architecture(name).small)
    again = rsb.create_model(name, checkpoint=path, overrides=overrides, num_classes=None)
    times = times_of(model)
    x, dates = batch(model, times=times), dated(model, times)
    assert torch.equal(again(x, **dates), model(x, **dates))


@pytest.mark.parametrize("format", ["croma_official", "torchvision"])
def test_foreign_formats_are_found_within_a_checkpoint(format, tmp_path):
    name = "resnet18" if format == "torchvision" else NAME
    overrides = {} if format == "torchvision" else OVERRIDES
    model = rsb.create_model(name, overrides=overrides)
    rsb.save_in_format(model, tmp_path / "published.pt", format)
    content = torch.load(tmp_path / "published.pt", weights_only=True)
    torch.save({"state_dict": content, "epoch": 3}, tmp_path / "checkpoint.pt")
    again = rsb.create_model(name, checkpoint=tmp_path / "checkpoint.pt", overrides=overrides)
    assert all(torch.equal(x, again.state_dict()[n]) for n, x in model.state_dict().items())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_other_precisions_are_cast_and_reported(state, tmp_path, dtype, suffix):
    stored = {n: x.to(getattr(torch, dtype)) for n, x in state.items()}
    path = tmp_path / f"model{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(stored, path)
    again = rsb.create_model(NAME, checkpoint=path, overrides=OVERRIDES)
    assert report(again)["cast"] == f"{dtype} to float32 ({len(state)} tensors)"
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, stored[name].float()), name


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("modalities", [None, ("s2",)])
@pytest.mark.parametrize("name", ["croma_vit_tiny", "seamo_vit_tiny"])
def test_a_plain_state_of_the_bundled_weights_comes_back(name, modalities, suffix, tmp_path):
    """With its bands and input contract, though the architecture's own are others."""
    model = rsb.create_model(name, pretrained=True, modalities=modalities)
    path = tmp_path / f"model{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(model.state_dict(), path)
    again = rsb.create_model(name, checkpoint=path)
    assert again.bands == model.bands
    assert all(again.inputs[m] == model.inputs[m] for m in model.modalities)
    assert f"{name}.samples" in report(again)["assumed"]
    assert "B02 B03 B04 B08" in report(again)["assumed"]
    x = batch(model)
    assert torch.equal(again(x), model(x))


def test_weights_that_look_alike_are_not_guessed(tmp_path):
    """Several published weights of other bands than the default have these shapes."""
    model = rsb.create_model("resnet50", overrides={"modalities": ("s1",), "bands": {"s1": ("VV", "VH")}})
    torch.save(model.state_dict(), tmp_path / "model.pt")
    with pytest.raises(WeightsMismatchError, match=r"Say which: rsbackbones convert .* --model resnet50\."):
        rsb.create_model("resnet50", checkpoint=tmp_path / "model.pt")
    stated = {"modalities": ("s1",), "bands": {"s1": ("VV", "VH")}}
    again = rsb.create_model("resnet50", checkpoint=tmp_path / "model.pt", overrides=stated)
    assert again.bands == {"s1": ("VV", "VH")}


def renamed(state):
    name = next(iter(state))
    return {("other" if n == name else n): x for n, x in state.items()}


REFUSED = {
    "two of them": (lambda s: {"net": s, "net_ema": s}, WeightsMismatchError, "under 'net', 'net_ema'"),
    "a number among them": (lambda s: s | {"epoch": 3}, WeightsMismatchError, r"epoch \(int\).*'model'"),
    "a number below": (lambda s: {"net": s | {"lr": 0.1}}, WeightsMismatchError, r"lr \(float\)"),
    "a decoder beside": (
        lambda s: prefixed(s, "net.backbone.") | {"net.decoder.weight": torch.ones(2)},
        WeightsMismatchError,
        r"under 'net.backbone.'.*net.decoder.*model.net.backbone.state_dict",
    ),
    "another name": (lambda s: {"model": renamed(s)}, WeightsMismatchError, "not in the model: other"),
    "a tensor less": (lambda s: {"model": dict(list(s.items())[1:])}, WeightsMismatchError, "missing"),
    "no tensors": (lambda s: {"epoch": 3}, WeightsMismatchError, "holds no tensors"),
    "whole numbers": (
        lambda s: {n: x.to(torch.int32) for n, x in s.items()}, WeightsMismatchError, "wrong dtype",
    ),
    "a list for a tensor": (lambda s: s | {next(iter(s)): [1.0]}, CorruptCheckpointError, "is a list"),
    "objects": (lambda s: {"state_dict": s, "args": torch.nn.ReLU()}, UnsafeCheckpointError, "trust-pickle"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_this_model_is_refused_by_name(state, tmp_path, case):
    build, kind, text = REFUSED[case]
    with pytest.raises(kind, match=text) as caught:
        load(build(state), tmp_path / "checkpoint.pt")
    assert type(caught.value) is kind
    assert "orrupt" not in str(caught.value)


def test_the_advice_for_two_models_works(state, tmp_path, monkeypatch):
    """The line in the error is Python that a user runs."""
    monkeypatch.chdir(tmp_path)
    other = {n: x + 1 for n, x in state.items()}
    with pytest.raises(WeightsMismatchError) as caught:
        load({"nets": {"model": state, "ema": other}}, tmp_path / "both.pt")
    exec(str(caught.value).partition("take one of them: ")[2], {"torch": torch})
    again = load(torch.load("model.pt", weights_only=True), tmp_path / "one.pt")
    assert all(torch.equal(x, other[n]) for n, x in again.state_dict().items())
