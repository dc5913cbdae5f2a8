"""Runs of three stages: each begins with the one before, and goes on where it was."""

import json
import shutil
import sys

import pytest
import torch

from rsbackbones.train import TrainingError, pretrain
from rsbackbones.train.dry_run import dry_run
from rsbackbones.train.engine.distributed import DistributedContext
from rsbackbones.train.engine.trainer import train
from rsbackbones.train.export import export
from rsbackbones.train.initialize import read_run
from rsbackbones.train.pretraining import PretrainRun, stages_of
from tests.train.training import assert_same, command, contents, curve, run, small_recipe, write_data

ALONE = DistributedContext(0, 1, torch.device("cpu"))
# Steps of the stages; an epoch has 6, of the second, with larger batches, 3.
STEPS = (6, 3, 12)
FOLDERS = ("stage_1", "stage_2", ".")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), pairs=16, optical=16)


def recipe_of(data, out=None, **changes):
    stages = [
        {"epochs": 1, "objective": {"mask_ratio_s2": 0.25}},
        {"epochs": 1, "batch_size": 16, "seed": 4},
        {"epochs": 2, "optim": {"base_lr": 1e-3}},
    ]
    return small_recipe(data, out, **({"stages": stages, "ema": 0.5} | changes))


@pytest.fixture(scope="module")
def unbroken(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken") / "run"
    summary = pretrain(recipe_of(data, out))
    assert (summary.status, summary.step, summary.output) == ("finished", STEPS[2], str(out))
    return out


def test_each_stage_begins_with_the_average_of_the_one_before(data, unbroken):
    assert [len(curve(unbroken / folder)) for folder in FOLDERS] == list(STEPS)
    for i in (1, 2):
        before = contents(unbroken / FOLDERS[i - 1], STEPS[i - 1])
        out = unbroken.with_name("other")  # where nothing has begun yet
        shutil.copytree(unbroken, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("checkpoints"))
        for folder in FOLDERS[:i]:
            shutil.copytree(
                unbroken / folder / "checkpoints", out / folder / "checkpoints", dirs_exist_ok=True
            )
        begun = stages_of(recipe_of(data, out))[i].build(ALONE)
        shutil.rmtree(out)
        assert begun.beginning == f"begins with the weights of stage_{i}, step {STEPS[i - 1]}; new: nothing"
        for name, value in begun.objective.state_dict().items():
            assert torch.equal(value, before[f"/ema/{name}"])
            if value.is_floating_point() and value.numel() > 1000:
                assert not torch.equal(value, before[f"/objective/{name}"])
    saved = [json.loads((unbroken / folder / "recipe.json").read_text())["recipe"] for folder in FOLDERS]
    assert [len(one["stages"]) for one in saved] == [0, 0, 3]  # the last one's is the whole recipe
    assert [one["batch_size"] for one in saved[:2]] == [8, 16]
    assert [one["objective"]["mask_ratio_s2"] for one in saved] == [0.25, 0.75, 0.75]


@pytest.mark.parametrize("stops", [(3, 7, 8, 11), (6, 9, 10), (9, 9, 21)])
def test_a_run_goes_on_in_the_stage_that_it_was_in(data, unbroken, tmp_path, stops):
    """``max_steps`` counts the steps of all stages."""
    out = tmp_path / "run"
    for stop in stops:
        summary = pretrain(recipe_of(data, out, max_steps=stop))
        at = [min(max(stop - before, 0), steps) for before, steps in zip((0, 6, 9), STEPS, strict=True)]
        index = max(i for i, steps in enumerate(at) if steps)
        assert (summary.step, summary.total_steps) == (at[index], STEPS[index])
        assert summary.output == str((out / FOLDERS[index]).resolve() if index < 2 else out)
        logged = [(out / folder / "metrics.jsonl").exists() for folder in FOLDERS]
        assert logged == [steps > 0 for steps in at]
    assert pretrain(recipe_of(data, out)).step == STEPS[2]
    for folder, steps in zip(FOLDERS, STEPS, strict=True):
        assert curve(out / folder) == curve(unbroken / folder)
        assert_same(contents(out / folder, steps), contents(unbroken / folder, steps))


def test_what_is_wrong_with_a_later_stage_is_said_before_the_first_trains(data, tmp_path):
    out = tmp_path / "run"
    for changes, message in (
        ({"stages__2__data": {"root": "/nowhere"}}, "nowhere"),
        ({"stages__1__data": {"size": 20}}, "multiple of the patch|multiple"),
        ({"stages__1__overrides": {"num_heads": 8}}, "stage 1 and stage 2 differ in num_heads"),
        ({"stages__2__overrides": {"num_heads": 2}}, "stage 2 and stage 3 differ in num_heads"),
    ):
        with pytest.raises(ValueError, match=message):
            pretrain(recipe_of(data, out, **changes))
        assert not list(out.glob("**/checkpoints"))


def test_a_stage_that_is_gone(data, tmp_path):
    out = tmp_path / "run"
    pretrain(recipe_of(data, out, max_steps=7))
    shutil.rmtree(out / "stage_1")
    with pytest.raises(
        TrainingError, match=r"stage_1/summary\.json does not state .* Restore stage_1, or leave"
    ):
        pretrain(recipe_of(data, out, max_steps=8))
    assert pretrain(recipe_of(data, out)).status == "finished"
    with pytest.raises(TrainingError, match=r"another recipe \(stages\.0\.epochs: 1 -> 3"):
        pretrain(recipe_of(data, out, stages__0__epochs=3))


def test_a_dry_run_and_exports_of_all_stages(data, unbroken, tmp_path, capsys):
    dry_run(recipe_of(data, tmp_path / "run"), ALONE, sys.stdout)
    said = capsys.readouterr().out
    assert [said.count(f"stage {i}:") for i in (1, 2, 3, 4)] == [1, 1, 1, 0]
    assert not (tmp_path / "run").exists()
    for folder, steps in zip(FOLDERS, STEPS, strict=True):
        _, _, objective, step = read_run(unbroken / folder)
        assert step == steps
        held = contents(unbroken / folder, steps)
        assert all(torch.equal(x, held[f"/ema/{n}"]) for n, x in objective.state_dict().items())
    (entry,) = json.loads(export(unbroken, tmp_path / "w", tag="three").read_text())["weights"]
    for what in ("stage 1, 6 steps of 8,", "Then stage 2, 3 steps of 16,", "Then stage 3, 12 steps of 8,"):
        assert what in entry["provenance"]


def test_a_run_that_is_built_is_trained_as_it_is(data, tmp_path):
    """What has no recipe at all, or one stage of one."""
    recipe = small_recipe(data, tmp_path / "run", max_steps=3)
    assert train(PretrainRun(recipe, ALONE)).step == 3
    pretrain(small_recipe(data, tmp_path / "other", max_steps=3))
    assert curve(tmp_path / "run") == curve(tmp_path / "other")
    with pytest.raises(TrainingError, match="several stages is built stage by stage"):
        PretrainRun(recipe_of(data), ALONE)
    with pytest.raises(TrainingError, match="no output folder"):
        train(PretrainRun(small_recipe(data), ALONE))


def test_two_processes_go_through_all_stages(data, unbroken, tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    for ranks, stop in ((2, 7), (0, 10), (2, None)):
        run(command(recipe_of(data, out, max_steps=stop), tmp_path / "recipe.json", ranks), log)
    for folder in FOLDERS:
        torch.testing.assert_close(
            torch.tensor(curve(out / folder)), torch.tensor(curve(unbroken / folder)), rtol=0, atol=1e-4
        )
