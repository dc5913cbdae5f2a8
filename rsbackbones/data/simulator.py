"""Make-believe Sentinel-1 and Sentinel-2 scenes of one temperate farming landscape.

`simulate_scene` draws a map (parcels, woods, a river, a lake, a town with villages, roads), fills
it with materials whose shares follow the calendar, and looks at it twice: as a Sentinel-2 L2A image
with its 10, 20 and 60 m bands, and as a speckled Sentinel-1 GRD backscatter image. It serves demos,
tests and small seasonal training sets that must not depend on a download.

The reflectances and backscatter levels in `_MATERIALS` and the crop calendars in `_CLASSES` are
round numbers of our own, chosen inside the ranges commonly published for these covers in central
Europe. Nothing here is fitted to data, and this is not a radiative transfer model: there are no
clouds, no atmosphere beyond a touch of haze, no viewing geometry; mixing is linear.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
C64 = NDArray[np.complex64]
Ints = NDArray[np.int64]

S2_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
_COARSER = (6, 1, 1, 1, 2, 2, 2, 1, 2, 6, 2, 2)  # pixel size of each band in units of 10 m
S1_BANDS = ("VV", "VH")
MIN_SIZE = 16
LOOKS = 4.4  # equivalent number of looks of an IW GRD image

# Reflectance in percent for the bands of S2_BANDS, then VV and VH sigma nought in dB.
_MATERIALS: dict[str, tuple[float, ...]] = {
    "water": (2.4, 2.8, 3.2, 2.0, 1.6, 1.2, 1.1, 1.0, 0.9, 0.8, 0.5, 0.3, -20.5, -27.5),
    "silt": (3.6, 4.8, 7.4, 5.6, 4.8, 2.6, 2.4, 2.0, 1.8, 1.5, 0.8, 0.5, -18.5, -26.0),
    "needles": (1.5, 1.9, 3.4, 2.1, 5.2, 15.0, 18.5, 19.8, 21.0, 21.5, 10.0, 4.5, -10.0, -16.0),
    "leaves": (1.8, 2.4, 4.8, 2.6, 8.2, 26.0, 34.0, 36.0, 38.0, 38.5, 17.5, 7.5, -9.6, -15.4),
    "litter": (3.5, 4.3, 5.8, 7.0, 9.5, 12.5, 14.0, 15.5, 17.0, 18.5, 20.0, 13.5, -9.8, -16.8),
    "grass": (3.0, 4.0, 8.2, 5.4, 12.0, 28.0, 34.5, 37.0, 38.5, 39.0, 21.0, 11.0, -13.0, -20.0),
    "hay": (5.0, 6.2, 9.2, 10.5, 15.0, 20.5, 23.0, 25.5, 27.5, 29.0, 31.0, 21.0, -12.5, -20.5),
    "cereal": (2.4, 3.1, 6.6, 3.6, 10.0, 32.0, 41.0, 44.0, 46.0, 46.0, 19.0, 8.5, -15.5, -21.5),
    "row crop": (2.7, 3.4, 7.6, 3.8, 11.5, 35.0, 45.0, 48.0, 50.0, 50.0, 21.0, 9.5, -10.2, -16.4),
    "bloom": (3.2, 4.2, 15.0, 14.5, 20.0, 34.0, 40.0, 43.0, 44.5, 45.0, 23.0, 11.5, -10.5, -16.0),
    "straw": (7.2, 9.2, 13.6, 17.8, 20.6, 23.0, 25.0, 27.5, 29.5, 30.5, 35.0, 26.0, -12.5, -20.5),
    "soil": (6.0, 7.6, 10.4, 13.4, 15.4, 16.8, 18.0, 19.6, 21.2, 22.5, 29.0, 24.0, -11.5, -20.5),
    "tile": (7.5, 8.6, 10.6, 14.0, 15.5, 16.5, 17.5, 19.0, 20.0, 20.5, 24.0, 22.0, -5.5, -13.0),
    "metal": (32.0, 36.0, 38.0, 39.0, 40.0, 40.5, 41.0, 42.0, 42.0, 42.0, 40.0, 36.0, -2.0, -11.0),
    "asphalt": (8.0, 9.0, 10.4, 11.4, 12.4, 13.2, 14.0, 14.8, 15.4, 15.8, 18.0, 16.5, -17.0, -24.0),
}

_BY_MAP = ""  # a share that the map itself sets: silt in the river, metal among the roofs
# Name -> (what lies at the bottom, what covers part of it when). A season is a list of
# day-of-year:percent, joined by straight lines around the year.
_CLASSES: dict[str, tuple[str, dict[str, str]]] = {
    "water": ("water", {"silt": _BY_MAP}),
    "coniferous forest": ("litter", {"needles": "15:90 180:97"}),
    "broadleaf forest": ("litter", {"leaves": "1:8 100:8 135:92 180:97 265:85 305:15 320:8"}),
    "grassland": ("hay", {"grass": "1:40 75:45 120:95 170:85 220:65 270:75 330:45"}),
    "winter wheat": (
        "soil",
        {
            "cereal": "1:30 75:40 115:85 150:100 172:75 195:5 210:0 285:0 320:22",
            "straw": "150:0 172:20 195:90 215:65 255:15 275:0",
        },
    ),
    "maize": (
        "soil",
        {
            "row crop": "140:0 165:30 192:95 240:100 265:60 285:0",
            "straw": "240:0 268:35 290:40 330:0",
        },
    ),
    "rapeseed": (
        "soil",
        {
            "row crop": "1:45 75:50 108:95 122:15 138:15 150:95 165:85 190:5 245:0 285:50",
            "bloom": "108:0 122:80 138:80 150:0",
            "straw": "165:0 195:80 235:30 250:0",
        },
    ),
    "sugar beet": ("soil", {"row crop": "120:0 150:35 175:95 270:95 295:50 310:0"}),
    "bare soil": ("soil", {}),
    "building": ("tile", {"metal": _BY_MAP}),
    "road": ("asphalt", {}),
}
CLASSES = tuple(_CLASSES)
_WATER, _CONIFER, _BROADLEAF, _GRASS = range(4)
_WHEAT, _MAIZE, _RAPE, _BEET, _SOIL, _BUILDING, _ROAD = range(4, len(CLASSES))
_CROP_MIX = {_WHEAT: 0.34, _MAIZE: 0.18, _RAPE: 0.13, _BEET: 0.11, _SOIL: 0.06, _GRASS: 0.18}

_PIXEL = 10.0
_STEP = 5.0  # the map is drawn twice as fine as the images, so that borders give mixed pixels
_TABLE = 4093  # random attributes live in tables of this (prime) length, found by hashing


@dataclass(frozen=True, eq=False)  # == on arrays has no single answer
class Scene:
    """One simulated place on one day, on a common 10 m grid."""

    s2: NDArray[np.uint16]  # [12, H, W] L2A digital numbers: reflectance * 10000
    s1: F32  # [2, H, W] sigma nought in dB
    land_cover: NDArray[np.uint8]  # [H, W] index into `classes`
    classes: tuple[str, ...]
    s2_bands: tuple[str, ...]
    s1_bands: tuple[str, ...]
    transform: tuple[float, ...]  # a, b, c, d, e, f of the affine map from (column, row) to meters
    crs: str


@dataclass(frozen=True)
class _Land:
    """The map on the fine grid: what is where, and how each spot departs from its class."""

    cover: NDArray[np.uint8]
    mix: F32  # the share behind _BY_MAP
    ahead: F32  # days by which the season is early here
    vigour: F32  # factor on every seasonal share
    tone: F32  # factor on reflectance
    echo: F32  # dB added to backscatter
    height: F32  # meters


def simulate_scene(height: int, width: int, *, seed: int = 0, day_of_year: int = 180) -> Scene:
    """Simulate a scene of `height` x `width` 10 m pixels; `seed` alone decides the geography."""
    return simulate_days(height, width, seed=seed, days=(day_of_year,))[0]


def simulate_days(height: int, width: int, *, seed: int = 0, days: Sequence[int]) -> tuple[Scene, ...]:
    """Simulate one place on several days of the year, each as `simulate_scene` does.

    The map, which is most of the work, is drawn once.
    """
    if height < MIN_SIZE or width < MIN_SIZE:
        raise ValueError(
            f"height and width are {height} and {width}; both must be at least {MIN_SIZE} pixels"
        )
    if wrong := [day for day in days if not 1 <= day <= 366]:
        raise ValueError(f"day_of_year is {wrong[0]}; it must lie in 1..366")
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must not be negative")
    # Whole 60 m cells, cropped at the end, so that every resolution divides the grid.
    padded = (-(-height // 6) * 6, -(-width // 6) * 6)
    land = _draw_land(np.random.default_rng((seed, 0)), (padded[0] * 2, padded[1] * 2))
    counts = [_block_mean((land.cover == k).astype(np.float32), 2) for k in range(len(CLASSES))]
    land_cover = np.argmax(counts, axis=0)[:height, :width].astype(np.uint8)
    scenes = []
    for day in days:
        acquisition = np.random.default_rng((seed, day))  # noise is new on every day
        optical, radar = _light_and_echo(land, day)
        scenes.append(
            Scene(
                s2=_sense_optical(acquisition, optical)[:, :height, :width].copy(),
                s1=_sense_radar(acquisition, radar)[:, :height, :width].copy(),
                land_cover=land_cover.copy(),
                classes=CLASSES,
                s2_bands=S2_BANDS,
                s1_bands=S1_BANDS,
                transform=(_PIXEL, 0.0, 399960.0, 0.0, -_PIXEL, 5600040.0),
                crs="EPSG:32633",
            )
        )
    return tuple(scenes)


def write_scene(scene: Scene, folder: str | Path) -> tuple[Path, Path]:
    """Write `scene_s2.tif` and `scene_s1.tif` into `folder` and return their paths."""
    import rasterio

    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)

    def write(name: str, image: NDArray[Any], bands: tuple[str, ...]) -> Path:
        partial = folder / f".{os.getpid()}.{name}"  # a reader never meets half a file
        try:
            with rasterio.open(
                partial,
                "w",
                driver="GTiff",
                count=image.shape[0],
                height=image.shape[1],
                width=image.shape[2],
                dtype=image.dtype.name,
                crs=scene.crs,
                transform=rasterio.Affine(*scene.transform),
                compress="deflate",
            ) as file:
                file.write(image)
                file.descriptions = bands
            partial.replace(folder / name)
        finally:
            partial.unlink(missing_ok=True)
        return folder / name

    return (
        write("scene_s2.tif", scene.s2, scene.s2_bands),
        write("scene_s1.tif", scene.s1, scene.s1_bands),
    )


# ------------------------------------------------------------------------------ the geography
# Places are complex numbers: meters east of the north-west corner, plus i times meters south.


def _draw_land(rng: np.random.Generator, shape: tuple[int, int]) -> _Land:
    """Paint the map layer by layer: parcels, woods, tracks, water, settlements, roads."""
    side = _STEP * min(shape)
    east, south = ((np.arange(n, dtype=np.float32) + 0.5) * _STEP for n in (shape[1], shape[0]))
    z = east[None, :] + 1j * south[:, None]
    ragged = _noise(rng, shape, 250.0, 1.7)
    fertile = _noise(rng, shape, 180.0, 1.6)
    grain = rng.standard_normal(shape, dtype=np.float32)

    bend = (45 - 45j) * _noise(rng, shape, 900.0, 3.0) + 6j * ragged
    block, parcel, row, edge = _parcels(rng, z + bend)
    draw = rng.random((6, _TABLE), dtype=np.float32)
    crop, own, start, strength, shade, rough = draw[:, parcel]
    shares = np.cumsum(list(_CROP_MIX.values()))[:-1]
    cover = np.array(list(_CROP_MIX), np.uint8)[np.searchsorted(shares, crop)]

    # Woods follow the terrain's whims, and in part the parcels: some borders are straight.
    woods = _noise(rng, shape, 1100.0, 1.9) + 0.25 * ragged + 0.9 * (own - 0.5)
    forest = (woods > np.quantile(woods[::4, ::4], rng.uniform(0.68, 0.82))) & (shade < 0.96)
    conifer = fertile + 5.0 * (strength - 0.55) < 0
    cover[forest] = np.where(conifer, _CONIFER, _BROADLEAF)[forest]
    custom = draw[0, block]
    cover[(edge < 5) & (custom < 0.5) & ~forest] = _ROAD  # farm tracks
    cover[(edge < 9) & (custom > 0.8) & ~forest & (grain > -1)] = _BROADLEAF  # hedgerows

    heading = rng.uniform(0, 2 * math.pi)
    across = 1j * np.exp(1j * heading) * side
    middle = complex(z.mean()) + rng.uniform(-0.1, 0.1) * side * (1 + 1j)
    reach = 3.0 * math.hypot(*shape) * _STEP
    river = _distance(shape, _meander(rng, middle, heading, reach, 1100.0, 1.05), 260.0)
    breadth = min(75.0, 0.06 * side) * (1 + 0.15 * ragged)
    cover[(river < 60 + 240 * own) & (cover >= _WHEAT) & (cover <= _SOIL)] = _GRASS  # floodplain
    cover[(river < breadth / 2 + 22) & (ragged > -0.4)] = _BROADLEAF
    shore = 1 + 0.25 * _noise(rng, shape, 700.0, 3.0) + 0.02 * ragged
    lake = np.abs(z - (middle - 0.3 * across)) * shore < min(380.0, 0.1 * side)
    cover[lake | (river < breadth / 2)] = _WATER
    land = _Land(
        cover=cover,
        mix=np.where(lake, 0.1, 0.75).astype(np.float32),
        ahead=24 * (start - 0.5) + 2 * fertile,
        vigour=np.clip(1.02 - 0.22 * strength - 0.05 * fertile - 0.05 * row, 0, 1),
        tone=1 + 0.24 * (shade - 0.5) + 0.05 * fertile + 0.05 * row + 0.015 * grain,
        echo=4.0 * (rough - 0.5) + 0.5 * fertile,
        height=20.0 * _noise(rng, shape, 1500.0, 3.0),
    )

    towns = [(middle + 0.24 * across, min(650.0, 0.15 * side))]
    for _ in range(round(z.size * _STEP**2 / 8e6)):
        place = rng.uniform(0.05, 0.95) * east[-1] + 1j * rng.uniform(0.05, 0.95) * south[-1]
        towns.append((complex(place), rng.uniform(130, 260)))
    for center, radius in towns:
        _build(rng, land, z - center, radius * (1 + 0.3 * ragged))
        for turn in (heading + math.pi / 2, heading)[: 1 + (radius > 300)]:
            bearing = turn + rng.uniform(-0.3, 0.3)
            road = _distance(shape, _meander(rng, center, bearing, reach, 2500.0, 0.3), 20.0)
            cover[(road < 6.0) & ~lake] = _ROAD  # over the river, but up to the lake only

    wooded = (cover == _CONIFER) | (cover == _BROADLEAF)
    land.tone[wooded] *= 0.94 + 0.11 * grain[wooded]  # crowns and the shade between them
    land.tone[cover == _WATER], land.echo[cover == _WATER] = 1.0, 0.0
    return land


def _parcels(rng: np.random.Generator, z: C64) -> tuple[Ints, Ints, F32, F32]:
    """Voronoi blocks about 650 m across, each cut into strips and the strips into fields.

    Gives the block and the parcel as table indices, the row texture (-0.5..0.5) and the distance to
    the block's border in meters.
    """
    size = 650.0
    table = rng.random((6, _TABLE), dtype=np.float32)
    nearest: F32 = np.full(z.shape, np.inf, np.float32)
    second = nearest
    block: Ints = np.zeros(z.shape, np.int64)
    offset = np.zeros_like(z)
    for i, j in itertools.product((-1, 0, 1), repeat=2):
        cell_x, cell_y = np.floor(z.real / size) + i, np.floor(z.imag / size) + j
        key = _hash(cell_x, cell_y)
        seed_x, seed_y = cell_x + 0.1 + 0.8 * table[0, key], cell_y + 0.1 + 0.8 * table[1, key]
        away = z - size * (seed_x + 1j * seed_y)
        distance = np.asarray(np.abs(away), np.float32)
        closer = distance < nearest
        block[closer], offset[closer] = key[closer], away[closer]
        second = np.minimum(second, np.maximum(nearest, distance))
        nearest = np.minimum(nearest, distance)
    angle = rng.uniform(0, math.pi) + 0.9 * table[2, block] + 1.57 * (table[3, block] > 0.6)
    turned = offset * np.exp(-1j * angle)
    strip = turned.imag / (70 + 170 * table[4, block] ** 2) + table[5, block]
    piece = turned.real / (260 + 400 * table[5, block]) + table[0, _hash(block, strip)]
    row = table[1, _hash(block, turned.imag / 14)] - 0.5
    return block, _hash(block, strip, piece), row, (second - nearest) * np.float32(0.5)


def _build(rng: np.random.Generator, land: _Land, z: C64, radius: F32) -> None:
    """Build a settlement around the origin of `z`: streets, lots with houses, gardens, works."""
    table = rng.random((2, _TABLE), dtype=np.float32)
    angle = rng.uniform(0, math.pi)
    inside = (np.abs(z) < radius) & (land.cover != _WATER)
    size = radius[inside]
    turned = z[inside] * np.exp(-1j * angle)
    v = turned.imag
    u = turned.real + 0.08 * size * np.sin(2.5 * v / size)
    works = (v > 0.4 * size) & (size > 300)  # only towns have them, at one edge
    lot_u, lot_v = np.where(works, 85.0, 21.0), np.where(works, 60.0, 25.0)
    luck, kind = table[:, _hash(u / lot_u, v / lot_v)]
    built = (u % lot_u > 0.3 * lot_u) & (v % lot_v > 0.3 * lot_v)
    built &= luck < 0.95 - 0.45 * np.abs(turned) / size
    street = (u % 96 < 8) | (v % 144 < 8)
    yard = np.where(works, _ROAD, np.where(kind > 0.7, _BROADLEAF, _GRASS))
    land.cover[inside] = np.where(street, _ROAD, np.where(built, _BUILDING, yard))
    land.mix[inside] = np.where(works, kind**2, 0.35 * kind**4)
    land.tone[inside] = 0.8 + 0.4 * luck
    # Walls facing the radar answer by double bounce: a few lots outshine everything else.
    corner = np.where(kind * 97 % 1 > 0.94, 13.0, 0.0)
    land.echo[inside] = np.where(built, -3.0 + 7.0 * kind + corner, 0.0)


def _meander(
    rng: np.random.Generator,
    through: complex,
    heading: float,
    length: float,
    wave: float,
    swing: float,
) -> NDArray[np.complex128]:
    """Points every 5 m of a sine-generated curve (the classic meander) through a place."""
    s = np.arange(0, length, _STEP)
    knots = np.arange(0, length + 2 * wave, wave)
    phase = np.cumsum(rng.uniform(0.7, 1.4, knots.size)) * 2 * math.pi
    strength = swing * rng.uniform(0.6, 1.2, knots.size)
    turn = heading + np.interp(s, knots, strength) * np.sin(np.interp(s, knots, phase))
    path = np.cumsum(np.exp(1j * turn)) * _STEP
    return np.asarray(path - path[len(path) // 2] + through)


def _distance(shape: tuple[int, int], path: NDArray[np.complex128], reach: float) -> F32:
    """Distance in meters to a densely sampled path, at most `reach`."""
    squared = np.full(shape, reach**2, np.float32)
    span = math.ceil(reach / _STEP)
    south, east = ((np.arange(n, dtype=np.float32) + 0.5) * _STEP for n in shape)
    for x, y in zip(path.real.tolist(), path.imag.tolist(), strict=True):
        i, j = int(y // _STEP), int(x // _STEP)
        rows = slice(max(i - span, 0), max(i + span + 1, 0))
        cols = slice(max(j - span, 0), max(j + span + 1, 0))
        near = (south[rows, None] - y) ** 2 + (east[cols] - x) ** 2
        squared[rows, cols] = np.minimum(squared[rows, cols], near)
    return np.sqrt(squared)


def _noise(rng: np.random.Generator, shape: tuple[int, int], scale: float, slope: float) -> F32:
    """Zero-mean, unit-variance field: flat spectrum above `scale` meters, power law below."""
    # The field is periodic; a margin of one scale keeps opposite edges of the scene unrelated.
    rows, cols = (-(-(n + int(scale / _STEP)) // 64) * 64 for n in shape)
    white = np.fft.rfft2(rng.standard_normal((rows, cols), dtype=np.float32))
    fy, fx = np.fft.fftfreq(rows, _STEP)[:, None], np.fft.rfftfreq(cols, _STEP)[None, :]
    shaping = ((fx**2 + fy**2) * scale**2 + 1) ** (-slope / 2)
    field = np.fft.irfft2(white * shaping.astype(np.float32), s=(rows, cols)).astype(np.float32)
    return np.asarray((field - field.mean()) / field.std())[: shape[0], : shape[1]]


def _hash(*keys: NDArray[Any]) -> Ints:
    """Scatter the integer parts of coordinates over the table."""
    mixed: Ints = np.zeros(keys[0].shape, np.int64)
    for key in keys:
        mixed = (mixed ^ np.floor(key).astype(np.int64)) * 73856093 + 19349663  # may wrap around
    return (mixed >> 15) % _TABLE


# ------------------------------------------------------------------------------ the two sensors


def _light_and_echo(land: _Land, day: int) -> tuple[F32, F32]:
    """Mix the materials on the map: reflectance [12, H, W] and linear backscatter [2, H, W]."""
    share = np.zeros((len(_MATERIALS), *land.cover.shape), np.float32)
    place = {name: i for i, name in enumerate(_MATERIALS)}
    for k, (ground, layers) in enumerate(_CLASSES.values()):
        here = land.cover == k
        left = np.ones(np.count_nonzero(here), np.float32)
        local_day, vigour = day + land.ahead[here], land.vigour[here]
        for material, season in layers.items():
            if season == _BY_MAP:
                part = land.mix[here]
            else:
                part = vigour * _share_on(local_day, season)
            share[place[material]][here] = part
            left -= part
        share[place[ground]][here] = left

    # Sun at 10:30 over 50 degrees north: low winter light brings out relief and tree shadows,
    # of which the L2A processing leaves a part.
    declination = math.radians(23.4) * math.sin(2 * math.pi * (day - 81) / 365)
    high = math.sin(math.radians(50)) * math.sin(declination)
    high += math.cos(math.radians(50)) * math.cos(declination) * math.cos(math.radians(22))
    lean = min(math.sqrt(1 - high**2) / high, 2.5)
    rise_south, rise_east = np.gradient(land.height, _STEP) * (land.cover != _WATER)
    light = land.tone * (1 - 0.6 * lean * (0.92 * rise_south + 0.39 * rise_east))
    wooded = (land.cover == _CONIFER) | (land.cover == _BROADLEAF)
    shadow = np.zeros_like(wooded)
    for k in range(1, round(16 * lean / _STEP) + 1):  # 16 m trees, shading what lies north-west
        up, aside = math.ceil(0.92 * k), math.ceil(0.39 * k)
        shadow[:-up, :-aside] |= wooded[up:, aside:]
    light = np.where(shadow & ~wooded, 0.55 * light, light)
    gain = 10 ** (land.echo / 10) * (1 + 2.0 * rise_east)  # the radar looks from the west

    table = np.array(list(_MATERIALS.values()), np.float32)
    lit = np.stack([_block_mean(plane * light, 2) for plane in share])
    heard = np.stack([_block_mean(plane * gain, 2) for plane in share])
    return (
        np.einsum("mb,mhw->bhw", table[:, :12] / 100, lit, optimize=True),
        np.einsum("mb,mhw->bhw", 10 ** (table[:, 12:] / 10), heard, optimize=True),
    )


def _share_on(day: NDArray[Any], season: str) -> F32:
    """Read a season of `_CLASSES` on the given days: the share of the ground, 0..1."""
    knots = [knot.split(":") for knot in season.split()]
    days, percent = [int(day) for day, _ in knots], [float(percent) for _, percent in knots]
    return np.asarray(np.interp(day, days, percent, period=365) / 100, np.float32)


def _sense_optical(rng: np.random.Generator, reflectance: F32) -> NDArray[np.uint16]:
    """Each band at its own ground sampling distance, with blur, haze and noise, back on 10 m."""
    haze = rng.uniform(0.002, 0.012) * np.array([1.3, 1, 0.6, 0.35, 0.3] + [0.15] * 7)
    image = np.empty(reflectance.shape, np.uint16)
    for b, factor in enumerate(_COARSER):
        # With pixel averaging, 0.15 gives the instrument's contrast of about 0.25 at Nyquist.
        seen = _blur(_block_mean(reflectance[b], factor), 0.15) + np.float32(haze[b])
        seen += (0.0006 + 0.005 * seen) * rng.standard_normal(seen.shape, dtype=np.float32)
        counts = np.clip(np.rint(seen * 10000), 1, 65535).astype(np.uint16)  # 0 means no data
        image[b] = counts.repeat(factor, axis=0).repeat(factor, axis=1)
    return image


def _sense_radar(rng: np.random.Generator, backscatter: F32) -> F32:
    """Speckled backscatter in dB: five looks, one of them weak, worth LOOKS independent ones."""
    # GRD pixels oversample a 20 m resolution cell, so the complex looks are blurred before they
    # are detected: neighboring pixels share speckle while one pixel keeps its gamma-like spread.
    p = (8 + math.sqrt(64 - 80 * (1 - 1 / LOOKS))) / 40  # 4 p + q = 1 and 4 p^2 + q^2 = 1 / LOOKS
    image = np.empty_like(backscatter)
    for c, channel in enumerate(backscatter):
        speckle = np.zeros_like(channel)
        for weight in (p, p, p, p, 1 - 4 * p):
            for _ in ("real", "imaginary"):
                wave = rng.standard_normal(np.add(speckle.shape, 2), dtype=np.float32)
                speckle += np.float32(weight / 2) * _blur(wave, 0.25)[1:-1, 1:-1] ** 2
        speckle /= (0.25**2 + 0.5**2 + 0.25**2) ** 2  # the energy the blur took
        image[c] = 10 * np.log10(_blur(channel, 0.2) * speckle)
    return np.clip(image, -40, 20, out=image)


def _block_mean(image: F32, factor: int) -> F32:
    """Average factor x factor blocks."""
    total = sum(image[i::factor, j::factor] for i in range(factor) for j in range(factor))
    return np.asarray(total / np.float32(factor**2))


def _blur(image: F32, tail: float) -> F32:
    """Separable three-tap blur with weights (tail, 1 - 2 tail, tail)."""
    for axis in (0, 1):
        wide = np.pad(image, [(1, 1) if a == axis else (0, 0) for a in (0, 1)], mode="reflect")
        before, after = (wide[:-2], wide[2:]) if axis == 0 else (wide[:, :-2], wide[:, 2:])
        image = np.float32(1 - 2 * tail) * image + np.float32(tail) * (before + after)
    return image
