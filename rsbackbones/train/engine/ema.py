"""The exponential moving average of parameters and buffers."""

import torch
from torch import Tensor, nn


class ParameterEma:
    """Averages of the state of a module: average <- decay * average + (1 - decay) * value.

    Covers the whole state dict: parameters and floating-point buffers (running statistics of BatchNorm) are
    averaged in their own dtype, other buffers (counters) are copied. Averages of sharded parameters are
    sharded.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._module = module
        self.averages: dict[str, Tensor] = {n: x.detach().clone() for n, x in module.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Update the averages with the state after a step."""
        for name, value in self._module.state_dict().items():
            average = self.averages[name]
            if average.is_floating_point():
                average.lerp_(value.detach(), 1 - self.decay)
            else:
                average.copy_(value)

    def buffers(self) -> list[Tensor]:
        """Return the averages of buffers. Unlike those of parameters they may differ between processes."""
        return [self.averages[name] for name, _ in self._module.named_buffers() if name in self.averages]
