"""Training data for two CPU cores: a few hundred places from published data sets, in one folder.

``PAIRS``: Sentinel-2 and Sentinel-1. ``CLOUDY``: both, with a cloudy Sentinel-2 image. ``OPTICAL``:
Sentinel-2 only. ``SEASONS``: two places at many dates, and simulated places, because two are few.
"""

from rsbackbones.data.npz import NpzFile
from rsbackbones.data.simulated import SimulatedPlaces
from rsbackbones.input_spec import SSL4EO_S12
from rsbackbones.train.recipe import Part

_L2A = SSL4EO_S12["s2"].bands
_L1C = (*_L2A[:10], "B10", *_L2A[10:])
_10M, _20M = ("B02", "B03", "B04", "B08"), ("B05", "B06", "B07", "B8A", "B11", "B12")
_S1 = ("VV", "VH")

PAIRS = (
    Part(
        file=NpzFile(
            path="bigearthnet_v2_pairs_80.npz",
            images={"s2": {"s2": _10M}, "s1": {"s1": _S1}},
        ),
        repeats=16,
    ),
    Part(
        file=NpzFile(
            path="bigearthnet_v1_pairs12band_6.npz",
            images={
                "s2": {
                    "s2_10m": _10M,
                    "s2_20m": _20M,
                    "s2_60m": ("B01", "B09"),
                },
                "s1": {"s1": _S1},
            },
            tile=60,
        ),
        repeats=3,
    ),
    Part(
        file=NpzFile(
            path="terramesh_examples_4.npz",
            images={"s2": {"S2L2A": _L2A}, "s1": {"S1RTC": _S1}},
            tile=56,
        ),
        repeats=4,
    ),
    Part(
        file=NpzFile(
            path="sen1floods11/Spain_7370579.npz",
            images={"s2": {"s2": _L1C}, "s1": {"s1": _S1}},
            tile=64,
        ),
        repeats=3,
    ),
)
OPTICAL = (Part(file=NpzFile(path="s2l2a_unlabelled_1200.npz", images={"s2": {"images": _L2A}})),)
CLOUDY = (
    Part(
        file=NpzFile(
            path="sen12mscr_pair_1.npz",
            images={"s2": {"s2_cloudy": _L1C}, "s1": {"s1": _S1}},
            tile=64,
        ),
        repeats=4,
    ),
)
SEASONS = (
    # A square kilometer in Belgium, 12 monthly composites, of which three of Sentinel-2 are missing.
    Part(
        file=NpzFile(
            path="worldcereal/belgium_101_12months.npz",
            images={
                "s2": {"s2": ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B11", "B12")},
                "s1": {"s1": _S1},
            },
            series=True,
            dates="dates",
            units={"s1": "worldcereal_db"},
            nodata={"s2": 65535, "s1": 65535},
        ),
        repeats=128,
    ),
    # 640 m in Flanders at dates of acquisition: cloudless ones, spread evenly over the year.
    Part(
        file=NpzFile(
            path="worldcereal/patch_0000280849BAC91C.npz",
            images={
                "s2": {
                    "s2_10m": _10M,
                    "s2_20m": _20M,
                },
                "s1": {"s1": _S1},
            },
            series=True,
            dates={"s2": "s2_dates", "s1": "s1_dates"},
            keep=(
                "2018-10-13",
                "2019-01-21",
                "2019-02-25",
                "2019-04-21",
                "2019-05-16",
                "2019-07-25",
                "2019-08-24",
                "2019-10-18",
            ),
        ),
        repeats=128,
    ),
    Part(file=SimulatedPlaces(places=64, size=96), repeats=4),
)
