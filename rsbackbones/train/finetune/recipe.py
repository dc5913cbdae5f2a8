"""The options of a fine-tuning run: frozen dataclasses, read and changed like the recipes of pretraining."""

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from rsbackbones.data.augment import Flips
from rsbackbones.train.engine.config import (
    STRICT,
    Count,
    CountOrZero,
    FilePath,
    NonNegative,
    Positive,
    RunOptions,
    Share,
    ShareBelowOne,
    Text,
)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Views:
    """How labelled images are resized, cut and augmented. Size and tiles also apply to evaluations.

    Attributes:
        size: side in pixels that labelled images are resized to; ``None``: their own size.
        tile: side of the tiles that images with pixel labels are cut into; ``None``: whole images.
        overlap: overlap of neighboring tiles, in pixels; ``None``: half a tile.
        flips: flip along both axes, each with probability 1/2, label maps too; ``horizontal``: left to right
            only.
        ratio_range: for labels of pixels, resize an image (a tile) and its label map by a random factor in
            this range, then crop it to its size, or fill it with zeros whose labels are ignored.
        rot90: rotate by multiples of 90 degrees, label maps too.
        photometric: distort the colors of 8-bit pictures (modality ``rgb``);
            see :mod:`rsbackbones.data.photometric`.
        mixup, cutmix: alpha of their Beta distributions; 0: off. For labels of images only.
        switch_prob: probability of cutmix instead of mixup, if both are on.
        label_smoothing: smoothing of targets, for labels of images.
    """

    size: Count | None = None
    tile: Count | None = None
    overlap: CountOrZero | None = None
    flips: Flips = True
    ratio_range: tuple[Positive, Positive] | None = None
    rot90: bool = True
    photometric: bool = False
    mixup: NonNegative = 0.8
    cutmix: NonNegative = 1.0
    switch_prob: Share = 0.5
    label_smoothing: ShareBelowOne = 0.1

    def __post_init__(self) -> None:
        if self.ratio_range is not None and self.ratio_range[0] > self.ratio_range[1]:
            raise ValueError(f"ratio_range must go from low to high, got {self.ratio_range}")
        if self.overlap is not None and (self.tile is None or self.overlap >= self.tile):
            raise ValueError(
                "overlap needs tile, and must be less than the side of a tile; got overlap "
                f"{self.overlap} and tile {self.tile}"
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FinetuneOptim:
    """The optimizer and the schedule of its learning rate.

    Attributes:
        name: an optimizer of torch. The learning rate of ``adafactor`` is relative: at step t at most
            1 / sqrt(t), times the root mean square of a parameter.
        base_lr: the peak learning rate; if ``scaled``, times global batch / 256.
        scaled: scale ``base_lr`` with the batch.
        betas: decay rates of ``adam`` and ``adamw``.
        momentum: of ``sgd``.
        weight_decay: for weights of two or more dimensions.
        layer_decay: factor of the learning rate from one block to the one below it; 1: the same for all.
        warmup_epochs, warmup_steps: length of the linear warm-up; they add up.
        schedule: of the learning rate after the warm-up: to ``min_lr`` along a half ``cosine`` or with a
            power (``poly``), or ``constant``.
        power: of ``poly``.
        min_lr: learning rate at the end.
        clip_grad: largest norm of the gradient; ``None``: no limit.
    """

    name: Literal["adam", "adamw", "sgd", "adafactor"] = "adamw"
    base_lr: Positive = 1e-4
    scaled: bool = True
    betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.999)
    momentum: ShareBelowOne = 0.9
    weight_decay: NonNegative = 0.01
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    warmup_epochs: NonNegative = 0.0
    warmup_steps: CountOrZero = 0
    schedule: Literal["cosine", "poly", "constant"] = "cosine"
    power: NonNegative = 0.9
    min_lr: NonNegative = 0.0
    clip_grad: Positive | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FinetuneRecipe(RunOptions):
    """A fine-tuning run, or one per learning rate.

    The labels of the data decide what is trained. One class per image: a linear layer on the embedding, soft
    cross-entropy. Several classes per image: the same, binary cross-entropy. Pixel labels: a dense head,
    cross-entropy. Change: a dense head on the difference of two dates, negative log-likelihood.

    Attributes:
        model: as for ``create_model``.
        overrides: fields of the model's configuration, as for ``create_model``.
        data: what ``rsbackbones.data.labelled.open_labelled`` opens.
        data_options: the other arguments of ``open_labelled``.
        share: the share of the training samples to train on, drawn from the seed; a smaller one is part of a
            larger one. Validation samples that are taken from the training samples are taken from the share.
        subset: the same under the name that it has in ``open_labelled``; set one of them.
        modalities: the sensors to use; default all that the data and the model have.
        sensors: by modality the sensor of the images, if it is not the modality's own:
            ``{"s2": "landsat_oli"}``, as for ``open_labelled``.
        bands, missing_bands, kernel_scale: by modality the bands to use, and the rules for bands without a
            match in the weights, as for ``rsbackbones.eval.feature_source.model_for``. Bands of modalities
            that are not used do not count.
        statistics: mean and deviation that images are normalized by: those of the ``weights``, or those that
            the ``dataset`` comes with (PASTIS, our own layout). The fine-tuned model keeps them.
        pad: pad images whose sides are not multiples of what the model takes, as ``pad`` of ``create_model``;
            loss and scores are of the image's own pixels.
        pretrained: begin with the pretrained weights.
        checkpoint: begin with the weights of a local file.
        freeze: train the head only.
        reconstruct: of ``head=fusion``, the folder of a pretraining run of S4 whose network makes the series
            of the missing sensor. It is frozen, and ``model`` is that of the run.
        head, head_options: for pixel labels and change, as for ``rsbackbones.heads.dense_model``.
        scale: label pixels per image pixel, along each side.
        auxiliary: for labels of pixels and ``upernet``, the weight of a second loss in training, of two
            convolutions on the last map but one; 0: none.
        views: see :class:`Views`.
        optim: see :class:`FinetuneOptim`.
        epochs, steps: length of the run; set one of them.
        evaluate_every: steps between evaluations; default an epoch.
        drop_path: rate of the last block. The rates of the blocks rise linearly from 0.
        select: ``val``: the epoch that is best on the validation split is scored on the test split; a fifth
            of the training samples is the validation split of a data set without one. ``paper``: the result
            is the best single evaluation, on the validation split, or on the test split if there is no other;
            it is optimistic, and the result says so.
        metric: decides which epoch is best, a name of ``rsbackbones.eval.metrics``; default top-1, micro mAP,
            mean IoU, or F1 of change.
        sweep: run every base learning rate of ``rates``, and report the best.
        rates: base learning rates of a sweep.
        evaluation_batch: images per forward pass of an evaluation.
        workers: loader processes per training process.
        parallel: ``ddp`` only.
    """

    model: Text
    overrides: dict[str, Any] = field(default_factory=dict)
    data: Text | None = None
    data_options: dict[str, Any] = field(default_factory=dict)
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    subset: Annotated[float, Field(gt=0, le=1)] | None = None
    modalities: tuple[str, ...] = ()
    sensors: dict[str, str] = field(default_factory=dict)
    bands: dict[str, tuple[str, ...]] = field(default_factory=dict)
    missing_bands: str = "error"
    kernel_scale: str = "count"
    statistics: Literal["weights", "dataset"] = "weights"
    pad: bool = False
    pretrained: bool = True
    checkpoint: FilePath | None = None
    freeze: bool = False
    reconstruct: FilePath | None = None
    head: Literal["upernet", "linear", "vit_lite", "unet3d", "temporal", "fusion"] = "upernet"
    head_options: dict[str, Any] = field(default_factory=dict)
    scale: Count = 1
    auxiliary: NonNegative = 0.0
    views: Views = field(default_factory=Views)
    optim: FinetuneOptim = field(default_factory=FinetuneOptim)
    epochs: Count | None = None
    steps: Count | None = None
    evaluate_every: Count | None = None
    drop_path: ShareBelowOne = 0.0
    select: Literal["val", "paper"] = "val"
    metric: Text | None = None
    sweep: bool = False
    rates: tuple[Positive, ...] = ()
    evaluation_batch: Count = 64
    workers: CountOrZero = 2
    parallel: Literal["ddp"] = "ddp"

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"set epochs or steps, one of them; got {self.epochs} and {self.steps}")
        if self.sweep and len(set(self.rates)) < 2:
            raise ValueError(f"a sweep needs at least two different rates, got {self.rates}")
        shares = {
            "share": self.share if self.share < 1 else None,
            "subset": self.subset,
            "data_options.subset": self.data_options.get("subset"),
        }
        if len(given := {name: value for name, value in shares.items() if value is not None}) > 1:
            both = " and ".join(f"{name}={value}" for name, value in given.items())
            raise ValueError(
                f"{both} both choose training samples: name one; share and subset are drawn from seed"
            )
        if self.freeze and (self.drop_path or self.optim.layer_decay < 1):
            raise ValueError("drop_path and optim.layer_decay do not apply to a frozen backbone: drop them")

    def resumable_fields(self) -> tuple[str, ...]:
        """See :meth:`RunOptions.resumable_fields`; the data are compared by their digest."""
        return (*super().resumable_fields(), "data", "workers", "evaluation_batch")
