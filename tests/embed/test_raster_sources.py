"""Features of the rasters that people have, from Python and from the command line.

In archives and on servers, a file per band, several pixel sizes, control points, files that cannot be read.
"""

import multiprocessing
import re
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin

import rsbackbones as rsb
from rsbackbones.cli import main
from rsbackbones.data.raster_path import local_file, raster_name, raster_path
from rsbackbones.embed import embed_patches, embed_scene
from tests.data.test_raster_grids import POINTS, write_points
from tests.data.test_rasters import write_tif
from tests.embed.test_embed import place, plain_map, plain_pooled, read_map

QUIET = {"progress": False}
BANDS = ("B02", "B03", "B04", "B08")


def optical(height=32, width=32, seed=0):
    return np.random.default_rng(seed).integers(200, 4000, (4, height, width)).astype(np.uint16)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return rsb.create_model("croma_vit_tiny", modalities=("s2",), bands={"s2": BANDS})


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory):
    return rsb.save_model(model, tmp_path_factory.mktemp("weights") / "s2.safetensors")


@pytest.fixture
def run(capsys, weights):
    """Run `rsbackbones embed`; return its exit code and what it said."""

    def run(*arguments):
        code = main(["embed", *map(str, arguments), "--model", "croma_vit_tiny", "--checkpoint", str(weights),
                     "--no-progress"])  # fmt: skip
        return code, capsys.readouterr().err

    return run


def rows_of(path):
    with np.load(path) as rows:
        return {key: rows[key] for key in rows}


# -- names that only GDAL can open --------------------------------------------------------------------


def test_names_for_gdal_stay_strings_and_files_are_paths(tmp_path, monkeypatch):
    for name in ("/vsizip//data/a.zip/b.tif", "/vsicurl/https://host/a.tif", "zip:///data/a.zip!b.tif",
                 "s3://bucket/a.tif", "https://host//a.tif?key=1", 'NETCDF:"/data/a.nc":B02',
                 "SENTINEL2_L2A:/vsizip/a.zip/MTD.xml:10m:EPSG_32632"):  # fmt: skip
        assert raster_path(name) == name
    monkeypatch.chdir(tmp_path)
    Path("GTIFF:a.tif").touch()
    for name in ("a.tif", "/data//a.tif", "C:/data/a.tif", "GTIFF:a.tif"):
        assert raster_path(name) == Path(name)
        assert isinstance(raster_path(name), Path)
    with pytest.raises(ValueError, match="pass it as a string"):
        raster_path(Path("https://host/a.tif"))
    assert raster_name("https://host/x/a.tif?key=1/2") == "a.tif"


def test_the_file_behind_a_name_is_found(tmp_path):
    file = tmp_path / "a.zip"
    file.touch()
    for name in (
        f"/vsizip/{file}/in/b.tif", f"zip://{file}!in/b.tif", f"/vsizip/{{{file}}}/b.tif",
        f'NETCDF:"{file}":B02', f"NETCDF:{file}:B02", f"SENTINEL2_L2A:/vsizip/{file}/x/MTD.xml:10m:EPSG_1",
    ):  # fmt: skip
        assert local_file(name) == file, name
    assert local_file("https://host/a.tif") is None
    assert local_file("/vsizip/vsicurl/https://host/a.zip/b.tif") is None


class RangeHandler(BaseHTTPRequestHandler):
    """Serves the files of a folder, whole or in ranges."""

    folder: Path

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        path = self.folder / self.path.split("?")[0].lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        content, asked = (
            path.read_bytes(),
            re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""),
        )
        self.send_response(206 if asked else 200)
        if asked:
            size = len(content)
            start, end = int(asked[1]), min(int(asked[2] or size - 1), size - 1)
            content = content[start : end + 1]
            self.send_header("Content-Range", f"bytes {start}-{end}/{size}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    """The address of a server of this folder, in a process of its own: GDAL waits with the GIL held."""
    RangeHandler.folder = tmp_path
    with ThreadingHTTPServer(("127.0.0.1", 0), RangeHandler) as httpd:
        process = multiprocessing.get_context("fork").Process(target=httpd.serve_forever, daemon=True)
        process.start()
        with rasterio.Env(GDAL_HTTP_TIMEOUT="20"):
            yield f"http://127.0.0.1:{httpd.server_port}"
        process.kill()
        process.join()


def zipped(folder, path):
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.write(path, "in/" + path.name)
    return folder / "a.zip"


@pytest.mark.parametrize("kind", ["vsizip", "zip", "http", "vsicurl", "string", "Path"])
def test_rasters_are_read_wherever_they_are(model, run, server, tmp_path, kind):
    data = optical()
    path = write_tif(tmp_path / "s2.tif", data, BANDS)
    source = {
        "vsizip": lambda: f"/vsizip/{zipped(tmp_path, path)}/in/s2.tif",
        "zip": lambda: f"zip://{zipped(tmp_path, path)}!in/s2.tif",
        "http": lambda: f"{server}/s2.tif",
        "vsicurl": lambda: f"/vsicurl/{server}/s2.tif",
        "string": lambda: str(path),
        "Path": lambda: path,
    }[kind]()
    embed_scene(model, source, str(tmp_path / "map.tif"), **QUIET)
    np.testing.assert_allclose(
        read_map(tmp_path / "map.tif"), plain_map(model, {"s2": data}, "s2"), atol=1e-5
    )
    embed_patches(model, [source], str(tmp_path / "rows.npz"), **QUIET)
    rows = rows_of(tmp_path / "rows.npz")
    assert rows["paths"].tolist() == [str(source)]
    np.testing.assert_allclose(rows["s2"][0], plain_pooled(model, {"s2": data})["s2"], atol=1e-5)
    for name in ("again.tif", "again.npz"):
        assert run(source, "--output", tmp_path / name)[0] == 0
    np.testing.assert_array_equal(read_map(tmp_path / "again.tif"), read_map(tmp_path / "map.tif"))


def test_a_plain_archive_is_told_how_to_name_what_is_in_it(model, tmp_path):
    archive = zipped(tmp_path, write_tif(tmp_path / "s2.tif", optical(32, 32), BANDS))
    with pytest.raises(ValueError, match=rf"name a raster in it, /vsizip/{archive}/NAME\.tif"):
        embed_patches(model, archive, tmp_path / "rows.npz", **QUIET)


@pytest.mark.parametrize("kind", ["zip", "http"])
def test_an_unfinished_run_is_not_continued_with_another_remote_file(model, server, tmp_path, kind):
    def write(seed):
        path = write_tif(tmp_path / f"{kind}.tif", optical(64, 64, seed), BANDS)
        return (
            f"/vsizip/{zipped(tmp_path, path)}/in/zip.tif" if kind == "zip" else f"{server}/http.tif?v={seed}"
        )

    calls = []

    def stop(*_):
        calls.append(None)
        if len(calls) == 2:  # the first row of windows is kept
            raise KeyboardInterrupt

    windows = {"window": 32, "overlap": 0, "batch_size": 2}
    with rasterio.Env(
        GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", VSI_CACHE=False, CPL_VSIL_CURL_NON_CACHED="/vsicurl/"
    ):
        source = write(0)
        hook = model.encoders["s2"].register_forward_pre_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            embed_scene(model, source, tmp_path / "map.tif", **windows, **QUIET)
        hook.remove()
        other = write(1)
        with pytest.raises(ValueError, match="other inputs or settings"):
            embed_scene(model, other, tmp_path / "map.tif", **windows, **QUIET)
        embed_scene(model, write(1) if kind == "zip" else other, tmp_path / "other.tif", **QUIET)


def test_a_subdataset_is_a_raster_and_its_container_names_them(model, run, tmp_path):
    netcdf_file = pytest.importorskip("scipy.io").netcdf_file
    data = optical()
    with netcdf_file(tmp_path / "cube.nc", "w") as cube:
        for name, size in (("y", 32), ("x", 32)):
            cube.createDimension(name, size)
            cube.createVariable(name, "d", (name,))[:] = np.arange(size) * 10.0
        for band, layer in zip(BANDS, data, strict=True):
            cube.createVariable(band, "h", ("y", "x"))[:] = layer
    code, err = run(tmp_path / "cube.nc", "--output", tmp_path / "map.tif")
    assert code == 2
    assert re.search(r"cube\.nc holds no bands itself; name one of the rasters in it: .*cube\.nc\"?:B02", err)
    # A variable is named by its name, as its band has no description.
    sources = [f'NETCDF:"{tmp_path / "cube.nc"}":{band}' for band in BANDS]
    code, err = run(*sources, "--output", tmp_path / "map.tif")
    assert code == 0, err
    upright = np.ascontiguousarray(data[:, ::-1])  # y grows downwards: GDAL turns the picture
    np.testing.assert_allclose(
        read_map(tmp_path / "map.tif"), plain_map(model, {"s2": upright}, "s2"), atol=1e-5
    )
    embed_patches(model, sources, tmp_path / "rows.npz", **QUIET)
    assert rows_of(tmp_path / "rows.npz")["paths"].tolist() == [";".join(sources)]


# -- a file per band ----------------------------------------------------------------------------------


def write_bands(folder, product, data, grid, radar=None):
    paths = [
        write_tif(folder / f"{product}_{band}_10m.tif", layer[None], transform=grid)
        for band, layer in zip(BANDS, data, strict=False)  # of the first bands, if fewer are given
    ]
    if radar is not None:
        paths.append(write_tif(folder / f"{product}_S1.tif", radar, ("VV", "VH"), transform=grid))
    return paths


def test_files_of_single_bands_are_one_patch(model, run, tmp_path):
    images = {(p, d): optical(seed=10 * p + d) for p in range(2) for d in range(2)}
    paths = []
    for (spot, date), data in images.items():
        paths += write_bands(tmp_path, f"P{spot}_2020060{date + 1}", data, place(spot))
    whole = write_tif(tmp_path / "whole.tif", optical(seed=99), BANDS, transform=place(1))
    code, err = run(tmp_path, "--output", tmp_path / "rows.npz")
    assert code == 0, err
    rows = rows_of(tmp_path / "rows.npz")
    found = dict(zip(rows["paths"].tolist(), rows["s2"], strict=True))
    assert len(found) == 5
    given = {";".join(map(str, paths[4 * i : 4 * i + 4])): x for i, x in enumerate(images.values())}
    for key, data in (given | {str(whole): optical(seed=99)}).items():
        np.testing.assert_allclose(found[key], plain_pooled(model, {"s2": data})["s2"], atol=1e-5)


def test_a_file_per_band_and_a_radar_file_are_one_patch(tmp_path):
    torch.manual_seed(0)
    both = rsb.create_model("croma_vit_tiny", bands={"s2": BANDS})
    data, radar = optical(), np.random.default_rng(1).normal(-14, 4, (2, 32, 32)).astype(np.float32)
    paths = write_bands(tmp_path, "P1", data, place(0), radar)
    embed_patches(both, paths, tmp_path / "rows.npz", **QUIET)
    expected = plain_pooled(both, {"s2": data, "s1": radar})
    np.testing.assert_allclose(rows_of(tmp_path / "rows.npz")["joint"][0], expected["joint"], atol=1e-5)
    later = write_bands(tmp_path, "P2", optical(seed=3), place(0))
    with pytest.raises(ValueError, match=r"several rasters of s2 .*P2_B02_10m\.tif.*one date at a time"):
        embed_patches(both, [*paths, *later], tmp_path / "rows.npz", **QUIET)


# -- what is not understood ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nir1", "NEAR-IR", "Amplitude"])
def test_a_band_that_is_lacking_names_what_was_not_understood(model, run, tmp_path, name):
    source = write_tif(tmp_path / "s2.tif", optical(), ("B02", "B03", "B04", name))
    fix = rf"Not understood: {name} \(s2\.tif\)\. If one of them is meant, name its bands in order.*--bands"
    for output in ("map.tif", "rows.npz"):
        code, err = run(source, "--output", tmp_path / output)
        assert code == 2
        assert re.search(f"lack bands that the model takes: s2 B08. {fix}", err)
        embed = embed_scene if output == "map.tif" else embed_patches
        with pytest.raises(ValueError, match=f"lack B08, .*{fix}"):
            embed(model, source, tmp_path / output, **QUIET)
    assert run(source, "--bands", ",".join(BANDS), "--output", tmp_path / "map.tif")[0] == 0


def test_a_radar_without_a_band_is_not_told_to_be_landsat(run, tmp_path, capsys):
    source = write_tif(tmp_path / "vv.tif", np.full((1, 32, 32), -12, np.float32), ("VV",))
    code = main(["embed", str(source), "--model", "croma_vit_tiny", "--modalities", "s1", "--no-pretrained",
                 "--output", str(tmp_path / "map.tif")])  # fmt: skip
    err = capsys.readouterr().err
    assert code == 2
    assert "lack bands that the model takes: s1 VH. Pass --allow-dropped-bands" in err
    assert "landsat" not in err


# -- several pixel sizes, and control points ----------------------------------------------------------


def test_resampling_is_an_option_and_stands_in_the_result(run, tmp_path):
    data = optical(48, 48)
    (tmp_path / "p").mkdir()
    files = write_bands(tmp_path / "p", "T", data[:3], place(0))
    coarse = data[3, ::2, ::2]
    files.append(write_tif(tmp_path / "p" / "T_B08_20m.tif", coarse[None],
                           transform=from_origin(500_000, 5_000_000, 20, 20)))  # fmt: skip
    scene, rows = tmp_path / "map.tif", tmp_path / "rows.npz"
    for output in (scene, rows):
        code, err = run(*files, "--output", output)
        assert code == 2
        assert "T_B08_20m.tif (24 x 24" in err
        assert "--resample bilinear" in err
    whole = write_tif(tmp_path / "whole.tif", np.stack([*data[:3], coarse.repeat(2, 0).repeat(2, 1)]), BANDS)
    said = "nearest onto pixels of 10: T_B08_20m.tif (pixels of 20)"
    code, err = run(tmp_path / "p", "--resample", "nearest", "--output", scene)
    assert code == 0, err
    assert f"resampled: {said}" in err
    with rasterio.open(scene) as raster:
        assert raster.tags()["resampling"] == said
    assert run(whole, "--output", tmp_path / "whole_map.tif")[0] == 0
    np.testing.assert_allclose(read_map(scene), read_map(tmp_path / "whole_map.tif"), atol=1e-5)
    assert run(tmp_path / "p", "--resample", "nearest", "--output", rows)[0] == 0
    assert run(whole, "--output", tmp_path / "whole.npz")[0] == 0
    assert rows_of(rows)["resampling"].tolist() == [said]
    np.testing.assert_allclose(rows_of(rows)["s2"], rows_of(tmp_path / "whole.npz")["s2"], atol=1e-5)


def test_control_points_are_carried_into_the_result(tmp_path):
    torch.manual_seed(0)
    radar = rsb.create_model("croma_vit_tiny", modalities=("s1",))
    source = write_points(tmp_path / "grd.tif")
    embed_scene(radar, source, tmp_path / "map.tif", **QUIET)
    with rasterio.open(tmp_path / "map.tif") as raster:
        points, crs = raster.gcps
        assert raster.transform.is_identity
    assert crs == rasterio.crs.CRS.from_epsg(4326)
    assert [(p.row, p.col) for p in points] == [(p.row / 8, p.col / 8) for p in POINTS]
    np.testing.assert_allclose([(p.x, p.y) for p in points], [(p.x, p.y) for p in POINTS])
    embed_patches(radar, source, tmp_path / "rows.npz", **QUIET)
    rows = rows_of(tmp_path / "rows.npz")
    assert rows["crs"].tolist() == ["EPSG:4326"]
    np.testing.assert_allclose([rows["x"][0], rows["y"][0]], [12 + 32e-4 - 32e-5, 47 - 32e-4], atol=1e-7)


# -- files that cannot be read ------------------------------------------------------------------------


def write_damaged(folder, count=5):
    """Patches of which one is cut short, one is no raster, and one is a pair that lacks its second file."""
    folder.mkdir()
    paths = [
        write_tif(folder / f"{i}.tif", optical(64, 64, i), BANDS, transform=place(i)) for i in range(count)
    ]
    with rasterio.open(paths[3]) as raster, rasterio.open(folder / "t.tif", "w", **raster.profile | {
        "driver": "COG", "compress": "deflate"}) as cog:  # fmt: skip
        cog.write(raster.read())
        cog.descriptions = BANDS
    content = (folder / "t.tif").read_bytes()
    (folder / "t.tif").unlink()
    paths[3].write_bytes(content[: len(content) * 2 // 3])
    return paths


def test_unreadable_patches_are_named_and_left_out_on_request(model, run, tmp_path):
    paths = write_damaged(tmp_path / "p")
    with pytest.raises(ValueError, match=r"3\.tif.*3 of 5 patches are done and kept in .*rows\.npz\.partial"):
        embed_patches(model, paths, tmp_path / "rows.npz", batch_size=2, **QUIET)
    sizes = []
    hook = model.encoders["s2"].register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    left_out = embed_patches(model, paths, tmp_path / "rows.npz", on_unreadable="skip", **QUIET)
    hook.remove()
    assert sizes == [1]  # the three before it were kept
    assert list(left_out) == [paths[3]]
    assert left_out[paths[3]].startswith("unreadable: cannot read ")
    rows = rows_of(tmp_path / "rows.npz")
    assert rows["paths"].tolist() == [str(p) for i, p in enumerate(paths) if i != 3]
    assert rows["left_out"].tolist() == [str(paths[3])]
    assert rows["left_out_reasons"].tolist() == [left_out[paths[3]]]
    np.testing.assert_allclose(
        rows["s2"][3], plain_pooled(model, {"s2": optical(64, 64, 4)})["s2"], atol=1e-5
    )
    assert not list(tmp_path.glob("*.partial"))

    (tmp_path / "p" / "7.tif").write_text("no raster")  # and one that does not even open
    for output in ("rows.npz", "rows.parquet"):
        code, err = run(tmp_path / "p", "--output", tmp_path / output)
        assert code == 2
        assert "7.tif" in err
        code, err = run(tmp_path / "p", "--output", tmp_path / output, "--on-unreadable", "skip")
        assert code == 0, err
        assert [line for line in err.splitlines() if "unreadable" in line and "3.tif" in line]
        assert f"2 left out of 6 files, named in {output}" in err
    import pyarrow.parquet as pq

    named = pq.read_schema(tmp_path / "rows.parquet").metadata[b"left_out"].decode()
    assert all(str(path) in named for path in (paths[3], tmp_path / "p" / "7.tif"))
    code, err = run(tmp_path / "p", "--output", tmp_path / "map.tif", "--on-unreadable", "skip")
    assert code == 2
    assert "is for patches" in err


def test_a_patch_that_lacks_an_unreadable_file_is_left_out_too(tmp_path, model):
    torch.manual_seed(0)
    both = rsb.create_model("croma_vit_tiny", bands={"s2": BANDS})
    paths = []
    for i in range(2):
        radar = np.random.default_rng(i).normal(-14, 4, (2, 32, 32)).astype(np.float32)
        paths.append(write_tif(tmp_path / f"{i}_s2.tif", optical(seed=i), BANDS, transform=place(i)))
        paths.append(write_tif(tmp_path / f"{i}_s1.tif", radar, ("VV", "VH"), transform=place(i)))
    paths[1].write_bytes(b"")
    left_out = embed_patches(both, paths, tmp_path / "rows.npz", on_unreadable="skip", **QUIET)
    assert list(left_out) == [paths[1], paths[0]]
    assert "no raster of s1 on its grid" in left_out[paths[0]]
    assert rows_of(tmp_path / "rows.npz")["paths"].tolist() == [f"{paths[2]};{paths[3]}"]
    with pytest.raises(ValueError, match="on_unreadable must be"):
        embed_patches(both, paths, tmp_path / "rows.npz", on_unreadable="ignore", **QUIET)
    with pytest.raises(ValueError, match=r"no patch is left: all 2 are left out"):
        embed_patches(both, paths[:2], tmp_path / "rows.npz", on_unreadable="skip", **QUIET)
