"""Pixels of STAC items, loaded by odc-stac inside the task, after signing, and tried again.

Items are signed and loaded in the task, without Dask: odc-stac applies ``patch_url`` when a graph is built,
so that signed URLs of a graph expire before they are read.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rsbackbones.data.raster_path import UnreadableRaster
from rsbackbones.data.rasters import Array
from rsbackbones.embed.sources.retried_scene import FORGET, plain
from rsbackbones.embed.sources.source import UnreadableItems
from rsbackbones.embed.sources.stac_assets import as_rasters
from rsbackbones.embed.sources.stac_item import day_of
from rsbackbones.embed.sources.stac_nodata import NodataDriver
from rsbackbones.files.retry import retried

# Takes an item (pystac) and returns it with URLs that can be read.
Sign = Callable[[Any], Any]


@dataclass(frozen=True)
class ItemReader:
    """Reads assets of items onto a grid.

    Attributes:
        sign: makes URLs that can be read; called at each try.
        nodata: a value without data besides the one that files or items state.
        skip: an item that cannot be read may be left out.
    """

    sign: Sign | None
    nodata: float | None
    skip: bool

    def read(
        self, items: Sequence[dict[str, Any]], assets: Sequence[str], box: Any, resample: str | None
    ) -> dict[str, Array]:
        """Return by asset the days of items [T, h, w], float32, in order of time; NaN without data.

        Args:
            items: as dictionaries with their days; those of a day are one mosaic.
            assets: their keys.
            box: an ``odc.geo`` GeoBox.
            resample: the rule for pixels of other grids; default: nearest.

        Raises:
            UnreadableItems: some cannot be read, and may be left out.
            UnreadableRaster: some cannot be read, or they cannot be read together.
        """
        try:
            return self._try(items, assets, box, resample)
        except _Unreadable as error:
            if bad := self._faults(items, assets, box, resample):
                if self.skip:
                    raise UnreadableItems(bad) from error
                raise UnreadableRaster(next(iter(bad.values()))) from error
        try:  # each can be read now: perhaps all of them can
            return self._try(items, assets, box, resample)
        except _Unreadable as error:
            raise UnreadableRaster(
                f"{error}; but each item can be read alone, so none is left out"
            ) from error

    def _faults(
        self, items: Sequence[dict[str, Any]], assets: Sequence[str], box: Any, resample: str | None
    ) -> dict[str, str]:
        """Return by id what is wrong with items that cannot be read alone; one of them if none is skipped."""
        found: dict[str, str] = {}
        for item in items:
            for asset in assets:
                try:
                    self._try([item], [asset], box, resample)
                except _Unreadable as error:
                    found[item["id"]] = str(error)
                    break
            if found and not self.skip:
                break
        return found

    def _try(
        self, items: Sequence[dict[str, Any]], assets: Sequence[str], box: Any, resample: str | None
    ) -> dict[str, Array]:
        import pystac
        import rasterio
        from odc.stac import load

        forget: dict[str, str] = {}
        driver: Any = NodataDriver(self.nodata)

        def load_signed() -> Any:
            signed = [pystac.Item.from_dict(item, migrate=False) for item in items]
            signed = [self.sign(item) for item in signed] if self.sign else signed
            with rasterio.Env(**forget):
                forget.update(FORGET)  # of the next try
                return load(
                    [as_rasters(item, assets) for item in signed], list(assets), geobox=box, dtype="float32",
                    nodata=float("nan"), resampling=resample or "nearest", driver=driver,
                    groupby=lambda _, parsed, index: day_of(items[index]), fail_on_error=True,
                )  # fmt: skip

        try:
            data = retried(load_signed, lambda _: True)
        except Exception as error:
            named = ", ".join(item["id"] for item in items[:3]) + (", ..." if len(items) > 3 else "")
            what = f"asset{'s' if len(assets) > 1 else ''} {', '.join(assets)}"
            raise _Unreadable(f"cannot read the {what} of {named}: {plain(error)}") from error
        return {asset: data[asset].values for asset in assets}


class _Unreadable(ValueError):
    """Items that cannot be read, after all tries."""
