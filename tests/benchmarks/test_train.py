"""The training benchmark: its peer computes what ours does, its counts are right, its page says them."""

import dataclasses

import pytest
import torch

import rsbackbones as rsb
from benchmarks import train
from benchmarks.croma_plain import PUBLISHED, PlainPretraining
from benchmarks.data_wait import measure_data_wait
from benchmarks.operations import STEP_PARTS, Operations, step_part
from benchmarks.train_cell import VARIANTS, Cell, Step
from tests.train.croma_setup import SMALL, gradients, make_batch

ONE_THREAD = {"threads": 1, "seed": 0, "side": 32, "batch_size": 2, "model": "croma_vit_tiny"}


# -- the peer -----------------------------------------------------------------------------------------


def pair(**options):
    """Ours with ``options``, the peer with the same weights, and a batch; weights with which all counts."""
    torch.manual_seed(0)
    size = {"decoder_dim": 16, "decoder_heads": 2}
    backbone = rsb.create_model("croma_vit_tiny", overrides=SMALL, image_size=64).train()
    ours = dataclasses.replace(PUBLISHED, **size, **options).build(backbone)
    for parameter in ours.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    plain = PlainPretraining(backbone.config, dataclasses.replace(PUBLISHED, **size))
    plain.load_state_dict(ours.state_dict(), strict=True)
    return ours, plain, make_batch(ours.options, count=5, grid=(8, 8), dtype=torch.float32)


def test_the_published_step_written_plainly_computes_what_ours_does():
    ours, plain, batch = pair()
    expected, expected_grads = gradients(ours, batch)
    found, grads = gradients(plain, batch)
    for name in ("loss", "contrast", "reconstruction"):
        assert found[name].item() == pytest.approx(expected[name].item(), abs=1e-5)
    assert grads.keys() == expected_grads.keys() == dict(ours.named_parameters()).keys()
    for name, grad in expected_grads.items():
        assert (grads[name] - grad).norm() <= 1e-4 * grad.norm(), name


@pytest.mark.parametrize("option", [{"joint_self_bias": "radar"}, {"gather": "all"}], ids=str)
def test_the_peer_is_another_step_than_ours_by_default(option):
    """Guards the test above: each of our own defaults gives another gradient."""
    ours, plain, batch = pair(**option)
    _, expected = gradients(ours, batch)
    _, grads = gradients(plain, batch)
    assert max((grads[n] - g).norm() / g.norm() for n, g in expected.items()) > 1e-2


# -- where the time goes ------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_part_of_a_step_is_found(variant):
    step = Step(Cell(variant=variant, precision="fp32", compiled=False, breakdown=True, **ONE_THREAD))
    found = step.breakdown()
    assert all(seconds > 0 for seconds in found["seconds"].values()), found["seconds"]
    assert found["flops"] > 0
    assert found["products_flop_per_s"] > 1e6


def test_operations_of_the_backward_pass_are_those_of_their_module():
    """Matrix products of the decoder's linear layers: one in the forward, two in the backward pass."""
    step = Step(Cell(variant="ours", precision="fp32", compiled=False, breakdown=False, **ONE_THREAD))
    seen = []

    class Named(Operations):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            before = dict(self.seconds)
            out = super().__torch_dispatch__(func, types, args, kwargs)
            (changed,) = [p for p, s in self.seconds.items() if s != before[p]]
            seen.append((str(func), changed))
            return out

    operations = Named(step.model, STEP_PARTS, step_part)
    with operations.following():
        step.forward_backward()
    products = [part for name, part in seen if name in ("aten.mm.default", "aten.addmm.default")]
    assert len(products) == operations.products.total()
    linear = [m for m in step.model.decoder.modules() if isinstance(m, torch.nn.Linear)]
    assert products.count("decoder") == 3 * len(linear)
    encoders = [*step.model.backbone.encoders.modules(), *step.model.backbone.joint.modules()]
    count = sum(isinstance(m, torch.nn.Linear) for m in encoders)
    assert products.count("encoder matrix products") == 3 * count - 2  # images get no gradient
    attention = [name for name, part in seen if part == "attention" and "scaled_dot_product" in name]
    blocks = len(list(step.model.backbone.encoders["s2"].blocks)) * 2  # s1 and joint: half as many each
    assert sum("backward" in name for name in attention) == blocks + 2  # the joint blocks attend twice


@pytest.mark.usefixtures("forks")
def test_a_variant_that_cannot_run_says_why_and_does_not_stop_the_other(monkeypatch):
    """A process that fails is reported with its last words."""
    cell = Cell(variant="", precision="fp32", compiled=False, breakdown=False, **ONE_THREAD)
    size = train.Size(model=cell.model, batch_size=2, side=32, warmup=0, steps=1, wait_steps=1)
    broken = dataclasses.replace(cell, model="croma_vit_none")
    original = train.replace
    monkeypatch.setattr(
        train, "replace", lambda c, variant: original(broken if variant == "ours" else c, variant=variant)
    )
    row = train._measure_row(cell, size)
    assert "exit code 1" in row["ours"]["error"]
    assert "croma_vit_none" in row["ours"]["error"]
    assert row["published"]["samples_per_s"] > 0
    assert "speed_ratio" not in row


def test_the_report_says_what_was_measured(tmp_path):
    cell = {
        "samples_per_s": 4.0, "median_seconds": 4.0, "memory": 2**30, "flops": 32e9, "parameters": 1,
        "seconds": dict.fromkeys(STEP_PARTS, 0.5), "products_flop_per_s": 64e9,
        "ceiling_samples_per_s": 32.0,
    }  # fmt: skip
    failed = {"error": "exit code -9"}
    rows = [
        {"precision": "fp32", "compiled": False, "ours": cell, "published": cell, "speed_ratio": 1.25,
         "memory_ratio": 0.5},
        {"precision": "fp32", "compiled": True, "ours": cell, "published": failed},
    ]  # fmt: skip
    found = {
        "command": "python -m benchmarks.train", "machine": train.machine(), "threads": 2, "seed": 0,
        "size": dataclasses.asdict(train.FULL), "rows": rows, "data_wait": {"error": "no room"},
    }  # fmt: skip
    text = train.markdown(found)
    assert "| fp32 | eager | 4.00 | 4.00 | 1.25 | 1024 | 1024 | 0.50 |" in text
    assert "published, fp32, compiled did not run: exit code -9" in text
    assert "| reached of the ceiling | 12% |" in text
    assert "Not measured: no room" in text
    train.draw(found, tmp_path / "train.png")
    assert (tmp_path / "train.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.usefixtures("forks")
def test_data_wait_is_read_from_a_real_run(tmp_path):
    found = measure_data_wait(
        tmp_path, model="croma_vit_tiny", batch_size=2, side=64, steps=2, seed=0, workers=0
    )
    assert found["steps"] == 2
    assert 0 < found["data_wait"] < 1
    assert found["samples_per_s"] > 0
