"""Compatibility of trained parameters with the objective that loads them.

Between stages and through ``objective.safetensors`` parameters are matched by name and shape. These do not
determine the meaning of parameters, e.g. the band of a tokenizer's column or the number of attention heads.
The signature of an objective does.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from rsbackbones.models.config import as_json
from rsbackbones.train.engine.errors import TrainingError
from rsbackbones.train.objectives.objective import Objective

# The metadata key of the signature in ``objective.safetensors``.
OBJECTIVE_KEY = "rsbackbones.objective"
# Fields that may differ. The temporal block has parameters with names of its own. Instead of image sizes the
# grid of the position table is compared, which depends on them unless it is set.
_IGNORED_FIELDS = ("temporal", "image_size", "position_grid")
# Fields of the temporal block, which are compared if both objectives have one.
_FORM_OF_BLOCK = ("fusion", "query")


def objective_signature(objective: Objective) -> dict[str, Any]:
    """Return the options that determine the meaning of an objective's parameters, as JSON values."""
    config = objective.backbone.config
    signature = {
        "config": as_json(config),
        "grid": getattr(config, "grid", None),
        "objective": dataclasses.asdict(objective.options),
    }
    plain: dict[str, Any] = json.loads(json.dumps(signature))
    return plain


def check_compatible(
    source: Mapping[str, Any],
    target: Mapping[str, Any],
    *,
    stage_options: Sequence[str],
    names: tuple[str, str],
    fix: str,
) -> None:
    """Check that parameters with one signature can be loaded into an objective with another.

    Args:
        source, target: signatures from :func:`objective_signature`.
        stage_options: the options that may differ; see :class:`ObjectiveConfig`.
        names: names of source and target, for the message.
        fix: the fix to suggest if they differ.

    Raises:
        TrainingError: models, decoders or targets differ in options that shapes do not show, or position
            tables have different grids.
    """
    blocks = source["config"].get("temporal") and target["config"].get("temporal")
    free = {"config": (*_IGNORED_FIELDS, *(() if blocks else _FORM_OF_BLOCK)), "objective": stage_options}
    differing = []
    for part, may_differ in free.items():
        before, now = source[part], target[part]
        differing += [
            f"{field} ({before.get(field)}, {now.get(field)})"
            for field in dict.fromkeys([*before, *now])
            if field not in may_differ and before.get(field) != now.get(field)
        ]
    if differing:
        raise TrainingError(f"{names[0]} and {names[1]} differ in {', '.join(differing)}: {fix}")
    if source["grid"] != target["grid"]:
        raise TrainingError(
            f"the position table of {names[0]} has the grid {source['grid']}, that of {names[1]} "
            f"{target['grid']}: set overrides.position_grid={source['grid']} to interpolate them, or train "
            "on one size"
        )
