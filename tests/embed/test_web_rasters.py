"""Rasters of a web server: what it does not give at once is asked for again, and tiles may be left out."""

import json

import numpy as np
import pytest
import rasterio
import torch

import rsbackbones as rsb
from rsbackbones.cli import main
from rsbackbones.embed.driver import JobError
from rsbackbones.embed.run import prepare
from rsbackbones.files import retry
from tests.data.test_rasters import GRID, S1, S2, write_tif
from tests.embed.range_server import serve
from tests.embed.test_embed import QUIET, optical, radar
from tests.embed.test_stac_source import OPTIONS, run, same

pytest.importorskip("obstore")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return rsb.create_model("croma_vit_tiny", modalities=("s2",), overrides={"depth": 2})


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(retry, "PAUSE_S", 0.02)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """A folder of two tiles, above each other."""
    folder = tmp_path_factory.mktemp("tiles")
    for i in range(2):
        write_tif(folder / f"{i}.tif", optical(64, 96, seed=i), S2, nodata=0,
                  transform=GRID @ rasterio.Affine.translation(0, 64 * i))  # fmt: skip
    return folder


def test_a_busy_server_is_asked_again(model, tiles, tmp_path):
    run(model, [tiles / "0.tif", tiles / "1.tif"], tmp_path / "files.zarr")
    with serve(tiles) as server:
        server.tell(once={"0.tif": [503, 429], "1.tif": [429]})  # when it is planned
        urls = [f"{server.url}/{i}.tif?key=secret" for i in range(2)]
        job = rsb.embed.plan(model, urls, tmp_path / "web.zarr", **OPTIONS)
        server.tell(once={"0.tif": [404, 403, 503, 429], "1.tif": [500]}, again=True)
        rsb.embed.run(job, **QUIET)
        assert {403, 404, 429, 500, 503} <= server.statuses
    same(tmp_path / "web.zarr", tmp_path / "files.zarr")
    assert "secret" not in json.dumps(job.facts)


@pytest.mark.parametrize("fault", [403, 404, 429])
def test_a_tile_that_cannot_be_read_is_named_or_left_out(model, tiles, tmp_path, fault):
    padded = tmp_path / "padded.tif"
    with rasterio.open(tiles / "0.tif") as raster:
        values = np.zeros((12, 128, 96), np.uint16)
        values[:, :64] = raster.read()
    run(model, write_tif(padded, values, S2, nodata=0), tmp_path / "first.zarr")
    with serve(tiles) as server:
        urls = [f"{server.url}/{i}.tif?key=secret" for i in range(2)]
        jobs = {
            how: rsb.embed.plan(model, urls, tmp_path / f"{how}.zarr", on_unreadable=how, **OPTIONS)
            for how in ("fail", "skip")
        }
        server.tell(status={"1.tif": fault})
        with pytest.raises(ValueError, match=rf"cannot read {server.url}/1\.tif"):
            rsb.embed.run(jobs["fail"], **QUIET)
        summary = rsb.embed.run(jobs["skip"], **QUIET)
        name = f"{server.url}/1.tif"
        assert set(summary["left_out"]) == {name}
        record = json.loads((tmp_path / "skip.zarr.job/done/00000000.json").read_text())
        item = json.loads((tmp_path / "skip.zarr.stac/skip.json").read_text())
        assert set(record["left_out"]) == set(item["properties"]["rsbackbones:left_out"]) == {name}
        assert "secret" not in json.dumps([record, item])
        # One that is gone before it is planned.
        with pytest.raises(ValueError, match=r"cannot read .*1\.tif"):
            rsb.embed.plan(model, urls, tmp_path / "late.zarr", **OPTIONS)
        with pytest.warns(UserWarning, match=r"left out: cannot read .*1\.tif"):
            late = rsb.embed.plan(model, urls, tmp_path / "late.zarr", on_unreadable="skip", **OPTIONS)
        assert set(rsb.embed.run(late, **QUIET)["left_out"]) == {name}
    same(tmp_path / "skip.zarr", tmp_path / "first.zarr")
    run(model, tiles / "0.tif", tmp_path / "alone.zarr")
    same(tmp_path / "late.zarr", tmp_path / "alone.zarr")


def test_a_truncated_tile_is_left_out(model, tiles, tmp_path):
    paths = [tmp_path / f"{i}.tif" for i in range(2)]
    for i, path in enumerate(paths):
        path.write_bytes((tiles / f"{i}.tif").read_bytes())
    whole = paths[1].read_bytes()
    paths[1].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cannot read .*1\.tif"):
        run(model, paths, tmp_path / "fail.zarr")
    summary = run(model, paths, tmp_path / "skip.zarr", on_unreadable="skip")
    assert set(summary["left_out"]) == {str(paths[1])}


def test_what_cannot_be_left_out_is_named(model, tiles, tmp_path):
    with pytest.raises(ValueError, match="one place, which needs all"):
        rsb.embed.plan(model, tiles / "0.tif", tmp_path / "e.zarr", on_unreadable="skip")
    with pytest.raises(ValueError, match="no raster can be read"):
        rsb.embed.plan(model, [tmp_path / "a.tif", tmp_path / "b.tif"], tmp_path / "e.zarr",
                       on_unreadable="skip")  # fmt: skip
    bad = tmp_path / "bad.tif"
    bad.write_bytes(b"no raster")
    command = ["embed", tiles / "0.tif", bad, tiles / "1.tif", "--model", "croma_vit_tiny", "--no-pretrained",
               "--modalities", "s2", "--output", tmp_path / "e.zarr", "--no-progress"]  # fmt: skip
    assert main([str(word) for word in command]) == 2
    assert main([str(word) for word in (*command, "--on-unreadable", "skip")]) == 0
    assert "bad.tif" in str(rsb.embed.open(tmp_path / "e.zarr").attrs["rsbackbones"]["source"]["left_out"])


def test_a_file_that_changes_on_the_server_stops_the_job(model, tiles, tmp_path):
    folder = tmp_path / "web"
    folder.mkdir()
    for i in range(2):
        (folder / f"{i}.tif").write_bytes((tiles / f"{i}.tif").read_bytes())
    with serve(folder) as server:
        job = rsb.embed.plan(
            model, [f"{server.url}/{i}.tif" for i in range(2)], tmp_path / "e.zarr", **OPTIONS
        )
        prepare(job, None)
        write_tif(folder / "1.tif", optical(64, 96, seed=5), S2, nodata=0,
                  transform=GRID @ rasterio.Affine.translation(0, 64))  # fmt: skip
        with pytest.raises(JobError, match=r"changed since the job was planned: 1\.tif"):
            rsb.embed.run(job, **QUIET)


def test_a_tile_without_one_of_its_rasters_is_left_out_whole(tmp_path):
    model = rsb.create_model("croma_vit_tiny", overrides={"depth": 2})
    paths = []
    for i in range(2):
        transform = GRID @ rasterio.Affine.translation(0, 64 * i)
        for name, image, bands in (("s2", optical(64, 96, seed=i), S2), ("s1", radar(64, 96, seed=i), S1)):
            paths.append(write_tif(tmp_path / f"{name}_{i}.tif", image, bands, transform=transform))
    (tmp_path / "s1_1.tif").write_bytes(b"no raster")
    with pytest.raises(ValueError, match=r"^cannot read .*s1_1\.tif"):
        rsb.embed.plan(model, paths, tmp_path / "e.zarr", **OPTIONS)
    text = r"cannot read .*s1_1\.tif.*; .*s2_1\.tif: its tile lacks s1 \(VV, VH\), as .*s1_1\.tif cannot"
    with pytest.warns(UserWarning, match=text):
        job = rsb.embed.plan(model, paths, tmp_path / "e.zarr", on_unreadable="skip", **OPTIONS)
    assert job.facts["source"]["left_out"] == [str(tmp_path / f"{name}_1.tif") for name in ("s1", "s2")]
    assert job.source.names((0, 0, 64, 96)) == [str(path) for path in paths[:2]]
    with pytest.raises(ValueError, match=r"no tile is left that has all bands: cannot read .*s1_1\.tif"):
        rsb.embed.plan(model, paths[2:], tmp_path / "e.zarr", on_unreadable="skip", **OPTIONS)
