"""The temporal-multimodal (TM) block: seasons and sensors see each other by cross-attention.

Source: Li et al., SeaMo, arXiv 2412.19237, Algorithm 1, figures 3 and 14, section 3.1.4.

F_O[t] and F_R[t] are the encoded tokens of two sensors at season t, H_O[t] and H_R[t] what the block gives:

    H_O[1] = CA(query F_R[1], key and value F_O[1])
    H_O[t] = CA(query f(F_R[t], F_O[t-1]), key and value F_O[t])       for t > 1, and H_R[t] likewise

with f a linear layer from 2D to D on the channels of tokens that are paired by their index. As printed, the
algorithm's next round overwrites what the temporal lines of the round before gave, and f would get no
gradient; here they stay. ``decouple`` (figure 14 b) has no f:

    H_O[t] = CA1(query F_R[t], key and value F_O[t]) + CA2(query F_O[t-1], key and value F_O[t])

Section 3.1.4 says it otherwise: an image's own tokens ask, and those of the other sensor and of the season
before answer. That is ``query="text"``: the two sets of keys together (``fuse``), or one attention for each,
added (``decouple``).

What the paper leaves open, and what we do:

- Pre-norm, a residual around the attention and an MLP of ratio 4 after it, as in the encoder, and a LayerNorm
  at the end as the encoder has one. The residual is the query's: output tokens lie where the query of the
  current season lies (with masks, at the other sensor's patches), so keys have nothing to be added to. In
  ``decouple`` it is the first query's.
- Each sensor has weights of its own: keys of radar and of optical images mean different things, and the text
  speaks of f as "the fully connected layers". All seasons share them, as they do the decoders.
- The season before is that of the same sensor. Where it is missing, it is the last one that is there; where
  there is none, the formula is that of t = 1. Where the other sensor is missing, the sensor's own tokens
  stand in for it. No pixel is made up.

Shapes: B series, T seasons, N tokens, D wide.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from rsbackbones.layers.attention import CrossAttention, key_mask
from rsbackbones.layers.mlp import MLP

Fusion = Literal["fuse", "decouple"]
Query = Literal["algorithm", "text"]


class _Attend(nn.Module):
    """Cross-attention of normalised queries over a normalised context."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm_query = nn.LayerNorm(dim)
        self.norm_context = nn.LayerNorm(dim)
        self.cross = CrossAttention(dim, num_heads, qkv_bias=True)

    def forward(self, query: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        out: Tensor = self.cross(self.norm_query(query), self.norm_context(context), mask)
        return out


class _SensorFusion(nn.Module):
    """The block of one sensor, one season at a time."""

    def __init__(self, dim: int, num_heads: int, *, mlp_ratio: float, fusion: Fusion, query: Query) -> None:
        super().__init__()
        self.from_text = query == "text"
        self.attend = _Attend(dim, num_heads)
        self.attend_previous = _Attend(dim, num_heads) if fusion == "decouple" else None
        self.fuse = nn.Linear(2 * dim, dim) if fusion == "fuse" and not self.from_text else None
        self.norm_mlp = nn.LayerNorm(dim)
        self.mlp = MLP(dim, int(dim * mlp_ratio))
        self.norm = nn.LayerNorm(dim)

    def forward(self, own: Tensor, other: Tensor, previous: Tensor | None, seen: Tensor | None) -> Tensor:
        """Return H of a season, [B, N, D].

        Args:
            own, other: the tokens of this sensor and of the other one, [B, N, D].
            previous: this sensor's tokens of the season before, [B, N, D]; ``None`` at the first.
            seen: [B] booleans, False where there is none after all; ``None``: there is everywhere.
        """
        if self.from_text:
            x = own + self._answers(own, other, previous, seen)
        else:
            x = self._asks(own, other, previous, seen)
        x = x + self.mlp(self.norm_mlp(x))
        out: Tensor = self.norm(x)
        return out

    def _asks(self, own: Tensor, other: Tensor, previous: Tensor | None, seen: Tensor | None) -> Tensor:
        """As in Algorithm 1: the other sensor, and the season before, ask."""
        query = other
        if previous is not None and self.fuse is not None:
            query = _where(seen, self.fuse(torch.cat((other, previous), dim=-1)), other)
        x: Tensor = query + self.attend(query, own)
        if previous is not None and self.attend_previous is not None:
            x = _where(seen, x + self.attend_previous(previous, own), x)
        return x

    def _answers(self, own: Tensor, other: Tensor, previous: Tensor | None, seen: Tensor | None) -> Tensor:
        """As in section 3.1.4: the image's own tokens ask."""
        if previous is None:
            first: Tensor = self.attend(own, other)
            return first
        if self.attend_previous is not None:
            x: Tensor = self.attend(own, other)
            return _where(seen, x + self.attend_previous(own, previous), x)
        mask = None
        if seen is not None:
            ones = torch.ones_like(seen)[:, None].expand(-1, other.shape[1])
            present = torch.cat((ones, seen[:, None].expand(-1, previous.shape[1])), dim=1)
            mask = key_mask(present, own.dtype)
        both: Tensor = self.attend(own, torch.cat((other, previous), dim=1), mask)
        return both


class TemporalMultimodal(nn.Module):
    """The TM block of one or two sensors; one alone stands in for the other."""

    def __init__(
        self, sensors: tuple[str, ...], dim: int, num_heads: int, *, mlp_ratio: float, fusion: Fusion,
        query: Query,
    ) -> None:  # fmt: skip
        super().__init__()
        self.query = query
        self.sensors = nn.ModuleDict(
            {
                m: _SensorFusion(dim, num_heads, mlp_ratio=mlp_ratio, fusion=fusion, query=query)
                for m in sensors
            }
        )

    def forward(self, tokens: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return H of every sensor, [B, T, N, D]; of missing seasons finite and without meaning.

        Args:
            tokens: by sensor, of seasons in order of time, [B, T, N, D].
            present: by sensor, [B, T] booleans, False where a season is missing; a sensor that is not named
                has all.
        """
        return {m: self._of_sensor(m, tokens, present) for m in tokens}

    def _of_sensor(self, m: str, tokens: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        partner = next((other for other in tokens if other != m), m)
        here, there = present.get(m), present.get(partner)
        previous: Tensor | None = None
        seen: Tensor | None = None
        seasons = []
        for t in range(tokens[m].shape[1]):
            own = tokens[m][:, t]
            other = _where(None if there is None else there[:, t], tokens[partner][:, t], own)
            seasons.append(self.sensors[m](own, other, previous, seen))
            if here is None:
                previous = own
            else:
                previous = own if previous is None else _where(here[:, t], own, previous)
                seen = here[:, t] if seen is None else seen | here[:, t]
        return torch.stack(seasons, dim=1)

    def lies_at_partner(
        self, sensor: str, sensors: tuple[str, ...], present: Mapping[str, Tensor]
    ) -> Tensor | bool:
        """Return whether a sensor's output tokens lie at the patches of the other one: [B, T], or of all.

        With masks of their own, sensors keep different patches; see the residual in the module's text.
        """
        partner = next((other for other in sensors if other != sensor), sensor)
        if self.query == "text" or partner == sensor:
            return False
        return present.get(partner, True)


def _where(condition: Tensor | None, x: Tensor, otherwise: Tensor) -> Tensor:
    """``x`` where a condition [B] holds (``None``: everywhere), else ``otherwise``; both [B, N, D]."""
    return x if condition is None else torch.where(condition[:, None, None], x, otherwise)
