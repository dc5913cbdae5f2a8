"""The recipes by name: a file per method."""

from rsbackbones.train.recipe import Recipe
from rsbackbones.train.recipes import croma

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in croma.RECIPES}
