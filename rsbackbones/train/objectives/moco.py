"""The parts of MoCo: a queue of keys, the contrast with it, and the momentum encoder.

He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020 (algorithm 1), and
Chen et al., "Improved Baselines with Momentum Contrastive Learning", arXiv 2003.04297.

Shapes: B samples, D dimensions of an embedding, K keys in the queue.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Queue(nn.Module):
    """The most recent keys, in a ring: the negatives of the contrast.

    Buffers: ``keys`` [K, D], rows of length 1, at first random; ``place``, the row that is written next. Both
    are in checkpoints.
    """

    keys: Tensor
    place: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        if size < 1 or dim < 1:
            raise ValueError(f"a queue needs a positive size and dim, got {size} and {dim}")
        self.register_buffer("keys", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Replace the oldest keys by ``keys`` [B, D], rows of length 1.

        Raises:
            ValueError: more keys than the queue holds.
        """
        size = len(self.keys)
        if len(keys) > size:
            raise ValueError(
                f"a queue of {size} keys cannot hold the {len(keys)} of a step: choose a larger queue, or a "
                "smaller batch"
            )
        rows = (self.place + torch.arange(len(keys), device=keys.device)) % size
        self.keys[rows] = keys.to(self.keys.dtype)
        self.place.copy_((self.place + len(keys)) % size)


def moco_loss(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Contrast every query with its own key against the keys of a queue (InfoNCE).

    Args:
        query: [B, D], rows of length 1.
        key: [B, D], rows of length 1, without gradients.
        queue: [K, D], rows of length 1, without gradients.
        temperature: divides the similarities.

    Returns:
        The mean loss over the batch, and the logits [B, 1 + K], own key first.
    """
    own = (query * key).sum(dim=1, keepdim=True)  # [B, 1]
    others = query @ queue.to(query.dtype).T  # [B, K]
    logits = torch.cat((own, others), dim=1) / temperature
    target = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    return F.cross_entropy(logits, target), logits


@torch.no_grad()
def momentum_update(key_module: nn.Module, query_module: nn.Module, momentum: float) -> None:
    """Set the parameters of the key module to ``momentum`` times their own plus the rest of the query's.

    Buffers are left alone: the key encoder has its own statistics of BatchNorm.
    """
    queries = dict(query_module.named_parameters())
    for name, parameter in key_module.named_parameters():
        parameter.lerp_(queries[name].detach().to(parameter.dtype), 1 - momentum)
