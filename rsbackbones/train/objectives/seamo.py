"""SeaMo's pretraining objective: masked reconstruction of both sensors over the seasons.

Li et al., "SeaMo: A Season-Aware Multimodal Foundation Model for Remote Sensing", arXiv 2412.19237: section
3, and for the options the ablations of section 4.5.

The seven strategies of table 12 are three choices: the sensors that the encoder sees (one; both at once;
``siamese``: both, one after the other), how many seasons a sample has, and whether the temporal-multimodal
block stands between encoder and decoders. ``multimodal_temporal`` is table 11's "w/o TM block",
``multimodal`` is a temporal length of 1 (table 14), and phase 1 of the pretraining.

What the paper leaves open, and what we do:

- The masks of the sensors of a season: the same (section 3.1.2) by default; section 4.5 says "independent".
  Of every season anew.
- Of N patches int(N * (1 - ratio)) are kept, as in MAE's code.
- Without the block, nothing passes between seasons but the weights: their losses are added.
- Targets are normalized by patch over all bands of one sensor (there is a decoder for each).
- The decoders are as wide as MAE's, 512 with 16 heads; the paper gives their depth, 4. They are those of
  CROMA's pretraining otherwise: no bias of query, key and value, torch's initialization.
- A loss is the mean over the masked pixels of an image, added over seasons and sensors, the mean over the
  batch. An image that is missing adds nothing.

Shapes: B samples, T seasons, N patches of which K are kept, D = dim of the backbone.
"""

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from rsbackbones.layers.patches import patchify, unpatchify
from rsbackbones.models.backbone import Backbone
from rsbackbones.models.seamo import Seamo
from rsbackbones.train.engine.batch import Batch
from rsbackbones.train.engine.config import Count
from rsbackbones.train.objectives.checks import (
    batch_channels,
    batch_grid,
    check_decoder,
    check_no_head,
    mask_of,
    select_channels,
)
from rsbackbones.train.objectives.decoder import Decoder
from rsbackbones.train.objectives.masking import Mask
from rsbackbones.train.objectives.objective import Objective, ObjectiveConfig
from rsbackbones.train.objectives.precision import full_precision
from rsbackbones.train.objectives.targets import PatchNormalizer, patch_errors

Strategy = Literal[
    "unimodal", "multimodal", "siamese", "siamese_temporal", "unimodal_temporal", "multimodal_temporal",
    "multimodal_temporal_tm",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SeamoObjective(ObjectiveConfig):
    """The options of SeaMo's objective; the defaults are the paper's.

    Attributes:
        method: the name of the method in recipes.
        strategy: the seven of table 12. ``unimodal`` trains a backbone of one sensor.
        length: T, the seasons of a sample of a temporal strategy. With 1 there is no TM block, as in table
            14.
        mask_ratio: the share of the patches that is masked.
        masking: the same for the sensors of a season (``shared``), or ``independent``.
        normalized_targets: normalize every patch of the target to mean 0 and variance 1.
        decoder_dim, decoder_depth, decoder_heads: the size of each decoder.

    Raises:
        ValueError: an option is out of range, or does not go with another.
    """

    stage_options: ClassVar[tuple[str, ...]] = (
        "strategy", "length", "mask_ratio", "masking", "normalized_targets",
    )  # fmt: skip

    method: Literal["seamo"] = "seamo"
    strategy: Strategy = "multimodal_temporal_tm"
    length: Annotated[int, Field(ge=1, le=4)] = 4
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75
    masking: Literal["shared", "independent"] = "shared"
    normalized_targets: bool = True
    decoder_dim: Count = 512
    decoder_depth: Count = 4
    decoder_heads: Count = 16

    def __post_init__(self) -> None:
        check_decoder(self.decoder_dim, self.decoder_heads)

    @property
    def seasons(self) -> int:
        """See :meth:`ObjectiveConfig.seasons`."""
        return self.length if "temporal" in self.strategy else 1

    @property
    def overrides(self) -> dict[str, Any]:
        """See :meth:`ObjectiveConfig.overrides`: the strategy says whether there is a TM block."""
        return {"temporal": self.strategy == "multimodal_temporal_tm" and self.length > 1}

    def noise_name(self, modality: str) -> str:
        """Return which of a batch's noise a sensor's masks are made from."""
        return "noise" if self.masking == "shared" else f"{modality}_noise"

    def sample_noise(
        self, generator: torch.Generator, modalities: tuple[str, ...], grid: tuple[int, int]
    ) -> dict[str, Tensor]:
        """See :meth:`ObjectiveConfig.sample_noise`: noise [T, N], N = h * w."""
        names = dict.fromkeys(self.noise_name(m) for m in ("s2", "s1") if m in modalities)
        return {name: torch.rand(self.seasons, grid[0] * grid[1], generator=generator) for name in names}

    def build(self, backbone: Backbone) -> "SeamoPretraining":
        """Build the objective around ``backbone``.

        Raises:
            ValueError: the backbone is no SeaMo, has sensors, a TM block or a head that the strategy does not
                go with.
        """
        if not isinstance(backbone, Seamo):
            raise ValueError(f"SeaMo's objective trains a SeaMo model, got {type(backbone).__name__}")
        return SeamoPretraining(self, backbone)


class SeamoPretraining(Objective):
    """A :class:`Seamo` with a decoder for each sensor."""

    backbone: Seamo

    def __init__(self, options: SeamoObjective, backbone: Seamo) -> None:
        super().__init__()
        _check_backbone(options, backbone)
        self.options = options
        self.backbone = backbone
        self.decoders = nn.ModuleDict(
            {
                m: Decoder(
                    backbone.num_features, len(backbone.bands[m]), backbone.patch_size,
                    dim=options.decoder_dim, depth=options.decoder_depth, num_heads=options.decoder_heads,
                )
                for m in backbone.modalities
            }
        )  # fmt: skip

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """See :meth:`Objective.forward`. The parts: ``reconstruction_s2`` and ``reconstruction_s1``.

        Images are [B, T, C, H, W], the noise [B, T, N].

        Raises:
            ValueError: sensors, bands, sizes or noise that the options or the backbone cannot serve.
        """
        masks = self._masks(batch)
        losses = {}
        for m, predicted in self._predict(batch, masks).items():
            of_patch = patch_errors(
                predicted, batch.images[m].flatten(0, 1), self.backbone.patch_size,
                normalized=self.options.normalized_targets,
            )  # [B * T, N]  # fmt: skip
            masked = masks[m].masked
            of_image = ((of_patch * masked).sum(dim=1) / masked.sum(dim=1)).view(len(batch), -1)  # [B, T]
            if m in batch.valid:
                of_image = of_image * batch.valid[m]
            losses[m] = of_image.sum(dim=1).mean()
        parts = {f"reconstruction_{m}": loss.detach() for m, loss in losses.items()}
        return {"loss": torch.stack(list(losses.values())).sum(), **parts}

    def units(self) -> list[nn.Module]:
        """See :meth:`TrainModule.units`."""
        decoders = [decoder for decoder in self.decoders.values() if isinstance(decoder, Decoder)]
        return [*super().units(), *(unit for decoder in decoders for unit in decoder.units())]

    def export_backbone(self) -> Seamo:
        """See :meth:`Objective.export_backbone`: without the TM block ("discarded", section 3.3.2)."""
        if self.backbone.temporal is None:
            return self.backbone
        alone = Seamo(replace(self.backbone.config, temporal=False))
        own = alone.state_dict()
        state = {name: x for name, x in self.backbone.state_dict().items() if name in own}
        alone.load_state_dict(state, strict=True)
        alone.architecture, alone.inputs = self.backbone.architecture, self.backbone.inputs
        return alone

    def usage_note(self) -> str:
        """See :meth:`Objective.usage_note`."""
        if not self.options.strategy.startswith("siamese"):
            return ""
        return (
            "Trained on one sensor at a time (siamese): where both are given the encoder mixes them all the "
            "same, which it never saw in training; forward_streams gives each alone."
        )

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """See :meth:`Objective.reconstruct`; the seasons stand side by side, [B, C, H, T * W]."""
        masks, p, grid = self._masks(batch), self.backbone.patch_size, batch_grid(self.backbone, batch)
        pictures = {}
        for m, predicted in self._predict(batch, masks).items():
            patches = patchify(full_precision(batch.images[m].flatten(0, 1)), p)
            pixels = (
                PatchNormalizer.of(patches).undo(predicted) if self.options.normalized_targets else predicted
            )
            masked = masks[m].masked
            if m in batch.valid:  # of an image that is missing nothing was seen
                masked = masked | ~batch.valid[m].flatten()[:, None]
            masked = masked[..., None]
            seen = patches.masked_fill(masked, float("nan"))
            filled = torch.where(masked, full_precision(pixels), patches)
            shown = [
                unpatchify(x, p, grid).unflatten(0, (len(batch), -1)).movedim(1, -2).flatten(-2)
                for x in (patches, seen, filled)
            ]
            pictures[m] = (shown[0], shown[1], shown[2])
        return pictures

    def _predict(self, batch: Batch, masks: dict[str, Mask]) -> dict[str, Tensor]:
        """Return the predicted patches of every sensor, [B * T, N, C * p * p]."""
        backbone, siamese = self.backbone, self.options.strategy.startswith("siamese")
        channels = select_channels(backbone, batch_channels(backbone, batch))
        dtype = next(backbone.parameters()).dtype  # sharded parameters may be gathered in bfloat16
        frames = {m: batch.images[m].flatten(0, 1).to(dtype) for m in masks}
        kept = {m: mask.kept for m, mask in masks.items()}
        present = {m: batch.valid[m].flatten() for m in masks if m in batch.valid}
        tokens: dict[str, Tensor] = {}
        for group in [[m] for m in frames] if siamese else [list(frames)]:
            tokens |= backbone.encode_tokens(
                {m: frames[m] for m in group}, kept=kept, channels=channels, valid=present
            )
        restore = {m: mask.restore for m, mask in masks.items()}
        if backbone.temporal is not None:
            series = {m: x.unflatten(0, (len(batch), -1)) for m, x in tokens.items()}
            across = backbone.temporal(series, batch.valid)
            tokens = {m: x.flatten(0, 1) for m, x in across.items()}
            restore = {m: self._restore(m, batch, masks) for m in masks}
        grid = batch_grid(backbone, batch)
        return {m: self.decoders[m](x, restore[m], grid, channels.get(m)) for m, x in tokens.items()}

    def _restore(self, m: str, batch: Batch, masks: dict[str, Mask]) -> Tensor:
        """Return where the tokens of a sensor go after the TM block, [B * T, N]."""
        assert self.backbone.temporal is not None
        elsewhere = self.backbone.temporal.at_paired_position(m, tuple(masks), batch.valid)
        other = next((masks[o].restore for o in masks if o != m), masks[m].restore)
        if isinstance(elsewhere, bool):
            return other if elsewhere else masks[m].restore
        return torch.where(elsewhere.flatten()[:, None], other, masks[m].restore)

    def _masks(self, batch: Batch) -> dict[str, Mask]:
        """Make the masks of every sensor and season of the batch, [B * T, ...]."""
        batch_channels(self.backbone, batch)  # refuses what cannot be served, and says why
        options, (height, width) = self.options, batch_grid(self.backbone, batch)
        lead = tuple(next(iter(batch.images.values())).shape[:-3])
        if len(lead) != 2 or lead[1] != options.seasons:
            raise ValueError(
                f"strategy={options.strategy!r} takes samples of {options.seasons} seasons, [B, "
                f"{options.seasons}, C, H, W], got images of {[list(x.shape) for x in batch.images.values()]}"
            )
        shape = (*lead, height * width)
        present = [m for m in self.backbone.modalities if m in batch.images]
        return {m: mask_of(batch, options.noise_name(m), shape, options.mask_ratio) for m in present}


def _check_backbone(options: SeamoObjective, backbone: Seamo) -> None:
    check_no_head(backbone)
    given, one = ", ".join(backbone.modalities), options.strategy.startswith("unimodal")
    if one != (len(backbone.modalities) == 1):
        fix = (
            'overrides.modalities=["s2"]'
            if one
            else "leave out overrides.modalities, or take a unimodal strategy (in every stage)"
        )
        raise ValueError(
            f"strategy={options.strategy!r} trains {'one sensor' if one else 'two sensors'}, and the "
            f"backbone has {given}; {fix}"
        )
    if backbone.config.temporal != options.overrides["temporal"]:
        raise ValueError(
            f"strategy={options.strategy!r} needs a backbone with temporal={options.overrides['temporal']}, "
            f"got {backbone.config.temporal}"
        )
