"""What a dense head is to the model that holds it."""

from collections.abc import Sequence

from torch import Tensor, nn


class DenseHead(nn.Module):
    """Maps of a backbone, each [B, D_i, h_i, w_i], to logits [B, K, h, w].

    Attributes:
        reduction: pixels of the image per pixel of the logits, along each side.
    """

    reduction: float

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """See the class."""
        raise NotImplementedError

    def units(self) -> list[nn.Module]:
        """Return the modules that activation checkpointing, compilation and FSDP treat one by one."""
        return []
