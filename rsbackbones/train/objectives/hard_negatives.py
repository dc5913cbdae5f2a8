"""Synthetic hard negatives for contrastive learning.

Source: Kalantidis et al., Hard negative mixing for contrastive learning (MoCHi), NeurIPS 2020, section 3.3:
the second kind, which mixes a query with one of its hardest negatives. The first kind, pairs of negatives,
is left out, as CROMA does (s = 0, appendix A.1).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

HARDEST = 1024  # N: negatives of each query that are mixed with it
MOST_OF_QUERY = 0.5  # beta: the query's share is uniform in (0, beta), so the negative dominates


def mix_hard_negatives(queries: Tensor, keys: Tensor, own: Tensor, picks: Tensor, mixes: Tensor) -> Tensor:
    """Return synthetic negatives of every query, [M, S, D], normalized, without gradients.

    As in MoCHi they are data: the gradient of the loss reaches the query that meets them, not what they
    were mixed from.

    Args:
        queries: normalized, [M, D].
        keys: normalized, [G, D]: the positive of every query, and its negatives.
        own: which of the keys is the positive of each query, [M].
        picks: uniform in [0, 1), which of the hardest negatives is mixed, [M, S].
        mixes: uniform in [0, 1), how much of the query goes into the mixture, [M, S].

    Raises:
        ValueError: there are no negatives to mix with.
    """
    if len(keys) < 2:
        raise ValueError("hard negatives need at least two samples in the batch of all processes, got 1")
    queries, keys = queries.detach(), keys.detach()
    similarity = (queries @ keys.T).scatter(1, own[:, None], -torch.inf)
    count = min(HARDEST, len(keys) - 1)
    hardest = similarity.topk(count, dim=1).indices  # [M, count]
    chosen = hardest.gather(1, (picks * count).long().clamp(max=count - 1))  # [M, S]
    share = (mixes * MOST_OF_QUERY)[..., None].to(queries.dtype)
    return F.normalize(share * queries[:, None] + (1 - share) * keys[chosen], dim=-1)
