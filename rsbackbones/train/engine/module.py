"""The module that a run trains."""

from collections.abc import Sequence

from torch import Tensor, nn

from rsbackbones.layers.weight_decay import collect_no_weight_decay
from rsbackbones.train.engine.batch import Batch
from rsbackbones.train.engine.step import Step


class TrainModule(nn.Module):
    """A module that computes its own loss: a batch in, ``{"loss": ..., parts}`` out.

    Parameters have at least one dimension (``fully_shard`` does not support scalars). ``forward`` does not
    write to buffers, except for those of BatchNorm; other updates belong in :meth:`after_step`.
    """

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``loss``, a scalar to minimize, and its parts, detached scalars, by name.

        The mean over processes and micro-batches must be the loss of the global batch, with its gradients.
        """
        raise NotImplementedError

    def units(self) -> list[nn.Module]:
        """Return the modules that are checkpointed, compiled and sharded separately, such as blocks.

        None of them contains another. By default there are none; a run that needs them raises an error.
        """
        return []

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters of two or more dimensions that are not decayed.

        By default those that the modules inside state (a position table, a mask token).
        """
        return collect_no_weight_decay(self)

    def before_step(self, batches: Sequence[Batch]) -> Sequence[Batch]:
        """Compute what needs all samples of a step at once, such as keys. By default nothing.

        Called without gradients before the passes of every step, on every process.

        Args:
            batches: the micro-batches of this process in the step, not yet on its device.

        Returns:
            The batches that :meth:`forward` gets, in the same order.
        """
        return batches

    def learning_rate_scales(self) -> dict[str, float]:
        """Return by name the parameters that have a multiple of the learning rate. By default none."""
        return {}

    def after_step(self, batches: Sequence[Batch], step: Step) -> None:
        """Update state that the optimizer does not update: a momentum encoder, a queue. By default nothing.

        Called without gradients after every optimizer step, on every process.

        Args:
            batches: the micro-batches of this process in the step, on its device.
            step: the step.
        """
