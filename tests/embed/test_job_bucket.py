"""A store in a bucket: S3 on this machine."""

import json
import urllib.request

import numpy as np
import pytest

import rsbackbones as rsb
from rsbackbones.embed import points
from rsbackbones.embed.driver import JobError
from rsbackbones.files.objects import Objects
from tests.data.test_rasters import S2, write_tif
from tests.embed.test_embed import QUIET, optical
from tests.embed.test_job import files, shards

moto = pytest.importorskip("moto.server")
pytest.importorskip("obstore")


@pytest.fixture
def bucket(monkeypatch):
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    for name, value in {"ENDPOINT_URL": url, "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b",
                        "REGION": "us-east-1", "ALLOW_HTTP": "true"}.items():  # fmt: skip
        monkeypatch.setenv(f"AWS_{name}", value)
    with urllib.request.urlopen(urllib.request.Request(f"{url}/bucket", method="PUT")):
        pass
    yield "s3://bucket"
    server.stop()


def test_a_bucket_gets_the_bytes_of_a_folder(bucket, tmp_path):
    model = rsb.create_model("croma_vit_tiny", pretrained=True, modalities=("s2",))
    source = write_tif(tmp_path / "s.tif", optical(264, 264), S2)
    options = {"window": 64, "overlap": 16, "shard": 32}
    rsb.embed.run(rsb.embed.plan(model, source, tmp_path / "e.zarr", **options), **QUIET)
    place = f"{bucket}/a/e.zarr"
    job = rsb.embed.plan(model, source, place, **options)
    rsb.embed.run(job, **QUIET)
    remote = Objects(place)
    found = {key: remote.get(key) for key in remote.keys() if "/c/" in key}  # noqa: SIM118
    assert found == shards(tmp_path / "e.zarr")
    there = rsb.embed.open(place)["embeddings"].values
    np.testing.assert_array_equal(there, rsb.embed.open(tmp_path / "e.zarr")["embeddings"].values)
    assert rsb.embed.status(place).finished
    assert Objects(f"{place}.job").get("model.safetensors") is None
    assert json.loads(Objects(f"{place}.stac").get("e.json"))["id"] == "e"
    other = rsb.embed.plan(model, source, place, **(options | {"overlap": 24}))
    with pytest.raises(JobError, match="overlap"):
        rsb.embed.run(other, **QUIET)


@pytest.fixture
def quota(monkeypatch):
    """How many objects of an output the server takes before it says that the bucket is full."""
    from moto.s3.exceptions import S3ClientError
    from moto.s3.models import S3Backend

    class QuotaExceeded(S3ClientError):
        def __init__(self, *_, **__):
            super().__init__("QuotaExceeded", "the bucket is full")

    stored, plain = {"room": 0}, S3Backend.put_object

    def put(self, bucket_name, key_name, *arguments, **options):
        if "/c/" in key_name or "/part-" in key_name:
            if not stored["room"]:
                raise QuotaExceeded
            stored["room"] -= 1
        return plain(self, bucket_name, key_name, *arguments, **options)

    monkeypatch.setattr(S3Backend, "put_object", put)
    return stored


def test_a_full_bucket_is_one_error_and_the_job_goes_on_when_there_is_room(bucket, quota, tmp_path):
    model = rsb.create_model("croma_vit_tiny", pretrained=True, modalities=("s2",))
    source = write_tif(tmp_path / "s.tif", optical(264, 264), S2)
    options = {"window": 64, "overlap": 16, "shard": 32}
    place, quota["room"] = f"{bucket}/full.zarr", 6  # the coordinates, scale and offset, and two shards
    job = rsb.embed.plan(model, source, place, **options)
    with pytest.raises(JobError, match=r"shard 2 failed .*QuotaExceeded.*kept: 2 of 4 shards;") as caught:
        rsb.embed.run(job, **QUIET)
    assert "\n" not in str(caught.value)
    quota["room"] = 100
    rsb.embed.run(job, **QUIET)
    rsb.embed.run(rsb.embed.plan(model, source, tmp_path / "e.zarr", **options), **QUIET)
    remote = Objects(place)
    found = {key: remote.get(key) for key in remote.keys() if "/c/" in key}  # noqa: SIM118
    assert found == shards(tmp_path / "e.zarr")


@pytest.mark.parametrize("zones", [1, 2])
def test_a_table_in_a_bucket_has_the_bytes_of_a_folder(zones, bucket, quota, tmp_path, monkeypatch):
    geopandas, shapely = pytest.importorskip("geopandas"), pytest.importorskip("shapely")
    pytest.importorskip("odc.stac")
    from tests.embed.test_stac_dates import BANDS, SIDE, item, model_of

    monkeypatch.setattr(points, "GROUP", 2)
    layers = dict(zip(BANDS, optical(SIDE, SIDE, bands=4), strict=True))
    codes = ["EPSG:32632", "EPSG:32633"][:zones]
    items = [item(tmp_path, code[-2:], 0, layers, crs=code) for code in codes]
    places = [geopandas.GeoSeries([shapely.Point(500_100 + 100 * i, 4_999_900) for i in range(4)], crs=code)
              for code in codes]  # fmt: skip
    frame = geopandas.GeoDataFrame(
        geometry=[p for s in places for p in s.to_crs("EPSG:4326")], crs="EPSG:4326"
    )
    model, place = model_of("croma_vit_tiny", depth=2), f"{bucket}/{zones}/p.parquet"
    options = {"points": frame, "window": 32, "overlap": 16, "composite": "first"}
    rsb.embed.run(rsb.embed.plan(model, items, tmp_path / "p.parquet", **options), **QUIET)
    job = rsb.embed.plan(model, items, place, **options)
    quota["room"] = 2 * zones - 1
    with pytest.raises(JobError, match=r"group 1 failed .*QuotaExceeded.*kept: 1 of 2 groups;"):
        rsb.embed.run(job, **QUIET)
    assert not rsb.embed.status(place).finished
    assert list(Objects(f"{place}.stac").keys()) == []
    quota["room"] = 1
    rsb.embed.run(job, **QUIET)
    assert rsb.embed.status(place).finished
    remote = Objects(place)
    assert {key: remote.get(key) for key in remote.keys()} == files(tmp_path / "p.parquet")  # noqa: SIM118
    assert len(list(remote.keys())) == 2 * zones
    assert list(Objects(f"{place}.job").keys("groups/")) == []
    Objects(f"{place}.job").delete("zones.json" if zones == 2 else "job.json")
    with pytest.raises(JobError, match="no output of a job"):
        rsb.embed.run(job, **QUIET)


def test_objects_are_created_once(bucket, tmp_path):
    for objects in (Objects(f"{bucket}/x"), Objects(str(tmp_path / "x"))):
        assert objects.get("a/b.json") is None
        assert objects.create_json("a/b.json", {"n": 1})
        assert not objects.create_json("a/b.json", {"n": 2})
        assert objects.get_json("a/b.json") == {"n": 1}
        objects.put_json("a/b.json", {"n": 3})
        objects.put("c", b"x")
        assert sorted(objects.keys()) == ["a/b.json", "c"]
        assert list(objects.keys("a/")) == ["a/b.json"]
        objects.delete("a/b.json")
        objects.delete("a/b.json")
        assert list(objects.keys()) == ["c"]
