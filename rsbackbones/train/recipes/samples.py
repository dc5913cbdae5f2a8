"""What we can train on two CPU cores: a few hundred places from published sets, in one folder.

``PAIRS`` have Sentinel-2 and Sentinel-1, ``OPTICAL`` Sentinel-2 alone.
"""

from rsbackbones.sensors import SSL4EO_S12
from rsbackbones.train.data.npz import NpzFile
from rsbackbones.train.recipe import Part

_L2A = SSL4EO_S12["s2"].bands
_L1C = (*_L2A[:10], "B10", *_L2A[10:])
_S1 = ("VV", "VH")

PAIRS = (
    Part(
        file=NpzFile(
            path="bigearthnet_v2_pairs_80.npz",
            images={"s2": {"s2": ("B02", "B03", "B04", "B08")}, "s1": {"s1": _S1}},
        ),
        repeat=16,
    ),
    Part(
        file=NpzFile(
            path="bigearthnet_v1_pairs12band_6.npz",
            images={
                "s2": {
                    "s2_10m": ("B02", "B03", "B04", "B08"),
                    "s2_20m": ("B05", "B06", "B07", "B8A", "B11", "B12"),
                    "s2_60m": ("B01", "B09"),
                },
                "s1": {"s1": _S1},
            },
            tile=60,
        ),
        repeat=3,
    ),
    Part(
        file=NpzFile(
            path="terramesh_examples_4.npz",
            images={"s2": {"S2L2A": _L2A}, "s1": {"S1RTC": _S1}},
            tile=56,
        ),
        repeat=4,
    ),
    Part(
        file=NpzFile(
            path="sen1floods11/Spain_7370579.npz",
            images={"s2": {"s2": _L1C}, "s1": {"s1": _S1}},
            tile=64,
        ),
        repeat=3,
    ),
)
OPTICAL = (Part(file=NpzFile(path="s2l2a_unlabelled_1200.npz", images={"s2": {"images": _L2A}})),)
