"""Readers of labelled sets, from files that are written here with other libraries."""

import pickle
import zipfile

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import from_origin

from rsbackbones.data.labelled import open_labelled

RNG = np.random.default_rng(0)


def picture(path, seed, size=16, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return pixels


def raster(path, array, names=(), nodata=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", count=len(array), height=array.shape[1], width=array.shape[2],
        dtype=array.dtype, crs="EPSG:32630", transform=from_origin(0, 0, 10, 10), nodata=nodata,
    ) as file:  # fmt: skip
        file.write(array)
        for index, name in enumerate(names, start=1):
            file.set_band_description(index, name)


@pytest.fixture
def folders(tmp_path):
    for c, name in enumerate(("forest", "river")):
        for i in range(5):
            picture(tmp_path / "set" / name / f"{name}_{i}.png", 10 * c + i)
    return tmp_path / "set"


def test_class_folders(folders):
    data = open_labelled(folders)
    assert (data.task, data.classes) == ("classes", ("forest", "river"))
    assert data.bands == {"s2": ("B04", "B03", "B02")}
    assert data.units == {"s2": "rgb8"}
    assert {k: len(v) for k, v in data.splits.items()} == {"train": 8, "test": 2}
    assert any("8-bit pictures" in note for note in data.notes)
    index = data.ids.index("river/river_3.png")
    expected = np.random.default_rng(13).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert np.array_equal(data.read(index)["s2"], expected.transpose(2, 0, 1))
    assert data.labels[index] == 1
    assert np.array_equal(pickle.loads(pickle.dumps(data.read))(index)["s2"], data.read(index)["s2"])


def test_a_zip_of_class_folders_is_the_same_set(folders, tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in folders.rglob("*.png"):
            archive.write(path, f"EuroSAT/2750/{path.relative_to(folders)}")
    packed, data = open_labelled(tmp_path / "set.zip"), open_labelled(folders)
    assert (packed.ids, packed.labels.tolist()) == (data.ids, data.labels.tolist())
    assert np.array_equal(packed.splits["test"], data.splits["test"])
    assert np.array_equal(pickle.loads(pickle.dumps(packed.read))(4)["s2"], data.read(4)["s2"])


def test_folders_of_splits(tmp_path):
    for split in ("train", "valid"):
        for name in ("a", "b"):
            picture(tmp_path / split / name / f"{split}_{name}.jpg", 0)
    data = open_labelled(tmp_path)
    assert {k: [data.ids[i] for i in v] for k, v in data.splits.items()} == {
        "train": ["train/a/train_a.jpg", "train/b/train_b.jpg"],
        "test": ["valid/a/valid_a.jpg", "valid/b/valid_b.jpg"],
    }
    (tmp_path / "test").mkdir()
    with pytest.raises(ValueError, match="test split is empty"):
        open_labelled(tmp_path)


def test_geotiffs_keep_their_bands_and_mark_what_has_no_data(tmp_path):
    array = RNG.integers(1, 4000, (3, 8, 8)).astype(np.uint16)
    array[1, 2, 3] = 0
    for name in ("a", "b"):
        raster(tmp_path / name / f"{name}.tif", array, ("B8", "B2", "cloud"), nodata=0)
        raster(tmp_path / name / f"{name}2.tif", array, ("B8", "B2", "cloud"), nodata=0)
    data = open_labelled(tmp_path)
    assert data.bands == {"s2": ("B08", "B02")}
    assert data.units == {}
    image = data.read(0)["s2"]
    assert np.isnan(image[:, 2, 3]).all()
    assert np.isfinite(image).sum() == image.size - 2
    assert image[0, 0, 0] == array[0, 0, 0]


def test_geotiffs_without_descriptions_need_names(tmp_path):
    for name in ("a", "b"):
        for i in range(2):
            raster(tmp_path / name / f"{name}{i}.tif", RNG.integers(1, 9, (2, 8, 8)).astype(np.uint16))
    with pytest.raises(ValueError, match="no description"):
        open_labelled(tmp_path)
    assert open_labelled(tmp_path, bands={"s1": ("VH", "VV")}).bands == {"s1": ("VH", "VV")}
    with pytest.raises(ValueError, match="B99"):
        open_labelled(tmp_path, bands={"s2": ("B99", "B02")})


def test_a_split_that_is_not_stratified_leaves_classes_to_chance(tmp_path):
    """Of 20 + 20 pictures 8 are tested on either way; balanced for every seed only where it is asked for."""
    for name in ("river", "forest"):
        for i in range(20):
            picture(tmp_path / name / f"{name}_{i}.png", i)
    counts = {True: set(), False: set()}
    for stratify in counts:
        for seed in range(8):
            data = open_labelled(tmp_path, seed=seed, stratify=stratify)
            test = data.labels[data.splits["test"]]
            assert len(test) == 8
            counts[stratify].add(int(test.sum()))
    assert counts[True] == {4}
    assert len(counts[False]) > 1


def test_changed_files_change_the_digest_and_a_split_does_not(folders):
    before = open_labelled(folders).digest
    assert open_labelled(folders, subset=0.5, seed=3).digest == before
    picture(folders / "river" / "river_0.png", 99, size=17)
    assert open_labelled(folders).digest != before


def table(tmp_path, text):
    (tmp_path / "labels.csv").write_text(text)
    return tmp_path


def test_table_of_pairs_with_several_classes(tmp_path):
    s2, s1 = RNG.integers(1, 9, (2, 8, 8)).astype(np.uint16), RNG.normal(-12, 1, (2, 8, 8)).astype(np.float32)
    rows = []
    for i in range(4):
        raster(tmp_path / f"o{i}.tif", s2 + i, ("B04", "B03"))
        raster(tmp_path / f"r{i}.tif", s1 + i, ("VV", "VH"))
        rows.append(
            f"o{i}.tif,r{i}.tif,{('water', 'water;urban', 'urban', '')[i]},{'train' if i < 2 else 'test'},x"
        )
    folder = table(tmp_path, "s2,s1,labels,split,weather\n" + "\n".join(rows))
    data = open_labelled(folder, units={"s1": "db"})
    assert (data.task, data.classes) == ("multilabel", ("urban", "water"))
    assert data.labels.tolist() == [[False, True], [True, True], [True, False], [False, False]]
    assert data.bands == {"s2": ("B04", "B03"), "s1": ("VV", "VH")}
    sample = data.read(2)
    assert np.array_equal(sample["s2"], (s2 + 2).astype(np.float32))
    assert np.array_equal(sample["s1"], s1 + 2)
    assert "weather" in data.notes[0]


def test_table_of_label_rasters(tmp_path):
    image = RNG.normal(0, 1, (1, 8, 8)).astype(np.float32)
    image[0, 0, 0] = np.nan
    labels = np.full((1, 8, 8), 2, np.uint8)
    labels[0, 1], labels[0, 2] = 1, 255
    for i in range(3):
        raster(tmp_path / f"i{i}.tif", image, ("VV",))
        raster(tmp_path / f"m{i}.tif", labels)
    folder = table(tmp_path, "path,mask,split\n" + "".join(
        f"i{i}.tif,m{i}.tif,{'train' if i else 'test'}\n" for i in range(3)))  # fmt: skip
    with pytest.raises(ValueError, match="name the classes"):
        open_labelled(folder)
    data = open_labelled(folder, classes=("dry", "mud", "water"), ignore=(255,))
    sample = data.read(0)
    assert data.labels is None
    assert sample["label"][0].tolist() == [-1] + [2] * 7  # no data there, so no label either
    assert (sample["label"][1] == 1).all()
    assert (sample["label"][2] == -1).all()
    assert np.isfinite(sample["s1"]).all()
    assert np.isclose(sample["s1"][0, 0, 0], np.nanmean(image))
    grouped = open_labelled(folder, classes={"wet": [1, 2], "dry": [0]})
    assert set(np.unique(grouped.read(0)["label"])) == {-1, 0}
    with pytest.raises(ValueError, match=r"i0.tif.*255, out of range"):
        open_labelled(folder, classes=("dry", "mud", "water")).read(0)
    raster(tmp_path / "m1.tif", labels[:, :4])
    with pytest.raises(ValueError, match=r"i1.tif: the label map has 4 x 8 pixels, the image 8 x 8"):
        open_labelled(folder, classes=("dry", "mud", "water"), ignore=(255,)).read(1)


def test_table_of_two_dates(tmp_path):
    for i in range(2):
        raster(tmp_path / f"b{i}.tif", np.full((1, 8, 8), 10, np.uint16), ("B04",))
        raster(tmp_path / f"a{i}.tif", np.full((1, 8, 8), 20, np.uint16), ("B04",))
        raster(tmp_path / f"m{i}.tif", np.eye(8, dtype=np.uint8)[None])
    folder = table(
        tmp_path, "before,after,mask,split\nb0.tif,a0.tif,m0.tif,train\nb1.tif,a1.tif,m1.tif,test\n"
    )
    data = open_labelled(folder, classes=("no change", "change"))
    assert data.task == "change"
    sample = data.read(1)
    assert sample["s2"][:, 0, 0, 0].tolist() == [10, 20]
    assert np.array_equal(sample["label"], np.eye(8))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,label\na.png,x\n", "expected the columns path"),
        ("path,class\na.png,x\n", "one of the columns label"),
        ("path,label\na.png,\n", "line 2 has no label"),
        ("path,label\nnone.png,x\n", "1 of 1 files are missing"),
        ("path,label\na.png,x\nb.png,x\n", "two are needed"),
        ("path,label\na.png,0\nb.png,7\n", "out of range"),
        ("path,label\na.png,x\na.png,y\n", "1 images have several rows"),
        ("path,label\n", "holds no rows"),
    ],
)
def test_bad_tables(tmp_path, text, said):
    for name in ("a", "b"):
        picture(tmp_path / f"{name}.png", 0)
    classes = ("p", "q") if "7" in text else None
    with pytest.raises(ValueError, match=said):
        open_labelled(table(tmp_path, text), classes=classes)


def test_bad_folders(tmp_path, folders):
    with pytest.raises(ValueError, match="there is no"):
        open_labelled(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no JPEG"):
        open_labelled(tmp_path / "empty")
    picture(tmp_path / "one" / "forest" / "x.png", 0)
    with pytest.raises(ValueError, match="one class"):
        open_labelled(tmp_path / "one")
    picture(folders / "loose.png", 0)
    with pytest.raises(ValueError, match=r"loose\.png"):
        open_labelled(folders)
    (folders / "loose.png").unlink()
    (folders / "river" / "river_4.png").write_bytes(b"not a picture")
    data = open_labelled(folders)
    with pytest.raises(ValueError, match=r"river/river_4\.png: cannot read"):
        data.read(data.ids.index("river/river_4.png"))
    with pytest.raises(ValueError, match="does not take mapping, classes"):
        open_labelled(folders, mapping={"s2": "x"}, classes=("a", "b"))


def test_gray_pictures_are_refused(tmp_path):
    for name in ("a", "b"):
        picture(tmp_path / name / f"{name}.png", 0, mode="L")
    with pytest.raises(ValueError, match="mode L; expected RGB"):
        open_labelled(tmp_path)
