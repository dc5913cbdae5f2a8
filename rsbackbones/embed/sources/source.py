"""What a job reads: where its pixels lie, what decides them, and how a worker opens those that it needs."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from rsbackbones.data.class_masks import ClassMasks
from rsbackbones.data.raster_grid import Grid
from rsbackbones.embed.pixels import Scene
from rsbackbones.models.backbone import Backbone

# (row, column, height, width) in pixels of a grid.
Window = tuple[int, int, int, int]


class UnreadableItems(ValueError):
    """Items that a source cannot read and may be left out of; ``reasons`` by their names."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        super().__init__("; ".join(reasons.values()))
        self.reasons = dict(reasons)

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how it is pickled."""
        return UnreadableItems, (self.reasons,)


class Source(Protocol):
    """Pixels on one grid. It can be pickled."""

    @property
    def grid(self) -> Grid:
        """Where all of its pixels lie, north up."""

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the pixels, as JSON takes it; equal where nothing changed."""

    @property
    def links(self) -> list[str]:
        """URLs of what it is made of."""

    def names(self, window: Window) -> list[str]:
        """Return what the pixels of a window come from: rasters, ids of items, or the links."""

    @property
    def layers(self) -> int:
        """How many dates are held at a time for one image: 1, or those of a median."""

    def open(self, model: Backbone, window: Window) -> AbstractContextManager[Scene]:
        """Return a context manager that opens what a window needs, as a scene on the grid of the source.

        Raises:
            UnreadableItems: (or its scene, when it reads) items may be left out: take ``without(names)``.
            ValueError: what is read has changed since the source was made.
        """


@dataclass(frozen=True)
class ReadOptions:
    """How rasters are read, as for :func:`rsbackbones.embed.embed_scene`."""

    names: Sequence[Sequence[str] | None] | None = None
    units: Mapping[str, str] | None = None
    nodata: float | None = None
    mask: ClassMasks | None = None
    resample: str | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """Return them as JSON takes it."""
        return {
            "units": dict(self.units) if self.units else None,
            "nodata": self.nodata,
            "mask": {key: sorted(classes) for key, classes in self.mask.items()} if self.mask else None,
            "resample": self.resample,
        }
