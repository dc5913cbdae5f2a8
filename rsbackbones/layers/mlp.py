"""The feed-forward network of a transformer block."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The largest hidden layer, in bytes, that is computed at once without gradients. Larger blocks of memory are
# returned to the system after each use, and mapping their pages again takes longer than the GELU.
_LARGEST_HIDDEN = 16 * 2**20


class MLP(nn.Module):
    """Linear, GELU (exact), Linear over the last dimension: [..., D] to [..., D]."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._network(x)
        tokens = x.flatten(0, -2)
        step = max(1, _LARGEST_HIDDEN // (self.fc1.out_features * x.itemsize))
        if len(tokens) <= step:
            return self._network(x)
        return torch.cat([self._network(some) for some in tokens.split(step)]).view(x.shape)

    def _network(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out
