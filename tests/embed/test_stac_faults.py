"""Items that are odd or wrong: what they mean is taken as it is meant, or refused by the name of the item."""

import json
import warnings

import numpy as np
import pytest
import shapely
from rasterio import Affine

import rsbackbones as rsb
from rsbackbones.embed.sources.stac_items import open_items
from tests.embed.test_embed import optical
from tests.embed.test_stac_dates import BANDS, MASK, SIDE, WINDOWS, item
from tests.embed.test_stac_places import read_whole

pystac = pytest.importorskip("pystac")
pytest.importorskip("odc.stac")
GeoBox = pytest.importorskip("odc.geo.geobox").GeoBox
OPTIONS = WINDOWS | {"composite": "first"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("items")
    image = optical(SIDE, SIDE, bands=4)
    scl = np.full((SIDE, SIDE), 4, np.uint8)
    return item(folder, "one", 0, dict(zip((*BANDS, "SCL"), (*image, scl), strict=True))), image


def changed(given, **parts):
    """A dictionary of an item with other parts."""
    return json.loads(json.dumps(given.to_dict(transform_hrefs=False) | parts))


def test_what_is_odd_is_taken_as_it_is_meant(four_bands, place, tmp_path):
    one, image = place
    plain = changed(one)
    ranged = changed(one)
    ranged["properties"] |= {"datetime": None, "start_datetime": "2024-06-01T00:00:00Z",
                             "end_datetime": "2024-06-30T00:00:00Z"}  # fmt: skip
    of_geometry, without_type, twice = changed(one, bbox=None), changed(one), changed(one)
    for asset in without_type["assets"].values():
        asset.pop("type")
        asset["href"] = asset["href"].removeprefix("file://")
    # Another asset, which comes first, has the common name of a band.
    twice["stac_extensions"].append("https://stac-extensions.github.io/eo/v1.1.0/schema.json")
    other = {**twice["assets"]["SCL"], "eo:bands": [{"name": "B02", "common_name": "blue"}]}
    twice["assets"] = {"preview": other, **twice["assets"]}
    twice["assets"]["B02"] |= {"eo:bands": [{"name": "B02", "common_name": "blue"}], "type": "text/plain"}
    for given in (plain, ranged, of_geometry, without_type, twice, [plain, plain]):
        job = rsb.embed.plan(four_bands, given, tmp_path / "e.zarr", **OPTIONS)
        np.testing.assert_array_equal(read_whole(job, four_bands).arrays["s2"], image)
        assert len(job.source.times) == 1
    # Without a transform the geometry tells where items lie, once a grid is named.
    flat = changed(one)
    del flat["properties"]["proj:transform"]
    with pytest.raises(ValueError, match="do not state their CRS and resolution"):
        rsb.embed.plan(four_bands, flat, tmp_path / "e.zarr", **OPTIONS)
    for given in (flat, flat | {"geometry": None}):
        job = rsb.embed.plan(four_bands, given, tmp_path / "e.zarr", grid="utm10m", **OPTIONS)
        grid = job.source.grid
        assert (grid.transform.a, grid.crs.to_epsg()) == (10, 32633)
        assert SIDE <= min(grid.height, grid.width) <= max(grid.height, grid.width) <= SIDE + 2
        assert read_whole(job, four_bands).valid.sum() == SIDE * SIDE


def test_the_items_of_the_caller_stay_as_they_are(place):
    given = place[0].clone()
    given.set_self_href("/elsewhere/item.json")
    given.bbox = None
    for key, asset in given.assets.items():
        asset.href = f"./{key}.tif"
    before = given.to_dict(transform_hrefs=False)
    (found,) = open_items([given])
    assert (found.assets["B02"].href, len(found.bbox)) == ("/elsewhere/B02.tif", 4)
    assert given.to_dict(transform_hrefs=False) == before


def test_links_are_relative_to_the_file_of_items(four_bands, place, tmp_path, monkeypatch):
    one, image = place
    inside = tmp_path / "inside"
    inside.mkdir()
    given = changed(one)
    for key, asset in given["assets"].items():
        (inside / f"{key}.tif").symlink_to(asset["href"])
        asset["href"] = f"../inside/{key}.tif"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path = elsewhere / "items.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [given]}))
    monkeypatch.chdir(elsewhere)
    for source in (path, "items.json"):
        job = rsb.embed.plan(four_bands, source, tmp_path / "e.zarr", **OPTIONS)
        np.testing.assert_array_equal(read_whole(job, four_bands).arrays["s2"], image)
    with pytest.raises(ValueError, match=r"the asset B02 of one has the relative link \.\./inside/B02\.tif"):
        rsb.embed.plan(four_bands, given, tmp_path / "e.zarr", **OPTIONS)


def test_what_is_wrong_is_refused_by_name(four_bands, place, tmp_path):
    one, _ = place
    elsewhere = changed(one)
    elsewhere["properties"]["platform"] = "sentinel-2b"
    masked, timeless, ill_timed = changed(one, id="masked"), changed(one), changed(one)
    del masked["assets"]["SCL"]
    timeless["properties"]["datetime"] = None
    ill_timed["properties"]["datetime"] = "yesterday"
    no_link = changed(one)
    del no_link["assets"]["B03"]["href"]
    elsewhere_on_earth = shapely.geometry.mapping(shapely.box(10, 40, 11, 41))
    flat, clouded, untold = changed(one), changed(one), changed(one)
    flat["properties"]["proj:transform"] = [10, 0, 500_000]
    clouded["properties"]["eo:cloud_cover"] = "few"
    del untold["properties"]["proj:code"]
    untold["properties"]["proj:wkt2"] = "PROJCRS[unknown"
    for given, options, text in [
        ([changed(one), elsewhere], {}, "two items that differ are one"),
        (changed(one, id=None), {}, "the id None"),
        (changed(one, id=7), {}, "the id 7"),
        (changed(one, bbox=[], geometry=None), {}, r"the item one states no place: its bbox is \[\]"),
        (changed(one, bbox=[15, 45, 15.1]), {}, "the item one states no place"),
        (changed(one, bbox=[15, 46, 15.1, 45]), {}, "the item one states no place"),
        (changed(one, bbox=["a", 46, 15.1, 45]), {}, "the item one states no place"),
        (changed(one, assets={}), {}, r"no item has assets of s2 .* the first have none"),
        (timeless, {}, "one is no STAC item: .*datetime"),
        (ill_timed, {}, "one is no STAC item: ValueError"),
        (no_link, {}, "one is no STAC item: .*href"),
        (flat, {}, "the item one cannot be placed: .*6 or 9 elements"),
        ([changed(one), masked], MASK, "the item masked has no asset SCL, a mask of the others"),
        (changed(one), {"mask": {"CLD": (1,)}}, "no item has such an asset"),
        (changed(one), {"dates": "2024-06-30/2024-06-01"}, "the earlier day first"),
        ({"type": "FeatureCollection", "features": []}, {}, "there is no STAC item"),
        ({"type": "FeatureCollection", "features": [None]}, {}, "None is no STAC item"),
        (
            {"type": "FeatureCollection", "features": [{"type": "Feature"}]},
            {},
            "a feature without id is no STAC",
        ),
        (clouded, MASK | {"composite": "least-cloudy"}, "one state no eo:cloud_cover"),
        (changed(one), {"grid": GeoBox((8, 8), Affine(10, 0, 0, 0, -10, 0), None)}, "a GeoBox with a CRS"),
        (changed(one), {"grid": "utm0m"}, "utm10m"),
        (
            changed(one, geometry=elsewhere_on_earth, bbox=[10, 40, 11, 41]),
            {},
            "the item one lies elsewhere by its",
        ),
        (
            [changed(one), changed(one, id="two", geometry=elsewhere_on_earth)],
            {},
            "the item two lies elsewhere",
        ),
        (untold, {}, "the item one cannot be placed: Invalid projection"),
        *(
            (changed(one, geometry={"type": kind, **parts}), {}, f"the geometry of the item one {text}")
            for kind, parts, text in (
                ("Point", {"coordinates": [15.0, 45.1]}, "is POINT .*expected a polygon"),
                ("GeometryCollection", {"geometries": [one.geometry]}, "is GEOMETRYCOLLECTION"),
                ("Polygon", {"coordinates": []}, "is POLYGON EMPTY"),
                ("Polygon", {"coordinates": [[[15, 45], [16, 45]]]}, "cannot be understood: .*at least"),
                ("Polygon", {}, "cannot be understood"),
                ("Disc", {"coordinates": [15.0, 45.1]}, "cannot be understood"),
            )
        ),
    ]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(ValueError, match=text):
                rsb.embed.plan(four_bands, given, tmp_path / "e.zarr", **(OPTIONS | options))


def test_a_box_is_made_of_a_geometry_that_is_cut_at_the_antimeridian(place):
    parts = shapely.MultiPolygon([shapely.box(179, 10, 180, 11), shapely.box(-180, 10, -178.5, 11)])
    given = changed(place[0], bbox=None, geometry=shapely.geometry.mapping(parts))
    assert open_items(given)[0].bbox == [179, 10, -178.5, 11]
    around = shapely.geometry.mapping(shapely.box(-180, -90, 180, 90))
    assert open_items(changed(place[0], bbox=None, geometry=around))[0].bbox == [-180, -90, 180, 90]
