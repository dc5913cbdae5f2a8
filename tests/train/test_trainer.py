"""A run as a whole: its files, how it stops, and what becomes of it."""

import json
import os
import signal
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

import rsbackbones as rsb
from rsbackbones.cli import main as cli
from rsbackbones.files.environment import environment
from rsbackbones.train.__main__ import command as train_command
from rsbackbones.train.command import call_command
from rsbackbones.train.engine.config_io import from_json, to_json
from rsbackbones.train.engine.errors import TrainingError
from rsbackbones.train.export import command as export_command
from rsbackbones.train.export import export
from rsbackbones.train.initialize import build_objective, initialize_weights, read_run
from rsbackbones.train.pretraining import pretrain
from rsbackbones.train.recipe import Recipe
from tests.train.training import (
    BANDS,
    DEADLINE,
    SIDE,
    checkpoints,
    command,
    curve,
    drawing,
    end,
    kill,
    small_recipe,
    start,
    steps_logged,
    wait_until,
    write_data,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A run of 24 steps, with a moving average."""
    out = tmp_path_factory.mktemp("runs") / "tiny_run"
    with drawing():
        return pretrain(small_recipe(data, out, ema=0.5, tensorboard=True)), out


def test_the_files_of_a_run(data, finished):
    summary, out = finished
    assert (summary.status, summary.step, summary.total_steps) == ("finished", 24, 24)
    assert {p.name for p in out.iterdir()} == {
        "recipe.json", "metrics.jsonl", "loss.png", "reconstruction.png", "summary.json", "table.md",
        "checkpoints", "tensorboard",
    }  # fmt: skip
    record = json.loads((out / "recipe.json").read_text())
    assert from_json(record["recipe"], Recipe) == small_recipe(data, out, ema=0.5, tensorboard=True)
    assert record["environment"]["torch"] == torch.__version__
    assert record["environment"]["rsbackbones"] == rsb.__version__
    assert [(s["name"], s["places"], s["frames"]) for s in record["sources"]] == [
        ("paired", 20, 1), ("optical", 24, 1),
    ]  # fmt: skip
    assert record["sources"][0]["bands"] == {m: list(b) for m, b in BANDS.items()}
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 25))
    assert [line["epoch"] for line in lines] == [step / 8 for step in range(1, 25)]
    assert sum("contrast" in line for line in lines) == 15  # the batches of pairs
    for line in lines:
        assert line["loss"] == pytest.approx(line["reconstruction"] + line.get("contrast", 0), rel=1e-5)
        assert 0 <= line["data_wait"] <= 1 < line["samples_per_s"]
    assert lines[-1]["reconstruction"] < lines[0]["reconstruction"]
    assert json.loads((out / "summary.json").read_text()) == {
        "status": "finished", "step": 24, "total_steps": 24, "samples_seen": 192,
        "seconds": summary.seconds, "output": str(out),
    }  # fmt: skip
    for name in ("loss.png", "reconstruction.png"):
        header = (out / name).read_bytes()[:24]
        assert header.startswith(b"\x89PNG")
        assert min(struct.unpack(">II", header[16:])) > 200
    table = (out / "table.md").read_text().splitlines()
    columns = [cell.strip() for cell in table[0].split("|")[1:-1]]
    assert table[2].startswith("| 1 to 3 |")
    assert table[-1].startswith("| 22 to 24 |")
    means = dict(zip(columns, (cell.strip() for cell in table[2].split("|")[1:-1]), strict=True))
    assert float(means["loss"]) == pytest.approx(np.mean([x["loss"] for x in lines[:3]]), rel=1e-3)
    (events,) = (out / "tensorboard").iterdir()
    assert events.stat().st_size > 24 * 100


def test_the_commit_is_that_of_the_checkout():
    top = Path(rsb.__file__).parents[1]
    head = subprocess.run(
        ["git", "-C", top, "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    commit = environment()["commit"]
    assert commit is None if head.returncode else commit.removesuffix("-dirty").endswith(head.stdout.strip())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends(data, tmp_path, number):
    """Sent to the process and its loader workers alike, as a terminal and a scheduler do."""
    out, log = tmp_path / "run", tmp_path / "log"
    recipe = small_recipe(data, out, epochs=1000, data__workers=2)
    process = start(command(recipe, tmp_path / "recipe.json"), log)
    try:
        wait_until(lambda: steps_logged(out) > 2, process, log)
        os.killpg(process.pid, number)
        assert process.wait(DEADLINE) == 0, log.read_text()
    finally:
        kill(process.pid)
    last = steps_logged(out)
    assert f"stopped at step {last} of 8000" in log.read_text()
    assert "the same command resumes the run" in log.read_text()
    assert checkpoints(out) == [f"step_{last:09d}"]
    assert json.loads((out / "summary.json").read_text())["status"] == "stopped"
    pretrain(small_recipe(data, out, epochs=1000, max_steps=last + 2))
    pretrain(small_recipe(data, tmp_path / "unbroken", epochs=1000, max_steps=last + 2))
    assert curve(out) == curve(tmp_path / "unbroken")


def test_an_error_ends_the_process_and_its_workers(data, tmp_path):
    """Workers ignore signals: left alone, they and the traceback would keep the process alive for ever."""
    recipe = small_recipe(
        data, tmp_path / "run", optim__base_lr=1e30, optim__warmup=0, optim__clip_grad=None, data__workers=2
    )
    process = start(command(recipe, tmp_path / "recipe.json"), tmp_path / "log")
    try:
        assert process.wait(DEADLINE) == 2, (tmp_path / "log").read_text()
    finally:
        end(process)


def test_a_run_does_not_go_on_with_other_data(data, tmp_path):
    out = tmp_path / "run"
    pretrain(small_recipe(data, out, max_steps=1))
    other = write_data(tmp_path / "other", pairs=21)
    with pytest.raises(TrainingError, match=r"run on other data.*'places': 20.*'places': 21"):
        pretrain(small_recipe(other, out, max_steps=2))
    same = write_data(tmp_path / "same")
    assert pretrain(small_recipe(same, out, max_steps=2)).step == 2


def test_a_sensor_that_no_source_feeds_is_refused(data, tmp_path):
    only = to_json(small_recipe(data))["data"]["parts"][1:]
    with pytest.raises(TrainingError, match="no source has s1"):
        pretrain(small_recipe(data, tmp_path / "run", data__parts=only))
    with pytest.raises(TrainingError, match=r"data\.units names S2"):
        pretrain(small_recipe(data, tmp_path / "run", data__units={"S2": "dn_baseline_0400"}))


def test_a_loss_that_is_not_finite_stops_the_run(data, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(
        TrainingError, match=r"not finite at step .*parameters and buffers are unchanged"
    ) as error:
        pretrain(
            small_recipe(
                data, out, optim__base_lr=1e30, optim__warmup=0, optim__clip_grad=None, save__every=1
            )
        )
    (file,) = out.glob("nan_step_*.pt")
    assert file.name in str(error.value)
    held = torch.load(file, weights_only=True)
    step = held["step"]
    assert file.name == f"nan_step_{step:09d}_rank_0.pt"
    # What is saved is the batch of that step, and the parameters are those of the steps before.
    (batch,) = held["batches"]
    assert len(batch["names"]) == 8
    assert batch["images"]["s2"].shape == (8, 12, SIDE, SIDE)
    assert all(image.isfinite().all() for image in batch["images"].values())
    assert len(curve(out)) == step
    assert checkpoints(out)[-1] == f"step_{step:09d}"
    assert not [name for name in checkpoints(out) if name.endswith(".tmp")]


def bad_data(folder, bad):
    """Sixty places, of which the first ``bad`` hold NaN in their radar image."""
    write_data(folder, pairs=60)
    arrays = dict(np.load(folder / "paired.npz"))
    arrays["s1"][:bad, 0, 0, 0] = np.nan
    np.savez(folder / "paired.npz", **arrays)
    return folder


def test_bad_samples_below_the_share_are_listed(tmp_path):
    folder, out = bad_data(tmp_path / "data", 3), tmp_path / "run"
    options = {"epochs": 1, "data__max_bad_share": 0.1, "data__mixup": 0}
    assert pretrain(small_recipe(folder, out, **options)).status == "finished"
    listed = [json.loads(line) for line in (out / "bad_samples.jsonl").read_text().splitlines()]
    assert {name for name, _ in listed} <= {f"paired: paired.npz[{i}]" for i in range(3)}
    assert len(listed) == len(dict(listed)) >= 2
    assert all("without data" in why for _, why in listed)


def test_too_many_bad_samples_stop_the_run(tmp_path):
    folder, out = bad_data(tmp_path / "data", 30), tmp_path / "run"
    go = lambda share: pretrain(small_recipe(folder, out, data__max_bad_share=share, epochs=1))  # noqa: E731
    with pytest.raises(TrainingError, match=r"of 84 places cannot be used.*max_bad_share=0\.1") as error:
        go(0.1)
    listed = (out / "bad_samples.jsonl").read_text().splitlines()
    assert len(listed) >= 9
    assert all(f"{name}: {why}" in str(error.value) for name, why in map(json.loads, listed[:9]))
    with pytest.raises(TrainingError, match="places cannot be used"):  # nor does it go on the next time
        go(0.1)
    assert go(0.6).status == "finished"


def test_a_dry_run_says_and_writes_nothing(data, tmp_path, capsys):
    out = tmp_path / "run"
    recipe = small_recipe(data, out)
    arguments = command(recipe, tmp_path / "recipe.json")[3:]
    assert call_command(train_command, [*arguments, "--dry-run"], "rsbackbones.train") == 0
    printed = capsys.readouterr().out
    objective = build_objective(recipe)
    counts = [sum(p.numel() for p in m.parameters()) / 1e6 for m in (objective, objective.backbone)]
    assert f"parameters: {counts[0]:.2f} M, of which the encoder's {counts[1]:.2f} M" in printed
    assert "run: 24 steps of 8; an epoch has 8" in printed
    assert "source paired: 20 samples x 2 an epoch, s2 12 bands, s1 2 bands" in printed
    assert {"peak memory", "FLOPs", "step", "estimated duration"} <= {
        line.split(":")[0] for line in printed.splitlines()
    }
    assert not out.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["recipe.json"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["recipe=croma_vit_tiny", "optim.lr=3"], "unknown key 'optim.lr', did you mean 'optim.base_lr'?"),
        (["recipe=croma_vit_tiny", "--dry"], "No such option '--dry'. Did you mean '--dry-run'?"),
        (["recipe=croma_vit_tiny", "data.root=/nowhere", "output=OUT"], "/nowhere"),
    ],
)
def test_what_is_wrong_on_the_command_line(tmp_path, arguments, expected, capsys):
    arguments = [a.replace("OUT", str(tmp_path / "run")) for a in arguments]
    assert call_command(train_command, arguments, "rsbackbones.train") == 2
    assert expected in capsys.readouterr().err


# -- export -------------------------------------------------------------------------------------------------


def export_run(*arguments):
    return call_command(export_command, arguments, "rsbackbones.train.export")


def images(count=2):
    generator = torch.Generator().manual_seed(0)
    return {m: torch.rand(count, len(b), SIDE, SIDE, generator=generator) for m, b in BANDS.items()}


def features(model):
    with torch.no_grad():
        return model.eval().forward_features(images())


def average_of(out, step=24):
    """The averaged encoder in the run's last checkpoint, read by torch's own converter."""
    file = out.with_name("average.pt")
    dcp_to_torch_save(out / "checkpoints" / f"step_{step:09d}", file)
    held = torch.load(file, weights_only=True)["ema"]
    return {n.removeprefix("backbone."): t for n, t in held.items() if n.startswith("backbone.")}


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    _, out = finished
    folder = tmp_path_factory.mktemp("exports") / "weights"
    export(out, folder, full=True)
    return folder


def same(a, b):
    """Features of two models, bit for bit."""
    flat = [torch.utils._pytree.tree_leaves(vars(x) if hasattr(x, "__dict__") else x) for x in (a, b)]
    tensors = [[t for t in leaves if isinstance(t, torch.Tensor)] for leaves in flat]
    assert tensors[0]
    return len(tensors[0]) == len(tensors[1]) and all(
        torch.equal(*pair) for pair in zip(*tensors, strict=True)
    )


def test_the_exported_encoder_is_the_trained_one(finished, exported, monkeypatch):
    _, out = finished
    weights = exported / "croma_vit_tiny.tiny_run.safetensors"
    plain = rsb.create_model(
        "croma_vit_tiny", image_size=SIDE, overrides={"dim": 32, "depth": 2, "num_heads": 4}
    )
    assert plain.load_state_dict(average_of(out), strict=False).unexpected_keys == []
    expected = features(plain)
    assert same(features(rsb.create_model("croma_vit_tiny", checkpoint=weights)), expected)
    monkeypatch.setenv("RSBACKBONES_MANIFEST", str(exported / "manifest.json"))
    assert same(features(rsb.create_model("croma_vit_tiny.tiny_run", pretrained=True)), expected)
    torch.manual_seed(7)
    other = rsb.create_model(
        "croma_vit_tiny", image_size=SIDE, overrides={"dim": 32, "depth": 2, "num_heads": 4}
    )
    assert not same(features(other), expected)
    assert cli(["verify", "croma_vit_tiny.tiny_run"]) == 0
    entry = json.loads((exported / "manifest.json").read_text())["weights"][0]
    assert "24 steps of 8, 192 samples seen" in entry["provenance"]
    assert "paired (20 places); optical (24 places)" in entry["provenance"]


def test_an_export_states_the_bands_that_the_run_had(data, tmp_path, monkeypatch):
    bands = {"s2": ["B08", "B04"], "s1": ["VH"]}
    overrides = {"dim": 32, "depth": 2, "num_heads": 4, "bands": bands}
    pretrain(small_recipe(data, tmp_path / "run", overrides=overrides, max_steps=1))
    export(tmp_path / "run", tmp_path / "weights")
    monkeypatch.setenv("RSBACKBONES_MANIFEST", str(tmp_path / "weights" / "manifest.json"))
    model = rsb.create_model("croma_vit_tiny", pretrained=True)
    assert model.bands == {"s2": ("B08", "B04"), "s1": ("VH",)}
    contract = rsb.create_preprocess(model).specs["s2"]
    assert contract.mean == (2517.76053101, 1297.47289228)  # SSL4EO-S12's of B08 and B04


def test_the_whole_objective_can_be_begun_with(data, finished, exported, tmp_path):
    _, out = finished
    file = exported / "objective.safetensors"
    trained = read_run(out)[2]
    recipe = small_recipe(data, init_from=str(file), seed=3)
    begun = build_objective(recipe)
    assert initialize_weights(begun, recipe) == f"begins with {file}"
    for name, value in trained.state_dict().items():
        assert torch.equal(begun.state_dict()[name], value)
    summary = pretrain(small_recipe(data, tmp_path / "run", init_from=str(file), epochs=1))
    assert summary.step == 8
    first, before = curve(tmp_path / "run", "reconstruction")[0], curve(out, "reconstruction")[0]
    assert first < before
    other = small_recipe(data, init_from=str(file), objective__contrast="none")
    with pytest.raises(TrainingError, match="is not this objective"):
        initialize_weights(build_objective(other), other)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_of_half_precision(finished, tmp_path, dtype):
    _, out = finished
    assert export_run(str(out), "--output", str(tmp_path / "half"), "--tag", "half", "--dtype", dtype) == 0
    model = rsb.create_model(
        "croma_vit_tiny", checkpoint=tmp_path / "half" / "croma_vit_tiny.half.safetensors"
    )
    average = average_of(out)
    for name, p in model.named_parameters():
        assert p.dtype == torch.float32
        assert torch.equal(p, average[name].to(getattr(torch, dtype)).float())


def test_exports_that_cannot_be(finished, tmp_path, capsys):
    _, out = finished
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    (tmp_path / "empty" / "recipe.json").write_text((out / "recipe.json").read_text())
    for arguments, expected in (
        ([str(tmp_path / "nowhere"), "--output", str(tmp_path / "a")], "is not a run"),
        ([str(out), "--output", str(tmp_path / "full")], "not an empty folder"),
        ([str(out), "--output", str(tmp_path / "a"), "--tag", "A b"], "a tag is lower-case"),
        ([str(tmp_path / "empty"), "--output", str(tmp_path / "a")], "no whole checkpoint"),
    ):
        assert export_run(*arguments) == 2
        assert expected in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    assert (tmp_path / "full" / "file").exists()
