"""STAC items from a GeoParquet and from a STAC API: the same items, and the same job."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import shapely

import rsbackbones as rsb
from rsbackbones.cli import main
from rsbackbones.embed.sources.stac_item import link_of
from rsbackbones.embed.sources.stac_items import open_items
from rsbackbones.embed.sources.stac_search import search_items
from rsbackbones.zoo.factory import create_untrained
from tests.embed.test_embed import optical
from tests.embed.test_stac_dates import BANDS, SIDE, item

pystac = pytest.importorskip("pystac")
pytest.importorskip("odc.stac")
CONFORMS = [
    "https://api.stacspec.org/v1.0.0/core",
    "https://api.stacspec.org/v1.0.0/item-search",
    "http://www.opengis.net/spec/ogcapi-features-1/1.0/conf/core",
]


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    """Five dates; the second item states what the others do not, and one lies elsewhere."""
    folder = tmp_path_factory.mktemp("items")
    found = []
    for t in range(5):
        layers = dict(zip(BANDS, optical(SIDE, SIDE, seed=t, bands=4), strict=True))
        found.append(item(folder, f"s2_{t}", 5 * t, layers))
        found[t].collection_id = "sentinel-2-l2a"
        found[t].properties["eo:cloud_cover"] = 10.5 * t
    found[1].properties["platform"] = "sentinel-2b"
    found[1].assets["B02"].extra_fields["raster:bands"] = [{"nodata": 0, "data_type": "uint16"}]
    found[1].set_self_href(str(folder / "s2_1.json"))
    return found


def published_table(items, path, **options):
    """Items as stac-geoparquet publishes them: columns of items and properties, structs with all fields."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = []
    for given in items:
        stated = given.to_dict(transform_hrefs=False)
        west, south, east, north = stated["bbox"]
        rows.append({
            **{k: stated[k] for k in ("type", "stac_version", "stac_extensions", "id", "links", "assets",
                                      "collection")},
            "geometry": shapely.to_wkb(shapely.geometry.shape(stated["geometry"])),
            "bbox": {"xmin": west, "ymin": south, "xmax": east, "ymax": north},
            **{k: v for k, v in stated["properties"].items() if k != "datetime"},
            "datetime": given.datetime,
        })  # fmt: skip
    table = pa.Table.from_pylist(rows)
    for name in {name for row in rows for name in row} - set(table.column_names):
        table = table.append_column(name, pa.array([row.get(name) for row in rows]))
    geo = {"version": "1.1.0", "primary_column": "geometry",
           "columns": {"geometry": {"encoding": "WKB", "geometry_types": ["Polygon"]}}}  # fmt: skip
    meta = {"geo": json.dumps(geo), "stac-geoparquet": json.dumps({"version": "1.0.0"})}
    without = options.pop("without", ())
    pq.write_table(table.replace_schema_metadata(meta).drop_columns(list(without)), path, **options)
    return path


def without_order(given):
    return json.loads(json.dumps(given.to_dict(transform_hrefs=False), sort_keys=True))


def test_a_geoparquet_gives_back_its_items(items, tmp_path):
    import geopandas

    path = published_table(items, tmp_path / "items.parquet")
    assert len(geopandas.read_parquet(path)) == 5  # it is one
    found = open_items(path)
    for given, read in zip(items, found, strict=True):
        expected, stated = without_order(given), without_order(read)
        for side in (expected, stated):
            side["properties"]["datetime"] = side["properties"]["datetime"].replace("+00:00", "Z")
        assert stated == expected
    assert "platform" not in found[0].properties
    for given in items:
        given = given.clone()
        code = given.properties.pop("proj:code").removeprefix("EPSG:")
        given.properties["proj:epsg"] = float(code)
        (read,) = open_items(published_table([given], tmp_path / "epsg.parquet"))
        assert read.properties["proj:code"] == f"EPSG:{code}"  # as pystac migrates it
    model = create_untrained("croma_vit_tiny", modalities=("s2",), bands={"s2": BANDS})
    jobs = [rsb.embed.plan(model, source, tmp_path / "e.zarr", window=32) for source in (path, items)]
    assert jobs[0].facts["source"]["assets"] == jobs[1].facts["source"]["assets"]
    assert jobs[0].facts["grid"] == jobs[1].facts["grid"]
    assert Path(items[1].get_self_href()).as_uri() in jobs[0].source.links
    geopandas.GeoDataFrame({"id": ["a"]}, geometry=[shapely.Point(0, 0)], crs=4326).to_parquet(
        tmp_path / "places.parquet"
    )
    with pytest.raises(ValueError, match="no STAC GeoParquet: it has no column assets"):
        rsb.embed.plan(model, tmp_path / "places.parquet", tmp_path / "e.zarr")


def test_only_the_row_groups_that_are_wanted_are_read(items, tmp_path):
    import pyarrow.parquet as pq

    given = [one.clone() for one in items]
    given[4].bbox = [100.0, 10.0, 100.1, 10.1]
    path = published_table(given, tmp_path / "items.parquet", row_group_size=1)
    here = tuple(items[0].bbox)
    wanted = [one.id for one in open_items(path, "2024-06-06/2024-06-30", here)]
    assert wanted == ["s2_1", "s2_2", "s2_3"]
    data, footer = bytearray(path.read_bytes()), pq.read_metadata(path)
    for group in (0, 4):  # too early, elsewhere
        for i in range(footer.num_columns):
            column = footer.row_group(group).column(i)
            begin = column.dictionary_page_offset or column.data_page_offset
            data[begin : begin + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(data)
    assert [one.id for one in open_items(path, "2024-06-06/2024-06-30", here)] == wanted
    with pytest.raises(ValueError, match=r"items\.parquet cannot be read"):
        open_items(path)
    table = pq.read_table(published_table(items, path))
    place = table.schema.get_field_index("geometry")
    pq.write_table(table.set_column(place, "geometry", [[b"\1\2"] * len(items)]), path)
    with pytest.raises(ValueError, match=r"items\.parquet cannot be read: .*WKB"):
        open_items(path)


@pytest.mark.parametrize("ends", [(179.5, -179.5), (179.5, 180.5), (-180.5, -179.5)])
def test_rows_across_the_antimeridian_are_found_from_both_sides(items, tmp_path, ends):
    given = [one.clone() for one in items]
    given[0].bbox = [ends[0], 10.0, ends[1], 11.0]
    path = published_table(given, tmp_path / "items.parquet", row_group_size=1)
    for here in ((179.6, 10.2, 179.7, 10.3), (-179.7, 10.2, -179.6, 10.3), (179.6, 10.2, 180.2, 10.3)):
        assert [one.id for one in open_items(path, None, here)] == [items[0].id]


def test_a_table_may_lack_what_can_be_made(items, tmp_path):
    lacking = ("bbox", "type", "stac_version", "stac_extensions", "links", "collection", "platform")
    path = published_table(items, tmp_path / "items.parquet", without=lacking)
    for given, read in zip(items, open_items(path), strict=True):
        assert read.bbox == pytest.approx(given.bbox)
        assert read.assets["B02"].href == given.assets["B02"].href
    published_table(items, tmp_path / "bad.parquet", without=("datetime",))
    (tmp_path / "text.parquet").write_text("no table")
    for name, dates, bounds, text in [
        ("bad.parquet", None, None, "it has no column datetime or start_datetime"),
        ("text.parquet", None, None, r"text\.parquet is no Parquet file"),
        ("items.parquet", "2019-01-01/2019-02-01", None, "those given are of 2024-06-01/2024-06-21"),
    ]:
        with pytest.raises(ValueError, match=text):
            open_items(tmp_path / name, dates, bounds)
    whole = published_table(items, tmp_path / "whole.parquet")
    with pytest.raises(ValueError, match=r"no item of .*whole\.parquet touches the grid \(0\.00, 0\.00"):
        open_items(whole, None, (0, 0, 1, 1))


def test_an_item_without_url_is_named_by_what_it_states(items):
    stated = {**items[0].to_dict(transform_hrefs=False), "links": []}
    assert link_of(stated) == f"urn:stac:sentinel-2-l2a:{items[0].id}"
    assert link_of({**stated, "collection": None}) == f"urn:stac:{items[0].id}"


def test_what_holds_no_items_is_named(items, tmp_path):
    pystac.ItemCollection(items).save_object(str(tmp_path / "items.json"))
    (tmp_path / "raster.json").write_bytes(b"\xa0\x00")
    (tmp_path / "roads.json").write_text('{"type": "Topology"}')
    first, last = (item.datetime.date() for item in (items[0], items[-1]))
    for name, dates, text in [
        ("items.json", "2019-01-01/2019-02-01", f"those given are of {first}/{last}"),
        ("items.json", "2019-02-01/2019-01-01", "the earlier day first"),
        ("items.json", "2019", "FIRST/LAST"),
        ("none.json", None, "there is no file"),
        ("none.parquet", None, "there is no file"),
        ("raster.json", None, "holds no STAC items"),
        ("roads.json", None, "holds no STAC items"),
    ]:
        with pytest.raises(ValueError, match=text):
            open_items(tmp_path / name, dates)


class _Api(BaseHTTPRequestHandler):
    """A STAC API of pages of two items."""

    def do_GET(self):
        base = f"http://127.0.0.1:{self.server.server_port}"
        self._answer({
            "type": "Catalog", "id": "test", "description": "test", "stac_version": "1.0.0",
            "conformsTo": CONFORMS,
            "links": [
                {"rel": "self", "href": base, "type": "application/json"},
                {"rel": "root", "href": base, "type": "application/json"},
                {"rel": "search", "href": f"{base}/search", "type": "application/geo+json", "method": "POST"},
            ],
        })  # fmt: skip

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(asked)
        if "broken" in asked["collections"]:
            self.send_error(400, "no such collection")
            return
        first, last = (asked.get("datetime") or "2000-01-01/2100-01-01").split("/")
        box = shapely.box(*asked["bbox"])
        found = [
            i for i in self.server.items
            if i.collection_id in asked["collections"] and box.intersects(shapely.box(*i.bbox))
            and first[:10] <= i.datetime.date().isoformat() <= last[:10]
        ]  # fmt: skip
        start = int(asked.get("token", 0))
        links = []
        if start + 2 < len(found):
            href = f"http://127.0.0.1:{self.server.server_port}/search"
            links = [{"rel": "next", "href": href, "method": "POST", "merge": True,
                      "body": {"token": str(start + 2)}}]  # fmt: skip
        page = [i.to_dict(transform_hrefs=False) for i in found[start : start + 2]]
        self._answer({"type": "FeatureCollection", "features": page, "links": links})

    def _answer(self, value):
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@contextmanager
def api_of(items):
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Api)
    server.items, server.asked = items, []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_search_gives_all_pages(items, tmp_path, capsys):
    from pystac_client import Client

    model = create_untrained("croma_vit_tiny", modalities=("s2",), bands={"s2": BANDS})
    west, south, east, north = items[0].bbox
    with api_of(items) as (url, asked):
        found = search_items(url, ["sentinel-2-l2a"], [west, south, east, north], "2024-06-01/2024-06-16")
        assert [i.id for i in found] == [f"s2_{t}" for t in range(4)]
        assert len(asked) == 2
        result = Client.open(url).search(collections=["sentinel-2-l2a"], bbox=[west, south, east, north])
        job = rsb.embed.plan(model, result, tmp_path / "e.zarr", window=32, dates="2024-06-01/2024-06-16")
        expected = rsb.embed.plan(model, items[:4], tmp_path / "e.zarr", window=32)
        assert [i["id"] for i in job.facts["source"]["items"]["s2"]] == [f"s2_{t}" for t in range(4)]
        assert job.facts["grid"] == expected.facts["grid"]
        with pytest.raises(ValueError, match="has no item of sentinel-2-l2a in 0, 0, 1, 1"):
            search_items(url, ["sentinel-2-l2a"], [0, 0, 1, 1])
        with pytest.raises(ValueError, match="cannot be searched"):
            search_items(url, ["broken"], [0, 0, 1, 1])
        command = ["embed", "--search", url, "--collection", "sentinel-2-l2a", "--dates",
                   "2024-06-01/2024-06-16", f"--bbox={west},{south},{east},{north}", "--model",
                   "croma_vit_tiny", "--no-pretrained", "--modalities", "s2", "--allow-dropped-bands",
                   "--window", "32", "--overlap", "0", "--no-progress", "--output",
                   str(tmp_path / "c.zarr")]  # fmt: skip
        assert main(command) == 0
        stated = rsb.embed.open(tmp_path / "c.zarr").attrs["rsbackbones"]["source"]["items"]["s2"]
        assert len(stated) == 4
        capsys.readouterr()
        assert main([word for word in command if not word.startswith("--bbox")]) == 2
        assert "--bbox W,S,E,N" in capsys.readouterr().err
    with pytest.raises(ValueError, match="cannot be searched"):
        search_items(url, ["sentinel-2-l2a"], [0, 0, 1, 1])
