"""Nodata that items state and files do not, and that of the user: applied before pixels are mixed."""

from typing import Any

import numpy as np

from rsbackbones.data.rasters import Array


class NodataDriver:
    """Reads files for odc-stac as its own driver does; pixels without data are NaN.

    What a file states is nodata, or else what its item states. Pixels that have exactly the value that the
    item states or the user names have no data, too.
    """

    def __init__(self, nodata: float | None) -> None:
        from odc.loader import RioDriver

        self._driver, self._nodata = RioDriver(), nodata

    def open(self, source: Any, context: Any) -> "_Reader":
        """Return the reader of a file."""
        stated = source.meta.nodata
        stated = None if stated is None or np.isnan(stated) else float(stated)
        return _Reader(self._driver.open(source, context), stated, self._nodata)

    def __getattr__(self, name: str) -> Any:
        """Return the rest of the driver's interface."""
        return getattr(self._driver, name)


class _Reader:
    def __init__(self, reader: Any, stated: float | None, named: float | None) -> None:
        self._reader, self._stated = reader, stated
        self._without = np.array([value for value in (stated, named) if value is not None], np.float32)

    def read(self, settings: Any, box: Any, **options: Any) -> tuple[tuple[slice, slice], Array]:
        """Return where the pixels of a file lie in a GeoBox, and the pixels."""
        try:
            place, x = self._reader.read(settings.patch(src_nodata_fallback=self._stated), box, **options)
        except ValueError:  # the type of the file cannot hold the value
            place, x = self._reader.read(settings, box, **options)
        x[np.isin(x, self._without)] = np.nan
        return place, x
