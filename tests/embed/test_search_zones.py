"""A store of two zones and several dates: against numpy over all groups, with each place once a date."""

import json
import re

import numpy as np
import pytest
import rasterio
import torch
from rasterio.warp import transform

import rsbackbones as rsb
from rsbackbones.cli import main
from rsbackbones.embed.quantize import Quantization
from rsbackbones.embed.search.search import Searched
from rsbackbones.embed.store import create_groups, create_store, write_shard
from rsbackbones.zoo.factory import create_untrained
from tests.embed.test_stac_dates import BANDS, item

pytest.importorskip("faiss")
pytest.importorskip("odc.stac")
geopandas = pytest.importorskip("geopandas")

SIDE, CELL = 320, 80.0
MERIDIANS = {"utm32": 9, "utm33": 15}
DAYS = {"utm32": (0, 10), "utm33": (0, 20)}
DATES = {0: "2024-06-01", 10: "2024-06-11", 20: "2024-06-21"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Random vectors by the project's writer: both zones cover the meridian of 12 degrees, which is between
    them. East of it the second has no data in some cells, and all have a mean of their own.
    """
    folder = tmp_path_factory.mktemp("zones")
    torch.manual_seed(0)
    model = create_untrained(
        "croma_vit_tiny", modalities=("s2",), bands={"s2": BANDS}, overrides={"depth": 2}
    )
    layers, items = dict.fromkeys(BANDS, np.ones((SIDE, SIDE), np.uint16)), []
    for zone, days in DAYS.items():
        crs = f"EPSG:326{zone[-2:]}"
        (x,), _ = transform("EPSG:4326", crs, [12.0], [45.15])
        west = round(x / 10) * 10 - 10 * SIDE // 2
        items += [item(folder, f"{zone}_{day}", day, layers, crs=crs, west=west) for day in days]
    job = rsb.embed.plan(model, items, folder / "e.zarr", composite="none", window=32, overlap=16, shard=32,
                         quantize="none")  # fmt: skip
    rng = np.random.default_rng(0)
    create_groups(job.output, list(job.zones))
    for i, one in enumerate(job.zones.values()):
        one = one.calibrated({"quantization": Quantization("none").as_json()})
        create_store(one)
        for date in range(2):
            vectors = rng.normal(0.3 * i + 0.1 * date, 1, (40, 40, one.dim)).astype(np.float32)
            vectors[5:9, (0, 22)[i] : (3, 30)[i]] = np.nan
            for block in one.blocks:
                top, left, bottom, right = block
                write_shard(one, block, vectors[top:bottom, left:right], None, date)
    return folder / "e.zarr"


@pytest.fixture(scope="module")
def cells(store):
    """All cells that count, one by one: group, date, row, column, lon, lat, and their vectors [N, D]."""
    maps = {}
    for zone in DAYS:
        data = rsb.embed.open(store, group=zone)
        for date, values in zip(DAYS[zone], data["embeddings"].values, strict=True):
            maps[zone, date] = np.moveaxis(values, 0, -1), data["x"].values, data["y"].values
    found, vectors = [], []
    for (zone, date), (values, xs, ys) in maps.items():
        other = next(name for name in DAYS if name != zone)
        crs = {name: f"EPSG:326{name[-2:]}" for name in DAYS}
        places = np.argwhere(np.isfinite(values).all(-1)).tolist()
        at = [xs[column] for _, column in places], [ys[row] for row, _ in places]
        lons, lats = transform(crs[zone], "EPSG:4326", *at)
        theirs = zip(*transform("EPSG:4326", crs[other], lons, lats), strict=True)
        for (row, column), lon, lat, (e, n) in zip(places, lons, lats, theirs, strict=True):
            if (other, date) in maps and abs(lon - MERIDIANS[other]) < abs(lon - MERIDIANS[zone]):
                of_other, x, y = maps[other, date]
                c, r = np.abs(x - e).argmin(), np.abs(y - n).argmin()
                inside = abs(x[c] - e) <= CELL / 2 and abs(y[r] - n) <= CELL / 2
                if inside and np.isfinite(of_other[r, c]).all():
                    continue
            found.append((zone, DATES[date], row, column, lon, lat))
            vectors.append(values[row, column])
    return found, np.array(vectors, np.float64)


def prepared(vectors, center):
    x = vectors - (0 if center == "none" else vectors.mean(0))
    if center == "whiten":
        values, directions = np.linalg.eigh(np.cov(x, rowvar=False))
        x = x @ (directions / np.sqrt(np.maximum(values, values.max() * 1e-4))) @ directions.T
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def of_hits(searched, hits):
    layers = [searched.layers[i] for i in hits.layers]
    return [
        (layer.group, layer.date, row, column)
        for layer, row, column in zip(layers, hits.rows.tolist(), hits.columns.tolist(), strict=True)
    ]


def test_the_rule_leaves_out_what_two_zones_share(cells):
    found, _ = cells
    east = [place for place in found if place[0] == "utm32" and place[4] > 12]
    assert len(found) < 4 * 1600 - 3 * 32
    assert {place[1] for place in east} == set(DATES.values()) - {"2024-06-21"}  # the hole, and an own date
    assert sum(place[1] == "2024-06-01" for place in east) > 20


@pytest.mark.parametrize("center", ["none", "mean", "whiten"])
def test_hits_of_all_zones_and_dates_are_those_of_numpy(store, cells, center):
    found, vectors = cells
    searched = Searched(store, center=center)
    chosen = [17, len(found) // 2, len(found) - 40]
    hits = searched.search([vectors[i] for i in chosen], [vectors[5]], k=400)
    ready = prepared(vectors, center)
    query = ready[chosen].mean(0) - 0.5 * ready[5]
    expected = ready @ (query / np.linalg.norm(query))
    best = np.argsort(-expected)[:400]
    np.testing.assert_allclose(hits.similarity, expected[best], atol=1e-4)
    by_cell = {place[:4]: (similarity, *place[4:]) for place, similarity in zip(found, expected, strict=True)}
    named = of_hits(searched, hits)
    assert len(set(named)) == 400
    assert len({name[:2] for name in named}) == 4
    np.testing.assert_allclose([by_cell[name][0] for name in named], hits.similarity, atol=1e-4)
    np.testing.assert_allclose([by_cell[name][1:] for name in named], np.c_[hits.lon, hits.lat], atol=1e-8)
    assert sum(np.isfinite(one).sum() for one in hits.similarities) == len(found)
    group, date, row, column = named[0]
    of = [(layer.group, layer.date) for layer in searched.layers].index((group, date))
    assert hits.similarities[of][row, column] == pytest.approx(expected[best[0]], abs=1e-4)


def test_one_zone_or_date_is_all_its_cells(store):
    for group, date, count in [("utm32", None, 2 * (1600 - 12)), ("utm33", "2024-06-21", 1600 - 32)]:
        searched = Searched(store, group=group, date=date)
        hits = searched.search([np.ones(searched.dim)], k=4000)
        assert len(hits.rows) == count
        assert {name[0] for name in of_hits(searched, hits)} == {group}


def test_an_example_is_of_the_zone_in_which_it_lies(store, cells):
    found, vectors = cells
    searched = Searched(store)
    for lon in (11.995, 12.005):
        place = lon, 45.1
        by_date = {}
        for cell, vector in zip(found, vectors, strict=True):
            if abs(cell[4] - lon) > 0.002:
                continue
            (x, e), (y, n) = transform(
                "EPSG:4326", f"EPSG:326{cell[0][-2:]}", [cell[4], lon], [cell[5], 45.1]
            )
            if max(abs(x - e), abs(y - n)) <= CELL / 2:
                near = abs(lon - MERIDIANS[cell[0]])
                by_date.setdefault(cell[1], []).append((near, vector))
        one = {date: min(cells, key=lambda cell: cell[0])[1] for date, cells in by_date.items()}
        assert set(one) == set(DATES.values())
        example = searched.example_at(*place)
        np.testing.assert_allclose(example.vector, np.mean(list(one.values()), axis=0), atol=1e-5)
        assert "the mean of 3 dates" in example.where
        np.testing.assert_allclose(searched.at(*place, date="2024-06-01"), one["2024-06-01"], atol=1e-5)
    box = 11.99, 45.092, 12.004, 45.102
    inside = [box[0] <= c[4] <= box[2] and box[1] <= c[5] <= box[3] for c in found]
    np.testing.assert_allclose(searched.box(*box), vectors[inside].mean(0), atol=1e-5)
    assert {c[0] for c, within in zip(found, inside, strict=True) if within} == {"utm32", "utm33"}
    one_day = [within and c[1] == "2024-06-11" for c, within in zip(found, inside, strict=True)]
    np.testing.assert_allclose(searched.box(*box, date="2024-06-11"), vectors[one_day].mean(0), atol=1e-5)


def test_the_command_names_zone_and_date(store, tmp_path, capsys):
    outputs = {name: tmp_path / name for name in ("hits.parquet", "map.tif", "page.html")}
    arguments = ["search", store, "--at", "11.999,45.1", "--at-date", "2024-06-11", "--k", "200"]
    for name, output in zip(("--output", "--map", "--html"), outputs.values(), strict=True):
        arguments += [name, output]
    assert main(list(map(str, arguments))) == 0
    out, err = capsys.readouterr()
    assert re.match(r" +1  1\.0000  11\.99\d+,45\.(?:1|09)\d+  utm32, 2024-06-11\n", out)
    assert "--at 11.999,45.1: utm32, 2024-06-11" in err
    table = geopandas.read_parquet(outputs["hits.parquet"])
    assert table.crs == "EPSG:4326"
    assert table[["group", "date"]].iloc[0].tolist() == ["utm32", "2024-06-11"]
    assert len(set(zip(table["group"], table["date"], strict=True))) == 4
    centers = geopandas.points_from_xy(table["lon"], table["lat"])
    assert table.geometry.contains(geopandas.GeoSeries(centers, crs=table.crs)).all()
    searched = Searched(store)
    hits = searched.search([searched.at(11.999, 45.1, date="2024-06-11")], k=200)
    for layer, similarity in zip(searched.layers, hits.similarities, strict=True):
        path = tmp_path / f"map_{layer.group}_{layer.date}.tif"
        assert str(path) in out
        with rasterio.open(path) as raster:
            np.testing.assert_array_equal(raster.read(1), similarity)
            assert raster.crs.to_epsg() == 32600 + int(layer.group[-2:])
            stated = json.loads(raster.tags()["search"])
        assert (stated["group"], stated["date"]) == (layer.group, layer.date)
        assert set(stated["provenance"]) == {"utm32", "utm33"}
    page = outputs["page.html"].read_text()
    assert not re.search(r"(?:src|href)=[\"'](?!data:)", page)
    counts = {name: int(count) for name, count in re.findall(r"<h3>(utm\S+ [\d-]+): (\d+) hits?</h3>", page)}
    assert counts == {
        f"{group}, {date}": count for (group, date), count in table.groupby(["group", "date"]).size().items()
    }
    assert page.count("<figure>") == 60
    assert "the first 60 of 200" in page
    assert page.count("<circle") == 200


def test_an_index_covers_all_zones(store, cells, tmp_path):
    found, vectors = cells
    searched, said = Searched(store), []
    indexed = Searched(store, index=tmp_path / "e.ivf", report=said.append)
    assert re.search(r"up to 6400 vectors, a file of \d+ MiB", said[0])
    wanted, hits = (one.search([vectors[3000]], k=len(found)) for one in (searched, indexed))
    assert hits.facts["index"]["vectors"] == len(found)
    assert set(hits.numbers.tolist()) == set(wanted.numbers.tolist())
    assert of_hits(indexed, hits)[0] == found[3000][:4]
    with pytest.raises(ValueError, match=r"an index of other vectors .*group"):
        Searched(store, group="utm32", index=tmp_path / "e.ivf")


def test_what_a_store_of_zones_lacks_is_named(store, tmp_path, capsys):
    at = ["--at", "12,45.1"]
    for arguments, text in [
        (["--at", "11,45.1"], r"outside of .*e\.zarr \(west, south, east, north: utm32 11\.9\d+,45\.0\d+"),
        ([*at, "--date", "2024-06-02"], "2024-06-01, 2024-06-11, 2024-06-21; choose a date"),
        ([*at, "--at-date", "2024-06-02"], "2024-06-01, 2024-06-11, 2024-06-21; choose one .*--at-date"),
        ([*at, "--group", "utm31"], "utm32, utm33; choose one"),
        (["--box", "11,45,11.1,45.1"], "no cell of .*utm33 .*with data lies in 11.0, 45.0"),
        ([*at, "--within", "5"], "within is of a table"),
        ([*at, "--html", tmp_path / "p.html", "--scene", store], "is the scene of one map, and 4 are"),
    ]:
        assert main(["search", *map(str, [store, *arguments])]) == 2
        assert re.search(text, capsys.readouterr().err)


def test_a_zone_that_is_not_there_yet_is_named(tmp_path):
    create_groups(str(tmp_path / "e.zarr"), ["utm32", "utm33"])
    with pytest.raises(ValueError, match=r"no features of utm32, utm33 yet; finish its job.*--group"):
        Searched(tmp_path / "e.zarr")
