"""A scene that is opened anew where a web server does not give it."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import TypeVar

from rsbackbones.data.raster_path import UnreadableRaster
from rsbackbones.embed.pixels import Pixels, Scene
from rsbackbones.embed.sources.source import UnreadableItems, Window
from rsbackbones.files.retry import retried

_T = TypeVar("_T")
# GDAL remembers what a server answered; with this it asks again.
FORGET = {"CPL_VSIL_CURL_NON_CACHED": "/vsicurl/"}


class RetriedScene:
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

    def __enter__(self) -> "RetriedScene":
        """Open it."""
        scene = self._with_scene(lambda scene: scene)
        self.name, self.grid, self.bands = scene.name, scene.grid, scene.bands
        self.ignored, self.stated_units = scene.ignored, scene.stated_units
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()


def plain(error: BaseException) -> str:
    """Return an error without the queries of URLs, which may hold signatures."""
    return re.sub(r"\?[^\s'\"]*", "", str(error))[:400]
