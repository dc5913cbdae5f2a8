"""Fine-tuning from the first step to the numbers: what is learned, chosen, reported and saved."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import rsbackbones as rsb
from rsbackbones.cli import main as cli
from rsbackbones.data.labelled import open_labelled
from rsbackbones.eval.transform import make_transform
from rsbackbones.models.backbone import unwrap_model
from rsbackbones.train.command import call_command
from rsbackbones.train.engine.config_io import apply_overrides, from_json, to_json
from rsbackbones.train.engine.distributed import DistributedContext
from rsbackbones.train.finetune import RECIPES, finetune, load_finetuned
from rsbackbones.train.finetune.__main__ import command
from rsbackbones.train.finetune.run import FinetuneRun, build_model
from rsbackbones.train.finetune.tune import said
from tests.train.finetune_setup import CLASSES, DENSE, finer, labelled, saved, seamo_with_block, small_recipe
from tests.train.training import checkpoints, curve, drawing

UNMIXED = {"views__mixup": 0, "views__cutmix": 0}


def plain(task):
    return UNMIXED if task in ("classes", "multilabel") else DENSE


def evaluations(out):
    return [json.loads(line) for line in (out / "evaluations.jsonl").read_text().splitlines()]


def predicted(model, data, split):
    """What a model gives on a split, sample by sample."""
    inputs = make_transform(model, data)
    out = []
    with torch.no_grad():
        for i in data.splits[split]:
            out.append(model({m: x[None] for m, x in inputs(data.read(int(i))).items()})[0])
    return torch.stack(out)


def accuracy(model, data, split):
    """Of images, or of the pixels that have a label."""
    classes = predicted(model, data, split).argmax(1)
    if data.labels is not None:
        return (classes.numpy() == data.labels[data.splits[split]]).mean()
    target = np.stack([data.read(int(i))["label"] for i in data.splits[split]])
    return (classes.numpy() == target)[target >= 0].mean()


@pytest.fixture(scope="module")
def classified(tmp_path_factory):
    data, out = labelled(count=32, sensors=("s2", "s1")), tmp_path_factory.mktemp("runs") / "classes"
    with drawing():
        return data, out, finetune(small_recipe(out, seed=3, views__mixup=0.8), data)


def test_what_a_run_writes(classified):
    data, out, result = classified
    assert {p.name for p in out.iterdir()} == {
        "recipe.json", "metrics.jsonl", "evaluations.jsonl", "loss.png", "summary.json", "table.md",
        "checkpoints", "best", "result.json",
    }  # fmt: skip
    assert json.loads((out / "result.json").read_text()) == json.loads(json.dumps(result))
    assert from_json(result["recipe"], type(RECIPES["croma"])) == small_recipe(out, seed=3, views__mixup=0.8)
    assert result["seed"] == 3
    assert result["environment"]["torch"] == torch.__version__
    assert result["data"]["samples"] == {"train": 16, "val": 8, "test": 8}
    assert result["data"]["digest"] == data.digest
    assert [line["step"] for line in curve_lines(out)] == list(range(1, 17))  # 4 epochs of 16 / 4
    every = evaluations(out)
    assert [(line["step"], line["epoch"], line["split"]) for line in every] == [
        (4 * i, i, "val") for i in (1, 2, 3, 4)
    ]
    assert result["chosen"]["value"] == max(line["top1"] for line in every)
    low, high = result["intervals"]["top1"]
    assert low <= result["value"] == result["metrics"]["top1"] <= high
    assert f"{100 * result['value']:.2f} %" in said(result)
    assert not result["optimistic"]


def curve_lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("task", ["classes", "multilabel", "pixels", "change"])
def test_labels_are_learned_and_the_saved_model_is_the_best_one(task, tmp_path):
    data = labelled(task, count=32)
    result = finetune(small_recipe(tmp_path / "run", epochs=6, **plain(task)), data)
    every, metric = evaluations(tmp_path / "run"), result["metric"]
    assert (
        metric
        == {"classes": "top1", "multilabel": "map_micro", "pixels": "miou", "change": "f1_change"}[task]
    )
    best = max(every, key=lambda line: line[metric])
    assert result["chosen"]["step"] == best["step"]
    model = load_finetuned(tmp_path / "run" / "best")
    assert not model.training
    about = json.loads((tmp_path / "run" / "best" / "about.json").read_text())
    assert about["classes"] == list(data.classes)
    assert about["step"] == best["step"]
    if task == "multilabel":
        scores = predicted(model, data, "test").sigmoid().numpy().ravel()
        hits = data.labels[data.splits["test"]].ravel()[np.argsort(-scores, kind="stable")]
        precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
        assert result["value"] == pytest.approx(precision[hits].mean())
        assert result["value"] > 0.85
        return
    name = "top1" if task == "classes" else "pixel_accuracy"
    assert result["metrics"][name] == pytest.approx(accuracy(model, data, "test"))
    assert best[name] == pytest.approx(accuracy(model, data, "val"))
    assert result["metrics"][name] > 0.75
    if task == "classes":  # the backbone with its classifier is a file for create_model
        other = rsb.create_model(
            "croma_vit_tiny", checkpoint=tmp_path / "run" / "best" / "model.safetensors", num_classes=None
        )
        assert torch.equal(predicted(other, data, "test"), predicted(model, data, "test"))


@pytest.mark.parametrize(
    ("task", "head", "options"),
    [
        ("pixels", "upernet", {"head_options": {"width": 16}}),
        ("change", "upernet", {"head_options": {"width": 16}}),
        ("pixels", "vit_lite", {"head_options": {"width": 32, "depth": 1}, "scale": 4}),
        ("pixels", "vit_lite", {"head_options": {"width": 32, "depth": 1}, "freeze": True}),
        ("change", "linear", {"views__overlap": 0}),
    ],
)
def test_dense_heads_by_tiles(task, head, options, tmp_path):
    """Tiles are merged where they are evaluated; the model that is loaded is scored alike, pixel by pixel."""
    data = labelled(task, side=24)
    data = finer(data, options["scale"]) if "scale" in options else data
    changes = {**DENSE, "head": head, "views__tile": 16, "epochs": 1, "optim__warmup_epochs": 0, **options}
    result = finetune(small_recipe(tmp_path / "run", **changes), data)
    # 4 tiles of 16 with an overlap of 8, or of 0, cover 24 pixels.
    assert len(curve_lines(tmp_path / "run")) == 12 * 4 // 4
    model = load_finetuned(tmp_path / "run" / "best")
    inputs, hits = make_transform(model, data), []
    scale, starts = options.get("scale", 1), (0, 8)
    for i in data.splits["test"]:
        sample = data.read(int(i))
        images = inputs(sample)["s2"]
        total, times = torch.zeros(2, 24 * scale, 24 * scale), torch.zeros(24 * scale, 24 * scale)
        for top in starts:
            for left in starts:
                with torch.no_grad():
                    part = model({"s2": images[..., top : top + 16, left : left + 16][None]})[0].softmax(0)
                where = (
                    slice(top * scale, (top + 16) * scale), slice(left * scale, (left + 16) * scale)
                )  # fmt: skip
                total[:, *where] += part
                times[where] += 1
        label, scores = sample["label"], (total / times).numpy()
        # Where both scores are equal up to rounding, tiles in a batch and one by one may decide differently.
        tied = np.abs(scores[0] - scores[1]) < 1e-6
        hits.append(np.stack([scores.argmax(0) == label, tied])[:, label >= 0])
    right, tied = np.concatenate(hits, axis=1)
    accuracy = result["metrics"]["pixel_accuracy"] * right.size
    assert (right & ~tied).sum() - 1e-6 <= accuracy <= (right | tied).sum() + 1e-6
    assert tied.mean() < 1e-3


@pytest.mark.parametrize("task", ["classes", "pixels"])
def test_a_frozen_backbone_does_not_move(task, tmp_path):
    data = labelled(task)
    start = build_model(small_recipe(**plain(task)), data)
    before = {n: p.clone() for n, p in unwrap_model(start).state_dict().items()}
    for name, freeze in (("frozen", True), ("tuned", False)):
        finetune(small_recipe(tmp_path / name, freeze=freeze, epochs=2, **plain(task)), data)
        after = load_file(tmp_path / name / "best" / "model.safetensors")
        moved = {n for n, p in before.items() if not torch.equal(p, after[n])}
        assert all(n.startswith("head.") for n in moved) if freeze else len(moved) > len(before) / 2
        assert freeze is False or task == "pixels" or moved == {"head.weight", "head.bias"}


def test_the_papers_way_and_ours(tmp_path):
    """Without a validation split a fifth of the training samples decides, or as in papers the test split."""
    data = labelled(count=32, val=False)
    ours = finetune(small_recipe(tmp_path / "ours", epochs=2, **UNMIXED), data)
    assert ours["data"]["samples"] == {"train": 19, "val": 5, "test": 8}
    assert (ours["split"], ours["chosen"]["by"], ours["optimistic"]) == ("test", "val", False)
    assert "our own fifth of the training samples (seed 0), 5 of 24" in " ".join(ours["notes"])
    papers = finetune(small_recipe(tmp_path / "papers", epochs=3, select="paper", **UNMIXED), data)
    assert papers["data"]["samples"] == {"train": 24, "test": 8}
    assert (papers["split"], papers["chosen"]["by"], papers["optimistic"]) == ("test", "test", True)
    assert papers["value"] == max(line["top1"] for line in evaluations(tmp_path / "papers"))
    assert papers["value"] == papers["best_single_evaluation"]["value"]
    assert "optimistic: chosen on the split that it is reported on" in said(papers)
    with_val = finetune(
        small_recipe(tmp_path / "val", epochs=1, optim__warmup_epochs=0, select="paper"), labelled()
    )
    assert (with_val["split"], with_val["optimistic"]) == ("val", True)


def test_a_sweep_reports_the_best_rate_and_goes_on(tmp_path, monkeypatch):
    data, rates = labelled(count=32), (0.1, 1e-5, 1e-6)
    recipe = small_recipe(tmp_path / "sweep", sweep=True, rates=rates, epochs=2, **UNMIXED)
    partial = finetune(replace(recipe, max_steps=3), data)
    assert partial["status"] == "finished"
    assert partial["step"] == 3
    assert "the same command resumes the run" in said(partial)
    assert not (tmp_path / "sweep" / "result.json").exists()
    result = finetune(recipe, data)
    folders = [tmp_path / "sweep" / f"lr_{rate:g}" for rate in rates]
    bests = [max(line["top1"] for line in evaluations(folder)) for folder in folders]
    assert list(result["sweep"]) == ["0.1", "1e-05", "1e-06"]
    assert list(result["sweep"].values()) == bests
    assert bests[0] > max(bests[1:])
    assert result["chosen"]["base_lr"] == 0.1
    alone = finetune(small_recipe(tmp_path / "alone", epochs=2, **UNMIXED), data)
    assert curve(folders[0]) == curve(tmp_path / "alone")
    assert alone["metrics"] == result["metrics"]
    with pytest.raises(ValueError, match="holds a single run"):
        finetune(replace(recipe, output=tmp_path / "alone"), data)
    assert max(line["lr"] for line in curve_lines(folders[1])) == pytest.approx(1e-5 * 4 / 256)
    # Finished runs are not run again.
    monkeypatch.setattr("rsbackbones.train.engine.train_step.TrainRun.forward_backward", None)
    assert finetune(recipe, data)["metrics"] == result["metrics"]


@pytest.mark.parametrize("task", ["classes", "pixels"])
def test_a_run_that_was_interrupted_goes_on_with_the_same_numbers(task, tmp_path):
    """With drop path and mixing, which draw: at an epoch's end and in the middle of one."""
    data = labelled(task)
    options = {"drop_path": 0.3, **({} if task == "classes" else {**DENSE, "head": "upernet"})}
    options |= {"head_options": {"width": 16}} if task == "pixels" else {}
    whole = finetune(small_recipe(tmp_path / "whole", **options), data)
    for steps in (3, 7, None):
        result = finetune(small_recipe(tmp_path / "cut", max_steps=steps, **options), data)
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
    assert evaluations(tmp_path / "cut") == evaluations(tmp_path / "whole")
    assert result["metrics"] == whole["metrics"]
    assert result["model"]["sha256"] == whole["model"]["sha256"]


def test_an_evaluation_that_was_cut_short_is_repeated(tmp_path):
    """Killed after the last checkpoint, while its evaluation was written: the best model is found again."""
    data, out = labelled(), tmp_path / "run"
    whole = finetune(small_recipe(out), data)
    before, file = evaluations(out), out / "evaluations.jsonl"
    file.write_text(file.read_text()[:-30])
    (out / "result.json").unlink()
    assert finetune(small_recipe(out), data)["metrics"] == whole["metrics"]
    assert evaluations(out) == before


def test_activations_that_are_computed_again_change_nothing(tmp_path):
    data = labelled(sensors=("s2", "s1"))
    for again in (False, True):
        recipe = small_recipe(tmp_path / str(again), drop_path=0.3, epochs=2, activation_checkpointing=again)
        finetune(recipe, data)
    one, two = (torch.tensor(curve(tmp_path / name)) for name in ("False", "True"))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-6)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    recipe = small_recipe(tmp_path, optim__base_lr=1e30, optim__warmup_epochs=0)
    with pytest.raises(ValueError, match=r"not finite at step \d+.*optim.base_lr, or set optim.clip_grad"):
        finetune(recipe, labelled())
    (file,) = tmp_path.glob("nan_step_*_rank_0.pt")
    (batch,) = torch.load(file, weights_only=True)["batches"]
    assert batch["target"].shape == (4, 3)
    assert len(batch["names"]) == 4


def test_two_passes_of_half_a_batch_are_one(tmp_path):
    """Mixed samples too: their partners are those of the whole batch."""
    data = labelled(sensors=("s2", "s1"))
    for passes in (1, 2):
        finetune(small_recipe(tmp_path / str(passes), accumulate=passes, freeze=False), data)
    one, two = (torch.tensor(curve(tmp_path / str(passes))) for passes in (1, 2))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)
    assert len(one) == 12


def test_water_is_scored_of_three_classes(tmp_path):
    """AuxMAE, Sen1Floods11: background, water and clouds are trained, the IoU of water is the result."""
    pixels = labelled("pixels")

    def read(index):
        sample = {name: x.copy() for name, x in pixels.read(index).items()}
        sample["label"][8:, 12:] = 2
        sample["s2"][:, 8:, 12:] += 3000
        return sample

    data = replace(pixels, classes=("background", "water", "clouds"), read=read)
    row = RECIPES["auxmae_sen1floods11"]
    result = finetune(small_recipe(tmp_path, metric=row.metric, **DENSE), data)
    model = load_finetuned(tmp_path / "best")
    assert model.num_classes == 3
    found = predicted(model, data, "test").argmax(1).numpy()
    label = np.stack([data.read(int(i))["label"] for i in data.splits["test"]])
    found, label = found[label >= 0] == 1, label[label >= 0] == 1
    assert result["value"] == pytest.approx((found & label).sum() / (found | label).sum())
    assert result["metric"] == "iou_water"


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("classes", {"views__tile": 8}, "views.tile cuts images with labels of pixels; small classes has"),
        ("pixels", {**DENSE, "views__size": 32}, "views.size resizes images with one label"),
        (
            "classes",
            {"batch_size": 6, "accumulate": 2},
            "mixed in pairs: batch_size 6 must be a multiple of 2 x",
        ),
        ("classes", {"metric": "miou"}, "metric=miou: labels of small classes have top1, balanced_accuracy"),
        ("pixels", {**DENSE, "metric": "iou_snow"}, "metric=iou_snow.*iou_dry, f1_dry, iou_water"),
        ("classes", {"batch_size": 16}, "12 samples.*less than one batch of 16; lower batch_size"),
        ("classes", {"epochs": 1}, "warm-up of 3 steps is not shorter than the run of 3"),
        (
            "pixels",
            {**DENSE, "auxiliary": 0.4},
            "maps of UPerNet.*got labels of pixels, head=linear and freeze",
        ),
        ("classes", {"views__ratio_range": [0.5, 2.0]}, "views.ratio_range is for labels of pixels"),
        ("pixels", {**DENSE, "scale": 2}, r"sample \d+: the label map is \[16, 16\].*with scale=2 expected"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_trained(task, changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        finetune(small_recipe(tmp_path / "run", **changes), labelled(task))
    assert not (tmp_path / "run" / "result.json").exists()
    assert not (tmp_path / "run" / "best").exists()


def test_unknown_options_of_the_data_are_refused(tmp_path):
    recipe = replace(small_recipe(tmp_path / "out"), data=str(tmp_path), data_options={"foo": 1})
    with pytest.raises(ValueError, match="unknown data_options foo; there are labels, mapping"):
        finetune(recipe)


def test_splits_that_are_missing_are_named_before_training(tmp_path):
    data = labelled()
    data = replace(data, splits={name: data.splits[name] for name in ("train", "val")})
    with pytest.raises(ValueError, match="no test samples; its splits: train, val; select=paper reports"):
        finetune(small_recipe(tmp_path / "run"), data)
    with pytest.raises(ValueError, match=r"no output folder: pass output=FOLDER"):
        finetune(small_recipe(), data)
    with pytest.raises(ValueError, match=r"no data: pass data=PATH"):
        finetune(small_recipe(tmp_path / "run"))


def test_one_image_has_no_interval(tmp_path):
    data = labelled("pixels")
    data = replace(data, splits={**data.splits, "test": data.splits["test"][:1]})
    result = finetune(small_recipe(tmp_path, epochs=1, optim__warmup_epochs=0, **DENSE), data)
    assert result["intervals"] == {}
    assert "interval" not in said(result)


def test_another_run_in_the_same_folder_is_refused(classified):
    data, out, _ = classified
    with pytest.raises(ValueError, match=r"optim.base_lr: 0.1 -> 0.2"):
        finetune(small_recipe(out, seed=3, views__mixup=0.8, optim__base_lr=0.2), data)
    other = labelled(count=32, sensors=("s2", "s1"), seed=1)
    with pytest.raises(ValueError, match=r"other data|data"):
        finetune(small_recipe(out, seed=3, views__mixup=0.8), other)


def test_a_saved_model_that_was_changed_is_refused(classified, tmp_path):
    _, out, _ = classified
    for file in (out / "best").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    held = bytearray(weights.read_bytes())
    held[-1] ^= 1
    weights.write_bytes(held)
    with pytest.raises(ValueError, match=r"model.safetensors is not what was written"):
        load_finetuned(tmp_path)
    with pytest.raises(ValueError, match="holds no fine-tuned model: FileNotFoundError"):
        load_finetuned(tmp_path / "none")


COMMAND = [
    "model=croma_vit_tiny", "pretrained=false", "epochs=2", "optim.warmup_epochs=1", "views.size=none",
    "batch_size=4", "workers=0", "precision=fp32",
    'overrides={"dim":32,"depth":2,"num_heads":4,"bands":{"s2":["B02","B03","B04","B08"],"s1":["VV","VH"]}}',
]  # fmt: skip


def test_the_commands(tmp_path, capsys):
    """``python -m rsbackbones.train.finetune`` and ``rsbackbones finetune`` are one."""
    file = saved(labelled(), tmp_path / "small.npz")
    arguments = ["recipe=croma_eurosat", f"data={file}", *COMMAND]
    module = "rsbackbones.train.finetune"
    assert call_command(command, [*arguments, f"output={tmp_path / 'a'}"], module) == 0
    assert "chosen by val top1" in capsys.readouterr().out
    assert cli(["finetune", *arguments, f"output={tmp_path / 'b'}"]) == 0
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    assert checkpoints(tmp_path / "a") == ["step_000000006"]
    assert json.loads((tmp_path / "a" / "best" / "about.json").read_text())["classes"] == list(CLASSES)
    assert call_command(command, ["--list"], module) == 0
    assert "| `seamo_oscd` | `seamo_vit_b` | adamw, 0.0001 x b/256 |" in capsys.readouterr().out
    assert cli(["finetune", "recipe=nothing", "output=x"]) == 2
    assert "unknown recipe 'nothing'" in capsys.readouterr().err
    assert call_command(command, ["--fast"], module) == 2
    assert "No such option '--fast'" in capsys.readouterr().err


def test_images_of_another_sensor(tmp_path):
    """Two steps on Landsat's bands through the command's fields; the saved model knows what it takes."""
    names = ("B2", "B3", "B4", "B5", "B6")
    draw = np.random.default_rng(6)
    images = draw.integers(8000, 14000, (16, 5, 16, 16)).astype(np.uint16)
    np.savez(
        tmp_path / "oli.npz", landsat_oli=images, landsat_oli_bands=np.array(names), label=np.arange(16) % 2,
        units=np.array(["landsat_oli=landsat_c2"]),
    )  # fmt: skip
    fields = {
        "data": str(tmp_path / "oli.npz"), "sensors": '{"s2": "landsat_oli"}', "pretrained": "true",
        "bands": '{"s2": ["B2", "B4", "B5", "B6"]}', "missing_bands": "nearest", "kernel_scale": "sqrt",
        "overrides": "{}", "epochs": "1",
    }  # fmt: skip
    recipe = apply_overrides(small_recipe(tmp_path / "run", optim__warmup_epochs=0), fields)
    assert from_json(json.loads(json.dumps(to_json(recipe))), type(recipe)) == recipe
    result = finetune(recipe)
    assert result["status"] == "finished"
    assert any("landsat_oli" in note for note in result["notes"])
    data = open_labelled(tmp_path / "oli.npz", sensors={"s2": "landsat_oli"})
    expected = rsb.create_model(
        "croma_vit_tiny", True, modalities=("s2",), sensors={"s2": "landsat_oli"},
        bands={"s2": ("B2", "B4", "B5", "B6")}, missing_bands="nearest", kernel_scale="sqrt",
    )  # fmt: skip
    began = build_model(recipe, data).state_dict()
    assert all(torch.equal(began[name], x) for name, x in expected.state_dict().items())
    model = load_finetuned(tmp_path / "run" / "best")
    assert model.config.sensors == {"s2": "landsat_oli"}
    assert accuracy(model, data, "test") == result["metrics"]["top1"]
    with pytest.raises(ValueError, match="says that s2 is superdove; oli was opened as landsat_oli"):
        finetune(apply_overrides(recipe, {"sensors.s2": "superdove", "output": str(tmp_path / "b")}), data)
    # Zeros that are trained would see bands without statistics: 1 everywhere.
    zero = apply_overrides(recipe, {"bands": '{"s2": ["B2", "B3", "B4", "B6"]}', "missing_bands": "zero"})
    with pytest.raises(ValueError, match=r"ignore B6 \(missing_bands='zero'\).*or freeze=true"):
        build_model(zero, data)
    frozen = build_model(apply_overrides(zero, {"freeze": "true"}), data)
    assert frozen.inputs["s2"].unused_bands == ("B6",)


@pytest.mark.parametrize("task", ["classes", "pixels"])
def test_what_joins_dates_is_not_trained_and_every_other_parameter_gets_a_gradient(tmp_path, task):
    """Of single images none reaches it: with many processes they would wait for it, and it would decay."""
    data = labelled(task, sensors=("s2", "s1") if task == "classes" else ("s2",))
    options = seamo_with_block(tmp_path)
    run = FinetuneRun(
        small_recipe(tmp_path / "run", **options, **plain(task)),
        DistributedContext(0, 1, torch.device("cpu")),
        data,
    )
    idle = {n for n, p in run.objective.named_parameters() if not p.requires_grad}
    assert idle == {n for n, _ in run.objective.named_parameters() if ".temporal." in n} != set()
    run.forward_backward([next(run.batches(0, 1))])
    assert {n for n, p in run.objective.named_parameters() if p.grad is None} == idle
    held = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in run.objective.parameters() if p.requires_grad}
    if task == "classes":
        finetune(small_recipe(tmp_path / "run", **options, epochs=2), data)
        before, after = (
            load_file(f) for f in (options["checkpoint"], tmp_path / "run/best/model.safetensors")
        )
        same = {n for n, tensor in before.items() if torch.equal(tensor, after[n])}
        assert same == {n for n in before if n.startswith("temporal.")}


def test_a_joint_encoder_leaves_what_pools_its_sensors_without_gradients(tmp_path):
    data = labelled("classes", sensors=("s2", "s1"))
    run = FinetuneRun(small_recipe(tmp_path / "run"), DistributedContext(0, 1, torch.device("cpu")), data)
    run.forward_backward([next(run.batches(0, 1))])
    idle = {n for n, p in run.objective.named_parameters() if p.grad is None}
    assert idle == {
        n for n, p in run.objective.named_parameters() if not p.requires_grad
    }  # DDP waits for none
    assert idle == {n for n, _ in run.objective.named_parameters() if ".embeddings." in n} != set()
