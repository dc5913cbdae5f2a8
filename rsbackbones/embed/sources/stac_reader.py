"""Pixels of STAC items, loaded by odc-stac inside the task, after signing, and tried again.

Items are signed and loaded in the task, without Dask: odc-stac applies ``patch_url`` when a graph is built,
so that signed URLs of a graph expire before they are read.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rsbackbones.data.raster_path import UnreadableRaster
from rsbackbones.data.rasters import Array
from rsbackbones.embed.sources.retried_scene import FORGET, plain
from rsbackbones.embed.sources.source import UnreadableItems
from rsbackbones.embed.sources.stac_items import acquired_at, day_at
from rsbackbones.files.retry import retried

# Takes an item (pystac) and returns it with URLs that can be read.
Sign = Callable[[Any], Any]


@dataclass(frozen=True)
class ItemReader:
    """Reads assets of items onto a grid.

    Attributes:
        sign: makes URLs that can be read; called at each try.
        nodata: a value without data besides the one that assets state.
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
            items: as dictionaries; those of a day are one mosaic.
            assets: their keys.
            box: an ``odc.geo`` GeoBox.
            resample: the rule for pixels of other grids; default: nearest.

        Raises:
            UnreadableItems: some cannot be read, and may be left out.
            ValueError: some cannot be read.
        """
        try:
            return self._try(items, assets, box, resample)
        except _Unreadable as error:
            bad = {item["id"]: reason for item in items if (reason := self._fault(item, assets, box))}
            if self.skip and bad:
                raise UnreadableItems(bad) from error
            raise UnreadableRaster(next(iter(bad.values()), str(error))) from error

    def _fault(self, item: dict[str, Any], assets: Sequence[str], box: Any) -> str | None:
        for asset in assets:
            try:
                self._try([item], [asset], box, None)
            except _Unreadable as error:
                return str(error)
        return None

    def _try(
        self, items: Sequence[dict[str, Any]], assets: Sequence[str], box: Any, resample: str | None
    ) -> dict[str, Array]:
        import pystac
        import rasterio
        from odc.stac import load

        forget: dict[str, str] = {}

        def load_signed() -> Any:
            signed = [pystac.Item.from_dict(copy.deepcopy(item), migrate=False) for item in items]
            signed = [self.sign(item) for item in signed] if self.sign else signed
            with rasterio.Env(**forget):
                forget.update(FORGET)  # of the next try
                return load(
                    signed, list(assets), geobox=box, dtype="float32", resampling=resample or "nearest",
                    groupby=lambda item, parsed, index: day_at(acquired_at(item)), fail_on_error=True,
                )  # fmt: skip

        try:
            data = retried(load_signed, lambda _: True)
        except Exception as error:
            named = ", ".join(item["id"] for item in items[:3]) + (", ..." if len(items) > 3 else "")
            what = f"asset{'s' if len(assets) > 1 else ''} {', '.join(assets)}"
            raise _Unreadable(f"cannot read the {what} of {named}: {plain(error)}") from error
        found = {}
        for asset in assets:
            values = data[asset].values
            for nodata in (data[asset].attrs.get("nodata"), self.nodata):
                if nodata is not None and not math.isnan(nodata):
                    values[values == nodata] = np.nan
            found[asset] = values
        return found


class _Unreadable(ValueError):
    """Items that cannot be read, after all tries."""
