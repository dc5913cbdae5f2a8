"""The exponential moving average of what is trained."""

import torch
from torch import Tensor, nn


class ParameterEma:
    """Averages beside a module: average <- decay * average + (1 - decay) * value.

    All of the state dict is covered: parameters and floating-point buffers (BatchNorm's running statistics)
    are averaged in their own type, other buffers (counters) are copied. Sharded parameters have sharded
    averages.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._module = module
        self.averages: dict[str, Tensor] = {n: x.detach().clone() for n, x in module.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the state after a step into the averages."""
        for name, value in self._module.state_dict().items():
            average = self.averages[name]
            if average.is_floating_point():
                average.lerp_(value.detach(), 1 - self.decay)
            else:
                average.copy_(value)

    def buffers(self) -> list[Tensor]:
        """Return the averages of buffers, which unlike those of parameters may differ between processes."""
        return [self.averages[name] for name, _ in self._module.named_buffers() if name in self.averages]
