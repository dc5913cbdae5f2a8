"""Checkpoints: going on is bit for bit the unbroken run, and nothing but whole checkpoints is ever used."""

import random
import resource
import shutil
from dataclasses import dataclass, fields, replace
from functools import partial

import numpy as np
import pytest
import torch

from rsbackbones.train.engine import train_step
from rsbackbones.train.engine.checkpoint import problem, rng_state, set_rng_state
from rsbackbones.train.engine.errors import TrainingError
from rsbackbones.train.objectives.croma import CromaObjective
from rsbackbones.train.pretraining import pretrain
from tests.train.training import (
    DEADLINE,
    assert_same,
    checkpoints,
    command,
    contents,
    curve,
    end,
    small_recipe,
    start,
    steps_logged,
    wait_until,
    write_data,
)

END = 10


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """An epoch is 4 steps."""
    return write_data(tmp_path_factory.mktemp("data"), pairs=12, optical=8)


def name_of(step):
    return f"step_{step:09d}"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"data__workers": 2, "save__asynchronous": False},
        {"ema": 0.9, "accumulate": 2, "precision": "bf16", "optim__name": "lion"},
    ],
    ids=["default", "workers", "precision"],
)
def test_going_on_is_the_unbroken_run(data, tmp_path, options):
    """Cut in the middle of the second epoch, at step 6 of 4 an epoch, and again at 7."""
    pretrain(small_recipe(data, tmp_path / "unbroken", max_steps=END, **options))
    for steps in (6, 7, END):
        summary = pretrain(small_recipe(data, tmp_path / "cut", max_steps=steps, **options))
        assert summary.step == steps
    assert len(curve(tmp_path / "unbroken")) == END
    assert curve(tmp_path / "cut") == curve(tmp_path / "unbroken")
    assert_same(contents(tmp_path / "cut", END), contents(tmp_path / "unbroken", END))


@dataclass(frozen=True, kw_only=True)
class WithDropout(CromaObjective):
    """An objective that uses the global generator, for pictures too."""

    def build(self, backbone):
        objective = super().build(backbone)
        objective.decoder.register_forward_hook(lambda _, __, out: torch.nn.functional.dropout(out, 0.1))
        return objective


def with_dropout(recipe):
    options = {field.name: getattr(recipe.objective, field.name) for field in fields(recipe.objective)}
    return replace(recipe, objective=WithDropout(**options))


@pytest.mark.parametrize("workers", [0, 2])
def test_going_on_with_dropout(data, tmp_path, workers, monkeypatch):
    def go(name, steps, every):
        options = {"max_steps": steps, "save__every": every, "data__workers": workers}
        torch.manual_seed(99)  # whatever the process did before
        pretrain(with_dropout(small_recipe(data, tmp_path / name, **options)))

    go("unbroken", END, 3)
    for steps in (3, 6, END):
        go("cut", steps, 1000)
    assert curve(tmp_path / "cut") == curve(tmp_path / "unbroken")
    assert_same(contents(tmp_path / "cut", END), contents(tmp_path / "unbroken", END))
    # The control: without the generators' states it would not be the same.
    go("other", 6, 1000)
    monkeypatch.setattr(train_step, "set_rng_state", lambda state, device: None)
    go("other", END, 1000)
    assert curve(tmp_path / "other")[:6] == curve(tmp_path / "unbroken")[:6]
    assert curve(tmp_path / "other")[6:] != curve(tmp_path / "unbroken")[6:]


def test_every_generator_is_restored():
    def draw():
        return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(()).item()

    random.seed(3)
    random.gauss(0, 1)  # holds a second number back
    np.random.seed(3)
    np.random.randn()
    torch.manual_seed(3)
    state = rng_state(torch.device("cpu"))
    expected = [draw() for _ in range(3)]
    assert [draw() for _ in range(3)] != expected
    set_rng_state(state, torch.device("cpu"))
    assert [draw() for _ in range(3)] == expected


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_newest_are_kept(data, tmp_path, asynchronous):
    options = {"save__every": 2, "save__keep": 3, "save__asynchronous": asynchronous, "max_steps": 9}
    pretrain(small_recipe(data, tmp_path / "run", **options))
    assert checkpoints(tmp_path / "run") == [name_of(6), name_of(8), name_of(9)]


@pytest.fixture(scope="module")
def four(data, tmp_path_factory):
    """A run of 8 steps with the checkpoints of 4, 6 and 8, and the same run unbroken to 10."""
    folder = tmp_path_factory.mktemp("four")
    for name, steps in (("run", 8), ("unbroken", 10)):
        pretrain(small_recipe(data, folder / name, save__every=2, save__keep=3, max_steps=steps))
    return folder


def go_on(data, out, **options):
    return pretrain(
        small_recipe(data, out, **({"save__every": 2, "save__keep": 3, "max_steps": 10} | options))
    )


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def largest(folder):
    return max(folder.glob("*.distcp"), key=lambda p: p.stat().st_size)


DAMAGES = {
    "a flipped byte": lambda c: flip(largest(c)),
    "a flipped byte of .metadata": lambda c: flip(c / ".metadata"),
    "cut short": lambda c: largest(c).write_bytes(largest(c).read_bytes()[:-10]),
    "empty": lambda c: largest(c).write_bytes(b""),
    "a file is missing": lambda c: largest(c).unlink(),
    "no .metadata": lambda c: (c / ".metadata").unlink(),
    "no complete.json": lambda c: (c / "complete.json").unlink(),
    "half of complete.json": lambda c: (c / "complete.json").write_text("{"),
    "another complete.json": lambda c: (c / "complete.json").write_text("[]"),
    "all files are missing": lambda c: [path.unlink() for path in c.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found(four, tmp_path, damage):
    folder = tmp_path / name_of(8)
    shutil.copytree(four / "run" / "checkpoints" / name_of(8), folder)
    assert problem(folder) is None
    DAMAGES[damage](folder)
    assert problem(folder)


@pytest.mark.parametrize("damage", ["a flipped byte", "no complete.json", "all files are missing"])
def test_a_damaged_checkpoint_is_passed_over(data, four, tmp_path, damage):
    out = tmp_path / "run"
    shutil.copytree(four / "run", out)
    DAMAGES[damage](out / "checkpoints" / name_of(8))
    with pytest.warns(UserWarning, match=f"{name_of(8)} is damaged.*trying the one before"):
        go_on(data, out)
    assert curve(out) == curve(four / "unbroken")  # the log begins again at 6, without lines twice
    assert_same(contents(out, 10), contents(four / "unbroken", 10))
    assert_same(contents(out, 8), contents(four / "unbroken", 8))  # written anew


def test_two_damaged_ones_and_all(data, four, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(four / "run", out)
    for step in (8, 6):
        flip(largest(out / "checkpoints" / name_of(step)))
    before = (out / "metrics.jsonl").read_text()
    broken = tmp_path / "broken"
    shutil.copytree(out, broken)
    flip(largest(broken / "checkpoints" / name_of(4)))
    with pytest.warns(UserWarning, match="trying the one before"):
        go_on(data, out)
    assert curve(out) == curve(four / "unbroken")
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(TrainingError, match=r"all checkpoints.*damaged"),
    ):
        go_on(data, broken)
    assert (broken / "metrics.jsonl").read_text() == before
    assert len(checkpoints(broken)) == 3


def test_damaged_ones_are_not_counted_among_the_kept(data, four, tmp_path):
    """With keep=1, going on from 6 because 8 is damaged: the one of 7 must not give way to that of 8."""
    out = tmp_path / "run"
    shutil.copytree(four / "run", out)
    flip(largest(out / "checkpoints" / name_of(8)))
    with pytest.warns(UserWarning, match="damaged"):
        go_on(data, out, save__keep=1, max_steps=7)
    assert checkpoints(out) == [name_of(7)]
    go_on(data, out, save__keep=1)
    assert curve(out) == curve(four / "unbroken")


def test_leftovers_are_ignored_and_removed(data, four, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(four / "run", out)
    folder = out / "checkpoints"
    shutil.copytree(folder / name_of(8), folder / (name_of(10) + ".tmp"))  # it even looks finished
    shutil.copytree(folder / name_of(6), folder / (name_of(2) + ".old.tmp"))
    (folder / (name_of(9) + ".tmp")).mkdir()
    strange = ["step_12", "step_0000000099", "step_000000012.bak", "latest", "step_00000001x"]
    for name in strange:
        (folder / name).mkdir()
    (folder / name_of(99)).write_text("no folder")
    (folder / "step_000000077.tmp").write_text("no folder")
    assert go_on(data, out).step == 10
    assert curve(out) == curve(four / "unbroken")
    left = {name for name in checkpoints(out) if name.endswith(".tmp")}
    assert left <= {"step_000000077.tmp"}
    assert set(strange) | {name_of(99), name_of(6), name_of(8), name_of(10)} <= set(checkpoints(out))


def test_a_changed_recipe_is_refused(data, four, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(four / "run", out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for key, value in {"seed": 1, "data.mixup": 0.1, "batch_size": 4, "optim.weight_decay": 0.5}.items():
        with pytest.raises(TrainingError, match=rf"another recipe \({key}: .* -> {value}\)"):
            go_on(data, out, **{key.replace(".", "__"): value})
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    go_on(data, out, data__workers=1, parallel="fsdp", save__asynchronous=False, timeout=50)
    assert curve(out) == curve(four / "unbroken")


def test_a_finished_run_stays_as_it_is(data, four):
    before = curve(four / "run"), checkpoints(four / "run")
    summary = go_on(data, four / "run", max_steps=8)
    assert (summary.status, summary.step) == ("finished", 8)
    assert (curve(four / "run"), checkpoints(four / "run")) == before


def test_a_last_line_that_was_cut_short_is_dropped(data, four, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(four / "run", out)
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "loss": 1.')
    go_on(data, out)
    assert curve(out) == curve(four / "unbroken")


def test_folders_that_cannot_be_used(data, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("text")
    with pytest.raises(TrainingError, match=r"not empty and not an rsbackbones run: it holds thesis\.txt"):
        pretrain(small_recipe(data, foreign))
    assert (foreign / "thesis.txt").read_text() == "text"
    with pytest.raises(TrainingError, match=r"cannot write to the output folder .*thesis\.txt"):
        pretrain(small_recipe(data, foreign / "thesis.txt" / "run"))
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "recipe.json").write_text("{}")
    with pytest.raises(TrainingError, match=r"recipe\.json"):
        pretrain(small_recipe(data, damaged))
    with pytest.raises(TrainingError, match="output=FOLDER"):
        pretrain(small_recipe(data))


def test_one_job_at_a_time(data, tmp_path):
    """A second process is refused while the first one runs, and not after it was killed."""
    out, log = tmp_path / "run", tmp_path / "log"
    recipe = small_recipe(data, out, epochs=1000, data__workers=1)
    first = start(command(recipe, tmp_path / "recipe.json"), log)
    try:
        wait_until(lambda: steps_logged(out) > 2, first, log)
        with pytest.raises(TrainingError, match=r"another job is running in .*; choose another"):
            pretrain(small_recipe(data, out, epochs=1000, data__workers=1, max_steps=1))
        assert first.poll() is None
    finally:
        first.kill()  # its loader worker lives on for a few seconds, and holds the lock
        first.wait()
    assert pretrain(small_recipe(data, out, epochs=1000, data__workers=1, max_steps=4)).step == 4
    end(first)


def test_a_disk_that_is_full_in_the_middle_of_a_save(data, four, tmp_path):
    """A limit on the size of files, in a process of its own: the write fails as on a full disk."""
    out, log = tmp_path / "run", tmp_path / "log"
    shutil.copytree(four / "run", out)
    size = largest(out / "checkpoints" / name_of(8)).stat().st_size
    for asynchronous in (True, False):
        recipe = small_recipe(
            data, out, save__every=2, save__keep=3, max_steps=10, save__asynchronous=asynchronous
        )
        process = start(
            command(recipe, tmp_path / "recipe.json"),
            log,
            limits=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size // 2, size // 2)),
        )
        assert process.wait(DEADLINE) == 2, log.read_text()
        assert f"cannot write a checkpoint to {out / 'checkpoints'}" in log.read_text()
        assert f"The newest whole one is {name_of(8)}; make room and run again" in log.read_text()
        assert checkpoints(out) == [name_of(4), name_of(6), name_of(8)]
    go_on(data, out)
    assert curve(out) == curve(four / "unbroken")
    assert_same(contents(out, 10), contents(four / "unbroken", 10))
