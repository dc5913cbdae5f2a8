"""Items of two UTM zones: a group of the store for each, equal to a job of that zone's items alone."""

import json
import shutil

import numpy as np
import pytest
import torch

import rsbackbones as rsb
from rsbackbones.embed.driver import JobError
from rsbackbones.embed.search.search import Searched
from rsbackbones.zoo.factory import create_untrained
from tests.embed.test_embed import optical
from tests.embed.test_job import QUIET
from tests.embed.test_stac_dates import BANDS, SIDE, item

pystac = pytest.importorskip("pystac")
pytest.importorskip("odc.stac")
pytest.importorskip("faiss")
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
    with pytest.raises(JobError, match="no output of a job"):
        rsb.embed.run(rsb.embed.plan(model, [zones["utm32"]], output, **OPTIONS), **QUIET)


def test_a_zone_that_fails_is_named_and_goes_on(model, zones, tmp_path, monkeypatch):
    monkeypatch.setattr("rsbackbones.files.retry.PAUSE_S", 0.01)
    output = tmp_path / "e.zarr"
    broken = zones["utm33"].clone()
    path = tmp_path / "B03.tif"
    broken.assets["B03"].href = str(path)
    job = rsb.embed.plan(model, [zones["utm32"], broken], output, **OPTIONS)
    with pytest.raises(ValueError, match="cannot read the asset B03 of of_utm33"):
        rsb.embed.run(job, **QUIET)
    found = rsb.embed.status(output)
    assert (found.total, found.done, found.finished) == (2, 1, False)
    shutil.copy(zones["utm33"].assets["B03"].href, path)
    rsb.embed.run(job, **QUIET)
    assert rsb.embed.status(output).finished


def test_a_cog_of_zones_is_refused(model, zones, tmp_path):
    with pytest.raises(ValueError, match=r"utm32, utm33.*--grid utm10m"):
        rsb.embed.plan(model, list(zones.values()), tmp_path / "e.tif", **OPTIONS)
