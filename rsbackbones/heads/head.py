"""The contract of a dense head."""

from collections.abc import Sequence

from torch import Tensor, nn


class DenseHead(nn.Module):
    """Converts maps of a backbone, each [B, D_i, h_i, w_i], to logits [B, K, h, w].

    Attributes:
        reduction: the stride of the logits in image pixels.
    """

    reduction: float

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Convert maps to logits, [B, K, h, w]."""
        raise NotImplementedError

    def units(self) -> list[nn.Module]:
        """Return the modules that are checkpointed, compiled and sharded one by one; by default none."""
        return []
