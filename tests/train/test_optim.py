"""The optimizer, its schedule, and the moving average, against plain formulas."""

import math
from typing import get_args, get_type_hints

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import rsbackbones as rsb
from rsbackbones.integrations.timm import TimmEncoder
from rsbackbones.layers.position_table import LearnedPositions
from rsbackbones.train.engine.config import OptimOptions
from rsbackbones.train.engine.distributed import DistributedContext
from rsbackbones.train.engine.ema import ParameterEma
from rsbackbones.train.engine.errors import TrainingError
from rsbackbones.train.engine.module import TrainModule
from rsbackbones.train.engine.optim import build_optimizer, build_schedule, start_state
from rsbackbones.train.finetune.optim import build_optimizer as finetune_optimizer
from rsbackbones.train.finetune.recipe import FinetuneOptim
from rsbackbones.train.initialize import build_objective
from rsbackbones.train.objectives.decoder import Decoder
from rsbackbones.train.pretraining import PretrainRun, pretrain
from tests.models.toy_series import ToySeries, ToySeriesConfig
from tests.train.training import curve, small_recipe, write_data

ALONE = DistributedContext(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def plain_lr(step, steps, warmup, top):
    """Of the step, counted from 0: up in equal parts to ``top``, then half a cosine toward zero."""
    if step < warmup:
        return top * (step + 1) / warmup
    return top * 0.5 * (1 + math.cos(math.pi * (step + 1 - warmup) / (steps - warmup + 1)))


@pytest.mark.parametrize(
    ("steps", "share"), [(40, 0.05), (40, 0.2), (40, 0.0), (7, 0.99), (1, 0.05), (3, 0.4)]
)
def test_the_rate_of_every_step(steps, share):
    options = OptimOptions(base_lr=0.3, warmup=share)
    module = torch.nn.Linear(2, 2)
    optimizer = build_optimizer(module, options, batch_size=128)
    schedule = build_schedule(optimizer, options, steps)
    warmup = round(share * steps)
    found = []
    for step in range(steps):
        schedule.step_update(step + 1)
        found.append({group["lr"] for group in optimizer.param_groups})
    expected = [plain_lr(step, steps, warmup, 0.15) for step in range(steps)]
    assert [rates.pop() for rates in found] == pytest.approx(expected)
    assert not any(found)  # one rate for all groups
    assert min(expected) > 0
    if warmup:
        assert expected[warmup - 1] == max(expected) == pytest.approx(0.15)


def test_a_run_takes_these_rates(data, tmp_path):
    recipe = small_recipe(data, tmp_path / "run", epochs=2, optim__warmup=0.25)
    pretrain(recipe)
    expected = [plain_lr(step, 16, 4, 1e-2 * 8 / 256) for step in range(16)]
    assert [lr for (lr,) in curve(tmp_path / "run", "lr")] == pytest.approx(expected)


def test_what_decays(data):
    objective = build_objective(small_recipe(data))
    optimizer = build_optimizer(objective, OptimOptions(weight_decay=0.3), batch_size=8)
    names = {p: name for name, p in objective.named_parameters()}
    by_decay = {g["weight_decay"]: {names[p] for p in g["params"]} for g in optimizer.param_groups}
    assert set(by_decay) == {0.0, 0.3}
    assert by_decay[0.0] | by_decay[0.3] == {n for n, p in objective.named_parameters() if p.requires_grad}
    spared = by_decay[0.0]
    assert {n for n in names.values() if n.endswith("bias") or "norm" in n} <= spared
    assert any("token" in n for n in spared)
    assert any("temperature" in n or "scale" in n for n in spared)
    assert all("weight" in n and "norm" not in n for n in by_decay[0.3])
    assert any("attn" in n or "qkv" in n for n in by_decay[0.3])


def decayed(optimizer, module):
    names = {p: name for name, p in module.named_parameters()}
    return {names[p] for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}


def test_what_a_family_exempts_does_not_decay():
    """Tokens of another name, and a position table; in pretraining, fine-tuning and timm."""

    class Own(ToySeries):
        def __init__(self, config):
            super().__init__(config)
            self.registers = torch.nn.Parameter(torch.zeros(2, 4, 8))
            self.season_positions = LearnedPositions((2, 2), 8)

        def no_weight_decay(self):
            return super().no_weight_decay() | {"registers"}

    class Trained(TrainModule):
        def __init__(self):
            super().__init__()
            self.decoder = Decoder(8, 2, 4, dim=16, depth=1, num_heads=2)
            self.backbone = Own(ToySeriesConfig(width=8))

    module = Trained()
    named = {"registers", "season_positions.table"}
    assert module.backbone.no_weight_decay() == named
    exempt = {f"backbone.{name}" for name in named} | {"decoder.mask_token"}
    assert module.no_weight_decay() == exempt
    decaying = {n for n, p in module.named_parameters() if p.ndim > 1} - exempt
    assert decayed(build_optimizer(module, OptimOptions(weight_decay=0.1), 8), module) == decaying
    assert decayed(
        finetune_optimizer(module, FinetuneOptim(weight_decay=0.1, layer_decay=1.0), 8), module
    ) == (decaying)
    encoder = TimmEncoder.__new__(TimmEncoder)
    torch.nn.Module.__init__(encoder)
    encoder.backbone = module.backbone
    assert encoder.no_weight_decay() == exempt - {"decoder.mask_token"}


@pytest.mark.parametrize("model", ["croma_vit_tiny", "seamo_vit_tiny"])
@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_no_tokens_and_tables_of_the_zoo_decay(model, positions):
    """By their names: whatever ends in token or table is exempt, and nothing else."""
    if (model, positions) == ("croma_vit_tiny", "learned"):
        positions = "peg"
    backbone = rsb.create_model(model, overrides={"positions": positions})
    expected = {n for n, _ in backbone.named_parameters() if n.endswith(("token", "positions.table"))}
    assert backbone.no_weight_decay() == expected
    assert bool(expected) == (positions == "learned")


def trained(options, with_start, steps=6):
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.LayerNorm(7), torch.nn.Linear(7, 3))
    before = [p.detach().clone() for p in module.parameters()]
    optimizer = build_optimizer(module, options, batch_size=256)
    if with_start:
        start_state(module, optimizer)
        assert all(torch.equal(p, b) for p, b in zip(module.parameters(), before, strict=True))
        assert len(optimizer.state) == len(before)
        assert not any(value.any() for state in optimizer.state.values() for value in state.values())
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        module(torch.rand(4, 5, generator=generator)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    after = [p.detach().clone() for p in module.parameters()]
    assert not any(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    return after


@pytest.mark.parametrize("name", get_args(get_type_hints(OptimOptions)["name"]))
def test_beginning_with_a_state_changes_nothing(name):
    options = OptimOptions(name=name, base_lr=1e-2, weight_decay=0.1)
    for with_state, without in zip(trained(options, True), trained(options, False), strict=True):
        assert torch.equal(with_state, without)


def test_adafactor_takes_steps_relative_to_the_size_of_a_parameter():
    """At step t min(rate, 1 / sqrt(t)) of the root mean square: Shazeer and Stern, 2018, algorithm 4."""
    weight = torch.nn.Parameter(torch.full((4, 3), 2.0))
    module = torch.nn.Module()
    module.weight = weight
    options = OptimOptions(
        name="adafactor", base_lr=0.5, scaled=False, weight_decay=0, warmup=0, schedule="constant"
    )
    optimizer = build_optimizer(module, options, 4096)
    schedule = build_schedule(optimizer, options, 9)
    for step in range(1, 10):
        schedule.step_update(step)
        before = weight.detach().clone()
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        moved = (before - weight).abs() / before.square().mean().sqrt()
        assert moved.flatten().tolist() == pytest.approx([min(0.5, step**-0.5)] * 12, rel=1e-4)


def test_adafactor_refuses_sharded_parameters():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        module = torch.nn.Linear(4, 4)
        fully_shard(module, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(TrainingError, match=r"adafactor cannot train sharded parameters.*parallel=ddp"):
            build_optimizer(module, OptimOptions(name="adafactor"), 8)
    finally:
        dist.destroy_process_group()


def test_the_moving_average_is_that_of_a_plain_loop(data):
    recipe = small_recipe(data, ema=0.8)
    run = PretrainRun(recipe, ALONE)
    expected = {name: p.detach().double().clone() for name, p in run.objective.named_parameters()}
    for step, batch in enumerate(run.batches(0, 6)):
        _, norm = run.forward_backward([batch])
        run.update([batch], run.step(step), norm)
        for name, p in run.objective.named_parameters():
            expected[name] = 0.8 * expected[name] + 0.2 * p.detach().double()
    assert run.ema is not None
    for name, average in run.ema.averages.items():
        torch.testing.assert_close(average.double(), expected[name], rtol=0, atol=1e-6)
    moved = [not torch.equal(run.ema.averages[n], p) for n, p in run.objective.named_parameters()]
    assert sum(moved) > 50


def test_an_average_of_decay_zero_is_the_parameters():
    module = torch.nn.Linear(2, 2)
    ema = ParameterEma(module, 0.0)
    with torch.no_grad():
        module.weight.add_(1)
    ema.update()
    assert torch.equal(ema.averages["weight"], module.weight)


def test_gradients_are_clipped_to_the_norm_that_is_asked_for(data):
    """The first step of gradient descent with Nesterov's momentum of 0.9 is 1.9 gradients long."""
    options = {"name": "sgd", "weight_decay": 0.0, "clip_grad": 0.5, "warmup": 0.0}
    run = PretrainRun(
        small_recipe(data, **{f"optim__{name}": value for name, value in options.items()}), ALONE
    )
    before = [p.detach().clone() for p in run.objective.parameters()]
    batch = next(run.batches(0, 1))
    _, norm = run.forward_backward([batch])
    assert norm > 0.5
    lr = run.update([batch], run.step(0), norm)
    moved = sum((p - b).square().sum() for p, b in zip(run.objective.parameters(), before, strict=True))
    assert moved.sqrt().item() / lr == pytest.approx(1.9 * 0.5, rel=1e-3)
