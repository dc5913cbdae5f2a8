"""The feed-forward network of a transformer block."""

import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Module):
    """Linear, GELU (exact), Linear over the last dimension: [..., D] to [..., D]."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out
