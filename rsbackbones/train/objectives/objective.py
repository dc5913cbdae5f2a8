"""What every objective answers to."""

from torch import Tensor, nn

from rsbackbones.backbone import Backbone
from rsbackbones.train.data.batch import Batch


class Objective(nn.Module):
    """A backbone with all that is trained around it: decoder, projections.

    Modules that are to be sharded, checkpointed or compiled one by one stand in lists called ``blocks``.
    Parameters have at least one dimension (``fully_shard`` takes no scalars). There is no randomness in
    ``forward`` but ``batch.draws``. Parts of the objective that a batch has no data for are left out.
    """

    backbone: Backbone

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``loss``, a scalar to be minimised, and its parts, detached scalars, by name.

        Averaged over processes, the loss is that of the global batch; so are the gradients.
        """
        raise NotImplementedError

    def reconstruct(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Return for pictures, by modality: (image, what the encoder saw, prediction), each [B, C, H, W].

        Where nothing was seen the middle one is NaN. Empty for an objective without reconstruction.
        """
        return {}
