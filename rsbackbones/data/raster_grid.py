"""Where the pixels of a raster lie: its size, and an affine transform or ground control points."""

import math
from typing import Any, NamedTuple

from rsbackbones.data.raster_path import raster_name

# Corners that differ by less than this part of a pixel are the same.
_SAME_GRID = 1e-3
_METERS_PER_DEGREE = 111_320.0


class Grid(NamedTuple):
    """The grid of a raster.

    ``points``: ground control points (row, column, x, y, z) of a raster that has no transform; ``crs`` is
    theirs then. Without both it is a picture without georeference.
    """

    height: int
    width: int
    crs: Any
    transform: Any
    points: tuple[tuple[float, ...], ...] = ()

    @classmethod
    def of(cls, raster: Any) -> "Grid":
        """Return the grid of an open raster.

        Raises:
            ValueError: a transform that is no placement (zero or NaN), or rational polynomials (RPCs) only.
        """
        height, width, crs, t = raster.height, raster.width, raster.crs, raster.transform
        if not all(map(math.isfinite, t[:6])) or t.a * t.e == t.b * t.d:
            raise ValueError(
                f"{raster.name}: its transform {tuple(t[:6])} gives pixels no place; set the right one "
                "(gdal_edit.py -a_ullr), or remove it (gdal_edit.py -unsetgt)"
            )
        if not t.is_identity:
            return cls(height, width, crs, t)
        points, points_crs = raster.gcps
        if points:
            placed = tuple((p.row, p.col, p.x, p.y, p.z or 0.0) for p in points)
            return cls(height, width, points_crs, t, placed)
        if raster.rpcs is not None:
            raise ValueError(
                f"{raster.name} is placed by rational polynomials (RPCs), which a result cannot keep; "
                f"rectify it first: gdalwarp -rpc {raster.name} rectified_{raster_name(raster.name)}"
            )
        return cls(height, width, crs, t)

    @classmethod
    def of_geobox(cls, box: Any) -> "Grid":
        """Return an ``odc.geo`` GeoBox as a grid."""
        from rasterio import Affine
        from rasterio.crs import CRS

        return cls(box.height, box.width, CRS.from_wkt(box.crs.to_wkt()), Affine(*box.affine[:6]))

    @property
    def pixel(self) -> float:
        """The side of a pixel, in units of the CRS."""
        t = self.transform
        return float(abs(t.a * t.e - t.b * t.d) ** 0.5)

    @property
    def pixel_in_meters(self) -> float | None:
        """The side of a pixel at the middle of the raster; ``None`` without a transform."""
        if self.crs is None or self.points or self.transform.is_identity:
            return None
        if not self.crs.is_geographic:
            return float(self.pixel * self.crs.linear_units_factor[1])
        _, latitude = self.position(self.width / 2, self.height / 2)
        return float(_METERS_PER_DEGREE * self.pixel * max(math.cos(math.radians(latitude)), 0.0) ** 0.5)

    @property
    def placed(self) -> bool:
        """Whether anything tells where the pixels lie."""
        return bool(self.points) or not (self.crs is None and self.transform.is_identity)

    def position(self, column: float, row: float) -> tuple[float, float]:
        """Return the (x, y) of a place in the raster, in its CRS."""
        if self.points:
            from rasterio.transform import GCPTransformer

            with GCPTransformer(_control_points(self.points)) as transformer:
                x, y = transformer.xy(row, column, offset="ul")
            return float(x), float(y)
        # Written out, as operators of Affine change with versions.
        t = self.transform
        return t.a * column + t.b * row + t.c, t.d * column + t.e * row + t.f

    def covers_same(self, other: "Grid") -> bool:
        """Tell whether two rasters cover the same ground: CRS and all corners, in pixels of any size."""
        if self.crs != other.crs or self.points or other.points:
            return (self.crs, self.points) == (other.crs, other.points)
        pixel = max(abs(v) for v in (self.transform.a, self.transform.b, self.transform.d, self.transform.e))
        for right in (0, 1):
            for down in (0, 1):
                here = self.position(right * self.width, down * self.height)
                there = other.position(right * other.width, down * other.height)
                if max(abs(here[0] - there[0]), abs(here[1] - there[1])) > pixel * _SAME_GRID:
                    return False
        return True

    def same(self, other: "Grid") -> bool:
        """Tell whether two rasters have their pixels in the same places."""
        return (self.height, self.width) == (other.height, other.width) and self.covers_same(other)

    def aligned(self, other: "Grid") -> bool:
        """Tell whether the pixels of another grid are pixels of this one, had it no end."""
        if self.crs != other.crs or self.points or other.points or self.transform.is_identity:
            return False
        s, o = self.transform, other.transform
        if any(abs(a - b) * max(other.width, other.height) > self.pixel * _SAME_GRID
               for a, b in ((s.a, o.a), (s.b, o.b), (s.d, o.d), (s.e, o.e))):  # fmt: skip
            return False
        x, y, size = o.c - s.c, o.f - s.f, s.a * s.e - s.b * s.d
        column, row = (s.e * x - s.b * y) / size, (s.a * y - s.d * x) / size
        return bool(max(abs(column - round(column)), abs(row - round(row))) < _SAME_GRID)

    def places(self) -> set[tuple[Any, ...]]:
        """Return keys of which rasters that cover the same ground share one, however corners are rounded."""
        if self.points:
            return {(str(self.crs), self.points)}
        across, origin = self.position(self.width, self.height), self.position(0, 0)
        side = 2.0 ** round(math.log2(max(abs(a - b) for a, b in zip(across, origin, strict=True))))
        x, y = origin[0] / side, origin[1] / side
        return {
            (str(self.crs), side, math.floor(x + dx), math.floor(y + dy))
            for dx in (0, 0.5)
            for dy in (0, 0.5)
        }

    def profile(self, stride: int, rows: int, columns: int) -> dict[str, Any]:
        """Return what rasterio needs to write a raster whose pixels are ``stride`` x ``stride`` of these."""
        import rasterio

        size: dict[str, Any] = {"height": rows, "width": columns, "crs": self.crs}
        if self.points:
            scaled = [(row / stride, column / stride, *place) for row, column, *place in self.points]
            return size | {"gcps": _control_points(scaled)}
        t = self.transform
        a, b, d, e = (v * stride for v in (t.a, t.b, t.d, t.e))
        return size | {"transform": rasterio.Affine(a, b, t.c, d, e, t.f)}

    def __str__(self) -> str:
        if self.points:
            return f"{self.width} x {self.height}, {len(self.points)} ground control points"
        return (
            f"{self.width} x {self.height}, {self.crs}, origin {self.transform.c:.6g}, {self.transform.f:.6g}"
        )


def _control_points(points: Any) -> list[Any]:
    from rasterio.control import GroundControlPoint

    return [GroundControlPoint(*point) for point in points]
