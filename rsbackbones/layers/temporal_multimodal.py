"""The temporal-multimodal (TM) block: cross-attention between seasons and sensors.

Source: Li et al., SeaMo, arXiv 2412.19237, Algorithm 1, figures 3 and 14, section 3.1.4.

F_O[t] and F_R[t] are the encoded tokens of two sensors in season t. H_O[t] and H_R[t] are the outputs:

    H_O[1] = CA(query F_R[1], key and value F_O[1])
    H_O[t] = CA(query f(F_R[t], F_O[t-1]), key and value F_O[t])       for t > 1, and H_R[t] likewise

Here f is a linear layer from 2D to D channels on tokens paired by index. As printed, each round of the
algorithm overwrites the temporal output of the previous round, and f gets no gradient; here that output is
kept. ``decouple`` (figure 14 b) has no f:

    H_O[t] = CA1(query F_R[t], key and value F_O[t]) + CA2(query F_O[t-1], key and value F_O[t])

Section 3.1.4 describes the reverse: an image's own tokens are the queries, and the tokens of the other sensor
and of the previous season are the keys and values. That is ``query="text"``, with the two sets of keys
concatenated (``fuse``) or in two attentions that are added (``decouple``).

What the paper leaves open, and our choices:

- As in the encoder: pre-norm, a residual around the attention, an MLP of ratio 4 after it, and a final
  LayerNorm. The residual adds the query, because output tokens have the positions of the current season's
  query (with masks, the patches of the other sensor). In ``decouple`` it adds the first query.
- Each sensor has its own weights: radar and optical keys differ in meaning, and the paper writes f as "the
  fully connected layers". All seasons share the weights, as they share the decoders.
- The previous season is that of the same sensor. If it is missing, the last available one is used; if there
  is none, the formula for t = 1 applies. If the other sensor is missing, the sensor's own tokens replace it.
  No pixels are invented.

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
    """Cross-attention of normalized queries over a normalized context."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm_query = nn.LayerNorm(dim)
        self.norm_context = nn.LayerNorm(dim)
        self.cross = CrossAttention(dim, num_heads, qkv_bias=True)

    def forward(self, query: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        out: Tensor = self.cross(self.norm_query(query), self.norm_context(context), mask)
        return out


class _SensorFusion(nn.Module):
    """The TM block of one sensor, applied season by season."""

    def __init__(self, dim: int, num_heads: int, *, mlp_ratio: float, fusion: Fusion, query: Query) -> None:
        super().__init__()
        self.from_text = query == "text"
        self.attend = _Attend(dim, num_heads)
        self.attend_previous = _Attend(dim, num_heads) if fusion == "decouple" else None
        self.fuse = nn.Linear(2 * dim, dim) if fusion == "fuse" and not self.from_text else None
        self.norm_mlp = nn.LayerNorm(dim)
        self.mlp = MLP(dim, int(dim * mlp_ratio))
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, own: Tensor, other: Tensor, previous: Tensor | None, has_previous: Tensor | None
    ) -> Tensor:
        """Return H of a season, [B, N, D].

        Args:
            own, other: the tokens of this sensor and of the other one, [B, N, D].
            previous: this sensor's tokens of the previous season, [B, N, D]; ``None`` in the first season.
            has_previous: [B] booleans, False for samples without a previous season; ``None`` if all have one.
        """
        if self.from_text:
            x = own + self._key_value(own, other, previous, has_previous)
        else:
            x = self._query(own, other, previous, has_previous)
        x = x + self.mlp(self.norm_mlp(x))
        out: Tensor = self.norm(x)
        return out

    def _query(
        self, own: Tensor, other: Tensor, previous: Tensor | None, has_previous: Tensor | None
    ) -> Tensor:
        """Algorithm 1: the other sensor and the previous season are the queries."""
        query = other
        if previous is not None and self.fuse is not None:
            query = _where(has_previous, self.fuse(torch.cat((other, previous), dim=-1)), other)
        x: Tensor = query + self.attend(query, own)
        if previous is not None and self.attend_previous is not None:
            x = _where(has_previous, x + self.attend_previous(previous, own), x)
        return x

    def _key_value(
        self, own: Tensor, other: Tensor, previous: Tensor | None, has_previous: Tensor | None
    ) -> Tensor:
        """Section 3.1.4: the image's own tokens are the queries."""
        if previous is None:
            first: Tensor = self.attend(own, other)
            return first
        if self.attend_previous is not None:
            x: Tensor = self.attend(own, other)
            return _where(has_previous, x + self.attend_previous(own, previous), x)
        mask = None
        if has_previous is not None:
            ones = torch.ones_like(has_previous)[:, None].expand(-1, other.shape[1])
            present = torch.cat((ones, has_previous[:, None].expand(-1, previous.shape[1])), dim=1)
            mask = key_mask(present, own.dtype)
        both: Tensor = self.attend(own, torch.cat((other, previous), dim=1), mask)
        return both


class TemporalMultimodal(nn.Module):
    """The TM block of one or two sensors. A single sensor also takes the role of the other one."""

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
        """Return H of every sensor, [B, T, N, D]. The values for missing seasons are finite but meaningless.

        Args:
            tokens: by sensor, [B, T, N, D], with seasons in temporal order.
            present: by sensor, [B, T] booleans, False for missing seasons. Sensors that are not in the
                mapping are complete.
        """
        return {m: self._of_sensor(m, tokens, present) for m in tokens}

    def _of_sensor(self, m: str, tokens: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        partner = next((other for other in tokens if other != m), m)
        here, there = present.get(m), present.get(partner)
        previous: Tensor | None = None
        has_previous: Tensor | None = None
        seasons = []
        for t in range(tokens[m].shape[1]):
            own = tokens[m][:, t]
            other = _where(None if there is None else there[:, t], tokens[partner][:, t], own)
            seasons.append(self.sensors[m](own, other, previous, has_previous))
            if here is None:
                previous = own
            else:
                previous = own if previous is None else _where(here[:, t], own, previous)
                has_previous = here[:, t] if has_previous is None else has_previous | here[:, t]
        return torch.stack(seasons, dim=1)

    def at_paired_position(
        self, sensor: str, sensors: tuple[str, ...], present: Mapping[str, Tensor]
    ) -> Tensor | bool:
        """Return whether a sensor's output tokens have the positions of the other sensor: [B, T] or one
        value.

        With separate masks, the sensors keep different patches; see the residual in the module docstring.
        """
        partner = next((other for other in sensors if other != sensor), sensor)
        if self.query == "text" or partner == sensor:
            return False
        return present.get(partner, True)


def _where(condition: Tensor | None, x: Tensor, otherwise: Tensor) -> Tensor:
    """Return ``x`` where the condition [B] is True (``None``: everywhere), else ``otherwise``, [B, N, D]."""
    return x if condition is None else torch.where(condition[:, None, None], x, otherwise)
