"""Unlabelled pictures: fMoW-RGB, SEN1-2, class folders and zip files, from small files of the tests."""

import json
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from rsbackbones.data.labelled import open_labelled
from rsbackbones.data.open import open_part, open_source
from rsbackbones.data.picture_source import HELD_OUT, PictureFiles
from rsbackbones.data.selection import SelectedSource
from rsbackbones.data.sensor_alias import rename_sensors
from rsbackbones.data.source import BadSample
from rsbackbones.train.engine.config_io import from_json, to_json
from rsbackbones.train.recipe import Part

RNG = np.random.default_rng(0)


def write(path, *size, channels=3):
    """Write random pixels of (height, width), and return them as [H, W, C] or [H, W]."""
    pixels = RNG.integers(1, 256, (*size, channels)[: 3 if channels > 1 else 2]).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


# ---------------------------------------------------------------------------------------- class folders


def test_pictures_are_what_the_files_hold(tmp_path):
    first = write(tmp_path / "set" / "Forest" / "Forest_1.png", 6, 9)
    second = write(tmp_path / "set" / "River" / "River_2.tif", 5, 5)
    write(tmp_path / "set" / "River" / ".hidden.png", 5, 5)
    source = open_source(tmp_path / "set")
    assert (len(source), source.frames, source.block, source.name) == (2, 1, 1, "set")
    assert source.bands == {"rgb": ("B04", "B03", "B02")}
    assert [source.describe(i) for i in range(2)] == ["Forest/Forest_1.png", "River/River_2.tif"]
    image = source.read(0, 0).images["rgb"]
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, first.transpose(2, 0, 1))
    np.testing.assert_array_equal(source.read(1).images["rgb"], second.transpose(2, 0, 1)[None])
    with pytest.raises(IndexError):
        source.read(0, 1)


def test_a_zip_file_is_read_as_its_folder(tmp_path):
    for name in ("a/EuroSAT/Forest/Forest_1.jpg", "a/EuroSAT/River/River_2.jpg"):
        write(tmp_path / name, 8, 8)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in sorted((tmp_path / "a").rglob("*.jpg")):
            archive.write(file, file.relative_to(tmp_path / "a"))
    folder, packed = open_source(tmp_path / "a"), open_source(tmp_path / "a.zip")
    packed.read(0)
    again = pickle.loads(pickle.dumps(packed))  # as a worker of the loader gets it
    for i in range(2):
        assert again.describe(i) == folder.describe(i)
        np.testing.assert_array_equal(again.read(i, 0).images["rgb"], folder.read(i, 0).images["rgb"])


def test_what_is_no_picture_of_eight_bits_is_a_bad_sample(tmp_path):
    folder = tmp_path / "class"
    write(folder / "a.jpg", 64, 64)
    (folder / "b.jpg").write_bytes((folder / "a.jpg").read_bytes()[:1500])
    write(folder / "c.png", 8, 8, channels=1)
    with rasterio.open(
        folder / "d.png", "w", driver="PNG", count=3, height=8, width=8, dtype="uint16"
    ) as png:
        png.write(np.full((3, 8, 8), 2000, np.uint16))
    with rasterio.open(
        folder / "g.tif", "w", count=3, height=8, width=8, dtype="uint16", photometric="RGB"
    ) as tif:
        tif.write(np.full((3, 8, 8), 2000, np.uint16))
    (folder / "e.jpg").write_bytes(b"")
    Image.new("RGB", (8, 8)).save(folder / "f.png")
    source = open_source(tmp_path)
    assert source.read(0, 0).images["rgb"].shape == (3, 64, 64)
    reasons = ("truncated", "mode L; expected RGB", "16 bits per channel.*units", "empty", "zero everywhere")
    for place, reason in enumerate((*reasons, "16 bits per channel|cannot read"), start=1):
        with pytest.raises(BadSample, match=reason):
            source.read(place, 0)


def test_a_folder_of_which_nothing_can_be_read_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"known layouts:\n(.*\n)*.*8-bit pictures"):
        open_source(tmp_path)
    (tmp_path / "class").mkdir()
    for name in "abc":
        (tmp_path / "class" / f"{name}.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"no probed picture can be used: cannot read .*\.jpg"):
        open_source(tmp_path)
    with pytest.raises(ValueError, match=r"open_pictures, which has no option 'product'"):
        open_source(tmp_path, product="s2a")


def test_sixteen_bits_are_digital_numbers_of_geotiffs(tmp_path):
    """What the message on a picture of 16 bits advises."""
    image = RNG.integers(1, 4000, (3, 8, 8)).astype(np.uint16)
    (tmp_path / "rgb").mkdir()
    profile = {"driver": "GTiff", "count": 3, "height": 8, "width": 8, "dtype": "uint16"}
    with rasterio.open(
        tmp_path / "rgb" / "a.tif", "w", crs="EPSG:32632", transform=rasterio.Affine(10, 0, 5e5, 0, -10, 5e6),
        **profile,
    ) as file:  # fmt: skip
        file.write(image)
    source = open_source(tmp_path, named={"rgb": "dn"}, bands={"rgb": ("B04", "B03", "B02")})
    np.testing.assert_array_equal(source.read(0, 0).images["rgb"], image)


def test_sentinel_2_with_radar_is_rgb_and_vv_in_dn_and_db(tmp_path):
    """The sensors of a recipe (rgb: s2) serve any layout; bands are then chosen by name."""
    s2, s1 = RNG.integers(1, 9000, (2, 4, 8, 8)).astype(np.uint16), RNG.normal(-12, 3, (2, 2, 8, 8))
    np.savez(tmp_path / "a.npz", s2=s2, s1=s1, s2_bands=["B02", "B03", "B04", "B08"], s1_bands=["VV", "VH"])
    source = rename_sensors(open_source(tmp_path / "a.npz"), {"rgb": "s2", "s1": "s1"})
    sample = source.read(1, 0)
    order = [source.bands["rgb"].index(band) for band in ("B04", "B03", "B02")]
    np.testing.assert_array_equal(sample.images["rgb"][order], s2[1, [2, 1, 0]])
    np.testing.assert_allclose(sample.images["s1"][source.bands["s1"].index("VV")], s1[1, 0])


# --------------------------------------------------------------------------------------------- held out


def test_listed_pictures_are_left_out(tmp_path):
    for name in ("Forest/Forest_1", "Forest/Forest_2", "River/River_1"):
        write(tmp_path / "set" / f"{name}.jpg", 4, 4)
    (tmp_path / "out.json").write_text(json.dumps({"this": ["Forest_2"], "other": ["forest07"]}))
    for exclude in (tmp_path / "out.json", ["Forest/Forest_2.jpg"], ("Forest_2",)):
        source = open_source(tmp_path / "set", exclude=exclude)
        assert [source.describe(i) for i in range(len(source))] == [
            "Forest/Forest_1.jpg",
            "River/River_1.jpg",
        ]
        assert re.fullmatch(r"1 of 3 pictures left out \(exclude; the others: [0-9a-f]{12}\)", *source.notes)
    (other,) = open_source(tmp_path / "set", exclude=["Forest_1"]).notes
    assert other != source.notes[0]
    for exclude in (["AnnualCrop_1"], ["Forest_2", "AnnualCrop_1"]):  # also beside one that is there
        with pytest.raises(ValueError, match=r"exclude: AnnualCrop_1 \(1 of . names\) .*Forest_1\.jpg"):
            open_source(tmp_path / "set", exclude=exclude)
    with pytest.raises(ValueError, match=r"exclude: cannot read .*nowhere\.json"):
        open_source(tmp_path / "set", exclude=tmp_path / "nowhere.json")
    (tmp_path / "list.json").write_text('["Forest_2"]')
    with pytest.raises(ValueError, match="no JSON object of lists"):
        open_source(tmp_path / "set", exclude=tmp_path / "list.json")


def test_pictures_are_a_part_of_a_recipe(tmp_path):
    for i in range(3):
        write(tmp_path / "set" / "Forest" / f"Forest_{i}.jpg", 4, 4)
    part = Part(file=PictureFiles(path="set", exclude=("Forest_0",)))
    assert from_json(to_json(part), Part) == part
    assert len(open_part(part.file, tmp_path)) == 2


@pytest.mark.parametrize(
    ("name", "kept"), [("eurosat_rgb_5000.zip", 5000 - 1000 - 200), ("ucmerced_rgb128_1575.zip", 21 * 60)]
)
def test_no_held_out_picture_trains(real_data, name, kept):
    source = open_source(real_data / name, exclude="held_out")
    trained = {Path(source.describe(i)).stem for i in range(len(source))}
    assert len(trained) == kept
    held_out = {one for names in json.loads(HELD_OUT.read_text()).values() for one in names}
    assert not trained & held_out
    # Whatever is not held out trains; ids are those of the labelled reader.
    ids = {Path(one).stem for one in open_labelled(real_data / name).ids}
    assert trained | held_out > ids


# ----------------------------------------------------------------------------------------------- SEN1-2


def sen12(root, optical=("1", "2", "3"), radar=("1", "2", "4"), size=16):
    pixels = {}
    for sensor, numbers, channels in (("s2", optical, 3), ("s1", radar, 1)):
        for k in numbers:
            stem = f"ROIs1158_spring_{sensor}_12_p{k}"
            file = root / "ROIs1158_spring" / f"{sensor}_12" / f"{stem}.png"
            pixels[sensor, k] = write(file, size, size, channels=channels)
    return pixels


def test_pairs_of_sen12(tmp_path):
    pixels = sen12(tmp_path)
    source = open_source(tmp_path)
    assert (source.name, len(source)) == ("sen12", 2)
    assert source.bands == {"rgb": ("B04", "B03", "B02"), "s1": ("VV",)}
    assert source.notes == ("2 images left out, which lack the other of the pair",)
    assert source.describe(1) == "ROIs1158_spring/s2_12/ROIs1158_spring_s2_12_p2.png"
    sample = source.read(1, 0)
    np.testing.assert_array_equal(sample.images["rgb"], pixels["s2", "2"].transpose(2, 0, 1))
    np.testing.assert_array_equal(sample.images["s1"], pixels["s1", "2"][None])
    assert sample.images["s1"].dtype == np.uint8
    # One sensor alone, as a method that states the sensors of its tasks reads them.
    assert len(SelectedSource(source, ["rgb", "s1"])) == 2
    assert SelectedSource(source, ["rgb"], pair_days=7).read(0, 0).images.keys() == {"rgb"}


def test_a_pair_of_two_sizes_is_a_bad_sample(tmp_path):
    sen12(tmp_path, radar=("1", "2", "3"))
    write(tmp_path / "ROIs1158_spring" / "s1_12" / "ROIs1158_spring_s1_12_p2.png", 8, 8, channels=1)
    with pytest.raises(BadSample, match="one grid"):
        open_source(tmp_path).read(1)


def test_radar_alone_is_no_sen12(tmp_path):
    sen12(tmp_path, optical=("9",))
    with pytest.raises(ValueError, match="no pictures to train on"):
        open_source(tmp_path)


# --------------------------------------------------------------------------------------------- fMoW-RGB


def fmow(
    root, name="train/airport/airport_7/airport_7_0_rgb", size=(40, 80), boxes=({"box": [8, 4, 32, 16]},)
):
    pixels = write(root / f"{name}.jpg", *size)
    (root / f"{name}.json").write_text(json.dumps({"bounding_boxes": boxes}))
    return pixels


def test_fmow_trains_on_the_rgb_images_of_its_training_folders(tmp_path):
    for name in (
        "train/airport/airport_7/airport_7_0_rgb", "train/airport/airport_7/airport_7_1_rgb",
        "train/zoo/zoo_0/zoo_0_0_rgb", "train/airport/airport_7/airport_7_0_msrgb",
        "val/airport/airport_3/airport_3_0_rgb", "test/0012/0012_0_rgb",
    ):  # fmt: skip
        fmow(tmp_path, name)
    source = open_source(tmp_path)
    assert source.name == "fmow_rgb"
    assert [source.describe(i).rpartition("/")[2] for i in range(len(source))] == [
        "airport_7_0_rgb.jpg", "airport_7_1_rgb.jpg", "zoo_0_0_rgb.jpg"
    ]  # fmt: skip


@pytest.mark.parametrize(("size", "scaled"), [((40, 80), (256, 512)), ((700, 512), (350, 256))])
def test_the_shorter_side_of_a_whole_image_is_256(tmp_path, size, scaled):
    fmow(tmp_path, size=size)
    assert open_source(tmp_path).read(0, 0).images["rgb"].shape == (3, *scaled)


def test_a_large_image_is_scaled_as_a_whole(tmp_path):
    """Decoded at a quarter of its size: a ramp stays the ramp, to the corners."""
    ramp = np.broadcast_to(np.linspace(10, 250, 1200)[None, :, None], (900, 1200, 3)).astype(np.uint8)
    file = tmp_path / "train/zoo/zoo_0/zoo_0_0_rgb.jpg"
    file.parent.mkdir(parents=True)
    Image.fromarray(ramp).save(file, quality=95)
    image = open_source(tmp_path, size=32).read(0, 0).images["rgb"]
    assert image.shape == (3, 32, 43)
    centers = 10 + 240 * (np.arange(43) + 0.5) / 43
    np.testing.assert_allclose(image.mean(axis=(0, 1)), centers, atol=3)


def test_a_box_is_cropped_before_it_is_scaled(tmp_path):
    pixels = fmow(tmp_path, boxes=({"box": [0, 0, 2, 2]}, {"box": [8, 4, 32, 16]}))
    with Image.open(tmp_path / "train/airport/airport_7/airport_7_0_rgb.jpg") as file:
        pixels = np.asarray(file)
    image = open_source(tmp_path, box=True, size=16).read(0, 0).images["rgb"]
    np.testing.assert_array_equal(image, pixels[4:20, 8:40].transpose(2, 0, 1))
    fmow(tmp_path, boxes={"box": [8, 4, 32, 16]})  # one box, as some files have it
    assert open_source(tmp_path, box=True).read(0, 0).images["rgb"].shape == (3, 256, 512)


def test_a_box_that_is_not_there(tmp_path):
    fmow(tmp_path)
    fmow(tmp_path, "train/zoo/zoo_0/zoo_0_0_rgb", boxes=())
    with pytest.raises(BadSample, match=r"zoo_0_0_rgb\.json has no bounding box"):
        open_source(tmp_path, box=True).read(1)
    with pytest.raises(ValueError, match="size must be at least 1"):
        open_source(tmp_path, size=0)
