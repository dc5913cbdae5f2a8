"""SeaMo's runs of two phases: one command, which goes on in either; what is exported of them."""

import contextlib
import io
import json
import os
import random
import re
import shutil
import sys
import time

import numpy as np
import pytest
import torch

import rsbackbones as rsb
from rsbackbones.train.__main__ import command as train_command
from rsbackbones.train.command import call_command
from rsbackbones.train.dry_run import dry_run
from rsbackbones.train.engine.checkpoint import finished, problem
from rsbackbones.train.engine.config_io import to_json
from rsbackbones.train.engine.errors import TrainingError
from rsbackbones.train.export import export
from rsbackbones.train.initialize import build_objective, read_run
from rsbackbones.train.pretraining import pretrain
from tests.train.ranks import steps_of
from tests.train.seamo_runs import ALONE, FIRST, SECOND, built, two_phases, write_series
from tests.train.training import (
    assert_same,
    checkpoints,
    command,
    contents,
    curve,
    end,
    newest,
    run,
    start,
    steps_logged,
    wait_until,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_series(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def unbroken(data, tmp_path_factory):
    """Both phases from one command: its folder, and what it said."""
    folder = tmp_path_factory.mktemp("unbroken")
    out, said = folder / "run", io.StringIO()
    arguments = command(two_phases(data, out), folder / "recipe.json")[3:]
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        assert call_command(train_command, arguments, "rsbackbones.train") == 0
    return out, said.getvalue()


def same_curves(out, expected):
    """Bit for bit, those of both phases."""
    assert len(curve(expected / "stage_1")) == FIRST
    assert len(curve(expected)) == SECOND
    assert curve(out / "stage_1") == curve(expected / "stage_1")
    assert curve(out) == curve(expected)


def test_one_command_runs_both_phases(unbroken):
    out, said = unbroken
    assert f"finished at step {SECOND} of {SECOND}" in said
    assert f"begins with the weights of stage_1, step {FIRST}; new: backbone.temporal" in said
    files = {"recipe.json", "metrics.jsonl", "summary.json", "table.md", "checkpoints"}
    assert {p.name for p in out.iterdir()} == {*files, "stage_1"}
    assert {p.name for p in (out / "stage_1").iterdir()} == files
    before, after = (
        json.loads((path / "recipe.json").read_text())["recipe"] for path in (out / "stage_1", out)
    )
    assert (before["objective"]["length"], before["epochs"], before["stages"]) == (1, 3, [])
    assert (after["objective"]["length"], after["epochs"]) == (4, 4)
    differing = {name for name in before if before[name] != after[name]}
    assert differing == {"objective", "epochs", "stages", "output"}
    assert {k for k, v in before["objective"].items() if v != after["objective"][k]} == {"length"}
    names = ("step", "loss", "reconstruction_s2", "reconstruction_s1")
    for path, seasons in ((out / "stage_1", 1), (out, 4)):
        lines = curve(path, *names)
        assert [line[0] for line in lines] == list(range(1, len(lines) + 1))
        for _, loss, optical, radar in lines:
            assert loss == pytest.approx(optical + radar, rel=1e-5)
        # Normalized targets: a season and a sensor begin at about 1 each.
        assert lines[0][1] / (2 * seasons) == pytest.approx(1, abs=0.6)
        assert lines[-1][1] < lines[0][1]


def test_stage_1_sees_the_first_season_and_phase_2_all_of_them(data):
    recipe = two_phases(data, data__crop=(32, 32), data__flips=False)
    batches = {}
    for seasons, index in ((1, 0), (4, 1)):
        made = built(recipe, index)
        assert made.plan.steps_per_epoch == 2  # a place is one sample in both
        batches[seasons] = made.dataset.__getitems__([(0, 0, i) for i in range(8)])
        assert batches[seasons].images["s2"].shape == (8, seasons, 12, 32, 32)
        assert {n: x.shape for n, x in batches[seasons].noise.items()} == {"noise": (8, seasons, 16)}
    for m in ("s2", "s1"):
        first, several = batches[1].images[m][:, 0], batches[4].images[m]
        assert [torch.equal(several[:, t], first) for t in range(4)] == [True, False, False, False]


@pytest.mark.parametrize("stops", [(4, FIRST + 4), (1, FIRST, FIRST + 1, FIRST + SECOND)])
def test_a_run_that_stops_in_either_phase_goes_on_as_the_unbroken_one(data, unbroken, tmp_path, stops):
    out = tmp_path / "run"
    for stop in stops:
        summary = pretrain(two_phases(data, out, max_steps=stop))
        in_first = min(stop, FIRST)
        assert len(curve(out / "stage_1")) == in_first
        assert summary.step == (stop if stop <= FIRST else stop - FIRST)
        assert summary.output == str(out / "stage_1" if stop <= FIRST else out)
        assert steps_logged(out) == max(0, stop - FIRST)
        assert (out / "checkpoints").exists() is (stop > FIRST)
    summary = pretrain(two_phases(data, out))
    assert (summary.status, summary.step) == ("finished", SECOND)
    same_curves(out, unbroken[0])
    for of_run, of_unbroken, step in (
        (out / "stage_1", unbroken[0] / "stage_1", FIRST),
        (out, unbroken[0], SECOND),
    ):
        assert_same(contents(of_run, step), contents(of_unbroken, step))


def test_fewer_steps_than_there_are_train_nothing(data, unbroken, tmp_path):
    out = tmp_path / "run"
    pretrain(two_phases(data, out, max_steps=FIRST))
    pretrain(two_phases(data, out, max_steps=2))
    assert not (out / "checkpoints").exists()
    pretrain(two_phases(data, out, max_steps=FIRST + 2))
    for stop in (2, FIRST, FIRST + 1):
        pretrain(two_phases(data, out, max_steps=stop))
        assert checkpoints(out) == ["step_000000002"]
    pretrain(two_phases(data, out))
    same_curves(out, unbroken[0])


def test_a_second_phase_whose_first_is_gone_says_so_where_steps_are_counted(data, tmp_path):
    out = tmp_path / "run"
    pretrain(two_phases(data, out, max_steps=FIRST + 1))
    shutil.rmtree(out / "stage_1")
    with pytest.raises(
        TrainingError, match=r"run/stage_1/summary.json does not state .* leave out max_steps"
    ):
        pretrain(two_phases(data, out, max_steps=FIRST + 2))
    assert checkpoints(out) == ["step_000000001"]
    assert pretrain(two_phases(data, out)).status == "finished"


@pytest.mark.parametrize("ema", [0.0, 0.7])
def test_phase_2_begins_with_the_weights_of_stage_1(data, tmp_path, ema):
    out = tmp_path / "run"
    recipe = two_phases(data, out, ema=ema, max_steps=FIRST)
    pretrain(recipe)
    of_first = contents(out / "stage_1", FIRST)
    begun = built(two_phases(data, out, ema=ema)).objective.state_dict()
    fresh = build_objective(recipe).state_dict()
    assert {n for n in begun if f"/objective/{n}" not in of_first} == {n for n in begun if ".temporal." in n}
    for name, tensor in begun.items():
        if ".temporal." in name:
            assert torch.equal(tensor, fresh[name])  # as the seed makes it
            continue
        expected = of_first[f"/ema/{name}" if ema else f"/objective/{name}"]
        assert torch.equal(tensor, expected)
        assert torch.equal(tensor, of_first[f"/objective/{name}"]) is (not ema)
        assert not torch.equal(tensor, fresh[name])
    assert any(tensor.std() > 0 for name, tensor in begun.items() if ".temporal." in name)


def test_what_is_wrong_with_phase_2_is_said_before_stage_1_trains(data, tmp_path):
    three = write_series(tmp_path / "three", seasons=3)
    out = tmp_path / "run"
    for folder, changes, message in (
        (three, {}, r"series has 3 date\(s\) for each place, and samples are series of 4"),
        (data, {"data__size": 20}, r"data\.size must be a multiple of the patch 8|must be a multiple"),
        (data, {"overrides__temporal": False}, "needs a backbone with temporal=True, got False"),
        (data, {"data__region": "disjoint", "data__crop": (0.75, 1.0)}, "do not fit into an image"),
        (data, {"stages__0__objective": {"strategy": "multimodal", "decoder_dim": 64}}, "stages= may change"),
        (data, {"stages__0__overrides": {"depth": 1}, "overrides__depth": 2,
                "stages__0__model": "seamo_vit_b", "stages__0__overrides__dim": 64}, "stages= may change"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            pretrain(two_phases(folder, out, **changes))
        assert not list(out.glob("**/checkpoints"))
        shutil.rmtree(out, ignore_errors=True)


def test_a_dry_run_of_both_phases(data, tmp_path, capsys):
    out = tmp_path / "run"
    dry_run(two_phases(data, out), ALONE, sys.stdout)
    said = capsys.readouterr().out
    assert said.count("parameters:") == 2
    # The encoder is the one that is exported, without the TM block of stage 2.
    one, two = re.findall(r"of which the encoder's ([\d.]+) M", said)
    assert one == two
    assert said.index("stage 1:") < said.index("run: 6 steps") < said.index("stage 2:") < said.index("run: 8")
    assert not out.exists()


def test_a_stage_1_begins_with_initial_weights_and_phase_2_with_those_of_stage_1(data, tmp_path, capsys):
    """``init_from`` is of the first stage: it need not know the TM block."""
    pretrain(two_phases(data, tmp_path / "before", max_steps=2))
    export(tmp_path / "before" / "stage_1", tmp_path / "weights", full=True)
    initial = str(tmp_path / "weights" / "objective.safetensors")
    recipe = two_phases(data, tmp_path / "run", init_from=initial)
    dry_run(recipe, ALONE, sys.stdout)
    assert "stage 2:" in capsys.readouterr().out
    assert pretrain(recipe).status == "finished"
    trained = read_run(tmp_path / "before" / "stage_1")[2].state_dict()
    begun = built(two_phases(data, init_from=initial), 0).objective.state_dict()
    assert all(torch.equal(begun[name], tensor) for name, tensor in trained.items())


def test_other_settings_are_refused_in_either_phase(data, tmp_path):
    out = tmp_path / "run"
    pretrain(two_phases(data, out, max_steps=2))
    with pytest.raises(TrainingError, match=r"stage_1 holds a run of another recipe \(optim\.base_lr"):
        pretrain(two_phases(data, out, optim__base_lr=0.5))
    with pytest.raises(TrainingError, match=r"stage_1 holds a run of another recipe \(epochs: 3 -> 5"):
        pretrain(two_phases(data, out, stages__0__epochs=5))
    pretrain(two_phases(data, out, max_steps=FIRST + 1))
    for changes in ({"epochs": 9}, {"stages__0__epochs": 5}, {"objective__length": 3}):
        with pytest.raises(TrainingError, match=r"run holds a run of another recipe"):
            pretrain(two_phases(data, out, **changes))


def test_series_with_gaps_are_trained_on(tmp_path):
    """Missing images are marked in the batch and count for nothing."""
    data = write_series(tmp_path / "data", gaps=True)
    recipe = two_phases(data, tmp_path / "run", precision="bf16")
    batch = built(two_phases(data)).dataset.__getitems__([(0, 0, i) for i in range(6)])
    expected = torch.ones(6, 4, dtype=torch.bool)
    expected[1::3, 1] = False
    expected[2::3, 3] = False
    assert set(batch.valid) == {"s1"}
    assert torch.equal(batch.valid["s1"], expected)
    assert not batch.images["s1"][~expected].any()
    assert (batch.images["s1"][expected].flatten(1).std(dim=1) > 0).all()
    assert not batch.skipped
    summary = pretrain(recipe)
    assert summary.status == "finished"
    lines = curve(tmp_path / "run", "loss", "reconstruction_s2", "reconstruction_s1")
    assert lines[-1][0] < lines[0][0]
    # Radar has fewer images to add.
    assert lines[0][2] < lines[0][1]
    # A model without radar has nothing to miss.
    optical = {"objective__strategy": "unimodal_temporal", "overrides__modalities": ["s2"], "stages": []}
    assert pretrain(two_phases(data, tmp_path / "optical", max_steps=1, **optical)).step == 1


def test_mixup_of_series_mixes_their_seasons_and_what_either_misses_is_missing(tmp_path):
    data = write_series(tmp_path / "data", gaps=True)
    radar = np.load(data / "series.npz")["s1"]
    there = ~np.isnan(radar).any(axis=(2, 3, 4))
    plain = {"data__crop": (32, 32), "data__flips": False, "objective__length": 2}
    keys = [(0, 0, i) for i in range(16)]
    batches = [
        built(two_phases(data, **plain, data__mixup=mixup)).dataset.__getitems__(keys) for mixup in (0.0, 1.0)
    ]
    # Two of four seasons, evenly apart: the first and third or the second and fourth.
    for batch in batches:
        assert batch.images["s1"].shape == (16, 2, 2, 32, 32)
        assert not batch.images["s1"][~batch.valid["s1"]].any()
        assert (batch.images["s1"][batch.valid["s1"]].flatten(1).std(dim=1) > 0).all()
        for i, held in enumerate(batch.valid["s1"].tolist()):
            assert batch is batches[1] or held in (there[i, 0::2].tolist(), there[i, 1::2].tolist())
    alone, mixed = (batch.valid["s1"] for batch in batches)
    assert not (mixed & ~alone).any()
    assert (alone & ~mixed).any()
    assert not torch.equal(batches[0].images["s2"], batches[1].images["s2"])


@pytest.mark.parametrize(
    "strategy",
    ["unimodal", "multimodal", "siamese", "siamese_temporal", "unimodal_temporal", "multimodal_temporal"],
)
def test_the_other_strategies_train_in_one_phase(data, tmp_path, strategy):
    changes = {"objective__strategy": strategy, "stages": [], "max_steps": 2}
    if strategy.startswith("unimodal"):
        with pytest.raises(ValueError, match=r'backbone has s2, s1; overrides\.modalities=\["s2"\]'):
            pretrain(two_phases(data, tmp_path / "run", **changes))
        changes["overrides__modalities"] = ["s2"]
    summary = pretrain(two_phases(data, tmp_path / "run", **changes))
    assert summary.step == 2
    assert not (tmp_path / "run" / "stage_1").exists()
    if strategy in ("siamese", "multimodal"):  # the exported encoder mixes sensors; only one has seen it
        (entry,) = json.loads(export(tmp_path / "run", tmp_path / "weights").read_text())["weights"]
        assert ("one sensor at a time" in entry["provenance"]) is (strategy == "siamese")


# -- export -------------------------------------------------------------------------------------------------


def test_the_export_drops_the_block_and_decoders_and_full_keeps_them(unbroken, tmp_path, monkeypatch):
    out, _ = unbroken
    export(out, tmp_path / "encoder", tag="two")
    export(out, tmp_path / "full", tag="two", full=True)
    trained = {
        n.removeprefix("/objective/"): t for n, t in contents(out, SECOND).items() if "/objective/" in n
    }
    backbone = {n.removeprefix("backbone."): t for n, t in trained.items() if n.startswith("backbone.")}
    encoder = {n: t for n, t in backbone.items() if not n.startswith("temporal.")}
    assert len(encoder) < len(backbone) < len(trained)
    name = "seamo_vit_tiny.two.safetensors"
    alone = rsb.create_model("seamo_vit_tiny", checkpoint=tmp_path / "encoder" / name)
    whole = rsb.create_model("seamo_vit_tiny", checkpoint=tmp_path / "full" / name)
    for model, expected in ((alone, encoder), (whole, backbone)):
        state = model.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[n], t) for n, t in expected.items())
        assert model.config.grid == (4, 4)  # that of the training's images
    generator = torch.Generator().manual_seed(0)
    x = {m: torch.rand(2, 3, len(alone.bands[m]), 32, 32, generator=generator) for m in ("s2", "s1")}
    assert torch.equal(alone(x), whole(x))
    assert whole(x, temporal=True).isfinite().all()
    with pytest.raises(ValueError, match="`python -m rsbackbones"):
        alone(x, temporal=True)
    assert sorted(p.name for p in (tmp_path / "encoder").iterdir()) == ["manifest.json", "recipe.json", name]
    assert sorted(p.name for p in (tmp_path / "full").iterdir()) == [
        "manifest.json", "objective.safetensors", "recipe.json", name,
    ]  # fmt: skip
    for folder in ("encoder", "full"):
        monkeypatch.setenv("RSBACKBONES_MANIFEST", str(tmp_path / folder / "manifest.json"))
        model = rsb.create_model("seamo_vit_tiny.two", pretrained=True)
        assert torch.equal(model(x), alone(x))
        assert (model.temporal is not None) is (folder == "full")
        (entry,) = json.loads((tmp_path / folder / "manifest.json").read_text())["weights"]
        for what in ("stage 1, 6 steps of 8", "Then stage 2, 8 steps of 8, 64 samples seen", "x 4 dates"):
            assert what in entry["provenance"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages__0__overrides": {"num_heads": 2}}, "differ in num_heads"),
        ({"overrides__bands": {"s2": ["B02", "B03"], "s1": ["VV", "VH"]},
          "stages__0__overrides": {"bands": {"s2": ["B08", "B11"], "s1": ["VV", "VH"]}}}, "differ in bands"),
        ({"stages__0__data": {"size": 16}}, r"grid \[2, 2\], that of stage 2 \[4, 4\]: set overrides.pos"),
    ],
)  # fmt: skip
def test_phases_whose_weights_mean_something_else_are_refused(data, tmp_path, changes, message):
    """They have the same shapes."""
    with pytest.raises(TrainingError, match=message):
        pretrain(two_phases(data, tmp_path / "run", **changes))
    assert not (tmp_path / "run" / "stage_1" / "checkpoints").exists()
    with pytest.raises(TrainingError, match=message):
        dry_run(two_phases(data, **changes), ALONE, None)
    interpolated = {"stages__0__data": {"size": 16}, "overrides__position_grid": [4, 4]}
    if "size" in str(changes):
        summary = pretrain(two_phases(data, tmp_path / "run", max_steps=FIRST + 1, **interpolated))
        assert summary.step == 1


def test_a_first_season_without_one_sensor_is_masked_in_stage_1(tmp_path):
    folder = write_series(tmp_path / "data")
    with np.load(folder / "series.npz") as held:
        arrays = dict(held)
    arrays["s1"][::3, 0] = np.nan
    arrays["s2"][1, 0] = 0  # an optical image without any data, beside a radar image
    np.savez(folder / "series.npz", **arrays)
    made = built(two_phases(folder), 0)
    batch = made.dataset.__getitems__([(0, 0, place) for place in range(6)])
    assert not batch.skipped
    assert batch.valid["s1"].flatten().tolist() == [False, True, True, False, True, True]
    assert batch.valid["s2"].flatten().tolist() == [True, False, True, True, True, True]
    assert not batch.images["s1"][[0, 3]].any()
    assert made.objective(batch)["loss"].isfinite()


def test_stage_1_of_one_sensor_takes_the_first_date_that_it_has(tmp_path):
    folder = write_series(tmp_path / "data")
    with np.load(folder / "series.npz") as held:
        arrays = dict(held)
    arrays["s2"][1, :2] = 0  # no optical image at the first two dates of a place
    arrays["s1"][2, :3], arrays["s2"][2, 0] = np.nan, 0  # nothing at the first, an optical one at the second
    np.savez(folder / "series.npz", **arrays)
    plain = {"data__crop": (32, 32), "data__flips": False, "stages": []}
    optical = {"objective__strategy": "unimodal", "overrides__modalities": ["s2"]}
    alone, both = (
        built(two_phases(folder, **plain, **options))
        for options in (optical, {"objective__strategy": "multimodal"})
    )
    keys = [(0, 0, place) for place in range(3)]
    batch = alone.dataset.__getitems__(keys)
    assert not batch.skipped
    taken = np.stack([arrays["s2"][place, date] for place, date in enumerate((0, 2, 1))])
    wanted = alone.streams[0].preprocess({"s2": torch.from_numpy(taken.astype(np.float32))})["s2"]
    torch.testing.assert_close(batch.images["s2"][:, 0], wanted)
    # With radar, the second place has its first date, and the third place an optical image alone.
    batch = both.dataset.__getitems__(keys)
    assert not batch.skipped
    held = {m: batch.valid[m].flatten().tolist() for m in ("s2", "s1")}
    assert held == {"s2": [True, False, True], "s1": [True, True, False]}
    torch.testing.assert_close(batch.images["s2"][2, 0], wanted[2])


# -- several processes ------------------------------------------------------------------------------------

COUNT = 8
VARIANTS = {
    "ddp": {"parallel": "ddp"},
    "fsdp": {"parallel": "fsdp"},
    "gaps, independent masks, 2 passes": {"objective__masking": "independent", "accumulate": 2},
}


@pytest.fixture(scope="module")
def begun(data, tmp_path_factory):
    """The recipes of second phases, all of which begin with the weights of one first phase; by variant."""
    folder = tmp_path_factory.mktemp("ranks")
    pretrain(two_phases(data, folder / "run", max_steps=FIRST))
    gaps = write_series(folder / "gaps", gaps=True)
    recipes = {
        name: two_phases(gaps if "gaps" in name else data, folder / "run", **options)
        for name, options in VARIANTS.items()
    }
    return folder, recipes


@pytest.fixture(scope="module")
def of_two(begun):
    """The steps of two processes, by variant, all from one launch."""
    folder, recipes = begun
    content = {
        "recipes": {name: to_json(recipe) for name, recipe in recipes.items()},
        "count": COUNT, "results": str(folder / "results.json"),
    }  # fmt: skip
    file = folder / "recipes.json"
    file.write_text(json.dumps(content))
    launch = command(recipes["ddp"], folder / "unused.json", ranks=2)[:-2]
    run([*launch, "tests.train.ranks", str(file)], folder / "log")
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("name", VARIANTS)
def test_two_processes_compute_in_phase_2_what_one_computes(begun, of_two, name):
    losses, sums = steps_of(begun[1][name], ALONE, COUNT)
    theirs, their_sums = of_two[name]
    assert len(theirs) == COUNT
    torch.testing.assert_close(torch.tensor(theirs), torch.tensor(losses), rtol=0, atol=2e-5)
    assert their_sums == pytest.approx(sums, abs=1e-3)
    assert losses[-1][0] < losses[0][0] - 0.1


def test_two_processes_run_both_phases_and_go_on_in_either(data, unbroken, tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    for ranks, stop in ((2, 4), (0, FIRST + 3), (2, None)):
        run(command(two_phases(data, out, max_steps=stop), tmp_path / "recipe.json", ranks), log)
    for found, expected in ((out / "stage_1", unbroken[0] / "stage_1"), (out, unbroken[0])):
        torch.testing.assert_close(
            torch.tensor(curve(found)), torch.tensor(curve(expected)), rtol=0, atol=2e-5
        )


# -- kills ------------------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
def test_kills_in_both_phases(data, tmp_path):
    """They come between and during saves: what is there is whole, and the losses are the unbroken run's."""
    chance = random.Random(int(os.environ.get("RSB_SEED", "0")))
    longer = {"stages__0__epochs": 15, "epochs": 15, "save__every": 6}
    pretrain(two_phases(data, tmp_path / "unbroken", **longer))
    out, log = tmp_path / "run", tmp_path / "log"
    arguments = command(two_phases(data, out, **longer), tmp_path / "recipe.json")
    for phase in (out / "stage_1", out):
        for _ in range(2):
            before = newest(phase)
            process = start(arguments, log)
            try:
                wait_until(lambda of=phase, held=before: newest(of) > held, process, log)
                time.sleep(chance.uniform(0, 0.3))
            finally:
                end(process)
            assert all(problem(path) is None for path in finished(phase / "checkpoints"))
            assert f"going on from step {before}, to step 30" in log.read_text() or not before
    run(arguments, log)
    for found, expected in (
        (out / "stage_1", tmp_path / "unbroken" / "stage_1"), (out, tmp_path / "unbroken"),
    ):  # fmt: skip
        assert len(curve(found)) == 30
        assert curve(found) == curve(expected)
        assert_same(contents(found, 30), contents(expected, 30))
