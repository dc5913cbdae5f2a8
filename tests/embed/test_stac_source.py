"""STAC items: the same pixels give the same bytes, composites are those of numpy, faults are named."""

import json
import warnings
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import torch
from rasterio import Affine
from rasterio.warp import transform_bounds

import rsbackbones as rsb
from rsbackbones.cli import main
from rsbackbones.files import retry
from rsbackbones.value_check import ProductWarning
from tests.data.test_rasters import write_tif
from tests.embed.range_server import serve
from tests.embed.test_embed import optical
from tests.embed.test_job import QUIET, stored

pystac = pytest.importorskip("pystac")
pytest.importorskip("odc.stac")
GeoBox = pytest.importorskip("odc.geo.geobox").GeoBox

BANDS = ("B02", "B03", "B04", "B08")
SIDE = 96
OPTIONS = {"window": 32, "overlap": 16, "shard": 32}
MASK = {"mask": {"SCL": (8, 9)}}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return rsb.create_model("croma_vit_tiny", modalities=("s2",), bands={"s2": BANDS}, overrides={"depth": 2})


@pytest.fixture(scope="module")
def dates(tmp_path_factory):
    """Three dates of a place with clouds: files, [T, C, h, w], and which pixels are clear [T, h, w]."""
    folder = tmp_path_factory.mktemp("items")
    rng = np.random.default_rng(0)
    images = np.stack([optical(SIDE, SIDE, seed=i, bands=4) for i in range(3)])
    classes = (
        np.where(rng.random((3, SIDE // 8, SIDE // 8)) < 0.3, 9, 4).repeat(8, 1).repeat(8, 2).astype(np.uint8)
    )
    for t in range(3):
        for band, layer in zip(BANDS, images[t], strict=True):
            write_tif(folder / f"{t}_{band}.tif", layer[None], [band], nodata=0)
        write_tif(folder / f"{t}_SCL.tif", classes[t][None], ["SCL"], nodata=0)
    return folder, images, classes == 4


def items(folder, count=3, base=None):
    found = []
    bounds = transform_bounds(
        "EPSG:32633", "EPSG:4326", 500_000, 5_000_000 - 10 * SIDE, 500_000 + 10 * SIDE, 5_000_000
    )
    west, south, east, north = bounds
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    for t in range(count):
        item = pystac.Item(
            id=f"item{t}", geometry={"type": "Polygon", "coordinates": [ring]}, bbox=list(bounds),
            datetime=datetime(2024, 6, 1, 10, tzinfo=UTC) + timedelta(days=10 * t),
            properties={"proj:code": "EPSG:32633", "proj:shape": [SIDE, SIDE],
                        "eo:cloud_cover": [50, 10, 30][t],
                        "proj:transform": [10, 0, 500_000, 0, -10, 5_000_000]},
        )  # fmt: skip
        item.stac_extensions = ["https://stac-extensions.github.io/projection/v2.0.0/schema.json"]
        for key in (*BANDS, "SCL"):
            name = f"{t}_{key}.tif"
            href = f"{base}/{name}" if base else str(folder / name)
            item.add_asset(key, pystac.Asset(href=href, media_type="image/tiff; application=geotiff"))
        found.append(item)
    return found


def run(model, source, output, **options):
    job = rsb.embed.plan(model, source, output, **(OPTIONS | options))
    return rsb.embed.run(job, **QUIET)


def same(a, b):
    first, second = stored(a), stored(b)
    for key in first:
        np.testing.assert_array_equal(first[key], second[key], err_msg=key)


def test_one_item_gives_the_bytes_of_its_files(model, dates, tmp_path):
    folder, _, _ = dates
    run(model, items(folder, 1), tmp_path / "stac.zarr")
    run(model, [folder / f"0_{band}.tif" for band in BANDS], tmp_path / "files.zarr")
    same(tmp_path / "stac.zarr", tmp_path / "files.zarr")
    (tmp_path / "items.json").write_text(json.dumps(pystac.ItemCollection(items(folder)).to_dict()))
    job = rsb.embed.plan(model, tmp_path / "items.json", tmp_path / "x.zarr", dates="2024-05-30/2024-06-05")
    assert [item["id"] for item in job.facts["source"]["items"]["s2"]] == ["item0"]


def plain_composite(images, clear, composite):
    """What a composite of [T, C, h, w] is, pixel by pixel; zero where no date is clear."""
    made = np.zeros(images.shape[1:], np.float32)
    order = {"least-cloudy": [1, 2, 0]}.get(composite, [0, 1, 2])
    for y in range(images.shape[2]):
        for x in range(images.shape[3]):
            seen = [t for t in order if clear[t, y, x]]
            if seen and composite == "median":
                made[:, y, x] = np.median(images[seen, :, y, x].astype(np.float64), axis=0)
            elif seen:
                made[:, y, x] = images[seen[0], :, y, x]
    return made


@pytest.mark.parametrize("composite", ["median", "least-cloudy", "first"])
def test_composites_are_those_of_numpy(model, dates, tmp_path, composite):
    folder, images, clear = dates
    expected = plain_composite(images, clear, composite)
    assert (expected == 0).any()
    assert (expected != images[0]).any()
    source = write_tif(tmp_path / "composite.tif", expected, BANDS, nodata=0)
    run(model, items(folder), tmp_path / "stac.zarr", composite=composite, **MASK)
    run(model, source, tmp_path / "file.zarr")
    same(tmp_path / "stac.zarr", tmp_path / "file.zarr")
    item = json.loads((tmp_path / "stac.zarr.stac/stac.json").read_text())
    assert item["properties"]["start_datetime"] == "2024-06-01T10:00:00Z"
    assert item["properties"]["end_datetime"] == "2024-06-21T10:00:00Z"


class Signer:
    """Signs the assets of an item for some seconds."""

    def __init__(self, server, seconds):
        self.server, self.seconds, self.calls = server, seconds, 0

    def __call__(self, item):
        self.calls += 1
        for asset in item.assets.values():
            name = asset.href.partition("?")[0].rpartition("/")[2]
            asset.href = self.server.sign(name, self.seconds)
        return item


def test_items_are_signed_when_they_are_read(model, dates, tmp_path, monkeypatch):
    folder, _, _ = dates
    monkeypatch.setattr(retry, "PAUSE_S", 0.05)
    with serve(folder) as server:
        server.tell(signed=True, once={"1_B03.tif": [503, 429]})  # and it is busy at first
        signer = Signer(server, 60)
        given = items(folder, base=server.url)
        for item in given:
            for asset in item.assets.values():
                asset.href += "?expires=1"  # of the search, long ago
        job = rsb.embed.plan(model, given, tmp_path / "web.zarr", sign=signer, **(OPTIONS | MASK))
        rsb.embed.run(job, **QUIET)
        assert signer.calls > 3
        assert {503, 429} <= server.statuses
        # Without a signature the URL is the same at each try.
        server.tell(once={"1_B03.tif": [404, 503, 429]}, again=True)
        run(model, items(folder, base=server.url), tmp_path / "plain.zarr", **MASK)
        assert 404 in server.statuses
    same(tmp_path / "plain.zarr", tmp_path / "web.zarr")
    assert "expires" not in json.dumps(job.facts)
    run(model, items(folder), tmp_path / "files.zarr", **MASK)
    same(tmp_path / "web.zarr", tmp_path / "files.zarr")


@pytest.mark.parametrize("fault", [403, 404, "truncated"])
def test_an_item_that_cannot_be_read_is_named(model, dates, tmp_path, monkeypatch, fault):
    folder, _, _ = dates
    monkeypatch.setattr(retry, "PAUSE_S", 0.01)
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in folder.iterdir():
        data = path.read_bytes()
        cut = (path.name, fault) == ("1_B04.tif", "truncated")
        (broken / path.name).write_bytes(data[: len(data) // 2] if cut else data)
    with serve(broken) as server:
        if fault != "truncated":
            server.tell(status={"1_B04.tif": fault})
        given = items(folder, base=server.url)
        with pytest.raises(ValueError, match="cannot read the asset B04 of item1"):
            run(model, given, tmp_path / "fail.zarr", **MASK)
        summary = run(model, given, tmp_path / "skip.zarr", on_unreadable="skip", **MASK)
    assert set(summary["left_out"]) == {"item1"}
    record = json.loads((tmp_path / "skip.zarr.job/done/00000000.json").read_text())
    assert "item1" in record["left_out"]
    item = json.loads((tmp_path / "skip.zarr.stac/skip.json").read_text())
    assert "item1" in item["properties"]["rsbackbones:left_out"]
    run(model, [i for i in items(folder) if i.id != "item1"], tmp_path / "without.zarr", **MASK)
    same(tmp_path / "skip.zarr", tmp_path / "without.zarr")


def test_what_items_lack_is_named(model, dates, tmp_path):
    folder, _, _ = dates
    output = tmp_path / "e.zarr"
    both = rsb.create_model("croma_vit_tiny", overrides={"depth": 2})
    for net, given, options, text in [
        (model, items(folder), {"composite": "least-cloudy"}, "--mask"),
        (model, items(folder), {"composite": "mean"}, "median, least-cloudy"),
        (model, items(folder), {"dates": "2023-01-01/2023-02-01"}, "no item is of the dates 2023"),
        (model, items(folder), {"dates": "June"}, "2024-06-01/2024-08-31"),
        (model, items(folder), {"mask": {"CLD": (1,)}}, "no item has such an asset; they have B02"),
        (model, items(folder), {"grid": "10m"}, "utm10m"),
        (model, items(folder), {"nodata": -9999, "resample": "bilinear"}, "have the files state it"),
        (both, items(folder), {}, "no item has assets of s2"),
        (model, folder / "0_B02.tif", {"dates": "2024-06-01/2024-06-02"}, "only of STAC items"),
    ]:
        with pytest.raises(ValueError, match=text):
            rsb.embed.plan(net, given, output, **(OPTIONS | options))
    other = items(folder)
    other[1].properties["proj:code"] = "EPSG:3035"
    with pytest.raises(ValueError, match=r"EPSG:3035, EPSG:32633.*--grid"):
        rsb.embed.plan(model, other, output)
    undeclared = items(folder)
    for one in undeclared:
        one.stac_extensions = []
    with pytest.raises(ValueError, match=r"stac_extensions\).*--grid utm10m"):
        rsb.embed.plan(model, undeclared, output)
    scaled = items(folder)
    scaled[0].assets["B02"].extra_fields["raster:bands"] = [{"scale": 0.0001, "offset": -0.1}]
    with pytest.raises(ValueError, match="several scales and offsets"):
        rsb.embed.plan(model, scaled, output)


def test_odd_places_and_times_of_items(model, dates, tmp_path):
    folder, _, _ = dates
    rotated = GeoBox((SIDE, SIDE), Affine(9, 3, 500_000, 3, -9, 5_000_000), "EPSG:32633")
    with pytest.raises(ValueError, match="columns south"):
        rsb.embed.plan(model, items(folder), tmp_path / "e.zarr", grid=rotated)
    unknown = items(folder)
    del unknown[1].properties["eo:cloud_cover"]
    with pytest.raises(ValueError, match="item1 state no eo:cloud_cover"):
        rsb.embed.plan(model, unknown, tmp_path / "e.zarr", composite="least-cloudy", **MASK)
    in_degrees = items(folder, 1)
    in_degrees[0].properties |= {"proj:code": "EPSG:4326", "proj:transform": [1e-4, 0, 15, 0, -1e-4, 45.1534]}
    job = rsb.embed.plan(model, in_degrees, tmp_path / "e.zarr", grid="utm10m", window=32)
    assert (job.source.grid.crs.to_epsg(), job.source.grid.transform.a) == (32633, 10)
    late = items(folder, 1)[0].to_dict()
    late["properties"]["datetime"] = "2024-06-01T23:30:00-02:00"
    assert rsb.embed.plan(model, [late], tmp_path / "e.zarr", composite="none").days == ["2024-06-02"]


def test_stated_scales_make_reflectances(model, dates, tmp_path):
    folder, images, _ = dates
    given = items(folder, 1)
    for band in BANDS:
        given[0].assets[band].extra_fields["raster:bands"] = [{"scale": 0.0001, "offset": -0.01}]
    run(model, given, tmp_path / "stac.zarr")
    reflectance = (images[0].astype(np.float32) * np.float32(0.0001) - np.float32(0.01)).astype(np.float32)
    source = write_tif(tmp_path / "r.tif", reflectance, BANDS)
    run(model, source, tmp_path / "file.zarr", units={"s2": "reflectance"})
    a, b = (rsb.embed.open(tmp_path / f"{name}.zarr")["embeddings"].values for name in ("stac", "file"))
    np.testing.assert_allclose(a, b, atol=0.02)


def test_the_offset_of_sentinel_2_is_subtracted_once(model, dates, tmp_path):
    folder, _, _ = dates
    given, applied = items(folder, 2), [False, True]
    for item, was_subtracted in zip(given, applied, strict=True):
        item.properties["earthsearch:boa_offset_applied"] = was_subtracted
        for band in BANDS:
            item.assets[band].extra_fields["raster:bands"] = [{"scale": 0.0001, "offset": -0.1}]
    for item, offset in zip(given, (-0.1, 0), strict=True):
        job = rsb.embed.plan(model, [item], tmp_path / "e.zarr", **OPTIONS)
        assert job.facts["source"]["scales"]["s2"]["B02"] == [0.0001, offset]
    with pytest.raises(ValueError, match="several scales and offsets"):
        rsb.embed.plan(model, given, tmp_path / "e.zarr", **OPTIONS)
    given = items(folder, 2)
    for item, baseline in zip(given, ("03.01", "05.10"), strict=True):
        item.properties["s2:processing_baseline"] = baseline
    with pytest.raises(ValueError, match=r"item1 is of .* offset of 1000, item0 .*--units s2=dn"):
        rsb.embed.plan(model, given, tmp_path / "e.zarr", **OPTIONS)
    with pytest.warns(ProductWarning, match=r"05\.10 .*s2=dn_baseline_0400"):
        rsb.embed.plan(model, given[1:], tmp_path / "e.zarr", **OPTIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ProductWarning)
        rsb.embed.plan(model, given, tmp_path / "e.zarr", units={"s2": "dn"}, **OPTIONS)
        rsb.embed.plan(model, given[:1], tmp_path / "e.zarr", **OPTIONS)


def test_the_command_takes_items(dates, tmp_path, capsys):
    folder, _, _ = dates
    given, output = tmp_path / "items.json", tmp_path / "e.zarr"
    given.write_text(json.dumps(pystac.ItemCollection(items(folder)).to_dict()))
    command = ["embed", "--stac", given, "--model", "croma_vit_tiny", "--modalities", "s2", "--no-progress",
               "--window", "32", "--overlap", "16", "--shard", "32", "--output", output]  # fmt: skip
    more = ["--composite", "first", "--mask", "SCL=8,9", "--dates", "2024-06-01/2024-06-12"]
    assert main([str(word) for word in (*command, *more)]) == 0
    source = rsb.embed.open(output).attrs["rsbackbones"]["source"]
    assert (source["composite"], len(source["items"]["s2"])) == ("first", 2)
    assert "memory of a worker" in capsys.readouterr().err
    for words, text in [
        ([*command, folder / "0_B02.tif"], "exclude each other"),
        ([*command, "--sign", "no_such_module:f"], "MODULE:FUNCTION"),
        (
            [*(w for w in command if w not in ("--stac", given)), folder / "0_B02.tif", "--dates", "x"],
            "--dates",
        ),
    ]:
        assert main([str(word) for word in words]) == 2
        assert text in capsys.readouterr().err
