"""What decides a fine-tuning run: a frozen dataclass, read and changed as pretraining's recipes are."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rsbackbones.train.engine.config import RunOptions


@dataclass(frozen=True, kw_only=True)
class Views:
    """How labelled images are brought to the model; size and tiles in evaluations as in training.

    Attributes:
        size: side in pixels that labelled images are resized to; ``None``: as they are.
        tile: side of the squares that images with labels of pixels are cut into; ``None``: whole.
        overlap: of neighboring tiles, in pixels; ``None``: half a tile.
        flips, turns: along both axes, each with probability 1/2; by quarters. A label map goes along.
        mixup, cutmix: alpha of their Beta distributions, 0 for none; ``switch`` is the probability of cutmix
            where there are both. Labels of images only.
        smoothing: of the labels of images.
    """

    size: int | None = None
    tile: int | None = None
    overlap: int | None = None
    flips: bool = True
    turns: bool = True
    mixup: float = 0.8
    cutmix: float = 1.0
    switch: float = 0.5
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        for name in ("size", "tile"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"views.{name} must be at least 1 pixel, or none, got {value}")
        if self.overlap is not None and (self.tile is None or not 0 <= self.overlap < self.tile):
            raise ValueError(
                f"views.overlap is that of tiles and less than their side, got {self.overlap} of {self.tile}"
            )
        if self.mixup < 0 or self.cutmix < 0:
            raise ValueError(
                f"views.mixup and views.cutmix must not be negative, got {self.mixup} and {self.cutmix}"
            )
        if not 0 <= self.switch <= 1 or not 0 <= self.smoothing < 1:
            raise ValueError(
                f"views.switch is a share, views.smoothing one below 1, got {self.switch}, {self.smoothing}"
            )


@dataclass(frozen=True, kw_only=True)
class FinetuneOptim:
    """The optimizer and the schedule of its learning rate.

    Attributes:
        name: torch's. The rate of ``adafactor`` is relative: at step t at most 1 / sqrt(t), times the root
            mean square of a parameter.
        base_lr: times global batch / 256 where it is ``scaled``.
        momentum: of ``sgd``; ``betas``: of ``adamw``.
        weight_decay: for weights of two or more dimensions.
        layer_decay: factor of the rate from one block to the one below it; 1: all have the same.
        warmup_epochs, warmup_steps: of the linear warm-up; they add up.
        schedule: of the rate after it: to ``min_lr`` as half a ``cosine`` or with a power (``poly``), or
            ``constant``.
    """

    name: Literal["adamw", "sgd", "adafactor"] = "adamw"
    base_lr: float = 1e-4
    scaled: bool = True
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    weight_decay: float = 0.01
    layer_decay: float = 1.0
    warmup_epochs: float = 0.0
    warmup_steps: int = 0
    schedule: Literal["cosine", "poly", "constant"] = "cosine"
    power: float = 0.9
    min_lr: float = 0.0
    clip_grad: float | None = None

    def __post_init__(self) -> None:
        if not self.base_lr > 0 or not 0 < self.layer_decay <= 1:
            raise ValueError(
                f"optim.base_lr must be positive and optim.layer_decay above 0 and at most 1, got "
                f"{self.base_lr} and {self.layer_decay}"
            )
        if min(self.weight_decay, self.warmup_epochs, self.warmup_steps, self.min_lr, self.power) < 0:
            raise ValueError("optim: weight_decay, warm-up, min_lr and power must not be negative")
        if self.clip_grad is not None and not self.clip_grad > 0:
            raise ValueError(f"optim.clip_grad must be positive, or none, got {self.clip_grad}")


@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe(RunOptions):
    """A fine-tuning run, or one per learning rate.

    What is trained follows from the labels of the data. One class of an image: a linear layer on the
    embedding, soft cross-entropy. Any number of them: the same, binary cross-entropy. Pixels: a dense head,
    cross-entropy. Change: the same on the difference of two dates, negative log-likelihood.

    Attributes:
        model: as for ``create_model``; ``overrides``: fields of its configuration.
        data: what ``rsbackbones.data.labelled.open_labelled`` opens; ``data_options``: its other arguments.
        modalities: the sensors to use; default all that the data and the model have.
        sensors: by modality the sensor of the images, where it is not the modality's own:
            ``{"s2": "landsat_oli"}``, as for ``open_labelled``.
        bands, missing_bands, kernel_scale: by modality the bands to use, and what meets those that the
            weights lack, as for ``rsbackbones.eval.feature_source.model_for``.
        pretrained: whether to begin with the model's weights; ``checkpoint``: with those of a local file.
        freeze: train the head alone.
        head, head_options: of pixel labels and change, as for ``rsbackbones.heads.dense_model``.
        scale: label pixels per image pixel, along each side.
        epochs, steps: length of the run; one of them.
        evaluate_every: steps between evaluations; default an epoch.
        drop_path: rate of the last block; the first has 0, those between lie on a line.
        select: ``val``: the epoch that is best on the validation split is scored on the test split; a set
            without one gives a fifth of its training samples for it. ``paper``: the best single evaluation,
            on the validation split or where there is none on the test split, is the result; it is optimistic,
            and says so.
        metric: what is best, a name of ``rsbackbones.eval.metrics``; default top-1, micro mAP, mean IoU, or
            F1 of change.
        sweep: run every base learning rate of ``rates``, and report the best.
        evaluation_batch: images per forward pass of an evaluation.
        workers: loader processes per training process.
    """

    model: str
    overrides: dict[str, Any] = field(default_factory=dict)
    data: str | None = None
    data_options: dict[str, Any] = field(default_factory=dict)
    modalities: tuple[str, ...] = ()
    sensors: dict[str, str] = field(default_factory=dict)
    bands: dict[str, tuple[str, ...]] = field(default_factory=dict)
    missing_bands: str = "error"
    kernel_scale: str = "count"
    pretrained: bool = True
    checkpoint: Path | None = None
    freeze: bool = False
    head: Literal["upernet", "linear", "vit_lite"] = "upernet"
    head_options: dict[str, Any] = field(default_factory=dict)
    scale: int = 1
    views: Views = field(default_factory=Views)
    optim: FinetuneOptim = field(default_factory=FinetuneOptim)
    epochs: int | None = None
    steps: int | None = None
    evaluate_every: int | None = None
    drop_path: float = 0.0
    select: Literal["val", "paper"] = "val"
    metric: str | None = None
    sweep: bool = False
    rates: tuple[float, ...] = ()
    evaluation_batch: int = 64
    workers: int = 2
    parallel: Literal["ddp"] = "ddp"

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"a run has epochs or steps, one of them; got {self.epochs} and {self.steps}")
        for name in ("steps", "evaluate_every", "scale", "evaluation_batch"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.workers < 0 or not 0 <= self.drop_path < 1:
            raise ValueError(
                f"workers must not be negative and drop_path from 0 to below 1, got {self.workers} and "
                f"{self.drop_path}"
            )
        if self.sweep and (len(set(self.rates)) < 2 or not all(rate > 0 for rate in self.rates)):
            raise ValueError(f"a sweep has at least two different positive rates, got {self.rates}")
        if self.freeze and (self.drop_path or self.optim.layer_decay < 1):
            raise ValueError("a frozen backbone has neither drop_path nor layer_decay")

    def resumable_fields(self) -> tuple[str, ...]:
        """See :meth:`RunOptions.resumable_fields`; the data are compared by their digest."""
        return (*super().resumable_fields(), "data", "workers", "evaluation_batch")
