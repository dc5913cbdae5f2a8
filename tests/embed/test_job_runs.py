"""Engines, kills and two drivers: whatever runs a job, and whoever is killed, a store has the same bytes."""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import torch

import rsbackbones as rsb
from rsbackbones.embed import points
from rsbackbones.embed.driver import JobError, alive
from rsbackbones.embed.run import prepare
from rsbackbones.embed.sources.rasters import RasterSource
from tests import forked
from tests.data.test_rasters import S2, write_tif
from tests.embed.small_disk import fill, mounted
from tests.embed.test_embed import optical
from tests.embed.test_job import QUIET, SMALL, files, shards
from tests.embed.test_state_on_disk import at_batch

pytest.importorskip("obstore")
KILLS = int(os.environ.get("RSB_KILLS", "2"))
FORKED = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module")
def model():
    return rsb.create_model("croma_vit_tiny", pretrained=True, modalities=("s2",))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_tif(tmp_path_factory.mktemp("scene") / "scene.tif", optical(520, 520), S2)


@pytest.fixture(scope="module")
def undisturbed(model, source, tmp_path_factory):
    """The shards of a run that nothing disturbs: 9 of them."""
    output = tmp_path_factory.mktemp("undisturbed") / "e.zarr"
    summary = rsb.embed.run(rsb.embed.plan(model, source, output, **SMALL), **QUIET)
    assert summary["shards"] == 9
    return shards(output)


@pytest.fixture(scope="module")
def dask():
    """Two workers of Dask, which are forked where that is possible."""
    forked.run([sys.executable, "-c", ""])  # starts the server, which has imported torch
    os.environ["DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD"] = "forkserver"
    from rsbackbones.embed.cluster import local_workers

    with local_workers(2) as executor:
        yield executor


def test_processes_give_the_bytes_of_a_serial_run(model, source, undisturbed, tmp_path):
    job = rsb.embed.plan(model, source, tmp_path / "e.zarr", **SMALL)
    with ProcessPoolExecutor(2, mp_context=FORKED) as executor:
        rsb.embed.run(job, executor, **QUIET)
    assert shards(tmp_path / "e.zarr") == undisturbed


def test_forked_workers_are_refused(model, source, tmp_path):
    job = rsb.embed.plan(model, source, tmp_path / "e.zarr", **SMALL)
    with (
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as executor,
        pytest.raises(ValueError, match="spawn"),
    ):
        rsb.embed.run(job, executor, **QUIET)


class DeadlySource(RasterSource):
    """Kills the worker that reads the pixels of the first shard."""

    @contextmanager
    def open(self, model, window):
        if window[:2] == (0, 0) and window[2] > 240 and multiprocessing.parent_process():
            os.kill(os.getpid(), signal.SIGKILL)
        with super().open(model, window) as scene:
            yield scene


def test_dask_gives_the_bytes_of_zones_of_dates_and_of_geometries(dask, tmp_path, monkeypatch):
    geopandas, shapely = pytest.importorskip("geopandas"), pytest.importorskip("shapely")
    pytest.importorskip("odc.stac")
    from tests.embed.test_stac_dates import BANDS, SIDE, item, model_of

    monkeypatch.setattr(points, "GROUP", 2)
    net = model_of("croma_vit_tiny", depth=2)
    given, shapes = [], []
    for zone in ("EPSG:32632", "EPSG:32633"):
        for day in (0, 5):
            layers = dict(zip(BANDS, optical(SIDE, SIDE, seed=day, bands=4), strict=True))
            given.append(item(tmp_path, f"{zone[-2:]}_{day}", day, layers, crs=zone))
        own = [shapely.Point(500_100 + 150 * i, 4_999_600) for i in range(3)]
        shapes += geopandas.GeoSeries(own, crs=zone).to_crs("EPSG:4326").tolist()
    frame = geopandas.GeoDataFrame(geometry=shapes, crs="EPSG:4326")
    windows = {"window": 32, "overlap": 16, "shard": 32}
    for name, options, count in [
        ("e.zarr", {"composite": "none"}, 2),
        ("p.parquet", {"composite": "median", "points": frame}, 4),
    ]:
        for where, executor in (("here", None), ("dask", dask)):
            job = rsb.embed.plan(net, given, tmp_path / where / name, **options, **windows)
            assert rsb.embed.run(job, executor, **QUIET)["shards"] == count
        assert files(tmp_path / "dask" / name) == files(tmp_path / "here" / name)


def test_dask_gives_the_same_bytes_and_a_deadly_shard_is_left_out(dask, model, source, undisturbed, tmp_path):
    first, second = tmp_path / "e.zarr", tmp_path / "deadly.zarr"
    job = rsb.embed.plan(model, source, first, **SMALL)
    deadly = rsb.embed.plan(model, source, second, **SMALL)
    healthy = deadly.source
    object.__setattr__(deadly, "source", DeadlySource(**vars(healthy)))
    rsb.embed.run(job, dask, **QUIET)
    assert shards(first) == undisturbed
    shutil.rmtree(second, ignore_errors=True)
    prepare(deadly, None)  # its sample reads that shard too
    with pytest.raises(JobError, match=r"shard 0 failed .*workers died"):
        rsb.embed.run(deadly, dask, **QUIET)
    found = rsb.embed.status(second)
    assert (found.done, set(found.failed), found.left, found.finished) == (8, {0}, 0, False)
    object.__setattr__(deadly, "source", healthy)
    rsb.embed.run(deadly, dask, **QUIET)
    assert shards(second) == undisturbed
    assert rsb.embed.status(second).finished


def test_a_killed_worker_of_a_pool_leaves_a_store_that_goes_on(model, source, undisturbed, tmp_path):
    job = rsb.embed.plan(model, source, tmp_path / "e.zarr", **SMALL)
    prepare(job, None)
    object.__setattr__(job, "source", DeadlySource(**vars(job.source)))
    with (
        ProcessPoolExecutor(2, mp_context=FORKED) as executor,
        pytest.raises(JobError, match="worker process died"),
    ):
        rsb.embed.run(job, executor, **QUIET)
    object.__setattr__(job, "source", RasterSource(**vars(job.source)))
    rsb.embed.run(job, **QUIET)
    assert shards(tmp_path / "e.zarr") == undisturbed


def test_killed_drivers_leave_what_the_next_one_needs(source, undisturbed, tmp_path):
    output = tmp_path / "e.zarr"
    command = [
        sys.executable, "-m", "rsbackbones", "embed", source, "--model", "croma_vit_tiny",
        "--modalities", "s2", "--output", output, "--window", "64", "--overlap", "16", "--shard", "32",
        "--no-progress",
    ]  # fmt: skip
    moments = np.random.default_rng().uniform(0.2, 4, KILLS)
    for moment in moments:
        process = forked.Forked(command, tmp_path / "log")
        time.sleep(moment)
        process.kill()
        process.wait()
    result = forked.run(command)
    assert result.returncode == 0, (result.stderr, moments)
    assert shards(output) == undisturbed, moments
    records = sorted((tmp_path / "e.zarr.job/done").iterdir())
    assert [json.loads(r.read_text())["shard"] for r in records] == list(range(9))
    before = {p: p.stat().st_mtime_ns for p in output.rglob("*")}
    assert forked.run(command).returncode == 0  # a finished job is left alone
    assert {p: p.stat().st_mtime_ns for p in output.rglob("*")} == before
    shown = forked.run([*command, "--status"])
    assert "9 of 9 shards done" in shown.stdout
    assert shown.returncode == 0


def test_a_shard_without_its_record_is_computed_again_with_the_same_bytes(
    model, source, undisturbed, tmp_path
):
    output = tmp_path / "e.zarr"
    job = rsb.embed.plan(model, source, output, **SMALL)
    rsb.embed.run(job, **QUIET)
    for name in ("done/00000004.json", "finished.json"):
        (tmp_path / "e.zarr.job" / name).unlink()
    (output / "embeddings/c/0/1/2.partial").write_bytes(b"half")
    encoded = []
    hook = model.encoders["s2"].register_forward_pre_hook(lambda *_: encoded.append(1))
    rsb.embed.run(job, **QUIET)
    hook.remove()
    assert 0 < len(encoded) <= 8
    (output / "embeddings/c/0/1/2.partial").unlink()
    assert shards(output) == undisturbed


def test_a_number_that_a_process_of_another_user_has_now_is_no_driver(monkeypatch):
    def refuse(pid, signal):
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    stated = {"host": socket.gethostname(), "pid": 1, "beat": time.time()}
    assert alive(stated)
    assert not alive(stated | {"beat": time.time() - 1000})


def test_one_driver_at_a_time(model, source, tmp_path):
    job = rsb.embed.plan(model, source, tmp_path / "e.zarr", **SMALL)
    folder = tmp_path / "e.zarr.job"
    folder.mkdir()
    lease = {"id": "other", "host": os.uname().nodename, "pid": os.getpid(), "beat": time.time()}
    (folder / "driver.json").write_text(json.dumps(lease))
    with pytest.raises(JobError, match=f"process {os.getpid()} on .*--take-over"):
        rsb.embed.run(job, **QUIET)
    # One of another machine that has not written for long, and one of this machine that is dead.
    with forked_pid() as dead:
        pass
    for other in ({"host": "elsewhere", "beat": time.time() - 1000}, {"pid": dead}):
        (folder / "driver.json").write_text(json.dumps(lease | other))
        rsb.embed.run(job, **QUIET)
        assert not (folder / "driver.json").exists()
    (folder / "driver.json").write_text(json.dumps(lease))
    rsb.embed.run(job, take_over=True, **QUIET)


@contextmanager
def forked_pid():
    process = FORKED.Process(target=time.sleep, args=(0,))
    process.start()
    yield process.pid
    process.join()


def test_a_store_is_of_one_job(model, source, tmp_path):
    output = tmp_path / "e.zarr"
    rsb.embed.run(rsb.embed.plan(model, source, output, **SMALL), **QUIET)
    with pytest.raises(JobError, match=r"other inputs or settings \(overlap\)"):
        rsb.embed.run(rsb.embed.plan(model, source, output, **(SMALL | {"overlap": 24})), **QUIET)
    other = rsb.create_model("croma_vit_tiny", pretrained=True, modalities=("s2",))
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-3
    with pytest.raises(JobError, match=r"\(model\)"):
        rsb.embed.run(rsb.embed.plan(other, source, output, **SMALL), **QUIET)
    (tmp_path / "mine.zarr").mkdir()
    (tmp_path / "mine.zarr/zarr.json").write_text("{}")
    with pytest.raises(JobError, match="no output of a job"):
        rsb.embed.run(rsb.embed.plan(model, source, tmp_path / "mine.zarr", **SMALL), **QUIET)
    with pytest.raises(ValueError, match="no job for"):
        rsb.embed.status(tmp_path / "mine.zarr")


@pytest.mark.parametrize("when", ["before", "between"])
def test_a_full_disk_is_one_error_and_the_job_goes_on_when_there_is_room(
    model, source, undisturbed, tmp_path, when
):
    with mounted(tmp_path / "disk", "16m") as disk:
        job = rsb.embed.plan(model, source, disk / "e.zarr", **SMALL)
        ballast = disk / "ballast"
        if when == "before":
            ballast.write_bytes(bytes((16 << 20) - (1 << 17)))  # the weights have no room
            hook = at_batch(model, 0, lambda: None)
        else:
            prepare(job, None)
            hook = at_batch(model, 20, lambda: fill(ballast))
        with pytest.raises(JobError, match="No space left") as caught:
            rsb.embed.run(job, **QUIET)
        hook.remove()
        assert "\n" not in str(caught.value)
        done = rsb.embed.status(disk / "e.zarr").done
        assert done == 0 if when == "before" else 0 < done < 9
        ballast.unlink()
        assert rsb.embed.run(job, **QUIET)["shards"] == 9
        assert shards(disk / "e.zarr") == undisturbed


def test_a_scene_without_data_is_refused_and_nothing_is_encoded(model, tmp_path):
    path = write_tif(tmp_path / "s.tif", np.zeros((12, 128, 128), np.uint16), S2, nodata=0)
    hook = at_batch(model, 1, lambda: pytest.fail("the model ran"))
    with pytest.raises(ValueError, match=r"no pixel has data"):
        rsb.embed.run(rsb.embed.plan(model, path, tmp_path / "e.zarr", **SMALL), **QUIET)
    hook.remove()


def test_an_input_that_changes_or_cannot_be_read_stops_the_job(model, tmp_path):
    path = write_tif(tmp_path / "s.tif", optical(520, 300), S2)
    job = rsb.embed.plan(model, path, tmp_path / "e.zarr", **SMALL)
    prepare(job, None)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(JobError, match=r"shard 0 failed .*changed since the job was planned: s\.tif"):
        rsb.embed.run(job, **QUIET)
    assert set(rsb.embed.status(tmp_path / "e.zarr").failed) == {0}


def test_the_memory_of_a_task_is_within_the_bound(model, tmp_path):
    source = write_tif(tmp_path / "s.tif", np.tile(optical(250, 250), (1, 8, 8)), S2)
    folder = tmp_path / "bound.json"
    plan = f"rsb.embed.plan(m, {str(source)!r}, {str(tmp_path)!r} + "
    code = f"""
import json, rsbackbones as rsb
from rsbackbones.embed.run import prepare
from rsbackbones.embed.store import create_store
from rsbackbones.embed.task import compute_shard
def memory(line):
    return next(int(s.split()[1]) * 1024 for s in open("/proc/self/status") if s.startswith(line))
m = rsb.create_model("croma_vit_tiny", pretrained=True, modalities=("s2",))
warm = prepare({plan}"/w.zarr", shard=32, cache_bytes=2**24), None)
compute_shard(warm, 0)
job = {plan}"/e.zarr", shard=256, cache_bytes=2**24).calibrated(warm.calibration)
create_store(job)
before = memory("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
compute_shard(job, 0)
open({str(folder)!r}, "w").write(json.dumps([memory("VmHWM") - before, sum(job.memory_bound.values())]))
"""
    result = forked.run([sys.executable, "-c", code])
    assert result.returncode == 0, result.stderr
    grown, bound = json.loads(folder.read_text())
    assert 0 < grown <= bound
