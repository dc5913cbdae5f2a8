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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classes", "few pixels"])
def test_two_processes_compute_what_one_computes(task, tmp_path):
    """Losses, norms, evaluations and the model, at the same global batch; two passes each, too.

    Few pixels: an image has as many labelled rows as its number, so that processes and passes have unequal
    numbers of labels.
    """
    sensors = ("s2", "s1") if task == "classes" else ("s2",)
    data = labelled(task.split()[-1], count=28, sensors=sensors)
    file = saved(sparsely(data) if task == "few pixels" else data, tmp_path / "small.npz")
    options = {"data": str(file), "batch_size": 8, "epochs": 6, **({} if task == "classes" else DENSE)}
    alone = finetune(small_recipe(tmp_path / "one", **options))
    one, held = torch.tensor(curve(tmp_path / "one")), load_finetuned(tmp_path / "one" / "best").state_dict()
    assert len(one) == 6 * (14 // 8)
    for name, passes in (("two", 1), ("two passes", 2)):
        recipe = small_recipe(tmp_path / name, accumulate=passes, **options)
        run(command(recipe, tmp_path / "recipe.json", ranks=2), tmp_path / "log")
        two = torch.tensor(curve(tmp_path / name))
        torch.testing.assert_close(two, one, rtol=0, atol=2e-5)
        result = json.loads((tmp_path / name / "result.json").read_text())
        assert result["processes"] == 2
        assert result["metrics"] == pytest.approx(alone["metrics"], abs=1e-3)
        found = load_finetuned(tmp_path / name / "best").state_dict()
        for key, value in held.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=1e-3)
        for a, b in zip(evaluations(tmp_path / "one"), evaluations(tmp_path / name), strict=True):
            assert b == pytest.approx(a, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classes", "pixels"])
def test_two_processes_fine_tune_a_seamo_with_its_block_for_dates(task, tmp_path):
    """No gradient reaches the block: neither do processes wait for one, nor does it decay."""
    sensors = ("s2", "s1") if task == "classes" else ("s2",)
    file = saved(labelled(task, count=28, sensors=sensors), tmp_path / "small.npz")
    options = {**seamo_with_block(tmp_path), "data": str(file), "batch_size": 8, "epochs": 4,
               **(DENSE if task == "pixels" else {})}  # fmt: skip
    finetune(small_recipe(tmp_path / "one", **options))
    run(
        command(small_recipe(tmp_path / "two", **options), tmp_path / "recipe.json", ranks=2),
        tmp_path / "log",
    )
    one, two = (torch.tensor(curve(tmp_path / name)) for name in ("one", "two"))
    assert len(one) == 4
    torch.testing.assert_close(two, one, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_two_processes_with_batch_normalization_go_on_to_the_same_numbers(tmp_path):
    """On CPUs it sees the batch of its process: what was normalized by is the first process's everywhere."""
    file = saved(labelled("pixels", count=28), tmp_path / "small.npz")
    options = {**DENSE, "head": "upernet", "head_options": {"width": 16}, "data": str(file), "batch_size": 8,
               "epochs": 8, "evaluate_every": 2}  # fmt: skip
    for name, steps in (("unbroken", None), ("cut", 3), ("cut", None)):
        recipe = small_recipe(tmp_path / name, max_steps=steps, **options)
        run(command(recipe, tmp_path / "recipe.json", ranks=2), tmp_path / "log")
    assert len(curve(tmp_path / "cut")) == 8
    assert curve(tmp_path / "cut") == curve(tmp_path / "unbroken")
    assert evaluations(tmp_path / "cut") == evaluations(tmp_path / "unbroken")
    assert len(evaluations(tmp_path / "cut")) == 4


@pytest.mark.slow
def test_two_processes_share_the_statistics_of_batch_normalization(tmp_path):
    """With ``sync`` two processes compute what one computes, running statistics included."""
    file = saved(labelled("pixels", count=28), tmp_path / "small.npz")
    # The rate is small: rounding grows where statistics are of the few pixels of a pooled map.
    options = {**DENSE, "head": "upernet", "head_options": {"width": 16}, "data": str(file), "batch_size": 8,
               "epochs": 4, "optim__base_lr": 1e-3}  # fmt: skip
    finetune(small_recipe(tmp_path / "one", **options))
    recipe = small_recipe(tmp_path / "two", batch_norm="sync", **options)
    run(command(recipe, tmp_path / "recipe.json", ranks=2), tmp_path / "log")
    one, two = (torch.tensor(curve(tmp_path / name)) for name in ("one", "two"))
    torch.testing.assert_close(two, one, rtol=0, atol=1e-4)
    held, found = (load_finetuned(tmp_path / name / "best").state_dict() for name in ("one", "two"))
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
