"""A pretraining recipe made real: data, objective, optimizer and schedule."""

import json
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

from rsbackbones.models.backbone import Backbone
from rsbackbones.preprocess import preprocess_for
from rsbackbones.train.beginning import build_objective, load_beginning
from rsbackbones.train.checkpoint import finished
from rsbackbones.train.data.batch import Batch
from rsbackbones.train.data.dataset import TrainingSet, Use, Views
from rsbackbones.train.data.open import open_part, open_source
from rsbackbones.train.data.sampler import BatchPlan
from rsbackbones.train.data.source import BadSample, Source
from rsbackbones.train.data.taken import taken_by
from rsbackbones.train.distributed import Processes
from rsbackbones.train.ema import Ema
from rsbackbones.train.objectives.objective import Objective
from rsbackbones.train.optim import build_optimizer, build_schedule, start_state
from rsbackbones.train.parallel import parallelize
from rsbackbones.train.pictures import draw_losses, draw_reconstructions
from rsbackbones.train.recipe import Part, Recipe
from rsbackbones.train.run_folder import TrainingError
from rsbackbones.train.steps import Steps

# So many samples of each source are looked at before a run begins: are the values in the stated unit?
_LOOKED_AT = 8


class Run(Steps):
    """What a recipe builds."""

    recipe: Recipe
    objective: Objective
    dataset: TrainingSet

    def __init__(self, recipe: Recipe, processes: Processes) -> None:
        self.recipe, self.processes = recipe, processes
        self.clip_grad, self.workers = recipe.optim.clip_grad, recipe.data.workers
        self.max_bad_share = recipe.data.max_bad_share
        self.objective = build_objective(recipe)
        if not (recipe.out is not None and finished(recipe.out.expanduser() / "checkpoints")):
            self.beginning = load_beginning(self.objective, recipe)  # a run that goes on has its own weights
        backbone = self.objective.backbone
        self.uses = open_uses(recipe, backbone)
        self.places = sum(len(use.source) for use in self.uses)
        self.plan = BatchPlan(
            lengths=tuple(len(use) for use in self.uses),
            repeats=tuple(use.repeat for use in self.uses),
            blocks=tuple(use.source.block for use in self.uses),
            frames=tuple(use.frames for use in self.uses),
            batch_size=recipe.batch_size,
            seed=recipe.seed,
        )  # fmt: skip
        self.dataset = TrainingSet(
            self.uses, patch_size=backbone.stride, draw=recipe.objective.draw, seed=recipe.seed
        )
        self.total_steps = recipe.epochs * self.plan.steps_per_epoch

        self.objective.to(processes.device)
        # A batch without one of the sensors leaves the parameters that it feeds without gradients.
        unused = any(set(use.preprocess.specs) != set(backbone.modalities) for use in self.uses)
        self.module = parallelize(self.objective, recipe, processes.device, unused=unused)
        if isinstance(self.module, FSDPModule):
            register_fsdp_forward_method(self.module, "reconstruct")
        self.optimizer = build_optimizer(self.objective, recipe.optim, recipe.batch_size)
        start_state(self.objective, self.optimizer)
        self.schedule = build_schedule(self.optimizer, recipe.optim, self.total_steps)
        self.ema = Ema(self.objective, recipe.ema) if recipe.ema else None

    def sources(self) -> list[dict[str, Any]]:
        """See :meth:`Steps.sources`."""
        return [
            {"name": use.source.name, "places": len(use.source), "frames": use.source.frames,
             "bands": {m: list(spec.bands) for m, spec in use.preprocess.specs.items()},
             "notes": list(use.source.notes), **({"seasons": use.seasons} if use.seasons else {})}
            for use in self.uses
        ]  # fmt: skip

    @torch.no_grad()
    def draw(self, folder: Path) -> None:
        """Draw the pictures; all processes compute, as their parameters may be sharded."""
        device = self.processes.device
        examples = []
        for batch in self.examples():
            autocast = torch.autocast(device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16")
            # Forked: a run that goes on from this checkpoint does not draw, and must not differ.
            with torch.random.fork_rng([device] if device.type == "cuda" else []), autocast:
                images = self.objective.reconstruct(batch.to(device))
            for i, name in enumerate(batch.names):
                one = {m: (x[0][i], x[1][i], x[2][i]) for m, x in images.items()}
                examples.append((name, one, batch.bands))
        if self.processes.first:
            draw_reconstructions(folder, examples)
            draw_losses(folder)

    def examples(self, per_source: int = 2) -> list[Batch]:
        """Return some samples of every source, always the same ones, for pictures."""
        return [
            self.dataset.__getitems__([(0, i, k * len(use) // count) for k in range(count)])
            for i, use in enumerate(self.uses)
            for count in [min(per_source, len(use))]
        ]


def open_uses(recipe: Recipe, backbone: Backbone) -> list[Use]:
    """Open the recipe's sources and say how each is normalised and viewed.

    Raises:
        ValueError: no data is named, a source has nothing that the model takes, a band has no statistics, or
            values are not in the stated unit.
    """
    data, sensors = recipe.data, backbone.config.sensors
    if data.root is None:
        raise TrainingError("no data is named: say data.root=FOLDER")
    if data.parts and data.options:
        raise TrainingError("data.options are of a root that is a training set of its own, not of data.parts")
    root = data.root.expanduser()
    try:
        stated = {m: unit for m, unit in data.units.items() if m in backbone.bands}
        preprocess_for(backbone.inputs, backbone.bands, sensors=sensors, units=stated)
    except ValueError as error:
        raise TrainingError(f"{error}. In a recipe: data.statistics=, data.units=") from error
    uses = []
    held: set[str] = set()
    parts: list[tuple[Source, Part | None]] = [(open_part(part.file, root), part) for part in data.parts]
    named = {sensors.get(m, m): unit for m, unit in data.units.items()}
    for found, part in parts or [(open_source(root, named=named, **data.options), None)]:
        source = taken_by(found, sensors)
        held |= set(found.bands)
        crop = (part and part.crop) or data.crop
        size = (part and part.size) or data.size
        if size % backbone.size_multiple:
            raise TrainingError(f"data.size must be a multiple of {backbone.size_multiple}, got {size}")
        wanted = {
            m: tuple(band for band in backbone.bands[m] if band in source.bands[m])
            for m in backbone.modalities
            if m in source.bands
        }
        wanted = {m: bands for m, bands in wanted.items() if bands}
        if not wanted:
            taken = {
                m if sensor == m else f"{m} ({sensor})": backbone.bands[m] for m, sensor in sensors.items()
            }
            raise TrainingError(f"{source.name} has {found.bands}, and the model takes {taken}")
        given = {m: source.bands[m] for m in wanted}
        units = {m: unit for m, unit in data.units.items() if m in wanted}
        views = Views(
            crop=crop, size=size, flips=data.flips, turns=data.turns, region=data.region, mixup=data.mixup
        )
        checking, preprocess = (
            preprocess_for(backbone.inputs, wanted, sensors=sensors, bands=given, units=units, check=check)
            for check in (True, False)
        )
        try:
            use = Use(
                source=source, preprocess=preprocess, views=views, repeat=part.repeat if part else 1,
                seasons=recipe.objective.seasons,
            )  # fmt: skip
        except ValueError as error:
            raise TrainingError(str(error)) from error
        _look(use, checking)
        uses.append(use)
    fed = {m for use in uses for m in use.preprocess.specs}
    if idle := [m for m in backbone.modalities if m not in fed]:
        raise TrainingError(
            f"no source has {', '.join(sensors[m] for m in idle)}, which {recipe.model} takes (there is "
            f"{', '.join(sorted(held))}): a part of the model would stay random. Check the folder, train "
            f"without: overrides.modalities={json.dumps(sorted(fed))}, or on another sensor: "
            f"overrides.sensors.{idle[0]}=SENSOR with its overrides.bands.{idle[0]}"
        )
    if unknown := [m for m in data.units if m not in fed]:
        raise TrainingError(
            f"data.units names {', '.join(unknown)}; the sensors are {', '.join(sorted(fed))}"
        )
    return uses


def _look(use: Use, preprocess: Any) -> None:
    """Try some samples with all checks: wrong units, and crops that do not fit, show before a run."""
    source, series = use.source, (use.seasons or 1) > 1
    too_small: list[BadSample | None] = []
    for place in sorted({i * len(source) // _LOOKED_AT for i in range(_LOOKED_AT)}):
        try:
            sample = source.read(place, None if series else 0)
        except BadSample:
            continue  # the run reports it when it comes to it
        images = {m: sample.images[m] for m in preprocess.specs}
        try:
            preprocess({m: x[sample.valid[m]] if m in sample.valid else x for m, x in images.items()})
        except ValueError as error:
            raise TrainingError(
                f'{source.name}: {source.describe(place)}: {error}. In a recipe: data.units={{"s2": ...}}'
            ) from error
        try:
            use.check_size(*next(iter(images.values())).shape[-2:])
        except BadSample as problem:
            too_small.append(problem)
        else:
            too_small.append(None)
    if too_small and all(too_small):  # some are left out in the run
        raise TrainingError(f"{source.name}: {too_small[0]}")
