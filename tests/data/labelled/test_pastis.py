"""PASTIS-R in the published layout: against torchgeo's reader, dates by number, and what is refused."""

import json
import warnings

import numpy as np
import pytest

from rsbackbones.data.labelled import open_labelled
from tests.data.labelled.pastis_folder import MEANS, features_of, write_metadata, write_pastis


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return write_pastis(tmp_path_factory.mktemp("pastis"))


def test_images_and_labels_are_torchgeos(published):
    datasets = pytest.importorskip("torchgeo.datasets")
    data = open_labelled(published)
    assert (data.task, data.series, len(data.classes)) == ("pixels", True, 19)
    assert {k: len(v) for k, v in data.splits.items()} == {"train": 3, "val": 1, "test": 1}
    for split, folds in (("train", (1, 2, 3)), ("val", (4,)), ("test", (5,))):
        s2, s1 = (datasets.PASTIS(published.parent, folds=folds, bands=bands) for bands in ("s2", "s1a"))
        assert [data.ids[i] for i in data.splits[split]] == [str(i) for i in s2.idxs]
        for place, index in enumerate(data.splits[split]):
            sample = data.read(int(index))
            np.testing.assert_array_equal(sample["s2"], s2[place]["image"].numpy())
            np.testing.assert_array_equal(sample["s1"], s1[place]["image"].numpy())
            mask = s2[place]["mask"].numpy()
            np.testing.assert_array_equal(sample["label"], np.where(mask == 19, -1, mask))
            assert (sample["label"][0] == -1).all()


@pytest.mark.parametrize("texts", [True, False])
def test_dates_are_those_of_the_numbers(tmp_path, texts):
    folder = write_pastis(tmp_path, texts=texts)
    days = open_labelled(folder).read(2)["dates"]  # 5 optical and 7 radar images
    start = np.datetime64("2018-09-17").astype(int)
    assert days["s2"].tolist() == [start + 30 * i for i in range(5)]
    assert days["s1"].tolist() == [start + 30 * i for i in range(7)]


def test_eleven_dates_and_more_are_sorted_by_number(tmp_path):
    folder = write_pastis(tmp_path)
    features = features_of(folder)
    days = np.datetime64("2018-10-01") + np.arange(12)
    named = {str(i): str(day).replace("-", "") for i, day in enumerate(days)}
    features[0]["properties"]["dates-S2"] = dict(sorted(named.items()))  # "0", "1", "10", "11", "2", ...
    write_metadata(folder, features)
    np.save(
        folder / "DATA_S2/S2_100.npy",
        np.arange(1, 13, dtype=np.int16)[:, None, None, None] + np.zeros((12, 10, 8, 8), np.int16),
    )
    sample = open_labelled(folder).read(0)
    assert sample["s2"][:, 0, 0, 0].tolist() == list(range(1, 13))
    assert np.diff(sample["dates"]["s2"]).tolist() == [1] * 11


def test_orbits(published):
    up, down, both = (open_labelled(published, orbit=o).read(0) for o in ("ascending", "descending", "both"))
    assert (up["dates"]["s1"] < down["dates"]["s1"]).all()
    assert len(both["s1"]) == len(up["s1"]) + len(down["s1"])
    assert (np.diff(both["dates"]["s1"]) > 0).all()
    order = np.argsort(np.concatenate([up["dates"]["s1"], down["dates"]["s1"]]))
    np.testing.assert_array_equal(both["s1"], np.concatenate([up["s1"], down["s1"]])[order])
    with pytest.raises(ValueError, match="orbit must be one of ascending, descending, both, got 'east'"):
        open_labelled(published, orbit="east")
    with pytest.raises(ValueError, match="does not take classes"):
        open_labelled(published, classes=("a", "b"))


def test_equal_dates_and_dates_out_of_order_are_sorted(tmp_path):
    folder = write_pastis(tmp_path)
    features = features_of(folder)
    features[0]["properties"]["dates-S2"] = {"0": 20190301, "1": 20190101, "2": 20190101}
    write_metadata(folder, features)
    stored = np.load(folder / "DATA_S2/S2_100.npy")
    sample = open_labelled(folder).read(0)
    np.testing.assert_array_equal(sample["s2"], stored[[1, 2, 0]])
    assert np.diff(sample["dates"]["s2"]).tolist() == [0, 59]


def test_statistics_are_the_mean_over_the_training_folds(published):
    data = open_labelled(published)
    mean, std = zip(*data.statistics()["s2"].values(), strict=True)
    np.testing.assert_allclose(mean, MEANS["S2"] + 2)
    np.testing.assert_allclose(std, MEANS["S2"] / 10 + 2)
    lists = {"train": published.parent / "train.txt", "test": published.parent / "test.txt"}
    for (_, path), patch in zip(lists.items(), ("104", "100"), strict=True):
        path.write_text(patch)
    fifth = open_labelled(published, ids=lists).statistics()["s2"]["B02"]
    assert fifth == pytest.approx((MEANS["S2"][0] + 5, MEANS["S2"][0] / 10 + 5))
    assert list(data.statistics()["s1"]) == ["VV", "VH", "VV/VH"]
    both = open_labelled(published, orbit="both").statistics()["s1"]["VV"]
    assert both[0] == pytest.approx((MEANS["S1A"][0] + MEANS["S1D"][0]) / 2 + 2)


def test_background_is_a_class_unless_it_is_ignored(published):
    assert open_labelled(published).classes[0] == "background"
    data = open_labelled(published, ignore=(0,))
    assert len(data.classes) == 18
    raw = np.load(published / "ANNOTATIONS/TARGET_100.npy")[0]
    np.testing.assert_array_equal(data.read(0)["label"] == -1, (raw == 0) | (raw == 19))


def test_an_image_with_holes_is_missing(tmp_path):
    from rsbackbones.data.series import read_series

    folder = write_pastis(tmp_path)
    path = folder / "DATA_S1A/S1A_100.npy"
    images = np.load(path)
    images[1, 0, 3, 3] = np.nan
    np.save(path, images)
    sample = open_labelled(folder).read(0)
    _, days, valid = read_series(sample, "s1")
    assert valid.tolist() == [True, False, True, True, True]
    assert len(days) == 5
    images = np.load(folder / "DATA_S2/S2_100.npy")
    images[2, :, 0, 0] = -10000
    np.save(folder / "DATA_S2/S2_100.npy", images)
    _, _, valid = read_series(open_labelled(folder, nodata=-10000).read(0), "s2")
    assert valid.tolist() == [True, True, False]


def broken(folder, what):
    """Break patch 100 in one way."""
    features = features_of(folder)
    properties = features[0]["properties"]
    s2, label = folder / "DATA_S2/S2_100.npy", folder / "ANNOTATIONS/TARGET_100.npy"
    if what == "fewer dates":
        properties["dates-S2"] = {"0": 20190101, "1": 20190102}
    elif what == "unreadable date":
        properties["dates-S2"] = {"0": 20190101, "1": 20191301, "2": 20190301}
    elif what == "no dates":
        properties["dates-S1A"] = {}
    elif what == "dates of no kind":
        properties["dates-S1A"] = [20190101]
    elif what == "a gap":
        properties["dates-S2"] = {"0": 20190101, "1": 20190102, "3": 20190103}
    elif what == "no file":
        s2.unlink()
    elif what == "a fold":
        properties["Fold"] = 6
    elif what == "no valid image":
        np.save(s2, np.zeros((3, 10, 8, 8), np.int16))
    elif what == "NaN":
        np.save(folder / "DATA_S1A/S1A_100.npy", np.full((5, 3, 8, 8), np.nan, np.float32))
    elif what == "another size":
        np.save(s2, np.ones((3, 10, 8, 12), np.int16))
    elif what == "bands":
        np.save(s2, np.ones((3, 4, 8, 8), np.int16))
    elif what == "a label's size":
        np.save(label, np.zeros((3, 12, 8), np.uint8))
    elif what == "a label":
        np.save(label, np.full((3, 8, 8), 20, np.uint8))
    write_metadata(folder, features)


@pytest.mark.parametrize(("what", "match"), [
    ("fewer dates", "100: S2: 2 dates and 3 images"),
    ("unreadable date", "100: S2: date 1 is 20191301, expected YYYYMMDD"),
    ("no dates", "100: S1A: there are no dates"),
    ("dates of no kind", r"100: S1A: expected dates by number.*\[20190101\]"),
    ("a gap", "100: S2: dates are numbered 0, 1, 3, "),
    ("no file", "100: S2: cannot read .*S2_100.npy"),
    ("a fold", "100: Fold must be one of 1 to 5, got 6"),
    ("no valid image", "100: s2 has no usable image at any of 3 dates; the first is zero everywhere"),
    ("NaN", "100: s1 has no usable image at any of 5 dates; the first has .*NaN"),
    ("another size", "100: the sensors' images differ in size: s2 8 x 12, s1 8 x 8"),
    ("bands", r"100: s2: expected \[T, C, H, W\] with the bands B02.*got \[3, 4, 8, 8\]"),
    ("a label's size", "100: the label map has 12 x 8 pixels, the image 8 x 8"),
    ("a label", "100: the label map holds 20, out of range"),
])  # fmt: skip
def test_what_cannot_be_read_is_named(tmp_path, what, match):
    folder = write_pastis(tmp_path)
    broken(folder, what)
    with pytest.raises(ValueError, match=match):
        open_labelled(folder).read(0)


def test_series_without_a_common_day_are_counted(tmp_path, published):
    folder = write_pastis(tmp_path)
    features = features_of(folder)
    later = {str(i): 20200101 + i for i in range(3)}
    features[0]["properties"]["dates-S2"] = json.dumps(later)
    write_metadata(folder, features)
    with pytest.warns(UserWarning, match=r"1 of 5 samples have sensors whose series share no day: 100"):
        data = open_labelled(folder)
    assert any("1 of 5 samples" in note for note in data.notes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_labelled(published)


def test_pastis_without_radar(tmp_path):
    import shutil

    folder = write_pastis(tmp_path)
    for name in ("DATA_S1A", "DATA_S1D"):
        shutil.rmtree(folder / name)
    data = open_labelled(folder)
    assert set(data.bands) == {"s2"}
    assert set(data.read(0)) == {"s2", "dates", "label"}
