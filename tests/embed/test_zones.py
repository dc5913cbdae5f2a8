"""Items of two UTM zones: a group of the store for each, equal to a job of that zone's items alone."""

import json
import os
import shutil

import numpy as np
import pytest
import torch

import rsbackbones as rsb
from rsbackbones.embed import points
from rsbackbones.embed.driver import JobError, driving
from rsbackbones.embed.search.search import Searched
from rsbackbones.zoo.factory import create_untrained
from tests.embed.small_disk import fill, mounted
from tests.embed.test_embed import optical
from tests.embed.test_job import QUIET, files
from tests.embed.test_stac_dates import BANDS, SIDE, item
from tests.embed.test_state_on_disk import at_batch

pystac = pytest.importorskip("pystac")
pytest.importorskip("odc.stac")
pytest.importorskip("faiss")
geopandas = pytest.importorskip("geopandas")
shapely = pytest.importorskip("shapely")
OPTIONS = {"window": 32, "overlap": 16, "shard": 32, "composite": "first"}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    overrides = {"depth": 2}
    return create_untrained("croma_vit_tiny", modalities=("s2",), bands={"s2": BANDS}, overrides=overrides)


@pytest.fixture(scope="module")
def zones(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("items"), {}
    for i, (zone, crs) in enumerate({"utm32": "EPSG:32632", "utm33": "EPSG:32633"}.items()):
        layers = dict(zip(BANDS, optical(SIDE, SIDE, seed=i, bands=4), strict=True))
        found[zone] = item(folder, f"of_{zone}", i, layers, crs=crs)
    return found


def test_a_job_whose_sample_is_refused_is_not_in_the_way(model, tmp_path):
    layers = {
        band: layer / np.float32(1e4) for band, layer in zip(BANDS, optical(SIDE, SIDE, bands=4), strict=True)
    }
    given = [item(tmp_path, crs[-2:], 0, layers, crs=crs) for crs in ("EPSG:32632", "EPSG:32633")]
    output = tmp_path / "e.zarr"
    with pytest.raises(ValueError, match="look like reflectances"):
        rsb.embed.run(rsb.embed.plan(model, given, output, **OPTIONS), **QUIET)
    options = OPTIONS | {"units": {"s2": "reflectance"}}
    summary = rsb.embed.run(rsb.embed.plan(model, given, output, **options), **QUIET)
    assert summary["shards"] == 2
    # Nor is one of zones in the way of one grid, or the other way round; of a store, or of a table.
    for name, more in (("f.zarr", {}), ("f.parquet", {"points": places(), "on_missing": "nan"})):
        for refused, right in ((given, given[:1]), (given[:1], given)):
            output = tmp_path / name
            with pytest.raises(ValueError, match="look like reflectances"):
                rsb.embed.run(rsb.embed.plan(model, refused, output, **OPTIONS, **more), **QUIET)
            job, other = (
                rsb.embed.plan(model, items, output, **options, **more) for items in (right, refused)
            )
            assert ("zones" in rsb.embed.run(job, **QUIET)) == (right is given)
            assert not (output / "utm33").exists() or right is given
            with pytest.raises(JobError, match=r"other inputs or settings; delete it and .*\.job, or choose"):
                rsb.embed.run(other, **QUIET)
            assert rsb.embed.status(output).finished
            for made in tmp_path.glob("f.*"):
                shutil.rmtree(made)


def test_each_zone_is_a_group(model, zones, tmp_path):
    output = tmp_path / "e.zarr"
    job = rsb.embed.plan(model, list(zones.values()), output, **OPTIONS)
    assert list(job.zones) == ["utm32", "utm33"]
    assert not output.exists()
    summary = rsb.embed.run(job, **QUIET)
    assert summary["shards"] == 2
    for zone, given in zones.items():
        alone = rsb.embed.plan(model, [given], tmp_path / f"{zone}.zarr", **OPTIONS)
        rsb.embed.run(alone, **QUIET)
        expected = rsb.embed.open(tmp_path / f"{zone}.zarr", decode=False)
        found = rsb.embed.open(output, group=zone, decode=False)
        np.testing.assert_array_equal(found["embeddings"].values, expected["embeddings"].values)
        np.testing.assert_array_equal(found["x"].values, expected["x"].values)
        assert found.attrs["proj:code"] == f"EPSG:326{zone[-2:]}"
        lon, lat = (given.bbox[0] + given.bbox[2]) / 2, (given.bbox[1] + given.bbox[3]) / 2
        searched = [Searched(tmp_path / f"{zone}.zarr"), Searched(output, group=zone)]
        hits = [one.search([one.at(lon, lat)], k=5) for one in searched]
        np.testing.assert_array_equal(hits[0].rows, hits[1].rows)
        np.testing.assert_array_equal(hits[0].lon, hits[1].lon)
    with pytest.raises(ValueError, match=r"a group for each UTM zone: utm32, utm33.*--group utm32"):
        rsb.embed.open(output)
    with pytest.raises(ValueError, match="no groups: leave out the group, 'utm32'"):
        rsb.embed.open(tmp_path / "utm32.zarr", group="utm32")
    folder = tmp_path / "e.zarr.stac"
    collection = json.loads((folder / "collection.json").read_text())
    assert len(collection["extent"]["spatial"]["bbox"]) == 3
    linked = [link["href"] for link in collection["links"] if link["rel"] == "item"]
    for href, zone in zip(linked, zones, strict=True):
        stated = json.loads((folder / href).read_text())
        assert stated["properties"]["proj:code"] == f"EPSG:326{zone[-2:]}"
        assert (folder / stated["assets"]["embeddings"]["href"]).resolve() == output / zone
    found = rsb.embed.status(output)
    assert (found.total, found.done, found.finished) == (2, 2, True)
    assert rsb.embed.run(job, **QUIET) == summary
    with pytest.raises(JobError, match="other inputs or settings"):
        rsb.embed.run(
            rsb.embed.plan(model, list(zones.values()), output, **(OPTIONS | {"overlap": 0})), **QUIET
        )
    with pytest.raises(JobError, match="other inputs or settings"):
        rsb.embed.run(rsb.embed.plan(model, [zones["utm32"]], output, **OPTIONS), **QUIET)


def test_a_zone_that_fails_is_named_and_goes_on(model, zones, tmp_path, monkeypatch):
    monkeypatch.setattr("rsbackbones.files.retry.PAUSE_S", 0.01)
    output = tmp_path / "e.zarr"
    broken = zones["utm33"].clone()
    path = tmp_path / "B03.tif"
    broken.assets["B03"].href = str(path)
    job = rsb.embed.plan(model, [zones["utm32"], broken], output, **OPTIONS)
    with pytest.raises(ValueError, match=r"utm33: .*cannot read the asset B03 of of_utm33"):
        rsb.embed.run(job, **QUIET)
    found = rsb.embed.status(output)
    assert (found.total, found.done, found.finished) == (2, 1, False)
    shutil.copy(zones["utm33"].assets["B03"].href, path)
    rsb.embed.run(job, **QUIET)
    assert rsb.embed.status(output).finished


def test_a_second_driver_of_the_whole_is_refused(model, zones, tmp_path):
    output = tmp_path / "e.zarr"
    job = rsb.embed.plan(model, list(zones.values()), output, **OPTIONS)
    with (
        driving(job.records, str(output), take_over=False),
        pytest.raises(JobError, match=rf"another driver .*process {os.getpid()} on .*--take-over"),
    ):
        rsb.embed.run(job, **QUIET)
    assert not output.exists()
    assert rsb.embed.run(job, **QUIET)["shards"] == 2


def test_a_folder_that_takes_nothing_is_one_error_and_the_job_goes_on(model, zones, tmp_path):
    folder = tmp_path / "folder"
    folder.write_text("a file")
    job = rsb.embed.plan(model, list(zones.values()), folder / "e.zarr", **OPTIONS)
    with pytest.raises(JobError, match=r"cannot write .*make room, or give access") as caught:
        rsb.embed.run(job, **QUIET)
    assert "\n" not in str(caught.value)
    folder.unlink()
    assert rsb.embed.run(job, **QUIET)["shards"] == 2


def test_a_disk_that_is_full_at_the_second_zone_is_one_error_and_the_job_goes_on(model, zones, tmp_path):
    with mounted(tmp_path / "disk", "16m") as disk:
        job = rsb.embed.plan(model, list(zones.values()), disk / "e.zarr", **OPTIONS)
        # A zone has three batches of its sample, and three of its shard.
        hook = at_batch(model, 8, lambda: fill(disk / "ballast"))
        with pytest.raises(JobError, match=r"utm33: cannot write .*No space left") as caught:
            rsb.embed.run(job, **QUIET)
        hook.remove()
        assert "\n" not in str(caught.value)
        assert rsb.embed.status(disk / "e.zarr").done == 1
        (disk / "ballast").unlink()
        assert rsb.embed.run(job, **QUIET)["shards"] == 2
        assert rsb.embed.status(disk / "e.zarr").finished


def places():
    """Three geometries in each zone, in degrees, and a column of the user's."""
    shapes = []
    for crs in ("EPSG:32632", "EPSG:32633"):
        own = [shapely.Point(500_200, 4_999_800), shapely.box(500_050, 4_999_500, 500_420, 4_999_920),
               shapely.Point(500_600, 4_999_500)]  # fmt: skip
        shapes += geopandas.GeoSeries(own, crs=crs).to_crs("EPSG:4326").tolist()
    return geopandas.GeoDataFrame(
        {"id": list("abcdef"), "note": [None] * 5 + ["last"]}, geometry=shapes, crs="EPSG:4326"
    )


def test_geometries_of_two_zones_are_one_table(model, zones, tmp_path, monkeypatch):
    monkeypatch.setattr("rsbackbones.files.retry.PAUSE_S", 0.01)
    monkeypatch.setattr(points, "GROUP", 2)
    output, given, frame = tmp_path / "p.parquet", list(zones.values()), places()
    expected = []
    for zone, rows in zip(zones, (slice(0, 3), slice(3, 6)), strict=True):
        alone = tmp_path / f"{zone}.parquet"
        rsb.embed.run(rsb.embed.plan(model, zones[zone], alone, points=frame.iloc[rows], **OPTIONS), **QUIET)
        expected.append(geopandas.read_parquet(alone))
    broken = zones["utm33"].clone()
    path = tmp_path / "B03.tif"
    broken.assets["B03"].href = str(path)
    job = rsb.embed.plan(model, [given[0], broken], output, points=frame, **OPTIONS)
    with pytest.raises(JobError, match=r"utm33: .*cannot read the asset B03 of of_utm33"):
        rsb.embed.run(job, **QUIET)
    assert not output.exists()
    half = rsb.embed.status(output)
    assert (half.total, half.done, half.finished) == (4, 2, False)
    shutil.copy(zones["utm33"].assets["B03"].href, path)
    summary = rsb.embed.run(job, **QUIET)
    assert (summary["geometries"], summary["missing"], summary["shards"]) == (6, 0, 4)
    assert rsb.embed.run(job, **QUIET) == summary
    assert [p.name for p in sorted(output.iterdir())] == [
        f"part-{zone}-{i:08d}.parquet" for zone in zones for i in range(2)
    ]
    found = geopandas.read_parquet(output)
    for own, (zone, table) in zip(expected, found.groupby("crs"), strict=True):
        assert table["id"].tolist() == own["id"].tolist()
        assert set(own["crs"]) == {zone}
        np.testing.assert_array_equal(np.stack(table["embedding"]), np.stack(own["embedding"]))
        for name in own.columns.difference(["embedding"]):
            assert table[name].astype(str).tolist() == own[name].astype(str).tolist(), name
    assert len(Searched(output).search([np.ones(96, np.float32)], k=6).rows) == 6
    item = json.loads((tmp_path / "p.parquet.stac/p-utm33.json").read_text())
    assert (tmp_path / "p.parquet.stac" / item["assets"]["embeddings"]["href"]).resolve() == output
    # A driver that is killed while it gathers the parts.
    before, records = files(output), tmp_path / "p.parquet.job"
    output.rename(records / "parts")
    (records / "parts/part-utm33-00000001.parquet").rename(
        records / "utm33/parts/part-utm33-00000001.parquet"
    )
    (records / "finished.json").unlink()
    assert rsb.embed.run(job, **QUIET) == summary
    assert files(output) == before
    with pytest.raises(JobError, match="other inputs or settings"):
        rsb.embed.run(rsb.embed.plan(model, given[:1], output, points=frame.iloc[:3], **OPTIONS), **QUIET)
    shutil.rmtree(output)
    with pytest.raises(JobError, match="the output is gone"):
        rsb.embed.run(job, **QUIET)


def test_zones_of_several_dates_have_the_same_columns_and_share_what_is_missing(model, zones, tmp_path):
    layers = dict(zip(BANDS, optical(SIDE, SIDE, seed=5, bands=4), strict=True))
    for layer in layers.values():
        layer[:32, :32] = 0
    later = item(tmp_path, "later", 7, layers, crs="EPSG:32633")
    hidden = item(tmp_path, "hidden", 1, layers, crs="EPSG:32633")
    given, output, frame = [zones["utm32"], hidden, later], tmp_path / "p.parquet", places()
    with pytest.raises(JobError, match=r"without a cell with data: 1 geometry \(d\)\. All others are done"):
        rsb.embed.run(rsb.embed.plan(model, given, output, points=frame, **OPTIONS), **QUIET)
    assert not output.exists()
    job = rsb.embed.plan(model, given, output, points=frame, on_missing="nan", **OPTIONS)
    assert rsb.embed.run(job, **QUIET)["missing"] == 1
    table = geopandas.read_parquet(output).set_index("id")
    assert table.index[np.isnan(np.stack(table["embedding"])).any(1)].tolist() == ["d"]
    dates = table[["datetime", "start_datetime", "end_datetime"]]
    days = [[str(date)[:10] for date in dates.loc[i]] for i in "af"]
    assert days == [["2024-06-01"] * 3, ["NaT", "2024-06-02", "2024-06-08"]]


def test_a_geometry_between_the_items_of_a_zone_is_of_another_that_has_some_there(model, tmp_path):
    """The map of the eastern zone has a gap at 12 degrees east, where an item of the western one lies."""
    layers = dict(zip(BANDS, optical(SIDE, SIDE, bands=4), strict=True))
    places = {
        "gap": ("EPSG:32632", 736_700),
        "left": ("EPSG:32633", 263_000),
        "right": ("EPSG:32633", 266_000),
    }
    given = [item(tmp_path, name, 0, layers, crs=crs, west=west) for name, (crs, west) in places.items()]
    frame = geopandas.GeoDataFrame(geometry=[shapely.Point(265_000, 4_999_700)], crs="EPSG:32633")
    output = tmp_path / "p.parquet"
    rsb.embed.run(rsb.embed.plan(model, given, output, points=frame, **OPTIONS), **QUIET)
    (row,) = geopandas.read_parquet(output).to_dict("records")
    assert (row["crs"], row["source"], row["valid_share"]) == ("EPSG:32632", "gap", 1)


def test_a_cog_of_zones_is_refused(model, zones, tmp_path):
    with pytest.raises(ValueError, match=r"utm32, utm33.*--grid utm10m"):
        rsb.embed.plan(model, list(zones.values()), tmp_path / "e.tif", **OPTIONS)
