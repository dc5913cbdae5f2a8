"""EfficientNet-Lite: a small convolutional network of one sensor, as timm has it.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019, arXiv
1905.11946, without squeeze-and-excitation and with ReLU6 (the ``lite`` networks of the authors' code). The
network is timm's ``tf_efficientnet_lite0``, which is imported when a model is built: TensorFlow's padding
(``same``) and an epsilon of 0.001 in its norms. Its only row, ``fomu_lite0``, is an encoder of FoMu-SSL that
two cores can train (our choice; the paper has a ResNet-50, :mod:`rsbackbones.models.resnet`).

- The stages have strides 2, 4, 8, 16 and 32: the last blocks at the first four, and the head convolution
  (1280 channels) at the last, whose mean is the embedding. By default maps are those of the last four. Images
  may have any size of 32 pixels or more.
- Inputs are 8-bit pictures, (value / 255 - 0.5) / 0.5, as the network was trained on ImageNet.

Shapes: B images, D channels of the head convolution.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsbackbones.input_spec import SINGLE_SENSOR_INPUTS, InputSpec
from rsbackbones.layers.tracing import is_exporting
from rsbackbones.models.backbone import Backbone, Encoded, Inputs, Stage, Wanted
from rsbackbones.models.checkpoint_format import CheckpointFormat
from rsbackbones.models.config import is_count
from rsbackbones.models.single_sensor import SingleSensorConfig
from rsbackbones.models.stem import Stem, conv_stem

_HALF = (0.5, 0.5, 0.5)
INPUTS: dict[str, InputSpec] = {
    **SINGLE_SENSOR_INPUTS,
    "rgb": replace(SINGLE_SENSOR_INPUTS["rgb"], mean=_HALF, std=_HALF),
}
# The groups of blocks, in timm's notation: kernel, stride and expansion.
_GROUPS = (
    "ds_k3_s1_e1", "ir_k3_s2_e6", "ir_k5_s2_e6", "ir_k3_s2_e6", "ir_k5_s1_e6", "ir_k5_s2_e6", "ir_k3_s1_e6",
)  # fmt: skip
# The last group at the strides 2, 4, 8 and 16.
_LAST_GROUPS = (0, 1, 2, 4)
_MODULES = ("conv_stem", "bn1", "blocks", "conv_head", "bn2")


@dataclass(frozen=True, kw_only=True)
class EfficientNetConfig(SingleSensorConfig):
    """``layers`` and ``channels`` are the blocks and their width in each of the seven groups;
    ``head_channels`` is D.
    """

    modalities: tuple[str, ...] = ("rgb",)
    layers: tuple[int, ...] = (1, 2, 2, 3, 3, 4, 1)
    channels: tuple[int, ...] = (16, 24, 40, 80, 112, 192, 320)
    head_channels: int = 1280

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("layers", "channels"):
            counts: Any = getattr(self, name)
            if not isinstance(counts, tuple) or len(counts) != len(_GROUPS) or not all(map(is_count, counts)):
                raise ValueError(f"{name} must be {len(_GROUPS)} positive whole numbers, got {counts!r}")
        if not is_count(self.head_channels):
            raise ValueError(f"head_channels must be a positive whole number, got {self.head_channels!r}")

    def summary(self) -> str:
        """See :meth:`ModelConfig.summary`."""
        return f"blocks {', '.join(map(str, self.layers))}, {super().summary()}"

    def min_tensors(self) -> int:
        """See :meth:`ModelConfig.min_tensors`."""
        return 4 * sum(self.layers)


class _SameConv(nn.Conv2d):
    """A convolution of stride 2 with TensorFlow's padding: sides that are even lack one zero before them.

    It equals timm's ``Conv2dSame``. Programs of torch.export cannot have sizes that depend on a remainder, so
    there the kernel moves, with a zero after or before it, and the padding stays.
    """

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (side // 2 for side in self.kernel_size)
        odd_rows, odd_columns = (side % 2 for side in x.shape[-2:])
        if is_exporting():
            weight = _moved(_moved(self.weight, -1, odd_columns), -2, odd_rows)
            x = F.pad(x, (columns, columns + 1, rows, rows + 1))
        else:
            weight = self.weight
            x = F.pad(x, (columns - 1 + odd_columns, columns, rows - 1 + odd_rows, rows))
        found: Tensor = self._conv_forward(x, weight, None)
        return found


def _moved(weight: Tensor, dim: int, odd: int) -> Tensor:
    """Return a kernel with a zero after it if ``odd`` is 1, and before it if it is 0."""
    zero = torch.zeros_like(weight.narrow(dim, 0, 1))
    return torch.cat([weight, zero], dim) * odd + torch.cat([zero, weight], dim) * (1 - odd)


class EfficientNet(Backbone):
    """An EfficientNet-Lite of one modality."""

    config: EfficientNetConfig
    min_size = 32

    def __init__(self, config: EfficientNetConfig, *, num_classes: int = 0) -> None:
        from timm.layers.conv2d_same import Conv2dSame
        from timm.models import efficientnet
        from timm.models._efficientnet_builder import decode_arch_def

        super().__init__(config, num_features=config.head_channels, num_classes=num_classes)
        (modality,) = config.modalities
        sizes = zip(_GROUPS, config.layers, config.channels, strict=True)
        network: Any = efficientnet.EfficientNet(
            decode_arch_def([[f"{group}_r{count}_c{width}"] for group, count, width in sizes]),
            num_classes=0,
            num_features=config.head_channels,
            in_chans=len(config.bands[modality]),
            fix_stem=True,
            pad_type="same",
            act_layer=nn.ReLU6,
            norm_layer=partial(nn.BatchNorm2d, eps=1e-3),
        )
        self.trunk = nn.ModuleDict({name: getattr(network, name) for name in _MODULES})
        for name, module in list(self.trunk.named_modules()):
            if isinstance(module, Conv2dSame):
                size: Any = module.kernel_size
                channels = (module.in_channels, module.out_channels)
                same = _SameConv(*channels, size, stride=2, groups=module.groups, bias=False)
                same.weight = module.weight
                self.trunk.set_submodule(name, same)

    def stages(self, stream: str) -> tuple[Stage, ...]:
        """See :meth:`Backbone.stages`: the last block at each stride, and the head convolution."""
        channels = (*(self.config.channels[i] for i in _LAST_GROUPS), self.config.head_channels)
        modules = (*(f"blocks.{i}" for i in _LAST_GROUPS), "bn2")
        return tuple(
            Stage(width, 2 ** (i + 1), f"trunk.{name}")
            for i, (width, name) in enumerate(zip(channels, modules, strict=True))
        )

    def stem(self, modality: str) -> Stem:
        """See :meth:`Backbone.stem`."""
        return conv_stem("trunk.conv_stem")

    def units(self) -> list[nn.Module]:
        """See :meth:`Backbone.units`: also the groups of blocks without a stage of their own."""
        groups: Any = self.trunk["blocks"]
        return [*groups, self.trunk["conv_head"], self.trunk["bn2"]]

    def layer_groups(self) -> list[list[nn.Module]]:
        """See :meth:`Backbone.layer_groups`: a block is a layer."""
        groups: Any = self.trunk["blocks"]
        stem: list[nn.Module] = [self.trunk["conv_stem"], self.trunk["bn1"]]
        last: list[nn.Module] = [self.trunk["conv_head"], self.trunk["bn2"]]
        return [stem, *([block] for group in groups for block in group), last, [self.head]]

    def encode(self, inputs: Inputs, wanted: Wanted) -> dict[str, Encoded]:
        """See :meth:`Backbone.encode`."""
        ((stream, x),) = inputs.images.items()
        # Convolutions and norms keep this layout, in which they are faster.
        x = x.contiguous(memory_format=torch.channels_last)
        groups: Any = self.trunk["blocks"]
        x = self.trunk["bn1"](self.trunk["conv_stem"](x))  # [B, 32, H / 2, W / 2], rounded up
        levels = []
        for i, group in enumerate(groups):
            x = group(x)
            if i in _LAST_GROUPS:
                levels.append(x)
        levels.append(self.trunk["bn2"](self.trunk["conv_head"](x)))
        maps = {i: levels[i] for i in wanted.stages.get(stream, ())}
        return {stream: Encoded(features=levels[-1], pooled=self.pool(stream, levels[-1]), maps=maps)}


# -- foreign checkpoints ------------------------------------------------------------------------------


def _module_names() -> dict[str, str]:
    """Pair the module names with those of timm; ``#`` is an index."""
    parts = ("conv_dw", "bn1", "conv_pw", "bn2", "conv_pwl", "bn3")
    names = [name for name in _MODULES if name != "blocks"]
    names += [f"blocks.{i}.#.{part}" for i in range(len(_GROUPS)) for part in parts]
    return {f"trunk.{name}": name for name in names}


CHECKPOINT_FORMATS = {
    # timm's state dict. Dropped: the classifier.
    "timm_efficientnet": CheckpointFormat(modules=_module_names(), dropped=("classifier.",)),
}

# What tests build of every architecture of the family.
SMALL = {"layers": (1,) * 7, "channels": (8, 8, 8, 8, 8, 16, 16), "head_channels": 32}

CONFIGS = {"fomu_lite0": EfficientNetConfig()}


def build(config: EfficientNetConfig, *, num_classes: int = 0) -> EfficientNet:
    """Build an EfficientNet-Lite, randomly initialized."""
    return EfficientNet(config, num_classes=num_classes)
