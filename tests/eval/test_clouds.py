"""Mean IoU by the cloudy share of series: bins counted by hand, masks of every kind, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from rsbackbones.data.labelled.dataset import LabelledDataset
from rsbackbones.eval.clouds import (
    SCL_CLOUDS,
    StoredMasks,
    bin_by_clouds,
    cloud_shares,
    cloud_table,
    own_mask,
    s2cloudless_mask,
)
from rsbackbones.eval.metrics import from_confusion

SHARES = (0.0, 0.25, 0.1, 1.0)


def data(clouds=True, bands=("B02", "B03")):
    def read(index):
        mask = np.arange(4 * 5 * 5).reshape(4, 5, 5) < 100 * SHARES[index]
        return {"s2": np.ones((4, len(bands), 5, 5)), **({"cloud": mask} if clouds else {})}

    return LabelledDataset(
        name="cloudy", task="pixels", classes=("a", "b"), bands={"s2": bands}, units={"s2": "dn"},
        ids=tuple("wxyz"), splits={"test": np.arange(4)}, labels=None, read=read, digest="", series=True,
    )  # fmt: skip


def test_bins_have_the_mean_iou_of_their_summed_counts():
    rng = np.random.default_rng(0)
    ours, theirs = rng.integers(1, 9, (2, 4, 2, 2))
    shares = cloud_shares(data(), "test")
    assert shares.tolist() == list(SHARES)
    low, middle, empty, high = bin_by_clouds(shares, ours, theirs, (0, 0.2, 0.3, 0.5, 1))
    assert [b.series for b in (low, middle, empty, high)] == [2, 1, 0, 1]
    for found, rows in ((low, [0, 2]), (middle, [1]), (high, [3])):
        expected = [from_confusion(counts[rows].sum(0))["miou"] for counts in (ours, theirs)]
        assert (found.miou, found.against) == pytest.approx(expected)
        assert found.difference == pytest.approx(expected[0] - expected[1])
    assert np.isnan(empty.miou)
    table = cloud_table([low, empty], ("A", "B")).splitlines()
    assert table[2].startswith(f"| 0 to 20 % | 2 | {100 * low.miou:.1f} | {100 * low.against:.1f} | ")
    assert table[3] == "| 30 to 50 % | 0 | - | - | - |"


def test_masks_of_files(tmp_path):
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 12, (4, 5, 5))
    for name in "wxyz":
        np.save(tmp_path / f"{name}.npy", classes)
    plain = data(clouds=False)
    expected = np.isin(classes, [3, 8, 9, 10]).mean()
    assert cloud_shares(plain, "test", StoredMasks(tmp_path, SCL_CLOUDS)).tolist() == [expected] * 4
    assert cloud_shares(plain, "test", StoredMasks(tmp_path))[0] == (classes != 0).mean()
    np.save(tmp_path / "w.npy", classes[:3])
    with pytest.raises(
        ValueError, match=r"w\.npy: expected booleans or integers \[4, 5, 5\], got .*\[3, 5, 5\]"
    ):
        cloud_shares(plain, "test", StoredMasks(tmp_path))
    with pytest.raises(ValueError, match=r"cannot read the cloud mask .*nothing/w\.npy"):
        cloud_shares(plain, "test", StoredMasks(tmp_path / "nothing"))


def test_s2cloudless_tells_fields_from_clouds():
    pytest.importorskip("s2cloudless")
    field = {"B12": 800, "B11": 1800, "B10": 20, "B09": 1200, "B8A": 3700, "B08": 3500, "B05": 900,
             "B04": 500, "B03": 800, "B02": 900, "B01": 1200}  # fmt: skip
    images = np.empty((2, len(field), 16, 16))
    images[0] = np.array(list(field.values()))[:, None, None]
    images[1] = 6000
    mask = s2cloudless_mask(data(bands=tuple(field)))
    assert mask({"s2": images}, "w").mean(axis=(1, 2)).tolist() == [0, 1]


def test_what_has_no_clouds_is_said():
    with pytest.raises(ValueError, match="w has no cloud mask: write one beside the images"):
        cloud_shares(data(clouds=False), "test", own_mask)
    with pytest.raises(ValueError, match="holds no optical series"):
        cloud_shares(replace(data(), series=False), "test")
    with pytest.raises(ValueError, match="cloudy has no split 'val'; it has test"):
        cloud_shares(data(), "val")
    with pytest.raises(ValueError, match=r"s2cloudless looks at B01.* cloudy has no B01, B04"):
        s2cloudless_mask(data())
    with pytest.raises(ValueError, match=r"edges must increase.*got \[0, 0\.5, 0\.2\]"):
        bin_by_clouds(np.zeros(1), np.ones((1, 2, 2)), np.ones((1, 2, 2)), (0, 0.5, 0.2))
    with pytest.raises(ValueError, match="1 shares, and counts of 2 and 1 series"):
        bin_by_clouds(np.zeros(1), np.ones((2, 2, 2)), np.ones((1, 2, 2)))
