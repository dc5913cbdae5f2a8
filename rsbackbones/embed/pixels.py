"""What a scene is to the windows over it: pixels on one grid, from whatever holds them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from rsbackbones.data.raster_grid import Grid
from rsbackbones.data.raster_path import RasterPath
from rsbackbones.data.rasters import Array


class Pixels(NamedTuple):
    """A window of a scene, or of a series of them.

    Attributes:
        arrays: by modality [C, h, w] float32; pixels without data hold zero. Of a series [T, C, h, w].
        valid: [h, w], True where all bands have data. Of a series: where all modalities have some date.
        counts: by modality [h, w], False for pixels that a mask excludes; without masks it is empty. Of a
            series [T, h, w], True where a date has data.
    """

    arrays: dict[str, Array]
    valid: Array
    counts: dict[str, Array]

    def part(self, top: int, left: int, height: int, width: int) -> "Pixels":
        """Return the part of these pixels at a row and column."""
        here = slice(top, top + height), slice(left, left + width)
        return Pixels(
            {m: x[..., *here] for m, x in self.arrays.items()},
            self.valid[here],
            {m: x[..., *here] for m, x in self.counts.items()},
        )


class Scene(Protocol):
    """Pixels on one grid, read by windows (row, column, height, width)."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def grid(self) -> Grid:
        """Where its pixels lie."""

    @property
    def bands(self) -> Mapping[str, Sequence[str]]:
        """By modality the bands, in the order in which they are read."""

    @property
    def ignored(self) -> Mapping[RasterPath, Sequence[str]]:
        """By file the names of bands that no sensor has."""

    @property
    def stated_units(self) -> Mapping[str, str]:
        """By modality the unit that the files state."""

    def read(self, window: tuple[int, int, int, int]) -> Pixels:
        """Read a window that lies within the grid."""
