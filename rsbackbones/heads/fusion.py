"""Fusion with a sensor that is not there: a frozen network makes its series, and a second one sees both.

Source: Shenoy et al., S4, Remote Sensing 2024, section 6.5 ("Self-Supervised Multimodal Fusion"): a network
that was pretrained by reconstruction alone predicts the series of the other sensor; a second network, of as
many channels as both sensors have, segments them, as in PASTIS's early fusion. One sensor is needed at
inference. Both networks are S4's 3-D U-Net, of the same widths; the second is trained from scratch.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rsbackbones.heads.dense import DenseModel
from rsbackbones.heads.head import SeriesHead
from rsbackbones.heads.unet3d import UNet3dHead
from rsbackbones.models.backbone import Images, unwrap_model
from rsbackbones.models.s4 import S4Config, S4UNet3d, conv
from rsbackbones.models.series_arguments import Dates, Masks, masks_by_modality
from rsbackbones.models.validity import Validity, fill_invalid, pad_to_multiple


class FusionHead(SeriesHead):
    """The last convolution of the reconstruction, which is frozen, and the network that sees both sensors.

    Args:
        config: of the network that reconstructs; the second one has its widths.
        sensor: whose images there are.
        reconstructed: bands of the sensor that is made.
        num_classes: K.
    """

    def __init__(self, config: S4Config, sensor: str, reconstructed: int, num_classes: int) -> None:
        super().__init__()
        self.sensor, self.reduction = sensor, 1.0
        half = config.widths[0] // 2
        self.reconstruction = conv(half, reconstructed, config.over_time).requires_grad_(False)
        self.network = S4UNet3d(replace(config, modalities=(sensor,), inference_modality=sensor))
        stem = self.network.stems[sensor].get_submodule("first")
        channels = len(config.bands[sensor]) + reconstructed
        stem.conv = conv(channels, config.widths[0], config.over_time)
        self.classify = UNet3dHead(half, 1, num_classes)

    def forward(
        self, maps: Sequence[Tensor], valid: Tensor | None = None, dates: Tensor | None = None
    ) -> Tensor:
        """The decoder's maps [B, t, w0 / 2, H, W] and the images [B, t, C, H, W] to logits [B, K, H, W]."""
        decoded, images = maps
        there = decoded.new_ones(decoded.shape[:2], dtype=torch.bool) if valid is None else valid
        clean = decoded.masked_fill(~there[:, :, None, None, None], 0)
        made = self.reconstruction(clean.transpose(1, 2)).transpose(1, 2)
        # The maps of a backbone that pads are cropped; so are these logits.
        both = pad_to_multiple(torch.cat((images, made), dim=2), self.network.size_multiple)
        size = images.shape[-2], images.shape[-1]
        levels = self.network.encode_levels(self.sensor, both, there, size)
        _, full = self.network.decode_levels(self.sensor, levels)
        logits: Tensor = self.classify([full.maps.transpose(1, 2)], full.there)
        return logits


class FusionModel(DenseModel):
    """Segments series of one sensor with those that a frozen network makes of another."""

    def _encode(
        self, x: Images, *, dates: Dates | None = None, valid: Masks | None = None
    ) -> tuple[list[Tensor], Validity]:
        """See :meth:`DenseModel._encode`: the images come after the maps."""
        maps, counted = super()._encode(x, dates=dates, valid=valid)
        assert counted.by_date is not None
        sensor = str(self.stream)
        image = x if isinstance(x, Tensor) else x[sensor]
        if (mask := masks_by_modality(valid, (sensor,), image.device).get(sensor)) is not None:
            pixels = mask if mask.ndim == image.ndim - 1 else mask[..., None, None]
            spec = unwrap_model(self.backbone).inputs.get(sensor)
            rule = spec.normalize if spec else None
            image = fill_invalid(image, pixels.expand_as(image[..., 0, :, :]), rule)
        series = image if image.ndim == 5 else image[:, None]
        series = series.masked_fill(~counted.by_date[..., None, None, None], 0)
        padded = series.new_zeros(len(series), maps[0].shape[1], *series.shape[2:])
        padded[:, : series.shape[1]] = series
        return [*maps, padded], counted
