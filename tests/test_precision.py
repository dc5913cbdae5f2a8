"""Half precision, devices, copies, and activation checkpointing: the same features and gradients."""

import copy
import os
import pickle
import subprocess
import sys

import pytest
import torch

import rsbackbones as rsb
from rsbackbones.layers import alibi
from rsbackbones.layers.alibi import AlibiBias, bias_between, grid_positions
from rsbackbones.layers.blockwise_attention import blockwise_attention

SMALL = {"dim": 32, "depth": 2, "num_heads": 4}
NO_TABLES = {"cpu": 0, "cuda": 0}
SENSORS = {"s2": ("s2",), "s1": ("s1",), "both": ("s2", "s1")}


def small(sensors="both", **arguments):
    torch.manual_seed(0)
    overrides = {**SMALL, **arguments.pop("overrides", {})}
    return rsb.create_model("croma_vit_tiny", modalities=SENSORS[sensors], overrides=overrides, **arguments)


def some_images(model, height=40, width=72, batch=2):
    draw = torch.Generator().manual_seed(1)
    return {
        m: torch.randn(batch, len(bands), height, width, generator=draw) for m, bands in model.bands.items()
    }


def outputs(model, images):
    """Everything that a model gives, by name."""
    if isinstance(model, rsb.FeatureMaps):
        return dict(enumerate(model(images)))
    features = model.forward_features(images)
    return {(kind, s): x for kind in ("tokens", "pooled") for s, x in getattr(features, kind).items()}


def assert_near(got, expected, error):
    """Root mean squared difference, in parts of what is expected."""
    assert got.keys() == expected.keys()
    for name, x in expected.items():
        assert ((got[name].float() - x).norm() / x.norm()).item() < error, name


# -- half precision -------------------------------------------------------------------------------------

# The error of one rounding is 2^-9 in bfloat16 and 2^-12 in float16.
HALF = [(torch.bfloat16, 0.02), (torch.float16, 0.003)]


@pytest.mark.parametrize(("dtype", "error"), HALF, ids=["bfloat16", "float16"])
@pytest.mark.parametrize("tables", [True, False], ids=["tables", "no tables"])
@pytest.mark.parametrize("sensors", SENSORS)
def test_features_in_half_precision_are_those_of_float32(sensors, tables, dtype, error, monkeypatch):
    model = small(sensors)
    x = some_images(model)
    if not tables:
        monkeypatch.setattr(alibi, "LARGEST_TABLE", NO_TABLES)
    with torch.no_grad():
        expected = outputs(model, x)
        with torch.autocast("cpu", dtype=dtype):
            assert_near(outputs(model, x), expected, error)
            assert_near(outputs(model, {m: v.to(dtype) for m, v in x.items()}), expected, error)
        got = outputs(model.to(dtype), {m: v.to(dtype) for m, v in x.items()})
    assert {v.dtype for v in got.values()} == {dtype}
    assert_near(got, expected, error)


@pytest.mark.parametrize(("dtype", "error"), HALF, ids=["bfloat16", "float16"])
def test_maps_in_half_precision_are_those_of_float32(dtype, error):
    model = small(features_only=True)
    x = some_images(model.backbone)
    expected = outputs(model, x)
    got = outputs(model.to(dtype), {m: v.to(dtype) for m, v in x.items()})
    assert_near(got, expected, error)


@pytest.mark.parametrize(("dtype", "error"), HALF, ids=["bfloat16", "float16"])
def test_gradients_in_half_precision_are_those_of_float32(dtype, error):
    model = small(num_classes=3)
    x = some_images(model)

    def gradients(**autocast):
        model.zero_grad()
        with torch.autocast("cpu", **autocast):
            loss = model(x).float().square().mean()
        loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    assert_near(gradients(dtype=dtype), gradients(enabled=False), 4 * error)


def test_distances_are_exact_in_bfloat16_beyond_256_patches():
    """bfloat16 has 8 bits: were positions of it, patches 256 and 257 would be one."""
    positions = grid_positions(1, 300)
    column = torch.arange(300, dtype=torch.float64)
    exact = -(column[:, None] - column).abs() * 2.0**-8  # the slope of one head
    with torch.autocast("cpu", dtype=torch.bfloat16):
        table = bias_between(positions, positions, 1, torch.bfloat16)
    assert torch.equal(table[0], exact.bfloat16())
    # The same where no table is made: attention to equal keys, of which the bias alone decides.
    q, v = torch.zeros(1, 300, 1, 8).bfloat16(), torch.randn(1, 300, 1, 8).bfloat16()
    out = blockwise_attention(q, q, v, AlibiBias(positions, positions, 1))
    assert torch.allclose(out[0, :, 0].double(), exact.softmax(1) @ v[0, :, 0].double(), atol=0.01)


def test_a_default_dtype_of_bfloat16_leaves_the_bias_exact():
    positions = grid_positions(3, 5)
    expected = bias_between(positions, positions, 4, torch.float32)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(bias_between(grid_positions(3, 5), positions, 4, torch.float32), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("call", ["forward", "forward_features", "forward_intermediates"])
def test_another_dtype_or_device_is_refused_with_the_fix(call):
    model = small("s2")
    x = some_images(model)["s2"]
    with pytest.raises(
        ValueError, match=r"s2: got torch\.bfloat16, .* torch\.float32; .*x\.to\(torch\.float32\)"
    ):
        getattr(model, call)(x.bfloat16())
    with pytest.raises(ValueError, match=r"s2: got an image on meta, the model is on cpu; .*x\.to\('cpu'\)"):
        getattr(model, call)(x.to("meta"))
    with torch.autocast("cpu"), pytest.raises(ValueError, match=r"got torch\.float64"):
        getattr(model, call)(x.double())  # autocast leaves double as it is
    model.to("meta")
    with pytest.raises(ValueError, match=r"on cpu, the model is on meta; .*x\.to\('meta'\)"):
        getattr(model, call)(x)


# -- devices and copies ---------------------------------------------------------------------------------


def test_moving_to_a_device_moves_everything():
    """On the meta device, to which a tensor that was left behind would be a stranger."""
    model = small()
    x = some_images(model)
    expected = outputs(model, x)  # fills the cache of tables
    on_meta = outputs(model.to("meta"), {m: v.to("meta") for m, v in x.items()})
    assert {k: (v.device.type, v.shape) for k, v in on_meta.items()} == {
        k: ("meta", v.shape) for k, v in expected.items()
    }


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("tables", [True, False], ids=["tables", "no tables"])
def test_a_gpu_gives_what_the_cpu_gives(tables, monkeypatch):
    if not tables:
        monkeypatch.setattr(alibi, "LARGEST_TABLE", NO_TABLES)
    model = small()
    x = some_images(model)
    with torch.no_grad():
        expected = outputs(model, x)
        on_gpu = outputs(model.cuda(), {m: v.cuda() for m, v in x.items()})
    assert_near({k: v.cpu() for k, v in on_gpu.items()}, expected, 1e-3)
    again = outputs(model.cpu(), x)
    assert_near(again, expected, 1e-6)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_and_pickles_are_models_of_their_own(copied, checkpointed):
    model = rsb.create_model("croma_vit_tiny", pretrained=True)
    model.set_grad_checkpointing(checkpointed)
    x = some_images(model)
    expected = outputs(model, x)
    twin = copied(model)
    assert twin.weights_entry == model.weights_entry
    assert str(twin.adaptation) == str(model.adaptation)
    assert all(torch.equal(v, expected[k]) for k, v in outputs(twin, x).items())
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert all(torch.equal(v, expected[k]) for k, v in outputs(model, x).items())
    assert not any(v.any() for v in outputs(twin, x).values())


@pytest.mark.parametrize("positions", ["alibi", "sincos", "peg"])
def test_the_state_dict_holds_parameters_and_nothing_derived(positions):
    model = small(overrides={"positions": positions})
    model(some_images(model))
    assert list(model.state_dict()) == [name for name, _ in model.named_parameters()]
    assert not list(model.buffers())


# -- activation checkpointing ---------------------------------------------------------------------------


def gradients_and_kept_bytes(model, x):
    """Gradients of all parameters, and the bytes that were kept for the backward pass."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = sum(v.square().sum() for v in outputs(model, x).values())
    loss.backward()
    held = {p.untyped_storage().data_ptr() for p in model.parameters()}
    return (
        {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None},
        sum(size for pointer, size in kept.items() if pointer not in held),
    )


@pytest.mark.parametrize("tables", [True, False], ids=["tables", "no tables"])
@pytest.mark.parametrize("features_only", [False, True])
def test_checkpointing_keeps_less_and_gives_the_same_gradients(features_only, tables, monkeypatch):
    if not tables:
        monkeypatch.setattr(alibi, "LARGEST_TABLE", NO_TABLES)
    model = small(features_only=features_only, overrides={"depth": 8}).train()
    backbone = model.backbone if features_only else model
    x = some_images(backbone, 80, 96)
    expected, all_bytes = gradients_and_kept_bytes(model, x)
    backbone.set_grad_checkpointing()
    backbone.set_grad_checkpointing()  # twice is once
    got, few_bytes = gradients_and_kept_bytes(model, x)
    assert_near(got, expected, 1e-6)
    # The inputs of the blocks are kept too, by the calls that compute again.
    inputs = 16 * next(iter(outputs(model, x).values())).numel() * 4
    assert few_bytes + inputs < all_bytes / 4
    backbone.set_grad_checkpointing(False)
    assert gradients_and_kept_bytes(model, x)[1] == all_bytes


def test_checkpointing_goes_with_autocast():
    model = small().train()
    x = some_images(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, _ = gradients_and_kept_bytes(model, x)
        model.set_grad_checkpointing()
        got, _ = gradients_and_kept_bytes(model, x)
    assert_near(got, expected, 1e-6)


BFLOAT16 = """
import torch
import torch.nn.functional as F
import rsbackbones as rsb
from rsbackbones.train.engine.batch import Batch
from rsbackbones.train.objectives.s4 import S4Objective

model = rsb.create_model("vit_s16", overrides={"depth": 1}).to(torch.bfloat16)
x = torch.rand(1, len(model.bands["s2"]), 64, 96)
stem = model.get_parameter(model.stem("s2").weight)
exact, rounded = F.conv2d(x, stem.float(), stride=16), F.conv2d(x.bfloat16(), stem, stride=16)
right = torch.allclose(rounded.float(), exact, atol=0.05)

objective = S4Objective().build(rsb.create_model("s4_unet3d", overrides={"widths": (4, 8, 8)}))
bands = objective.backbone.bands
series = {m: torch.rand(1, 4, len(names), 8, 8) for m, names in bands.items()}


def train():
    with torch.autocast("cpu", torch.bfloat16):
        objective(Batch(images=series, bands=bands, noise={}))


def runs(compute):
    try:
        compute()
        return True
    except ValueError as error:
        return "ONEDNN_MAX_CPU_ISA" not in str(error)


print(right, runs(lambda: model(x.bfloat16())), runs(train))
"""


@pytest.mark.parametrize("isa", [None, "AVX512_CORE_BF16"])
def test_convolutions_that_this_cpu_computes_wrongly_are_refused(isa):
    environment = {k: v for k, v in os.environ.items() if k != "ONEDNN_MAX_CPU_ISA"}
    environment |= {"ONEDNN_MAX_CPU_ISA": isa} if isa else {}
    run = subprocess.run(
        [sys.executable, "-c", BFLOAT16], env=environment, capture_output=True, text=True, check=True
    )
    right, ran, trained = run.stdout.split()
    assert right == ran == trained
