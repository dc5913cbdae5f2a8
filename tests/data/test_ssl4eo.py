"""SSL4EO-S12 in its published layouts, from small files that the tests write; dates out of order."""

import io
import pickle
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
import rasterio
import zarr

from rsbackbones.data.open import open_source
from rsbackbones.data.product_names import parse_acquisition_time
from rsbackbones.data.s2_baseline import carries_offset
from rsbackbones.data.source import BadSample
from rsbackbones.data.ssl4eo import SSL4EOFolders
from rsbackbones.data.ssl4eo_v11 import SSL4EOZarr

B12 = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
TIMES = ("20200813T054639", "20191101T100000", "20200604T054639", "20201220T054639")
ORDER = [1, 2, 0, 3]  # of TIMES
DAYS = np.array(["2019-11-01", "2020-06-04", "2020-08-13", "2020-12-20"], "M8[D]").astype(int)
S2_NAMES = [f"{t}_{t}_T43RCP" for t in TIMES]
S1_NAMES = [f"S1{'BA'[i % 2]}_IW_GRDH_1SDV_{t}_{t}_032904_03CFBA_D457" for i, t in enumerate(TIMES)]


def test_the_time_is_the_first_in_a_name():
    name = "S1A_IW_GRDH_1SDV_20200607T010800_20200607T010825_032904_03CFBA_D457"
    assert parse_acquisition_time(name) == np.datetime64("2020-06-07T01:08:00")
    product = "20200604T054639_20200604T054831_T43RCP"
    assert parse_acquisition_time(product) == np.datetime64("2020-06-04T05:46:39")
    with pytest.raises(ValueError, match="holds no time"):
        parse_acquisition_time("T43RCP_20200604")


# ---------------------------------------------------------------------------------------------- v1.0


def write_band(path, layer):
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", count=1, height=layer.shape[0], width=layer.shape[1],
        dtype=layer.dtype.name, crs="EPSG:32643", transform=rasterio.Affine(10, 0, 5e5, 0, -10, 3e6),
    ) as file:  # fmt: skip
        file.write(layer, 1)


SIDES = {"B01": 4, "B09": 4, "B10": 4} | dict.fromkeys(("B05", "B06", "B07", "B8A", "B11", "B12"), 12)


def write_v10(root, ids=("0000200", "0000007"), product="s2a"):
    """Noise in sides of 24, 12 and 4 pixels; returns {(id, number of the date in TIMES, band): layer}."""
    rng = np.random.default_rng(0)
    written = {}
    for identity in ids:
        for i in range(4):
            folder = root / product / identity / S2_NAMES[i]
            for band in (*B12, *(("B10",) if product == "s2c" else ())):
                side = SIDES.get(band, 24)
                layer = rng.integers(1, 9000, (side, side)).astype(np.uint16)
                write_band(folder / f"{band.replace('B0', 'B')}.tif", layer)
                written[identity, i, band] = layer
            for band in ("VV", "VH"):
                layer = rng.normal(-15, 4, (24, 24)).astype(np.float32)
                write_band(root / "s1" / identity / S1_NAMES[i] / f"{band}.tif", layer)
                written[identity, i, band] = layer
    return written


def test_v10_dates_in_order(tmp_path):
    written = write_v10(tmp_path)
    source = pickle.loads(pickle.dumps(open_source(tmp_path, size=24)))
    assert isinstance(source, SSL4EOFolders)
    assert (len(source), source.frames) == (2, 4)
    assert source.bands == {"s2": B12, "s1": ("VV", "VH")}
    assert [source.describe(i) for i in range(2)] == ["0000007", "0000200"]
    everything = source.read(1)
    assert everything.images["s2"].shape == (4, 12, 24, 24)
    for frame, i in enumerate(ORDER):
        one = source.read(1, frame)
        for sensor in ("s2", "s1"):
            np.testing.assert_array_equal(one.images[sensor], everything.images[sensor][frame])
        np.testing.assert_array_equal(one.images["s2"][1], written["0000200", i, "B02"])
        np.testing.assert_array_equal(one.images["s1"][1], written["0000200", i, "VH"])
        assert one.dates["s2"].tolist() == one.dates["s1"].tolist() == [DAYS[frame]]
    assert everything.dates["s2"].tolist() == DAYS.tolist()
    assert everything.images["s2"].dtype == np.uint16
    assert everything.images["s1"].dtype == np.float32


def test_v10_reads_only_the_files_of_the_date(tmp_path):
    write_v10(tmp_path, ids=("0000200",))
    (tmp_path / "s2a" / "0000200" / S2_NAMES[0] / "B2.tif").write_bytes(b"broken")
    source = SSL4EOFolders(tmp_path, size=24)
    for frame, i in enumerate(ORDER):
        if i != 0:
            source.read(0, frame)
    with pytest.raises(BadSample, match=r"cannot read .*B2\.tif"):
        source.read(0, ORDER.index(0))


def test_v10_other_product_and_one_sensor(tmp_path):
    write_v10(tmp_path, ids=("0000200",), product="s2c")
    with pytest.raises(ValueError, match="say product='s2c'"):
        SSL4EOFolders(tmp_path, size=24)
    source = SSL4EOFolders(tmp_path, product="s2c", size=24)
    assert len(source.bands["s2"]) == 13
    source.read(0, 0)
    (tmp_path / "s1").rename(tmp_path / "unused")
    assert set(SSL4EOFolders(tmp_path, product="s2c", size=24).bands) == {"s2"}


def test_v10_unusable_places_say_why(tmp_path):
    ids = ("0", "1", "2", "3", "4", "5")
    write_v10(tmp_path, ids=ids)
    shutil.rmtree(tmp_path / "s1" / "1")
    shutil.rmtree(tmp_path / "s2a" / "2" / S2_NAMES[3])
    (tmp_path / "s2a" / "3" / S2_NAMES[0] / "B8A.tif").unlink()
    write_band(tmp_path / "s2a" / "4" / S2_NAMES[0] / "B8.tif", np.ones((24, 12), np.uint16))
    write_band(tmp_path / "s1" / "5" / S1_NAMES[0] / "VV.tif", np.full((24, 24), np.nan, np.float32))
    source = SSL4EOFolders(tmp_path, size=24)
    source.read(0)
    for place, reason in (
        (1, "s1 is missing"), (2, "holds 3 dates, expected 4"), (3, "B8A is missing"),
        (4, "24 x 12 pixels"), (5, "without data"),
    ):  # fmt: skip
        with pytest.raises(BadSample, match=reason):
            source.read(place)


# ---------------------------------------------------------------------------------------------- v1.1


def write_group(store, images, products, bands, ids=None):
    """What the publishers' xarray writes, as far as it is read: chunks of one date."""
    group = zarr.open_group(store, mode="w", zarr_format=2)

    def array(name, values, chunks=None):
        made = group.create_array(
            name, shape=values.shape, chunks=chunks or values.shape or (1,), dtype=values.dtype
        )
        made[...] = values

    array("bands", images, (1,) * (images.ndim - 3) + images.shape[-3:])
    array("file_id", np.array(products))
    array("band", np.array(bands))
    if ids is not None:
        array("sample", np.array(ids))


def zarr_file(path, *group):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zarr.storage.ZipStore(path, mode="w") as store:
        write_group(store, *group)


def tar_file(path, members, scratch):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, group in members.items():
            zarr_file(scratch / "one.zarr.zip", *group)
            content = (scratch / "one.zarr.zip").read_bytes()
            (scratch / "one.zarr.zip").unlink()
            info = tarfile.TarInfo(f"{key}.zarr.zip")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        tar.addfile(tarfile.TarInfo("readme.txt"), io.BytesIO(b""))


IDS = ("0080717", "0060573", "0000003", "0179869", "0012333")


def s2_image(rng, *shape):
    """Dark enough to be without offset."""
    return rng.integers(100, 5000, shape).astype(np.int16)


def write_v11(root, kind, offset=0, split="train", s1_ids=IDS[::-1]):
    """Two files of S2 places, and one of S1 in another order. Returns {sensor: {id: [4, C, H, W]}}."""
    rng = np.random.default_rng(1)
    s2 = {i: s2_image(rng, 4, 12, 16, 16) + np.int16(offset) for i in IDS}
    s1 = {i: rng.normal(-15, 4, (4, 2, 16, 16)).astype(np.float16) for i in s1_ids}
    parts = (("S2L2A", 1, IDS[:3], s2), ("S2L2A", 2, IDS[3:], s2), ("S1GRD", 1, s1_ids, s1))
    for product, number, ids, images in parts:
        names, bands = (S2_NAMES, B12) if product == "S2L2A" else (S1_NAMES, ("vv", "vh"))
        if kind == "zarr":
            path = root / split / product / f"ssl4eos12_{split}_seasonal_data_{number:06d}.zarr.zip"
            zarr_file(path, np.stack([images[i] for i in ids]), [names] * len(ids), bands, ids)
        else:
            path = root / split / product / f"ssl4eos12_shard_{number:06d}.tar"
            tar_file(path, {i: (images[i], names, bands) for i in ids}, root)
    return {"s2": s2, "s1": s1}


@pytest.mark.parametrize("kind", ["zarr", "tar"])
def test_v11_is_matched_by_key_and_in_order_of_time(tmp_path, kind):
    written = write_v11(tmp_path, kind)
    source = open_source(tmp_path)
    assert isinstance(source, SSL4EOZarr)
    assert (len(source), source.frames, source.block, source.notes) == (5, 4, 3, ())
    assert source.bands == {"s2": B12, "s1": ("VV", "VH")}
    assert [source.describe(i) for i in range(5)] == list(IDS)
    for copy in (source, pickle.loads(pickle.dumps(source))):
        for place, key in enumerate(IDS):
            everything = copy.read(place)
            np.testing.assert_array_equal(everything.images["s2"], written["s2"][key][ORDER])
            np.testing.assert_array_equal(
                everything.images["s1"], written["s1"][key][ORDER].astype(np.float32)
            )
            for frame in range(4):
                one = copy.read(place, frame)
                np.testing.assert_array_equal(one.images["s2"], everything.images["s2"][frame])
                np.testing.assert_array_equal(one.images["s1"], everything.images["s1"][frame])
                assert one.dates["s1"].tolist() == [DAYS[frame]]
            assert everything.dates["s2"].tolist() == DAYS.tolist()


@pytest.mark.parametrize("kind", ["zarr", "tar"])
def test_v11_a_place_without_s1_is_bad(tmp_path, kind):
    write_v11(tmp_path, kind, s1_ids=IDS[1:])
    source = SSL4EOZarr(tmp_path)
    assert len(source) == 5
    source.read(1)
    with pytest.raises(BadSample, match="s1 is missing"):
        source.read(0)


def test_v11_offset(tmp_path):
    written = write_v11(tmp_path, "zarr", offset=1000)
    source = SSL4EOZarr(tmp_path)
    assert source.notes == ("s2: offset of 1000 DN found and subtracted",)
    read = source.read(1, 0).images["s2"]
    np.testing.assert_array_equal(read, written["s2"][IDS[1]][ORDER[0]] - 1000)
    assert read.dtype == np.int16
    left = SSL4EOZarr(tmp_path, offset="none")
    assert left.notes == ()
    np.testing.assert_array_equal(left.read(1, 0).images["s2"], read + 1000)
    assert SSL4EOZarr(tmp_path, offset="subtract").notes == ("s2: subtracted 1000 DN",)
    with pytest.raises(ValueError, match="offset must be"):
        SSL4EOZarr(tmp_path, offset="maybe")


def test_v11_ambiguous_offset_is_refused(tmp_path):
    write_v11(tmp_path, "zarr", offset=4000)  # cloud or snow everywhere
    with pytest.raises(ValueError, match="Say offset='none' or offset='subtract'"):
        SSL4EOZarr(tmp_path)
    assert len(SSL4EOZarr(tmp_path, offset="none")) == 5


def test_offset_of_real_images(real_data):
    with np.load(real_data / "s2l2a_unlabelled_1200.npz") as held:
        images = held["images"]
    rng = np.random.default_rng(0)
    for _ in range(50):
        some = images[rng.choice(len(images), 16, replace=False)]
        assert not carries_offset(some)
        assert carries_offset(some + np.uint16(1000))


@pytest.mark.parametrize("kind", ["zarr", "tar"])
def test_v11_damaged_files(tmp_path, kind):
    write_v11(tmp_path, kind)
    source = SSL4EOZarr(tmp_path)
    path = sorted((tmp_path / "train" / "S2L2A").iterdir())[1]
    content = bytearray(path.read_bytes())
    if kind == "zarr":
        with zipfile.ZipFile(path) as archive:
            at = [i for i in archive.infolist() if i.filename.startswith("bands/0.")][2].header_offset + 200
    else:
        with tarfile.open(path) as tar:
            member = tar.getmembers()[0]
            at = member.offset_data + member.size // 2
    content[at] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(BadSample, match=path.name):
        SSL4EOZarr(tmp_path, offset="none").read(3)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"cannot read .*{path.name}.*fetch it again"):
        SSL4EOZarr(tmp_path)
    path.unlink()
    with pytest.raises(BadSample, match="cannot read s2"):
        source.read(3)


def test_v11_that_is_not_clear_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no folder S2L2A or S1GRD"):
        SSL4EOZarr(tmp_path)
    write_v11(tmp_path, "zarr")
    with pytest.raises(ValueError, match="no folder"):
        SSL4EOZarr(tmp_path, split="val")
    folder = tmp_path / "train" / "S2L2A"
    first, second = sorted(folder.iterdir())
    second.write_bytes(first.read_bytes())
    with pytest.raises(ValueError, match="place 0080717 is also in"):
        SSL4EOZarr(tmp_path)
    (folder / "x.tar").write_bytes(b"")
    with pytest.raises(ValueError, match="both kinds of files"):
        SSL4EOZarr(tmp_path)
