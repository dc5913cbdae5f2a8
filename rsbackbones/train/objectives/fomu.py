"""FoMu-SSL's pretraining: MoCo-v2 on pictures, guided by a frozen ImageNet network, on radar images too.

Seo, Jung and Kim, "FoMu-SSL: Foundation Model-Guided Multi-Sensor Self-Supervised Learning for Remote
Sensing", ICML 2024 workshop. Two views of a picture are contrasted (equation 1, He et al., MoCo, and Chen et
al., MoCo-v2), and the features of the query's view are drawn to those of the oracle (equations 3 to 5; see
:mod:`rsbackbones.train.objectives.guidance`). Without guidance this is MoCo-v2:
``FomuObjective(guidance=GuidanceOptions(rgb=0, sar=0, initial_oracle=False))``.

What the paper leaves open, and our choices:

- "The provided configuration" of MMSelfSup (appendix D) has a momentum of 0.999, the paper 0.9999, which is
  the default here. The head and the views are the configuration's.
- The paper trains on 2 GPUs of 128 images each. ``bn_groups`` is how many groups the global batch is
  normalized in, whatever the number of processes and micro-batches: one process with two groups computes what
  two processes do. The running statistics are the mean over the groups.
- Keys are shuffled over the global batch before they are normalized (MoCo, section 3.3), by the order of a
  number that each sample draws from its own generator: it depends on the seed and the step alone.
- Keys and queue change once per optimizer step. With ``accumulate`` all passes see the queue of the step
  before, and the keys of all are pushed.
- ``z_s`` are the pooled features before the head (the paper writes q = z_s; the oracle has no such head).
- The queue and the momentum encoder are carried into the next stage, with the weights. So the second phase
  begins with keys of the first one's pictures, which its own replace.

Shapes: B samples of a micro-batch, D channels of features, K keys.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from rsbackbones.input_spec import InputSpec
from rsbackbones.layers.process_sum import world_size
from rsbackbones.models.backbone import Backbone
from rsbackbones.sensors import RGB
from rsbackbones.train.engine.batch import Batch
from rsbackbones.train.engine.batch_norm import set_batch_norm
from rsbackbones.train.engine.config import Count, Positive, ShareBelowOne
from rsbackbones.train.engine.errors import TrainingError
from rsbackbones.train.engine.step import Step
from rsbackbones.train.objectives.checks import check_no_head, noise_of
from rsbackbones.train.objectives.gather import gather_rows
from rsbackbones.train.objectives.guidance import RADAR, Guidance, GuidanceOptions, radar_input
from rsbackbones.train.objectives.moco import Queue, moco_loss, momentum_update
from rsbackbones.train.objectives.objective import Objective, ObjectiveConfig
from rsbackbones.train.objectives.precision import full_precision, no_autocast

if TYPE_CHECKING:
    from rsbackbones.train.recipe import Recipe

# The noise by which the keys of a batch are shuffled.
_ORDER = "order"


@dataclass(frozen=True, kw_only=True)
class FomuObjective(ObjectiveConfig):
    """The options of FoMu-SSL's objective; the defaults are the paper's.

    Attributes:
        method: the name of the method in recipes.
        queue: the number of keys, K.
        momentum: of the key encoder; MMSelfSup's configuration has 0.999.
        temperature: divides the similarities.
        dim: the outputs of the head.
        bn_groups: how many groups the global batch is normalized in; a multiple of the number of processes
            times micro-batches.
        guidance: see :class:`~rsbackbones.train.objectives.guidance.GuidanceOptions`.
    """

    stage_options: ClassVar[tuple[str, ...]] = ("momentum", "temperature", "bn_groups", "guidance")
    views: ClassVar[tuple[str, ...]] = ("query", "key")
    looks: ClassVar[bool] = True

    method: Literal["fomu"] = "fomu"
    queue: Count = 65536
    momentum: ShareBelowOne = 0.9999
    temperature: Positive = 0.2
    dim: Count = 128
    bn_groups: Count = 2
    guidance: GuidanceOptions = field(default_factory=GuidanceOptions)

    def task_images(self, task: str) -> Mapping[str, int] | None:
        """See :meth:`ObjectiveConfig.task_images`: radar beside pictures, if it guides."""
        return {"rgb": 1, RADAR: 1} if self.guidance.sar else None

    @property
    def needs_note(self) -> str:
        """See :attr:`ObjectiveConfig.needs_note`."""
        return " (with objective.guidance.sar=0 no s1)" if self.guidance.sar else ""

    def target_inputs(self, backbone: Backbone) -> Mapping[str, InputSpec]:
        """See :meth:`ObjectiveConfig.target_inputs`: radar images as pictures."""
        if not self.guidance.sar:
            return {}
        return {RADAR: radar_input(backbone.inputs["rgb"], self.guidance.sar_channel)}

    def sample_noise(
        self, generator: torch.Generator, modalities: tuple[str, ...], grid: tuple[int, int]
    ) -> dict[str, Tensor]:
        """See :meth:`ObjectiveConfig.sample_noise`: one number, by which keys are shuffled."""
        return {_ORDER: torch.rand((), generator=generator)}

    def check_run(self, options: "Recipe") -> None:
        """See :meth:`ObjectiveConfig.check_run`."""
        batch, accumulate, groups = options.batch_size, options.accumulate, self.bn_groups
        if self.queue < batch:
            raise ValueError(
                f"objective.queue={self.queue} cannot hold the {batch} keys of a step: raise it, or lower "
                "batch_size"
            )
        if batch % groups:
            raise ValueError(
                f"objective.bn_groups={groups} does not divide batch_size={batch}: choose a multiple as the "
                "batch, or another number of groups"
            )
        if groups % accumulate:
            raise ValueError(
                f"objective.bn_groups={groups} must be a multiple of accumulate={accumulate}, as a group "
                "lies in one pass: raise bn_groups"
            )
        if options.batch_norm != "local":
            raise ValueError(
                f"batch_norm={options.batch_norm}: this method has objective.bn_groups instead; leave "
                "batch_norm and batch_norm_group out"
            )
        if options.ema:
            raise ValueError(
                f"ema={options.ema} would average the queue, too, and this method has an average of its own, "
                "the momentum encoder: leave ema at 0"
            )
        if options.parallel == "fsdp":
            raise ValueError("parallel=fsdp cannot shard the momentum encoder of this method: pass ddp")

    def build(self, backbone: Backbone) -> "FomuPretraining":
        """Build the objective around ``backbone``.

        Raises:
            ValueError: the backbone has a head, no BatchNorm, or takes anything but red, green and blue.
        """
        return FomuPretraining(self, backbone)


class FomuPretraining(Objective):
    """A query encoder and its head, which train, and the same two as averages, which make the keys."""

    options: FomuObjective

    def __init__(self, options: FomuObjective, backbone: Backbone) -> None:
        super().__init__()
        check_no_head(backbone)
        colors = tuple(band.name for band in RGB.bands)
        if list(backbone.bands.items()) != [("rgb", colors)]:
            raise ValueError(
                f"FoMu's objective trains a model of the modality rgb with the bands {', '.join(colors)}, "
                f"got {dict(backbone.bands)}; Sentinel-2 images serve it, too (data.units.rgb=dn)"
            )
        self.options = options
        self.backbone = backbone
        dim = backbone.num_features
        self.head = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, options.dim))
        self.momentum_encoder = copy.deepcopy(self._query_encoder()).requires_grad_(False)
        self.queue = Queue(options.queue, options.dim)
        self.guidance = Guidance(options.guidance, dim)
        set_batch_norm(self, "grouped", 1)  # of as many rows as the first batch says
        self._keys: Tensor | None = None  # of the step, until they are pushed

    def begin(self, *, first: bool, resumed: bool) -> dict[str, Any]:
        """See :meth:`Objective.begin`: the oracle, which the encoders begin with."""
        if self.options.bn_groups % world_size():
            raise TrainingError(
                f"objective.bn_groups={self.options.bn_groups} must be a multiple of the {world_size()} "
                f"processes: pass objective.bn_groups={world_size()}, or run on other processes"
            )
        record = self.guidance.load_oracle(self.backbone, first=first)
        if first and not resumed and self.options.guidance.initial_oracle:
            self.guidance.initialize(self.backbone)
            momentum_update(self.momentum_encoder, self._query_encoder(), 0.0)
            copied = dict(self.backbone.named_buffers())
            for name, buffer in self.momentum_encoder["backbone"].named_buffers():
                buffer.copy_(copied[name])
        return record

    def usage_note(self) -> str:
        """See :meth:`Objective.usage_note`: the oracle, whose weights or features are in these."""
        guidance = self.options.guidance
        did = {"began with": guidance.initial_oracle, "was guided by": bool(self.guidance.weights)}
        does = [verb for verb, really in did.items() if really]
        return f"It {' and '.join(does)} the oracle {guidance.oracle}." if does else ""

    def before_step(self, batches: Sequence[Batch]) -> Sequence[Batch]:
        """Compute the keys of a step, over the global batch in shuffled order; ``prepared["key"]``, [B, dim].

        Raises:
            ValueError: the processes and micro-batches do not divide the groups, or a batch lacks a view.
        """
        batches = [batch.to(self.queue.keys.device) for batch in batches]
        self._set_groups(batches)
        images = gather_rows(torch.cat([_view(batch, "key") for batch in batches]))
        order = gather_rows(torch.cat([noise_of(batch, _ORDER) for batch in batches])).argsort()
        mine = images[order.chunk(world_size())[_rank()]]
        shuffled = gather_rows(torch.cat([self._key(x) for x in mine.split(len(batches[0]))]))
        keys = shuffled[order.argsort()].chunk(world_size())[_rank()]
        self._keys = shuffled
        parts = keys.split([len(batch) for batch in batches])
        return [replace(b, prepared={"key": x}) for b, x in zip(batches, parts, strict=True)]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """See :meth:`Objective.forward`. Parts: ``ssl``, and of the guidance ``rgb`` and ``sar``.

        Views are [B, 3, H, W], radar [B, 1, H, W].

        Raises:
            ValueError: as :meth:`before_step`, or a batch lacks the radar images that guide.
        """
        if "key" not in batch.prepared:  # a step of this batch alone
            with torch.no_grad():
                (batch,) = self.before_step([batch])
        query = _view(batch, "query")
        features = self.backbone({"rgb": query})  # [B, D]
        projected = self.head(features)
        with no_autocast(features):
            q = F.normalize(full_precision(projected), dim=1)
            loss, _ = moco_loss(q, batch.prepared["key"], self.queue.keys, self.options.temperature)
            parts = {"ssl": loss.detach()}
        guided, of_guidance = self.guidance(features, query, batch.views["query"].get(RADAR))
        return {"loss": loss + guided, **parts, **of_guidance}

    def learning_rate_scales(self) -> dict[str, float]:
        """See :meth:`TrainModule.learning_rate_scales`."""
        return {f"guidance.{name}": scale for name, scale in self.guidance.learning_rate_scales().items()}

    def after_step(self, batches: Sequence[Batch], step: Step) -> None:
        """See :meth:`TrainModule.after_step`: update the momentum encoder, and push the keys of the step."""
        momentum_update(self.momentum_encoder, self._query_encoder(), self.options.momentum)
        assert self._keys is not None
        self.queue.push(self._keys)
        self._keys = None

    def _query_encoder(self) -> nn.ModuleDict:
        return nn.ModuleDict({"backbone": self.backbone, "head": self.head})

    def _key(self, images: Tensor) -> Tensor:
        projected = self.momentum_encoder["head"](self.momentum_encoder["backbone"]({"rgb": images}))
        return F.normalize(full_precision(projected), dim=1)

    def _set_groups(self, batches: Sequence[Batch]) -> None:
        """Set how many rows of a micro-batch are normalized together."""
        pieces, groups = world_size() * len(batches), self.options.bn_groups
        rows = len(batches[0]) * pieces
        if groups % pieces or rows % groups:
            raise TrainingError(
                f"objective.bn_groups={groups} must be a multiple of {world_size()} processes x "
                f"{len(batches)} micro-batches, and divide the batch of {rows}: choose such a number, or "
                "other processes"
            )
        set_batch_norm(self, "grouped", rows // groups)
        self.guidance.set_groups(rows // groups)


def _view(batch: Batch, name: str) -> Tensor:
    """Return the pictures of a view, [B, 3, H, W]."""
    if "rgb" not in batch.views.get(name, {}):
        raise ValueError(
            f"the batch has no view {name!r} of rgb; it has "
            + (", ".join(f"{view} of {' and '.join(x)}" for view, x in batch.views.items()) or "no views")
        )
    return batch.views[name]["rgb"]


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
