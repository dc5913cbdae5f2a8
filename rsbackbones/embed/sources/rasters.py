"""Rasters of one place, or the tiles of a mosaic, as the source of a job."""

import os
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from rsbackbones.data.class_masks import mask_files, masked_names
from rsbackbones.data.raster_folder import rasters_in
from rsbackbones.data.raster_grid import Grid
from rsbackbones.data.raster_path import (
    RasterPath,
    UnreadableRaster,
    raster_paths,
    web_address,
    without_query,
)
from rsbackbones.data.rasters import find_bands, open_raster
from rsbackbones.embed.inputs import check_on_unreadable, sensors_of
from rsbackbones.embed.pixels import Scene
from rsbackbones.embed.raster_scene import open_raster_scene
from rsbackbones.embed.sources.mosaic import Mosaic, Tile, check_alike, intersect, place_tiles
from rsbackbones.embed.sources.raster_versions import check_versions, versions_of
from rsbackbones.embed.sources.retried_scene import RetriedScene, plain
from rsbackbones.embed.sources.source import ReadOptions, UnreadableItems, Window
from rsbackbones.models.backbone import Backbone


@dataclass(frozen=True)
class RasterSource:
    """Rasters of one place, or the tiles of a mosaic; where tiles overlap the first with data counts.

    Rasters of a web server that cannot be read are tried again, with pauses.

    Attributes:
        tiles: in the order in which they were given.
        versions: by raster, what :class:`InputFiles` says of its files.
        skip: whether tiles that cannot be read are left out.
        left_out: names of the rasters that could not be opened when it was made, and of the others of their
            tiles.
    """

    grid: Grid
    tiles: tuple[Tile, ...]
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
        check_on_unreadable(on_unreadable)
        paths = [p for path in raster_paths(given) for p in _expand(path)]
        names = options.names or [None]
        if len(names) not in (1, len(paths)):
            raise ValueError(f"{len(names)} lists of bands for {len(paths)} rasters; expected one for each")
        every = [*names] * (len(paths) if len(names) == 1 else 1)
        groups, left_out = _open_groups(model, list(zip(paths, every, strict=True)), options, on_unreadable)
        if left_out:
            if not groups:
                raise UnreadableRaster(f"no raster can be read: {next(iter(left_out.values()))}")
            groups = _with_all_bands(model, groups, left_out)
            warnings.warn(f"left out: {'; '.join(left_out.values())}", stacklevel=4)
        placed = [[(one.path, one.names, one.grid) for one in group] for group in groups]
        tiles, grid = place_tiles(placed, options.resample)
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
                check_alike(first, scene)

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
        tiles = [tile for tile in self.tiles if intersect(tile.place, window)]
        return [without_query(str(path)) for tile in tiles for path in tile.paths]

    @contextmanager
    def open(self, model: Backbone, window: Window) -> Iterator[Scene]:
        """See :class:`Source`."""
        needed = [tile for tile in self.tiles if intersect(tile.place, window)]
        needed = needed or [self.tiles[0]]  # between the tiles; the first tells the bands
        # Files of a server are checked when they are open: that one is gone is no change.
        files = [p for tile in needed for p in tile.paths if web_address(p) is None]
        files += mask_files(self.options.mask)
        check_versions(files, self.versions)
        with ExitStack() as opened:
            scenes = [opened.enter_context(self._open_tile(model, tile)) for tile in needed]
            whole = self._is_whole(needed[0])
            yield scenes[0] if whole else Mosaic(scenes, [tile.place for tile in needed], self.grid)
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

    def _is_whole(self, tile: Tile) -> bool:
        return len(self.tiles) == 1 and tile.place == (0, 0, self.grid.height, self.grid.width)

    def _open_tile(self, model: Backbone, tile: Tile) -> RetriedScene:
        o, on_grid = self.options, None if self._is_whole(tile) else self.grid
        remote = [path for path in tile.paths if web_address(path) is not None]

        def open_files() -> AbstractContextManager[Any]:
            return open_raster_scene(
                model, tile.paths, names=tile.names if any(tile.names) else None, units=o.units,
                nodata=o.nodata, resample=o.resample, mask=o.mask, grid=on_grid,
            )  # fmt: skip

        return RetriedScene(
            open_files, lambda: check_versions(remote, self.versions), tile.name, remote=bool(remote),
            skip=self.skip,
        )  # fmt: skip


class _Opened(NamedTuple):
    path: RasterPath
    names: Sequence[str] | None
    grid: Grid
    bands: set[tuple[str, str]]


def _open_groups(
    model: Backbone,
    given: Sequence[tuple[RasterPath, Sequence[str] | None]],
    options: ReadOptions,
    on_unreadable: str,
) -> tuple[list[list[_Opened]], dict[str, str]]:
    """Return the rasters of each place, and by name what is wrong with those that cannot be opened."""
    groups: list[list[_Opened]] = []
    near: dict[tuple[Any, ...], list[int]] = {}
    left_out: dict[str, str] = {}
    for path, names in given:
        try:
            found = find_bands(
                path, sensors_of(model), masked_names(names, options.mask), units=options.units
            )[0]
            with open_raster(path) as raster:
                grid = Grid.of(raster)
        except UnreadableRaster as error:
            if on_unreadable == "fail":
                raise UnreadableRaster(plain(error)) from error
            left_out[without_query(str(path))] = plain(error)
            continue
        _check_north_up(grid, str(path))
        keys = grid.places()
        known = {i for key in keys for i in near.get(key, []) if groups[i][0].grid.covers_same(grid)}
        if not known:
            for key in keys:
                near.setdefault(key, []).append(len(groups))
            groups.append([])
        bands = {(m, band) for m, of in found.items() for band in of}
        groups[min(known, default=len(groups) - 1)].append(_Opened(path, names, grid, bands))
    return groups, left_out


def _with_all_bands(
    model: Backbone, groups: list[list[_Opened]], left_out: dict[str, str]
) -> list[list[_Opened]]:
    """Return the tiles that have all bands, and add the others, which lack a raster, to those left out.

    Raises:
        UnreadableRaster: no tile has them.
    """
    unreadable, whole = list(left_out), []
    for group in groups:
        held = set.union(*(one.bands for one in group))
        lacking = {m: [b for b in bands if (m, b) not in held] for m, bands in model.bands.items()}
        if not any(lacking.values()):
            whole.append(group)
            continue
        text = ", ".join(f"{m} ({', '.join(bands)})" for m, bands in lacking.items() if bands)
        for one in group:
            name = without_query(str(one.path))
            left_out[name] = f"{name}: its tile lacks {text}, as {' or '.join(unreadable)} cannot be read"
    if not whole:
        raise UnreadableRaster(f"no tile is left that has all bands: {'; '.join(left_out.values())}")
    return whole


def _expand(path: RasterPath) -> list[RasterPath]:
    return list(rasters_in(path)[0]) if isinstance(path, Path) and path.is_dir() else [path]


def _check_north_up(grid: Grid, name: str) -> None:
    t = grid.transform
    if grid.points or grid.crs is None or t.b or t.d or t.a <= 0 or t.e >= 0:
        raise ValueError(
            f"{name} is not placed north up by a CRS and a transform, as a store of embeddings is; warp it "
            f"first: gdalwarp {name} north_up.tif"
        )


def link_of(path: RasterPath) -> str:
    """Return a raster as a URL, without the query, which may hold a signature."""
    if isinstance(path, Path):
        return path.resolve().as_uri()
    text = path.partition("?")[0]
    text = text.removeprefix("/vsicurl/")
    return text if "://" in text else f"gdal:{text}"
