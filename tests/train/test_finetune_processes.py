"""Fine-tuning in real processes: killed and gone on with, and two that compute what one computes."""

import json
import sys

import pytest
import torch

from rsbackbones.train.engine.config_io import to_json
from rsbackbones.train.finetune import finetune, load_finetuned
from tests.train.finetune_setup import DENSE, labelled, saved, seamo_with_block, small_recipe, sparsely
from tests.train.test_finetune import evaluations
from tests.train.training import curve, end, run, start, steps_logged, wait_until


def command(recipe, file, ranks=0):
    """The command of a run, its recipe saved to ``file``; ``ranks`` 0 is without a launcher."""
    file.write_text(json.dumps(to_json(recipe)))
    launcher = [sys.executable]
    if ranks:
        launcher += ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}",
                     "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]  # fmt: skip
    return [*launcher, "-m", "rsbackbones.train.finetune", f"recipe={file}"]


@pytest.mark.parametrize("task", ["classes", "change"])
def test_a_killed_run_goes_on_to_the_same_numbers(task, tmp_path):
    """By kill -9 in the first epochs, and once more; with drop path, mixing and loader processes."""
    data = labelled(task, count=48)
    file = saved(data, tmp_path / "small.npz")
    options = {"epochs": 12, "drop_path": 0.3, "workers": 2, **(DENSE if task == "change" else {})}
    unbroken = finetune(small_recipe(tmp_path / "unbroken", data=str(file), **options))
    out, log = tmp_path / "run", tmp_path / "log"
    arguments = command(small_recipe(out, data=str(file), **options), tmp_path / "recipe.json")
    for more in (4, 9):
        before = steps_logged(out)
        process = start(arguments, log)
        try:
            wait_until(lambda now=before + more: steps_logged(out) >= now, process, log)
        finally:
            end(process)
        assert not (out / "result.json").exists()
    run(arguments, log, fresh=task == "classes")
    assert log.read_text().count("going on from step") >= 1
    assert curve(out) == curve(tmp_path / "unbroken")
    assert evaluations(out) == evaluations(tmp_path / "unbroken")
    result = json.loads((out / "result.json").read_text())
    assert result["metrics"] == unbroken["metrics"]
    assert result["model"]["sha256"] == unbroken["model"]["sha256"]


def of_task(task, folder):
    """A saved set, and the options of its runs.

    ``few pixels``: an image has as many labelled rows as its number, so that processes and passes have
    unequal numbers of labels.
    """
    sensors = ("s2", "s1") if task == "classes" else ("s2",)
    data = labelled(task.split()[-1], count=28, sensors=sensors)
    file = saved(sparsely(data) if task == "few pixels" else data, folder / f"{task}.npz")
    return {"data": str(file), "batch_size": 8, **({} if task == "classes" else DENSE)}


UPERNET = {"head": "upernet", "head_options": {"width": 16}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of all runs of two processes, from one launch, and the options of each by its name.

    Statistics of BatchNorm are shared at a small rate: rounding grows where they are of the few pixels of a
    pooled map.
    """
    folder = tmp_path_factory.mktemp("two")
    classes, pixels, few = (of_task(task, folder) for task in ("classes", "pixels", "few pixels"))
    block = {**seamo_with_block(folder), "epochs": 4}
    options = {
        "classes": {**classes, "epochs": 6},
        "few pixels": {**few, "epochs": 6},
        "seamo, classes": {**classes, **block},
        "seamo, pixels": {**pixels, **block},
        "upernet": {**pixels, **UPERNET, "epochs": 8, "evaluate_every": 2},
        "upernet, sync": {**pixels, **UPERNET, "epochs": 4, "optim__base_lr": 1e-3},
    }
    of_two = {
        name: {**chosen, "batch_norm": "sync"} if "sync" in name else chosen
        for name, chosen in options.items()
    }
    of_two |= {
        f"{name}, two passes": {**options[name], "accumulate": 2} for name in ("classes", "few pixels")
    }
    recipes = [to_json(small_recipe(folder / name, **chosen)) for name, chosen in of_two.items()]
    file = folder / "recipes.json"
    file.write_text(json.dumps(recipes))
    launch = command(small_recipe(), folder / "unused.json", ranks=2)[:-2]
    run([*launch, "tests.train.finetune_ranks", str(file)], folder / "log")
    return folder, options


@pytest.mark.parametrize("task", ["classes", "few pixels"])
def test_two_processes_compute_what_one_computes(task, runs, tmp_path):
    """Losses, norms, evaluations and the model, at the same global batch; two passes each, too."""
    folder, options = runs
    alone = finetune(small_recipe(tmp_path / "one", **options[task]))
    one, held = torch.tensor(curve(tmp_path / "one")), load_finetuned(tmp_path / "one" / "best").state_dict()
    assert len(one) == 6 * (14 // 8)
    for out in (folder / task, folder / f"{task}, two passes"):
        torch.testing.assert_close(torch.tensor(curve(out)), one, rtol=0, atol=2e-5)
        result = json.loads((out / "result.json").read_text())
        assert result["processes"] == 2
        assert result["metrics"] == pytest.approx(alone["metrics"], abs=1e-3)
        found = load_finetuned(out / "best").state_dict()
        for key, value in held.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=1e-3)
        for a, b in zip(evaluations(tmp_path / "one"), evaluations(out), strict=True):
            assert b == pytest.approx(a, abs=1e-3)


@pytest.mark.parametrize("task", ["classes", "pixels"])
def test_two_processes_fine_tune_a_seamo_with_its_block_for_dates(task, runs, tmp_path):
    """No gradient reaches the block: neither do processes wait for one, nor does it decay."""
    folder, options = runs
    finetune(small_recipe(tmp_path / "one", **options[f"seamo, {task}"]))
    one, two = (torch.tensor(curve(out)) for out in (tmp_path / "one", folder / f"seamo, {task}"))
    assert len(one) == 4
    torch.testing.assert_close(two, one, rtol=0, atol=2e-5)


def test_two_processes_with_batch_normalization_go_on_to_the_same_numbers(runs, tmp_path):
    """On CPUs it sees the batch of its process: what was normalized by is the first process's everywhere."""
    folder, options = runs
    for steps in (3, None):
        recipe = small_recipe(tmp_path / "cut", max_steps=steps, **options["upernet"])
        run(command(recipe, tmp_path / "recipe.json", ranks=2), tmp_path / "log")
    assert len(curve(tmp_path / "cut")) == 8
    assert curve(tmp_path / "cut") == curve(folder / "upernet")
    assert evaluations(tmp_path / "cut") == evaluations(folder / "upernet")
    assert len(evaluations(tmp_path / "cut")) == 4


def test_two_processes_share_the_statistics_of_batch_normalization(runs, tmp_path):
    """With ``sync`` two processes compute what one computes, running statistics included."""
    folder, options = runs
    finetune(small_recipe(tmp_path / "one", **options["upernet, sync"]))
    outs = tmp_path / "one", folder / "upernet, sync"
    one, two = (torch.tensor(curve(out)) for out in outs)
    torch.testing.assert_close(two, one, rtol=0, atol=1e-4)
    held, found = (load_finetuned(out / "best").state_dict() for out in outs)
    assert any("running_var" in name for name in held)
    for name, value in held.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-3)


def test_groups_of_samples_that_are_mixed_in_pairs_are_refused(tmp_path):
    data = labelled(count=28)
    recipe = small_recipe(
        tmp_path / "run", accumulate=2, batch_size=8, batch_norm="grouped", batch_norm_group=2
    )
    with pytest.raises(ValueError, match="mixed in pairs from both ends of a batch"):
        finetune(recipe, data)
    plain = {"views__mixup": 0, "views__cutmix": 0}
    with pytest.raises(ValueError, match="batch_norm=sync, and Finetuning has no BatchNorm"):
        finetune(small_recipe(tmp_path / "other", batch_norm="sync", **plain), data)
