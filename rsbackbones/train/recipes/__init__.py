"""The recipes by name: a file per method."""

from rsbackbones.train.recipe import Recipe
from rsbackbones.train.recipes.croma import RECIPES as CROMA
from rsbackbones.train.recipes.fomu import RECIPES as FOMU
from rsbackbones.train.recipes.mixmae import RECIPES as MIXMAE
from rsbackbones.train.recipes.s4 import RECIPES as S4
from rsbackbones.train.recipes.seamo import RECIPES as SEAMO

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (*CROMA, *SEAMO, *MIXMAE, *FOMU, *S4)}
