"""AuxMAE's pretraining: reconstruct the image of one sensor, and predict that of another, step by step.

Linial et al. (Google Research), "Enhancing Remote Sensing Representations Through Mixed-Modality Masked
Autoencoding", sections 3.1 and 3.2, figure 2. The encoder is shared, every task has a decoder, and every step
trains one task on data of its own (alternating gradient descent; Akbari et al., NeurIPS 2023).

Task 1, ``s2_s2``, is MAE: mask, encode the patches that are kept, decode all, and compare those that were not
seen. Task 2, ``s2_s1``, encodes all patches of Sentinel-2 and predicts all of Sentinel-1. The paper's
baseline is task 1 alone: ``AuxmaeObjective(tasks=(Task(),))``.

What the paper leaves open, and our choices:

- Section 3.2 compares the prediction of task 1 with "the unmasked image"; figure 2 says "the unseen patches".
  We take the figure.
- Targets are the pixels as the model gets them ("the MSE loss"); normalization by patch is an option.
- "ViT-Lite, approximately 21M parameters" is 6 blocks of width 512 with 16 heads here: 21.0 M for 13 bands.
- Of N patches int(N * (1 - mask_ratio)) are kept, as in MAE's code. The ratio is MAE's, 0.75.

Shapes: B samples, N patches of which K are kept, C bands, p pixels along each side of a patch.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from rsbackbones.input_spec import SINGLE_SENSOR_INPUTS
from rsbackbones.layers.patches import patchify, unpatchify
from rsbackbones.models.backbone import Backbone
from rsbackbones.models.mixmae import Mixmae
from rsbackbones.train.engine.batch import Batch
from rsbackbones.train.engine.config import STRICT, Count, ShareBelowOne, Text
from rsbackbones.train.engine.sampler import TaskSchedule
from rsbackbones.train.objectives.checks import (
    band_positions,
    batch_channels,
    check_decoder,
    check_no_head,
    mask_of,
    select_channels,
)
from rsbackbones.train.objectives.decoder import Decoder
from rsbackbones.train.objectives.guidance import Guidance, GuidanceOptions
from rsbackbones.train.objectives.masking import Mask
from rsbackbones.train.objectives.objective import Objective, ObjectiveConfig
from rsbackbones.train.objectives.precision import full_precision
from rsbackbones.train.objectives.targets import PatchNormalizer, patch_errors


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Task:
    """One sensor predicted from another, or from itself.

    Attributes:
        source: the sensor that is encoded.
        target: the sensor that is predicted.
        mask_ratio: the share of the source's patches that is masked.
        scale: the target has ``scale`` times as many pixels along each side as the source.

    Raises:
        ValueError: an option is out of range, or a sensor would be predicted from itself at another scale.
    """

    source: Text = "s2"
    target: Text = "s2"
    mask_ratio: ShareBelowOne = 0.75
    scale: Count = 1

    def __post_init__(self) -> None:
        if self.source == self.target and self.scale != 1:
            raise ValueError(
                f"scale={self.scale}: {self.source} has one image in a sample, which cannot be its own "
                "target at another resolution; name another target"
            )

    @property
    def name(self) -> str:
        """The name of the task, of its decoder and of its part of the loss."""
        return f"{self.source}_{self.target}"


@dataclass(frozen=True, kw_only=True)
class AuxmaeObjective(ObjectiveConfig):
    """The options of AuxMAE's objective; the defaults are the paper's.

    Attributes:
        method: the name of the method in recipes.
        tasks: what is trained; see :class:`Task`.
        order: the task of a step: ``alternate`` (one after the other), or ``random`` (drawn for every step).
        normalized_targets: normalize every patch of a target to mean 0 and variance 1, over all bands.
        decoder_dim, decoder_depth, decoder_heads: the size of each decoder.
        guidance: draw the embeddings of unmasked images to those of an oracle, FoMu-SSL's RGB branch (their
            figure A2 has it with another method). The oracle is a file of the same architecture on bands of
            one sensor, such as red, green and blue; it sees the values that this model sees. ``None``: no
            guidance.

    Raises:
        ValueError: there is no task, two have one name, or an option is out of range.
    """

    stage_options: ClassVar[tuple[str, ...]] = ("order", "normalized_targets", "guidance")

    method: Literal["auxmae"] = "auxmae"
    tasks: tuple[Task, ...] = (Task(), Task(target="s1", mask_ratio=0.0))  # type: ignore[misc]
    order: Literal["alternate", "random"] = "alternate"
    normalized_targets: bool = False
    decoder_dim: Count = 512
    decoder_depth: Count = 6
    decoder_heads: Count = 16
    guidance: GuidanceOptions | None = None

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError('tasks is empty: name what to predict, such as tasks=[{"target": "s2"}]')
        names = self.task_names
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"tasks has {', '.join(twice)} more than once: a pair of sensors is one task")
        check_decoder(self.decoder_dim, self.decoder_heads)
        if self.guidance and not self.guidance.rgb:
            raise ValueError("guidance.rgb=0 guides nothing: raise it, or pass guidance=null")
        if self.guidance and (self.guidance.sar or self.guidance.initial_oracle):
            raise ValueError(
                "AuxMAE takes the RGB branch of guidance alone, and begins with its own weights: pass "
                'guidance={"oracle": FILE, "sar": 0, "initial_oracle": false}'
            )

    @property
    def schedule(self) -> TaskSchedule:
        """See :meth:`ObjectiveConfig.schedule`."""
        return self.order

    def task_images(self, task: str) -> Mapping[str, int]:
        """See :meth:`ObjectiveConfig.task_images`."""
        named = self.find_task(task)
        return {named.source: 1, named.target: named.scale}

    def find_task(self, name: str) -> Task:
        """Return the task of a name.

        Raises:
            ValueError: there is none.
        """
        for task in self.tasks:
            if task.name == name:
                return task
        raise ValueError(
            f"the task of the batch is {name!r}; those of the objective are {', '.join(self.task_names)}: "
            "name one of them in Batch(task=...)"
        )

    def sample_noise(
        self, generator: torch.Generator, modalities: tuple[str, ...], grid: tuple[int, int]
    ) -> dict[str, Tensor]:
        """See :meth:`ObjectiveConfig.sample_noise`: noise [N], N = h * w."""
        return {"noise": torch.rand(grid[0] * grid[1], generator=generator)}

    def build(self, backbone: Backbone) -> "AuxmaePretraining":
        """Build the objective around ``backbone``.

        Raises:
            ValueError: the backbone is of another family, has a head, or lacks the source of a task; or a
                target has no input contract.
        """
        if not isinstance(backbone, Mixmae):
            raise ValueError(
                f"AuxMAE's objective trains an AuxMAE or MixMAE model, got {type(backbone).__name__}"
            )
        return AuxmaePretraining(self, backbone)


def target_loss(
    predicted: Tensor,
    image: Tensor,
    patch_size: int,
    *,
    unseen: Tensor | None = None,
    normalized: bool = False,
) -> Tensor:
    """Return the mean square error of predicted patches.

    Args:
        predicted: [B, N, C * p * p], patches in row-major order, their pixels laid out (band, row, column).
        image: the target, [B, C, H, W].
        patch_size: p, the pixels of the *target* along each side of a patch.
        unseen: [B, N], True for the patches that count; by default all.
        normalized: normalize every patch of the target, over all bands.

    Raises:
        ValueError: the image has other patches than the prediction.
    """
    errors = patch_errors(predicted, image, patch_size, normalized=normalized)
    return errors.mean() if unseen is None else (errors * unseen).sum() / unseen.sum()


class AuxmaePretraining(Objective):
    """An encoder with a decoder for each task, ``decoders[task.name]``."""

    backbone: Mixmae
    options: AuxmaeObjective

    def __init__(self, options: AuxmaeObjective, backbone: Mixmae) -> None:
        super().__init__()
        check_no_head(backbone)
        if lacking := sorted({t.source for t in options.tasks if t.source not in backbone.modalities}):
            raise ValueError(
                f"tasks encode {', '.join(lacking)}, and the backbone takes "
                f"{', '.join(backbone.modalities)}; name another source, or build it with "
                f"overrides.modalities={[*backbone.modalities, *lacking]}"
            )
        self.options = options
        self.backbone = backbone
        self.target_bands = {task.target: _bands(backbone, task.target) for task in options.tasks}
        self.decoders = nn.ModuleDict(
            {
                task.name: Decoder(
                    backbone.num_features, len(self.target_bands[task.target]),
                    backbone.patch_size * task.scale, dim=options.decoder_dim, depth=options.decoder_depth,
                    num_heads=options.decoder_heads, masked=task.mask_ratio > 0,
                )
                for task in options.tasks
            }
        )  # fmt: skip
        self.guidance = Guidance(options.guidance, backbone.num_features) if options.guidance else None

    def begin(self, *, first: bool, resumed: bool) -> dict[str, Any]:
        """See :meth:`Objective.begin`: the oracle."""
        if self.guidance is None:
            return {}
        return self.guidance.load_oracle(self.backbone, first=first, other_bands=True)

    def learning_rate_scales(self) -> dict[str, float]:
        """See :meth:`TrainModule.learning_rate_scales`."""
        scales = self.guidance.learning_rate_scales() if self.guidance else {}
        return {f"guidance.{name}": scale for name, scale in scales.items()}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """See :meth:`Objective.forward`. The part has the name of the batch's task; ``rgb`` is guidance's.

        Images are [B, C, H, W], the noise [B, N].

        Raises:
            ValueError: the batch is of no task, or has sensors, bands, sizes or noise that do not fit it.
        """
        task, options = self.options.find_task(batch.task), self.options
        predicted, mask = self._predict(batch, task)
        # Of another sensor nothing was seen.
        unseen = mask.masked if mask is not None and task.source == task.target else None
        loss = target_loss(
            predicted, batch.images[task.target], self.backbone.patch_size * task.scale, unseen=unseen,
            normalized=options.normalized_targets,
        )  # fmt: skip
        parts = {task.name: loss.detach()}
        if self.guidance is not None:
            guided, of_guidance = self._guide(self.guidance, batch, task)
            loss, parts = loss + guided, parts | of_guidance
        return {"loss": loss, **parts}

    def units(self) -> list[nn.Module]:
        """See :meth:`TrainModule.units`."""
        decoders = [decoder for decoder in self.decoders.values() if isinstance(decoder, Decoder)]
        return [*super().units(), *(unit for decoder in decoders for unit in decoder.units())]

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """See :meth:`Objective.reconstruct`: the target of the batch's task."""
        task = self.options.find_task(batch.task)
        predicted, mask = self._predict(batch, task)
        p, image = self.backbone.patch_size * task.scale, full_precision(batch.images[task.target])
        patches, pixels = patchify(image, p), full_precision(predicted)
        if self.options.normalized_targets:
            pixels = PatchNormalizer.of(patches).undo(pixels)
        grid = self.backbone.grid(batch.images[task.source])
        if task.source != task.target or mask is None:
            nothing = torch.full_like(image, float("nan"))
            return {task.target: (image, nothing, unpatchify(pixels, p, grid))}
        masked = mask.masked[..., None]
        seen = unpatchify(patches.masked_fill(masked, float("nan")), p, grid)
        return {task.target: (image, seen, unpatchify(torch.where(masked, pixels, patches), p, grid))}

    def _guide(self, guidance: Guidance, batch: Batch, task: Task) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the distance of unmasked images to the oracle, which has the student's only sensor."""
        source, oracle = task.source, guidance.oracle.backbone
        image, given = batch.images[source], batch.bands[source]
        if lacking := [band for band in oracle.bands[source] if band not in given]:
            raise ValueError(
                f"the oracle sees {', '.join(lacking)}, which the batch of {', '.join(given)} lacks: leave "
                "the source out, or pass guidance=null"
            )
        known = batch_channels(self.backbone, replace(batch, images={source: image}, valid={}, dates={}))
        tokens = self.backbone.encode_tokens(
            {source: image.to(next(self.backbone.parameters()).dtype)},
            channels=select_channels(self.backbone, known),
        )
        seen = image[:, [given.index(band) for band in oracle.bands[source]]]
        features = self.backbone.pool_tokens(source, tokens[source])
        return guidance.forward(features, seen, None)

    def _predict(self, batch: Batch, task: Task) -> tuple[Tensor, Mask | None]:
        """Return the predicted patches, [B, N, C * p * p], and the masks of the source, if any."""
        source, target = task.source, task.target
        if lacking := [m for m in (source, target) if m not in batch.images]:
            raise ValueError(
                f"the task {task.name} needs images of {' and '.join(dict.fromkeys(lacking))}, which the "
                f"batch lacks; it has {', '.join(batch.images) or 'none'}"
            )
        image, truth = batch.images[source], batch.images[target]
        known = batch_channels(self.backbone, replace(batch, images={source: image}, valid={}, dates={}))
        channels = select_channels(self.backbone, known)
        sides = tuple(side * task.scale for side in image.shape[-2:])
        sensor = self.backbone.config.sensors.get(target, target)
        wanted = band_positions(target, self.target_bands[target], batch, sensor)
        if truth.shape != (*image.shape[:-3], len(wanted), *sides) or image.ndim != 4:
            raise ValueError(
                f"the task {task.name} has scale={task.scale}: for {source} {list(image.shape)} the target "
                f"{target} must be {[len(image), len(wanted), *sides]}, got {list(truth.shape)}"
            )
        grid = self.backbone.grid(image)
        mask = None
        if task.mask_ratio:
            mask = mask_of(batch, "noise", (len(batch), grid[0] * grid[1]), task.mask_ratio)
        # Sharded parameters may be gathered in bfloat16.
        images = {source: image.to(next(self.backbone.parameters()).dtype)}
        kept = None if mask is None else {source: mask.kept}
        tokens = self.backbone.encode_tokens(images, kept=kept, channels=channels)[source]
        some = None if wanted == list(range(len(self.target_bands[target]))) else wanted
        decoder = self.decoders[task.name]
        return decoder(tokens, None if mask is None else mask.restore, grid, some), mask


def _bands(backbone: Backbone, target: str) -> tuple[str, ...]:
    """Return the bands of a target."""
    if target in backbone.bands:
        return tuple(backbone.bands[target])
    contracts: Mapping[str, Any] = {**SINGLE_SENSOR_INPUTS, **backbone.inputs}
    if target not in contracts:
        raise ValueError(
            f"the target {target} has no statistics: state them, data.statistics.{target}="
            '{"BAND": [mean, std], ...}'
        )
    bands: tuple[str, ...] = contracts[target].bands
    return bands
