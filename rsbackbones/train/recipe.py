"""Recipes: everything that decides a pretraining run, in frozen dataclasses.

A named recipe holds a paper's numbers. ``key=value`` arguments replace single fields, as in
``optim.base_lr=1e-5``; an unknown key is an error. The recipe is printed and saved with the run.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rsbackbones.data.augment import CropRange, Flips, Region
from rsbackbones.data.npz import NpzFile
from rsbackbones.data.simulated import SimulatedPlaces
from rsbackbones.train.engine.config import OptimOptions, RunOptions
from rsbackbones.train.engine.config_io import from_json, merge_fields, to_json
from rsbackbones.train.engine.run_dir import stage_folder
from rsbackbones.train.engine.sampler import TaskSchedule
from rsbackbones.train.objectives.objective import ObjectiveConfig
from rsbackbones.train.objectives.registry import check_registered


@dataclass(frozen=True, kw_only=True)
class Part:
    """One .npz file, or simulated places, of a training set that is made of several, and how it is used.

    ``crop`` and ``size`` replace those of the data options; ``repeat``: times per epoch. ``task``: what its
    samples are for; without one they are for every task there is.
    """

    file: NpzFile | SimulatedPlaces
    repeat: int = 1
    crop: CropRange | None = None
    size: int | None = None
    task: str = ""


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Where images come from and how they are viewed.

    Attributes:
        root: a folder (or file) in one of the layouts that :mod:`rsbackbones.data.open` knows, or the
            folder of ``parts``.
        options: of ``root``'s layout: ``product``, ``split``, ``offset``, ``bands``; see the layout's class.
        parts: .npz files below ``root``, and simulated places; empty where ``root`` is a training set of its
            own.
        crop: smallest and largest side of the square crops, in pixels of the source; or, up to 1, as shares
            of the shorter side of an image.
        size: side of what the model gets, in pixels.
        flips: along both axes, ``horizontal`` (left to right) only, or not at all. ``turns``: by quarters.
        region: where samples are series, how the crops of their dates lie to each other: ``same`` (one view
            for all), ``partial`` (one for each), ``disjoint`` (no two overlap).
        mixup: parameter of the Beta distribution; 0 for none.
        task_schedule: in which order steps are of the tasks of ``parts`` or of the objective:
            ``proportional`` (to their batches, shuffled), ``alternate``, or ``random``; see
            :class:`~rsbackbones.train.engine.sampler.BatchPlan`.
        units: of Sentinel-2 and Sentinel-1 values, where they are not DN and dB; as in ``create_preprocess``.
        statistics: by modality and band (mean, standard deviation), in the unit of the model's input contract
            (DN, dB), of bands that it has none for, or instead of its own; the exported model keeps them.
        workers: loader processes per training process.
        max_bad_share: the run stops when more than this share of all places could not be used.
    """

    root: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()
    crop: CropRange = (60, 180)
    size: int = 120
    flips: Flips = True
    turns: bool = True
    region: Region = "same"
    mixup: float = 0.3
    task_schedule: TaskSchedule = "proportional"
    units: dict[str, str] = field(default_factory=dict)
    statistics: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    workers: int = 2
    max_bad_share: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.crop[0] <= self.crop[1]:
            raise ValueError(f"data.crop must be the smallest and the largest side, got {self.crop}")
        if self.crop[0] < 1 < self.crop[1]:
            raise ValueError(
                f"data.crop must be two sides in pixels, or two shares of the image's, got {self.crop}"
            )
        if self.size < 1:
            raise ValueError(f"data.size must be at least 1 pixel, got {self.size}")
        if self.mixup < 0 or self.workers < 0 or not 0 <= self.max_bad_share <= 1:
            raise ValueError(
                f"data: mixup {self.mixup} and workers {self.workers} must not be negative, max_bad_share "
                f"{self.max_bad_share} must be from 0 to 1"
            )


@dataclass(frozen=True, kw_only=True)
class Recipe(RunOptions):
    """A pretraining run: one stage, or several, each of which begins with the weights of the one before.

    With gradient accumulation, contrastive negatives come from the current micro-batch only.

    Attributes:
        model: as for ``create_model``; ``overrides``: fields of its configuration.
        objective: what is trained, and its options.
        epochs: length of a stage: times that it goes over its data. The order of tasks does not change it.
        stages: for every stage what differs from the recipe's own fields, nested as in its JSON:
            ``({"epochs": 20, "objective": {"length": 1}}, {})``. Empty: one stage.
        init_from: weights that the first stage begins with: ``objective.safetensors`` of ``export --full``.
        ema: decay of the exponential moving average of the weights, which is then exported; 0 for none.
    """

    model: str
    overrides: dict[str, Any] = field(default_factory=dict)
    objective: ObjectiveConfig
    data: DataOptions = field(default_factory=DataOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    epochs: int
    stages: tuple[dict[str, Any], ...] = ()
    init_from: Path | None = None
    ema: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_registered(self.objective)
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is a decay from 0 (none) to below 1, got {self.ema}")
        for i, changes in enumerate(self.stages):
            if fixed := [name for name in ("name", "output", "stages", "max_steps") if name in changes]:
                raise ValueError(
                    f"stages.{i} cannot change {', '.join(fixed)}: they are of the run as a whole"
                )
            if i and "init_from" in changes:
                raise ValueError(
                    f"stages.{i} cannot change init_from: it begins with the weights of the stage before"
                )
        seasons = {stage.objective.seasons for stage in self.resolve_stages()}  # each must be a recipe
        if seasons == {1} and any("length" in changes.get("objective", {}) for changes in self.stages):
            raise ValueError(
                "the stages differ in objective.length, and with these options all of them train on single "
                "dates: "
                "say stages=[] as well"
            )

    def resolve_stages(self) -> "tuple[Recipe, ...]":
        """Return the recipe of every stage, with its own folder; of a recipe without stages itself.

        Raises:
            ValueError: a stage has an unknown field, or a value that does not fit.
        """
        if not self.stages:
            return (self,)
        resolved = []
        for i, changes in enumerate(self.stages):
            own = {**to_json(self), "stages": []}
            own["output"] = self.output and str(stage_folder(self.output, i, len(self.stages)))
            if i:
                own["init_from"] = None
            try:
                resolved.append(from_json(merge_fields(own, changes), Recipe))
            except ValueError as error:
                raise ValueError(f"stages.{i}: {error}") from error
        return tuple(resolved)

    def resumable_fields(self) -> tuple[str, ...]:
        """See :meth:`RunOptions.resumable_fields`."""
        return (*super().resumable_fields(), "data.root", "data.workers", "data.max_bad_share", "init_from")
