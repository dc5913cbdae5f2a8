"""Several processes: the same numbers as one, and what happens when one of them, or the launcher, fails."""

import json
import shutil
import signal

import pytest
import torch

from rsbackbones.train.engine.config_io import to_json
from rsbackbones.train.engine.distributed import DistributedContext
from rsbackbones.train.initialize import read_run
from rsbackbones.train.pretraining import pretrain
from tests.train import fomu_setup, mixmae_setup, s4_setup
from tests.train.ranks import steps_of
from tests.train.training import (
    DEADLINE,
    ENVIRONMENT,
    alive,
    assert_same,
    checkpoints,
    children,
    command,
    contents,
    curve,
    descendants,
    end,
    kill,
    run,
    small_recipe,
    start,
    steps_logged,
    wait_until,
    write_data,
)

COUNT = 6  # an epoch has 4
VARIANTS = {
    "ddp": {"parallel": "ddp"},
    "fsdp": {"parallel": "fsdp"},
    "ddp, activations checkpointed": {"parallel": "ddp", "activation_checkpointing": True},
    "fsdp, activations checkpointed": {"parallel": "fsdp", "activation_checkpointing": True},
    "ddp, 2 passes": {"parallel": "ddp", "accumulate": 2},
    "fsdp, 2 passes": {"parallel": "fsdp", "accumulate": 2},
}


ALTERNATING = {"auxmae": ("adamw", 1e-2), "auxmae, adafactor": ("adafactor", 1e-3), "mixmae": ("adamw", 1e-2)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return mixmae_setup.write_dated(write_data(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """An epoch is 4 steps."""
    return write_data(tmp_path_factory.mktemp("few"), pairs=12, optical=8)


def parallels(name):
    """Torch's Adafactor takes no sharded parameters."""
    return ("ddp",) if "adafactor" in name else ("ddp", "fsdp")


# BatchNorm is that of the global batch, of which some images are missing, in one pass.
S4 = {
    f"s4, {name}": {"steps": COUNT, "optim__base_lr": 1e-4, **options}
    for name, options in {
        "ddp": {},
        "fsdp, activations checkpointed": {"parallel": "fsdp", "activation_checkpointing": True},
        "negatives of the batch": {"objective__negatives": "batch"},
    }.items()
}


def alternating(data, name, **options):
    optimizer, lr = ALTERNATING[name]
    method = name.partition(",")[0]
    return mixmae_setup.small_recipe(
        data, method=method, optim__name=optimizer, optim__base_lr=lr, steps=COUNT, **options
    )


def fomu(folder):
    """The same pictures and oracle wherever they are."""
    return fomu_setup.small_recipe(fomu_setup.write_pictures(folder), steps=COUNT, optim__base_lr=0.003)


@pytest.fixture(scope="module")
def of_two(data, few, tmp_path_factory):
    """The steps of two processes, by variant, all from one launch."""
    folder = tmp_path_factory.mktemp("ranks")
    recipes = {name: to_json(small_recipe(few, epochs=8, **options)) for name, options in VARIANTS.items()}
    for name in ALTERNATING:
        for parallel in parallels(name):
            recipes[f"{name}, {parallel}"] = to_json(alternating(data, name, parallel=parallel))
    recipes["fomu"] = to_json(fomu(tmp_path_factory.getbasetemp() / "fomu"))
    series = s4_setup.write_set(tmp_path_factory.getbasetemp() / "s4")
    recipes |= {name: to_json(s4_setup.small_recipe(series, **S4[name])) for name in S4}
    # Contrast sees the negatives of one pass: two passes are those of one process with two passes.
    content = {"recipes": recipes, "count": COUNT, "results": str(folder / "results.json")}
    file = folder / "recipes.json"
    file.write_text(json.dumps(content))
    launch = command(small_recipe(data), folder / "unused.json", ranks=2)[:-2]
    run([*launch, "tests.train.ranks", str(file)], folder / "log")
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def of_one(few):
    alone = DistributedContext(0, 1, torch.device("cpu"))
    return {
        passes: steps_of(small_recipe(few, epochs=8, accumulate=passes), alone, COUNT) for passes in (1, 2)
    }


@pytest.mark.parametrize("name", VARIANTS)
def test_two_processes_compute_what_one_computes(of_one, of_two, name):
    losses, sums = of_one[VARIANTS[name].get("accumulate", 1)]
    theirs, their_sums = of_two[name]
    assert len(theirs) == COUNT
    torch.testing.assert_close(torch.tensor(theirs), torch.tensor(losses), rtol=0, atol=1e-5)
    assert their_sums == pytest.approx(sums, abs=1e-3)
    # Both kinds of batches were among them: pairs have contrast, and a far higher loss.
    assert min(loss for loss, _ in losses) < 2 < max(loss for loss, _ in losses)


@pytest.mark.parametrize("suffix", ["", ", activations checkpointed", ", 2 passes"])
def test_sharded_parameters_train_as_copied_ones(of_two, suffix):
    ddp, fsdp = of_two["ddp" + suffix], of_two["fsdp" + suffix]
    torch.testing.assert_close(torch.tensor(fsdp[0]), torch.tensor(ddp[0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ALTERNATING)
def test_tasks_that_alternate_are_those_of_one_process(data, of_two, name):
    alone = DistributedContext(0, 1, torch.device("cpu"))
    losses, sums = steps_of(alternating(data, name), alone, COUNT)
    for parallel in parallels(name):
        theirs, their_sums = of_two[f"{name}, {parallel}"]
        torch.testing.assert_close(torch.tensor(theirs), torch.tensor(losses), rtol=0, atol=1e-4)
        assert their_sums == pytest.approx(sums, abs=1e-3)


def test_groups_of_batch_norm_and_shuffled_keys_are_those_of_one_process(of_two, tmp_path):
    """FoMu-SSL: the sums are of the queue, the momentum encoder and the running statistics, too."""
    alone = DistributedContext(0, 1, torch.device("cpu"))
    losses, sums = steps_of(fomu(tmp_path / "fomu"), alone, COUNT)
    theirs, their_sums = of_two["fomu"]
    torch.testing.assert_close(torch.tensor(theirs), torch.tensor(losses), rtol=1e-3, atol=1e-3)
    assert {"queue.keys", "momentum_encoder.head.0.weight"} < set(sums)
    assert their_sums == pytest.approx(sums, abs=1e-3, rel=1e-3)


@pytest.mark.parametrize("name", S4)
def test_networks_of_series_are_those_of_one_process(of_two, tmp_path_factory, name):
    """Running statistics included; recomputed activations move them once."""
    alone = DistributedContext(0, 1, torch.device("cpu"))
    options = {k: v for k, v in S4[name].items() if k not in ("parallel", "activation_checkpointing")}
    series = tmp_path_factory.getbasetemp() / "s4"
    losses, sums = steps_of(s4_setup.small_recipe(series, **options), alone, COUNT)
    theirs, their_sums = of_two[name]
    torch.testing.assert_close(torch.tensor(theirs), torch.tensor(losses), rtol=1e-3, atol=1e-4)
    assert "backbone.second.first.norm.statistics.s1.running_var" in sums
    # BatchNorm takes away the bias before it: its gradient is rounding, of which Adam makes whole steps.
    kept = [name for name in sums if not name.endswith((".conv.bias", "convs.0.bias", "convs.1.bias"))]
    assert {n: their_sums[n] for n in kept} == pytest.approx({n: sums[n] for n in kept}, abs=1e-3, rel=1e-3)


def test_no_group_waits_longer_than_the_recipe_says(of_two):
    assert of_two["timeouts"] == [60, 60]


def test_passes_matter(of_one):
    """The control: one pass has other negatives than two."""
    assert abs(of_one[1][0][0][0] - of_one[2][0][0][0]) > 0.01


def test_another_number_of_processes_goes_on(data, tmp_path):
    def recipe(name, **options):
        return small_recipe(data, tmp_path / name, batch_size=12, save__every=6, epochs=3, **options)

    unbroken = tmp_path / "unbroken"
    pretrain(recipe("unbroken"))
    log = tmp_path / "log"
    for ranks, name in ((0, "one"), (2, "two")):
        arguments = command(recipe(name, max_steps=6, parallel="fsdp"), tmp_path / "recipe.json", ranks)
        run(arguments, log, fresh=ranks == 2)
    held = contents(tmp_path / "two", 6)
    for name, value in read_run(tmp_path / "two")[2].state_dict().items():  # without any process group
        assert torch.equal(value, held[f"/objective/{name}"])
    shutil.copytree(tmp_path / "two", tmp_path / "three")
    # The shards of two processes, read by one and by three; those of one, by two.
    for ranks, name in ((0, "two"), (3, "three"), (2, "one")):
        run(command(recipe(name, parallel="fsdp"), tmp_path / "recipe.json", ranks), log)
        assert "going on from step 6" in log.read_text()
        found, expected = curve(tmp_path / name), curve(unbroken)
        assert len(expected) == 15
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=0, atol=1e-5)
        losses = [torch.tensor(curve(tmp_path / n, "loss")) for n in (name, "unbroken")]
        assert (losses[0] - losses[1]).abs().max() < 2e-6


def test_what_ends_two_processes(data, tmp_path):
    """SIGTERM to a worker, to the launcher, kill -9 of the launcher, of a worker: nothing is lost."""

    def recipe(name):
        return small_recipe(
            data, tmp_path / name, epochs=12, data__workers=2, save__every=32, timeout=60, ema=0.9
        )

    out, log = tmp_path / "run", tmp_path / "log"
    run(command(recipe("unbroken"), tmp_path / "unbroken.json", ranks=2), tmp_path / "unbroken.log")

    def launch(steps, restarts=0):
        """Start, or go on, and return when so many more steps are logged."""
        before = steps_logged(out)
        process = start(command(recipe("run"), tmp_path / "run.json", 2, restarts=restarts), log)
        wait_until(lambda: steps_logged(out) >= before + steps, process, log)
        workers = children(process.pid)
        assert len(workers) == 2
        return process, workers, descendants(process.pid)

    def saved_and_gone(pids):
        """All processes end, and there is a checkpoint of the last step."""
        wait_until(lambda: not any(alive(pid) for pid in pids))
        last = steps_logged(out)
        name = f"step_{last:09d}"
        assert checkpoints(out)[-1] == name
        complete = json.loads((out / "checkpoints" / name / "complete.json").read_text())
        assert complete["step"] == last
        assert complete["world_size"] == 2
        assert last < 96

    process, workers, below = launch(5)
    kill(workers[1], signal.SIGTERM)
    assert process.wait(DEADLINE) == 0, log.read_text()
    saved_and_gone(below)

    process, workers, below = launch(5)
    process.terminate()
    assert process.wait(DEADLINE) == 1
    saved_and_gone(below)

    process, workers, below = launch(5)
    process.kill()
    process.wait()
    saved_and_gone(below)

    process, workers, below = launch(5, restarts=3)
    kill(workers[1])
    assert process.wait(DEADLINE) == 0, log.read_text()[-6000:]
    assert checkpoints(out)[-1] == "step_000000096"
    assert curve(out) == curve(tmp_path / "unbroken")
    assert_same(contents(out, 96), contents(tmp_path / "unbroken", 96))


def test_a_frozen_process_stops_the_others(data, tmp_path, monkeypatch):
    # It does not end when it is told to.
    monkeypatch.setitem(ENVIRONMENT, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "3")
    recipe = small_recipe(data, tmp_path / "run", epochs=1000, timeout=4)
    process = start(command(recipe, tmp_path / "recipe.json", ranks=2), tmp_path / "log")
    try:
        wait_until(lambda: steps_logged(tmp_path / "run") >= 3, process, tmp_path / "log")
        below = descendants(process.pid)
        kill(children(process.pid)[1], signal.SIGSTOP)
        # Without the recipe's timeout it would take the ten minutes that are the default.
        assert process.wait(DEADLINE) == 1
        assert not any(alive(pid) for pid in below)
    finally:
        end(process)
