"""The training module of fine-tuning: a model with its head, and the loss of its task."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch.distributed as dist
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy  # type: ignore[attr-defined]
from torch import Tensor, nn

from rsbackbones.data.labelled.dataset import IGNORED, Task
from rsbackbones.data.series import model_arguments
from rsbackbones.heads.dense import DenseModel
from rsbackbones.heads.fcn import FCNHead
from rsbackbones.heads.head import DenseHead
from rsbackbones.models.backbone import Backbone, unwrap_model
from rsbackbones.models.unused import called_units, freeze_unused
from rsbackbones.train.engine.batch import Batch
from rsbackbones.train.engine.distributed import DistributedContext
from rsbackbones.train.engine.module import TrainModule
from rsbackbones.train.finetune.samples import LabelledBatch
from rsbackbones.train.objectives.precision import full_precision, no_autocast


class Finetuning(TrainModule):
    """A model with the loss of a task: batch -> ``loss``, and ``accuracy`` for classes.

    The loss is a mean over samples, classes and labelled pixels; it is 0 if no pixel is labelled. For label
    maps it is divided by the number of labelled pixels of the *global* batch (see
    :func:`normalize_by_global_pixels`), so that it does not depend on how samples are split over processes
    and micro-batches. Parameters that do not affect the output (other streams, a temporal block) are frozen.
    Dates and masks of series are passed to the model.

    Args:
        model: a backbone with a classifier, or a dense model.
        task: the kind of labels.
        freeze: train only the head of a backbone. (Dense models have their own option.)
        auxiliary: the weight of a second loss, of an :class:`FCNHead` on the last map but one of a dense
            model; 0: none.
    """

    def __init__(self, model: nn.Module, task: Task, *, freeze: bool = False, auxiliary: float = 0.0) -> None:
        super().__init__()
        self.model, self.task = model, task
        self.freeze = freeze and isinstance(model, Backbone)
        self.soft, self.binary = SoftTargetCrossEntropy(), BinaryCrossEntropy(smoothing=0.0)
        self.auxiliary = auxiliary
        self.auxiliary_head: FCNHead | None = None
        if auxiliary:
            assert isinstance(model, DenseModel)
            assert model.indices is not None
            stages = self.backbone.stages(model.stream or self.backbone.default_stream)
            self.auxiliary_head = FCNHead(stages[model.indices[-2]].channels, model.num_classes)
        # DDP waits for the gradients of trainable parameters, and AdamW decays them.
        if isinstance(model, Backbone):
            freeze_unused(model, lambda images, **series: [model(images, **series)])
        if self.freeze:
            self.backbone.requires_grad_(False)
            self.backbone.get_classifier().requires_grad_(True)

    @property
    def backbone(self) -> Backbone:
        """The backbone of the model."""
        return unwrap_model(self.model)

    def train(self, mode: bool = True) -> "Finetuning":
        """Set the mode. A frozen backbone stays in ``eval()`` mode."""
        super().train(mode)
        if self.freeze:
            self.backbone.eval()
        return self

    def units(self) -> list[nn.Module]:
        """See :meth:`TrainModule.units`."""
        head = getattr(self.model, "head", None)
        return [*called_units(self.backbone), *(head.units() if isinstance(head, DenseHead) else [])]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss and other logged values."""
        assert isinstance(batch, LabelledBatch)
        series = model_arguments(batch.dates, batch.valid, self.backbone.modalities)
        if not isinstance(self.model, DenseModel):
            output = self.model(batch.images, **series)
            with no_autocast(output):
                return self._losses(full_precision(output), batch.target, batch.counted)
        # Without NaN in masked cells: the labels say which pixels the loss ignores.
        if self.auxiliary_head is None:
            output = self.model.logits(batch.images, **series)
            with no_autocast(output):
                return self._losses(full_precision(output), batch.target, batch.counted)
        maps = self.model.maps(batch.images, **series)
        output, beside = self.model.decode(maps, batch.images), self.auxiliary_head(maps[-2])
        with no_autocast(output):
            losses = self._losses(full_precision(output), batch.target, batch.counted)
            enlarged = F.interpolate(full_precision(beside), batch.target.shape[-2:], mode="bilinear")
            second = self._losses(enlarged, batch.target, batch.counted)["loss"]
            return losses | {"loss": losses["loss"] + self.auxiliary * second, "auxiliary": second.detach()}

    def _losses(self, output: Tensor, target: Tensor, counted: float | None) -> dict[str, Tensor]:
        if self.task == "classes":
            right = output.argmax(1) == target.argmax(1)
            return {"loss": self.soft(output, target), "accuracy": right.float().mean().detach()}
        if self.task == "multilabel":
            return {"loss": self.binary(output, target)}
        # Softmax leaves log-probabilities (change) unchanged, so that this loss applies to both tasks.
        sums = F.cross_entropy(output, target, ignore_index=IGNORED, reduction="sum")
        pixels = labelled_pixels(target) if counted is None else counted
        return {"loss": sums / (pixels or 1)}  # without labelled pixels the sum is 0

    def group_matcher(self, coarse: bool = False) -> Callable[[str], Any]:
        """Return a function from parameter name to layer index, for timm's layer decay.

        Layers are those of the backbone (``Backbone.layer_groups``); a dense head belongs to the last.
        """
        of_backbone, last = self.backbone.parameter_depths(), len(self.backbone.layer_groups()) - 1
        depths = {id(p): of_backbone[name] for name, p in self.backbone.named_parameters()}
        layers = {name: depths.get(id(p), last) for name, p in self.named_parameters()}
        return lambda name: (layers[name],)


def normalize_by_global_pixels(
    batches: Sequence[LabelledBatch], processes: DistributedContext
) -> list[LabelledBatch]:
    """Set ``counted`` of a step's micro-batches to the mean number of labelled pixels per micro-batch.

    If losses are divided by it, their mean over processes and micro-batches is the mean over all labelled
    pixels of the step. Every process must call this.
    """
    mine = float(sum(labelled_pixels(batch.target) for batch in batches))
    everywhere = processes.reduce([mine], dist.ReduceOp.SUM)[0]
    average = everywhere / (len(batches) * processes.world_size)
    return [replace(batch, counted=average) for batch in batches]


def labelled_pixels(target: Tensor) -> int:
    """Return the number of pixels of label maps that are not ignored."""
    return int((target != IGNORED).sum())
