"""Recipes: what is typed becomes what is run, or an error that says what was meant."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rsbackbones.train.engine.config_io import (
    apply_overrides,
    differences,
    from_json,
    parse_arguments,
    to_json,
)
from rsbackbones.train.finetune.recipes import RECIPES as FINETUNE_RECIPES
from rsbackbones.train.recipe import Recipe
from rsbackbones.train.recipes import RECIPES
from tests.train.training import small_recipe

TINY = RECIPES["croma_vit_tiny"]


def parse(*arguments):
    return parse_arguments(["recipe=croma_vit_tiny", *arguments], RECIPES)


def test_arguments_replace_single_fields():
    recipe = parse(
        "batch_size=32", "optim.base_lr=1e-5", "optim.betas=0.9,0.95", "data.crop=60,180", "data.size=120",
        "data.root=/d", "output=/o", "optim.clip_grad=none", "data.flips=false", "overrides.dim=32",
        'data.units={"s2": "reflectance"}', "objective.masking=shared", "max_steps=7", "precision=bf16",
        "save.asynchronous=False", "overrides.positions=sincos",
    )  # fmt: skip
    assert recipe == replace(
        TINY,
        batch_size=32,
        output=Path("/o"),
        max_steps=7,
        precision="bf16",
        overrides={**TINY.overrides, "dim": 32, "positions": "sincos"},
        optim=replace(TINY.optim, base_lr=1e-5, betas=(0.9, 0.95), clip_grad=None),
        data=replace(
            TINY.data, crop=(60, 180), size=120, root=Path("/d"), flips=False, units={"s2": "reflectance"}
        ),
        objective=replace(TINY.objective, masking="shared"),
        save=replace(TINY.save, asynchronous=False),
    )
    assert type(recipe.overrides["dim"]) is int
    assert parse("data.crop=[60, 180]").data.crop == (60, 180)
    assert parse("max_steps=none").max_steps is None
    assert parse('overrides={"dim": 32}').overrides == {"dim": 32}
    sensor = parse("overrides.sensors.s2=landsat_oli", 'overrides.bands.s2=["B2", "B5"]').overrides
    assert sensor == {"sensors": {"s2": "landsat_oli"}, "bands": {"s2": ["B2", "B5"], "s1": ["VV", "VH"]}}


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("batchsize=3", "'batchsize', did you mean 'batch_size'"),
        ("optim.base_learning_rate=1", "optim.base_learning_rate"),
        ("optim.bas_lr=1", "'optim.bas_lr', did you mean 'optim.base_lr'"),
        ("data.corp=1,2", "'data.corp', did you mean 'data.crop'"),
        ("objective.mask_ratio=0.5", "'objective.mask_ratio', did you mean 'objective.mask_ratio_s"),
        ("optimizer.base_lr=1", "'optimizer', did you mean 'optim'"),
        ("data.root.x=1", "data.root.x"),
        ("seed.x=1", "seed.x"),
        ("overrides.bands.s2.x=1", "overrides.bands.s2 is a list"),
        ("data.parts.0.repaet=2", "'data.parts.0.repaet', did you mean 'data.parts.0.repeats'"),
        ("data.parts.9.repeats=2", "data.parts is a list, its elements are 0 to 4"),
        (
            'data.parts=[{"file": {"path": "a", "images": {}}, "repaet": 2}]',
            "did you mean 'data.parts.0.repeats'",
        ),
        (
            'data.parts=[{"file": {"path": "a", "images": {}, "tiel": 2}}]',
            "did you mean 'data.parts.0.file.tile'",
        ),
        ("optim.lr=1", "'optim.lr', did you mean 'optim.base_lr'"),
        ("lr=1", "'lr', did you mean 'optim.base_lr'"),
        ("base_lr=1", "'base_lr', did you mean 'optim.base_lr'"),
        ("size=64", "'size', did you mean 'data.size'"),
        ("data.parts.0.file.places=3", "unknown key 'data.parts.0.file.places'. Known keys: path, images"),
        (
            'data.parts=[{"file": {"places": 3, "sizes": 64}}]',
            "'data.parts.0.file.sizes', did you mean 'data.parts.0.file.size'? Known keys: places, size",
        ),
        ("data.size=-8", "data.size must be greater than or equal to 1, got -8"),
        ("data.size=12.5", "data.size must be a valid integer"),
        ("data.root=", "data.root: the path is empty"),
        ("output=", "output: the path is empty"),
        ("init_from=", "init_from: the path is empty"),
        ("model=", "model: String should have at least 1 character"),
        ("epochs=-3", "epochs must be greater than or equal to 1, got -3"),
        ("objective.mask_ratio_s1=1.5", "objective.mask_ratio_s1 must be less than 1, got 1.5"),
        (
            "objective.contrast_weight=-1",
            "objective.contrast_weight must be greater than or equal to 0, got -1",
        ),
        ("objective.hard_negatives=-1", "objective.hard_negatives must be"),
        ("objective.decoder_depth=0", "objective.decoder_depth must be greater than or equal to 1, got 0"),
        ("data.mixup=-1", "data.mixup must be greater than or equal to 0, got -1"),
        ("data.workers=-1", "data.workers must be greater than or equal to 0, got -1"),
        ("data.parts.0.repeats=0", "data.parts.0.repeats must be greater than or equal to 1, got 0"),
        ("data.parts.0.size=0", "data.parts.0.size must be greater than or equal to 1, got 0"),
        ("optim.betas=0.9,1", "optim.betas.1 must be less than 1, got 1"),
        ("save.every=0", "save.every must be greater than or equal to 1, got 0"),
        ("accumulate=0", "accumulate must be greater than or equal to 1, got 0"),
        ("batch_size", "batch_size"),
        ("batch_size=x", "batch_size"),
        ("batch_size=1.5", "batch_size"),
        ("batch_size=0", "batch_size must be greater than or equal to 1, got 0"),
        ("max_steps=0", "max_steps must be greater than or equal to 1, got 0"),
        ("log_every=-1", "log_every"),
        ("seed=-1", "seed"),
        ("seed=true", "seed: expected a number, got True"),
        ("data.mixup=true", "data.mixup: expected a number, got True"),
        ("timeout=0", "timeout"),
        ("precision=fp8", "precision"),
        ("parallel=none", "parallel"),
        ("ema=1", "ema"),
        ("ema=nan", "ema"),
        ("optim.base_lr=nan", "base_lr"),
        ("optim.base_lr=0", "base_lr"),
        ("optim.warmup=1", "warmup"),
        ("optim.name=lamb", "'adamw'"),
        ("optim.betas=0.9", "optim.betas"),
        ("optim.clip_grad=0", "clip_grad"),
        ("optim.weight_decay=-1", "weight_decay"),
        ("data.crop=180,60", "crop"),
        ("data.crop=1,2,3", "data.crop"),
        ("data.units={s2", "data.units"),
        ("data.flips=maybe", "data.flips"),
        ('data={"flips": 3}', "data.flips must be a valid boolean"),
        ('data={"crop": 3}', "data.crop must be a valid tuple"),
        ("data.max_bad_share=2", "max_bad_share"),
        ("save.keep=0", "save.keep"),
        ("objective.mask_ratio_s2=1", "mask_ratio_s2"),
        ("objective.mask_ratio_s2=x", "objective.mask_ratio_s2 must be a valid number"),
        ("objective.method=moca", "unknown method 'moca'; known: croma, seamo"),
        ('data.parts=[{"file": {"path": "a", "images": 3}}]', "data.parts.0.file.images must be a "),
        (
            'data.parts=[{"file": {"places": "many"}}]',
            "data.parts.0.file.places must be a valid int",
        ),
    ],
)
def test_what_does_not_fit_is_named(argument, expected):
    with pytest.raises(ValueError) as error:
        parse(argument)
    assert expected in str(error.value)


@pytest.mark.parametrize("name", ["seamo_vit_tiny", "croma_vit_tiny"])
def test_options_without_a_method_are_those_of_the_recipes(name):
    recipe = RECIPES[name]
    for changes in ({}, {"decoder_dim": 32}, '{"decoder_dim": 32}'):
        found = apply_overrides(recipe, {"objective": changes, "stages": ()}).objective
        assert type(found) is type(recipe.objective)
    with pytest.raises(ValueError, match=r"unknown key .objective\.contrast_weights"):
        apply_overrides(recipe, {"objective": {"contrast_weights": 1}})
    if name == "croma_vit_tiny":  # the name of an option of SeaMo
        with pytest.raises(ValueError, match=r"unknown key .objective\.mask_ratio., did you mean"):
            apply_overrides(recipe, {"objective": {"mask_ratio": 0.5}})
    found = apply_overrides(recipe, {"objective": {"method": "croma"}, "stages": ()}).objective
    assert type(found).__name__ == "CromaObjective"


def test_a_key_twice_and_recipes_that_there_are_not():
    with pytest.raises(ValueError, match="seed is given twice: seed=1 and seed=2"):
        parse("seed=1", "seed=2")
    with pytest.raises(ValueError, match=r"no recipe is given.*croma_vit_b"):
        parse_arguments(["seed=1"], RECIPES)
    with pytest.raises(ValueError, match=r"unknown recipe 'croma'.*croma_vit_b"):
        parse_arguments(["recipe=croma"], RECIPES)
    with pytest.raises(ValueError, match=r"cannot read the recipe /nowhere\.json"):
        parse_arguments(["recipe=/nowhere.json"], RECIPES)


def test_a_recipe_of_another_kind_is_refused_in_few_words(tmp_path):
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(to_json(TINY)))
    with pytest.raises(ValueError, match=r"data must be a valid string, got \{'root': .*\.\.\.;") as error:
        parse_arguments([f"recipe={file}"], FINETUNE_RECIPES)
    assert len(str(error.value)) < 3000


@pytest.mark.parametrize("name", RECIPES)
def test_a_saved_recipe_is_the_recipe(name, tmp_path):
    file = tmp_path / "recipe.json"
    for content in (to_json(RECIPES[name]), {"recipe": to_json(RECIPES[name]), "environment": {}}):
        file.write_text(json.dumps(content))
        assert parse_arguments([f"recipe={file}"], RECIPES) == RECIPES[name]
    assert parse_arguments([f"recipe={file}", "seed=5"], RECIPES) == replace(RECIPES[name], seed=5)
    assert from_json(to_json(RECIPES[name]), Recipe) == RECIPES[name]


def test_a_damaged_saved_recipe_is_refused(tmp_path):
    fields = to_json(TINY)
    for damage in ({**fields, "epoch": 3}, {k: v for k, v in fields.items() if k != "model"}):
        with pytest.raises(ValueError, match=r"epoch|model"):
            from_json(damage, Recipe)
    (tmp_path / "a.json").write_text(json.dumps(fields)[:-20])
    with pytest.raises(ValueError, match=r"a\.json"):
        parse_arguments([f"recipe={tmp_path / 'a.json'}"], RECIPES)
    (tmp_path / "b.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"b\.json"):
        parse_arguments([f"recipe={tmp_path / 'b.json'}"], RECIPES)


def test_the_papers_numbers():
    base, large, lower = (RECIPES[f"croma_vit_{n}"] for n in ("b", "l", "l_lower_masked"))
    assert (base.model, base.epochs, base.batch_size) == ("croma_vit_b", 300, 7200)
    assert (large.model, large.epochs, large.batch_size) == ("croma_vit_l", 600, 3000)
    assert (lower.model, lower.epochs, lower.optim.base_lr) == ("croma_vit_l", 5, 8e-8)
    assert lower.optim.warmup * lower.epochs == 1  # the first epoch
    for recipe in (base, large):
        assert (recipe.optim.base_lr, recipe.optim.warmup) == (4e-6, 0.05)
    for recipe in (base, large, lower):
        assert (recipe.optim.name, recipe.optim.weight_decay) == ("adamw", 0.01)
        assert recipe.optim.betas == (0.9, 0.999)
        assert (recipe.data.crop, recipe.data.size, recipe.data.mixup) == ((60, 180), 120, 0.3)
        assert (recipe.data.flips, recipe.data.rot90) == (True, True)
        assert recipe.precision == "bf16"
        assert (recipe.objective.decoder_dim, recipe.objective.decoder_depth) == (512, 1)
    for recipe in (base, large):
        assert (recipe.objective.mask_ratio_s2, recipe.objective.mask_ratio_s1) == (0.75, 0.75)
    assert (lower.objective.mask_ratio_s2, lower.objective.mask_ratio_s1) == (0.5, 0.5)


def test_the_papers_numbers_of_seamo():
    base, large = RECIPES["seamo_vit_b"], RECIPES["seamo_vit_l"]
    assert (base.model, base.epochs, base.batch_size) == ("seamo_vit_b", 200, 2048)
    assert (base.optim.name, base.optim.base_lr, base.optim.warmup) == ("adamw", 1e-4, 0)
    assert (base.objective.strategy, base.objective.length) == ("multimodal_temporal_tm", 4)
    assert (base.objective.mask_ratio, base.objective.masking) == (0.75, "shared")
    assert base.objective.normalized_targets
    assert base.objective.decoder_depth == 4
    assert (base.data.crop, base.data.size, base.data.region) == ((0.5, 1.0), 128, "partial")
    assert (base.data.flips, base.data.rot90, base.data.mixup) == ("horizontal", False, 0)
    first, second = base.resolve_stages()
    assert (first.objective.seasons, first.objective.overrides, first.epochs) == (1, {"temporal": False}, 20)
    assert second == replace(base, stages=())
    assert replace(first, objective=base.objective, epochs=200) == second
    assert large == replace(base, name="seamo_vit_l", model="seamo_vit_l")


def seamo(*arguments):
    return parse_arguments(["recipe=seamo_vit_b", *arguments], RECIPES)


def test_a_recipes_own_fields_are_the_defaults_of_its_stages():
    recipe = seamo(
        "stages.0.epochs=3", "stages.0.objective.mask_ratio=0.5", "stages.0.optim.base_lr=1e-3",
        "stages.0.data.crop=0.25,1", "data.region=same", "optim.weight_decay=0.1", "output=/o", "seed=5",
        "data.root=/d", "stages.1.data.root=/e", "stages.1.overrides.depth=3", "init_from=/f",
    "batch_size=64", )  # fmt: skip
    first, second = recipe.resolve_stages()
    assert (first.epochs, second.epochs) == (3, 200)
    assert (first.objective.mask_ratio, second.objective.mask_ratio) == (0.5, 0.75)
    assert (first.objective.length, second.objective.length) == (1, 4)
    assert (first.optim.base_lr, second.optim.base_lr) == (1e-3, 1e-4)
    assert (first.data.crop, second.data.crop) == ((0.25, 1.0), (0.5, 1.0))
    assert (first.data.root, second.data.root) == (Path("/d"), Path("/e"))
    assert (first.overrides, second.overrides) == ({}, {"depth": 3})
    for stage in (first, second):
        assert (stage.batch_size, stage.seed, stage.optim.weight_decay) == (64, 5, 0.1)
        assert (stage.data.region, stage.stages) == ("same", ())
    assert (first.output, second.output) == (Path("/o/stage_1"), Path("/o"))
    assert (first.init_from, second.init_from) == (Path("/f"), None)  # the second begins with the first
    assert from_json(to_json(recipe), Recipe) == recipe
    for name in ("seamo_vit_b", "seamo_vit_l", "seamo_vit_tiny"):
        siamese = parse_arguments([f"recipe={name}", "objective.strategy=siamese_temporal"], RECIPES)
        siamese = siamese.resolve_stages()[0].objective
        assert (siamese.strategy, siamese.seasons) == ("siamese_temporal", 1)


def test_any_number_of_stages():
    none = seamo("stages=[]")
    assert none.resolve_stages() == (none,)
    (one,) = seamo('stages=[{"epochs": 4}]', "output=/o").resolve_stages()
    assert (one.epochs, one.output) == (4, Path("/o"))
    three = parse(
        'stages=[{"epochs": 1}, {"data": {"size": 32}}, {"seed": 7}]', "stages.2.epochs=9", "output=/o"
    )
    stages = three.resolve_stages()
    assert [stage.epochs for stage in stages] == [1, TINY.epochs, 9]
    assert [stage.data.size for stage in stages] == [TINY.data.size, 32, TINY.data.size]
    assert [stage.seed for stage in stages] == [0, 0, 7]
    assert [str(stage.output) for stage in stages] == ["/o/stage_1", "/o/stage_2", "/o"]
    assert apply_overrides(three, {"stages": ({"epochs": 2}, {})}).resolve_stages()[0].epochs == 2
    assert parse("stages=[{},{}]", 'stages.0={"epochs": 5}').resolve_stages()[0].epochs == 5


def test_an_element_of_a_list_is_named_by_its_index():
    recipe = parse("data.parts.1.repeats=7", "data.parts.0.task=pairs", "optim.betas.1=0.9")
    assert (recipe.data.parts[1].repeats, recipe.data.parts[0].task) == (7, "pairs")
    assert recipe.data.parts[0].repeats == TINY.data.parts[0].repeats
    assert recipe.optim.betas == (0.9, 0.9)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("stages.0.epoch=3", "stages.0: unknown key 'epoch', did you mean 'epochs'"),
        (
            "stages.0.objective.ratio=1",
            "stages.0: unknown key 'objective.ratio', did you mean 'objective.mask_ratio'",
        ),
        ("stages.0.epochs=0", "stages.0: epochs must be greater than or equal to 1, got 0"),
        ("stages.0.objective.mask_ratio=2", "stages.0: objective.mask_ratio must be less than 1, got 2"),
        ("stages.0.output=/o", "stages.0 cannot change output"),
        ("stages.1.max_steps=3", "stages.1 cannot change max_steps"),
        ('stages.0.stages=[{"epochs": 2}]', "stages.0 cannot change stages"),
        (
            "stages.1.init_from=/f",
            "stages.1 cannot change init_from: it begins with the weights of the stage before",
        ),
        ("stages.2.epochs=3", "'stages.2.epochs': stages is a list, its elements are 0 to 1"),
        ("stages.first.epochs=3", "stages is a list"),
        ("stages.-1.epochs=3", "stages is a list"),
        ("stages.0.data.corp=3", "did you mean 'data.crop'"),
        ('stages=[{"epoch": 1}, {}]', "stages.0: unknown key 'epoch', did you mean 'epochs'"),
        ("objective.strategy=multimodal", "pass stages=[] as well"),
        ("objective.length=1", "pass stages=[] as well"),
        ("data.crop=0.5,100", "two sides in pixels, or two shares"),
        ("data.size=-8", "data.size must be greater than or equal to 1, got -8"),
        ('objective={"strategi": 1}', "unknown key 'objective.strategi'"),
        ("objective.length=5", "objective.length must be less than or equal to 4, got 5"),
        ("data.region=apart", "data.region"),
        ("data.task_schedule=sometimes", "data.task_schedule"),
        ("batch_norm=grouped", "batch_norm=grouped and batch_norm_group=ROWS go together"),
        ("batch_norm_group=4", "go together, got local and 4"),
    ],
)
def test_what_does_not_fit_a_recipe_of_stages_is_named(argument, expected):
    with pytest.raises(ValueError) as error:
        seamo(argument)
    assert expected in str(error.value)


def test_stages_of_a_recipe_that_has_none():
    with pytest.raises(
        ValueError, match=r"stages is a list, its elements are none: pass stages=\[\.\.\.\] first"
    ):
        parse("stages.0.epochs=3")


def test_what_makes_another_run():
    recipe = small_recipe(Path("/data"), Path("/out"))
    free = {"output": "/b", "data.root": "/b", "data.workers": 3, "parallel": "fsdp", "log_every": 3,
            "max_steps": 4, "save.keep": 4, "save.asynchronous": False, "timeout": 3, "compile": True,
            "activation_checkpointing": True, "tensorboard": True, "data.max_bad_share": 0.5}  # fmt: skip
    assert differences(recipe, apply_overrides(recipe, free)) == []
    assert differences(recipe, recipe) == []
    for key, value in {"seed": 1, "optim.base_lr": 0.5, "overrides.dim": 64, "data.mixup": 0.0,
                       "objective.mask_ratio_s1": 0.5, "accumulate": 2, "data.crop": (8, 32),
                       "precision": "bf16", "ema": 0.5, "model": "croma_vit_s"}.items():  # fmt: skip
        (found,) = differences(recipe, apply_overrides(recipe, {key: value}))
        assert found.startswith(f"{key}: ")
        assert found.endswith(f" -> {list(value) if isinstance(value, tuple) else value}")
    two = apply_overrides(recipe, {"stages": [{"epochs": 2}, {}]})
    assert differences(two, apply_overrides(two, {"stages.1.data.root": "/x", "stages.0.log_every": 3})) == []
    assert differences(two, apply_overrides(two, {"stages.0.epochs": 5})) == ["stages.0.epochs: 2 -> 5"]
    assert differences(apply_overrides(recipe, {"stages": [{"epochs": 2}]}), two) == ["stages.1: None -> {}"]
    more = apply_overrides(recipe, {"data.units.s2": "reflectance"})
    assert differences(recipe, more) == ["data.units.s2: None -> reflectance"]
    assert differences(more, recipe) == ["data.units.s2: reflectance -> None"]
