"""Labelled series in our own layout: written ones and GeoTIFFs give the same, and what is refused."""

import json

import numpy as np
import pytest
import rasterio

from rsbackbones.data.labelled import open_labelled
from rsbackbones.data.series_folder import write_series

BANDS = {"s2": ("B02", "B03", "B04"), "s1": ("VV", "VH")}
CLASSES = {"maize": [1, 2], "grass": [7]}


def location(seed, times=(3, 4), side=8):
    rng = np.random.default_rng(seed)
    return {
        "images": {
            "s2": rng.integers(300, 3000, (times[0], 3, side, side)).astype(np.uint16),
            "s1": rng.normal(-12, 3, (times[1], 2, side, side)).astype(np.float32),
        },
        "dates": {s: 18000 + 10 * rng.permutation(n) for s, n in zip(("s2", "s1"), times, strict=True)},
        "label": rng.choice([0, 1, 2, 7], (side, side)),
        "cloud": rng.random((times[0], side, side)) < 0.3,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("own")
    for number, split in enumerate(("train", "train", "val", "test")):
        write_series(
            out, f"p{number}", **location(number), bands=BANDS, classes=CLASSES, ignore=(0,), split=split
        )
    write_series(out, "unlabelled", images=location(9)["images"], dates=location(9)["dates"], bands=BANDS)
    return out


def test_samples_are_what_was_written(folder):
    data = open_labelled(folder)
    assert (data.task, data.series, data.classes) == ("pixels", True, ("maize", "grass"))
    assert {split: [data.ids[i] for i in rows] for split, rows in data.splits.items()} == {
        "train": ["p0", "p1"], "val": ["p2"], "test": ["p3"],
    }  # fmt: skip
    assert any("1 locations without a label" in note for note in data.notes)
    written, sample = location(1), data.read(1)
    for sensor in ("s2", "s1"):
        order = np.argsort(written["dates"][sensor])
        np.testing.assert_array_equal(sample[sensor], written["images"][sensor][order])
        assert sample["dates"][sensor].tolist() == sorted(written["dates"][sensor].tolist())
    np.testing.assert_array_equal(sample["cloud"], written["cloud"][np.argsort(written["dates"]["s2"])])
    expected = np.select([written["label"] == 0, written["label"] == 7], [-1, 1], 0)
    np.testing.assert_array_equal(sample["label"], expected)
    assert open_labelled(folder, ignore=(2,)).read(1)["label"].tolist() != expected.tolist()
    assert open_labelled(folder, subset=0.5, seed=1).splits["train"].size == 1


def test_geotiffs_give_the_same(folder, tmp_path):
    def tif(path, array, nodata=None):
        path.parent.mkdir(parents=True, exist_ok=True)
        with rasterio.open(
            path, "w", driver="GTiff", count=len(array), height=8, width=8, dtype=array.dtype,
            crs="EPSG:32631", transform=rasterio.Affine(10, 0, 500000, 0, -10, 5000000),
            nodata=nodata,
        ) as file:  # fmt: skip
            file.write(array)

    for number in range(4):
        written = location(number)
        for sensor, days in written["dates"].items():
            for day, image in zip(days.astype("datetime64[D]"), written["images"][sensor], strict=True):
                tif(tmp_path / f"p{number}" / sensor / f"{day}.tif", image)
        for day, mask in zip(written["dates"]["s2"].astype("datetime64[D]"), written["cloud"], strict=True):
            tif(tmp_path / f"p{number}" / "cloud" / f"{day}.tif", mask[None].astype(np.uint8))
        tif(tmp_path / f"p{number}" / "label.tif", written["label"][None].astype(np.uint8))
    (tmp_path / "set.json").write_text((folder / "set.json").read_text())
    first, second = open_labelled(folder), open_labelled(tmp_path)
    for index in range(4):
        one, other = first.read(index), second.read(index)
        for name in ("s2", "s1", "label", "cloud"):
            np.testing.assert_array_equal(one[name], other[name])
        assert {m: d.tolist() for m, d in one["dates"].items()} == {
            m: d.tolist() for m, d in other["dates"].items()
        }
    # A pixel without data has no label, also where the value is the code of a class.
    grass = location(1)["label"] == 7
    expected = np.where(grass, -1, first.read(1)["label"])
    holes = np.where(grass, np.nan, location(1)["label"]).astype(np.float32)
    for label, nodata in ((location(1)["label"].astype(np.uint8), 7), (holes, np.nan)):
        tif(tmp_path / "p1/label.tif", label[None], nodata)
        np.testing.assert_array_equal(open_labelled(tmp_path).read(1)["label"], expected)


def test_statistics_are_those_of_the_training_samples(folder, tmp_path):
    lists = {"train": tmp_path / "train.txt", "test": tmp_path / "test.txt"}
    lists["train"].write_text("p2\np3")
    lists["test"].write_text("p0")
    images = np.concatenate([location(i)["images"]["s2"] for i in (2, 3)])
    for subset in (None, 0.5):  # a share is normalized by all training samples
        mean, std = open_labelled(folder, ids=lists, subset=subset).statistics()["s2"]["B03"]
        assert (mean, std) == pytest.approx((images[:, 1].mean(), images[:, 1].std()))
    images = np.concatenate([location(i)["images"]["s2"] for i in (0, 1)])
    assert open_labelled(folder).statistics()["s2"]["B03"][0] == pytest.approx(images[:, 1].mean())


def test_units_are_those_that_the_user_states(folder):
    assert open_labelled(folder).units == {"s2": "dn", "s1": "db"}
    assert open_labelled(folder, units={"s2": "reflectance"}).units == {"s2": "reflectance", "s1": "db"}


def test_what_cannot_be_used_is_named(folder, tmp_path):
    with pytest.raises(ValueError, match="does not take nodata"):
        open_labelled(folder, nodata=0)
    held = json.loads((folder / "set.json").read_text())
    write_series(tmp_path, "p0", images=location(0)["images"], dates=location(0)["dates"], bands=BANDS)
    with pytest.raises(ValueError, match="names no classes; add them, or pass classes="):
        open_labelled(tmp_path)
    with pytest.raises(ValueError, match="no location has a label"):
        open_labelled(tmp_path, classes=("a", "b"))
    assert set(held["classes"]) == set(CLASSES)
    broken = location(0)
    broken["images"]["s1"][:] = np.nan
    write_series(tmp_path, "p1", **broken, bands=BANDS, classes=CLASSES, ignore=(0,), split="train")
    write_series(tmp_path, "p2", **location(2), bands=BANDS, classes=CLASSES, ignore=(0,), split="test")
    with pytest.raises(ValueError, match="p1: s1 has no usable image at any of 4 dates"):
        open_labelled(tmp_path).read(0)
