"""What trained parameters mean, and the check that they mean the same where they are carried to.

From phase to phase and through ``objective.safetensors`` parameters go by name. Names and shapes do not tell
which band a column of a tokenizer is of, or how many heads share a projection: this does.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from rsbackbones.models.config import as_json
from rsbackbones.train.engine.errors import TrainingError
from rsbackbones.train.objectives.objective import Objective

# Under this key ``objective.safetensors`` says what its parameters mean.
OBJECTIVE_KEY = "rsbackbones.objective"
# What may differ says what is asked of the parameters: which samples, which masks, which losses. All else
# says what they are: an option that is not named here must be the same. ``normalized_targets`` and
# ``joint_self_bias`` change what is asked of the same outputs, which training goes on to learn; where all
# patches are seen, both biases are one.
_IGNORED_OPTIONS = (
    "strategy", "length", "mask_ratio", "mask_ratio_s2", "mask_ratio_s1", "masking", "normalized_targets",
    "contrast", "local", "contrast_weight", "reconstruction_weight", "gather", "hard_negatives",
    "joint_self_bias",
)  # fmt: skip
# A block for dates has parameters of its own names. Of sizes the grid of positions is compared, which they
# decide unless it is said; where there is none, nothing is made for a size.
_IGNORED_FIELDS = ("temporal", "image_size", "position_grid")
# The form of the block for dates, which says nothing where either has none.
_FORM_OF_BLOCK = ("fusion", "query")


def objective_signature(objective: Objective) -> dict[str, Any]:
    """Return what an objective's parameters mean, in values of JSON."""
    config = objective.backbone.config
    meaning = {
        "config": as_json(config),
        "grid": getattr(config, "grid", None),
        "objective": dataclasses.asdict(objective.options),
    }
    plain: dict[str, Any] = json.loads(json.dumps(meaning))
    return plain


def check_compatible(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], *, names: tuple[str, str], fix: str
) -> None:
    """Check that parameters that mean ``theirs`` can go on as those that mean ``ours``.

    Args:
        theirs, ours: from :func:`objective_signature`.
        names: of the two, for the message.
        fix: what to do where they differ.

    Raises:
        TrainingError: they are of models, decoders or targets that differ in what shapes do not show, or of
            positions on another grid.
    """
    blocks = theirs["config"].get("temporal") and ours["config"].get("temporal")
    free = {"config": (*_IGNORED_FIELDS, *(() if blocks else _FORM_OF_BLOCK)), "objective": _IGNORED_OPTIONS}
    differing = []
    for part, may_differ in free.items():
        before, now = theirs[part], ours[part]
        differing += [
            f"{field} ({before.get(field)}, {now.get(field)})"
            for field in dict.fromkeys([*before, *now])
            if field not in may_differ and before.get(field) != now.get(field)
        ]
    if differing:
        raise TrainingError(f"{names[0]} and {names[1]} differ in {', '.join(differing)}: {fix}")
    if theirs["grid"] != ours["grid"]:
        raise TrainingError(
            f"the positions of {names[0]} are of a grid of {theirs['grid']}, those of {names[1]} of "
            f"{ours['grid']}: say overrides.position_grid={theirs['grid']} to interpolate them, or train on "
            "one size"
        )
