"""What is trained: a model with its head, and the loss that its labels ask for."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch.distributed as dist
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy  # type: ignore[attr-defined]
from torch import Tensor, nn

from rsbackbones.backbone import Backbone, unwrapped
from rsbackbones.eval.labelled import IGNORED, Task
from rsbackbones.layers.recompute import blocks_of
from rsbackbones.train.engine.batch import Batch
from rsbackbones.train.engine.distributed import DistributedContext
from rsbackbones.train.engine.module import TrainModule
from rsbackbones.train.finetune.samples import LabelledBatch
from rsbackbones.train.objectives.precision import full_precision, no_autocast


class Finetuning(TrainModule):
    """A model and its loss: batch -> ``loss``, and for single labels ``accuracy`` where nothing was mixed.

    The loss is a mean over samples, classes and labelled pixels. Of pixels, a batch says by how many: by what
    :func:`evenly_counted` gives, means over processes and passes are that of the global batch. Where none is
    labelled the loss is 0. What joins the dates of a series stays as it is: the model is given single images.

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
        if (idle := self.backbone.blocks_across_dates()) is not None:
            idle.requires_grad_(False)
        if self.freeze:
            self.backbone.requires_grad_(False)
            self.backbone.get_classifier().requires_grad_(True)

    @property
    def backbone(self) -> Backbone:
        """The backbone of the model."""
        return unwrapped(self.model)

    def train(self, mode: bool = True) -> "Finetuning":
        """Set the mode, of a frozen backbone never to training."""
        super().train(mode)
        if self.freeze:
            self.backbone.eval()
        return self

    def units(self) -> list[nn.Module]:
        """See :meth:`TrainModule.units`: the backbone's blocks."""
        return blocks_of(self.model)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss and what else is logged."""
        assert isinstance(batch, LabelledBatch)
        output = self.model(batch.images)
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

        Layers are counted from the head down. The head, what pools, and what ends a stream are one with the
        last block; a tokenizer and positions are a layer below the first block. A sensor's blocks are below
        the joint ones, where joint tokens have blocks of their own. What joins dates is not trained.
        """
        backbone = self.backbone
        depths = {s: n for s, n in backbone.stream_depths.items() if s not in backbone.mean_streams}
        joint = depths.get("joint", 0)
        own = {name for name, _ in backbone.named_parameters() if not name.startswith("head.")}
        prefixes = {s: _parent(self.backbone, self.backbone.final_norm(s)) for s in depths}
        deepest = max(depth + (joint if s != "joint" else 0) for s, depth in depths.items()) + 1

        def layer(name: str) -> tuple[int]:
            name = name.removeprefix("model.").removeprefix("backbone.")
            if name not in own:
                return (deepest - 1,)
            for stream, prefix in prefixes.items():
                if not name.startswith(prefix):
                    continue
                above = joint if stream != "joint" else 0
                part = name.removeprefix(prefix)
                if part.startswith("blocks."):
                    return (deepest - above - depths[stream] + int(part.split(".")[1]),)
                if not part.startswith("norm."):
                    return (deepest - above - depths[stream] - 1,)
                return (deepest - above - 1,)
            return (deepest - 1,)

        return layer


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


def _parent(backbone: Backbone, module: nn.Module) -> str:
    """The name of the module that holds another, with a dot; empty for the backbone itself."""
    name: str = next(n for n, m in backbone.named_modules() if m is module)
    above = name.rpartition(".")[0]
    return above and above + "."
