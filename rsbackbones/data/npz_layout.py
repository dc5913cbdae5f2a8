"""Checks of the arrays of a .npz file against its description."""

from typing import TYPE_CHECKING

from rsbackbones.data.grid import same_extent
from rsbackbones.data.npz_archive import NpzArchive
from rsbackbones.sensors import get_sensor

if TYPE_CHECKING:
    from rsbackbones.data.npz import NpzFile

# Units that are read; values become DN (Sentinel-2) or dB (Sentinel-1).
_UNITS = ("dn", "dn_baseline_0400", "db", "worldcereal_db")


def find_channels(
    file: "NpzFile",
) -> tuple[dict[str, tuple[str, ...]], dict[str, dict[str, tuple[int, ...]]]]:
    """Return the bands to read by sensor, and their positions by sensor and array."""
    for what, keys in (("pick", file.pick), ("units", file.units), ("nodata", file.nodata)):
        if unknown := [key for key in keys if key not in file.images]:
            raise ValueError(f"{what} names {', '.join(unknown)}; the images are of {', '.join(file.images)}")
    if unknown := [unit for unit in file.units.values() if unit not in _UNITS]:
        raise ValueError(f"unknown unit {unknown[0]!r}; known: {', '.join(_UNITS)}")
    if not file.images or not all(file.images.values()):
        raise ValueError(f"{file.path}: name at least one array for each sensor, got images={file.images}")
    bands: dict[str, tuple[str, ...]] = {}
    channels: dict[str, dict[str, tuple[int, ...]]] = {}
    for modality, arrays in file.images.items():
        sensor = get_sensor(modality)
        wanted = sensor.canonical(file.pick[modality]) if modality in file.pick else None
        held: list[str] = []
        channels[modality] = {}
        for array, names in arrays.items():
            positions = []
            for i, name in enumerate(names):
                try:
                    band = sensor.band(name).name
                except ValueError:
                    if wanted is None:  # without pick, every channel is meant to be used
                        raise
                    continue
                if wanted is None or band in wanted:
                    positions.append(i)
                    held.append(band)
            if positions:
                channels[modality][array] = tuple(positions)
        if wanted is not None and (lacking := [band for band in wanted if band not in held]):
            raise ValueError(f"{file.path}: pick names {modality} {', '.join(lacking)}, which no array holds")
        bands[modality] = sensor.canonical(wanted or held)
        sensor.canonical(held)  # a band in two arrays is an error
    return bands, channels


def check_shapes(file: "NpzFile", archive: NpzArchive) -> dict[str, list[tuple[int, ...]]]:
    """Return the arrays' shapes by sensor, as [n, T, C, H, W]."""
    path = file.path
    found: dict[str, list[tuple[int, ...]]] = {sensor: [] for sensor in file.images}
    layout = "[T, C, H, W] or [n, T, C, H, W]" if file.series else "[C, H, W] or [n, C, H, W]"
    for sensor, arrays in file.images.items():
        for array, names in arrays.items():
            shape = archive.shape(array)
            if len(shape) not in ((4, 5) if file.series else (3, 4)) or shape[-3] != len(names):
                raise ValueError(
                    f"{path}: {array} has the shape {list(shape)}, expected {layout} with the "
                    f"{len(names)} bands {', '.join(names)}"
                    + ("" if file.series else "; dates need series=True")
                )
            found[sensor].append(with_all_axes(shape, file.series))
    every = [shape for shapes in found.values() for shape in shapes]
    # Where each sensor has its dates, only the arrays of one sensor must agree in T.
    own = isinstance(file.dates, dict)
    if len({shape[0] for shape in every}) > 1 or any(
        len({shape[1] for shape in part}) > 1 for part in (found.values() if own else [every])
    ):
        raise ValueError(
            f"{path}: the arrays hold different numbers of places or dates: "
            + ", ".join(f"{array} {list(archive.shape(array))}" for m in file.images.values() for array in m)
        )
    if not all(same_extent((every[0][3], every[0][4]), (shape[3], shape[4])) for shape in every):
        raise ValueError(f"{path}: the arrays are not of one extent: {[s[3:] for s in every]}")
    return found


def find_dates(file: "NpzFile", archive: NpzArchive) -> dict[str, str]:
    """Return by sensor the name of the array with its dates; empty where dates are unknown."""
    dates = dict.fromkeys(file.images, file.dates) if isinstance(file.dates, str) else file.dates
    if not dates:
        if file.keep:
            raise ValueError(f"{file.path}: keep={file.keep!r} needs dates")
        return {}
    if set(dates) != set(file.images):
        raise ValueError(
            f"{file.path}: dates are of {', '.join(dates)}, the images of {', '.join(file.images)}"
        )
    for name in dates.values():
        if name not in archive.facts or not file.series:
            raise ValueError(f"{file.path}: dates={name!r} names an array of the file, and needs series=True")
    return {sensor: dates[sensor] for sensor in file.images}  # the first is the one whose dates are frames


def with_all_axes(shape: tuple[int, ...], series: bool) -> tuple[int, ...]:
    """Return a shape with all axes, [n, T, C, H, W]."""
    if series:
        return (1, *shape) if len(shape) == 4 else shape
    return (1, 1, *shape) if len(shape) == 3 else (shape[0], 1, *shape[1:])
