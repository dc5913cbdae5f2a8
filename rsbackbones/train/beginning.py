"""What a run begins with: a model from the seed, from a file, or from the phase of the run before.

And the way back: a run's objective as it was trained.
"""

import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load

from rsbackbones.checkpoints import CheckpointFile, not_finite, open_checkpoint
from rsbackbones.factory import create_model
from rsbackbones.models.backbone import Backbone
from rsbackbones.preprocess import preprocess_for
from rsbackbones.sensors import InputSpec
from rsbackbones.train.carried import OBJECTIVE_KEY, check_carried, meaning_of
from rsbackbones.train.checkpoint import finished, problem, step_of
from rsbackbones.train.objectives.objective import Objective
from rsbackbones.train.recipe import Recipe
from rsbackbones.train.recipe_fields import from_json
from rsbackbones.train.run_folder import PHASE_1, TrainingError


def build_objective(recipe: Recipe) -> Objective:
    """Build the model and what is trained around it, from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    # What the size decides (a grid of positions) is that of the training's images.
    overrides = {"image_size": recipe.data.size, **recipe.objective.overrides, **recipe.overrides}
    model = create_model(recipe.model, overrides=overrides)
    if recipe.data.statistics:
        model.inputs = _with_statistics(model, recipe.data.statistics)
    objective: Objective = recipe.objective.build(model)
    objective.train()
    return objective


def _with_statistics(
    model: Backbone, own: Mapping[str, Mapping[str, tuple[float, float]]]
) -> dict[str, InputSpec]:
    """Return the input contract with statistics of the recipe's: the trained model keeps them."""
    specs = preprocess_for(model.inputs, model.bands, sensors=model.config.sensors, statistics=own).specs
    return {
        m: replace(spec, statistics=f"{spec.statistics}; {', '.join(own[m])}: stated by the recipe")
        if own.get(m)
        else spec
        for m, spec in specs.items()
    }


def load_beginning(objective: Objective, recipe: Recipe) -> str | None:
    """Load the weights that a run begins with, where the recipe names some; say what was done.

    Raises:
        TrainingError: they are of another objective, or not finite.
    """
    first = recipe.first_phase()
    if first is not None and first.out is not None:
        return _load_first_phase(objective, first.out.expanduser())
    if recipe.initial is not None:
        _load_initial(objective, recipe.initial, recipe.model)
        return f"begins with {recipe.initial}"
    return None


def check_phases(recipe: Recipe) -> Objective:
    """Return the objective of a recipe without memory, after a check that its first phase goes before it.

    Raises:
        TrainingError: what the first phase trains has no place in the second, or another meaning there.
    """
    with torch.device("meta"):
        objective = build_objective(recipe)
        if (first := recipe.first_phase()) is not None:
            check_phase_1(build_objective(first), objective)
    return objective


def check_phase_1(first: Objective, second: Objective) -> None:
    """Check that all that a first phase trains has its place in the second, and means the same there.

    Raises:
        TrainingError: something is not in the second, or of another shape, or means something else.
    """
    fix = "first= may change what is trained, not the model"
    check_carried(meaning_of(first), meaning_of(second), names=("phase 1", "phase 2"), fix=fix)
    theirs, ours = first.state_dict(), second.state_dict()
    if differing := [n for n, t in theirs.items() if n not in ours or ours[n].shape != t.shape]:
        raise TrainingError(
            f"phase 1 trains {', '.join(differing[:8])}, which phase 2 lacks or has in another shape: {fix}"
        )


def _load_first_phase(objective: Objective, out: Path) -> str:
    """Load all of what the first phase trained; parts that it did not have stay as the seed made them."""
    _, _, before, step = read_run(out)
    check_phase_1(before, objective)
    theirs, ours = before.state_dict(), objective.state_dict()
    objective.load_state_dict({**ours, **theirs}, strict=True)
    new = sorted({".".join(name.split(".")[:2]) for name in ours if name not in theirs})
    return f"begins with the weights of {out.name}, step {step}; new: {', '.join(new) or 'nothing'}"


def _load_initial(objective: Objective, path: Path, model: str) -> None:
    file = open_checkpoint(path, allow_pickle=False)
    check_carried(
        _read_meaning(file), meaning_of(objective), names=(f"initial={path}", "this recipe"),
        fix="say what the file was trained with (its recipe.json does), or train from the start",
    )  # fmt: skip
    ours = objective.state_dict()
    differing = sorted(set(file.tensors) ^ set(ours)) + [
        name for name in ours if name in file.tensors and file.tensors[name].shape != tuple(ours[name].shape)
    ]
    if differing:
        raise TrainingError(
            f"initial={path} is not this objective on {model}: {', '.join(differing[:8])} "
            "differ; it must be objective.safetensors as `python -m rsbackbones.train.export RUN --full` "
            "writes it, and the recipe's objective the same"
        )
    state: dict[str, Tensor] = file.read(dict.fromkeys(file.tensors, ""))
    if bad := not_finite(state):
        raise TrainingError(f"initial={path}: NaN or infinity in {', '.join(bad)}")
    objective.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, strict=True)


def _read_meaning(file: CheckpointFile) -> dict[str, Any]:
    export = "`python -m rsbackbones.train.export RUN --full`"
    if OBJECTIVE_KEY not in file.metadata:
        raise TrainingError(
            f"initial={file.path} does not say what its parameters mean (bands, heads, grid); it must be "
            f"objective.safetensors as {export} writes it: export the run once more"
        )
    try:
        said = json.loads(file.metadata[OBJECTIVE_KEY])
        meaning = {name: dict(said[name]) for name in ("config", "objective")} | {"grid": said["grid"]}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TrainingError(
            f"initial={file.path}: what it says of itself is damaged ({error!r}); export the run once more, "
            f"{export}"
        ) from error
    return meaning


def read_run(run: Path) -> tuple[Recipe, Mapping[str, Any], Objective, int]:
    """Return a run's recipe, all that is recorded with it, its objective as trained, and the step.

    The newest whole checkpoint is read, its moving average where the run keeps one. Runs are your own: a
    distributed checkpoint can execute code when it is read, so never read one that was downloaded.

    Raises:
        TrainingError: there is no run or no whole checkpoint.
    """
    try:
        record = json.loads((run / "recipe.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        told = f"{run} is no run: {error}"
        if (run / PHASE_1).is_dir():
            told = f"{run} is still in its first phase, which is a run as well: {run / PHASE_1}"
        raise TrainingError(told) from error
    recipe = from_json(record["recipe"], Recipe)
    objective = build_objective(recipe)
    whole = []
    for path in finished(run / "checkpoints"):
        wrong = problem(path)
        if wrong is None:
            whole.append(path)
            break
        warnings.warn(f"{path} is damaged ({wrong}); taking the one before", stacklevel=2)
    if not whole:
        raise TrainingError(f"{run / 'checkpoints'} has no whole checkpoint")
    state = objective.state_dict()
    wanted: dict[str, Any] = {"objective": state}
    if recipe.ema:
        wanted["ema"] = {name: p.detach().clone() for name, p in objective.named_parameters()}
    try:
        load(wanted, checkpoint_id=whole[0], no_dist=True)
    except CheckpointException as error:
        raise TrainingError(f"{whole[0]} does not hold what {run / 'recipe.json'} says: {error}") from error
    objective.load_state_dict({**state, **wanted.get("ema", {})}, strict=True)
    step = step_of(whole[0])
    assert step is not None
    return recipe, record, objective, step
