"""Momentum contrast on a CNN: what becomes of a momentum encoder, a queue and BatchNorm in a run."""

import json
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from rsbackbones.train.engine.config_io import to_json
from rsbackbones.train.engine.distributed import DistributedContext
from rsbackbones.train.engine.errors import TrainingError
from rsbackbones.train.engine.trainer import train
from tests.train.contrast import ContrastOptions, ContrastRun, Encoder, MomentumContrast, fit, full_state
from tests.train.training import contents, curve, run

ALONE = DistributedContext(0, 1, torch.device("cpu"))
GROUPED = {"batch_norm": "grouped", "batch_norm_group": 3}
# By name the options of runs of two processes; those of the run of one process that is to be equal.
TWO = {
    "sync ddp": {"batch_norm": "sync"},
    "sync fsdp": {"batch_norm": "sync", "parallel": "fsdp"},
    "sync fsdp, activations checkpointed": {
        "batch_norm": "sync", "parallel": "fsdp", "activation_checkpointing": True,
    },
    "grouped ddp": GROUPED,
    "grouped fsdp": {**GROUPED, "parallel": "fsdp"},
    "grouped ddp, 2 passes": {**GROUPED, "accumulate": 2},
}  # fmt: skip
# Runs of two processes that stop at a step and go on.
CUT = {
    "cut ddp": {"batch_norm": "sync"},
    "cut fsdp": {**GROUPED, "parallel": "fsdp"},
    "cut local": {"batch_norm": "local"},
}
BROKEN = {
    f"broken {name}": {**options, "poison": 5, "save": {"every": 1, "asynchronous": False}}
    for name, options in CUT.items()
}


def options_of(out, **changes):
    return ContrastOptions(output=out, **changes)


def held(out):
    return torch.load(out / "state.pt", weights_only=True)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """All runs of two processes, from one launch; their folders are named after them."""
    folder = tmp_path_factory.mktemp("two")
    runs = [
        to_json(options_of(folder / name, **options)) for name, options in {**TWO, "unbroken": {}}.items()
    ]
    for name, options in CUT.items():
        whole = options_of(folder / f"{name} unbroken", **options)
        stops = [options_of(folder / name, **options, max_steps=stop) for stop in (5, 6, None)]
        runs += [to_json(one) for one in (whole, *stops)]
    for name, options in BROKEN.items():
        runs.append({**to_json(options_of(folder / name)), **options, "output": str(folder / name)})
    file = folder / "runs.json"
    file.write_text(json.dumps(runs))
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    run(
        [sys.executable, *launch, "--rdzv-endpoint=localhost:0", "-m", "tests.train.contrast", str(file)],
        folder / "log",
    )
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The runs of one process, made when they are asked for."""
    folder, made = tmp_path_factory.mktemp("one"), {}

    def get(**changes):
        key = json.dumps(changes, sort_keys=True)
        if key not in made:
            made[key] = folder / str(len(made))
            fit(options_of(made[key], **changes), ALONE)
        return made[key]

    return get


def test_a_step_is_that_of_a_plain_loop():
    """Torch's own BatchNorm, one process, no engine: losses, momentum encoder, queue and averages."""
    engine = ContrastRun(ContrastOptions(), ALONE)
    torch.manual_seed(0)
    plain = MomentumContrast().train()
    trained = [p for p in plain.parameters() if p.requires_grad]
    assert {id(p) for group in engine.optimizer.param_groups for p in group["params"]} == {
        id(p) for p in engine.objective.encoder.parameters()
    }
    queue, momentum = (
        plain.queue.clone(),
        {n: p.clone() for n, p in plain.momentum_encoder.named_parameters()},
    )
    averages = {n: x.double() for n, x in plain.state_dict().items()}
    decay = [p for p in trained if p.ndim > 1]
    rest = [p for p in trained if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": rest, "weight_decay": 0.0}, {"params": decay, "weight_decay": 0.01}], lr=1e-3
    )
    for number, batch in enumerate(engine.batches(0, 6)):
        parts, norm = engine.forward_backward([batch])
        lr = engine.update([batch], engine.step(number), norm)
        for group in optimizer.param_groups:
            group["lr"] = lr
        query = plain.encoder(batch.views["query"]["rgb"])
        key = plain.momentum_encoder(batch.views["key"]["rgb"]).detach()
        logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue.T], dim=1) / 0.2
        loss = F.cross_entropy(logits, torch.zeros(12, dtype=torch.int64))
        torch.testing.assert_close(parts["loss"], loss.detach(), rtol=0, atol=1e-5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for name, p in plain.momentum_encoder.named_parameters():
                momentum[name] = 0.9 * momentum[name] + 0.1 * plain.encoder.get_parameter(name)
                p.copy_(momentum[name])
            for i in range(12):
                queue[(12 * number + i) % 32] = key[i]
            plain.queue.copy_(queue)
            plain.position.fill_(12 * (number + 1))
        for name, x in plain.state_dict().items():
            averages[name] = 0.8 * averages[name] + 0.2 * x if x.is_floating_point() else x.clone()
    for name, value in engine.objective.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=0, atol=1e-4, msg=name)
        torch.testing.assert_close(
            engine.ema.averages[name].double(), averages[name].double(), rtol=0, atol=1e-4, msg=name
        )
    assert engine.objective.encoder.layers[0].norm.num_batches_tracked == 6
    assert not torch.equal(engine.ema.averages["queue"], engine.objective.queue)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("changes", [{}, {"batch_norm": "sync", "accumulate": 2}, GROUPED])
def test_going_on_is_the_unbroken_run(one, tmp_path, changes, asynchronous):
    whole = one(**changes)
    save = replace(ContrastOptions().save, asynchronous=asynchronous)
    for stop in (5, 6, None):
        train(ContrastRun(options_of(tmp_path / "run", **changes, save=save, max_steps=stop), ALONE))
    assert curve(tmp_path / "run") == curve(whole)
    found, expected = contents(tmp_path / "run", 12), contents(whole, 12)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], x) for name, x in expected.items())
    for prefix in ("/objective", "/ema"):  # a queue, a copy without gradients, statistics and counters
        for name in ("queue", "position", "momentum_encoder.head.1.running_var",
                     "encoder.layers.0.norm.num_batches_tracked"):  # fmt: skip
            assert f"{prefix}/{name}" in found
    assert found["/objective/position"] == 12 * 12
    assert not any("momentum_encoder" in name for name in found if name.startswith("/optimizer"))


@pytest.mark.parametrize("name", TWO)
def test_two_processes_compute_what_one_computes(two, one, name):
    options = {k: v for k, v in TWO[name].items() if k not in ("parallel", "activation_checkpointing")}
    whole = one(**options)
    torch.testing.assert_close(
        torch.tensor(curve(two / name, "loss", "agreement", "grad_norm")),
        torch.tensor(curve(whole, "loss", "agreement", "grad_norm")), rtol=0, atol=2e-4,
    )  # fmt: skip
    found, expected = held(two / name), held(whole)["state"]
    assert found["state"].keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found["state"][key], value, rtol=0, atol=1e-3, msg=key)
    mine, others = found["buffers"]
    assert all(torch.equal(mine[key], others[key]) for key in mine)


def test_the_statistics_of_a_process_alone_are_others(two, one):
    """The control."""
    apart = torch.tensor(curve(two / "unbroken", "loss")) - torch.tensor(curve(one(), "loss"))
    assert apart.abs().max() > 1e-2


@pytest.mark.parametrize("name", CUT)
def test_two_processes_go_on_as_the_unbroken_run(two, name):
    assert curve(two / name) == curve(two / f"{name} unbroken")
    assert len(curve(two / name)) == 12
    found, expected = held(two / name), held(two / f"{name} unbroken")
    for key, value in expected["state"].items():
        assert torch.equal(found["state"][key], value), key
    # What was saved last is what all processes have.
    for buffers in (found["buffers"], expected["buffers"]):
        assert all(torch.equal(buffers[0][key], buffers[1][key]) for key in buffers[0])


@pytest.mark.parametrize("name", BROKEN)
def test_a_refused_step_changes_nothing_on_any_process(two, name):
    """One of two processes has the image that is not a number."""
    out = two / name
    found = held(out)
    assert "not finite at step" in found["error"]
    step = len(curve(out))
    assert 4 <= step < 8
    saved = contents(out, step)
    assert saved["/objective/position"] == 12 * step
    for key, value in found["state"].items():
        assert torch.equal(value, saved[f"/objective/{key}"]), key
    if "local" not in name:  # statistics of a process's own are the first one's when they are saved
        assert all(
            torch.equal(found["buffers"][0][key], found["buffers"][1][key]) for key in found["buffers"][0]
        )


@pytest.mark.parametrize("mode", [{}, {"batch_norm": "sync"}, GROUPED, {"activation_checkpointing": True}])
def test_a_refused_step_changes_nothing(mode):
    made = ContrastRun(ContrastOptions(**mode), ALONE)
    batches = list(made.batches(0, 3))
    for number, batch in enumerate(batches[:2]):
        _, norm = made.forward_backward([batch])
        made.update([batch], made.step(number), norm)
    before, averages = full_state(made), {n: x.clone() for n, x in made.ema.averages.items()}
    batches[2].views["query"]["rgb"][0, 0, 0, 0] = float("nan")
    parts, _ = made.forward_backward([batches[2]])
    assert not parts["loss"].isfinite()
    assert not made.objective.encoder.layers[0].norm.running_mean.isfinite().all()  # forward has changed it
    made.discard()
    assert all(torch.equal(value, before[name]) for name, value in full_state(made).items())
    assert all(torch.equal(value, averages[name]) for name, value in made.ema.averages.items())
    assert all(p.grad is None for p in made.objective.parameters())


def test_a_run_that_is_refused_leaves_the_last_checkpoint(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(TrainingError, match="parameters and buffers are unchanged"):
        train(ContrastRun(options_of(out, poison=5, save=replace(ContrastOptions().save, every=1)), ALONE))
    assert 4 <= len(curve(out)) < 8


def test_activation_checkpointing_takes_a_batch_into_the_statistics_once(one):
    assert curve(one(activation_checkpointing=True)) == curve(one())
    found, expected = held(one(activation_checkpointing=True))["state"], held(one())["state"]
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("option", ["activation_checkpointing", "compile"])
def test_a_module_without_units_is_not_treated_as_if_it_had_some(option, monkeypatch):
    monkeypatch.setattr(MomentumContrast, "units", lambda self: [])
    with pytest.raises(
        TrainingError,
        match=rf"{option}=true applies to the units .* MomentumContrast\.units\(\) returns none",
    ):
        ContrastRun(ContrastOptions(**{option: True}), ALONE)


def test_a_momentum_encoder_is_in_the_state_and_not_in_the_optimizer():
    made = ContrastRun(ContrastOptions(), ALONE)
    names = set(made.objective.state_dict())
    assert {f"momentum_encoder.{name}" for name in Encoder().state_dict()} <= names
    state = made.state(1)
    assert set(state["optimizer"]["state"]) == {f"encoder.{name}" for name, _ in Encoder().named_parameters()}
    assert set(state["ema"]) == names
