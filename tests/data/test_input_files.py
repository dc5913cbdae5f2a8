"""Which files GDAL reads for a raster, and that a change of any of them is noticed."""

import os
import shutil
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import rasterio

from rsbackbones.data.input_files import InputFiles, dataset_files
from rsbackbones.data.labelled import open_labelled
from tests.data.test_rasters import write_tif

BANDS = ("B02", "B03", "B04", "B08")


def scene(path, seed=0, size=16):
    values = np.random.default_rng(seed).integers(1, 4000, (4, size, size)).astype(np.uint16)
    return write_tif(path, values, BANDS)


def vrt(path, source, size=16):
    bands = "".join(
        f'<VRTRasterBand dataType="UInt16" band="{i}"><Description>{name}</Description><SimpleSource>'
        f'<SourceFilename relativeToVRT="0">{source}</SourceFilename><SourceBand>{i}</SourceBand>'
        "</SimpleSource></VRTRasterBand>"
        for i, name in enumerate(BANDS, start=1)
    )
    path.write_text(
        f'<VRTDataset rasterXSize="{size}" rasterYSize="{size}"><SRS>EPSG:32633</SRS>'
        f"<GeoTransform>500000,10,0,5000000,0,-10</GeoTransform>{bands}</VRTDataset>"
    )
    return path


def overview(path):
    with rasterio.open(path) as raster:
        profile = raster.profile | {"height": 8, "width": 8}
    with rasterio.open(f"{path}.ovr", "w", **profile) as small:
        small.write(np.ones((4, 8, 8), np.uint16))


def mask(path):
    with rasterio.open(path) as raster:
        profile = raster.profile | {"count": 1, "dtype": "uint8"}
    with rasterio.open(f"{path}.msk", "w", **profile) as band:
        band.write(np.full((1, 16, 16), 255, np.uint8))
        band.update_tags(INTERNAL_MASK_FLAGS_1="2")


def tags(path):
    path.with_name(path.name + ".aux.xml").write_text(
        "<PAMDataset>"
        + "".join(f'<PAMRasterBand band="{i}"><Scale>2</Scale></PAMRasterBand>' for i in range(1, 14))
        + "</PAMDataset>"
    )


def rewritten(path):
    scene(path, seed=1)


@pytest.mark.parametrize("change", [rewritten, overview, mask, tags], ids=lambda f: f.__name__)
@pytest.mark.parametrize("nested", [False, True])
def test_a_change_of_any_file_behind_a_vrt_is_noticed(tmp_path, change, nested):
    (tmp_path / "source").mkdir()
    source = scene(tmp_path / "source" / "s.tif")
    raster = vrt(tmp_path / "a.vrt", source)
    if nested:
        raster = vrt(tmp_path / "b.vrt", raster)
    before = InputFiles([raster])
    before.check()
    (tmp_path / "source" / "notes.txt").write_text("nothing that GDAL reads")
    before.check()
    assert InputFiles([raster]).facts == before.facts
    change(source)
    with pytest.raises(ValueError, match=r"the input changed while it was read: .*s\.tif"):
        before.check()
    now = InputFiles([raster])
    assert now.facts != before.facts
    now.check(again=True)


def test_the_files_are_those_that_gdal_names(tmp_path):
    path = scene(tmp_path / "s.tif")
    for change in (overview, mask, tags):
        change(path)
    with rasterio.open(path) as raster:
        expected = set(raster.files)
    assert len(expected) == 4
    assert set(dataset_files(path)) == expected
    assert set(dataset_files(vrt(tmp_path / "a.vrt", path))) == expected | {str(tmp_path / "a.vrt")}


def test_a_source_that_is_removed_or_comes_is_noticed(tmp_path):
    source = scene(tmp_path / "s.tif")
    raster = vrt(tmp_path / "a.vrt", source)
    whole = InputFiles([raster])
    source.rename(tmp_path / "kept.tif")
    with pytest.raises(ValueError, match=r"s\.tif"):
        whole.check()
    without = InputFiles([raster])
    (tmp_path / "kept.tif").rename(source)
    assert without.facts != whole.facts
    whole.check(again=True)


def test_a_set_that_was_moved_is_the_same(tmp_path):
    scene(tmp_path / "s.tif")
    shutil.copytree(tmp_path, tmp_path / "copy")  # with times
    assert InputFiles([tmp_path / "s.tif"]).facts == InputFiles([tmp_path / "copy" / "s.tif"]).facts


def test_archives_count_as_files(tmp_path):
    source = scene(tmp_path / "s.tif")
    archive = tmp_path / "a.zip"
    for seed in (0, 1):
        with zipfile.ZipFile(archive, "w") as file:
            file.write(source, "in/s.tif")
        if not seed:
            held = {
                name: InputFiles([name])
                for name in (f"/vsizip/{archive}/in/s.tif", f"zip://{archive}!in/s.tif")
            }
            for files in held.values():
                files.check(again=True)
            scene(source, seed=1)
    for name, files in held.items():
        with pytest.raises(ValueError, match="the input changed"):
            files.check()
        assert InputFiles([name]).facts != files.facts


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_files_of_a_web_server_count_with_their_version_and_no_signature(tmp_path):
    source = scene(tmp_path / "s.tif")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"/vsicurl/http://127.0.0.1:{server.server_port}/s.tif"
        files = InputFiles([f"{url}?signature=secret"])
        files.check(again=True)
        assert not any("secret" in fact for fact in files.facts)
        assert InputFiles([f"{url}?signature=secret"]).facts == files.facts
        os.utime(source, (10**9, 10**9))
        with pytest.raises(ValueError, match="the input changed") as caught:
            files.check(again=True)
        assert "secret" not in str(caught.value)
    finally:
        server.shutdown()
        server.server_close()


def test_a_remote_file_without_a_version_is_another_one_every_time():
    files = InputFiles(["s3://bucket/a.tif"])
    (here,) = files.facts
    assert here.startswith("a.tif unknown ")
    files.check(again=True)
    assert InputFiles(["s3://bucket/a.tif"]).facts != [here]


def labelled(folder, kind):
    """A set of two classes of two samples: as tables of VRTs, or as class folders."""
    (folder / "source").mkdir()
    rows = ["path,label,split"]
    for i, (label, split) in enumerate([("a", "train"), ("b", "train"), ("a", "test"), ("b", "test")]):
        if kind == "table":
            vrt(folder / f"{i}.vrt", scene(folder / "source" / f"{i}.tif", seed=i))
            rows.append(f"{i}.vrt,{label},{split}")
        else:
            (folder / "source" / split / label).mkdir(parents=True)
            scene(folder / "source" / split / label / f"{i}.tif", seed=i)
    (folder / "labels.csv").write_text("\n".join(rows))
    return folder if kind == "table" else folder / "source"


@pytest.mark.parametrize("kind", ["table", "folders"])
@pytest.mark.parametrize("change", [rewritten, tags], ids=lambda f: f.__name__)
def test_samples_are_those_that_the_digest_is_of(tmp_path, kind, change):
    root = labelled(tmp_path, kind)
    data = open_labelled(root)
    assert open_labelled(root).digest == data.digest
    source = next(path for path in (tmp_path / "source").rglob("*.tif") if path.stem == "0")
    index = next(i for i, name in enumerate(data.ids) if "0" in name)
    first = data.read(index)["s2"]
    change(source)
    with pytest.raises(ValueError, match=r"the input changed while it was read"):
        data.read(index)
    other = next(i for i in range(4) if i != index)
    data.read(other)
    now = open_labelled(root)
    assert now.digest != data.digest
    # A VRT does not take over the tags of its sources.
    same = change is tags and kind == "table"
    assert np.array_equal(now.read(index)["s2"], first) == same


@pytest.mark.parametrize("size", [1000, 400_000])
def test_a_change_that_keeps_size_and_time_is_noticed(tmp_path, size):
    path = tmp_path / "x.bin"
    path.write_bytes(b"0" * size)
    stat, before = path.stat(), InputFiles(plain=[path])
    copy = shutil.copy2(path, tmp_path / "old.bin")
    path.write_bytes(b"1" * size)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert InputFiles(plain=[path]).facts != before.facts
    with pytest.raises(ValueError, match=r"x\.bin"):
        before.check()
    shutil.copy2(copy, path)  # the old file is back
    before.check(again=True)
    assert InputFiles(plain=[path]).facts == before.facts


def test_a_rewritten_archive_of_equal_size_and_time_is_noticed(tmp_path):
    """One value in the middle differs: the checksum at the end of the archive tells."""
    path, x = tmp_path / "x.npz", np.zeros(300_000, np.uint8)
    np.savez(path, s2=x)
    stat, before = path.stat(), InputFiles(plain=[path])
    x[123_457] = 1
    np.savez(path, s2=x)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    assert InputFiles(plain=[path]).facts != before.facts


def test_evaluation_does_not_reuse_what_an_overwritten_set_had(tmp_path):
    for name in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        scene(tmp_path / "set" / name / "x.tif", seed=len(name))
    first = open_labelled(tmp_path / "set")
    path = tmp_path / "set" / first.ids[0]
    stat = path.stat()
    scene(path, seed=3)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    assert open_labelled(tmp_path / "set").digest != first.digest
    with pytest.raises(ValueError, match=r"the input changed while it was read: .*x\.tif"):
        first.read(0)
