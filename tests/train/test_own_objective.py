"""Methods that are not the package's: registered, with tasks that take turns, trained and read back."""

import json
from dataclasses import dataclass, replace
from typing import Literal

import pytest
import torch
from torch import nn

from rsbackbones.train import (
    RECIPES,
    Objective,
    ObjectiveConfig,
    Recipe,
    TrainingError,
    apply_overrides,
    pretrain,
    register_objective,
)
from rsbackbones.train.engine.config_io import from_json, to_json
from rsbackbones.train.engine.distributed import DistributedContext
from rsbackbones.train.export import export
from rsbackbones.train.initialize import read_run
from rsbackbones.train.objectives.registry import _METHODS
from rsbackbones.train.pretraining import PretrainRun
from tests.train.training import OPTICAL, PAIRED, SIDE, assert_same, contents, curve, write_data

ALONE = DistributedContext(0, 1, torch.device("cpu"))


@register_objective
@dataclass(frozen=True, kw_only=True)
class MeansObjective(ObjectiveConfig):
    """Tell an image's mean from its embedding: of optical bands at one step, of the radar's at another."""

    method: Literal["means"] = "means"
    scale: float = 1.0
    tasks = ("radar", "optical")

    def build(self, backbone):
        return Means(self, backbone)


class Means(Objective):
    def __init__(self, options, backbone):
        super().__init__()
        self.options, self.backbone = options, backbone
        sizes = {"optical": len(backbone.bands["s2"]), "radar": 2}
        self.heads = nn.ModuleDict({task: nn.Linear(backbone.num_features, n) for task, n in sizes.items()})
        self.seen = []

    def forward(self, batch):
        target = batch.images["s2" if batch.task == "optical" else "s1"].mean(dim=(2, 3))
        found = self.heads[batch.task](self.backbone({"s2": batch.images["s2"]}))
        return {"loss": self.options.scale * (found - target).square().mean()}

    def after_step(self, batches, step):
        assert {batch.task for batch in batches} == {step.task}
        self.seen.append(step)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """20 pairs, and 24 optical images."""
    return write_data(tmp_path_factory.mktemp("data"))


def recipe_of(data, out=None, **changes):
    recipe = Recipe(
        name="means", model="croma_vit_tiny", objective=MeansObjective(), epochs=3, batch_size=4,
        data=replace(
            RECIPES["croma_vit_tiny"].data, parts=(replace(PAIRED, repeats=1),), root=data, size=SIDE,
            crop=(16, SIDE), workers=0, task_schedule="alternate",
        ),
        overrides={"dim": 32, "depth": 2, "num_heads": 4}, precision="fp32", log_every=1, output=out,
        optim=replace(RECIPES["croma_vit_tiny"].optim, base_lr=0.1),
    )  # fmt: skip
    return apply_overrides(recipe, {name.replace("__", "."): value for name, value in changes.items()})


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_tasks_of_one_source_take_turns(data, tmp_path):
    """Both go over the same 20 places, each with its own crops."""
    made = PretrainRun(recipe_of(data), ALONE)
    assert made.places == 20
    assert [stream.task for stream in made.streams] == ["radar", "optical"]
    assert made.plan.steps_per_epoch == 10
    batches = list(made.batches(0, 20))
    assert [batch.task for batch in batches] == ["radar", "optical"] * 10
    for task in ("radar", "optical"):
        names = [name for batch in batches[:10] if batch.task == task for name in batch.names]
        assert len(set(names)) == 20
    out = tmp_path / "run"
    assert pretrain(recipe_of(data, out)).total_steps == 30
    for line in lines(out):
        step = line["step"]
        assert line["epoch"] == step / 10
        assert (line["epoch_radar"], line["epoch_optical"]) == ((step + 1) // 2 / 5, step // 2 / 5)
    losses = [line["loss"] for line in lines(out)]
    assert sum(losses[-4:]) < sum(losses[:4])
    record = json.loads((out / "recipe.json").read_text())
    assert [source["task"] for source in record["sources"]] == ["radar", "optical"]


@pytest.mark.parametrize("schedule", ["proportional", "alternate", "random"])
def test_going_on_is_the_unbroken_run_in_every_order(data, tmp_path, schedule):
    """A source of one task, and one of both; cut where the tasks are in different epochs of their own."""
    optical = {**to_json(OPTICAL), "task": "optical"}
    parts = [{**to_json(PAIRED), "repeats": 1}, optical]
    options = {"data__parts": parts, "data__task_schedule": schedule, "accumulate": 2, "ema": 0.5}
    pretrain(recipe_of(data, tmp_path / "unbroken", **options))
    for stop in (11, 17, None):
        pretrain(recipe_of(data, tmp_path / "cut", max_steps=stop, **options))
    assert curve(tmp_path / "cut") == curve(tmp_path / "unbroken")
    assert len(curve(tmp_path / "cut")) == 3 * (5 + 5 + 6)
    assert_same(contents(tmp_path / "cut", 48), contents(tmp_path / "unbroken", 48))
    ended = lines(tmp_path / "cut")[-1]
    if schedule == "proportional":
        assert (ended["epoch_radar"], ended["epoch_optical"]) == (3, 3)
    if schedule == "alternate":
        assert (ended["epoch_radar"], ended["epoch_optical"]) == (24 / 5, 24 / 11)


def test_an_objective_is_told_its_steps(data):
    made = PretrainRun(recipe_of(data), ALONE)
    for number, batch in enumerate(made.batches(0, 3)):
        _, norm = made.forward_backward([batch])
        made.update([batch], made.step(number), norm)
    seen = [(step.number, step.total, step.task) for step in made.objective.seen]
    assert seen == [(0, 30, "radar"), (1, 30, "optical"), (2, 30, "radar")]


def test_tasks_that_sources_name(data):
    """An objective without tasks of its own has those of its sources."""
    croma = RECIPES["croma_vit_tiny"]
    parts = [{**to_json(PAIRED), "task": "pairs"}, {**to_json(OPTICAL), "task": "alone"}]
    changes = {"data.root": str(data), "data.parts": parts, "data.size": SIDE, "data.crop": (16, SIDE),
               "data.workers": 0, "batch_size": 8, "data.task_schedule": "alternate"}  # fmt: skip
    made = PretrainRun(apply_overrides(croma, changes), ALONE)
    assert made.plan.task_names == ("pairs", "alone")
    assert [batch.task for batch in made.batches(0, 4)] == ["pairs", "alone", "pairs", "alone"]


def test_tasks_that_do_not_fit(data):
    parts = [{**to_json(PAIRED), "task": "thermal"}]
    with pytest.raises(
        TrainingError, match=r"name the task thermal; the tasks of 'means' are radar, optical"
    ):
        PretrainRun(recipe_of(data, data__parts=parts), ALONE)
    parts = [{**to_json(PAIRED), "task": "radar"}]
    with pytest.raises(TrainingError, match="no source is for the task optical"):
        PretrainRun(recipe_of(data, data__parts=parts), ALONE)


def test_a_saved_run_of_ones_own_method_is_read_back(data, tmp_path):
    out = tmp_path / "run"
    pretrain(recipe_of(data, out, max_steps=2, objective__scale=2.0))
    recipe, _, objective, step = read_run(out)
    assert recipe.objective == MeansObjective(scale=2.0)
    assert (type(objective), step) == (Means, 2)
    export(out, tmp_path / "weights", full=True)
    begun = recipe_of(data, init_from=str(tmp_path / "weights" / "objective.safetensors"), seed=3)
    with pytest.raises(TrainingError, match=r"differ in scale \(2.0, 1.0\)"):
        PretrainRun(begun, ALONE)
    made = PretrainRun(apply_overrides(begun, {"objective.scale": 2.0}), ALONE)
    state = objective.state_dict()
    assert all(torch.equal(x, state[name]) for name, x in made.objective.state_dict().items())


def test_what_is_not_registered_is_said(data, monkeypatch):
    @dataclass(frozen=True, kw_only=True)
    class Unknown(ObjectiveConfig):
        method: str = "unknown"

    with pytest.raises(ValueError, match="the method 'unknown' of Unknown is not registered: decorate"):
        replace(recipe_of(data), objective=Unknown())
    with pytest.raises(ValueError, match=r"method 'means' is tests.*MeansObjective already"):
        register_objective(type("Other", (MeansObjective,), {"__module__": "elsewhere"}))
    with pytest.raises(ValueError, match="needs a field that names the method"):
        register_objective(type("Nameless", (ObjectiveConfig,), {}))
    saved = to_json(recipe_of(data))
    assert from_json(saved, Recipe) == recipe_of(data)
    with pytest.raises(ValueError, match=r"unknown key 'objective.scal', did you mean 'objective.scale'\?"):
        apply_overrides(recipe_of(data), {"objective.scal": 2})
    with pytest.raises(ValueError, match=r"objective.scale must be a finite number, got nan"):
        apply_overrides(recipe_of(data), {"objective.scale": float("nan")})
    for name in set(_METHODS) - {"croma", "seamo"}:  # of this file, and of others that ran before
        monkeypatch.delitem(_METHODS, name)
    with pytest.raises(ValueError, match=r"unknown method 'means'; known: croma, seamo\. Register a method"):
        from_json(saved, Recipe)


@pytest.mark.parametrize("mode", ["grouped", "sync"])
def test_a_model_without_batch_norm_is_not_treated_as_if_it_had_some(data, mode):
    options = {"batch_norm": mode, **({"batch_norm_group": 2} if mode == "grouped" else {})}
    with pytest.raises(TrainingError, match=f"batch_norm={mode}, and Means has no BatchNorm"):
        PretrainRun(recipe_of(data, **options), ALONE)
