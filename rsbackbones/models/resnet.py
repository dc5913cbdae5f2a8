"""ResNets: convolutional networks of one sensor, as torchvision and timm have them.

He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv 1512.03385. The
network is timm's, which is imported when a model is built. Most published remote-sensing ResNets store it
under the names that torchvision and timm share (the format ``torchvision``). New published weights are
entries of weights_manifest.json; only a new depth needs a line here, in ``CONFIGS``.

- A model has one modality. The stages are the four groups of blocks, with strides 4, 8, 16 and 32; images may
  have any size. The embedding is the mean over the final map.
- The stride of a bottleneck block is in its 3 x 3 convolution, as in torchvision and timm, not in the first
  1 x 1 convolution as in the paper.
- Random weights are timm's (Kaiming), without zeros in the last norm of a block, as is torchvision's default.

Shapes: B images, D channels of the last stage.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from rsbackbones.models.backbone import Backbone, Encoded, Inputs, Stage, Wanted
from rsbackbones.models.checkpoint_format import CheckpointFormat
from rsbackbones.models.config import is_count
from rsbackbones.models.single_sensor import SingleSensorConfig
from rsbackbones.models.stem import Stem, conv_stem
from rsbackbones.sensors import SINGLE_SENSOR_INPUTS, InputSpec

INPUTS: dict[str, InputSpec] = SINGLE_SENSOR_INPUTS
# Channels of a block's output divided by those of its 3 x 3 convolutions.
EXPANSION = {"basic": 1, "bottleneck": 4}
_WIDTHS = (64, 128, 256, 512)


@dataclass(frozen=True, kw_only=True)
class ResNetConfig(SingleSensorConfig):
    """``layers`` are the blocks of each of the four stages; ``block`` is ``"basic"`` or ``"bottleneck"``."""

    layers: tuple[int, ...]
    block: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block not in EXPANSION:
            raise ValueError(f"block must be one of {', '.join(EXPANSION)}, got {self.block!r}")
        layers: Any = self.layers
        if not isinstance(layers, tuple) or len(layers) != len(_WIDTHS) or not all(map(is_count, layers)):
            raise ValueError(f"layers must be four positive whole numbers, got {layers!r}")

    def summary(self) -> str:
        """See :meth:`ModelConfig.summary`."""
        return f"{self.block} blocks {', '.join(map(str, self.layers))}, {super().summary()}"

    def min_tensors(self) -> int:
        """See :meth:`ModelConfig.min_tensors`."""
        return 4 * sum(self.layers)


class ResNet(Backbone):
    """A ResNet of one modality."""

    config: ResNetConfig

    def __init__(self, config: ResNetConfig, *, num_classes: int = 0) -> None:
        from timm.models import resnet

        width = _WIDTHS[-1] * EXPANSION[config.block]
        super().__init__(config, num_features=width, num_classes=num_classes)
        (modality,) = config.modalities
        block: Any = resnet.BasicBlock if config.block == "basic" else resnet.Bottleneck
        network: Any = resnet.ResNet(
            block, config.layers, num_classes=0, in_chans=len(config.bands[modality]), zero_init_last=False
        )
        parts = ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3", "layer4")
        self.trunk = nn.ModuleDict({name: getattr(network, name) for name in parts})

    def stages(self, stream: str) -> tuple[Stage, ...]:
        """See :meth:`Backbone.stages`: a stage is a group of blocks."""
        expansion = EXPANSION[self.config.block]
        return tuple(
            Stage(width * expansion, 4 * 2**i, f"trunk.layer{i + 1}") for i, width in enumerate(_WIDTHS)
        )

    def stem(self, modality: str) -> Stem:
        """See :meth:`Backbone.stem`."""
        return conv_stem("trunk.conv1")

    def layer_groups(self) -> list[list[nn.Module]]:
        """See :meth:`Backbone.layer_groups`: a block is a layer."""
        stem: list[nn.Module] = [self.trunk["conv1"], self.trunk["bn1"]]
        stages: list[Any] = [self.trunk[f"layer{i + 1}"] for i in range(len(_WIDTHS))]
        return [stem, *([block] for stage in stages for block in stage), [self.head]]

    def encode(self, inputs: Inputs, wanted: Wanted) -> dict[str, Encoded]:
        """See :meth:`Backbone.encode`."""
        ((stream, x),) = inputs.images.items()
        for name in ("conv1", "bn1", "act1", "maxpool"):
            x = self.trunk[name](x)  # [B, 64, H / 4, W / 4], rounded up
        maps = {}
        for i in range(len(_WIDTHS)):
            x = self.trunk[f"layer{i + 1}"](x)
            if i in wanted.stages.get(stream, ()):
                maps[i] = x
        return {stream: Encoded(features=x, pooled=self.pool(stream, x), maps=maps)}


# -- foreign checkpoints ------------------------------------------------------------------------------


def _module_names() -> dict[str, str]:
    """Pair the module names with those of torchvision and timm; ``#`` is the index of a block."""
    layers = [f"layer{i + 1}.#" for i in range(len(_WIDTHS))]
    parts = ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "downsample.0", "downsample.1")
    names = ["conv1", "bn1", *(f"{layer}.{part}" for layer in layers for part in parts)]
    return {f"trunk.{name}": name for name in names}


CHECKPOINT_FORMATS = {
    # torchvision's and timm's state dict. Dropped: the classifier, and what pretraining leaves beside it.
    "torchvision": CheckpointFormat(
        modules=_module_names(),
        dropped=("fc.", "head.", "projector.", "optimizer."),
    ),
}

# What tests build of every architecture of the family.
SMALL = {"layers": (1, 1, 1, 1)}

CONFIGS = {
    "resnet18": ResNetConfig(block="basic", layers=(2, 2, 2, 2)),
    "resnet50": ResNetConfig(block="bottleneck", layers=(3, 4, 6, 3)),
    "resnet152": ResNetConfig(block="bottleneck", layers=(3, 8, 36, 3)),
}


def build(config: ResNetConfig, *, num_classes: int = 0) -> ResNet:
    """Build a ResNet, randomly initialized."""
    return ResNet(config, num_classes=num_classes)
