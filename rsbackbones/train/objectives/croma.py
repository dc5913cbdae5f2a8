"""CROMA's pretraining objective: contrast between sensors and masked reconstruction of both.

Fuller, Millard and Green, "CROMA: Remote Sensing Representations with Contrastive Radar-Optical Masked
Autoencoders", NeurIPS 2023, arXiv 2311.00566: section 2, and for the options section 4.1 and appendix A.1.

What the paper leaves open, and what we do:

- Of N patches int(N * (1 - ratio)) are kept; the joint tokens, which lie at the radar's kept patches, are
  put back there for the decoder; targets are normalized over all bands of a patch together; the sensors'
  reconstruction losses are added, each a mean over its own bands and masked patches; the temperature is
  learned and not clamped: as the public code.
- The public code's contrast lets no gradient through the keys that it gathers from other processes, so that
  the gradient is not that of the global batch. Ours is; ``gather="published"`` is theirs.
- The local objectives have weight 1. The patch InfoNCE has projections and a temperature of its own, like
  the one of images.
- Where a batch holds one sensor only, its own tokens go to the decoder, and there is no contrast.

Shapes: B images, N patches of which K are kept, D = dim of the backbone.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from rsbackbones.layers.patches import patchify, unpatchify
from rsbackbones.models.backbone import Backbone
from rsbackbones.models.croma import Croma
from rsbackbones.train.engine.batch import Batch
from rsbackbones.train.engine.config import Count, CountOrZero, NonNegative, ShareBelowOne
from rsbackbones.train.objectives.checks import (
    batch_channels,
    batch_grid,
    check_decoder,
    check_no_head,
    mask_of,
    noise_of,
    select_channels,
)
from rsbackbones.train.objectives.decoder import Decoder
from rsbackbones.train.objectives.infonce import SENSORS, InfoNCE
from rsbackbones.train.objectives.masking import Mask
from rsbackbones.train.objectives.objective import Objective, ObjectiveConfig
from rsbackbones.train.objectives.precision import full_precision
from rsbackbones.train.objectives.targets import PatchNormalizer
from rsbackbones.train.objectives.vicreg import vicreg


@dataclass(frozen=True, kw_only=True)
class CromaObjective(ObjectiveConfig):
    """The options of CROMA's objective; the defaults are the paper's.

    A weight of 0 removes a loss, and ``build`` freezes the parameters that only this loss would train.

    Attributes:
        method: the name of the method in recipes.
        mask_ratio_s2, mask_ratio_s1: the share of each sensor's patches that is masked.
        masking: ``independent``, or the same patches of both sensors (``shared``).
        joint_self_bias: the bias of the joint encoder's self-attention: ``radar`` (between radar patches) or
            ``published`` (X-ALiBi's, as in the public code).
        contrast: the loss between the sensors' image embeddings.
        gather: whether gradients reach InfoNCE's keys: those of ``all`` processes, or none (``published``).
        hard_negatives: synthetic negatives per query (s' of MoCHi); 0: none.
        local: the loss between the sensors' encodings of a patch; needs shared masks.
        contrast_weight, reconstruction_weight: factors of the two losses.
        reconstruction_target: the sensors whose pixels are predicted.
        normalized_targets: normalize every patch of the target to mean 0 and variance 1.
        decoder_dim, decoder_depth, decoder_heads: the size of the decoder.

    Raises:
        ValueError: an option is out of range, or does not go with another.
    """

    # Bias and scale of targets change what is asked of the same outputs, which training goes on to learn.
    stage_options: ClassVar[tuple[str, ...]] = (
        "mask_ratio_s2", "mask_ratio_s1", "masking", "normalized_targets", "contrast", "local",
        "contrast_weight", "reconstruction_weight", "gather", "hard_negatives", "joint_self_bias",
    )  # fmt: skip

    method: Literal["croma"] = "croma"
    mask_ratio_s2: ShareBelowOne = 0.75
    mask_ratio_s1: ShareBelowOne = 0.75
    masking: Literal["independent", "shared"] = "independent"
    joint_self_bias: Literal["radar", "published"] = "radar"
    contrast: Literal["infonce", "vicreg", "none"] = "infonce"
    gather: Literal["all", "published"] = "all"
    hard_negatives: CountOrZero = 0
    local: Literal["none", "mse", "infonce"] = "none"
    contrast_weight: NonNegative = 1.0
    reconstruction_weight: NonNegative = 1.0
    reconstruction_target: Literal["both", "s1", "s2"] = "both"
    normalized_targets: bool = True
    decoder_dim: Count = 512
    decoder_depth: Count = 1
    decoder_heads: Count = 8

    def __post_init__(self) -> None:
        check_decoder(self.decoder_dim, self.decoder_heads)
        if self.masking == "shared" and self.mask_ratio_s2 != self.mask_ratio_s1:
            raise ValueError(
                f"masking='shared' masks the same patches, so the ratios must be equal, got "
                f"{self.mask_ratio_s2} for s2 and {self.mask_ratio_s1} for s1"
            )
        if self.joint_self_bias == "published" and self.mask_ratio_s2 != self.mask_ratio_s1:
            raise ValueError(
                f"joint_self_bias='published' is a table of as many optical as radar patches: the ratios "
                f"must be equal, got {self.mask_ratio_s2} for s2 and {self.mask_ratio_s1} for s1"
            )
        if self.local != "none" and self.masking != "shared":
            raise ValueError(
                f"local={self.local!r} compares encodings of the same patch: masking must be 'shared', got "
                f"{self.masking!r}"
            )
        if self.reconstructs and not all(self.mask_ratio(m) > 0 for m in self.targets):
            raise ValueError(
                "reconstruction needs masked patches: raise the mask ratios, or set reconstruction_weight=0"
            )
        if self.hard_negatives and self.contrasts != "infonce":
            raise ValueError(
                f"hard_negatives above 0 need contrast='infonce' with a weight above 0; got "
                f"{self.hard_negatives} with {self.contrast!r} of weight {self.contrast_weight}"
            )
        if self.gather == "published" and "infonce" not in (self.contrasts, self.local):
            raise ValueError("gather='published' is about the keys of InfoNCE, and there is none here")
        if self.contrasts == self.local == "none" and not self.reconstructs:
            raise ValueError("nothing to train: contrast, local and reconstruction are all off")

    @property
    def contrasts(self) -> Literal["infonce", "vicreg", "none"]:
        """The objective between image embeddings, ``none`` where its weight is 0."""
        return self.contrast if self.contrast_weight else "none"

    @property
    def reconstructs(self) -> bool:
        """Whether there is a decoder."""
        return self.reconstruction_weight > 0

    @property
    def targets(self) -> tuple[str, ...]:
        """The sensors whose pixels are predicted, in the order of the decoder's channels."""
        return SENSORS if self.reconstruction_target == "both" else (self.reconstruction_target,)

    def mask_ratio(self, modality: str) -> float:
        """Return the part of a sensor's patches that is masked."""
        return {"s2": self.mask_ratio_s2, "s1": self.mask_ratio_s1}[modality]

    def noise_name(self, modality: str) -> str:
        """Return which of a batch's noise a sensor's mask is made from."""
        return "noise" if self.masking == "shared" else f"{modality}_noise"

    def sample_noise(
        self, generator: torch.Generator, modalities: tuple[str, ...], grid: tuple[int, int]
    ) -> dict[str, Tensor]:
        """See :meth:`ObjectiveConfig.sample_noise`: noise [h * w], and for S hard negatives [S]."""
        present = [m for m in SENSORS if m in modalities]
        names = dict.fromkeys(self.noise_name(m) for m in present)
        noise = {name: torch.rand(grid[0] * grid[1], generator=generator) for name in names}
        if self.hard_negatives and len(present) == 2:
            for modality in present:
                for name in (f"{modality}_hard_picks", f"{modality}_hard_mixes"):
                    noise[name] = torch.rand(self.hard_negatives, generator=generator)
        return noise

    def build(self, backbone: Backbone) -> "CromaPretraining":
        """Build the objective around ``backbone``; what of it these options do not train is frozen.

        Raises:
            ValueError: the backbone is no CROMA, lacks a sensor that the options need, or has a head.
        """
        if not isinstance(backbone, Croma):
            raise ValueError(f"CROMA's objective trains a CROMA model, got {type(backbone).__name__}")
        return CromaPretraining(self, backbone)


class CromaPretraining(Objective):
    """A :class:`Croma` with its decoder and its contrastive projections."""

    backbone: Croma

    def __init__(self, options: CromaObjective, backbone: Croma) -> None:
        super().__init__()
        _check_backbone(options, backbone)
        self.options = options
        self.backbone = backbone
        dim, learns_keys = backbone.num_features, options.gather == "all"
        self.contrast = InfoNCE(dim, gather_gradients=learns_keys) if options.contrasts == "infonce" else None
        self.local = InfoNCE(dim, gather_gradients=learns_keys) if options.local == "infonce" else None
        # A backbone of one sensor has that sensor as its only target.
        self.targets = tuple(m for m in options.targets if m in backbone.modalities)
        self.decoder: Decoder | None = None
        if options.reconstructs:
            self.decoder = Decoder(
                dim,
                sum(len(backbone.bands[m]) for m in self.targets),
                backbone.patch_size,
                dim=options.decoder_dim,
                depth=options.decoder_depth,
                num_heads=options.decoder_heads,
            )
        # Parameters that never get a gradient must not wait for one (DDP) nor decay (AdamW).
        if options.contrasts == "none":
            backbone.embeddings.requires_grad_(False)
        if backbone.joint is not None and not options.reconstructs:
            backbone.joint.requires_grad_(False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """See :meth:`Objective.forward`.

        The parts: ``contrast``, ``local`` and ``reconstruction`` before their weights; of the latter,
        ``reconstruction_s2`` and ``reconstruction_s1``; ``temperature`` and ``local_temperature`` of InfoNCE.

        Raises:
            ValueError: sensors, bands, sizes or noise that the options or the backbone cannot serve.
        """
        options = self.options
        channels, masks = self._channels(batch), self._masks(batch)
        tokens = self._encode(batch, channels, masks)
        parts: dict[str, Tensor] = {}
        weighted: list[Tensor] = []
        if len(masks) == 2:
            if options.contrasts != "none":
                embeddings = {m: self.backbone.embeddings[m](tokens[m]) for m in SENSORS}
                if self.contrast is not None:
                    parts["contrast"] = self.contrast(embeddings, self._hard(batch))
                    parts["temperature"] = self.contrast.temperature
                else:
                    parts["contrast"] = vicreg(embeddings["s2"], embeddings["s1"])
                weighted.append(options.contrast_weight * parts["contrast"])
            if options.local != "none":
                if self.local is not None:
                    parts["local"] = self.local({m: tokens[m].flatten(0, 1) for m in SENSORS})
                    parts["local_temperature"] = self.local.temperature
                else:
                    parts["local"] = F.mse_loss(full_precision(tokens["s2"]), full_precision(tokens["s1"]))
                weighted.append(parts["local"])
        if self.decoder is not None:
            predicted = self._predict(self.decoder, tokens, channels, masks, batch_grid(self.backbone, batch))
            target, scale = self._target(batch)
            for m, x in predicted.items():
                y = scale.normalize(target[m]) if options.normalized_targets else target[m]
                parts[f"reconstruction_{m}"] = _masked_mse(full_precision(x), y, masks[m].masked)
            parts["reconstruction"] = torch.stack([parts[f"reconstruction_{m}"] for m in predicted]).sum()
            weighted.append(options.reconstruction_weight * parts["reconstruction"])
        return {"loss": torch.stack(weighted).sum()} | {name: x.detach() for name, x in parts.items()}

    def units(self) -> list[nn.Module]:
        """See :meth:`TrainModule.units`."""
        return [*super().units(), *(self.decoder.units() if self.decoder is not None else [])]

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """See :meth:`Objective.reconstruct`; patches that were seen are in the prediction as they are."""
        if self.decoder is None:
            return {}
        channels, masks, grid = self._channels(batch), self._masks(batch), batch_grid(self.backbone, batch)
        tokens = self._encode(batch, channels, masks)
        predicted = self._predict(self.decoder, tokens, channels, masks, grid)
        target, scale = self._target(batch)
        pictures = {}
        for modality, prediction in predicted.items():
            patches, masked = target[modality], masks[modality].masked[..., None]
            pixels = scale.undo(prediction) if self.options.normalized_targets else prediction
            seen = patches.masked_fill(masked, float("nan"))
            filled = torch.where(masked, full_precision(pixels), patches)
            pictures[modality] = (
                batch.images[modality],
                unpatchify(seen, self.backbone.patch_size, grid),
                unpatchify(filled, self.backbone.patch_size, grid),
            )
        return pictures

    # -- parts of both -----------------------------------------------------------------------------

    def _encode(
        self, batch: Batch, channels: dict[str, list[int]], masks: dict[str, Mask]
    ) -> dict[str, Tensor]:
        """Return the tokens of the kept patches of every stream that is trained, [B, K, D]."""
        dtype = next(self.backbone.parameters()).dtype  # sharded parameters may be gathered in bfloat16
        return self.backbone.encode_tokens(
            {m: batch.images[m].to(dtype) for m in masks},
            kept={m: mask.kept for m, mask in masks.items()},
            channels=select_channels(self.backbone, channels),
            joint=self.decoder is not None,
            joint_self_bias=self.options.joint_self_bias,
        )

    def _predict(
        self,
        decoder: Decoder,
        tokens: dict[str, Tensor],
        channels: dict[str, list[int]],
        masks: dict[str, Mask],
        grid: tuple[int, int],
    ) -> dict[str, Tensor]:
        """Return the predicted patches of every target in the batch, [B, N, C * p * p]."""
        wanted: list[int] = []
        widths: dict[str, int] = {}
        start = 0
        for m in self.targets:
            if m in channels:
                wanted += [start + c for c in channels[m]]
                widths[m] = len(channels[m]) * self.backbone.patch_size**2
            start += len(self.backbone.bands[m])
        # Joint tokens are in the order of the radar's kept patches.
        stream, places = ("joint", "s1") if len(masks) == 2 else 2 * (next(iter(masks)),)
        x = decoder(
            tokens[stream], masks[places].restore, grid, None if wanted == list(range(start)) else wanted
        )
        return dict(zip(widths, x.split(list(widths.values()), dim=-1), strict=True))

    def _target(self, batch: Batch) -> tuple[dict[str, Tensor], PatchNormalizer]:
        """Return the patches of every target in the batch, [B, N, C * p * p], and their common scale."""
        patches = {
            m: patchify(full_precision(batch.images[m]), self.backbone.patch_size)
            for m in self.targets
            if m in batch.images
        }
        return patches, PatchNormalizer.of(torch.cat(list(patches.values()), dim=-1))

    def _hard(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]] | None:
        if not self.options.hard_negatives:
            return None
        return {m: (noise_of(batch, f"{m}_hard_picks"), noise_of(batch, f"{m}_hard_mixes")) for m in SENSORS}

    # -- checks of a batch -------------------------------------------------------------------------

    def _channels(self, batch: Batch) -> dict[str, list[int]]:
        """Return for every sensor of the batch which of the backbone's bands its channels are."""
        channels = batch_channels(self.backbone, batch)
        absent = [m for m in self.targets if m not in batch.images]
        if self.decoder is not None and self.options.reconstruction_target in absent:
            raise ValueError(
                f"reconstruction_target={self.options.reconstruction_target!r}, and the batch has only "
                f"{', '.join(batch.images)}; set reconstruction_target='both', which predicts what is there"
            )
        if self.decoder is None and len(batch.images) < 2:
            raise ValueError(
                f"the batch has only {', '.join(batch.images)}, and without reconstruction nothing is "
                "trained on one sensor; set reconstruction_weight above 0, or leave this source out"
            )
        return {m: channels[m] for m in SENSORS if m in channels}

    def _masks(self, batch: Batch) -> dict[str, Mask]:
        """Make the masks of every sensor of the batch from its noise."""
        height, width = batch_grid(self.backbone, batch)
        shape = (len(batch), height * width)
        return {
            m: mask_of(batch, self.options.noise_name(m), shape, self.options.mask_ratio(m))
            for m in SENSORS
            if m in batch.images
        }


def _masked_mse(prediction: Tensor, target: Tensor, masked: Tensor) -> Tensor:
    """Mean square over the masked patches: [B, N, P] twice and [B, N] to a scalar."""
    per_patch = (prediction - target).square().mean(dim=-1)
    return (per_patch * masked).sum() / masked.sum()


def _check_backbone(options: CromaObjective, backbone: Croma) -> None:
    given = ", ".join(backbone.modalities)
    if len(backbone.modalities) < 2 and (options.contrasts != "none" or options.local != "none"):
        raise ValueError(
            f"contrast={options.contrasts!r} and local={options.local!r} compare two sensors, and the "
            f"backbone has {given} only; set both to 'none', or build it with modalities=('s2', 's1')"
        )
    if options.reconstruction_target not in ("both", *backbone.modalities):
        raise ValueError(
            f"reconstruction_target={options.reconstruction_target!r}, and the backbone has {given} only; "
            "set it to 'both', which predicts what is there"
        )
    if options.joint_self_bias == "published" and backbone.config.positions != "alibi":
        raise ValueError(
            f"joint_self_bias='published' is about 2D-ALiBi, and the backbone's positions are "
            f"{backbone.config.positions!r}; leave it at 'radar'"
        )
    check_no_head(backbone)
