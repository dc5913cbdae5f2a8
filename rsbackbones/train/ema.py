"""The exponential moving average of a module's parameters."""

import torch
from torch import Tensor, nn


class Ema:
    """Averages in float32 beside the parameters: average <- decay * average + (1 - decay) * parameter.

    Sharded parameters have sharded averages.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = dict(module.named_parameters())
        self.averages: dict[str, Tensor] = {n: p.detach().clone() for n, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the parameters after a step into the averages."""
        for name, average in self.averages.items():
            average.lerp_(self._parameters[name].detach(), 1 - self.decay)
