"""Described .npz files, and mappings of others."""

import json

import numpy as np
import pytest

from rsbackbones.data.labelled import open_labelled

RNG = np.random.default_rng(0)
S2 = RNG.integers(1, 4000, (12, 3, 8, 8)).astype(np.uint16)
BANDS = np.array(["B2", "B03", "B8A"])


def write(path, **arrays):
    np.savez_compressed(path, **arrays)
    return path


@pytest.fixture
def described(tmp_path):
    return write(
        tmp_path / "set.npz", s2=S2, s2_bands=BANDS, label=np.arange(12) % 3,
        classes=np.array(["a", "b", "c"]), id=np.array([f"place {i}" for i in range(12)]),
        split=np.array(["train"] * 9 + ["test"] * 3), units=np.array(["s2=dn_baseline_0400"]),
    )  # fmt: skip


def test_described(described):
    data = open_labelled(described)
    assert (data.name, data.task, data.classes) == ("set", "classes", ("a", "b", "c"))
    assert data.bands == {"s2": ("B02", "B03", "B8A")}
    assert data.units == {"s2": "dn_baseline_0400"}
    assert data.labels.tolist() == [0, 1, 2] * 4
    assert {k: v.tolist() for k, v in data.splits.items()} == {"train": list(range(9)), "test": [9, 10, 11]}
    assert np.array_equal(data.read(7)["s2"], S2[7])
    data.read(7)["s2"][:] = 0
    assert np.array_equal(data.read(7)["s2"], S2[7]), "what is read is the reader's own"


def test_a_mapping_may_state_bands_alone(tmp_path):
    path = write(tmp_path / "bare.npz", s2=S2, label=np.arange(12) % 3)
    assert open_labelled(path, mapping={"s2_bands": ["B02", "B03", "B8A"]}).bands["s2"] == (
        "B02",
        "B03",
        "B8A",
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"s2_bands": BANDS[::-1]}, "other bands than a.npz"),
        ({"classes": np.array(["b", "a"])}, "other classes than a.npz"),
        ({"units": np.array(["s2=reflectance"])}, "other units than a.npz"),
        ({"label": np.zeros((12, 8, 8), int)}, "other axes of the labels than a.npz"),
        ({"split": np.array(["train"] * 11)}, "11 values of 'split' for 12 samples"),
    ],
)
def test_files_of_one_set_must_agree(changes, message, tmp_path):
    """What the first file says is taken for all: another order in the second would be wrong in silence."""
    arrays = {"s2": S2, "s2_bands": BANDS, "label": np.arange(12) % 2, "classes": np.array(["a", "b"]),
              "split": np.array(["train"] * 8 + ["test"] * 4), "units": np.array(["s2=dn"])}  # fmt: skip
    write(tmp_path / "a.npz", **arrays)
    write(tmp_path / "b.npz", **arrays)
    (tmp_path / "set.yaml").write_text("files: '*.npz'\n")
    assert len(open_labelled(tmp_path / "set.yaml")) == 24
    write(tmp_path / "b.npz", **(arrays | changes))
    with pytest.raises(ValueError, match=message):
        open_labelled(tmp_path / "set.yaml")


def test_classes_that_nobody_named_are_the_numbers_that_occur(tmp_path):
    counted = open_labelled(write(tmp_path / "one.npz", s2=S2, s2_bands=BANDS, label=1 + np.arange(12) % 3))
    assert counted.classes == ("1", "2", "3")
    assert counted.labels.tolist() == [0, 1, 2] * 4
    two = np.stack([S2, S2], axis=1)
    maps = np.arange(12 * 64).reshape(12, 8, 8) % 2
    change = open_labelled(write(tmp_path / "change.npz", s2=two, s2_bands=BANDS, label=maps))
    assert change.classes == ("no change", "change")


def test_another_mapping_of_the_same_arrays_is_other_data(tmp_path):
    """What is kept of a wrong mapping must not serve the corrected one."""
    path = write(tmp_path / "parts.npz", a=S2[:, :2], b=S2[:, :2][::-1], label=np.arange(12) % 2)
    one, other = (
        open_labelled(path, mapping={"s2": {x: ["B02", "B03"], y: ["B04", "B08"]}})
        for x, y in (("a", "b"), ("b", "a"))
    )
    assert one.bands == other.bands
    assert one.digest != other.digest


def test_names_several_classes_maps_and_two_dates(tmp_path):
    words = open_labelled(write(tmp_path / "w.npz", s2=S2, s2_bands=BANDS, label=np.array(["x", "y"] * 6)))
    assert words.classes == ("x", "y")
    several = np.arange(24).reshape(12, 2) % 3 == 0
    multi = open_labelled(write(tmp_path / "m.npz", s2=S2, s2_bands=BANDS, label=several.astype(np.uint8)))
    assert (multi.task, multi.labels.dtype) == ("multilabel", bool)
    assert np.array_equal(multi.labels, several)
    maps = RNG.integers(-1, 3, (12, 8, 8))
    pixels = open_labelled(write(tmp_path / "p.npz", s2=S2, s2_bands=BANDS, label=maps))
    assert (pixels.task, pixels.classes, pixels.labels) == ("pixels", ("0", "1", "2"), None)
    assert np.array_equal(pixels.read(3)["label"], maps[3])
    two = np.stack([S2, S2 + 1], axis=1)
    change = open_labelled(write(tmp_path / "c.npz", s2=two, s2_bands=BANDS, label=maps.clip(0, 1)))
    assert change.task == "change"
    assert np.array_equal(change.read(3)["s2"], two[3])


def test_a_mapping_names_arrays_and_groups_codes(tmp_path):
    write(tmp_path / "raw.npz", images=S2, codes=np.array([111, 112, 311, 999] * 3), key=np.arange(12))
    (tmp_path / "set.yaml").write_text(
        "name: grouped\nfiles: raw.npz\ns2: images\ns2_bands: [B02, B03, B8A]\nlabel: codes\nid: key\n"
        "classes: {town: [111, 112], forest: [311]}\nunits: {s2: reflectance}\n"
    )
    data = open_labelled(tmp_path / "set.yaml")
    assert (data.name, data.classes, len(data)) == ("grouped", ("town", "forest"), 9)
    assert data.labels.tolist() == [0, 0, 1] * 3
    assert any("3 samples left out" in note for note in data.notes)
    assert data.ids[3] == "4"
    assert np.array_equal(data.read(3)["s2"], S2[4]), "the place after the one left out"
    same = open_labelled(tmp_path / "raw.npz", mapping=tmp_path / "set.yaml")
    assert same.digest == data.digest


def test_several_files_of_one_place_with_coarser_bands(tmp_path):
    for i, (height, width) in enumerate([(12, 18), (18, 12)]):
        write(
            tmp_path / f"city{i}.npz", early=np.full((1, height, width), 10 + i, np.uint16),
            late=np.full((1, height, width), 20 + i, np.uint16), change=np.eye(height, width, dtype=np.uint8),
            early60=np.full((2, height // 6, width // 6), 3, np.uint16),
            late60=np.full((2, height // 6, width // 6), 4, np.uint16),
        )  # fmt: skip
    (tmp_path / "cities.yaml").write_text(
        "files: city*.npz\ns2:\n  before: {early: [B04], early60: [B01, B09]}\n"
        "  after: {late: [B04], late60: [B01, B09]}\n"
        "label: change\nclasses: [no change, change]\nsplit: {train: [city1], test: [city0]}\n"
    )
    data = open_labelled(tmp_path / "cities.yaml")
    assert (data.task, data.ids, data.bands) == ("change", ("city0", "city1"), {"s2": ("B04", "B01", "B09")})
    assert {k: v.tolist() for k, v in data.splits.items()} == {"train": [1], "test": [0]}
    image = data.read(1)["s2"]
    assert image.shape == (2, 3, 18, 12)
    assert image[:, :, 5, 5].tolist() == [[11, 3, 3], [21, 4, 4]]


@pytest.mark.parametrize("images", [S2, S2[0]], ids=["places", "one place"])
def test_a_label_map_may_have_a_channel_of_its_own(images, tmp_path):
    maps = RNG.integers(0, 2, images.shape[:-3] + images.shape[-2:])
    sets = []
    for kind, label in (("plain", maps), ("channel", np.expand_dims(maps, -3))):
        for i in range(2):
            write(tmp_path / f"{kind}{i}.npz", s2=images, s2_bands=BANDS, label=label)
        mapping = {"files": f"{kind}*.npz", "split": {"train": [f"{kind}0"], "test": [f"{kind}1"]}}
        sets.append(open_labelled(tmp_path / f"{kind}0.npz", mapping=mapping))
    plain, channel = sets
    assert (channel.task, len(channel)) == ("pixels", len(plain))
    for i in range(len(plain)):
        assert np.array_equal(channel.read(i)["label"], plain.read(i)["label"])


def test_files_may_be_named_by_an_absolute_pattern(tmp_path):
    (tmp_path / "data").mkdir()
    for i in range(3):
        write(tmp_path / "data" / f"part{i}.npz", s2=S2, s2_bands=BANDS, label=np.arange(12) % 2)
    for files in (
        f"{tmp_path}/data/part*.npz",
        "data/part*.npz",
        [f"{tmp_path}/data/part{i}.npz" for i in range(3)],
    ):
        (tmp_path / "set.yaml").write_text(json.dumps({"files": files}))
        assert len(open_labelled(tmp_path / "set.yaml")) == 36
    (tmp_path / "set.yaml").write_text(json.dumps({"files": f"{tmp_path}/data/none*.npz"}))
    with pytest.raises(ValueError, match=r"there is no file .*/data/none\*.npz"):
        open_labelled(tmp_path / "set.yaml")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"s2_bands": np.array(["B02", "B03", "B77"])}, "no band 'B77'"),
        ({"s2_bands": np.array(["B02", "B03"])}, r"expected \[C, H, W\] with the bands B02, B03"),
        ({"label": np.zeros(12, int)}, "one class"),
        ({"label": np.arange(12) % 4}, "label 3 is out of range"),
        ({"label": np.arange(11) % 3}, "different numbers of samples"),
        ({"label": np.full((12, 3), 2)}, "0 and 1"),
        ({"label": (np.arange(12) % 3).astype(float)}, "integers or names"),
        ({"split": np.array(["train"] * 12)}, "training samples only"),
        ({"id": np.array(["same"] * 12)}, "name several samples"),
        ({"units": np.array(["dn"])}, "words such as"),
        ({"label": np.array('[{"labels": ["a"]}]')}, r"label is a single value.*12 samples.*\[N, K\].*JSON"),
        ({"label": np.zeros((8, 8), int)}, "series of dates with one label map is not taken"),
        ({"label": np.zeros((12, 2, 8, 8), int)}, r"expected \[N\]"),
    ],
)
def test_bad_arrays(tmp_path, described, change, said):
    with np.load(described) as held:
        arrays = {**held, **change}
    path = write(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=said):
        open_labelled(path).read(0)


def test_bad_files(tmp_path, described):
    (tmp_path / "no.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"cannot read .*no\.npz"):
        open_labelled(tmp_path / "no.npz")
    with pytest.raises(ValueError, match="no array s2 or s1"):
        open_labelled(write(tmp_path / "other.npz", images=S2))
    with pytest.raises(ValueError, match="no array 'gone'"):
        open_labelled(described, mapping={"s2": "gone"})
    with pytest.raises(ValueError, match="unknown keys labels"):
        open_labelled(described, mapping={"labels": "label"})
    (tmp_path / "bad.yaml").write_text("- a\n- b\n")
    with pytest.raises(ValueError, match="expected a mapping"):
        open_labelled(tmp_path / "bad.yaml")
    damaged = bytearray(described.read_bytes())
    damaged[200:260] = bytes(60)
    (tmp_path / "damaged.npz").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"cannot read|no array|damaged"):
        open_labelled(tmp_path / "damaged.npz").read(0)


def test_the_digest_is_of_the_content(tmp_path, described):
    digest = open_labelled(described).digest
    with np.load(described) as held:
        arrays = dict(held)
    (tmp_path / "copy").mkdir()
    assert open_labelled(write(tmp_path / "copy" / "set.npz", **arrays)).digest == digest
    arrays["s2"] = arrays["s2"].copy()
    arrays["s2"][0, 0, 0, 0] += 1
    assert open_labelled(write(tmp_path / "copy" / "set.npz", **arrays)).digest != digest


def test_real_sets(real_data):
    eurosat = open_labelled(
        real_data / "eurosat_ms_200.npz",
        mapping={"s2": "images", "s2_bands": "bands", "label": "labels", "id": "names"},
    )
    assert len(eurosat.classes) == 10
    assert np.bincount(eurosat.labels[eurosat.splits["test"]]).tolist() == [4] * 10
    pictures = open_labelled(real_data / "eurosat_rgb_5000.zip", subset=0.01)
    assert {k: len(v) for k, v in pictures.splits.items()} == {"train": 40, "test": 1000}
    assert pictures.read(0)["s2"].shape == (3, 64, 64)
    pairs = open_labelled(
        real_data / "bigearthnet_v2_pairs_80.npz",
        mapping={
            "s2": "s2", "s1": "s1", "label": "clc", "id": "patch_id_int",
            "classes": {"forest": [311, 312, 313], "water": list(range(511, 524))},
        },
    )  # fmt: skip
    sample = pairs.read(0)
    assert (sample["s2"].shape, sample["s1"].shape) == ((4, 120, 120), (2, 120, 120))
    assert set(np.unique(sample["label"])) <= {-1, 0, 1}
    tiles = open_labelled(
        real_data / "terramesh_examples_4.npz",
        mapping={
            "s2": "S2L2A",
            "s2_bands": "S2L2A_bands",
            "label": "LULC",
            "classes": {"water": 1, "trees": 2},
        },
    )
    assert (tiles.task, tiles.read(0)["label"].shape) == ("pixels", (224, 224))
    with pytest.raises(ValueError, match="meta is a single value"):
        open_labelled(
            real_data / "bigearthnet_v1_s2_11.npz",
            mapping={"s2": {"s2_10m": ["B02", "B03", "B04", "B08"]}, "label": "meta"},
        )
