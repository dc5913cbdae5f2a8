"""Pretraining on torch.distributed: recipes, data, objectives and the loop. Nothing else imports this."""

from rsbackbones.train.loop import Summary, train
from rsbackbones.train.recipe import Recipe
from rsbackbones.train.recipe_fields import replace_fields
from rsbackbones.train.recipes import RECIPES
from rsbackbones.train.run_folder import TrainingError

__all__ = ["RECIPES", "Recipe", "Summary", "TrainingError", "replace_fields", "train"]
