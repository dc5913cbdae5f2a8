"""Pretraining on torch.distributed: recipes, data, objectives and the engine. Nothing else imports this."""

try:
    import pydantic as _  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError("training needs more packages: pip install 'rsbackbones[train]'") from error

from rsbackbones.train.engine.config_io import apply_overrides
from rsbackbones.train.engine.errors import TrainingError
from rsbackbones.train.engine.trainer import Summary, train
from rsbackbones.train.objectives.objective import Objective, ObjectiveConfig
from rsbackbones.train.objectives.registry import register_objective
from rsbackbones.train.pretraining import pretrain
from rsbackbones.train.recipe import Recipe
from rsbackbones.train.recipes import RECIPES

__all__ = [
    "RECIPES",
    "Objective",
    "ObjectiveConfig",
    "Recipe",
    "Summary",
    "TrainingError",
    "apply_overrides",
    "pretrain",
    "register_objective",
    "train",
]
