"""The output of a backbone.

A *stream* is one output of a model: there is one per modality, and more if the architecture fuses modalities.
Shapes: B images (or series), T dates, C bands, H x W pixels, h x w cells of a map, N = h * w, D channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Features:
    """The final maps and pooled embeddings of every stream that is available for the passed modalities.

    A model that consumes single images returns [B, D, h, w] and [B, D], and for a series [B, T, D, h, w] and
    [B, T, D]. A model that consumes series returns one map [B, D, h, w] and one embedding [B, D] per series.

    Attributes:
        feature_maps: by stream; see :meth:`maps` and :attr:`tokens`.
        pooled: by stream, [B, D].
        size: (H, W) of the passed images in pixels.
        stride: the stride of the maps in pixels. Maps cover the image, so the last cells may extend beyond
            it.
        stream_index: the index of the default stream of these images; -1 if it is ambiguous. (A number,
            since programs of torch.export cannot return text.)
        series: by stream, the tokens per date of a model that consumes series, [B, T, N, D]; else empty. A
            model that strides over time has ceil(T / ``Backbone.date_stride``) of them.
        valid: by stream, if masks were passed: [B, T], False for missing images; for a model that consumes
            series [B], False if all are missing; [B] of single images with a pixel mask, False if no cell
            counts. Their features are NaN, so that they are not averaged by accident.
        valid_share: by stream, if pixel masks were passed: the share of valid pixels of every cell of the
            map, float32 [B, h, w] or [B, T, h, w]. Cells with less than half are NaN in the map. Tokens per
            date (``series``) are only NaN for missing images.
    """

    feature_maps: dict[str, Tensor]
    pooled: dict[str, Tensor]
    size: tuple[int, int]
    stride: int
    stream_index: int = -1
    series: dict[str, Tensor] = field(default_factory=dict)
    valid: dict[str, Tensor] = field(default_factory=dict)
    valid_share: dict[str, Tensor] = field(default_factory=dict)

    @property
    def tokens(self) -> dict[str, Tensor]:
        """The maps of every stream, flattened: [B, N, D] or [B, T, N, D], in row-major order."""
        return {stream: flatten_map(x) for stream, x in self.feature_maps.items()}

    @property
    def grid(self) -> tuple[int, int]:
        """The cells (h, w) of the maps."""
        h, w = next(iter(self.feature_maps.values())).shape[-2:]
        return h, w

    @property
    def default_stream(self) -> str:
        """The stream whose embedding ``model(x)`` returns.

        Raises:
            ValueError: there are several streams, and none is the model's default.
        """
        if self.stream_index < 0:
            raise ValueError(f"several streams are available, choose one: {', '.join(self.feature_maps)}")
        return list(self.feature_maps)[self.stream_index]

    def maps(self, stream: str | None = None, *, pixels: bool = False) -> Tensor:
        """Return the final map of a stream, [B, D, h, w] or [B, T, D, h, w]; default: the default stream.

        With ``pixels`` the map is interpolated to the pixels of the images, [B, D, H, W] or [B, T, D, H, W]
        (bilinear, with aligned pixel centers), and cropped to their size.

        Raises:
            ValueError: there is no such stream.
        """
        stream = self.default_stream if stream is None else stream
        if stream not in self.feature_maps:
            raise ValueError(f"no stream {stream!r} here; streams: {', '.join(self.feature_maps)}")
        maps = self.feature_maps[stream]
        if not pixels:
            return maps
        batch = maps.shape[:-3]
        covered = [side * self.stride for side in self.grid]
        fine = F.interpolate(maps.flatten(0, -4), size=covered, mode="bilinear", align_corners=False)
        cropped: Tensor = fine[..., : self.size[0], : self.size[1]].unflatten(0, batch)
        return cropped


# Allows exported programs (torch.export) to return Features.
torch.export.register_dataclass(Features, serialized_type_name="rsbackbones.Features")


def flatten_map(x: Tensor) -> Tensor:
    """Convert a map [..., D, h, w] to tokens [..., N, D], in row-major order."""
    return x.flatten(-2).transpose(-1, -2)


def unflatten_tokens(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Convert tokens [..., N, D] to a map [..., D, h, w], the inverse of :func:`flatten_map`."""
    maps: Tensor = tokens.transpose(-1, -2).unflatten(-1, grid)
    return maps


def evenly_spaced(depth: int, count: int = 4) -> tuple[int, ...]:
    """Return ``count`` stage indices, evenly spaced and ending at the last: 12 gives 2, 5, 8, 11."""
    count = min(count, depth)
    return tuple((i + 1) * depth // count - 1 for i in range(count))


def resolve_indices(indices: int | Sequence[int], count: int, what: str) -> tuple[int, ...]:
    """Resolve indices of ``count`` items: negative ones count from the end, a number n means the last n.

    Raises:
        ValueError: an index is out of range, or there is none; ``what`` describes the items.
    """
    if isinstance(indices, int):
        indices = range(count - indices, count)
    wanted = tuple(int(i) for i in indices)
    if not wanted or any(not -count <= i < count for i in wanted):
        raise ValueError(
            f"indices {list(wanted)}: {what}, so indices go from {-count} to {count - 1}, at least one"
        )
    return tuple(i % count for i in wanted)
