"""What comes out of a backbone.

A *stream* is a sequence of patch tokens: one per modality, plus ``joint`` where the architecture fuses
sensors. Shapes: B images, T dates, C bands, H x W pixels, N = h * w patches, D dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Features:
    """Tokens and pooled embeddings of every stream that the given sensors feed.

    ``tokens[stream]`` is [B, N, D], ``pooled[stream]`` [B, D]; for series [B, T, N, D] and [B, T, D].
    ``grid`` is (h, w), ``size`` that of the images as given, (H, W) in pixels, which a padded grid exceeds.
    ``valid[stream]`` is [B, T], for series whose missing frames were marked: the tokens and embeddings of
    a missing frame are NaN, so that nobody averages over them unawares.
    """

    tokens: dict[str, Tensor]
    pooled: dict[str, Tensor]
    grid: tuple[int, int]
    size: tuple[int, int]
    patch_size: int
    valid: dict[str, Tensor] = field(default_factory=dict)

    @property
    def main_stream(self) -> str:
        """``joint`` where present, else the only stream.

        Raises:
            ValueError: there are several streams and none is ``joint``.
        """
        if "joint" in self.tokens:
            return "joint"
        if len(self.tokens) == 1:
            return next(iter(self.tokens))
        raise ValueError(f"several streams, name the one you want: {', '.join(self.tokens)}")

    def maps(self, stream: str | None = None, *, pixels: bool = False) -> Tensor:
        """Return the tokens of a stream as maps, [B, D, h, w] or [B, T, D, h, w].

        With ``pixels`` they are interpolated to a value for every pixel of the images, [B, D, H, W] or
        [B, T, D, H, W] (bilinear, pixel centres aligned), and what padding added is cropped.

        Raises:
            ValueError: there is no such stream.
        """
        stream = self.main_stream if stream is None else stream
        if stream not in self.tokens:
            raise ValueError(f"no stream {stream!r} here; streams: {', '.join(self.tokens)}")
        maps: Tensor = self.tokens[stream].transpose(-1, -2).unflatten(-1, self.grid)
        if not pixels:
            return maps
        batch = maps.shape[:-3]
        padded = [side * self.patch_size for side in self.grid]
        fine = F.interpolate(maps.flatten(0, -4), size=padded, mode="bilinear", align_corners=False)
        cropped: Tensor = fine[..., : self.size[0], : self.size[1]].unflatten(0, batch)
        return cropped


# So that programs of torch.export may return them.
torch.export.register_dataclass(Features, serialized_type_name="rsbackbones.Features")


def spread_indices(depth: int, count: int = 4) -> tuple[int, ...]:
    """Return ``count`` block indices, evenly spaced and ending at the last: 12 gives 2, 5, 8, 11."""
    count = min(count, depth)
    return tuple((i + 1) * depth // count - 1 for i in range(count))


def take_indices(indices: int | Sequence[int], count: int, what: str) -> tuple[int, ...]:
    """Return indices below ``count``: negative ones are from the end, a number n means the last n.

    Raises:
        ValueError: one is out of range, or there is none; ``what`` says of what.
    """
    if isinstance(indices, int):
        indices = range(count - indices, count)
    wanted = tuple(int(i) for i in indices)
    if not wanted or any(not -count <= i < count for i in wanted):
        raise ValueError(
            f"indices {list(wanted)}: {what}, so indices go from {-count} to {count - 1}, at least one"
        )
    return tuple(i % count for i in wanted)
