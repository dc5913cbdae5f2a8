"""The optimizers, schedules and losses of fine-tuning, against torch alone and by hand; stochastic depth."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rsbackbones as rsb
from rsbackbones.layers.drop_path import drop_path
from rsbackbones.train.engine.distributed import DistributedContext
from rsbackbones.train.engine.optim import start_state
from rsbackbones.train.finetune.objective import Finetuning, normalize_by_global_pixels
from rsbackbones.train.finetune.optim import build_optimizer, build_schedule, learning_rate
from rsbackbones.train.finetune.recipe import FinetuneOptim
from rsbackbones.train.finetune.run import build_model
from rsbackbones.train.finetune.samples import LabelledBatch
from tests.train.finetune_setup import BANDS, DENSE, labelled, small_recipe


def objective(task="classes", sensors=("s2",), **changes):
    data = labelled(task, sensors=sensors)
    recipe = small_recipe(**(DENSE if data.labels is None else {}), **changes)
    return Finetuning(build_model(recipe, data), task, freeze=recipe.freeze).train()


def batch_of(target, sensors=("s2",)):
    generator = torch.Generator().manual_seed(0)
    channels = {"s2": 4, "s1": 2}
    images = {m: torch.rand(len(target), channels[m], 16, 16, generator=generator) for m in sensors}
    return LabelledBatch(images=images, bands={"s2": BANDS}, noise={}, target=target)


def rates(options, steps=40, per_epoch=10, batch=512):
    module = nn.Linear(2, 2)
    optimizer = build_optimizer(module, options, batch)
    start_state(module, optimizer)
    schedule = build_schedule(optimizer, options, steps=steps, steps_per_epoch=per_epoch)
    found = []
    for step in range(steps):
        schedule.step_update(step + 1)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_the_linear_scaling_rule():
    assert learning_rate(FinetuneOptim(base_lr=3e-5), 256) == 3e-5
    assert learning_rate(FinetuneOptim(base_lr=3e-5), 1024) == pytest.approx(12e-5)
    assert learning_rate(FinetuneOptim(base_lr=0.01, scaled=False), 8) == 0.01


def test_warm_up_then_half_a_cosine():
    found = rates(FinetuneOptim(base_lr=1e-3, warmup_epochs=1, min_lr=1e-5))
    top = 2e-3
    expected = [top * (i + 1) / 10 for i in range(10)] + [
        1e-5 + (top - 1e-5) * (1 + math.cos(math.pi * (i + 1) / 31)) / 2 for i in range(30)
    ]
    # timm counts from 0 where the warm-up ends.
    assert found[:10] == pytest.approx([*expected[:9], top])
    assert found[10:] == pytest.approx(expected[10:], rel=0.02)
    assert max(found) == found[9]


def test_a_power_and_a_constant():
    poly = rates(FinetuneOptim(base_lr=0.01, scaled=False, schedule="poly", power=0.9, min_lr=1e-4))
    assert poly == pytest.approx([1e-4 + (0.01 - 1e-4) * (1 - (i + 1) / 41) ** 0.9 for i in range(40)])
    constant = rates(FinetuneOptim(base_lr=0.01, scaled=False, schedule="constant", warmup_steps=4))
    assert constant == pytest.approx([0.0025, 0.005, 0.0075, *[0.01] * 37])


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match="warm-up of 40 steps is not shorter than the run of 40"):
        rates(FinetuneOptim(warmup_epochs=4))


@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor"])
def test_the_optimizers_are_torchs(name):
    """With the rates of every step, and a weight decay for weights alone."""
    torch.manual_seed(0)
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    x, y = torch.rand(8, 3), torch.rand(8, 2)
    options = FinetuneOptim(name=name, base_lr=0.05, scaled=False, weight_decay=0.1, schedule="constant")
    optimizer = build_optimizer(ours, options, 8)
    start_state(ours, optimizer)
    groups = [{"params": [theirs.weight], "weight_decay": 0.1}, {"params": [theirs.bias], "weight_decay": 0}]
    reference = {
        "adamw": lambda: torch.optim.AdamW(groups, 0.05, betas=(0.9, 0.999)),
        "sgd": lambda: torch.optim.SGD(groups, 0.05, momentum=0.9),
        "adafactor": lambda: torch.optim.Adafactor(groups, 0.05),
    }[name]()
    for _ in range(5):
        for module, opt in ((ours, optimizer), (theirs, reference)):
            opt.zero_grad()
            F.mse_loss(module(x), y).backward()
            opt.step()
    assert torch.allclose(ours.weight, theirs.weight, atol=1e-6)
    assert torch.allclose(ours.bias, theirs.bias, atol=1e-6)


# Depth 2: two optical blocks, one of radar, one joint. By name: how many blocks lie above.
JOINT = {
    "model.head.weight": 0,
    "model.joint.norm.weight": 0,
    "model.joint.blocks.0.mlp.fc1.weight": 0,
    "model.encoders.s1.blocks.0.mlp.fc1.weight": 1,
    "model.encoders.s2.norm.weight": 1,
    "model.encoders.s2.blocks.1.mlp.fc1.weight": 1,
    "model.encoders.s2.blocks.0.mlp.fc1.weight": 2,
    "model.encoders.s1.tokenizer.proj.weight": 2,
    "model.encoders.s2.tokenizer.proj.weight": 3,
}
OPTICAL = {
    "model.head.weight": 0,
    "model.embeddings.s2.mlp.fc1.weight": 0,
    "model.encoders.s2.norm.weight": 0,
    "model.encoders.s2.blocks.1.mlp.fc1.weight": 0,
    "model.encoders.s2.blocks.0.mlp.fc1.weight": 1,
    "model.encoders.s2.tokenizer.proj.weight": 2,
}


# SeaMo's sensors share their blocks; joint tokens have none of their own, and dates are joined at the top.
MIXED = {
    "model.head.weight": 0,
    "model.norm.weight": 0,
    "model.blocks.1.mlp.fc1.weight": 0,
    "model.blocks.0.mlp.fc1.weight": 1,
    "model.tokenizers.s2.proj.weight": 2,
    "model.tokenizers.s1.proj.weight": 2,
    "model.positions.table": 2,
}
SEAMO = {
    "model": "seamo_vit_tiny",
    "pretrained": False,
    "overrides": {"dim": 32, "depth": 2, "num_heads": 4, "temporal": True, "positions": "learned"},
}


def test_layer_decay_of_blocks_that_sensors_share():
    check_layer_decay(objective(sensors=("s2", "s1"), **SEAMO), MIXED)


@pytest.mark.parametrize(("sensors", "expected"), [(("s2", "s1"), JOINT), (("s2",), OPTICAL)])
def test_layer_decay_by_blocks_from_the_head_down(sensors, expected):
    check_layer_decay(objective(sensors=sensors), expected)


def check_layer_decay(module, expected):
    options = FinetuneOptim(base_lr=1.0, layer_decay=0.5, schedule="constant")
    optimizer = build_optimizer(module, options, 256)
    build_schedule(optimizer, options, steps=4, steps_per_epoch=4).step_update(1)
    names = {id(p): name for name, p in module.named_parameters()}
    found = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert found.keys() == {name for name, p in module.named_parameters() if p.requires_grad}
    assert {name: found[name] for name in expected} == {n: 0.5**below for n, below in expected.items()}


def test_a_frozen_backbone_trains_its_head_alone():
    module = objective(freeze=True)
    optimizer = build_optimizer(module, FinetuneOptim(), 256)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in trained} == {id(p) for p in module.model.head.parameters()}
    assert not module.model.encoders["s2"].training
    assert sum(p.requires_grad for p in module.parameters()) == 2


def test_soft_cross_entropy_of_hard_labels_is_cross_entropy():
    module, target = objective(), torch.tensor([0, 2, 1, 2])
    batch = batch_of(torch.eye(3)[target])
    out = module(batch)
    logits = module.model(batch.images)
    assert out["loss"].item() == pytest.approx(F.cross_entropy(logits, target).item(), rel=1e-5)
    assert out["accuracy"].item() == (logits.argmax(1) == target).float().mean().item()


def test_binary_cross_entropy_of_several_labels():
    module = objective("multilabel")
    target = torch.tensor([[1.0, 0, 1], [0, 0, 0]])
    batch = batch_of(target)
    p = module.model(batch.images).sigmoid()
    expected = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
    assert module(batch)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_ignored_pixels_add_nothing():
    module = objective("pixels")
    target = torch.randint(0, 2, (2, 16, 16), generator=torch.Generator().manual_seed(0))
    target[:, :4] = -1
    batch = batch_of(target)
    logits = module.model(batch.images)
    seen = F.cross_entropy(logits[:, :, 4:], target[:, 4:])
    assert module(batch)["loss"].item() == pytest.approx(seen.item(), rel=1e-5)


@pytest.mark.parametrize("labelled_rows", [(0, 1), (3, 0), (16, 2), (0, 0)])
def test_every_labelled_pixel_of_a_step_counts_the_same_whatever_pass_it_is_in(labelled_rows):
    """The mean over passes is torch's mean over the pixels of both, and so is its gradient."""
    module = objective("pixels")
    target = torch.randint(0, 2, (2, 16, 16), generator=torch.Generator().manual_seed(0))
    for image, rows in enumerate(labelled_rows):
        target[image, rows:] = -1
    whole = batch_of(target)
    passes = [replace(whole, images={"s2": whole.images["s2"][i : i + 1]}, target=target[i : i + 1])
              for i in range(2)]  # fmt: skip
    counted = normalize_by_global_pixels(passes, DistributedContext(0, 1, torch.device("cpu")))
    loss = sum(module(batch)["loss"] for batch in counted) / 2
    weights = list(module.model.head.parameters())
    found = torch.autograd.grad(loss, weights)
    if not sum(labelled_rows):
        assert loss.item() == 0
        assert all(not g.any() for g in found)
        return
    expected = F.cross_entropy(module.model(whole.images), target, ignore_index=-1)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for g, e in zip(found, torch.autograd.grad(expected, weights), strict=True):
        torch.testing.assert_close(g, e)


def test_change_is_a_negative_log_likelihood():
    module = objective("change")
    target = torch.randint(0, 2, (2, 16, 16), generator=torch.Generator().manual_seed(0))
    images = {"s2": torch.rand(2, 2, 4, 16, 16, generator=torch.Generator().manual_seed(1))}
    batch = LabelledBatch(images=images, bands={"s2": BANDS}, noise={}, target=target)
    log_probabilities = module.model(images)
    assert torch.allclose(log_probabilities.exp().sum(1), torch.ones(2, 16, 16), atol=1e-5)
    expected = F.nll_loss(log_probabilities, target)
    assert module(batch)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_drop_path_drops_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    x = torch.ones(20000, 2, 3)
    y = drop_path(x, 0.3, training=True)
    kept = y[:, 0, 0] > 0
    assert torch.equal(y, (kept[:, None, None] / 0.7).expand_as(y))
    assert kept.float().mean().item() == pytest.approx(0.7, abs=0.02)
    assert y.mean().item() == pytest.approx(1, abs=0.02)
    assert drop_path(x, 0.3, training=False) is x
    assert drop_path(x, 0.0, training=True) is x


def test_drop_path_rates_rise_with_depth():
    torch.manual_seed(0)
    model = rsb.create_model("croma_vit_tiny", overrides={"depth": 6, "dim": 32})
    images = {"s2": torch.rand(2, 12, 16, 16), "s1": torch.rand(2, 2, 16, 16)}
    before = model(images)
    names = list(model.state_dict())
    model.set_drop_path(0.2)
    assert [b.drop_path for b in model.encoders["s2"].blocks] == pytest.approx(
        [0, 0.04, 0.08, 0.12, 0.16, 0.2]
    )
    assert [b.drop_path for b in model.joint.blocks] == pytest.approx([0, 0.1, 0.2])
    assert list(model.state_dict()) == names
    assert torch.equal(model(images), before)  # in eval() nothing is dropped
    model.train()
    assert not torch.equal(model(images), before)
    model.set_drop_path(0)
    assert torch.equal(model(images), before)
    with pytest.raises(ValueError, match=r"in \[0, 1\), got 1"):
        model.set_drop_path(1)
