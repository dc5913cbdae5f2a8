"""InfoNCE between two sensors.

Source: van den Oord, Li and Vinyals, Representation learning with contrastive predictive coding, 2018, in
both directions and with a learned temperature as in CLIP (Radford et al., ICML 2021); CROMA, section 2.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsbackbones.train.objectives.gather import first_row, gather_rows
from rsbackbones.train.objectives.hard_negatives import mix_hard_negatives
from rsbackbones.train.objectives.precision import full_precision, no_autocast

SENSORS = ("s2", "s1")


class InfoNCE(nn.Module):
    """InfoNCE loss: identify the matching row of the other sensor among the rows of all processes.

    Rows are projected linearly, with one projection per sensor, and normalized. The temperature is
    ``exp(-logit_scale)``, initially 0.07, not clamped.
    """

    def __init__(self, dim: int, *, gather_gradients: bool = True) -> None:
        """``gather_gradients=False`` detaches the keys, as in CROMA's public code."""
        super().__init__()
        self.projections = nn.ModuleDict({m: nn.Linear(dim, dim) for m in SENSORS})
        # One element, not a scalar: fully_shard does not support scalar parameters.
        self.logit_scale = nn.Parameter(torch.tensor([math.log(1 / 0.07)]))
        self.gather_gradients = gather_gradients

    @property
    def temperature(self) -> Tensor:
        """The softmax temperature, a scalar without gradient."""
        return torch.exp(-self.logit_scale.detach()).squeeze(0)

    def forward(
        self,
        rows: Mapping[str, Tensor],
        hard: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    ) -> Tensor:
        """Return the mean loss of this process's rows over both directions, a scalar.

        Args:
            rows: by sensor (``s2`` and ``s1``) [M, D]; rows with the same index match. Every process must
                have the same number of rows.
            hard: by sensor of the query, the random numbers of :func:`mix_hard_negatives`, [M, S] each.
        """
        projected = {m: self.projections[m](rows[m]) for m in SENSORS}
        with no_autocast(rows["s2"]):
            z = {m: F.normalize(full_precision(x), dim=-1) for m, x in projected.items()}
            keys = {m: gather_rows(x if self.gather_gradients else x.detach()) for m, x in z.items()}
            scale = full_precision(self.logit_scale).exp()
            start = first_row(z["s2"])
            own = torch.arange(start, start + len(z["s2"]), device=z["s2"].device)
            losses = []
            for query, key in (SENSORS, SENSORS[::-1]):
                logits = z[query] @ keys[key].T  # [M, W * M]
                if hard is not None:
                    mixed = mix_hard_negatives(z[query], keys[key], own, *hard[query])  # [M, S, D]
                    logits = torch.cat((logits, (mixed @ z[query][..., None]).squeeze(-1)), dim=1)
                losses.append(F.cross_entropy(scale * logits, own))
            return (losses[0] + losses[1]) / 2
