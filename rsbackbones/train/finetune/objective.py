"""What is trained: a model with its head, and the loss that its labels ask for."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch.distributed as dist
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy  # type: ignore[attr-defined]
from torch import Tensor, nn

from rsbackbones.data.labelled.dataset import IGNORED, Task
from rsbackbones.data.series import model_arguments
from rsbackbones.heads.head import DenseHead
from rsbackbones.models.backbone import Backbone, unwrap_model
from rsbackbones.models.unused import freeze_unused
from rsbackbones.train.engine.batch import Batch
from rsbackbones.train.engine.distributed import DistributedContext
from rsbackbones.train.engine.module import TrainModule
from rsbackbones.train.finetune.samples import LabelledBatch
from rsbackbones.train.objectives.precision import full_precision, no_autocast


class Finetuning(TrainModule):
    """A model and its loss: batch -> ``loss``, and for single labels ``accuracy`` where nothing was mixed.

    The loss is a mean over samples, classes and labelled pixels. Of pixels, a batch says by how many: by what
    :func:`evenly_counted` gives, means over processes and passes are that of the global batch. Where none is
    labelled the loss is 0. What has no part in the output (a stream, the block that joins dates) is frozen.

    Args:
        model: a backbone with a classifier, or a dense model.
        task: what a label is.
        freeze: train the head of a backbone alone; a dense model knows by itself.
    """

    def __init__(self, model: nn.Module, task: Task, *, freeze: bool = False) -> None:
        super().__init__()
        self.model, self.task = model, task
        self.freeze = freeze and isinstance(model, Backbone)
        self.soft, self.binary = SoftTargetCrossEntropy(), BinaryCrossEntropy(smoothing=0.0)
        # Parameters that never get a gradient must not wait for one (DDP) nor decay (AdamW).
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
        """Set the mode, of a frozen backbone never to training."""
        super().train(mode)
        if self.freeze:
            self.backbone.eval()
        return self

    def units(self) -> list[nn.Module]:
        """See :meth:`TrainModule.units`."""
        head = getattr(self.model, "head", None)
        return [*self.backbone.units(), *(head.units() if isinstance(head, DenseHead) else [])]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss and what else is logged."""
        assert isinstance(batch, LabelledBatch)
        series = model_arguments(batch.dates, batch.valid, self.backbone.modalities)
        output = self.model(batch.images, **series)
        with no_autocast(output):
            return self._losses(full_precision(output), batch.target, batch.counted)

    def _losses(self, output: Tensor, target: Tensor, counted: float | None) -> dict[str, Tensor]:
        if self.task == "classes":
            right = output.argmax(1) == target.argmax(1)
            return {"loss": self.soft(output, target), "accuracy": right.float().mean().detach()}
        if self.task == "multilabel":
            return {"loss": self.binary(output, target)}
        # Log-probabilities (change) are what they were after another softmax: one loss serves both.
        sums = F.cross_entropy(output, target, ignore_index=IGNORED, reduction="sum")
        pixels = labelled_pixels(target) if counted is None else counted
        return {"loss": sums / (pixels or 1)}  # of none the sum is 0

    def group_matcher(self, coarse: bool = False) -> Callable[[str], Any]:
        """Return what timm asks for layer decay: from the name of a parameter to the number of its layer.

        Layers are the backbone's (``Backbone.layer_groups``); a dense head is one with the last of them.
        """
        of_backbone, last = self.backbone.parameter_depths(), len(self.backbone.layer_groups()) - 1
        depths = {id(p): of_backbone[name] for name, p in self.backbone.named_parameters()}
        layers = {name: depths.get(id(p), last) for name, p in self.named_parameters()}
        return lambda name: (layers[name],)


def evenly_counted(batches: Sequence[LabelledBatch], processes: DistributedContext) -> list[LabelledBatch]:
    """Return a process's batches of a step with what an average one of all processes has of labelled pixels.

    A mean over processes and passes of losses that are divided by it is the mean over all labelled pixels of
    the step: each counts the same, wherever the others are. Every process calls this.
    """
    mine = float(sum(labelled_pixels(batch.target) for batch in batches))
    everywhere = processes.reduce([mine], dist.ReduceOp.SUM)[0]
    average = everywhere / (len(batches) * processes.world_size)
    return [replace(batch, counted=average) for batch in batches]


def labelled_pixels(target: Tensor) -> int:
    """Return how many pixels of label maps are not ignored."""
    return int((target != IGNORED).sum())
