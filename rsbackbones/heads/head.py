"""The contract of a dense head."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn


class DenseHead(nn.Module):
    """Converts maps of a backbone, each [B, D_i, h_i, w_i], to logits [B, K, h, w].

    Attributes:
        reduction: the stride of the logits in image pixels.
        over_time: the head is a :class:`SeriesHead`.
    """

    reduction: float
    over_time: ClassVar[bool] = False

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Convert maps to logits, [B, K, h, w]."""
        raise NotImplementedError

    def units(self) -> list[nn.Module]:
        """Return the modules that are checkpointed, compiled and sharded one by one; by default none."""
        return []


class SeriesHead(DenseHead):
    """Converts the maps of every date, each [B, t, D_i, h_i, w_i], to logits [B, K, h, w]."""

    over_time: ClassVar[bool] = True

    def forward(
        self, maps: Sequence[Tensor], valid: Tensor | None = None, dates: Tensor | None = None
    ) -> Tensor:
        """Convert maps to logits.

        Args:
            maps: zeros, or any finite values, where dates are missing.
            valid: [B, t] booleans, False for missing dates, which must not affect the result; default all.
            dates: days since 1970-01-01, [B, t]; arbitrary for missing dates. ``None``: unknown.
        """
        raise NotImplementedError
