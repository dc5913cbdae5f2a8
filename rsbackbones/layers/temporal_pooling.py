"""From the maps of all dates of a series to one map: a ConvLSTM, attention, or the mean.

Each takes x [B, T, D, h, w], ``valid`` [B, T] booleans and ``dates`` [B, T] (days, or ``None``), and returns
[B, D', h, w]. Missing dates have no effect: a series gives the same alone and in a padded batch. Values of
missing dates must be finite. Of a series without a valid date the result is finite and arbitrary.
"""

import torch
from torch import Tensor, nn


class ConvLSTM(nn.Module):
    """The last hidden state of a convolutional LSTM, after the last valid date.

    Source: Shi et al., NeurIPS 2015, without peepholes. The state of a series does not change at a date that
    is missing.
    """

    def __init__(self, channels: int, width: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.width = width
        self.conv = nn.Conv2d(channels + width, 4 * width, kernel_size, padding=kernel_size // 2)

    def forward(self, x: Tensor, valid: Tensor, dates: Tensor | None = None) -> Tensor:
        """[B, T, D, h, w] to [B, width, h, w]; ``dates`` are not used."""
        hidden = cell = x.new_zeros(x.shape[0], self.width, *x.shape[-2:])
        for image, there in zip(x.unbind(1), valid.unbind(1), strict=True):
            gates = self.conv(torch.cat((image, hidden), dim=1))
            take, keep, show, new = gates.chunk(4, dim=1)
            after = keep.sigmoid() * cell + take.sigmoid() * new.tanh()
            held = there[:, None, None, None]
            cell = torch.where(held, after, cell)
            hidden = torch.where(held, show.sigmoid() * after.tanh(), hidden)
        return hidden


class LightTemporalAttention(nn.Module):
    """Attention of every pixel over its dates, with one learned query per head.

    Source: Garnot and Landrieu, "Lightweight Temporal Self-Attention", AALTD 2020 (L-TAE), per pixel. The
    paper's norm inside the MLP is BatchNorm; ours are LayerNorms, so that results do not depend on the batch.
    Positions are days since 1970-01-01 with a period of 1000, or the number of the valid date if dates are
    unknown.
    """

    PERIOD = 1000.0

    def __init__(self, channels: int, width: int, *, key_width: int = 8) -> None:
        super().__init__()
        self.heads = next(n for n in (16, 8, 4, 2, 1) if width % n == 0)
        self.width, self.key_width = width, key_width
        self.norm = nn.LayerNorm(channels)
        self.embed = nn.Linear(channels, width)
        self.key = nn.Linear(width, self.heads * key_width)
        self.query = nn.Parameter(torch.randn(self.heads, key_width) * (2 / key_width) ** 0.5)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU())

    def forward(self, x: Tensor, valid: Tensor, dates: Tensor | None = None) -> Tensor:
        """[B, T, D, h, w] to [B, width, h, w]."""
        places = valid.cumsum(dim=1) - 1 if dates is None else dates
        waves = self._waves(places).to(x.dtype)[:, :, None, None]  # [B, T, 1, 1, width]
        tokens = self.embed(self.norm(x.movedim(2, -1))) + waves  # [B, T, h, w, width]
        keys = self.key(tokens).unflatten(-1, (self.heads, self.key_width))
        scores = (keys * self.query).sum(dim=-1) / self.key_width**0.5  # [B, T, h, w, heads]
        weights = scores.masked_fill(~valid[:, :, None, None, None], torch.finfo(scores.dtype).min).softmax(1)
        values = tokens.unflatten(-1, (self.heads, -1))
        mixed = (weights[..., None] * values).sum(dim=1).flatten(-2)  # [B, h, w, width]
        out: Tensor = self.mlp(mixed).movedim(-1, 1)
        return out

    def _waves(self, places: Tensor) -> Tensor:
        """[B, T] to sines and cosines [B, T, width], of wavelengths from 2 pi to 2 pi PERIOD."""
        steps = torch.arange(self.width, device=places.device)
        angles = places[..., None] / self.PERIOD ** (2 * (steps // 2) / self.width)
        return torch.where(steps % 2 == 0, angles.sin(), angles.cos())


class ValidMean(nn.Module):
    """The mean over the valid dates, and a 1 x 1 convolution to ``width`` channels."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, width, kernel_size=1)

    def forward(self, x: Tensor, valid: Tensor, dates: Tensor | None = None) -> Tensor:
        """[B, T, D, h, w] to [B, width, h, w]; ``dates`` are not used."""
        keep = valid[:, :, None, None, None]
        count = valid.sum(dim=1).clamp(min=1).to(x.dtype)
        out: Tensor = self.project(x.masked_fill(~keep, 0).sum(dim=1) / count[:, None, None, None])
        return out
