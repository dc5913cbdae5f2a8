"""Initialization of a run from the seed, a file, or the previous stage; and loading of a trained run."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from rsbackbones.data.open import open_source, source_statistics
from rsbackbones.data.series_folder import SeriesFolder
from rsbackbones.files.bounds import read_json
from rsbackbones.train.compatibility import OBJECTIVE_KEY, check_compatible, objective_signature
from rsbackbones.train.engine.checkpoint import finished, first_line, problem, step_of
from rsbackbones.train.engine.checkpoint_reader import load_checkpoint
from rsbackbones.train.engine.config_io import from_json
from rsbackbones.train.engine.errors import TrainingError
from rsbackbones.train.input_contracts import input_contracts, source_units
from rsbackbones.train.objectives.objective import Objective
from rsbackbones.train.recipe import Recipe
from rsbackbones.zoo.checkpoint_files import CheckpointFile, not_finite, open_checkpoint
from rsbackbones.zoo.factory import create_model


def build_objective(recipe: Recipe) -> Objective:
    """Build the model and its objective, randomly initialized from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    # The grid of position tables is that of the training images.
    overrides = {"image_size": recipe.data.size, **recipe.objective.overrides, **recipe.overrides}
    model = create_model(recipe.model, overrides=overrides)
    model.inputs = input_contracts(model, recipe)
    objective: Objective = recipe.objective.build(model)
    objective.train()
    return objective


def with_statistics(recipe: Recipe) -> Recipe:
    """Return a recipe with the numbers of ``data.statistics=dataset``, for the bands of its models.

    They are in DN and dB; those of a folder of series in other ``data.units`` are measured on converted
    values.

    Raises:
        TrainingError: the data have none, or come with those of DN and dB and are said to be in other units.
    """
    if recipe.data.statistics != "dataset":
        return recipe
    if recipe.data.root is None:
        raise TrainingError("no data: pass data.root=FOLDER")
    with torch.device("meta"):
        models = [build_objective(stage).backbone for stage in recipe.resolve_stages()]
    sensors = {m: sensor for model in models for m, sensor in model.config.sensors.items()}
    units = source_units(recipe, sensors)
    try:
        source = open_source(recipe.data.root, named=units, **recipe.data.options)
        if (found := source_statistics(source)) is None:
            raise ValueError(f"{recipe.data.root} comes with no statistics: state them")
        if not isinstance(source, SeriesFolder) and set(units.values()) - {"dn", "db"}:
            raise ValueError(
                f"{recipe.data.root} comes with statistics of DN and dB, and data.units={recipe.data.units} "
                "are stated: leave one of them out"
            )
    except ValueError as error:
        raise TrainingError(
            f'{error}. In a recipe: data.statistics={{"s2": {{"B02": [mean, std], ...}}}}, or {{}} for those '
            "of the model"
        ) from error
    used = {(m, band) for model in models for m, names in model.bands.items() for band in names}
    own = {m: {b: x for b, x in found.get(s, {}).items() if (m, b) in used} for m, s in sensors.items()}
    return replace(recipe, data=replace(recipe.data, statistics={m: of for m, of in own.items() if of}))


def initialize_weights(objective: Objective, recipe: Recipe, previous: Recipe | None = None) -> str | None:
    """Load the initial weights of a run, if there are any. Return a description of them, or ``None``.

    Args:
        objective: the objective to initialize.
        recipe: the recipe of the run; ``init_from`` names a file.
        previous: the recipe of the previous stage, if there is one.

    Raises:
        TrainingError: the weights belong to another objective, or are not finite.
    """
    if previous is not None and previous.output is not None:
        return _load_previous_stage(objective, previous.output.expanduser())
    if recipe.init_from is not None:
        _load_file(objective, recipe.init_from, recipe.model)
        return f"begins with {recipe.init_from}"
    return None


def check_stages(recipe: Recipe) -> list[Objective]:
    """Return the objectives of a recipe's stages on the meta device. Check that each can initialize the next.

    Raises:
        TrainingError: parameters of a stage are missing in the next one, or incompatible with it.
    """
    with torch.device("meta"):
        objectives = [build_objective(stage) for stage in recipe.resolve_stages()]
    for i in range(1, len(objectives)):
        check_previous_stage(objectives[i - 1], objectives[i], names=(f"stage {i}", f"stage {i + 1}"))
    return objectives


def check_previous_stage(before: Objective, after: Objective, *, names: tuple[str, str]) -> None:
    """Check that all parameters of a stage exist in the next one, with the same shape and meaning.

    Raises:
        TrainingError: some are missing, have another shape, or are incompatible.
    """
    fix = "stages= may change what is trained, not the model"
    check_compatible(
        objective_signature(before), objective_signature(after),
        stage_options=after.options.stage_options, names=names, fix=fix,
    )  # fmt: skip
    source, target = before.state_dict(), after.state_dict()
    if differing := [n for n, t in source.items() if n not in target or target[n].shape != t.shape]:
        raise TrainingError(
            f"{names[0]} trains {', '.join(differing[:8])}, which {names[1]} lacks or has in another shape: "
            f"{fix}"
        )


def _load_previous_stage(objective: Objective, out: Path) -> str:
    """Load all weights of the previous stage. Modules that it did not have keep their initialization."""
    _, _, before, step = read_run(out)
    check_previous_stage(before, objective, names=(out.name.replace("_", " "), "this stage"))
    source, target = before.state_dict(), objective.state_dict()
    objective.load_state_dict({**target, **source}, strict=True)
    new = sorted({".".join(name.split(".")[:2]) for name in target if name not in source})
    return f"begins with the weights of {out.name}, step {step}; new: {', '.join(new) or 'nothing'}"


def _load_file(objective: Objective, path: Path, model: str) -> None:
    file = open_checkpoint(path, allow_pickle=False)
    check_compatible(
        _read_signature(file), objective_signature(objective),
        stage_options=objective.options.stage_options, names=(f"init_from={path}", "this recipe"),
        fix="use the options that the file was trained with (see its recipe.json), or train from the start",
    )  # fmt: skip
    ours = objective.state_dict()
    differing = sorted(set(file.tensors) ^ set(ours)) + [
        name for name in ours if name in file.tensors and file.tensors[name].shape != tuple(ours[name].shape)
    ]
    if differing:
        raise TrainingError(
            f"init_from={path} is not this objective on {model}: {', '.join(differing[:8])} "
            "differ; it must be objective.safetensors as `python -m rsbackbones.train.export RUN --full` "
            "writes it, and the recipe's objective the same"
        )
    state: dict[str, Tensor] = file.read(dict.fromkeys(file.tensors, ""))
    if bad := not_finite(state):
        raise TrainingError(f"init_from={path}: NaN or infinity in {', '.join(bad)}")
    objective.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, strict=True)


def _read_signature(file: CheckpointFile) -> dict[str, Any]:
    export = "`python -m rsbackbones.train.export RUN --full`"
    if OBJECTIVE_KEY not in file.metadata:
        raise TrainingError(
            f"init_from={file.path} does not state the options of its parameters (bands, heads, grid); it "
            f"must be objective.safetensors as {export} writes it: export the run again"
        )
    try:
        said = json.loads(file.metadata[OBJECTIVE_KEY])
        meaning = {name: dict(said[name]) for name in ("config", "objective")} | {"grid": said["grid"]}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TrainingError(
            f"init_from={file.path}: its metadata is damaged ({error!r}); export the run again, {export}"
        ) from error
    return meaning


def read_run(run: Path) -> tuple[Recipe, Mapping[str, Any], Objective, int]:
    """Return the recipe of a run, its saved record, its trained objective, and the step.

    For a run of several stages the recipe is the whole one; the rest belongs to the last stage.

    The weights are those of the newest intact checkpoint, or their moving average if the run has one.

    Raises:
        TrainingError: there is no run or no intact checkpoint.
    """
    try:
        record = read_json(run / "recipe.json")
    except (OSError, ValueError) as error:
        told = f"{run} is not a run: {error}"
        if stages := sorted(p for p in run.glob("stage_*") if p.is_dir()):
            told = f"{run} is still in an earlier stage, which is a run as well: {stages[-1]}"
        raise TrainingError(told) from error
    if lacking := [key for key in ("recipe", "sources", "environment") if key not in record]:
        raise TrainingError(f"{run / 'recipe.json'} is not that of a run: it lacks {', '.join(lacking)}")
    recipe = from_json(record["recipe"], Recipe)
    last = recipe.resolve_stages()[-1]
    objective = build_objective(last)
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
    if last.ema:
        wanted["ema"] = {name: x.detach().clone() for name, x in state.items()}
    try:
        load_checkpoint(wanted, whole[0], no_dist=True)
    except CheckpointException as error:
        raise TrainingError(
            f"{whole[0]} does not hold what {run / 'recipe.json'} says: {first_line(error)}"
        ) from error
    objective.load_state_dict({**state, **wanted.get("ema", {})}, strict=True)
    step = step_of(whole[0])
    assert step is not None
    return recipe, record, objective, step
