"""Fine-tuning on series of pixels' classes: PASTIS-R and our own layout, from files to numbers."""

import json
import shlex
import warnings

import numpy as np
import pytest
import torch

from rsbackbones.cli import main
from rsbackbones.data.labelled import open_labelled
from rsbackbones.data.series_folder import write_series
from rsbackbones.eval.dense import predict
from rsbackbones.eval.metrics import from_confusion
from rsbackbones.eval.transform import dated_transform
from rsbackbones.train import pretrain
from rsbackbones.train.engine.config_io import apply_overrides, parse_arguments
from rsbackbones.train.engine.errors import TrainingError
from rsbackbones.train.finetune import RECIPES, finetune, load_finetuned
from rsbackbones.train.finetune.run import build_model
from rsbackbones.train.initialize import read_run
from rsbackbones.train.recipes import RECIPES as PRETRAINING
from rsbackbones.value_check import OffsetWarning
from tests.data.labelled.pastis_folder import MEANS, write_pastis

# As many weights as a test needs: all else is the recipe's.
SHORT = "epochs=none steps=20 evaluate_every=10 optim.base_lr=0.02"
TINY = "model=s4_unet3d_tiny overrides.widths=[4,8,16] precision=fp32 workers=0 pretrained=false"


@pytest.fixture(scope="module")
def pastis(tmp_path_factory):
    return write_pastis(tmp_path_factory.mktemp("pastis"), per_fold=2)


@pytest.fixture(scope="module")
def runs(pastis, tmp_path_factory):
    """Two runs of the recipe, on optical and on radar series."""
    out = tmp_path_factory.mktemp("runs")
    results = {}
    for name in ("s4_pastis", "s4_pastis_sar"):
        results[name] = finetune(recipe(f"recipe={name} data={pastis} output={out / name} {SHORT}"))
    return out, results


def recipe(text):
    return parse_arguments(shlex.split(f"{text} {TINY}"), RECIPES)


def test_pastis_runs_to_its_result(runs, pastis):
    out, results = runs
    result = results["s4_pastis"]
    assert json.loads((out / "s4_pastis/result.json").read_text()) == json.loads(json.dumps(result))
    assert (result["split"], result["chosen"]["by"], result["metric"]) == ("test", "val", "miou")
    assert result["best_single_evaluation"]["of"] == 2
    assert len(result["data"]["classes"]) == 19
    assert any("void is ignored" in note for note in result["notes"])
    assert result["metrics"]["miou_foreground"] > 0
    # Class k is brighter by 300 k in all bands; one class for all pixels would have 0.12.
    assert result["value"] > 0.2
    # All test samples are scored, by any batch.
    data, model = open_labelled(pastis), load_finetuned(out / "s4_pastis/best")
    counts = predict(model, data, "test", batch_size=1)
    assert counts.sum() == sum((data.read(int(i))["label"] >= 0).sum() for i in data.splits["test"])
    assert from_confusion(counts.sum(0), data.classes)["miou"] == pytest.approx(result["value"])
    assert np.array_equal(predict(model, data, "test", batch_size=4), counts)


def test_the_model_keeps_the_statistics_of_the_data(runs):
    out, _ = runs
    spec = load_finetuned(out / "s4_pastis/best").backbone.inputs["s2"]
    assert spec.bands == ("B02", "B03", "B04")
    assert spec.mean == pytest.approx((MEANS["S2"] + 2)[:3])
    assert spec.normalize == "standard"


def test_two_runs_by_the_clouds_of_the_series(runs, pastis, tmp_path, capsys):
    out, results = runs
    data = open_labelled(pastis)
    for rank, index in enumerate(data.splits["test"]):
        mask = np.zeros((len(data.read(int(index))["s2"]), 8, 8), np.uint8)
        mask[:1] = 9 * rank  # the second series has a cloudy image
        np.save(tmp_path / f"{data.ids[int(index)]}.npy", mask)
    command = ["eval", "clouds", "--run", out / "s4_pastis", "--against", out / "s4_pastis_sar",
               "--masks", tmp_path, "--mask-classes", "3,8,9,10", "--edges", "0,0.1,1", "--no-progress",
               "--device", "cpu"]  # fmt: skip
    assert main([*map(str, command), "--output", str(tmp_path / "clouds")]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0] == "| cloudy pixels | series | s4_pastis | s4_pastis_sar | difference |"
    assert [row.split("|")[2].strip() for row in table[2:] if row[:1] == "|"] == ["1", "1"]
    assert {p.name for p in (tmp_path / "clouds").iterdir()} == {"clouds.json", "clouds.md", "clouds.png"}
    whole = [*map(str, command[:-5]), "--edges", "0,1", "--no-progress"]
    assert main(whole) == 0
    both = [float(cell) for cell in capsys.readouterr().out.splitlines()[2].split("|")[3:5]]
    assert both == pytest.approx(
        [100 * results[n]["value"] for n in ("s4_pastis", "s4_pastis_sar")], abs=0.06
    )
    assert (
        main(["eval", "clouds", "--run", str(out / "s4_pastis"), "--against", str(out / "s4_pastis_sar")])
        == 2
    )
    assert "has no cloud mask: write one beside the images" in capsys.readouterr().err


def test_a_share_and_both_names_of_it(pastis, tmp_path):
    few = finetune(
        recipe(f"recipe=s4_pastis data={pastis} output={tmp_path / 'few'} steps=1 epochs=none subset=0.67")
    )
    assert few["data"]["samples"]["train"] == 4
    with pytest.raises(ValueError, match=r"share=0\.5 and subset=0\.5 both choose training samples"):
        recipe("recipe=s4_pastis share=0.5 subset=0.5")


@pytest.fixture(scope="module")
def africa(tmp_path_factory):
    """Our own layout: the background is 0, crops are 1 and 2, which show in one band."""
    out, rng = tmp_path_factory.mktemp("africa"), np.random.default_rng(0)
    for number in range(8):
        label = rng.integers(0, 3, (2, 2)).repeat(4, axis=0).repeat(4, axis=1)
        times = 2 + number % 3
        s2 = rng.normal(1500, 50, (times, 3, 8, 8)) + 400 * label
        s1 = rng.normal(-12, 1, (times + 1, 2, 8, 8)) + 3 * label
        write_series(
            out, f"field{number}", images={"s2": s2.astype(np.uint16), "s1": s1.astype(np.float32)},
            dates={"s2": 18000 + 30 * np.arange(times), "s1": 18000 + 30 * np.arange(times + 1)},
            bands={"s2": ("B02", "B03", "B04"), "s1": ("VV", "VH")}, label=label,
            classes=("background", "maize", "rice"), cloud=s2[:, 0] > 2000,
            split="train" if number < 4 else "val" if number < 6 else "test",
        )  # fmt: skip
    return out


def test_africa_ignores_the_background_or_leaves_it_out_of_the_mean(africa, tmp_path):
    run = f"data={africa} epochs=none steps=8 evaluate_every=4 optim.base_lr=0.01"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first = finetune(recipe(f"recipe=s4_africa output={tmp_path / 'a'} {run}"))
        predict(load_finetuned(tmp_path / "a/best"), open_labelled(africa, ignore=[0]), "test", batch_size=1)
    assert first["data"]["classes"] == ["maize", "rice"]
    # No value is below 1000: said once before training, once of the prediction, and counted in the result.
    said = [str(one.message) for one in caught if issubclass(one.category, OffsetWarning)]
    assert len(said) == 2
    assert all("all images: s2: hardly a value is below 950" in text for text in said)
    (note,) = (note for note in first["notes"] if "hardly a value" in note)
    assert note.startswith("warning at 2 of 2 images: s2:")
    second = finetune(
        recipe(f"recipe=s4_africa_sar output={tmp_path / 'b'} {run} data_options={{}} metric=miou_foreground")
    )
    assert second["data"]["classes"] == ["background", "maize", "rice"]
    assert second["metric"] == "miou_foreground"
    of_class = [second["metrics"][f"iou_{name}"] for name in ("maize", "rice")]
    assert second["value"] == pytest.approx(np.mean(of_class))
    with pytest.raises(ValueError, match="miou_foreground needs a class called background"):
        finetune(recipe(f"recipe=s4_africa output={tmp_path / 'c'} {run} metric=miou_foreground"))
    statistics = json.loads((africa / "statistics.json").read_text())["statistics"]
    spec = load_finetuned(tmp_path / "a/best").backbone.inputs["s2"]
    assert dict(zip(spec.bands, spec.mean, strict=True)) == pytest.approx(
        {b: m for b, (m, _) in statistics["s2"].items()}
    )


def test_locations_without_the_sensor_are_left_out(tmp_path):
    rng = np.random.default_rng(0)
    for number, split in enumerate(("train", "train", "train", "val", "test")):
        images = {"s2": rng.normal(1500, 300, (2, 3, 8, 8)), "s1": rng.normal(-12, 1, (2, 2, 8, 8))}
        held = {"s2": ("B02", "B03", "B04"), "s1": ("VV", "VH")}
        held = {m: bands for m, bands in held.items() if m == "s2" or number != 1}
        write_series(
            tmp_path / "set", f"field{number}", images={m: images[m] for m in held}, bands=held,
            dates={m: 18000 + 30 * np.arange(2) for m in held}, label=rng.integers(0, 2, (8, 8)),
            classes=("maize", "rice"), split=split,
        )  # fmt: skip
    command = f"recipe=s4_series data={tmp_path / 'set'} epochs=none steps=2 modalities=s1"
    result = finetune(recipe(f"{command} output={tmp_path / 'run'}"))
    assert result["data"]["samples"] == {"train": 2, "val": 1, "test": 1}
    assert any("1 of 5 samples are left out, which have no images of s1" in n for n in result["notes"])
    data = open_labelled(tmp_path / "set")
    assert data.complete(["s2"]) is data
    none = {tmp_path / f"{split}.txt": [f"field{i}"] for split, i in (("train", 1), ("test", 4))}
    for path, ids in none.items():
        path.write_text("\n".join(ids))
    lists = {path.stem: path for path in none}
    with pytest.raises(ValueError, match="no sample of the train split has images of s1"):
        open_labelled(tmp_path / "set", ids=lists).complete(["s1"])


def test_images_of_six_pixels_are_padded(tmp_path):
    rng = np.random.default_rng(0)
    for number, split in enumerate(("train", "train", "val", "test")):
        write_series(
            tmp_path / "set", f"field{number}", images={"s2": rng.normal(1500, 300, (3, 3, 6, 6))},
            dates={"s2": 18000 + 30 * np.arange(3)}, bands={"s2": ("B02", "B03", "B04")},
            label=rng.integers(0, 2, (6, 6)), classes=("maize", "rice"), split=split,
        )  # fmt: skip
    command = f"recipe=s4_series data={tmp_path / 'set'} epochs=none steps=1 output={tmp_path}"
    with pytest.raises(ValueError, match=r"6 x 6 pixels are not a multiple of 4.*pad=true"):
        finetune(recipe(f"{command}/refused"))
    finetune(recipe(f"{command}/run pad=true"))
    data, model = open_labelled(tmp_path / "set"), load_finetuned(tmp_path / "run/best")
    assert predict(model, data, "test", batch_size=1).sum() == 36
    x = dated_transform(model, data)(data.read(0)).images["s2"][None]
    wide = torch.nn.functional.pad(x, (0, 2, 0, 2, 0, 0), mode="replicate")
    with torch.inference_mode():
        narrow, logits = model({"s2": x}), model({"s2": wide})
    assert narrow.shape[-2:] == (6, 6)  # the last convolution, of 3 pixels, sees the image's own alone
    torch.testing.assert_close(narrow[..., :5, :5], logits[..., :5, :5])


def test_a_network_of_single_images_is_tuned_on_series(africa, tmp_path):
    options = "head=temporal head_options.temporal=convlstm head_options.width=8 precision=fp32"
    result = finetune(parse_arguments(shlex.split(
        "recipe=s4_series model=s4_unet2d overrides.widths=[4,8,16] workers=0 pretrained=false "
        f"data={africa} output={tmp_path / 'run'} {SHORT} {options}"
    ), RECIPES))  # fmt: skip
    assert result["value"] > 0.2
    data, model = open_labelled(africa), load_finetuned(tmp_path / "run/best")
    sample = dated_transform(model, data)(data.read(0))
    with torch.inference_mode():
        assert model({"s2": sample.images["s2"][None]}, dates=sample.dates["s2"][None]).shape == (1, 3, 8, 8)


@pytest.fixture(scope="module")
def reconstruction(africa, tmp_path_factory):
    """A run of pretraining by reconstruction alone, from radar to optical bands."""
    out = tmp_path_factory.mktemp("pretrained") / "run"
    changes = {
        "overrides": {
            "widths": [4, 8, 16], "inference_modality": "s1",
            "bands": {"s2": ["B02", "B03", "B04"], "s1": ["VV", "VH"]},
        },
        "data.root": str(africa), "data.size": 8, "data.crop": [8, 8], "data.workers": 0, "batch_size": 2,
        "objective.losses": "reconstruction", "objective.length": 3, "steps": 2, "output": str(out),
    }  # fmt: skip
    pretrain(apply_overrides(PRETRAINING["s4_unet3d_tiny"], changes))
    return out


def test_fusion_sees_what_a_frozen_run_makes(africa, reconstruction, tmp_path):
    text = f"recipe=s4_mmf data={africa} output={tmp_path / 'run'} reconstruct={reconstruction} modalities=s1"
    result = finetune(recipe(f"{text} epochs=none steps=4 evaluate_every=4 optim.base_lr=0.01"))
    assert 0 <= result["value"] <= 1
    model, data = load_finetuned(tmp_path / "run/best"), open_labelled(africa)
    assert model.backbone.modalities == ("s1",)
    _, _, objective, _ = read_run(reconstruction)
    objective.eval()
    trained = objective.backbone.state_dict()
    assert all(torch.equal(x, trained[name]) for name, x in model.backbone.state_dict().items())
    series = dated_transform(model, data)(data.read(1))
    x = series.images["s1"][None]
    with torch.inference_mode():
        # By hand: the run's own reconstruction, beside the images, through the second network.
        made = objective._predict(objective.backbone.encode_levels("s1", x, None))
        network = model.head.network
        assert network.stems["s1"].first.conv.in_channels == 5
        both = torch.cat((x, made[:, : x.shape[1]]), dim=2)
        _, full = network.decode_levels("s1", network.encode_levels("s1", both, None))
        expected = model.head.classify([full.maps.transpose(1, 2)], full.there)
        torch.testing.assert_close(model({"s1": x}), expected)
        padded = torch.cat((x, torch.full_like(x, float("nan"))), dim=1)
        valid = torch.arange(padded.shape[1])[None] < x.shape[1]
        torch.testing.assert_close(model({"s1": padded}, valid={"s1": valid}), expected)
    with pytest.raises(TrainingError, match="reconstructs from s1: pass modalities=s1"):
        build_model(recipe(f"recipe=s4_mmf reconstruct={reconstruction}"), data)


def test_what_does_not_fit_is_said(africa, pastis, tmp_path):
    data = open_labelled(africa)
    with pytest.raises(TrainingError, match=r"head=fusion needs reconstruct=RUN"):
        build_model(recipe("recipe=s4_mmf"), data)
    with pytest.raises(TrainingError, match="is not a run"):
        build_model(recipe(f"recipe=s4_mmf reconstruct={tmp_path}"), data)
    with pytest.raises(TrainingError, match=r"reconstruct is for head=fusion .* got head=unet3d"):
        finetune(recipe(f"recipe=s4_series data={africa} output={tmp_path / 'r'} reconstruct={tmp_path}"))
    (pastis.parent / "none").mkdir()
    without = write_pastis(pastis.parent / "none")
    (without / "NORM_S2_patch.json").unlink()
    with pytest.raises(
        TrainingError, match=r"PASTIS-R comes with no mean and deviation of s2 B02.*statistics=weights"
    ):
        build_model(recipe("recipe=s4_pastis"), open_labelled(without))
