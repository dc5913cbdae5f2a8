"""Saving, loading and adapting weights of every architecture: buffers, bands by name, heads, goldens."""

import dataclasses
import json
import sys
import types

import pytest
import torch
from safetensors.torch import load_file, save_file

import rsbackbones as rsb
from rsbackbones.models.config import as_json
from rsbackbones.zoo import registry
from rsbackbones.zoo.golden import compare_golden, compute_golden
from rsbackbones.zoo.manifest import SCHEMA_VERSION
from rsbackbones.zoo.registry import find_architecture
from tests.conftest import close
from tests.models.examples import ALL, batch, small
from tests.models.toy_cnn import INPUTS, ToyCNN, ToyCNNConfig

# Some bands of a sensor, in another order than the models'.
SOME = {"s2": ("B08", "B02", "B03", "B04"), "rgb": ("B02", "B04")}


@pytest.fixture(params=ALL)
def model(request):
    """A model with statistics of its own, where it keeps any."""
    model = small(request.param, num_classes=3)
    model.train()
    with torch.no_grad():
        for seed in range(2):
            model(batch(model, seed=seed))
    return model.eval()


def test_what_is_saved_comes_back_with_its_buffers_and_its_head(model, tmp_path):
    file = rsb.save_model(model, tmp_path / "model.safetensors")
    again = rsb.create_model(model.architecture, checkpoint=file, num_classes=None)
    state = model.state_dict()
    assert again.state_dict().keys() == state.keys()
    for name, tensor in again.state_dict().items():
        assert tensor.dtype == state[name].dtype, name
        assert torch.equal(tensor, state[name]), name
    assert again.config == model.config
    x = batch(model)
    assert torch.equal(again(x), model(x))
    assert not again.adaptation


def test_half_precision_casts_floats_and_leaves_counters(model, tmp_path):
    file = rsb.save_model(model, tmp_path / "half.safetensors", dtype=torch.float16)
    stored = load_file(file)
    for name, tensor in model.state_dict().items():
        expected = torch.float16 if tensor.is_floating_point() else tensor.dtype
        assert stored[name].dtype == expected, name
    again = rsb.create_model(model.architecture, checkpoint=file, num_classes=None)
    for name, tensor in again.state_dict().items():
        half = model.state_dict()[name]
        assert torch.equal(tensor, half.half().float() if half.is_floating_point() else half), name


@pytest.fixture
def toy_with_doubles(monkeypatch):
    """A family with a buffer that needs float64."""

    class Doubles(ToyCNN):
        def __init__(self, config, **arguments):
            super().__init__(config, **arguments)
            self.register_buffer("sums", torch.zeros(3, dtype=torch.float64))

    family = types.ModuleType("toy_doubles")
    family.CONFIGS = {"toy_doubles": ToyCNNConfig(width=4)}
    family.INPUTS, family.build = INPUTS, Doubles
    monkeypatch.setitem(sys.modules, "toy_doubles", family)
    monkeypatch.setattr(registry, "FAMILIES", [*registry.FAMILIES, "toy_doubles"])
    model = rsb.create_model("toy_doubles")
    model.sums += 1 / torch.tensor([3, 7, 1e-60], dtype=torch.float64)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_buffers_in_float64_come_back_as_they_were(toy_with_doubles, tmp_path, dtype):
    model = toy_with_doubles
    file = rsb.save_model(model, tmp_path / "model.safetensors", dtype=dtype)
    stored = load_file(file)
    assert stored["conv.weight"].dtype == dtype
    again = rsb.create_model("toy_doubles", checkpoint=file)
    for sums in (stored["sums"], again.sums):
        assert torch.equal(sums, model.sums)  # float32 ends at 3e38
        assert sums.dtype == torch.float64
    assert again.conv.weight.dtype == torch.float32
    assert again.norm.num_batches_tracked.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_model_cast_as_a_whole_is_saved_in_float32(toy_with_doubles, tmp_path, dtype):
    model = toy_with_doubles
    model.sums.zero_()
    file = rsb.save_model(model.to(dtype), tmp_path / "model.safetensors")
    again = rsb.create_model("toy_doubles", checkpoint=file)
    assert torch.equal(again.conv.weight, model.conv.weight.float())
    assert again.sums.dtype == torch.float64


def test_a_file_in_a_dtype_that_loading_refuses_is_not_written(model, tmp_path):
    with pytest.raises(ValueError, match=r"dtype must be one of torch.float32.*, got torch.float64"):
        rsb.save_model(model, tmp_path / "model.safetensors", dtype=torch.float64)
    assert not list(tmp_path.iterdir())


def test_a_module_under_two_names_is_refused_with_the_fix(tmp_path):
    model = small("toy_cnn")
    model.later = model.layers
    with pytest.raises(ValueError, match=r"differs in more tensors: later\.0"):
        rsb.save_model(model, tmp_path / "model.safetensors")


def test_a_counter_of_another_type_is_refused(tmp_path):
    model = small("toy_cnn")
    file = rsb.save_model(model, tmp_path / "model.safetensors")
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    state = load_file(file)
    state["norm.num_batches_tracked"] = state["norm.num_batches_tracked"].float()
    save_file(state, file, metadata)
    with pytest.raises(rsb.WeightsMismatchError, match=r"norm.num_batches_tracked torch.float32 instead of"):
        rsb.create_model("toy_cnn", checkpoint=file)


def test_another_number_of_classes_gets_a_new_head(model, tmp_path):
    file = rsb.save_model(model, tmp_path / "model.safetensors")
    for classes in (0, 5):
        other = rsb.create_model(model.architecture, checkpoint=file, num_classes=classes)
        assert [c.part for c in other.adaptation.steps] == ["head"]
        features = other.forward_features(batch(model))
        assert close(features.maps(), model.forward_features(batch(model)).maps())


def test_bands_are_gathered_by_name_in_any_stem(model, tmp_path):
    """Some bands: as the whole model on images that are zero in the others, under the scale ``none``."""
    m = model.modalities[0]
    some = SOME[m]
    file = rsb.save_model(model, tmp_path / "model.safetensors")
    fewer = rsb.create_model(
        model.architecture, checkpoint=file, modalities=(m,), bands={m: some}, kernel_scale="none"
    )
    assert fewer.adaptation.bands[0].dropped_bands
    x = batch(model)[m]
    where = [model.bands[m].index(band) for band in some]
    zeroed = torch.zeros_like(x)
    zeroed[:, where] = x[:, where]
    expected = model.forward_features({m: zeroed}).maps(m)
    assert close(fewer.forward_features(x[:, where]).maps(), expected)
    # And scaled up by default, as if the dropped bands were like those that stay.
    scaled = rsb.create_model(model.architecture, checkpoint=file, modalities=(m,), bands={m: some})
    kernels = [each.stem(m).to_kernel(each.get_parameter(each.stem(m).weight)) for each in (fewer, scaled)]
    torch.testing.assert_close(kernels[1], kernels[0] * len(model.bands[m]) / len(some))


def test_reordered_bands_are_the_same_model(model, tmp_path):
    m = model.modalities[0]
    file = rsb.save_model(model, tmp_path / "model.safetensors")
    order = tuple(reversed(model.bands[m]))
    other = rsb.create_model(model.architecture, checkpoint=file, bands={m: order}, num_classes=None)
    x = batch(model)
    assert close(other({**x, m: x[m].flip(1)}), model(x))


@pytest.mark.parametrize("rule", ["nearest", "mean", "zero", "reinit", "reinit_all"])
def test_bands_that_the_weights_lack_follow_the_rules_in_any_stem(model, tmp_path, rule):
    m = model.modalities[0]
    if "B10" in model.bands[m]:
        model = small(model.architecture, bands={m: [band for band in model.bands[m] if band != "B10"]})
    file = rsb.save_model(model, tmp_path / "model.safetensors")
    some = SOME[m]
    wanted = (*some, "B10")  # of Sentinel-2, whose bands stand in for those of pictures too
    torch.manual_seed(1)
    other = rsb.create_model(
        model.architecture, checkpoint=file, modalities=(m,), sensors={m: "s2"}, bands={m: wanted},
        missing_bands=rule, kernel_scale="none",
    )  # fmt: skip
    kernel = other.stem(m).to_kernel(other.get_parameter(other.stem(m).weight))
    whole = model.stem(m).to_kernel(model.get_parameter(model.stem(m).weight))
    known = [model.bands[m].index(band) for band in some]
    bound = (kernel.shape[1] * kernel[0, 0].numel()) ** -0.5
    added = kernel[:, -1]
    if rule == "reinit_all":
        assert not torch.allclose(kernel[:, :-1], whole[:, known], atol=1e-3)
        assert kernel.abs().max() <= bound
        return
    if rule in ("zero", "reinit"):
        assert torch.allclose(kernel[:, :-1], whole[:, known])
    if rule == "zero":
        assert not added.any()
    elif rule == "reinit":
        assert 0 < added.abs().max() <= bound
    elif rule == "mean":
        assert torch.allclose(added, whole.mean(dim=1), atol=1e-6)
    else:  # B10, 1373.5 nm, has the kernel of B11; of a picture that of B04, which it halves
        nearest = "B11" if m == "s2" else "B04"
        shared = 2 if nearest in some else 1
        assert torch.allclose(added * shared, whole[:, model.bands[m].index(nearest)], atol=1e-6)


def test_params_are_parameters_without_buffers(model, tmp_path, monkeypatch):
    """A manifest's entry that states the parameters is true of a model with running statistics."""
    file = rsb.save_model(model, tmp_path / "model.safetensors")
    import hashlib

    count = sum(p.numel() for p in model.parameters())
    entry = {
        "id": f"{model.architecture}.mine", "default": True, "architecture": model.architecture,
        "config": as_json(model.config), "source": {"kind": "bundled", "path": file.name},
        "format": "rsbackbones", "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "license": "MIT", "provenance": "a test", "params": count,
        "inputs": {
            m: {"bands": list(spec.bands), "product": spec.product, "unit": spec.unit,
                "normalize": spec.normalize, "mean": list(spec.mean), "std": list(spec.std)}
            for m, spec in model.inputs.items() if m in model.modalities
        },
    }  # fmt: skip
    manifest = tmp_path / "manifest.json"
    monkeypatch.setenv("RSBACKBONES_MANIFEST", str(manifest))
    for stated in (count, count + 1):
        content = {"schema_version": SCHEMA_VERSION, "weights": [{**entry, "params": stated}]}
        manifest.write_text(json.dumps(content))
        name = f"{model.architecture}.mine"
        if stated == count:
            loaded = rsb.create_model(name, pretrained=True, num_classes=None)
            assert torch.equal(loaded(batch(model)), model(batch(model)))
        else:
            with pytest.raises(rsb.WeightsMismatchError, match=f"{count} parameters"):
                rsb.create_model(name, pretrained=True, num_classes=None)


def test_goldens_notice_changed_weights_and_changed_statistics(model):
    golden = json.loads(json.dumps(compute_golden(model, (32, 48))))
    assert compare_golden(model, golden) == []
    assert set(golden["streams"]) == set(model.stream_inputs)
    changed = [model.get_parameter(model.stem(m).weight) for m in model.modalities]
    changed += [b for name, b in model.named_buffers() if name.endswith("running_mean")]
    for tensor in changed:
        before = tensor.detach().clone()
        with torch.no_grad():
            if tensor.requires_grad:
                tensor.mul_(1.5)  # a constant would be taken out by the norms of a ViT
            else:
                tensor.add_(0.5)  # the mean after a norm and a convolution is zero
        assert compare_golden(model, golden)
        with torch.no_grad():
            tensor.copy_(before)


def test_a_file_without_metadata_is_refused_with_the_fields_of_its_own_family(model, tmp_path):
    """No advice to change the ``dim`` of a CNN."""
    if model.config == find_architecture(model.architecture).config:
        pytest.skip("the small model is the model itself")
    save_file({n: t.contiguous() for n, t in model.state_dict().items()}, tmp_path / "bare.safetensors")
    fields = ", ".join(field.name for field in dataclasses.fields(model.config))
    with pytest.raises(rsb.WeightsMismatchError, match=rf"--overrides FIELD=VALUE\); fields: {fields}$"):
        rsb.create_model(model.architecture, checkpoint=tmp_path / "bare.safetensors", num_classes=None)


def test_weights_of_another_shape_are_refused(model, tmp_path):
    file = rsb.save_model(model, tmp_path / "model.safetensors")
    others = [name for name in ALL if name != model.architecture]
    with pytest.raises(rsb.WeightsMismatchError, match=f"holds {model.architecture}, not"):
        rsb.create_model(others[0], checkpoint=file)
