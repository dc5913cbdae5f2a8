"""ResNets: convolutional networks of one sensor, as torchvision and timm have them.

He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv 1512.03385. The
network is timm's, which is imported when a model is built. Most published remote-sensing ResNets store it
under the names that torchvision and timm share (the format ``torchvision``). New published weights are
entries of weights_manifest.json; only a new depth needs a line here, in ``CONFIGS``.

The rows ``fomu_*`` are encoders of FoMu-SSL (Seo, Jung and Kim, "FoMu-SSL: Foundation Model-Guided
Multi-Sensor Self-Supervised Learning for Remote Sensing", ICML 2024 Workshop on Foundation Models in the
Wild). The paper has a ResNet-50. Their input is an 8-bit picture: radar guides the training, and is never an
input. The smaller ones are our choice: ``fomu_resnet10t`` is timm's ``resnet10t``, and ``fomu_resnet_tiny``
its ``test_resnet``. A third is in :mod:`rsbackbones.models.efficientnet`.

- A model has one modality. The stages are the stem and the four groups of blocks, with strides 2, 4, 8, 16
  and 32; by default maps are those of the four groups. Images may have any size of 32 pixels or more. The
  embedding is the mean over the final map.
- The stride of a bottleneck block is in its 3 x 3 convolution, as in torchvision and timm, not in the first
  1 x 1 convolution as in the paper.
- Random weights are timm's (Kaiming). The last norm of a block begins with ones, as is torchvision's default;
  ``fomu_resnet10t``, which was trained from random weights, begins with zeros there, timm's default.

Shapes: B images, D channels of the last stage.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsbackbones.input_spec import SINGLE_SENSOR_INPUTS, InputSpec
from rsbackbones.models.backbone import Backbone, Encoded, Inputs, Stage, Wanted
from rsbackbones.models.checkpoint_format import CheckpointFormat
from rsbackbones.models.config import is_count
from rsbackbones.models.single_sensor import SingleSensorConfig
from rsbackbones.models.stem import Stem, conv_stem

INPUTS: dict[str, InputSpec] = SINGLE_SENSOR_INPUTS
# Channels of a block's output divided by those of its 3 x 3 convolutions.
EXPANSION = {"basic": 1, "bottleneck": 4}
STEMS = ("", "deep", "deep_tiered")
# The modules of the network, as timm and torchvision name them.
_STEM = ("conv1", "bn1", "act1")
_LAYERS = ("layer1", "layer2", "layer3", "layer4")


@dataclass(frozen=True, kw_only=True)
class ResNetConfig(SingleSensorConfig):
    """The fields are timm's. ``layers`` and ``channels`` are the blocks and their width in each of the four
    groups; ``block`` is ``"basic"`` or ``"bottleneck"``, for all groups or for each. ``stem_type`` ``""`` is
    one convolution of 7 x 7 pixels and 64 channels; ``"deep"`` and ``"deep_tiered"`` are three of 3 x 3, the
    last with twice ``stem_width`` channels. ``avg_down``: shortcuts are averaged before their convolution.
    ``zero_init_last``: the scale of the last norm of a block is 0 at first, in random weights.
    """

    layers: tuple[int, ...]
    block: str | tuple[str, ...]
    channels: tuple[int, ...] = (64, 128, 256, 512)
    stem_type: str = ""
    stem_width: int = 64
    avg_down: bool = False
    zero_init_last: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        blocks: Any = self.blocks
        if len(blocks) != len(_LAYERS) or any(block not in EXPANSION for block in blocks):
            raise ValueError(f"block must be one of {', '.join(EXPANSION)}, or four, got {self.block!r}")
        for name in ("layers", "channels"):
            counts: Any = getattr(self, name)
            if not isinstance(counts, tuple) or len(counts) != len(_LAYERS) or not all(map(is_count, counts)):
                raise ValueError(f"{name} must be four positive whole numbers, got {counts!r}")
        if self.stem_type not in STEMS or not is_count(self.stem_width):
            raise ValueError(
                f"stem_type must be one of {', '.join(map(repr, STEMS))} and stem_width a positive whole "
                f"number, got {self.stem_type!r} and {self.stem_width!r}"
            )

    @property
    def blocks(self) -> tuple[str, ...]:
        """``block`` of every group."""
        return (self.block,) * len(_LAYERS) if isinstance(self.block, str) else self.block

    @property
    def widths(self) -> tuple[int, ...]:
        """The channels of the stem and of every group."""
        groups = zip(self.channels, self.blocks, strict=True)
        stem = 2 * self.stem_width if self.stem_type else 64
        return (stem, *(width * EXPANSION[block] for width, block in groups))

    def summary(self) -> str:
        """See :meth:`ModelConfig.summary`."""
        kinds = " and ".join(dict.fromkeys(self.blocks))
        return f"{kinds} blocks {', '.join(map(str, self.layers))}, {super().summary()}"

    def min_tensors(self) -> int:
        """See :meth:`ModelConfig.min_tensors`."""
        return 4 * sum(self.layers)


class _HalvedMap(nn.Module):
    """Means of 2 x 2 cells, at the edges of those that exist.

    The same as timm's ``AvgPool2d(2, ceil_mode=True, count_include_pad=False)``, whose program of
    torch.export serves no odd sizes.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(x, (0, 1, 0, 1), mode="replicate"), 2)


class ResNet(Backbone):
    """A ResNet of one modality."""

    config: ResNetConfig
    min_size = 32

    def __init__(self, config: ResNetConfig, *, num_classes: int = 0) -> None:
        from timm.models import resnet

        super().__init__(config, num_features=config.widths[-1], num_classes=num_classes)
        (modality,) = config.modalities
        kinds = {"basic": resnet.BasicBlock, "bottleneck": resnet.Bottleneck}
        blocks: Any = [kinds[block] for block in config.blocks]
        network: Any = resnet.ResNet(
            blocks,
            config.layers,
            num_classes=0,
            in_chans=len(config.bands[modality]),
            stem_width=config.stem_width,
            stem_type=config.stem_type,
            avg_down=config.avg_down,
            channels=config.channels,
            zero_init_last=config.zero_init_last,
        )
        self.trunk = nn.ModuleDict({name: getattr(network, name) for name in (*_STEM, "maxpool", *_LAYERS)})
        for name, module in list(self.trunk.named_modules()):
            if isinstance(module, nn.AvgPool2d):
                self.trunk.set_submodule(name, _HalvedMap())

    def stages(self, stream: str) -> tuple[Stage, ...]:
        """See :meth:`Backbone.stages`: the stem, then the groups of blocks."""
        modules = (_STEM[-1], *_LAYERS)
        return tuple(
            Stage(width, 2 ** (i + 1), f"trunk.{name}")
            for i, (width, name) in enumerate(zip(self.config.widths, modules, strict=True))
        )

    def stem(self, modality: str) -> Stem:
        """See :meth:`Backbone.stem`."""
        return conv_stem("trunk.conv1.0" if self.config.stem_type else "trunk.conv1")

    def layer_groups(self) -> list[list[nn.Module]]:
        """See :meth:`Backbone.layer_groups`: a block is a layer."""
        stem: list[nn.Module] = [self.trunk["conv1"], self.trunk["bn1"]]
        layers: list[Any] = [self.trunk[name] for name in _LAYERS]
        return [stem, *([block] for layer in layers for block in layer), [self.head]]

    def encode(self, inputs: Inputs, wanted: Wanted) -> dict[str, Encoded]:
        """See :meth:`Backbone.encode`."""
        ((stream, x),) = inputs.images.items()
        # Convolutions and norms keep this layout, in which they are faster.
        x = x.contiguous(memory_format=torch.channels_last)
        for name in _STEM:
            x = self.trunk[name](x)  # [B, D_0, H / 2, W / 2], rounded up
        maps = {0: x}
        x = self.trunk["maxpool"](x)
        for i, name in enumerate(_LAYERS, start=1):
            x = maps[i] = self.trunk[name](x)
        maps = {i: maps[i] for i in wanted.stages.get(stream, ())}
        return {stream: Encoded(features=x, pooled=self.pool(stream, x), maps=maps)}


# -- foreign checkpoints ------------------------------------------------------------------------------


def _module_names() -> dict[str, str]:
    """Pair the module names with those of torchvision and timm; ``#`` is an index."""
    parts = ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", *(f"downsample.{i}" for i in range(3)))
    names = ["conv1", "conv1.#", "bn1", *(f"{layer}.#.{part}" for layer in _LAYERS for part in parts)]
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

_RGB: Any = {"modalities": ("rgb",)}
_AS_10T: Any = {"layers": (1, 1, 1, 1), "avg_down": True, "image_size": 64, **_RGB}
CONFIGS = {
    "fomu_resnet_tiny": ResNetConfig(
        block=("basic", "basic", "bottleneck", "basic"), channels=(32, 48, 48, 96), stem_type="deep",
        stem_width=16, **_AS_10T,
    ),
    "fomu_resnet10t": ResNetConfig(
        block="basic", stem_type="deep_tiered", stem_width=32, zero_init_last=True, **_AS_10T
    ),
    "fomu_resnet50": ResNetConfig(block="bottleneck", layers=(3, 4, 6, 3), **_RGB),
    "resnet18": ResNetConfig(block="basic", layers=(2, 2, 2, 2)),
    "resnet50": ResNetConfig(block="bottleneck", layers=(3, 4, 6, 3)),
    "resnet152": ResNetConfig(block="bottleneck", layers=(3, 8, 36, 3)),
}  # fmt: skip


def build(config: ResNetConfig, *, num_classes: int = 0) -> ResNet:
    """Build a ResNet, randomly initialized."""
    return ResNet(config, num_classes=num_classes)
