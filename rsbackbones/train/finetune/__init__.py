"""Fine-tuning on labelled sets: the papers' recipes on torch.distributed."""

from rsbackbones.train.finetune.recipe import FinetuneOptim, FinetuneRecipe, Views
from rsbackbones.train.finetune.recipes import RECIPES
from rsbackbones.train.finetune.saved import load_finetuned
from rsbackbones.train.finetune.tune import finetune

__all__ = ["RECIPES", "FinetuneOptim", "FinetuneRecipe", "Views", "finetune", "load_finetuned"]
