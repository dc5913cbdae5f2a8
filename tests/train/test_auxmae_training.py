"""Alternating tasks: data of their own, their order, their log, and runs that go on."""

import json
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from rsbackbones.data.npz import NpzFile
from rsbackbones.train.engine.config_io import apply_overrides, to_json
from rsbackbones.train.engine.distributed import DistributedContext
from rsbackbones.train.engine.errors import TrainingError
from rsbackbones.train.engine.sampler import BatchPlan
from rsbackbones.train.export import export
from rsbackbones.train.pretraining import PretrainRun, pretrain
from rsbackbones.train.recipe import Part
from rsbackbones.train.recipes import RECIPES
from rsbackbones.zoo.factory import create_model
from rsbackbones.zoo.saving import save_model
from tests.conftest import RECORDED
from tests.train.mixmae_setup import DATED, FOUR, small_recipe, write_dated
from tests.train.training import assert_same, contents, curve, drawing

ALONE = DistributedContext(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dated(tmp_path_factory.mktemp("data"))


def lines_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


# -- the order of tasks, and their data ---------------------------------------------------------------


@pytest.mark.parametrize("case", [0, 1])
def test_task_epoch_and_batch_of_every_step_are_the_recorded_ones(case):
    with np.load(RECORDED / "mixmae.npz") as file:
        lengths, batch, steps = (file[f"agd{case}{name}"] for name in ("_lengths", "_batch", ""))
    names = tuple(f"task{i}" for i in range(len(lengths)))
    plan = BatchPlan(
        lengths=tuple(lengths.tolist()), repeats=(1,) * len(names), blocks=(1,) * len(names), tasks=names,
        task_names=names, schedule="alternate", batch_size=int(batch), seed=3,
    )  # fmt: skip
    seen = {}
    for step, (task, epoch, number) in enumerate(steps.tolist()):
        keys = plan.batch(step)
        assert plan.task(step) == names[task]
        assert {(key[0], key[1]) for key in keys} == {(epoch, task)}
        held = seen.setdefault((task, epoch), [])
        assert len(held) == number * batch
        held += [key[2] for key in keys]
        assert len(set(held)) == len(held)  # every sample at most once in an epoch of its task


@pytest.mark.parametrize("order", ["alternate", "random"])
def test_each_task_goes_through_its_own_data(data, order):
    """40 images, 17 of which have a partner: in three epochs of its own a task sees each three times."""
    run = PretrainRun(small_recipe(data, objective__order=order, batch_size=3), ALONE)
    assert {stream.task: len(stream) for stream in run.streams} == {"s2_s2": 40, "s2_s1": 17}
    assert [set(stream.preprocess.specs) for stream in run.streams] == [{"s2"}, {"s2", "s1"}]
    tasks = [run.plan.task(step) for step in range(200)]
    if order == "alternate":
        assert tasks == ["s2_s2", "s2_s1"] * 100
    else:
        assert 70 < tasks.count("s2_s1") < 130
        other = PretrainRun(small_recipe(data, objective__order=order, batch_size=3, seed=1), ALONE)
        assert tasks != [other.plan.task(step) for step in range(200)]
    for i, (task, length) in enumerate((("s2_s2", 40), ("s2_s1", 17))):
        keys = [key for step in range(200) if tasks[step] == task for key in run.plan.batch(step)]
        assert {key[1] for key in keys} == {i}
        for epoch in range(3):
            held = [key[2] for key in keys if key[0] == epoch]
            assert len(set(held)) == len(held) == length // 3 * 3
    batch = run.dataset.__getitems__([(0, 1, i) for i in range(3)])
    assert (batch.task, set(batch.images)) == ("s2_s1", {"s2", "s1"})


def test_a_finer_target_is_of_the_same_place(tmp_path):
    """The source is read on the finest grid; input and target get sides of their own."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(500, 1500, (8, 4, 16, 16)).astype(np.uint16)
    fine = rng.uniform(10, 20, (8, 1, 64, 64)).astype(np.float32)
    fine[:, :, :32] += 1000  # the upper half is told by both
    coarse[:, :, :8] = 5000
    np.savez(tmp_path / "fine.npz", s2=coarse, sd=fine)
    part = Part(
        file=NpzFile(path="fine.npz", images={"s2": {"s2": FOUR}, "superdove": {"sd": ("nir",)}}),
        crop=(64, 64),
    )
    recipe = small_recipe(
        tmp_path, data__parts=[to_json(part)], data__size=16, data__flips=False, data__rot90=False,
        data__statistics={"superdove": {"nir": [500.0, 250.0]}},
        objective__tasks=[{}, {"target": "superdove", "mask_ratio": 0.0, "scale": 4}],
    )  # fmt: skip
    run = PretrainRun(recipe, ALONE)
    batch = run.dataset.__getitems__([(0, 1, i) for i in range(4)])
    assert {m: tuple(x.shape[1:]) for m, x in batch.images.items()} == {
        "s2": (4, 16, 16), "superdove": (1, 64, 64)
    }  # fmt: skip
    assert (batch.images["superdove"][:, :, :32] > 1).all()
    assert (batch.images["superdove"][:, :, 32:] < 1).all()
    assert (batch.images["s2"][:, :, :7] > batch.images["s2"][:, :, 9:].amax()).all()
    losses = [run.objective(run.dataset.__getitems__([(0, i, 0)]))["loss"] for i in (0, 1)]
    assert all(loss.isfinite() for loss in losses)


# -- steps --------------------------------------------------------------------------------------------


def test_five_steps_by_hand_are_the_loops(data, tmp_path):
    recipe = small_recipe(data, tmp_path / "run", steps=5)
    pretrain(recipe)
    run = PretrainRun(recipe, ALONE)
    optimizer, found = run.optimizer, []
    for step in range(5):
        batch = run.dataset.__getitems__(run.plan.batch(step))
        assert batch.task == ("s2_s2", "s2_s1")[step % 2]
        loss = run.objective(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(run.objective.parameters(), recipe.optim.clip_grad)
        run.schedule.step_update(step + 1)
        optimizer.step()
        found.append(loss.item())
    assert found == pytest.approx([loss for (loss,) in curve(tmp_path / "run", "loss")], abs=1e-6)


@pytest.mark.parametrize("order", ["alternate", "random"])
def test_a_run_goes_on_after_any_number_of_steps(data, tmp_path, order):
    def recipe(name, **options):
        return small_recipe(data, tmp_path / name, objective__order=order, steps=9, **options)

    pretrain(recipe("unbroken"))
    for stop in (1, 4, 7, 9):
        assert pretrain(recipe("run", max_steps=stop)).step == stop
    assert curve(tmp_path / "run") == curve(tmp_path / "unbroken")
    assert_same(contents(tmp_path / "run", 9), contents(tmp_path / "unbroken", 9))


def test_the_log_names_the_task_of_a_step_or_the_last_loss_of_each(data, tmp_path):
    with drawing():
        pretrain(small_recipe(data, tmp_path / "each", steps=8, tensorboard=True))
        pretrain(small_recipe(data, tmp_path / "some", steps=8, log_every=4))
    each, some = lines_of(tmp_path / "each"), lines_of(tmp_path / "some")
    assert [line["task"] for line in each] == ["s2_s2", "s2_s1"] * 4
    assert all(line[line["task"]] == line["loss"] for line in each)
    assert all(("s2_s1" in line) == (line["task"] == "s2_s1") for line in each)
    assert [line["step"] for line in some] == [4, 8]
    for line in some:
        assert "task" not in line
        step = line["step"]
        assert line["s2_s1"] == line["loss"] == each[step - 1]["s2_s1"]
        assert line["s2_s2"] == each[step - 2]["s2_s2"]
    for name in ("each", "some"):
        header = (tmp_path / name / "table.md").read_text().splitlines()[0]
        assert "s2_s2" in header
        assert "s2_s1" in header
        assert (tmp_path / name / "loss.png").stat().st_size > 0
        assert (tmp_path / name / "reconstruction.png").stat().st_size > 0


def test_two_tasks_compile_once_each(data):
    """Nothing is compiled after the second step of each task."""
    recipe = small_recipe(data, compile=True, precision="fp32", batch_size=2)
    with pytest.MonkeyPatch.context() as patch:
        compiled = torch.compile
        patch.setattr(torch.nn.Module, "compile", lambda self, **options: setattr(
            self, "_compiled_call_impl", compiled(self._call_impl, backend="eager", **options)
        ))  # fmt: skip
        run = PretrainRun(recipe, ALONE)
    counts = []
    for step, batch in enumerate(run.batches(0, 10)):
        _, norm = run.forward_backward([batch])
        run.update([batch], run.step(step), norm)
        counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert counts[0] > 0
    assert counts[3] == counts[-1]


# -- what is exported, and the recipes ----------------------------------------------------------------


@pytest.mark.parametrize("method", ["auxmae", "mixmae", "s2mae"])
def test_what_is_exported_of_a_run(data, tmp_path, method):
    out = tmp_path / "run"
    pretrain(small_recipe(data, out, method=method, steps=2))
    export(out, tmp_path / "weights")
    entry = json.loads((tmp_path / "weights" / "manifest.json").read_text())["weights"][0]
    modalities = ["s2", "s1"] if method == "mixmae" else ["s2"]
    assert list(entry["inputs"]) == modalities
    assert entry["inputs"]["s2"]["product"] == "L2A"
    assert entry["inputs"]["s2"]["mean"][0] == pytest.approx(1144.16 - 259.87, abs=0.1)  # B02 of L2A
    assert ("mixtures" in entry["provenance"]) == (method == "mixmae")
    name = entry["architecture"]
    model = create_model(name, checkpoint=tmp_path / "weights" / f"{name}.run.safetensors")
    assert list(model.modalities) == modalities
    assert model.inputs["s2"].product == "L2A"


def test_the_recipes_have_the_papers_numbers():
    for name, steps in (("auxmae", 1_000_000), ("mixmae", 500_000), ("s2mae", 500_000)):
        recipe = RECIPES[f"{name}_vit_b"]
        assert (recipe.steps, recipe.epochs, recipe.batch_size) == (steps, None, 4096)
        assert (recipe.optim.name, recipe.optim.base_lr, recipe.optim.schedule) == (
            "adafactor", 1e-2, "constant"
        )  # fmt: skip
        assert recipe.data.pair_days == 7
    assert RECIPES["s2mae_vit_b"].model == "auxmae_vit_b"
    tiny = [RECIPES[f"{name}_vit_tiny"] for name in ("auxmae", "mixmae", "s2mae")]
    same = [
        (recipe.steps, recipe.batch_size, to_json(recipe)["data"], to_json(recipe)["optim"])
        for recipe in tiny
    ]
    assert same[0] == same[1] == same[2]


def test_steps_or_epochs(data):
    recipe = small_recipe(data)
    assert recipe.length == "12 steps"
    with pytest.raises(ValueError, match="set epochs or steps, one of them; got epochs=3 and steps=12"):
        apply_overrides(recipe, {"epochs": 3})
    with pytest.raises(ValueError, match="got epochs=None and steps=None"):
        apply_overrides(recipe, {"steps": "none"})
    whole = apply_overrides(recipe, {"epochs": "2", "steps": "none"})
    assert PretrainRun(whole, ALONE).total_steps == 2 * (10 + 4)
    stages = apply_overrides(recipe, {"stages": [{"epochs": 1}, {"steps": 3}, {}]}).resolve_stages()
    assert [(s.epochs, s.steps) for s in stages] == [(1, None), (None, 3), (None, 12)]


# -- data that cannot be ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 20}, r"source 1 of the task s2_s1 has 17 samples.*lower batch_size"),
        ({"data__task_schedule": "random"}, "objective.order=alternate; change that"),
        ({"data__pair_days": 90}, "data.pair_days"),
        (
            {"data__parts": [to_json(replace(DATED, file=replace(DATED.file, images={"s2": {"s2": FOUR}},
                                                                  dates={"s2": "s2_dates"})))]},
            r"no source is for the task s2_s1.*\(s2_s1 takes s2 and s1\); the sources hold dated: s2",
        ),
        (
            {"data__parts": [to_json(DATED), to_json(replace(DATED, file=replace(
                DATED.file, images={"s1": {"s1": ("VV", "VH")}}, dates={"s1": "s1_dates"})))]},
            "and no task takes it: s2_s2 takes s2; s2_s1 takes s2 and s1. Leave it out",
        ),
        ({"objective__tasks": [{"target": "superdove"}]}, "the target superdove has no statistics"),
        ({"data__parts": [to_json(replace(DATED, task="s1_s2"))]}, "name the task s1_s2; the tasks"),
    ],
)  # fmt: skip
def test_data_that_do_not_serve_the_tasks(data, changes, message):
    with pytest.raises((ValueError, TrainingError), match=message):
        PretrainRun(small_recipe(data, **changes), ALONE)


def test_images_of_one_sensor_are_refused_for_mixing(data):
    alone = replace(DATED, file=replace(DATED.file, images={"s2": {"s2": FOUR}}, dates={"s2": "s2_dates"}))
    with pytest.raises(TrainingError, match=r"no task takes it: mixmae takes s2 and s1\. Leave it out"):
        PretrainRun(small_recipe(data, method="mixmae", data__parts=[to_json(DATED), to_json(alone)]), ALONE)
    run = PretrainRun(small_recipe(data, method="mixmae"), ALONE)
    assert len(run.streams[0]) == 17
    (batch,) = islice(run.batches(0, 1), 1)
    assert set(run.objective(batch)) == {"loss", "reconstruction_s2", "reconstruction_s1"}


@pytest.mark.parametrize("distance", ["cosine", "mse", "miro"])
def test_guidance_by_an_oracle_on_three_bands(data, tmp_path, distance):
    """FoMu-SSL's RGB branch on both tasks, as both encode Sentinel-2."""
    recipe = small_recipe(data)
    three = {**recipe.overrides, "bands": {"s2": ["B04", "B03", "B02"]}, "image_size": recipe.data.size}
    torch.manual_seed(5)
    oracle = create_model("auxmae_vit_tiny", overrides=three)
    save_model(oracle, tmp_path / "oracle.safetensors")
    options = {"oracle": str(tmp_path / "oracle.safetensors"), "sar": 0, "initial_oracle": False}
    guided = small_recipe(data, objective__guidance={**options, "rgb": 0.5, "distance": distance})
    runs = [PretrainRun(each, ALONE) for each in (recipe, guided)]
    assert not [name for name in runs[1].objective.state_dict() if "oracle" in name]
    assert len(runs[1].record()["oracle"]["sha256"]) == 64
    for batch in islice(runs[0].batches(0, 2), 2):
        alone, both = (run.objective(batch) for run in runs)
        with torch.no_grad():
            z = runs[1].objective.backbone({"s2": batch.images["s2"]})
            target = oracle({"s2": batch.images["s2"][:, [2, 1, 0]]})
        expected = {
            "cosine": (1 - torch.cosine_similarity(target, z)).mean(),
            "mse": (target - z).square().mean(),
            "miro": 0.5 * ((target - z).square() / 0.1 + np.log(0.1)).mean(),
        }
        assert both["rgb"].item() == pytest.approx(expected[distance].item(), rel=1e-4)
        assert both["loss"].item() == pytest.approx(alone["loss"].item() + 0.5 * both["rgb"].item(), rel=1e-5)
        both["loss"].backward()
    with pytest.raises(ValueError, match="AuxMAE takes the RGB branch of guidance alone"):
        small_recipe(data, objective__guidance={**options, "sar": 0.25})
    with pytest.raises(ValueError, match=r"guidance\.rgb=0 guides nothing"):
        small_recipe(data, objective__guidance={**options, "rgb": 0})


def test_an_oracle_of_another_sensor_is_refused(data, tmp_path):
    recipe = small_recipe(data)
    radar = {**recipe.overrides, "modalities": ["s1"], "bands": {"s1": ["VV", "VH"]}}
    save_model(create_model("auxmae_vit_tiny", overrides=radar), tmp_path / "oracle.safetensors")
    options = {"oracle": str(tmp_path / "oracle.safetensors"), "sar": 0, "initial_oracle": False}
    guided = small_recipe(data, objective__guidance=options)
    with pytest.raises(
        TrainingError, match=r"differs from the student.*tokenizers\.s1.*overrides and one sensor"
    ):
        PretrainRun(guided, ALONE)
