"""MixMAE's pretraining: reconstruct two sensors from a mixture of their patches.

Linial et al. (Google Research), "Enhancing Remote Sensing Representations Through Mixed-Modality Masked
Autoencoding", section 3.3, figures 3 and 4, equation 1. SenseTime's MixMAE is another method.

Every patch of the encoder's input is that of Sentinel-2 or that of Sentinel-1. Both decoders get its whole
output, and no mask token. Sentinel-2 counts where the patch was Sentinel-1's, and the reverse.

What the paper leaves open, and our choices:

- k = L / 2 rounds down where the number of patches is odd.
- Each of the two losses is a mean over its own unseen patches. Targets are the pixels as the model gets them
  ("standard MSE"); normalization by patch is an option.
- The decoders are those of :mod:`rsbackbones.train.objectives.auxmae`: "the same architecture".

Shapes: B samples, N patches, D = dim, C bands, p pixels along each side of a patch.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from rsbackbones.layers.patches import patchify, unpatchify
from rsbackbones.models.backbone import Backbone
from rsbackbones.models.mixmae import Mixmae
from rsbackbones.train.engine.batch import Batch
from rsbackbones.train.engine.config import Count, Share
from rsbackbones.train.objectives.checks import (
    batch_channels,
    check_decoder,
    check_no_head,
    noise_of,
    select_channels,
)
from rsbackbones.train.objectives.decoder import Decoder
from rsbackbones.train.objectives.objective import Objective, ObjectiveConfig
from rsbackbones.train.objectives.precision import full_precision
from rsbackbones.train.objectives.targets import PatchNormalizer, patch_errors

_SENSORS = ("s2", "s1")


@dataclass(frozen=True, kw_only=True)
class MixmaeObjective(ObjectiveConfig):
    """The options of MixMAE's objective; the defaults are the paper's.

    Attributes:
        method: the name of the method in recipes.
        share: the share of the patches that are those of Sentinel-2.
        s1_weight: lambda of equation 1; Sentinel-2 weighs 1 - lambda.
        normalized_targets: normalize every patch of a target to mean 0 and variance 1, over all bands.
        decoder_dim, decoder_depth, decoder_heads: the size of each decoder.

    Raises:
        ValueError: an option is out of range.
    """

    stage_options: ClassVar[tuple[str, ...]] = ("share", "s1_weight", "normalized_targets")

    method: Literal["mixmae"] = "mixmae"
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    s1_weight: Share = 0.5
    normalized_targets: bool = False
    decoder_dim: Count = 512
    decoder_depth: Count = 6
    decoder_heads: Count = 16

    def __post_init__(self) -> None:
        check_decoder(self.decoder_dim, self.decoder_heads)

    def task_images(self, task: str) -> Mapping[str, int]:
        """See :meth:`ObjectiveConfig.task_images`: an image without the other sensor cannot be mixed."""
        return dict.fromkeys(_SENSORS, 1)

    def sample_noise(
        self, generator: torch.Generator, modalities: tuple[str, ...], grid: tuple[int, int]
    ) -> dict[str, Tensor]:
        """See :meth:`ObjectiveConfig.sample_noise`: mix_noise [N], N = h * w."""
        return {"mix_noise": torch.rand(grid[0] * grid[1], generator=generator)}

    def build(self, backbone: Backbone) -> "MixmaePretraining":
        """Build the objective around ``backbone``.

        Raises:
            ValueError: the backbone is of another family, lacks a sensor, or has a head.
        """
        if not isinstance(backbone, Mixmae):
            raise ValueError(f"MixMAE's objective trains a MixMAE model, got {type(backbone).__name__}")
        return MixmaePretraining(self, backbone)


def choose(noise: Tensor, share: float) -> Tensor:
    """Return which patches are those of Sentinel-2, [B, N]: the ``int(N * share)`` of least noise.

    Args:
        noise: uniform random numbers, [B, N].
        share: the share of Sentinel-2, in (0, 1).

    Raises:
        ValueError: no patch of a sensor would be left.
    """
    count, total = int(noise.shape[1] * share), noise.shape[1]
    if not 0 < count < total:
        raise ValueError(
            f"share={share} of {total} patches leaves no patch of {'s1' if count else 's2'}; choose a share "
            "nearer to 0.5, or larger images"
        )
    return noise.argsort(dim=1, stable=True).argsort(dim=1) < count


def mix(s2: Tensor, s1: Tensor, from_s2: Tensor) -> Tensor:
    """Return the patches [B, N, D] of ``s2`` where ``from_s2`` [B, N] is True, else those of ``s1``."""
    return torch.where(from_s2[..., None], s2, s1)


def mixed_loss(
    predicted: Mapping[str, Tensor],
    images: Mapping[str, Tensor],
    from_s2: Tensor,
    patch_size: int,
    *,
    s1_weight: float = 0.5,
    normalized: bool = False,
) -> dict[str, Tensor]:
    """Return the loss of equation 1, and the loss of each sensor on the patches that were not seen.

    Args:
        predicted: ``s2`` and ``s1``, [B, N, C * p * p], the pixels of a patch laid out (band, row, column).
        images: ``s2`` and ``s1``, [B, C, H, W].
        from_s2: [B, N], True where the encoder saw the patch of Sentinel-2.
        patch_size: p.
        s1_weight: lambda of equation 1.
        normalized: normalize every patch of the targets, over all bands.

    Raises:
        ValueError: an image has other patches than its prediction.
    """
    losses = {}
    for m, unseen in (("s2", ~from_s2), ("s1", from_s2)):
        errors = patch_errors(predicted[m], images[m], patch_size, normalized=normalized)
        losses[m] = (errors * unseen).sum() / unseen.sum()
    return {
        "loss": s1_weight * losses["s1"] + (1 - s1_weight) * losses["s2"],
        **{f"reconstruction_{m}": loss.detach() for m, loss in losses.items()},
    }


class MixmaePretraining(Objective):
    """A :class:`Mixmae` with a decoder for each sensor, ``decoders["s2"]`` and ``decoders["s1"]``."""

    backbone: Mixmae
    options: MixmaeObjective

    def __init__(self, options: MixmaeObjective, backbone: Mixmae) -> None:
        super().__init__()
        check_no_head(backbone)
        if set(backbone.modalities) != set(_SENSORS):
            raise ValueError(
                f"MixMAE mixes s2 and s1, and the backbone takes {', '.join(backbone.modalities)}; build it "
                "with both (leave out overrides.modalities)"
            )
        self.options = options
        self.backbone = backbone
        self.decoders = nn.ModuleDict(
            {
                m: Decoder(
                    backbone.num_features, len(backbone.bands[m]), backbone.patch_size,
                    dim=options.decoder_dim, depth=options.decoder_depth, num_heads=options.decoder_heads,
                    masked=False,
                )
                for m in _SENSORS
            }
        )  # fmt: skip

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """See :meth:`Objective.forward`. The parts: ``reconstruction_s2`` and ``reconstruction_s1``.

        Images are [B, C, H, W], the noise [B, N].

        Raises:
            ValueError: a sensor is missing, or bands, sizes or noise do not fit the backbone.
        """
        predicted, from_s2 = self._predict(batch)
        return mixed_loss(
            predicted, batch.images, from_s2, self.backbone.patch_size,
            s1_weight=self.options.s1_weight, normalized=self.options.normalized_targets,
        )  # fmt: skip

    def units(self) -> list[nn.Module]:
        """See :meth:`TrainModule.units`."""
        decoders = [decoder for decoder in self.decoders.values() if isinstance(decoder, Decoder)]
        return [*super().units(), *(unit for decoder in decoders for unit in decoder.units())]

    def usage_note(self) -> str:
        """See :meth:`Objective.usage_note`."""
        return (
            "In training the encoder saw mixtures of Sentinel-2 and Sentinel-1 patches only. Used on images, "
            "each sensor is encoded alone, which it never saw."
        )

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """See :meth:`Objective.reconstruct`."""
        predicted, from_s2 = self._predict(batch)
        p, grid = self.backbone.patch_size, self.backbone.grid(batch.images["s2"])
        pictures = {}
        for m, masked in (("s2", ~from_s2[..., None]), ("s1", from_s2[..., None])):
            patches, pixels = patchify(full_precision(batch.images[m]), p), full_precision(predicted[m])
            if self.options.normalized_targets:
                pixels = PatchNormalizer.of(patches).undo(pixels)
            seen, filled = patches.masked_fill(masked, float("nan")), torch.where(masked, pixels, patches)
            image, shown, result = (unpatchify(x, p, grid) for x in (patches, seen, filled))
            pictures[m] = (image, shown, result)
        return pictures

    def _predict(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """Return the predicted patches of both sensors, [B, N, C * p * p], and which were s2's, [B, N]."""
        backbone = self.backbone
        if lacking := [m for m in _SENSORS if m not in batch.images]:
            raise ValueError(
                f"the batch lacks {', '.join(lacking)}: images of one sensor cannot be mixed. Leave such a "
                "source out of the data"
            )
        channels = select_channels(backbone, batch_channels(backbone, batch))
        if batch.images["s2"].ndim != 4:
            raise ValueError(f"images must be [B, C, H, W], got s2 {list(batch.images['s2'].shape)}")
        grid = backbone.grid(batch.images["s2"])
        noise = noise_of(batch, "mix_noise")
        if noise.shape != (len(batch), grid[0] * grid[1]):
            raise ValueError(
                f"noise['mix_noise'] must be [B, N] = {[len(batch), grid[0] * grid[1]]}, got "
                f"{list(noise.shape)}: sample_noise() needs the grid of patches"
            )
        from_s2 = choose(noise, self.options.share)
        dtype = next(backbone.parameters()).dtype  # sharded parameters may be gathered in bfloat16
        s2, s1 = (backbone.embed(m, batch.images[m].to(dtype), channels=channels.get(m)) for m in _SENSORS)
        tokens = backbone.encode_embedded(mix(s2, s1, from_s2))
        return {m: self.decoders[m](tokens, None, grid, channels.get(m)) for m in _SENSORS}, from_s2
