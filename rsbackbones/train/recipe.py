"""Recipes: all options of a pretraining run, in frozen dataclasses.

A named recipe holds a paper's numbers. ``key=value`` arguments replace single fields, as in
``optim.base_lr=1e-5``; an unknown key is an error. The recipe is printed and saved with the run.
"""

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag
from pydantic.dataclasses import dataclass

from rsbackbones.data.augment import CropRange, Flips, Region
from rsbackbones.data.date_alignment import MAX_DAYS_APART
from rsbackbones.data.npz import NpzFile
from rsbackbones.data.picture_source import PictureFiles
from rsbackbones.data.simulated import SimulatedPlaces
from rsbackbones.train.engine.config import (
    STRICT,
    Count,
    CountOrZero,
    FilePath,
    NonNegative,
    OptimOptions,
    RunOptions,
    Share,
    ShareBelowOne,
    Text,
)
from rsbackbones.train.engine.config_io import from_json, merge_fields, to_json, union_member
from rsbackbones.train.engine.run_dir import stage_folder
from rsbackbones.train.engine.sampler import TaskSchedule
from rsbackbones.train.objectives.objective import ObjectiveConfig
from rsbackbones.train.objectives.registry import check_registered


def _kind_of_file(file: Any) -> str:
    kinds = NpzFile | PictureFiles | SimulatedPlaces
    kind = union_member(kinds, file) if isinstance(file, dict) else type(file)
    return {PictureFiles: "pictures", SimulatedPlaces: "simulated"}.get(kind, "npz")


# One of them, told apart by their fields: errors are then those of the one that is meant.
_File = Annotated[
    Annotated[NpzFile, Tag("npz")]
    | Annotated[PictureFiles, Tag("pictures")]
    | Annotated[SimulatedPlaces, Tag("simulated")],
    Discriminator(_kind_of_file),
]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Part:
    """One of several data sets that a training set is made of, and how it is used.

    Attributes:
        file: one .npz file, pictures, or simulated places.
        repeats: how often an epoch goes over it.
        crop, size: replace those of the data options.
        task: the task that its samples are for; ``""``: all tasks.
    """

    file: _File
    repeats: Count = 1
    crop: CropRange | None = None
    size: Count | None = None
    task: str = ""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataOptions:
    """Where images come from and how they are augmented.

    Attributes:
        root: a folder (or file) in one of the layouts of :mod:`rsbackbones.data.open`, or the folder of
            ``parts``.
        options: options of the layout of ``root``: ``product``, ``split``, ``offset``, ``bands``; see the
            class of the layout.
        parts: .npz files and pictures below ``root``, and simulated places. Empty if ``root`` is a training
            set itself.
        crop: smallest and largest side of the square crops, in pixels of the source; or, up to 1, as shares
            of the shorter side of an image. For MoCo-v2's views shares of its area.
        size: side of the images that the model gets, in pixels.
        flips: along both axes (``true``), left to right only (``horizontal``), or none (``false``).
        rot90: rotate by multiples of 90 degrees.
        region: for samples that are series, how the crops of the dates lie to each other: ``same`` (one crop
            for all), ``partial`` (a crop per date), ``disjoint`` (crops that do not overlap).
        mixup: parameter of the Beta distribution; 0: no mixup.
        task_schedule: the order of the tasks of ``parts`` or of the objective: ``proportional`` (to the
            number of batches of each, shuffled), ``alternate`` or ``random``; see
            :class:`~rsbackbones.train.engine.sampler.BatchPlan`. A method may have an order of its own.
        pair_days: in a method that states the sensors of its tasks, the partner of an image is that of the
            other sensor nearest in time, at most so many days away; it may be that of several images.
            ``None``: one to one, at most 60 days away.
        limit: use so many locations of every source (of a method that states the sensors of its tasks, so
            many images or series), drawn by their names; ``None``: all.
        products: by modality the product of the images, if the model's input contract is for another:
            ``{"s2": "L2A"}`` or ``{"s2": "L1C"}``. The statistics of SSL4EO-S12 for it are used and exported.
        units: by sensor, the unit of Sentinel-2 and Sentinel-1 values that are not DN and dB; as for
            ``create_preprocess``.
        statistics: by modality and band (mean, standard deviation), in the unit of the model's input contract
            (DN, dB). They replace those of the contract, or add bands that it lacks; the exported model keeps
            them. ``dataset``: those that ``root`` comes with, series in our own layout
            (:mod:`rsbackbones.data.series_statistics`) or PASTIS-R; the saved recipe has the numbers.
        workers: loader processes per training process.
        max_bad_share: the run stops if more than this share of all places cannot be used.
    """

    root: FilePath | None = None
    options: dict[str, Any] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()
    crop: CropRange = (60, 180)
    size: Count = 120
    flips: Flips = True
    rot90: bool = True
    region: Region = "same"
    mixup: NonNegative = 0.3
    task_schedule: TaskSchedule = "proportional"
    pair_days: Annotated[CountOrZero, Field(le=MAX_DAYS_APART)] | None = None
    limit: Count | None = None
    products: dict[Literal["s2"], Literal["L1C", "L2A"]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    statistics: dict[str, dict[str, tuple[float, float]]] | Literal["dataset"] = field(default_factory=dict)
    workers: CountOrZero = 2
    max_bad_share: Share = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.crop[0] <= self.crop[1]:
            raise ValueError(f"crop must be the smallest and the largest side, above 0, got {self.crop}")
        if self.crop[0] < 1 < self.crop[1]:
            raise ValueError(f"crop must be two sides in pixels, or two shares up to 1, got {self.crop}")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Recipe(RunOptions):
    """A pretraining run: one stage, or several, each of which begins with the weights of the one before.

    With gradient accumulation, contrastive negatives come from the current micro-batch only, or from a queue.

    Attributes:
        model: as for ``create_model``.
        overrides: fields of the model's configuration, as for ``create_model``.
        objective: the pretraining method and its options.
        data: see :class:`DataOptions`.
        optim: see :class:`~rsbackbones.train.engine.config.OptimOptions`.
        epochs: how often a stage goes over its data. The task schedule does not change it.
        steps: the length of a stage in steps; set epochs or steps.
        stages: for every stage the fields that differ from the recipe's own, nested as in its JSON:
            ``({"epochs": 20, "objective": {"length": 1}}, {})``. Empty: one stage.
        init_from: weights that the first stage begins with: ``objective.safetensors`` of ``export --full``.
        ema: decay of the exponential moving average of the weights, which is then exported; 0: no average.
    """

    model: Text
    overrides: dict[str, Any] = field(default_factory=dict)
    objective: ObjectiveConfig
    data: DataOptions = field(default_factory=DataOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    epochs: Count | None = None
    steps: Count | None = None
    stages: tuple[dict[str, Any], ...] = ()
    init_from: FilePath | None = None
    ema: ShareBelowOne = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_registered(self.objective)
        self.objective.check_run(self)
        if self.objective.looks:
            self._check_looks()
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                f"set epochs or steps, one of them; got epochs={self.epochs} and steps={self.steps} (none "
                "unsets one)"
            )
        own = self.objective.schedule
        if own and self.data.task_schedule not in ("proportional", own):
            raise ValueError(
                f"data.task_schedule={self.data.task_schedule}: {self.objective.method} has an order of its "
                f"own, objective.order={own}; change that"
            )
        for i, changes in enumerate(self.stages):
            if fixed := [name for name in ("name", "output", "stages", "max_steps") if name in changes]:
                raise ValueError(f"stages.{i} cannot change {', '.join(fixed)}: they are options of the run")
            if i and "init_from" in changes:
                raise ValueError(
                    f"stages.{i} cannot change init_from: it begins with the weights of the stage before"
                )
        seasons = {stage.objective.seasons for stage in self.resolve_stages()}  # each must be a recipe
        if seasons == {1} and any("length" in changes.get("objective", {}) for changes in self.stages):
            raise ValueError(
                "the stages differ in objective.length, but with these options every stage trains on single "
                "dates: pass stages=[] as well"
            )

    def _check_looks(self) -> None:
        """Refuse options of augmentation that MoCo-v2's views do not have."""
        data, fixed = self.data, {"flips": "horizontal", "rot90": False, "region": "same", "mixup": 0}
        if other := [f"data.{name}={getattr(data, name)}" for name, x in fixed.items()
                     if getattr(data, name) != x]:  # fmt: skip
            raise ValueError(
                f"the views of {self.objective.method} are flipped left to right and neither turned nor "
                f"mixed: pass data.flips=horizontal data.rot90=false data.mixup=0, got {', '.join(other)}"
            )
        if max(data.crop) > 1:
            raise ValueError(
                f"the crops of {self.objective.method} are shares of the area, up to 1, such as "
                f"data.crop=0.2,1.0; got {data.crop[0]},{data.crop[1]}"
            )

    @property
    def length(self) -> str:
        """The length of the run, or of a stage, in words."""
        return f"{self.epochs} epochs" if self.steps is None else f"{self.steps} steps"

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
            for length, other in (("epochs", "steps"), ("steps", "epochs")):
                if changes.get(length) is not None:
                    own[other] = None
            try:
                resolved.append(from_json(merge_fields(own, changes), Recipe))
            except ValueError as error:
                raise ValueError(f"stages.{i}: {error}") from error
        return tuple(resolved)

    def resumable_fields(self) -> tuple[str, ...]:
        """See :meth:`RunOptions.resumable_fields`."""
        return (
            *super().resumable_fields(),
            "data.root",
            "data.workers",
            "data.max_bad_share",
            "init_from",
            "objective.guidance.oracle",
        )  # of which the bytes are compared
