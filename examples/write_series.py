"""Real image time series of published samples, written as folders of series for S4.

    python write_series.py SAMPLES --output series
    python -m rsbackbones.train recipe=s4_unet3d_tiny data.root=series/places output=run

SAMPLES holds the .npz files that are read below: WorldCereal's patch in Flanders at 40 optical and 40 radar
dates, with a land cover map, and its 12 monthly composites in Belgium; GFMap's month in Belgium; and a plot
of TreeSatAI-TS. Four sets are written: `places`, without labels, to pretrain on; `tiles`, the 16 tiles of
16 x 16 pixels of the first patch with their land cover; `gfmap`; and `treesatai`. Bands of 20 m and radar on
a coarser grid are repeated 2 x 2. Needs the extra `train`.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rsbackbones.data.product_names import parse_acquisition_time
from rsbackbones.data.series_folder import write_series

Array = npt.NDArray[Any]
S1 = ("VV", "VH")
# The bands that both places of WorldCereal have.
NINE = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B11", "B12")
COVER = {"crops": (11,), "grass": (13,), "other": (99,)}
SIDE, TILE = 64, 16
# Tiles of all three classes in each split.
SPLITS = {"val": ("0_0", "1_2", "2_3", "3_1"), "test": ("0_3", "1_0", "2_1", "3_3")}


def worldcereal_db(x: Array) -> Array:
    """Return dB = 20 log10(x) - 83; 65534 and 65535 are no data."""
    return np.where((x == 0) | (x >= 65534), np.nan, 20 * np.log10(np.maximum(x, 1)) - 83).astype(np.float32)


def without(x: Array, nodata: int) -> Array:
    """Return digital numbers with NaN where there are none."""
    return np.where(x == nodata, np.nan, x).astype(np.float32)


def write_flanders(samples: Path, output: Path) -> None:
    """Write the patch of 640 m as three places, and as labelled tiles."""
    held = np.load(samples / "worldcereal/patch_0000280849BAC91C.npz")
    fine = {str(b): without(held["s2_10m"][:, i], 65535) for i, b in enumerate(held["s2_10m_bands"])}
    coarse = {str(b): without(held["s2_20m"][:, i], 65535) for i, b in enumerate(held["s2_20m_bands"])}
    bands = fine | {b: x.repeat(2, axis=1).repeat(2, axis=2) for b, x in coarse.items()}
    images = {
        "s2": np.stack([bands[b] for b in NINE], axis=1),
        "s1": held["s1"].astype(np.float32).repeat(2, axis=2).repeat(2, axis=3),
    }
    cloud = np.isin(held["scl"], (3, 8, 9, 10)).repeat(2, axis=1).repeat(2, axis=2)
    dates = {"s2": held["s2_dates"], "s1": held["s1_dates"]}
    for first in range(3):  # every third optical date, so that few images span the year
        third = slice(first, None, 3)
        write_series(
            output / "places", f"flanders_{first}", bands={"s2": NINE, "s1": S1},
            images={**images, "s2": images["s2"][third]}, dates={**dates, "s2": dates["s2"][third]},
        )  # fmt: skip
    splits = {tile: split for split, tiles in SPLITS.items() for tile in tiles}
    for row in range(SIDE // TILE):
        for column in range(SIDE // TILE):
            cut = (..., slice(row * TILE, (row + 1) * TILE), slice(column * TILE, (column + 1) * TILE))
            write_series(
                output / "tiles", f"{row}_{column}", images={m: x[cut] for m, x in images.items()},
                dates=dates, bands={"s2": NINE, "s1": S1}, label=held["LC"][cut], classes=COVER,
                split=splits.get(f"{row}_{column}", "train"), cloud=cloud[cut],
            )  # fmt: skip


def write_belgium(samples: Path, output: Path) -> None:
    """Write the kilometer of monthly composites as four places that overlap."""
    held = np.load(samples / "worldcereal/belgium_101_12months.npz")
    images = {"s2": without(held["s2"], 65535), "s1": worldcereal_db(held["s1"])}
    pixel = abs(float(held["x"][1] - held["x"][0]))
    for row in (0, 101 - SIDE):
        for column in (0, 101 - SIDE):
            cut = (..., slice(row, row + SIDE), slice(column, column + SIDE))
            corner = (float(held["x"][column]) - pixel / 2, float(held["y"].max()) - (row - 0.5) * pixel)
            write_series(
                output / "places", f"belgium_{row}_{column}", bands={"s2": NINE, "s1": S1},
                images={m: x[cut] for m, x in images.items()}, dates=dict.fromkeys(images, held["dates"]),
                crs=str(held["crs"]), transform=(pixel, 0, corner[0], 0, -pixel, corner[1]),
            )  # fmt: skip


def write_gfmap(samples: Path, output: Path) -> None:
    """Write the month with 12 optical and 10 radar dates."""
    held = np.load(samples / "gfmap_belgium_s1s2_series_1.npz")
    left, top = float(held["x"].min()) - 5, float(held["y"].max()) + 5
    write_series(
        output / "gfmap", "april", bands={"s2": [str(b) for b in held["s2_bands"]], "s1": S1},
        images={"s2": without(held["s2"], 65535), "s1": worldcereal_db(held["s1"])},
        dates={"s2": held["s2_dates"], "s1": held["s1_dates"]},
        cloud=np.isin(held["scl"], (3, 8, 9, 10)), crs="EPSG:32631", transform=(10, 0, left, 0, -10, top),
    )  # fmt: skip


def write_treesatai(samples: Path, output: Path) -> None:
    """Write the plot of 6 x 6 pixels, both orbits together. Its order of bands is inferred, not stated."""
    held = np.load(samples / "treesatai_ts_1.npz")
    power = np.concatenate((held["s1_asc"], held["s1_des"]))
    products = {
        "s2": held["s2_products"], "s1": np.concatenate((held["s1_asc_products"], held["s1_des_products"])),
    }  # fmt: skip
    write_series(
        output / "treesatai", "plot",
        bands={"s2": ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"), "s1": S1},
        images={"s2": held["s2"], "s1": 10 * np.log10(power)},
        dates={m: [parse_acquisition_time(str(p)) for p in names] for m, names in products.items()},
    )  # fmt: skip


def main() -> None:
    """Write the four sets."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__)
    parser.add_argument("samples", type=Path)
    parser.add_argument("--output", type=Path, default=Path("series"))
    options = parser.parse_args()
    for write in (write_flanders, write_belgium, write_gfmap, write_treesatai):
        write(options.samples, options.output)
    for folder in sorted(options.output.iterdir()):
        print(f"{folder}: {sum(p.is_dir() for p in folder.iterdir())} locations")


if __name__ == "__main__":
    main()
