"""S4's pretraining: a contrast of space-time positions between two sensors, and cross-modal reconstruction.

Shenoy et al., "Self-Supervised Learning across the Spectrum", Remote Sensing 2024, 16, 3470, section 5. The
series of two sensors are aligned in time, and every position of one map finds its own in the other
(section 5.1, equation 2); the decoder of the sensor that is used downstream predicts the standardized series
of the other one (section 5.2, equation 3). L = L_c + 0.01 L_r (section 6.3). The encoder of the other sensor
learns from L_c alone.

What the paper leaves open, and our choices:

- The projection g is shared by the sensors, and has as many channels as the bottleneck throughout. Its norms
  are those of the network, with running statistics of each sensor.
- The loss of a batch is the mean over its series. Images that are missing are neither positions nor targets.
- ``single``, the "single modal" row of table 5, contrasts two augmented views of one sensor's series ("random
  augmentations", of which the paper names none). Ours are photometric (:func:`photometric_view`): no pixel
  moves, so that positions keep their partners.

Shapes: B series, T dates, t = ceil(T / 4) of the 3-D network and T of the 2-D one, C bands, H x W pixels.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from rsbackbones.data.aligned_series import Alignment
from rsbackbones.layers.masked_batch_norm import MaskedBatchNorm
from rsbackbones.models.backbone import Backbone
from rsbackbones.models.input_validation import check_bfloat16
from rsbackbones.models.s4 import SLOPE, Frames, S4UNet3d, conv
from rsbackbones.models.validity import pad_to_multiple
from rsbackbones.train.engine.batch import Batch
from rsbackbones.train.engine.config import Count, NonNegative, Positive
from rsbackbones.train.objectives.checks import band_positions, check_no_head, noise_of
from rsbackbones.train.objectives.gather import gather_rows
from rsbackbones.train.objectives.objective import CrossModal, Objective, ObjectiveConfig
from rsbackbones.train.objectives.precision import full_precision
from rsbackbones.train.objectives.space_time import Negatives, cross_modal_l1, space_time_contrast

# The noise of a sample: the seed of its views and of its sampled negatives.
_SEED = "seed"
# Dates of a series that are drawn.
_DRAWN = 3


@dataclass(frozen=True, kw_only=True)
class S4Objective(ObjectiveConfig):
    """The options of S4's objective; the defaults are the paper's.

    Attributes:
        method: the name of the method in recipes.
        temperature: divides the similarities.
        negatives: the positions of the same ``sample``, or of the whole ``batch``, of all processes.
        sampled: compare with so many random negatives per anchor; an approximation, which the log calls
            ``contrastive_approximate``. ``None``: with all.
        losses: ``both``, or one of the two; what the other would train is frozen.
        reconstruction_weight: lambda of the sum of the two.
        length: the images of every series; ``None``: the 90th percentile of the set.
        align: by ``date``, or by ``index`` (the k-th images go together), to compare with.
        single: contrast two views of this sensor instead of two sensors; see the module.
        pad: take images whose sides are no multiples of 4, padded at the bottom and right by their last row
            and column. Every position of the contrast covers pixels of the image, and the reconstruction is
            compared with these alone.
        chunk: compare so many anchors at once, which bounds memory; ``None``: all.
    """

    stage_options: ClassVar[tuple[str, ...]] = (
        "temperature", "negatives", "sampled", "losses", "reconstruction_weight", "length", "align", "chunk",
        "pad",
    )  # fmt: skip

    method: Literal["s4"] = "s4"
    temperature: Positive = 0.5
    negatives: Negatives = "sample"
    sampled: Count | None = None
    losses: Literal["both", "contrastive", "reconstruction"] = "both"
    reconstruction_weight: NonNegative = 0.01
    length: Count | None = None
    align: Literal["date", "index"] = "date"
    single: Literal["s2", "s1"] | None = None
    chunk: Count | None = 1024
    pad: bool = False

    def __post_init__(self) -> None:
        if self.single and self.losses != "contrastive":
            raise ValueError(
                f"objective.single={self.single} has no other sensor to reconstruct: pass "
                "objective.losses=contrastive as well"
            )
        if self.sampled and self.negatives == "batch":
            raise ValueError("objective.sampled draws negatives of the sample: leave objective.negatives out")

    @property
    def seasons(self) -> Literal["all"]:
        """See :attr:`ObjectiveConfig.seasons`."""
        return "all"

    @property
    def alignment(self) -> Alignment:
        """See :attr:`ObjectiveConfig.alignment`."""
        return Alignment(by=self.align, length=self.length)

    @property
    def overrides(self) -> dict[str, Any]:
        """See :attr:`ObjectiveConfig.overrides`."""
        return {"modalities": (self.single,)} if self.single else {}

    def task_images(self, task: str) -> Mapping[str, int]:
        """See :meth:`ObjectiveConfig.task_images`: locations with both sensors, or with the single one."""
        return {self.single: 1} if self.single else {"s2": 1, "s1": 1}

    def sample_noise(
        self, generator: torch.Generator, modalities: tuple[str, ...], grid: tuple[int, int]
    ) -> dict[str, Tensor]:
        """See :meth:`ObjectiveConfig.sample_noise`."""
        return {_SEED: torch.randint(2**62, (), generator=generator)}

    def build(self, backbone: Backbone) -> "S4Pretraining":
        """Build the objective around ``backbone``.

        Raises:
            ValueError: the backbone is no network of S4, has a head, has not the sensors that are trained, or
                lacks the decoder.
        """
        return S4Pretraining(self, backbone)


class Projection(nn.Module):
    """g: two convolutions of kernel 1, each with BatchNorm and leaky ReLU, [B, D, t, h, w]."""

    def __init__(self, width: int, sensors: tuple[str, ...]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv3d(width, width, 1) for _ in range(2))
        self.norms = nn.ModuleList(MaskedBatchNorm(width, sensors) for _ in range(2))

    def forward(self, x: Frames, sensor: str) -> Tensor:
        """Return the maps that are contrasted."""
        maps = x.maps
        for conv_, norm in zip(self.convs, self.norms, strict=True):
            maps = F.leaky_relu(norm(conv_(maps), x.there, sensor, x.size), SLOPE)
        return maps


class S4Pretraining(Objective):
    """A network of S4, the projection of its bottleneck, and the last convolution of the reconstruction."""

    backbone: S4UNet3d
    options: S4Objective

    def __init__(self, options: S4Objective, backbone: Backbone) -> None:
        super().__init__()
        if not isinstance(backbone, S4UNet3d):
            raise ValueError(f"S4's objective trains an s4 network, got {type(backbone).__name__}")
        check_no_head(backbone)
        sensors = tuple(options.task_images(""))
        if set(backbone.modalities) != set(sensors):
            raise ValueError(
                f"this objective trains a model of {' and '.join(sensors)}, got one of "
                f"{' and '.join(backbone.modalities)}: change overrides.modalities or objective.single"
            )
        self.options, self.backbone = options, backbone
        backbone.pad = options.pad
        self.anchor = backbone.config.inference_modality
        self.other = next((m for m in sensors if m != self.anchor), None)
        width = backbone.num_features
        self.projection = Projection(width, sensors)
        self.reconstruction: nn.Conv3d | None = None
        if self.other is not None:
            if self.anchor not in backbone.decoders:
                raise ValueError(f"the backbone has no decoder of its inference_modality, {self.anchor}")
            channels = len(backbone.bands[self.other])
            self.reconstruction = conv(backbone.config.widths[0] // 2, channels, backbone.config.over_time)
        self._freeze_untrained()

    @property
    def contrasts(self) -> bool:
        """Whether L_c is trained."""
        return self.options.losses != "reconstruction"

    @property
    def reconstructs(self) -> bool:
        """Whether L_r is trained."""
        return self.options.losses != "contrastive"

    def _freeze_untrained(self) -> None:
        frozen: list[nn.Module] = []
        if not self.contrasts:
            frozen += [self.projection, self.backbone.stems[str(self.other)]]
        if not self.reconstructs:
            frozen += [*self.backbone.decoders.values(), *filter(None, [self.reconstruction])]
        for module in frozen:
            module.requires_grad_(False)

    def units(self) -> list[nn.Module]:
        """See :meth:`TrainModule.units`."""
        return [*super().units(), *(self.backbone.decoders.values() if self.reconstructs else ())]

    def usage_note(self) -> str:
        """See :meth:`Objective.usage_note`."""
        if not self.contrasts:
            return f"The stem of {self.other} was not trained: it is random."
        return "" if self.reconstructs else f"The decoder of {self.anchor} was not trained: it is random."

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """See :meth:`Objective.forward`. Parts: ``contrastive`` and ``reconstruction``.

        Images are [B, T, C, H, W], of one T for both sensors.

        Raises:
            ValueError: the batch lacks a sensor, or its series are not aligned.
        """
        parts: dict[str, Tensor] = {}
        if not self.options.single:
            levels = {m: self._encode(batch, m, self._series(batch, m)) for m in self._encoded}
        if self.contrasts:
            name = "contrastive_approximate" if self.options.sampled else "contrastive"
            maps = self._views(batch) if self.options.single else [levels[m][2] for m in ("s2", "s1")]
            parts[name] = self._contrast(batch, maps)
        if self.reconstructs:
            parts["reconstruction"] = self._reconstruction_loss(batch, levels[self.anchor])
        weights = {"reconstruction": self.options.reconstruction_weight if self.contrasts else 1.0}
        loss = torch.stack([weights.get(part, 1.0) * x for part, x in parts.items()]).sum()
        return {"loss": loss, **{part: x.detach() for part, x in parts.items()}}

    def reconstruct(self, batch: Batch) -> dict[str, CrossModal]:
        """See :meth:`Objective.reconstruct`; some dates stand side by side, [B, C, H, n * W].

        Missing images are NaN.
        """
        if not self.reconstructs:
            return {}
        other = str(self.other)
        seen, image = self._series(batch, self.anchor), self._series(batch, other)
        predicted = _crop(self._predict(self._encode(batch, self.anchor, seen)), image)
        dates = torch.linspace(0, image.shape[1] - 1, min(_DRAWN, image.shape[1])).round().long()
        shown = {other: image, self.anchor: seen}
        for m, mask in batch.valid.items():
            shown[m] = shown[m].masked_fill(~mask[..., None, None, None], float("nan"))
        image, seen, predicted = (
            full_precision(x[:, dates]).movedim(1, -2).flatten(-2)
            for x in (shown[other], shown[self.anchor], predicted)
        )
        return {other: CrossModal(image, seen, predicted, seen_modality=self.anchor)}

    @property
    def _encoded(self) -> tuple[str, ...]:
        return ("s2", "s1") if self.contrasts else (self.anchor,)

    def _series(self, batch: Batch, modality: str) -> Tensor:
        """Return the series of a modality, [B, T, C, H, W]."""
        if (x := batch.images.get(modality)) is None or x.ndim != 5:
            held = ", ".join(f"{m} {list(x.shape)}" for m, x in batch.images.items())
            raise ValueError(
                f"the batch has no series [B, T, C, H, W] of {modality}; it has {held or 'none'}"
            )
        own = self.backbone.bands[modality]
        if band_positions(modality, own, batch, self.backbone.config.sensors[modality]) != list(
            range(len(own))
        ):
            raise ValueError(
                f"{modality}: the batch has the bands {', '.join(batch.bands[modality])}, and the model "
                f"takes {', '.join(own)}: pass overrides.bands.{modality} with those of the data"
            )
        return x

    def _encode(self, batch: Batch, modality: str, x: Tensor) -> tuple[Frames, Frames, Frames]:
        check_bfloat16(self.backbone, x)  # as the backbone's own methods do
        size = None
        if self.options.pad:
            size = x.shape[-2], x.shape[-1]
            x = pad_to_multiple(x, self.backbone.size_multiple)
        return self.backbone.encode_levels(modality, x, batch.valid.get(modality), size)

    def _views(self, batch: Batch) -> list[Frames]:
        """Return the maps of two views of a series."""
        seeds, x = noise_of(batch, _SEED).tolist(), self._series(batch, self.anchor)
        views = [
            torch.stack([photometric_view(one, seed + i) for one, seed in zip(x, seeds, strict=True)])
            for i in range(2)
        ]
        return [self._encode(batch, self.anchor, view)[2] for view in views]

    def _contrast(self, batch: Batch, maps: list[Frames]) -> Tensor:
        sensors = ("s2", "s1") if not self.options.single else (self.anchor,) * 2
        z_s2, z_s1 = (self.projection(x, m) for x, m in zip(maps, sensors, strict=True))
        valid = maps[0].there & maps[1].there
        count, options = self.options.sampled, self.options
        if options.negatives == "batch":
            z_s2, z_s1, valid = gather_rows(z_s2), gather_rows(z_s1), gather_rows(valid)
        return space_time_contrast(
            z_s2, z_s1, temperature=options.temperature, valid=valid,
            negatives=options.negatives, chunk=options.chunk,
            sampled=None if count is None else (count, noise_of(batch, _SEED).tolist()),
        )  # fmt: skip

    def _predict(self, levels: tuple[Frames, Frames, Frames]) -> Tensor:
        """Return the standardized series of the other sensor, [B, T', C, H, W]; T' is a multiple of 4."""
        assert self.reconstruction is not None
        _, full = self.backbone.decode_levels(self.anchor, levels)
        predicted: Tensor = self.reconstruction(full.clean())
        return predicted.transpose(1, 2)

    def _reconstruction_loss(self, batch: Batch, levels: tuple[Frames, Frames, Frames]) -> Tensor:
        target = self._series(batch, str(self.other))
        held = [batch.valid[m] for m in (self.anchor, str(self.other)) if m in batch.valid]
        valid = torch.stack(held).all(dim=0) if held else None
        return cross_modal_l1(_crop(self._predict(levels), target), target, valid=valid)


def _crop(predicted: Tensor, image: Tensor) -> Tensor:
    """Return the dates and pixels [B, T, C, H, W] of a padded prediction that the image has."""
    length, height, width = image.shape[1], *image.shape[-2:]
    return predicted[:, :length, :, :height, :width]


def photometric_view(x: Tensor, seed: int) -> Tensor:
    """Return a view of a standardized series [T, C, H, W] whose pixels stay in their places.

    The contrast of every band is changed by a factor from 0.6 to 1.4 and its brightness by up to 0.4 standard
    deviations, equally at all dates, and noise of 0.1 is added.
    """
    generator = torch.Generator().manual_seed(seed)
    contrast, brightness = (0.8 * torch.rand(2, x.shape[1], 1, 1, generator=generator) - 0.4).to(x)
    noise = 0.1 * torch.randn(x.shape, generator=generator).to(x)
    view: Tensor = x * (1 + contrast) + brightness + noise
    return view
