"""Recipes: everything that decides a pretraining run, in frozen dataclasses.

A named recipe holds a paper's numbers. ``key=value`` arguments replace single fields, as in
``optim.base_lr=1e-5``; an unknown key is an error. The recipe is printed and saved with the run.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rsbackbones.train.data.augment import CropRange, Flips, Region
from rsbackbones.train.data.npz import NpzFile
from rsbackbones.train.data.simulated import SimulatedPlaces
from rsbackbones.train.objectives.croma import CromaObjective
from rsbackbones.train.objectives.seamo import SeamoObjective
from rsbackbones.train.options import OptimOptions, RunOptions
from rsbackbones.train.recipe_fields import from_json, merge_fields, to_json


@dataclass(frozen=True, kw_only=True)
class Part:
    """One .npz file, or simulated places, of a training set that is made of several, and how it is used.

    ``crop`` and ``size`` replace those of the data options; ``repeat``: times per epoch.
    """

    file: NpzFile | SimulatedPlaces
    repeat: int = 1
    crop: CropRange | None = None
    size: int | None = None


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Where images come from and how they are viewed.

    Attributes:
        root: a folder (or file) in one of the layouts that :mod:`rsbackbones.train.data.open` knows, or the
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
        if self.mixup < 0 or self.workers < 0 or not 0 <= self.max_bad_share <= 1:
            raise ValueError(
                f"data: mixup {self.mixup} and workers {self.workers} must not be negative, max_bad_share "
                f"{self.max_bad_share} must be from 0 to 1"
            )


@dataclass(frozen=True, kw_only=True)
class Recipe(RunOptions):
    """A pretraining run. Contrast sees the negatives of one pass, of which a step has ``accumulate``.

    Attributes:
        objective: what is trained, and its options.
        epochs: length of the run.
        first: what is different in a first phase of the run, whose weights this one begins with: fields of
            the recipe, nested as in its JSON: ``{"epochs": 20, "objective": {"strategy": "multimodal"}}``.
            What it does not name is the same in both, ``initial`` is what the first begins with.
        initial: weights to begin with: ``objective.safetensors`` of ``export --full``.
        ema: decay of the exponential moving average of the parameters, which is then exported; 0 for none.
    """

    objective: CromaObjective | SeamoObjective
    data: DataOptions = field(default_factory=DataOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    epochs: int
    first: dict[str, Any] = field(default_factory=dict)
    initial: Path | None = None
    ema: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is a decay from 0 (none) to below 1, got {self.ema}")
        if fixed := [name for name in ("name", "out", "first", "max_steps") if name in self.first]:
            raise ValueError(f"first cannot change {', '.join(fixed)}: they are of the run as a whole")
        self.first_phase()  # what it says must be a recipe
        if self.first and self.objective.seasons == 1:
            raise ValueError(
                "these options train on single dates, as the first phase does, and there is no second: say "
                "first={} as well"
            )

    def first_phase(self) -> "Recipe | None":
        """Return the recipe of the first phase, which trains in the folder ``phase_1`` of this one's.

        Raises:
            ValueError: ``first`` has an unknown field, or a value that does not fit.
        """
        if not self.first:
            return None
        out = None if self.out is None else str(self.out / "phase_1")
        own: dict[str, Any] = {**to_json(self), "first": {}, "out": out}
        return from_json(merge_fields(own, self.first), Recipe)

    def may_change(self) -> tuple[str, ...]:
        """See :meth:`RunOptions.may_change`."""
        return (*super().may_change(), "data.root", "data.workers", "data.max_bad_share", "initial")
