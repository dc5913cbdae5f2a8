"""torchgeo's classes read files in the published layout, with few and small images."""

import json

import numpy as np
import pytest
import rasterio
from PIL import Image

from rsbackbones.data.labelled import open_labelled
from rsbackbones.data.labelled.torchgeo_sets import KNOWN

pytest.importorskip("torchgeo")
EUROSAT = ("AnnualCrop", "Forest", "River")


def tif(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", count=len(array), height=array.shape[1], width=array.shape[2],
        dtype=array.dtype,
    ) as file:  # fmt: skip
        file.write(array)


def levels(count, size, first=100, dtype=np.uint16):
    """Channel c holds first + c."""
    return np.broadcast_to(np.arange(first, first + count, dtype=dtype)[:, None, None], (count, size, size))


def test_eurosat_has_b8a_last(tmp_path):
    folder = tmp_path / "ds/images/remote_sensing/otherDatasets/sentinel_2/tif"
    for split, number in (("train", 1), ("val", 2), ("test", 3)):
        for name in EUROSAT:
            tif(folder / name / f"{name}_{number}.tif", levels(13, 8))
        (tmp_path / f"eurosat-{split}.txt").write_text("".join(f"{name}_{number}.jpg\n" for name in EUROSAT))
    data = open_labelled("torchgeo:EuroSAT", root=tmp_path)
    assert (data.task, data.classes) == ("classes", EUROSAT)
    assert {k: len(v) for k, v in data.splits.items()} == {"train": 3, "val": 3, "test": 3}
    # The published files are B01 ... B08, B09, B10, B11, B12, B8A.
    assert data.bands["s2"][8:] == ("B09", "B10", "B11", "B12", "B8A")
    index = data.splits["test"][2]
    assert data.ids[index].endswith("River/River_3.tif")
    assert data.labels[index] == 2
    assert data.read(index)["s2"][:, 0, 0].tolist() == list(range(100, 113))
    pictures = open_labelled("torchgeo:EuroSAT", root=tmp_path, sensors={"rgb": "s2"})
    assert dict(pictures.bands) == {"rgb": data.bands["s2"]}
    assert (pictures.units["rgb"], pictures.sensor("rgb").name) == ("dn", "s2")
    np.testing.assert_array_equal(pictures.read(index)["rgb"], data.read(index)["s2"])


def test_bigearthnet_gives_vh_before_vv(tmp_path):
    names = [f"B{n}" for n in ("01", "02", "03", "04", "05", "06", "07", "08", "8A", "09", "11", "12")]
    for split, number in (("train", 0), ("val", 1), ("test", 2)):
        s2, s1 = f"S2A_{number}", f"S1A_{number}"
        for value, band in enumerate(names):
            tif(tmp_path / "BigEarthNet-v1.0" / s2 / f"{s2}_{band}.tif", levels(1, 12, 100 + value))
        for value, band in ((-10.0, "VV"), (-20.0, "VH")):
            tif(tmp_path / "BigEarthNet-S1-v1.0" / s1 / f"{s1}_{band}.tif", levels(1, 12, value, np.float32))
        said = json.dumps({"labels": ["Sea and ocean", "Pastures"][: number + 1]})
        for folder, name in (("BigEarthNet-v1.0", s2), ("BigEarthNet-S1-v1.0", s1)):
            (tmp_path / folder / name / f"{name}_labels_metadata.json").write_text(said)
        (tmp_path / f"bigearthnet-{split}.csv").write_text(f"{s2},{s1}\n")
    data = open_labelled("torchgeo:BigEarthNet", root=tmp_path)
    assert (data.task, len(data.classes)) == ("multilabel", 19)
    test = data.splits["test"][0]
    assert {data.classes[k] for k in np.flatnonzero(data.labels[test])} == {"Marine waters", "Pastures"}
    sample = data.read(test)
    assert dict(zip(data.bands["s1"], sample["s1"][:, 0, 0].tolist(), strict=True)) == {"VH": -20, "VV": -10}
    assert dict(zip(data.bands["s2"], sample["s2"][:, 0, 0].tolist(), strict=True)) == {
        name: 100 + value for value, name in enumerate(names)
    }
    assert any("whole decibels" in note for note in data.notes)


def test_oscd_is_a_change_set(tmp_path):
    bands = KNOWN["OSCD"].bands["s2"]
    prefix = "Onera Satellite Change Detection dataset - "
    for split, region in (("Train", "paris"), ("Test", "rio")):
        for date, first in ((1, 100), (2, 200)):
            for value, band in enumerate(bands):
                path = tmp_path / f"{prefix}Images" / region / f"imgs_{date}_rect" / f"{band}.tif"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((8, 6), first + value, np.uint16)).save(path)
        (tmp_path / f"{prefix}Images" / region / "dates.txt").write_text(
            "date_1: 20160101\ndate_2: 20180101\n"
        )
        mask = tmp_path / f"{prefix}{split} Labels" / region / "cm" / "cm.png"
        mask.parent.mkdir(parents=True)
        Image.fromarray(np.eye(8, 6, dtype=np.uint8) * 255).save(mask)
    data = open_labelled("torchgeo:OSCD", root=tmp_path)
    assert {k: len(v) for k, v in data.splits.items()} == {"train": 1, "test": 1}
    sample = data.read(data.splits["test"][0])
    assert sample["s2"][:, :, 0, 0].tolist() == [list(range(100, 113)), list(range(200, 213))]
    assert np.array_equal(sample["label"], np.eye(8, 6))


def test_dfc2020_pairs_two_data_sets(tmp_path):
    root = tmp_path / "dfc2020_s1s2"
    label = np.arange(64, dtype=np.uint8).reshape(1, 8, 8) % 11
    for split in ("train", "val", "test"):
        tif(root / "dfc" / f"place_dfc_{split}.tif", label)
        tif(root / "s1" / f"place_s1_{split}.tif", levels(2, 8, -15, np.float32))
        tif(root / "s2" / f"place_s2_{split}.tif", levels(13, 8))
        (root / f"dfc-{split}-new.csv").write_text(f"place_dfc_{split}.tif\n")
    data = open_labelled("torchgeo:DFC2020", root=tmp_path)
    assert (data.task, len(data.classes), data.classes[0]) == ("pixels", 10, "Forest")
    sample = data.read(data.splits["val"][0])
    assert sample["s1"][:, 0, 0].tolist() == [-15, -14]
    assert sample["s2"][:, 0, 0].tolist() == list(range(100, 113))
    # Label 0 is no class, so that 1, Forest, becomes 0.
    assert np.array_equal(sample["label"], label[0].astype(int) - 1)


def test_eurosat_sar(tmp_path):
    for split, number in (("train", 1), ("val", 2), ("test", 3)):
        for name in EUROSAT:
            path = tmp_path / "eurosat_s1" / "all_imgs" / name / f"{name}_{number}.tif"
            tif(path, levels(2, 8, -15, np.float32))
        (tmp_path / "eurosat_s1" / f"eurosat-{split}.txt").write_text(
            "".join(f"{name}_{number}.jpg\n" for name in EUROSAT)
        )
    data = open_labelled("torchgeo:EuroSAT-SAR", root=tmp_path)
    names = [data.classes[data.labels[i]] for i in data.splits["test"]]
    assert names == list(EUROSAT)
    assert data.read(0)["s1"][:, 0, 0].tolist() == [-15, -14]


def test_pastis_is_one_image_for_each_series(tmp_path):
    root = tmp_path / "PASTIS-R"
    features = []
    for fold in range(1, 6):
        series = np.stack(
            [np.broadcast_to(levels(10, 4, 100 + date, np.int16), (10, 4, 4)) for date in range(5)]
        )
        target = np.full((3, 4, 4), fold, np.uint8)
        target[0, 0] = 19
        for folder, name, array in (
            ("DATA_S2", f"S2_{fold}", series),
            ("ANNOTATIONS", f"TARGET_{fold}", target),
        ):
            (root / folder).mkdir(parents=True, exist_ok=True)
            np.save(root / folder / f"{name}.npy", array)
        features.append({
            "type": "Feature", "properties": {"ID_PATCH": fold, "Fold": fold},
            "geometry": {"type": "Point", "coordinates": [2.0, 47.0]},
        })  # fmt: skip
    (root / "metadata.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    data = open_labelled("torchgeo:PASTIS", root=tmp_path)
    assert {k: len(v) for k, v in data.splits.items()} == {"train": 3, "val": 1, "test": 1}
    sample = data.read(data.splits["test"][0])
    assert sample["s2"][:, 0, 0].tolist() == list(range(102, 112))
    assert sample["label"][0].tolist() == [-1] * 4
    assert (sample["label"][1:] == 5).all()
    assert any("median" in note for note in data.notes)


def test_missing_files_and_names(tmp_path):
    with pytest.raises(ValueError, match="torchgeo finds no EuroSAT"):
        open_labelled("torchgeo:EuroSAT", root=tmp_path)
    with pytest.raises(ValueError, match="unknown data set torchgeo:Nothing"):
        open_labelled("torchgeo:Nothing", root=tmp_path)
    with pytest.raises(ValueError, match="root="):
        open_labelled("torchgeo:EuroSAT")


@pytest.mark.parametrize("name", KNOWN)
def test_the_table_names_classes_that_torchgeo_has(name):
    import torchgeo.datasets

    for kind in KNOWN[name].classes_of.values():
        assert hasattr(torchgeo.datasets, kind)
