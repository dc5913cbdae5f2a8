"""VICReg: variance, invariance, covariance.

Source: Bardes, Ponce and LeCun, VICReg, ICLR 2022, section 4.1 and algorithm 1.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from rsbackbones.train.objectives.gather import gather_rows
from rsbackbones.train.objectives.precision import full_precision, no_autocast

CHUNK = 800  # CROMA, appendix A.1
INVARIANCE, VARIANCE, COVARIANCE, EPSILON = 25.0, 25.0, 1.0, 1e-4


def vicreg(x: Tensor, y: Tensor) -> Tensor:
    """Return the VICReg loss between two embeddings of the same samples, a scalar.

    ``x`` and ``y`` are the rows of this process, [B, D], the same number in every process. Statistics are
    computed over the rows of all processes, in equal chunks of at most 800 rows (CROMA, appendix A.1). There
    is no expander: CROMA applies the loss to the representations. The invariance term is also a mean over
    dimensions, as in algorithm 1.

    Raises:
        ValueError: there are fewer than two rows.
    """
    with no_autocast(x):
        x, y = gather_rows(full_precision(x)), gather_rows(full_precision(y))
        if len(x) < 2:
            raise ValueError("VICReg needs at least two samples in the batch of all processes, got 1")
        count = math.ceil(len(x) / CHUNK)
        losses = [
            _chunk_loss(a, b) for a, b in zip(x.tensor_split(count), y.tensor_split(count), strict=True)
        ]
        return torch.stack(losses).mean()


def _chunk_loss(x: Tensor, y: Tensor) -> Tensor:
    invariance = F.mse_loss(x, y)
    variance = _variance(x) + _variance(y)
    covariance = _covariance(x) + _covariance(y)
    return INVARIANCE * invariance + VARIANCE * variance + COVARIANCE * covariance


def _variance(x: Tensor) -> Tensor:
    return F.relu(1 - (x.var(dim=0) + EPSILON).sqrt()).mean()


def _covariance(x: Tensor) -> Tensor:
    centered = x - x.mean(dim=0)
    covariance = centered.T @ centered / (len(x) - 1)  # [D, D]
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / x.shape[1]
