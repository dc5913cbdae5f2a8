"""A small family that consumes series: 3-D convolutions, one map for all dates, missing dates masked."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsbackbones.input_spec import SSL4EO_S12
from rsbackbones.models.backbone import Backbone, Encoded, Inputs, Stage, Wanted
from rsbackbones.models.config import ModelConfig
from rsbackbones.models.stem import Stem, conv_stem

INPUTS = SSL4EO_S12


@dataclass(frozen=True, kw_only=True)
class ToySeriesConfig(ModelConfig):
    """``width`` is that of every layer."""

    width: int = 32
    image_size: int | tuple[int, int] = 32
    modalities: tuple[str, ...] = ("s2",)
    bands: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {m: spec.bands for m, spec in INPUTS.items()}
    )


class ToySeries(Backbone):
    """Down to a quarter of the resolution, the mean over the dates that are there, and up to a half."""

    consumes = "series"
    size_multiple = 4

    def __init__(self, config: ToySeriesConfig, *, num_classes: int = 0) -> None:
        super().__init__(config, num_features=config.width, num_classes=num_classes)
        (modality,) = config.modalities
        self.conv = nn.Conv3d(len(config.bands[modality]), config.width, 3, padding=1)
        self.season = nn.Linear(2, config.width)  # used where dates are known
        self.down = nn.Conv3d(config.width, config.width, (3, 4, 4), stride=(1, 4, 4), padding=(1, 0, 0))
        self.up = nn.ConvTranspose2d(config.width, config.width, 2, stride=2)

    def stages(self, stream: str) -> tuple[Stage, ...]:
        return (Stage(self.num_features, 2, "up"),)

    def stem(self, modality: str) -> Stem:
        return conv_stem("conv")

    def layer_groups(self) -> list[list[nn.Module]]:
        return [[self.conv, self.season], [self.down], [self.up, self.head]]

    def units(self) -> list[nn.Module]:
        return [self.conv, self.down, self.up]

    def encode(self, inputs: Inputs, wanted: Wanted) -> dict[str, Encoded]:
        ((stream, x),) = inputs.images.items()  # [B, T, C, H, W]
        there = inputs.valid.get(stream, torch.ones_like(x[:, :, 0, 0, 0], dtype=torch.bool))
        mask = there[:, None, :, None, None].to(x.dtype)  # [B, 1, T, 1, 1]
        hidden = self.conv(x.transpose(1, 2))  # [B, D, T, H, W]
        if stream in inputs.dates:
            angle = (inputs.dates[stream] / 58.1).to(x.dtype)
            season = self.season(torch.stack([angle.sin(), angle.cos()], dim=-1))  # [B, T, D]
            hidden = hidden + season.transpose(1, 2)[..., None, None]
        dates: Tensor = F.gelu(hidden) * mask
        dates = F.gelu(self.down(dates)) * mask  # [B, D, T, h, w]
        mean = dates.sum(dim=2) / mask.sum(dim=2).clamp(min=1)
        features = self.up(mean)
        maps = {0: features} if wanted.stages.get(stream) else {}
        tokens = dates.flatten(3).permute(0, 2, 3, 1)  # [B, T, N, D]
        return {
            stream: Encoded(features=features, pooled=self.pool(stream, features), maps=maps, series=tokens)
        }


SMALL = {"width": 8}
CONFIGS = {"toy_series": ToySeriesConfig()}
build = ToySeries
