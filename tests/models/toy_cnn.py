"""A small convolutional family: BatchNorm, four stages, images of any size, random weights only."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor, nn

from rsbackbones.input_spec import SSL4EO_S12
from rsbackbones.layers.drop_path import drop_path
from rsbackbones.models.backbone import Backbone, Encoded, Inputs, Stage, Wanted
from rsbackbones.models.config import ModelConfig
from rsbackbones.models.stem import Stem, conv_stem

INPUTS = SSL4EO_S12


@dataclass(frozen=True, kw_only=True)
class ToyCNNConfig(ModelConfig):
    """``width`` is that of the first stage; each later one is twice as wide."""

    width: int = 32
    image_size: int | tuple[int, int] = 64
    modalities: tuple[str, ...] = ("s2",)
    bands: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {m: spec.bands for m, spec in INPUTS.items()}
    )


class ResidualBlock(nn.Module):
    """Two convolutions, the first of stride 2, and a shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.drop_path = 0.0
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(self.shortcut(x) + drop_path(branch, self.drop_path, self.training))


class ToyCNN(Backbone):
    """A stem of stride 2 and four stages of strides 4 to 32."""

    min_size = 32

    def __init__(self, config: ToyCNNConfig, *, num_classes: int = 0) -> None:
        widths = [config.width * 2**i for i in range(4)]
        super().__init__(config, num_features=widths[-1], num_classes=num_classes)
        (modality,) = config.modalities
        self.conv = nn.Conv2d(len(config.bands[modality]), config.width, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(config.width)
        self.layers = nn.ModuleList(map(ResidualBlock, [config.width, *widths], widths))

    def stages(self, stream: str) -> tuple[Stage, ...]:
        return tuple(
            Stage(self.config.width * 2**i, 4 * 2**i, f"layers.{i}") for i in range(len(self.layers))
        )

    def stem(self, modality: str) -> Stem:
        return conv_stem("conv")

    def layer_groups(self) -> list[list[nn.Module]]:
        return [[self.conv, self.norm], *([layer] for layer in self.layers), [self.head]]

    def encode(self, inputs: Inputs, wanted: Wanted) -> dict[str, Encoded]:
        ((stream, x),) = inputs.images.items()
        x = F.relu(self.norm(self.conv(x)))
        maps = {}
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i in wanted.stages.get(stream, ()):
                maps[i] = x
        return {stream: Encoded(features=x, pooled=self.pool(stream, x), maps=maps)}


SMALL = {"width": 4}
CONFIGS = {"toy_cnn": ToyCNNConfig()}
build = ToyCNN
