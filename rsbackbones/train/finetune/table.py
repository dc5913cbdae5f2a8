"""The recipes as a Markdown table."""

from collections.abc import Mapping

from rsbackbones.files.markdown import markdown_table
from rsbackbones.train.finetune.recipe import FinetuneRecipe

_HEADER = (
    "recipe",
    "model",
    "optimizer, rate",
    "weight decay",
    "schedule",
    "length",
    "batch",
    "images",
    "seen",
    "trained",
)


def recipe_table(recipes: Mapping[str, FinetuneRecipe]) -> str:
    """Return a row per recipe. A rate with ``x b/256`` is a base rate, scaled with the global batch."""
    return markdown_table(_HEADER, map(_row, recipes.values()), "l" * len(_HEADER), spaced=True) + "\n"


def _row(recipe: FinetuneRecipe) -> tuple[str, ...]:
    optim = recipe.optim
    rate = f"{optim.base_lr:g}" + " x b/256" * optim.scaled
    if recipe.rates:
        rate = f"{len(recipe.rates)} rates, {min(recipe.rates):g} to {max(recipe.rates):g} x b/256"
    length = f"{recipe.epochs} epochs" if recipe.epochs else f"{recipe.steps} steps"
    return (
        f"`{recipe.name}`",
        f"`{recipe.model}`",
        f"{optim.name}, {rate}",
        f"{optim.weight_decay:g}",
        _schedule(recipe),
        length,
        f"{recipe.batch_size}",
        _images(recipe),
        _seen(recipe),
        _trained(recipe),
    )


def _schedule(recipe: FinetuneRecipe) -> str:
    optim = recipe.optim
    parts = []
    if optim.warmup_epochs:
        parts.append(f"{optim.warmup_epochs:g} epochs up")
    if optim.warmup_steps:
        parts.append(f"{optim.warmup_steps} steps up")
    power = f" {optim.power:g}" * (optim.schedule == "poly")
    return ", ".join([*parts, f"{optim.schedule}{power}" + f" to {optim.min_lr:g}" * bool(optim.min_lr)])


def _images(recipe: FinetuneRecipe) -> str:
    views = recipe.views
    size = "as they are"
    if views.size:
        size = f"{views.size} px"
    if views.tile:
        overlap = views.tile // 2 if views.overlap is None else views.overlap
        size = f"tiles of {views.tile} px" + f", {overlap} px overlap" * bool(overlap)
    return ", ".join([*recipe.modalities, size])


def _seen(recipe: FinetuneRecipe) -> str:
    views = recipe.views
    said = {
        "flips" + " left to right" * (views.flips == "horizontal"): views.flips,
        "rot90": views.rot90,
        "colors distorted": views.photometric,
        "scales {:g} to {:g}".format(*views.ratio_range or (1, 1)): views.ratio_range,
        f"mixup {views.mixup:g}": views.mixup,
        f"cutmix {views.cutmix:g} (switch_prob {views.switch_prob:g})": views.cutmix,
        f"label smoothing {views.label_smoothing:g}": views.label_smoothing,
        f"drop path {recipe.drop_path:g}": recipe.drop_path,
    }
    return ", ".join(name for name, there in said.items() if there) or "as they are"


def _trained(recipe: FinetuneRecipe) -> str:
    dense = recipe.views.size is None  # of labels of pixels; of images it is a linear layer
    more = {f"labels x{recipe.scale}": recipe.scale > 1, f"auxiliary x{recipe.auxiliary:g}": recipe.auxiliary}
    head = ", ".join([recipe.head, *(name for name, there in more.items() if there)]) if dense else "linear"
    scored = f"; best by {recipe.metric}" if recipe.metric else ""
    return ("head alone: " if recipe.freeze else "all: ") + head + scored
