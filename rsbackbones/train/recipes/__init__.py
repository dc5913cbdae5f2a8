"""The recipes by name: a file per method."""

from rsbackbones.train.recipe import Recipe
from rsbackbones.train.recipes.croma import RECIPES as CROMA

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in CROMA}
