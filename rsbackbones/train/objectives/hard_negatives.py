"""Synthetic hard negatives for contrastive learning.

Source: Kalantidis et al., Hard negative mixing for contrastive learning (MoCHi), NeurIPS 2020, section 3.3:
the second kind, mixtures of a query with one of its hardest negatives. The first kind, mixtures of two
negatives, is not implemented: CROMA does not use it (s = 0, appendix A.1).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

NUM_HARDEST = 1024  # N: negatives of each query that are mixed with it
MAX_QUERY_WEIGHT = 0.5  # beta: the query's share is uniform in (0, beta), so the negative dominates


def mix_hard_negatives(queries: Tensor, keys: Tensor, own: Tensor, picks: Tensor, mixes: Tensor) -> Tensor:
    """Return synthetic negatives of every query, [M, S, D], normalized, without gradients (as in MoCHi).

    Args:
        queries: normalized, [M, D].
        keys: normalized, [G, D]: the positives and negatives of all queries.
        own: the index of the positive key of each query, [M].
        picks: uniform in [0, 1), select one of the hardest negatives, [M, S].
        mixes: uniform in [0, 1), select the weight of the query, [M, S].

    Raises:
        ValueError: there are no negatives.
    """
    if len(keys) < 2:
        raise ValueError("hard negatives need at least two samples in the batch of all processes, got 1")
    queries, keys = queries.detach(), keys.detach()
    similarity = (queries @ keys.T).scatter(1, own[:, None], -torch.inf)
    count = min(NUM_HARDEST, len(keys) - 1)
    hardest = similarity.topk(count, dim=1).indices  # [M, count]
    chosen = hardest.gather(1, (picks * count).long().clamp(max=count - 1))  # [M, S]
    share = (mixes * MAX_QUERY_WEIGHT)[..., None].to(queries.dtype)
    return F.normalize(share * queries[:, None] + (1 - share) * keys[chosen], dim=-1)
