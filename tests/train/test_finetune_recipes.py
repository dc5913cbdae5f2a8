"""The recipes are the papers' rows: numbers copied by hand from the papers, not from the code."""

import ast
import dataclasses
import inspect
import json
import re
import shlex
from pathlib import Path

import pytest

from rsbackbones.data.series_folder import write_series
from rsbackbones.train.engine.config_io import apply_overrides, from_json, parse_arguments, to_json
from rsbackbones.train.finetune import RECIPES, FinetuneOptim, FinetuneRecipe, Views
from rsbackbones.train.finetune.table import recipe_table

PAGE = Path(__file__).parents[2] / "docs" / "finetuning.md"

# CROMA, A.4.2; SeaMo, 4.2; AuxMAE, 4.2; FoMu, D.2 and D.4; S4, 6.3. A rate with b is times batch / 256;
# epochs are warm-up + the rest. The size is that of images, or of tiles and their overlap.
ROWS = """
recipe                        optimizer rate    length   batch  size      drop  freeze  head
croma                         adamw     sweep   5+30     256    120       0     no      -
croma_eurosat                 adamw     sweep   5+150    256    120       0     no      -
croma_fmow_full               adamw     1e-5b   5+30     256    120       0     no      -
seamo_eurosat                 adamw     1e-2b   20+130   512    128       0.2   no      -
seamo_eurosat_sar             adamw     1e-2b   20+130   512    128       0.2   no      -
seamo_fmow                    adamw     2e-4b   20+60    512    128       0.2   no      -
seamo_bigearthnet             adamw     1e-5b   10+40    512    128       0.2   no      -
seamo_bigearthnet_sar         adamw     8e-5b   10+40    512    128       0.2   no      -
seamo_dfc2020                 adamw     1e-4b   5+25     64     own       0     no      upernet
seamo_dfc2020_sar             adamw     1e-4b   5+25     64     own       0     no      upernet
seamo_segmunich               adamw     1e-4b   0+100    128    128/64    0     no      upernet
seamo_oscd                    adamw     1e-4b   0+50     128    128/64    0     no      upernet
seamo_glh_water               adamw     1e-4b   0+30     24     512/0     0     no      upernet
seamo_s1s2_water_s2           adamw     1e-4b   0+30     24     256/0     0     no      upernet
seamo_s1s2_water_s1           adamw     1e-4b   0+30     24     256/0     0     no      upernet
auxmae_bigearthnet            adafactor 1e-2    30000    4096   128       0     no      linear
auxmae_bigearthnet_frozen     adafactor 1e-2    30000    4096   128       0     yes     linear
auxmae_sen1floods11           adafactor 1e-2    30000    4096   own       0     no      vit_lite
auxmae_sen1floods11_frozen    adafactor 1e-2    30000    4096   own       0     yes     vit_lite
auxmae_superresolution        adafactor 1e-2    10000    4096   own       0     no      vit_lite
auxmae_superresolution_frozen adafactor 1e-2    10000    4096   own       0     yes     vit_lite
fomu_potsdam                  sgd       0.01    0+50     8      512/0     0     no      upernet
fomu_vaihingen                sgd       0.01    40000    4      512/0     0     no      upernet
fomu_ucm_linear               sgd       0.1b    0+200    32     224       0     yes     -
fomu_eurosat_linear           sgd       0.1b    0+50     256    224       0     yes     -
s4_pastis                     adam      1e-3    0+50     4      own       0     no      unet3d
s4_pastis_sar                 adam      1e-3    0+50     4      own       0     no      unet3d
s4_africa                     adam      1e-3    0+50     4      own       0     no      unet3d
s4_africa_sar                 adam      1e-3    0+50     4      own       0     no      unet3d
s4_series                     adam      1e-3    0+50     4      own       0     no      unet3d
s4_mmf                        adam      1e-3    0+50     4      own       0     no      fusion
"""
TABLE = [line.split() for line in ROWS.strip().splitlines()[1:]]
RADAR = {
    "seamo_eurosat_sar", "seamo_bigearthnet_sar", "seamo_dfc2020_sar", "seamo_s1s2_water_s1",
    "s4_pastis_sar", "s4_africa_sar",
}  # fmt: skip


def test_there_are_no_others():
    assert [row[0] for row in TABLE] == list(RECIPES)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row[0])
def test_rows(row):
    name, optimizer, rate, length, batch, size, drop, freeze, head = row
    recipe = RECIPES[name]
    optim, views = recipe.optim, recipe.views
    assert recipe.name == name
    assert optim.name == optimizer
    assert recipe.batch_size == int(batch)
    assert recipe.drop_path == float(drop)
    assert recipe.freeze == (freeze == "yes")
    if "+" in length:
        up, down = map(int, length.split("+"))
        assert (recipe.epochs, recipe.steps, optim.warmup_epochs) == (up + down, None, up)
    else:
        assert (recipe.epochs, recipe.steps, optim.warmup_epochs) == (None, int(length), 0)
    if rate == "sweep":
        assert recipe.rates == (3e-5, 5e-5, 8e-5, 1e-4, 3e-4, 5e-4, 8e-4, 1e-3)
        assert optim.scaled
    else:
        assert (optim.base_lr, optim.scaled) == (float(rate.rstrip("b")), rate.endswith("b"))
        assert recipe.rates == ()
    if size == "own":
        assert (views.size, views.tile) == (None, None)
    elif "/" in size:
        assert (views.tile, views.overlap) == tuple(map(int, size.split("/")))
    else:
        assert (views.size, views.tile) == (int(size), None)
    if head != "-":
        assert recipe.head == head
    models = {"croma": "croma_vit_b", "seamo": "seamo_vit_b", "auxmae": "auxmae_vit_b"}
    models |= {"fomu": "fomu_resnet50", "s4": "s4_unet3d"}
    assert recipe.model == models[name.partition("_")[0]]
    own = ("rgb",) if name.startswith("fomu") else ("s2",)
    assert recipe.modalities == (("s1",) if name in RADAR else own)
    assert not recipe.sweep
    assert recipe.select == "val"


@pytest.mark.parametrize("name", [n for n in RECIPES if n.startswith("croma")])
def test_croma(name):
    """AdamW 0.9, 0.999, weight decay 0.01; mixup 0.8, cutmix 1.0, switch 0.5, smoothing 0.1, flips, turns."""
    recipe = RECIPES[name]
    assert recipe.optim.betas == (0.9, 0.999)
    assert (recipe.optim.weight_decay, recipe.optim.schedule) == (0.01, "cosine")
    assert recipe.optim.min_lr == 0
    assert recipe.views == Views(
        size=120, flips=True, rot90=True, mixup=0.8, cutmix=1.0, switch_prob=0.5, label_smoothing=0.1
    )
    assert recipe.precision == "bf16"


def test_s4():
    """Adam of a constant rate, no augmentation, RGB of the optical bands, the fine-tuned set's statistics."""
    for name in (n for n in RECIPES if n.startswith("s4")):
        recipe = RECIPES[name]
        assert (recipe.optim.schedule, recipe.optim.weight_decay) == ("constant", 0)
        assert recipe.views == Views(flips=False, rot90=False, mixup=0, cutmix=0, label_smoothing=0)
        if name != "s4_mmf":
            assert recipe.bands["s2"] == ("B02", "B03", "B04")
            assert recipe.statistics == "dataset"
    assert RECIPES["s4_africa"].data_options == {"ignore": [0]}


def test_seamo():
    for name in (n for n in RECIPES if n.startswith("seamo")):
        recipe, dense = RECIPES[name], RECIPES[name].views.size is None
        assert recipe.optim.schedule == "cosine"
        # Mixed where images have classes; flips alone where pixels have; turns, too, for change.
        assert (recipe.views.mixup, recipe.views.cutmix) == ((0, 0) if dense else (0.8, 1.0))
        assert recipe.views.flips
        assert recipe.views.rot90 == (not dense or name == "seamo_oscd")
        assert recipe.optim.layer_decay == 1


def test_auxmae():
    for name in (n for n in RECIPES if n.startswith("auxmae")):
        recipe = RECIPES[name]
        assert recipe.optim.schedule == "constant"
        assert recipe.scale == (4 if "superresolution" in name else 1)
        assert recipe.metric == ("iou_water" if "floods" in name else None)


def test_fomu():
    potsdam, vaihingen = RECIPES["fomu_potsdam"].optim, RECIPES["fomu_vaihingen"].optim
    for optim in (potsdam, vaihingen):
        assert (optim.momentum, optim.weight_decay) == (0.9, 5e-4)
    assert (potsdam.schedule, potsdam.warmup_steps, potsdam.min_lr) == ("cosine", 100, 1e-6)
    assert (vaihingen.schedule, vaihingen.power, vaihingen.min_lr) == ("poly", 0.9, 1e-4)
    assert vaihingen.warmup_steps == 0
    for name in ("fomu_ucm_linear", "fomu_eurosat_linear"):
        assert RECIPES[name].optim.momentum == 0.9
        assert (RECIPES[name].views.mixup, RECIPES[name].views.label_smoothing) == (0, 0)
    for name in ("fomu_potsdam", "fomu_vaihingen"):
        assert RECIPES[name].auxiliary == 0.4
        assert RECIPES[name].views.ratio_range == (0.5, 2.0)
        assert RECIPES[name].views.flips == "horizontal"
        assert RECIPES[name].views.photometric
    # Potsdam without clutter, Vaihingen with it; UC Merced split at random.
    assert list(RECIPES["fomu_potsdam"].data_options["classes"].values()) == [[1], [2], [3], [4], [5]]
    assert list(RECIPES["fomu_vaihingen"].data_options["classes"].values()) == [[i] for i in range(1, 7)]
    assert RECIPES["fomu_ucm_linear"].data_options == {"stratify": False}


def test_the_table_of_the_page_is_that_of_the_recipes():
    """``python -m rsbackbones.train.finetune --list`` prints it."""
    assert recipe_table(RECIPES) in PAGE.read_text(encoding="utf-8")


def test_the_commands_of_the_page_are_understood():
    text = PAGE.read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(
        r"^(?:rsbackbones finetune|torchrun .* -m rsbackbones.train.finetune) (.*)$", text, re.M
    )
    assert len(commands) > 3
    for line in commands:
        recipe = parse_arguments(shlex.split(line, comments=True), RECIPES)
        assert recipe.data
        assert recipe.output
    tuning, series, written = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {"labelled_set": None}
    exec(tuning.split("result =")[0], names)
    assert names["recipe"].batch_size == 64
    exec(series.split("data =")[0], names)
    changes = re.search(r"apply_overrides\(recipe, ({.*?})\)", series)
    assert apply_overrides(names["recipe"], json.loads(changes[1])).views.cutmix == 0
    (call,) = (node.value for node in ast.parse(written).body if isinstance(node, ast.Expr))
    inspect.signature(write_series).bind(*call.args, **{k.arg: k.value for k in call.keywords})


def test_recipes_are_read_back():
    for recipe in RECIPES.values():
        assert from_json(to_json(recipe), FinetuneRecipe) == recipe


def test_fields_in_the_command():
    recipe = parse_arguments(
        ["recipe=croma", "sweep=true", "rates=1e-4,1e-3", "views.size=none", "optim.layer_decay=0.75",
         'head_options={"width":64}', "modalities=s2", "data=x.npz", "bands.s2=B2,B3",
         "sensors.s2=landsat_oli", "data_options.subset=0.1"],
        RECIPES,
    )  # fmt: skip
    assert recipe.sweep
    assert recipe.rates == (1e-4, 1e-3)
    assert recipe.views.size is None
    assert recipe.optim.layer_decay == 0.75
    assert recipe.head_options == {"width": 64}
    assert recipe.modalities == ("s2",)
    assert recipe.bands == {"s2": ("B2", "B3")}
    assert recipe.sensors == {"s2": "landsat_oli"}
    assert recipe.data_options == {"subset": 0.1}
    with pytest.raises(ValueError, match=r"unknown key 'views.mixupp', did you mean 'views.mixup'"):
        parse_arguments(["recipe=croma", "views.mixupp=1"], RECIPES)
    with pytest.raises(ValueError, match=r"^batch_size must be a valid integer, .*, got 'x'$"):
        parse_arguments(["recipe=croma", "batch_size=x"], RECIPES)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("optim.lr=1", "'optim.lr', did you mean 'optim.base_lr' or 'optim.min_lr'?"),
        ("learning_rate=1", "unknown key 'learning_rate'"),
        ("data=", "data: String should have at least 1 character, got ''"),
        ("checkpoint=", "checkpoint: the path is empty"),
        ("epochs=-1", "epochs must be greater than or equal to 1, got -1"),
        ("evaluate_every=0", "evaluate_every must be greater than or equal to 1, got 0"),
        ("evaluation_batch=0", "evaluation_batch must be greater than or equal to 1, got 0"),
        ("workers=-1", "workers must be greater than or equal to 0, got -1"),
        ("drop_path=1", "drop_path must be less than 1, got 1"),
        ("rates=1e-3,-1", "rates.1 must be greater than 0, got -1"),
        ("views.size=-8", "views.size must be greater than or equal to 1, got -8"),
        ("views.label_smoothing=1", "views.label_smoothing must be less than 1, got 1"),
        ("views.overlap=4", "views: overlap needs tile"),
        ("optim.momentum=1", "optim.momentum must be less than 1, got 1"),
        ("optim.layer_decay=0", "optim.layer_decay must be greater than 0, got 0"),
        ("share=0", "share must be greater than 0, got 0"),
        ("share=1.1", "share must be less than or equal to 1, got 1.1"),
        ("select=test", "select must be 'val' or 'paper', got 'test'"),
    ],
)
def test_arguments_out_of_range_are_named(argument, expected):
    with pytest.raises(ValueError, match=re.escape(expected)):
        parse_arguments(["recipe=croma_eurosat", argument], RECIPES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": None}, "set epochs or steps, one of them; got None and None"),
        ({"steps": 3}, "set epochs or steps, one of them; got 35 and 3"),
        ({"scale": 0}, r"scale\s+Input should be greater than or equal to 1 "),
        ({"drop_path": 1.0}, r"drop_path\s+Input should be less than 1 .*input_value=1\.0"),
        ({"sweep": True, "rates": (1e-3,)}, "at least two different rates"),
        (
            {"freeze": True, "drop_path": 0.1},
            "drop_path and optim.layer_decay do not apply to a frozen backbone",
        ),
        (
            {"freeze": True, "optim": FinetuneOptim(layer_decay=0.5)},
            "drop_path and optim.layer_decay do not apply to a frozen backbone",
        ),
    ],
)
def test_numbers_that_cannot_be(changes, message):
    fields = {"name": "x", "model": "croma_vit_tiny", "batch_size": 4, "epochs": 35}
    with pytest.raises(ValueError, match=message):
        FinetuneRecipe(**fields | changes)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (Views, {"size": 0}, r"size\s+Input should be greater than or equal to 1 "),
        (Views, {"overlap": 4}, "overlap needs tile"),
        (Views, {"tile": 8, "overlap": 8}, "less than the side of a tile; got overlap 8 and tile 8"),
        (Views, {"ratio_range": (2.0, 0.5)}, "ratio_range must go from low to high"),
        (Views, {"mixup": -1}, r"mixup\s+Input should be greater than or equal to 0 .*input_value=-1"),
        (Views, {"switch_prob": 2}, r"switch_prob\s+Input should be less than or equal to 1 "),
        (Views, {"label_smoothing": 1}, r"label_smoothing\s+Input should be less than 1 "),
        (FinetuneOptim, {"base_lr": 0}, r"base_lr\s+Input should be greater than 0 "),
        (FinetuneOptim, {"layer_decay": 1.5}, r"layer_decay\s+Input should be less than or equal to 1 "),
        (FinetuneOptim, {"warmup_steps": -1}, r"warmup_steps\s+Input should be greater than or equal to 0 "),
        (FinetuneOptim, {"clip_grad": 0}, r"clip_grad\s+Input should be greater than 0 "),
    ],
)
def test_parts_that_cannot_be(kind, fields, message):
    with pytest.raises(ValueError, match=message):
        kind(**fields)


def test_only_one_option_chooses_training_samples():
    with pytest.raises(ValueError, match=r"share=0\.1 and data_options\.subset=0\.5 both choose"):
        dataclasses.replace(RECIPES["fomu_potsdam"], share=0.1, data_options={"subset": 0.5})
