"""S4: a 3-D U-Net for series of one sensor, with layers that two sensors share.

Shenoy et al., "Self-Supervised Learning across the Spectrum", Remote Sensing 2024, 16, 3470, sections 5 and
6.3. The network is the 3-D U-Net of the authors of PASTIS, which section 6.3 follows. No weights and no code
of the paper are published.

- Encoder: five convolutions of kernel 3, each with BatchNorm and leaky ReLU. The first two belong to a
  sensor, the others are shared. (Section 5 counts four, section 6.3 five, with max-poolings after the second
  and the fourth; ours has five.)
- Decoder: it belongs to ``inference_modality``, and is part of the backbone, since its pretrained weights are
  fine-tuned (section 5.3); only a last convolution is added. Section 6.3 states padding 0 and a norm after
  each transposed convolution; the network that it follows has padding 1, output padding 1, and no norm after
  the first. Ours is as that network, so that sizes double exactly.
- Missing frames, and those that bring T to a multiple of 4, are zeros before every convolution, minus
  infinity in max-poolings (a coarse frame exists if one of its two does), and no part of a mean or of a
  statistic. So a series gives the same alone and in a padded batch, which the public network does not.
  Pixels of padding (``pad``) repeat the last ones, and are no part of a statistic either.
- ``s4_unet2d`` is the same network with kernels and poolings of 1 along time: it encodes single images.

Shapes: B series, T dates, t = ceil(T / 4), H x W pixels, w0, w1, w2 the widths.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsbackbones.input_spec import SSL4EO_S12, InputSpec
from rsbackbones.layers.masked_batch_norm import MaskedBatchNorm
from rsbackbones.models.backbone import Backbone, Encoded, Inputs, Stage, Wanted
from rsbackbones.models.checkpoint_format import CheckpointFormat
from rsbackbones.models.config import ModelConfig, is_count
from rsbackbones.models.features import flatten_map
from rsbackbones.models.stem import Stem, conv_stem

# Standardized, without clipping (section 6.3). The paper takes the statistics of the data that a model is
# fine-tuned on; without such data these of SSL4EO-S12 stand in.
INPUTS: dict[str, InputSpec] = {
    m: replace(spec, normalize="standard", eight_bit=False) for m, spec in SSL4EO_S12.items()
}
SLOPE = 0.01


@dataclass(frozen=True, kw_only=True)
class S4Config(ModelConfig):
    """``widths`` are those of the three resolutions. ``inference_modality`` has the decoder.

    By default that is ``s2``, or the only modality. A model without that modality has no decoder. The bands
    are those of PASTIS.
    """

    widths: tuple[int, ...] = (32, 64, 128)
    inference_modality: str = ""
    image_size: int | tuple[int, int] = 128
    modalities: tuple[str, ...] = ("s2", "s1")
    bands: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {
            "s2": ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"),
            "s1": ("VV", "VH"),
        }
    )
    over_time: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        widths: Any = self.widths
        if not isinstance(widths, tuple) or len(widths) != 3 or not all(map(is_count, widths)):
            raise ValueError(f"widths must be three positive whole numbers, got {widths!r}")
        if widths[0] % 2:
            raise ValueError(f"widths: the decoder ends with half of the first, which must be even: {widths}")
        if self.inference_modality not in ("", *INPUTS):
            raise ValueError(
                f"inference_modality must be one of {', '.join(INPUTS)}, got {self.inference_modality!r}"
            )

    def decided(self) -> "S4Config":
        """Return the configuration with its ``inference_modality``, as weights state it."""
        default = "s2" if "s2" in self.modalities else self.modalities[0]
        return replace(self, inference_modality=self.inference_modality or default)

    def summary(self) -> str:
        """See :meth:`ModelConfig.summary`."""
        return f"widths {', '.join(map(str, self.widths))}, {super().summary()}"

    def min_tensors(self) -> int:
        """See :meth:`ModelConfig.min_tensors`."""
        return 5 * 4


class Frames(NamedTuple):
    """Maps of a series, [B, C, T, h, w], and which frames are there, [B, T] booleans.

    ``size`` are the rows and columns that cover the images, where others follow that are padding.
    """

    maps: Tensor
    there: Tensor
    size: tuple[int, int] | None = None

    def clean(self) -> Tensor:
        """Return the maps with zeros where frames are missing."""
        return self.maps.masked_fill(~self.there[:, None, :, None, None], 0)

    def mean(self) -> Tensor:
        """Return the mean over the frames that are there, [B, C, h, w]; zeros where none is."""
        count = self.there.sum(dim=1).clamp(min=1).to(self.maps.dtype)
        return self.clean().sum(dim=2) / count[:, None, None, None]


class ConvUnit(nn.Module):
    """A convolution, BatchNorm, leaky ReLU. Transposed, it doubles all sides (time's if it is convolved)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        sensors: tuple[str, ...],
        *,
        over_time: bool,
        transposed: bool = False,
    ) -> None:
        super().__init__()
        self.conv = (
            transposed_conv(inputs, outputs, over_time) if transposed else conv(inputs, outputs, over_time)
        )
        self.norm = MaskedBatchNorm(outputs, sensors)

    def forward(self, x: Frames, sensor: str, like: Frames | None = None) -> Frames:
        """Return maps of the frames and the size of ``x``, or, transposed, of ``like``."""
        like = x if like is None else like
        maps = self.norm(self.conv(x.clean()), like.there, sensor, like.size)
        return like._replace(maps=F.leaky_relu(maps, SLOPE))


class Block(nn.Module):
    """Two convolutions of :class:`ConvUnit`."""

    def __init__(self, widths: tuple[int, int, int], sensors: tuple[str, ...], *, over_time: bool) -> None:
        super().__init__()
        self.first = ConvUnit(widths[0], widths[1], sensors, over_time=over_time)
        self.second = ConvUnit(widths[1], widths[2], sensors, over_time=over_time)

    def forward(self, x: Frames, sensor: str) -> Frames:
        """Return maps of as many frames."""
        both: Frames = self.second(self.first(x, sensor), sensor)
        return both


class Decoder(nn.Module):
    """From the bottleneck to maps of half of the first width, [B, w0 / 2, T, H, W], with skip connections."""

    def __init__(self, widths: tuple[int, ...], sensor: str, *, over_time: bool) -> None:
        super().__init__()
        w0, w1, w2 = widths
        self.bottleneck = ConvUnit(w2, w2, (sensor,), over_time=over_time)
        self.up_second = transposed_conv(w2, w1, over_time)
        self.second = Block((2 * w1, w1, w1), (sensor,), over_time=over_time)
        self.up_first = ConvUnit(w1, w0, (sensor,), over_time=over_time, transposed=True)
        self.first = Block((2 * w0, w0, w0 // 2), (sensor,), over_time=over_time)

    def forward(self, levels: "tuple[Frames, Frames, Frames]", sensor: str) -> tuple[Frames, Frames]:
        """Return the maps at half and at full resolution; ``levels`` are the encoder's, the finest first."""
        stem, second, bottleneck = levels
        up = self.up_second(self.bottleneck(bottleneck, sensor).clean())
        half = self.second(second._replace(maps=torch.cat((up, second.maps), dim=1)), sensor)
        up = self.up_first(half, sensor, stem).maps
        return half, self.first(stem._replace(maps=torch.cat((up, stem.maps), dim=1)), sensor)


def conv(inputs: int, outputs: int, over_time: bool) -> nn.Conv3d:
    """Return a convolution of kernel 3 that keeps all sides."""
    t = int(over_time)
    return nn.Conv3d(inputs, outputs, (1 + 2 * t, 3, 3), padding=(t, 1, 1))


def transposed_conv(inputs: int, outputs: int, over_time: bool) -> nn.ConvTranspose3d:
    """Return a transposed convolution of kernel 3 that doubles all sides."""
    t = int(over_time)
    return nn.ConvTranspose3d(
        inputs, outputs, (1 + 2 * t, 3, 3), stride=(1 + t, 2, 2), padding=(t, 1, 1), output_padding=(t, 1, 1)
    )


def initialize(module: nn.Module) -> None:
    """Initialize a convolution as He et al. (ICCV 2015) do, so that maps are of order 1 at every depth."""
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        # A transposed convolution spreads its kernel over the strides.
        fan_in = module.in_channels * math.prod(module.kernel_size) / math.prod(module.stride)
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_in))
        assert module.bias is not None
        nn.init.zeros_(module.bias)


def max_pool(x: Frames, over_time: bool) -> Frames:
    """Halve all sides; a coarse frame exists if one of its two does."""
    size = (2 if over_time else 1, 2, 2)
    hidden = x.maps.masked_fill(~x.there[:, None, :, None, None], float("-inf"))
    there = x.there.unflatten(1, (-1, size[0])).any(dim=2)
    pooled = F.max_pool3d(hidden, size).masked_fill(~there[:, None, :, None, None], 0)
    return Frames(pooled, there, None if x.size is None else ((x.size[0] + 1) // 2, (x.size[1] + 1) // 2))


class S4UNet3d(Backbone):
    """The 3-D U-Net of S4. Streams are the sensors; both are encoded alone.

    Stages: the stem, the second level and the bottleneck, and of ``inference_modality`` the two levels of the
    decoder; maps are means over the dates that are there. The final map is that of the bottleneck.
    """

    consumes: ClassVar[Literal["image", "series"]] = "series"
    size_multiple = 4
    config: S4Config

    def __init__(self, config: S4Config, *, num_classes: int = 0) -> None:
        config = config.decided()
        w0, w1, w2 = config.widths
        super().__init__(config, num_features=w2, num_classes=num_classes)
        self.date_stride = 4 if config.over_time else 1
        if config.inference_modality in self.modalities:
            self.default_stream = config.inference_modality
        shared, deep = self.modalities, config.over_time
        self.stems = nn.ModuleDict(
            {m: Block((len(self.bands[m]), w0, w0), (m,), over_time=deep) for m in self.modalities}
        )
        self.second = Block((w0, w1, w1), shared, over_time=deep)
        self.bottleneck = ConvUnit(w1, w2, shared, over_time=deep)
        self.decoders = nn.ModuleDict(
            {
                m: Decoder(config.widths, m, over_time=deep)
                for m in self.modalities
                if m == config.inference_modality
            }
        )
        self.apply(initialize)

    def stages(self, stream: str) -> tuple[Stage, ...]:
        """See :meth:`Backbone.stages`."""
        w0, w1, w2 = self.config.widths
        encoder = (Stage(w0, 1, f"stems.{stream}"), Stage(w1, 2, "second"), Stage(w2, 4, "bottleneck"))
        if stream not in self.decoders:
            return encoder
        decoder = f"decoders.{stream}"
        return (*encoder, Stage(w1, 2, f"{decoder}.second"), Stage(w0 // 2, 1, f"{decoder}.first"))

    def final_stage(self, stream: str) -> int:
        """See :meth:`Backbone.final_stage`: the bottleneck."""
        return 2

    def stage_indices(self, indices: int | Sequence[int] | None, stream: str) -> tuple[int, ...]:
        """See :meth:`Backbone.stage_indices`."""
        try:
            return super().stage_indices(indices, stream)
        except ValueError as error:
            if stream in self.decoders:
                raise
            raise ValueError(f"{error}; {self._no_decoder(stream)}") from error

    def stem(self, modality: str) -> Stem:
        """See :meth:`Backbone.stem`."""
        return conv_stem(f"stems.{modality}.first.conv")

    def layer_groups(self) -> list[list[nn.Module]]:
        """See :meth:`Backbone.layer_groups`: a level of the encoder is a layer, and the decoder the last."""
        stems: list[Any] = list(self.stems.values())
        return [
            [stem.first for stem in stems],
            [stem.second for stem in stems],
            [self.second],
            [self.bottleneck],
            [*self.decoders.values(), self.head],
        ]

    def units(self) -> list[nn.Module]:
        """See :meth:`Backbone.units`: the encoder's levels; the decoder only runs where it is asked for."""
        return [*self.stems.values(), self.second, self.bottleneck]

    def encode(self, inputs: Inputs, wanted: Wanted) -> dict[str, Encoded]:
        """See :meth:`Backbone.encode`."""
        encoded = {}
        for stream, x in inputs.images.items():
            levels = self.encode_levels(stream, x, inputs.valid.get(stream), inputs.size)
            asked = set(wanted.stages.get(stream, ()))
            frames = [*levels, *(self.decode_levels(stream, levels) if max(asked, default=0) > 2 else ())]
            bottleneck = levels[2].mean()
            encoded[stream] = Encoded(
                features=bottleneck,
                pooled=self.pool(stream, bottleneck),
                maps={
                    i: frames[i].maps.transpose(1, 2) if wanted.by_date else frames[i].mean() for i in asked
                },
                series=flatten_map(levels[2].maps.transpose(1, 2)),
                series_valid=levels[2].there,
            )
        return encoded

    def encode_levels(
        self, modality: str, x: Tensor, valid: Tensor | None, size: tuple[int, int] | None = None
    ) -> tuple[Frames, Frames, Frames]:
        """Return the three levels of a series [B, T, C, H, W], the finest first.

        T is rounded up to a multiple of 4. ``valid`` is [B, T], False for missing frames. ``size`` is that of
        the images where they were padded.
        """
        there = x.new_ones(x.shape[:2], dtype=torch.bool) if valid is None else valid
        whole = (x.shape[1] + self.date_stride - 1) // self.date_stride * self.date_stride
        surplus = whole - x.shape[1]
        frames = Frames(F.pad(x.transpose(1, 2), (0, 0, 0, 0, 0, surplus)), F.pad(there, (0, surplus)), size)
        stem = self.stems[modality](frames, modality)
        second = self.second(max_pool(stem, self.config.over_time), modality)
        bottleneck = self.bottleneck(max_pool(second, self.config.over_time), modality)
        return stem, second, bottleneck

    def decode_levels(self, modality: str, levels: tuple[Frames, Frames, Frames]) -> tuple[Frames, Frames]:
        """Return the decoder's maps at half and at full resolution.

        Raises:
            ValueError: the decoder is of another modality, or there is none.
        """
        if modality not in self.decoders:
            raise ValueError(self._no_decoder(modality))
        decoded: tuple[Frames, Frames] = self.decoders[modality](levels, modality)
        return decoded

    def _no_decoder(self, modality: str) -> str:
        return (
            f"this model has no decoder of {modality}: the only one is that of its inference_modality, "
            f"{self.config.inference_modality}. A new network has another with "
            f"create_model(..., overrides={{'inference_modality': {modality!r}}})"
        )


class S4UNet2d(S4UNet3d):
    """The same network without time: it encodes single images, and a series date by date."""

    consumes: ClassVar[Literal["image", "series"]] = "image"

    def encode(self, inputs: Inputs, wanted: Wanted) -> dict[str, Encoded]:
        """See :meth:`Backbone.encode`: an image is a series of one date."""
        encoded = super().encode(
            Inputs(
                images={m: x[:, None] for m, x in inputs.images.items()},
                valid={m: mask[:, None] for m, mask in inputs.valid.items()},
                size=inputs.size,
            ),
            wanted,
        )
        return {stream: replace(e, series=None, series_valid=None) for stream, e in encoded.items()}


# -- foreign checkpoints ------------------------------------------------------------------------------


def _pastis_names() -> dict[str, str]:
    """Pair our tensor names with those of PASTIS's 3-D U-Net (Garnot and Landrieu), for optical series."""
    units = {
        "stems.s2.first": ("en3.0", "en3.1"),
        "stems.s2.second": ("en3.3", "en3.4"),
        "second.first": ("en4.0", "en4.1"),
        "second.second": ("en4.3", "en4.4"),
        "bottleneck": ("center_in.0", "center_in.1"),
        "decoders.s2.bottleneck": ("center_out.0", "center_out.1"),
        "decoders.s2.second.first": ("dc4.0", "dc4.1"),
        "decoders.s2.second.second": ("dc4.3", "dc4.4"),
        "decoders.s2.up_first": ("trans3.0", "trans3.1"),
        "decoders.s2.first.first": ("dc3.0", "dc3.1"),
        "decoders.s2.first.second": ("dc3.3", "dc3.4"),
    }
    names = {
        "decoders.s2.up_second.weight": "center_out.3.weight",
        "decoders.s2.up_second.bias": "center_out.3.bias",
    }
    for unit, (conv_name, norm_name) in units.items():
        for name in ("weight", "bias"):
            names[f"{unit}.conv.{name}"] = f"{conv_name}.{name}"
            names[f"{unit}.norm.{name}"] = f"{norm_name}.{name}"
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            names[f"{unit}.norm.statistics.s2.{name}"] = f"{norm_name}.{name}"
    return names


CHECKPOINT_FORMATS = {
    "unet3d_pastis": CheckpointFormat(modules={}, parameters=_pastis_names(), dropped=("final.",)),
}

# What tests build of every architecture of the family.
SMALL = {"widths": (4, 8, 16)}

CONFIGS = {
    "s4_unet3d": S4Config(),
    "s4_unet3d_tiny": S4Config(widths=(8, 16, 32), image_size=64),
    "s4_unet2d": S4Config(over_time=False),
}


def build(config: S4Config, *, num_classes: int = 0) -> S4UNet3d:
    """Build a network of S4, randomly initialized."""
    return (S4UNet3d if config.over_time else S4UNet2d)(config, num_classes=num_classes)
