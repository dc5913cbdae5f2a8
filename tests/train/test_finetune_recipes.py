"""The recipes are the papers' rows: numbers copied by hand from the papers, not from the code."""

import re
import shlex
from pathlib import Path

import pytest

from rsbackbones.train.engine.config_io import from_json, parse_arguments, to_json
from rsbackbones.train.finetune import RECIPES, FinetuneOptim, FinetuneRecipe, Views
from rsbackbones.train.finetune.table import recipe_table

PAGE = Path(__file__).parents[2] / "docs" / "finetuning.md"

# CROMA, A.4.2; SeaMo, 4.2; AuxMAE, 4.2; FoMu, D.2 and D.4. A rate with b is times batch / 256; epochs are
# warm-up + the rest. The size is that of images, or of tiles and their overlap.
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
auxmae_bigearthnet            adafactor 1e-2    30000    4096   own       0     no      linear
auxmae_bigearthnet_frozen     adafactor 1e-2    30000    4096   own       0     yes     linear
auxmae_sen1floods11           adafactor 1e-2    30000    4096   own       0     no      vit_lite
auxmae_sen1floods11_frozen    adafactor 1e-2    30000    4096   own       0     yes     vit_lite
auxmae_superresolution        adafactor 1e-2    10000    4096   own       0     no      vit_lite
auxmae_superresolution_frozen adafactor 1e-2    10000    4096   own       0     yes     vit_lite
fomu_potsdam                  sgd       0.01    0+50     8      512/0     0     no      upernet
fomu_vaihingen                sgd       0.01    40000    4      512/0     0     no      upernet
fomu_ucm_linear               sgd       0.1b    0+200    32     224       0     yes     -
fomu_eurosat_linear           sgd       0.1b    0+50     256    224       0     yes     -
"""
TABLE = [line.split() for line in ROWS.strip().splitlines()[1:]]
RADAR = {"seamo_eurosat_sar", "seamo_bigearthnet_sar", "seamo_dfc2020_sar", "seamo_s1s2_water_s1"}


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
    assert recipe.model == ("seamo_vit_b" if name.startswith("seamo") else "croma_vit_b")
    assert recipe.modalities == (("s1",) if name in RADAR else ("s2",))
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
        size=120, flips=True, turns=True, mixup=0.8, cutmix=1.0, switch=0.5, smoothing=0.1
    )
    assert recipe.precision == "bf16"


def test_seamo():
    for name in (n for n in RECIPES if n.startswith("seamo")):
        recipe, dense = RECIPES[name], RECIPES[name].views.size is None
        assert recipe.optim.schedule == "cosine"
        # Mixed where images have classes; flips alone where pixels have; turns, too, for change.
        assert (recipe.views.mixup, recipe.views.cutmix) == ((0, 0) if dense else (0.8, 1.0))
        assert recipe.views.flips
        assert recipe.views.turns == (not dense or name == "seamo_oscd")
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
        assert (RECIPES[name].views.mixup, RECIPES[name].views.smoothing) == (0, 0)


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
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {"labelled_set": None}
    exec(code.split("result =")[0], names)
    assert names["recipe"].batch_size == 64


def test_recipes_are_read_back():
    for recipe in RECIPES.values():
        assert from_json(to_json(recipe), FinetuneRecipe) == recipe


def test_fields_in_the_command():
    recipe = parse_arguments(
        ["recipe=croma", "sweep=true", "rates=1e-4,1e-3", "views.size=none", "optim.layer_decay=0.75",
         'head_options={"width":64}', "modalities=s2", "data=x.npz"],
        RECIPES,
    )  # fmt: skip
    assert recipe.sweep
    assert recipe.rates == (1e-4, 1e-3)
    assert recipe.views.size is None
    assert recipe.optim.layer_decay == 0.75
    assert recipe.head_options == {"width": 64}
    assert recipe.modalities == ("s2",)
    with pytest.raises(ValueError, match=r"unknown key 'views.mixupp', did you mean 'mixup'"):
        parse_arguments(["recipe=croma", "views.mixupp=1"], RECIPES)
    with pytest.raises(ValueError, match=r"^batch_size: Input should be a valid integer, .*, got 'x'$"):
        parse_arguments(["recipe=croma", "batch_size=x"], RECIPES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": None}, "epochs or steps, one of them; got None and None"),
        ({"steps": 3}, "epochs or steps, one of them; got 35 and 3"),
        ({"scale": 0}, "scale must be at least 1, got 0"),
        ({"drop_path": 1.0}, "drop_path from 0 to below 1, got 2 and 1.0"),
        ({"sweep": True, "rates": (1e-3,)}, "at least two different positive rates"),
        ({"freeze": True, "drop_path": 0.1}, "frozen backbone has neither drop_path nor layer_decay"),
        ({"freeze": True, "optim": FinetuneOptim(layer_decay=0.5)}, "neither drop_path nor layer_decay"),
    ],
)
def test_numbers_that_cannot_be(changes, message):
    fields = {"name": "x", "model": "croma_vit_tiny", "batch_size": 4, "epochs": 35}
    with pytest.raises(ValueError, match=message):
        FinetuneRecipe(**fields | changes)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (Views, {"size": 0}, "views.size must be at least 1 pixel"),
        (Views, {"overlap": 4}, "views.overlap is that of tiles"),
        (Views, {"tile": 8, "overlap": 8}, "less than their side, got 8 of 8"),
        (Views, {"mixup": -1}, "must not be negative, got -1 and 1.0"),
        (Views, {"switch": 2}, "views.switch is a share"),
        (Views, {"smoothing": 1}, "views.smoothing one below 1"),
        (FinetuneOptim, {"base_lr": 0}, "optim.base_lr must be positive"),
        (FinetuneOptim, {"layer_decay": 1.5}, "optim.layer_decay above 0 and at most 1"),
        (FinetuneOptim, {"warmup_steps": -1}, "must not be negative"),
        (FinetuneOptim, {"clip_grad": 0}, "optim.clip_grad must be positive"),
    ],
)
def test_parts_that_cannot_be(kind, fields, message):
    with pytest.raises(ValueError, match=message):
        kind(**fields)
