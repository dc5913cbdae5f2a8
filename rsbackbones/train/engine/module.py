"""What a run trains."""

from collections.abc import Sequence

from torch import Tensor, nn

from rsbackbones.layers.weight_decay import collect_no_weight_decay
from rsbackbones.train.engine.batch import Batch
from rsbackbones.train.engine.step import Step


class TrainModule(nn.Module):
    """A module that computes its own loss: a batch in, ``{"loss": ..., parts}`` out.

    Parameters have at least one dimension (``fully_shard`` takes no scalars). ``forward`` reads buffers and
    writes none of its own, except for BatchNorm's; what else changes from step to step changes in
    :meth:`after_step`.
    """

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``loss``, a scalar to be minimized, and its parts, detached scalars, by name.

        Averaged over processes and micro-batches, the loss is that of the global batch; so are the gradients.
        """
        raise NotImplementedError

    def units(self) -> list[nn.Module]:
        """Return the modules that are checkpointed, compiled and sharded one by one, such as a network's
        blocks.

        None of them contains another. By default there are none, and a run that needs units refuses the
        module.
        """
        return []

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters of two or more dimensions that are not decayed.

        By default those that the modules inside state (a position table, a mask token).
        """
        return collect_no_weight_decay(self)

    def after_step(self, batches: Sequence[Batch], step: Step) -> None:
        """Update what the optimizer does not: a momentum encoder, a queue. By default nothing.

        Called without gradients after every update of the optimizer, on every process.

        Args:
            batches: this process's micro-batches of the step, on its device.
            step: the step that was taken.
        """
