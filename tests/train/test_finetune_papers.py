"""The recipes of AuxMAE's and FoMu's papers run on small sets, whatever the model that is named."""

import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from rsbackbones.data.labelled.splits import training_share
from rsbackbones.train.engine.config_io import parse_arguments
from rsbackbones.train.finetune import RECIPES, finetune, load_finetuned
from tests.train.finetune_setup import finer, labelled, saved

QUICK = [
    "pretrained=false", "evaluate_every=2", "batch_size=4", "precision=fp32", "workers=0",
    "save.asynchronous=false",
]  # fmt: skip
RNG = np.random.default_rng(0)


def run(recipe, folder, *arguments, steps=2):
    command = [f"recipe={recipe}", f"output={folder}", f"steps={steps}", *QUICK, *arguments]
    return finetune(parse_arguments(command, RECIPES))


# ---------------------------------------------------------------------------------------------- AuxMAE

BANDS = ("B02", "B03", "B04", "B08")
NETWORK = {"dim": 16, "depth": 1, "num_heads": 2, "modalities": ["s2"], "bands": {"s2": BANDS}}
SMALL_HEAD = 'head_options={"width":16,"depth":1}'
# The kind of labels, what makes it small, and the metric of the paper's table 2.
AUXMAE = {
    "auxmae_bigearthnet": ("multilabel", "views.size=16", "map_micro"),
    "auxmae_sen1floods11": ("pixels", SMALL_HEAD, "iou_water"),
    "auxmae_superresolution": ("pixels", SMALL_HEAD, "miou"),
}


@pytest.mark.parametrize("recipe", AUXMAE)
@pytest.mark.parametrize("frozen", ["", "_frozen"])
def test_auxmae(recipe, frozen, tmp_path):
    """One command, and ``model=`` for the rows of the paper."""
    task, small, metric = AUXMAE[recipe]
    model = "mixmae_vit_tiny" if frozen else "auxmae_vit_tiny"
    data = labelled(task, count=8)
    if recipe == "auxmae_superresolution":
        data = finer(data, 4)
    file = saved(data, tmp_path / "set.npz")
    network = f"overrides={json.dumps(NETWORK)}"
    result = run(f"{recipe}{frozen}", tmp_path / "run", f"model={model}", network, f"data={file}", small)
    assert result["metric"] == metric
    assert 0 <= result["value"] <= 1
    load_finetuned(tmp_path / "run" / "best")


def test_superresolution_of_real_labels(real_data, tmp_path):
    """Land cover of 10 m from images of 40 m, as UrbanSRSeg8 has labels of 2.5 m for images of 10 m."""
    with np.load(real_data / "bigearthnet_v2_pairs_80.npz") as file:
        s2, codes = file["s2"][:12, :, :96, :96], file["clc"][:12, :96, :96]
    coarse = s2.reshape(12, 4, 24, 4, 24, 4).mean(axis=(3, 5)).astype(np.uint16)
    np.savez(
        tmp_path / "set.npz", s2=coarse, s2_bands=BANDS, label=codes.astype(np.int64) // 100,
        split=["train"] * 8 + ["val"] * 2 + ["test"] * 2,
    )  # fmt: skip
    classes = '{"artificial":[1],"agriculture":[2],"forest":[3],"water":[4,5]}'
    result = run(
        "auxmae_superresolution", tmp_path / "run", "model=auxmae_vit_tiny", SMALL_HEAD,
        f"overrides={json.dumps(NETWORK)}", f"data={tmp_path / 'set.npz'}", f"data_options.classes={classes}",
    )  # fmt: skip
    assert result["data"]["samples"] == {"train": 8, "val": 2, "test": 2}
    assert result["value"] > 0


# ------------------------------------------------------------------------------------------------ FoMu

MODEL = "model=fomu_resnet_tiny"


def picture(path, side=32):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (side, side, 3)).astype(np.uint8)).save(path)


@pytest.mark.parametrize(("recipe", "classes"), [("fomu_potsdam", 5), ("fomu_vaihingen", 6)])
def test_maps_of_potsdam_and_vaihingen(recipe, classes, tmp_path):
    """Pictures beside the label maps of MMSegmentation's converters: 0 is the boundary, 6 clutter."""
    rows = ["path,mask,split"]
    for i, split in enumerate(["train"] * 4 + ["val", "test"]):
        picture(tmp_path / "set" / f"{i}.png")
        label = np.arange(32 * 32).reshape(32, 32) % 7
        Image.fromarray(label.astype(np.uint8)).save(tmp_path / "set" / f"{i}_label.png")
        rows.append(f"{i}.png,{i}_label.png,{split}")
    (tmp_path / "set" / "labels.csv").write_text("\n".join(rows))
    result = run(
        recipe, tmp_path / "run", MODEL, f"data={tmp_path / 'set'}", "epochs=none", "views.tile=32",
        "optim.warmup_steps=0", 'head_options={"width":8}',
    )  # fmt: skip
    names = ["impervious_surface", "building", "low_vegetation", "tree", "car", "clutter"]
    assert result["data"]["classes"] == names[:classes]
    assert result["metrics"].keys() >= {f"iou_{name}" for name in names[:classes]}


def scenes(file, classes=3, count=10):
    """Write pictures of classes into a zip file, and return their names."""
    names = [f"class{k}/class{k}_{i}.png" for k in range(classes) for i in range(count)]
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            picture(file.parent / "picture.png")
            archive.write(file.parent / "picture.png", name)
    return names


def test_scenes_of_uc_merced_are_split_at_random(tmp_path):
    names = scenes(tmp_path / "ucm.zip")
    linear = (MODEL, f"data={tmp_path / 'ucm.zip'}", "epochs=none", "views.size=32")
    result = run("fomu_ucm_linear", tmp_path / "run", *linear)
    held = result["data"]["samples"]
    assert held["test"] == 6
    assert sum(held.values()) == len(names)
    assert result["recipe"]["freeze"]
    few = run("fomu_ucm_linear", tmp_path / "few", *linear, "share=0.5", "select=paper")
    assert few["data"]["samples"] == {"train": 12, "test": 6}
    assert any("a seeded 50 % by hash of the id (seed 0), 12 of 24" in note for note in few["notes"])


def test_scenes_of_eurosat_are_scored_on_validation_and_test(tmp_path):
    """``chosen`` has the score on the validation split, ``value`` that on the test split."""
    names = scenes(tmp_path / "eurosat.zip")
    for k, split in enumerate(("val", "test", "train")):
        listed = names[k::5] + (names[3::5] + names[4::5] if split == "train" else [])
        (tmp_path / f"{split}.txt").write_text("\n".join(listed))
    ids = json.dumps({split: str(tmp_path / f"{split}.txt") for split in ("train", "val", "test")})
    result = run(
        "fomu_eurosat_linear", tmp_path / "run", MODEL, f"data={tmp_path / 'eurosat.zip'}",
        f"data_options.ids={ids}", "epochs=none", "views.size=32",
    )  # fmt: skip
    assert result["data"]["samples"] == {"train": 18, "val": 6, "test": 6}
    assert (result["chosen"]["by"], result["split"]) == ("val", "test")
    assert 0 <= result["chosen"]["value"] <= 1
    assert 0 <= result["value"] <= 1


def test_a_smaller_share_is_part_of_a_larger_one_and_follows_the_seed():
    """Table A3: 1, 10, 20 and 50 % of the training samples."""
    data = labelled("pixels", count=400)

    def trained(share, seed):
        part = training_share(data, share, seed=seed)
        assert part.splits["test"] is data.splits["test"]
        return {data.ids[i] for i in part.splits["train"]}

    every = [trained(share, 0) for share in (0.01, 0.1, 0.2, 0.5)]
    assert [len(ids) for ids in every] == [2, 20, 40, 100]
    assert every[0] < every[1] < every[2] < every[3] < {data.ids[i] for i in data.splits["train"]}
    assert trained(0.5, 1) != every[3]
