"""What a job reads: where its pixels lie, what decides them, and how a worker opens those that it needs."""

import os
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from rsbackbones.data.class_masks import ClassMasks, mask_files, masked_names
from rsbackbones.data.input_files import InputFiles
from rsbackbones.data.raster_folder import rasters_in
from rsbackbones.data.raster_grid import Grid
from rsbackbones.data.raster_path import (
    RasterPath,
    UnreadableRaster,
    raster_name,
    raster_paths,
    web_address,
    without_query,
)
from rsbackbones.data.rasters import find_bands, open_raster
from rsbackbones.embed.inputs import sensors_of
from rsbackbones.embed.pixels import Pixels, Scene
from rsbackbones.embed.raster_scene import open_raster_scene
from rsbackbones.files.retry import retried
from rsbackbones.models.backbone import Backbone

_T = TypeVar("_T")
# (row, column, height, width) in pixels of a grid.
Window = tuple[int, int, int, int]
# GDAL remembers what a server answered; with this it asks again.
FORGET = {"CPL_VSIL_CURL_NON_CACHED": "/vsicurl/"}


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


@dataclass(frozen=True)
class _Tile:
    """Rasters of one place, the names of their bands from the user, and where they lie in the mosaic."""

    paths: tuple[RasterPath, ...]
    names: tuple[Sequence[str] | None, ...]
    place: Window

    @property
    def name(self) -> str:
        """What messages and records call it."""
        return ";".join(without_query(str(path)) for path in self.paths)


@dataclass(frozen=True)
class RasterSource:
    """Rasters of one place, or the tiles of a mosaic; where tiles overlap the first with data counts.

    Rasters of a web server that cannot be read are tried again, with pauses.

    Attributes:
        tiles: in the order in which they were given.
        versions: by raster, what :class:`InputFiles` says of its files.
        skip: whether tiles that cannot be read are left out.
        left_out: names of the rasters that could not be opened when it was made.
    """

    grid: Grid
    tiles: tuple[_Tile, ...]
    options: ReadOptions
    versions: Mapping[str, list[str]] = field(default_factory=dict)
    layers: int = 1
    skip: bool = False
    left_out: tuple[str, ...] = ()

    @staticmethod
    def of_paths(
        model: Backbone,
        given: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        options: ReadOptions,
        *,
        on_unreadable: str = "fail",
    ) -> "RasterSource":
        """Open rasters, or those in a folder, for their bands and grids.

        Raises:
            UnreadableRaster: one cannot be read, or with ``on_unreadable="skip"`` none can.
            ValueError: a raster without bands of the model, tiles that do not fit each other, a grid that is
                not north up, or a single place, which needs all of its rasters, with ``skip``.
        """
        if on_unreadable not in ("fail", "skip"):
            raise ValueError(f"on_unreadable must be 'fail' or 'skip', got {on_unreadable!r}")
        paths = [p for path in raster_paths(given) for p in _expand(path)]
        names = options.names or [None]
        if len(names) not in (1, len(paths)):
            raise ValueError(f"{len(names)} lists of bands for {len(paths)} rasters; expected one for each")
        every = [*names] * (len(paths) if len(names) == 1 else 1)
        groups: list[list[tuple[RasterPath, Sequence[str] | None, Grid]]] = []
        near: dict[tuple[Any, ...], list[int]] = {}
        left_out: dict[str, str] = {}
        for path, of in zip(paths, every, strict=True):
            try:
                find_bands(path, sensors_of(model), masked_names(of, options.mask), units=options.units)
                with open_raster(path) as raster:
                    grid = Grid.of(raster)
            except UnreadableRaster as error:
                if on_unreadable == "fail":
                    raise UnreadableRaster(plain(error)) from error
                left_out[without_query(str(path))] = plain(error)
                continue
            _check_north_up(grid, str(path))
            keys = grid.places()
            known = {i for key in keys for i in near.get(key, []) if groups[i][0][2].covers_same(grid)}
            if not known:
                for key in keys:
                    near.setdefault(key, []).append(len(groups))
                groups.append([])
            groups[min(known, default=len(groups) - 1)].append((path, of, grid))
        if left_out:
            if not groups:
                raise UnreadableRaster(f"no raster can be read: {next(iter(left_out.values()))}")
            warnings.warn(f"left out: {'; '.join(left_out.values())}", stacklevel=4)
        tiles, grid = _mosaic(groups, options.resample)
        if on_unreadable == "skip" and len(tiles) + len(left_out) == 1:
            raise ValueError(
                "on_unreadable='skip' (--on-unreadable skip) leaves out tiles of a mosaic, and the rasters "
                "are of one place, which needs all of them"
            )
        read = [*(path for tile in tiles for path in tile.paths), *mask_files(options.mask)]
        source = RasterSource(
            grid, tiles, options, {str(path): versions_of(path) for path in read},
            skip=on_unreadable == "skip", left_out=tuple(sorted(left_out)),
        )  # fmt: skip
        source._check_tiles(model)
        return source

    def _check_tiles(self, model: Backbone) -> None:
        """Refuse tiles without bands of all modalities, or of other bands or units than the first."""
        first: Scene | None = None
        for tile in self.tiles:  # one by one: there may be more than files can be open
            with suppress(UnreadableItems), self._open_tile(model, tile) as scene:
                first = first or scene
                _check_alike(first, scene)

    @property
    def facts(self) -> dict[str, Any]:
        """See :class:`Source`."""
        files = [fact for facts in self.versions.values() for fact in facts]
        return {
            "kind": "rasters",
            "files": files,
            "unreadable": "skip" if self.skip else "fail",
            "left_out": list(self.left_out),
            **self.options.facts,
        }

    @property
    def links(self) -> list[str]:
        """See :class:`Source`."""
        return [link_of(path) for tile in self.tiles for path in tile.paths]

    def names(self, window: Window) -> list[str]:
        """See :class:`Source`."""
        tiles = [tile for tile in self.tiles if _intersect(tile.place, window)]
        return [without_query(str(path)) for tile in tiles for path in tile.paths]

    @contextmanager
    def open(self, model: Backbone, window: Window) -> Iterator[Scene]:
        """See :class:`Source`."""
        needed = [tile for tile in self.tiles if _intersect(tile.place, window)]
        needed = needed or [self.tiles[0]]  # between the tiles; the first tells the bands
        # Files of a server are checked when they are open: that one is gone is no change.
        files = [p for tile in needed for p in tile.paths if web_address(p) is None]
        files += mask_files(self.options.mask)
        check_versions(files, self.versions)
        with ExitStack() as opened:
            scenes = [opened.enter_context(self._open_tile(model, tile)) for tile in needed]
            whole = self._is_whole(needed[0])
            yield scenes[0] if whole else _Mosaic(scenes, [tile.place for tile in needed], self.grid)
            for scene in scenes:
                scene.check()
        check_versions(files, self.versions)

    def without(self, names: Collection[str]) -> "RasterSource":
        """Return the source without some tiles, by their names, on the same grid.

        Raises:
            UnreadableRaster: no tile is left.
        """
        tiles = tuple(tile for tile in self.tiles if tile.name not in names)
        if not tiles:
            raise UnreadableRaster(f"no tile is left that can be read: {', '.join(names)}")
        return replace(self, tiles=tiles)

    def _is_whole(self, tile: _Tile) -> bool:
        return len(self.tiles) == 1 and tile.place == (0, 0, self.grid.height, self.grid.width)

    def _open_tile(self, model: Backbone, tile: _Tile) -> "_Tried":
        o, on_grid = self.options, None if self._is_whole(tile) else self.grid
        remote = [path for path in tile.paths if web_address(path) is not None]

        def open_files() -> AbstractContextManager[Any]:
            return open_raster_scene(
                model, tile.paths, names=tile.names if any(tile.names) else None, units=o.units,
                nodata=o.nodata, resample=o.resample, mask=o.mask, grid=on_grid,
            )  # fmt: skip

        return _Tried(
            open_files, lambda: check_versions(remote, self.versions), tile.name, remote=bool(remote),
            skip=self.skip,
        )  # fmt: skip


class _Tried:
    """The scene of a tile, which is opened anew where a web server does not give it. A context manager.

    Args:
        open_files: opens it.
        check: that its files are those of the job.
        tile: its name.
        remote: whether another try may help.
        skip: whether it may be left out: then :class:`UnreadableItems` is raised.
    """

    def __init__(
        self,
        open_files: Callable[[], AbstractContextManager[Scene]],
        check: Callable[[], None],
        tile: str,
        *,
        remote: bool,
        skip: bool,
    ) -> None:
        self._open, self._check, self._tile = open_files, check, tile
        self._remote, self._skip = remote, skip
        self._opened, self._failed = ExitStack(), False
        self._scene: Scene | None = None

    def read(self, window: Window) -> Pixels:
        """Read a window (row, column, height, width)."""
        return self._with_scene(lambda scene: scene.read(window))

    def check(self) -> None:
        """Refuse files that changed."""
        self._with_scene(lambda _: self._check())

    def _with_scene(self, work: Callable[[Scene], _T]) -> _T:
        def attempt() -> _T:
            try:
                return work(self._scene or self._open_again())
            except UnreadableRaster:
                self._opened.close()
                self._scene, self._failed = None, True
                raise

        try:
            return retried(attempt, lambda error: self._remote and isinstance(error, UnreadableRaster))
        except UnreadableRaster as error:
            if self._skip:
                raise UnreadableItems({self._tile: plain(error)}) from error
            raise UnreadableRaster(plain(error)) from error

    def _open_again(self) -> Scene:
        import rasterio

        with rasterio.Env(**(FORGET if self._failed else {})):
            scene = self._opened.enter_context(self._open())
        self._check()
        self._scene = scene
        return scene

    def __enter__(self) -> "_Tried":
        """Open it."""
        scene = self._with_scene(lambda scene: scene)
        self.name, self.grid, self.bands = scene.name, scene.grid, scene.bands
        self.ignored, self.stated_units = scene.ignored, scene.stated_units
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()


class _Mosaic:
    """Scenes on one grid as one; a pixel is that of the first scene that has data there."""

    def __init__(self, scenes: Sequence[Scene], places: Sequence[Window], grid: Grid) -> None:
        self._scenes, self._places = scenes, places
        first = scenes[0]
        self.name, self.grid = f"{first.name} and other tiles", grid
        self.bands, self.ignored, self.stated_units = first.bands, first.ignored, first.stated_units
        for scene in scenes:
            _check_alike(first, scene)

    def read(self, window: Window) -> Pixels:
        """Read a window (row, column, height, width)."""
        shape = window[2:]
        made = Pixels({m: np.zeros((len(b), *shape), np.float32) for m, b in self.bands.items()},
                      np.zeros(shape, bool), {})  # fmt: skip
        for scene, place in zip(self._scenes, self._places, strict=True):
            if made.valid.all():
                break
            if not _intersect(place, window):
                continue
            arrays, valid, counts = scene.read(window)
            new = valid & ~made.valid
            for m, x in arrays.items():
                made.arrays[m][:, new] = x[:, new]
            for m, counted in counts.items():
                made.counts.setdefault(m, np.zeros(shape, bool))[new] = counted[new]
            made.valid[new] = True
        return made


def _check_alike(first: Scene, scene: Scene) -> None:
    if (scene.bands, scene.stated_units) != (first.bands, first.stated_units):
        raise ValueError(
            f"{first.name} and {scene.name} are tiles of one mosaic, and have other bands or units: "
            f"{dict(first.bands)} {dict(first.stated_units)}, {dict(scene.bands)} "
            f"{dict(scene.stated_units)}; embed them one by one"
        )


def _mosaic(
    groups: Sequence[Sequence[tuple[RasterPath, Sequence[str] | None, Grid]]], resample: str | None
) -> tuple[tuple[_Tile, ...], Grid]:
    """Return tiles, and the grid of all: that of the finest pixels, around all tiles."""
    from rasterio import Affine
    from rasterio.warp import transform_bounds

    grids = [min((grid for _, _, grid in group), key=lambda grid: grid.pixel) for group in groups]
    first = grids[0]
    if len(groups) == 1:
        whole = (0, 0, first.height, first.width)
        tile = _Tile(tuple(p for p, _, _ in groups[0]), tuple(n for _, n, _ in groups[0]), whole)
        return (tile,), first
    if first.crs is None:
        raise ValueError(
            f"{groups[0][0][0]} has no CRS, so that it cannot be a tile of a mosaic; embed it alone"
        )
    places = []
    for group, grid in zip(groups, grids, strict=True):
        aligned = first.aligned(grid)
        if not aligned and resample is None:
            raise ValueError(
                f"{groups[0][0][0]} ({first}) and {group[0][0]} ({grid}) are tiles of two grids; have them "
                "resampled onto the first: --resample bilinear (resample='bilinear')"
            )
        corners = [grid.position(0, 0), grid.position(grid.width, grid.height)]
        bounds = (corners[0][0], corners[1][1], corners[1][0], corners[0][1])
        if grid.crs != first.crs:
            bounds = transform_bounds(grid.crs, first.crs, *bounds)
        t = first.transform
        left, right = ((x - t.c) / t.a for x in (bounds[0], bounds[2]))
        top, bottom = ((y - t.f) / t.e for y in (bounds[3], bounds[1]))
        edge = round if aligned else np.floor
        far = round if aligned else np.ceil
        places.append((int(edge(top)), int(edge(left)), int(far(bottom)), int(far(right))))
    tops, lefts, bottoms, rights = zip(*places, strict=True)
    top, left = min(tops), min(lefts)
    t = first.transform
    transform = Affine(t.a, t.b, t.c + left * t.a, t.d, t.e, t.f + top * t.e)
    grid = Grid(max(bottoms) - top, max(rights) - left, first.crs, transform)
    tiles = tuple(
        _Tile(tuple(p for p, _, _ in group), tuple(n for _, n, _ in group),
              (place[0] - top, place[1] - left, place[2] - place[0], place[3] - place[1]))
        for group, place in zip(groups, places, strict=True)
    )  # fmt: skip
    return tiles, grid


def _expand(path: RasterPath) -> list[RasterPath]:
    return list(rasters_in(path)[0]) if isinstance(path, Path) and path.is_dir() else [path]


def _check_north_up(grid: Grid, name: str) -> None:
    t = grid.transform
    if grid.points or grid.crs is None or t.b or t.d or t.a <= 0 or t.e >= 0:
        raise ValueError(
            f"{name} is not placed north up by a CRS and a transform, as a store of embeddings is; warp it "
            f"first: gdalwarp {name} north_up.tif"
        )


def _intersect(a: Window, b: Window) -> bool:
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


def versions_of(path: RasterPath) -> list[str]:
    """Return the versions of the files behind a raster; "unknown" of a server that tells none."""
    return [fact.partition(" unknown ")[0] + (" unknown" if " unknown " in fact else "")
            for fact in InputFiles([path]).facts]  # fmt: skip


def check_versions(paths: Sequence[RasterPath], versions: Mapping[str, list[str]]) -> None:
    """Refuse rasters that are not those of the job.

    Raises:
        UnreadableRaster: a web server does not give one any more.
        ValueError: one changed.
    """
    changed = []
    for path in paths:
        if (now := versions_of(path)) == versions[str(path)]:
            continue
        if web_address(path) is not None and any(fact.endswith(" unknown") for fact in now):
            raise UnreadableRaster(f"cannot read {without_query(str(path))}: the server does not give it now")
        changed.append(raster_name(path))
    if changed:
        raise ValueError(
            f"the input changed since the job was planned: {', '.join(changed[:5])}; plan it again, for "
            "another output"
        )


def link_of(path: RasterPath) -> str:
    """Return a raster as a URL, without the query, which may hold a signature."""
    if isinstance(path, Path):
        return path.resolve().as_uri()
    text = path.partition("?")[0]
    text = text.removeprefix("/vsicurl/")
    return text if "://" in text else f"gdal:{text}"


def plain(error: BaseException) -> str:
    """Return an error without the queries of URLs, which may hold signatures."""
    return re.sub(r"\?[^\s'\"]*", "", str(error))[:400]
