"""Days and places of STAC items: one overpass is of one day; what does not lie on the grid does not count."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import shapely
from rasterio.warp import transform

import rsbackbones as rsb
from rsbackbones.embed.sources.stac_grid import bounds_of_box
from rsbackbones.embed.sources.stac_item import day_of, lies_on, touches, with_days
from tests.embed.test_embed import optical, radar
from tests.embed.test_stac_dates import BANDS, SIDE, WINDOWS, item, model_of

pystac = pytest.importorskip("pystac")
pytest.importorskip("odc.stac")
GeoBox = pytest.importorskip("odc.geo.geobox").GeoBox
OPTIONS = WINDOWS | {"composite": "none"}


def layers(seed=0):
    return dict(zip(BANDS, optical(SIDE, SIDE, seed=seed, bands=4), strict=True))


def read_whole(job, model):
    whole = (0, 0, job.source.grid.height, job.source.grid.width)
    with job.source.open(model, whole) as scene:
        return scene.read(whole)


@pytest.mark.parametrize("local_hour", [6, 10.5, 18])
@pytest.mark.parametrize("middle", [-179, -90, 0, 90, 179])
def test_an_overpass_is_of_one_day(local_hour, middle):
    """At one local time the day is one, at all longitudes within half a turn of the grid."""
    found = []
    for away in range(-40, 41, 8):
        when = datetime(2024, 6, 2, tzinfo=UTC) + timedelta(hours=local_hour - (middle + away) / 15)
        west = (middle + away + 179.5) % 360 - 180
        found.append({"bbox": [west, 0, west + 1, 1], "properties": {"datetime": when.isoformat()}})
    assert {day_of(one) for one in with_days(found, middle)} == {"2024-06-02"}


@pytest.mark.parametrize("middle", [-179, 30, 179])
def test_an_item_around_a_pole_has_the_day_of_the_grid(middle):
    when = datetime(2024, 6, 2, 11, tzinfo=UTC) - timedelta(hours=middle / 15)
    stated = {"datetime": when.isoformat()}
    found = [{"bbox": [west, 80, east, 86], "properties": stated}
             for west, east in ((-180, 180), (middle - 5, middle + 5))]  # fmt: skip
    assert {day_of(one) for one in with_days(found, middle)} == {"2024-06-02"}


@pytest.mark.parametrize("box", [(5, 40, 20, 55), (10, 0, 100, 60), (-80, -90, 90, 90), (-180, -90, 180, 90)])
def test_an_item_that_is_larger_than_the_crs_of_the_grid_touches_it(box):
    """UTM ends at 90 degrees from its meridian, where projected footprints tell nothing."""
    grid = GeoBox.from_bbox((680_000, 5_320_000, 700_000, 5_340_000), "EPSG:32632", resolution=100)
    given = {"bbox": list(box), "geometry": shapely.geometry.mapping(shapely.box(*box))}
    assert lies_on(given, grid, bounds_of_box(grid))


def test_tiles_before_and_after_midnight_are_a_mosaic(four_bands, tmp_path):
    """Two tiles of one overpass at 170 E, at midnight in UTC."""
    given = [
        item(tmp_path, f"tile{i}", 0, layers(i), crs="EPSG:32659", west=400_000 + 10 * SIDE * i)
        for i in range(2)
    ]
    for one, when in zip(given, ("2024-06-01T23:59:50Z", "2024-06-02T00:00:10Z"), strict=True):
        one.datetime = datetime.fromisoformat(when)
    job = rsb.embed.plan(four_bands, given, tmp_path / "e.zarr", **OPTIONS)
    assert job.days == ["2024-06-02"]
    stated = job.facts["source"]["items"]["s2"]
    assert [(one["datetime"][:10], one["day"]) for one in stated] == [
        ("2024-06-01", "2024-06-02"), ("2024-06-02", "2024-06-02"),
    ]  # fmt: skip
    pixels = read_whole(job, four_bands)
    assert pixels.valid.all()
    expected = np.concatenate([np.stack(list(layers(i).values())) for i in range(2)], axis=2)
    np.testing.assert_array_equal(pixels.arrays["s2"], expected)


def test_what_does_not_touch_the_grid_does_not_count(tmp_path):
    model = model_of("croma_vit_tiny", ("s2", "s1"), depth=2)
    given, echoes = [], dict(zip(("vv", "vh"), radar(SIDE, SIDE), strict=True))
    for i, zone in enumerate((32, 33)):
        given.append(item(tmp_path, f"s2_{zone}", i, layers(i), crs=f"EPSG:326{zone}"))
        given.append(item(tmp_path, f"s1_{zone}", 2 + i, echoes, crs=f"EPSG:326{zone}"))
    for one in given:  # as many catalogs do: only the assets state where they lie
        for name in ("code", "shape", "transform"):
            stated = one.properties.pop(f"proj:{name}")
            for asset in one.assets.values():
                asset.extra_fields[f"proj:{name}"] = stated
    job = rsb.embed.plan(model, given, tmp_path / "e.zarr", **(OPTIONS | {"composite": "first"}))
    assert list(job.zones) == ["utm32", "utm33"]
    for i, (zone, one) in enumerate(job.zones.items()):
        assert one.source.links == [f"urn:stac:s2_{zone[3:]}", f"urn:stac:s1_{zone[3:]}"]
        assert [time.day for time in one.source.times] == [1 + i, 3 + i]
        assert read_whole(one, model).valid.all()
    # The bounding box of a slanted footprint touches the grid, and the footprint does not.
    slanted = given[1].clone()
    west, south, east, north = given[0].bbox
    slanted.id, slanted.bbox = "slanted", [west - 2, south - 2, east, north]
    ring = [[west - 2, south - 2], [east, south - 2], [west - 2, north], [west - 2, south - 2]]
    slanted.geometry = {"type": "Polygon", "coordinates": [ring]}
    job = rsb.embed.plan(model, [*given[:2], slanted], tmp_path / "e.zarr", **OPTIONS)
    assert [one["id"] for one in job.facts["source"]["items"]["s1"]] == ["s1_32"]
    with pytest.raises(ValueError, match=r"no item of s1 lies on the grid.* the first, s1_33, has the bbox"):
        rsb.embed.plan(model, [given[0], given[3]], tmp_path / "e.zarr", **OPTIONS)


@pytest.mark.parametrize(
    ("crs", "box"),
    [
        ("EPSG:32601", (300_000, 0, 320_000, 20_000)),  # at the antimeridian
        ("EPSG:32660", (820_000, 0, 860_000, 20_000)),
        ("EPSG:4326", (179, -1, 181, 1)),
        ("EPSG:3413", (-40_000, -30_000, 20_000, 50_000)),  # around the pole
        ("EPSG:3031", (10_000, 10_000, 40_000, 50_000)),
        ("EPSG:32633", (499_000, 5_000_000, 520_000, 5_020_000)),
    ],
)
def test_items_around_the_points_of_a_grid_touch_it(crs, box):
    grid = GeoBox.from_bbox(box, crs, shape=(64, 64))
    bounds = bounds_of_box(grid)
    rng = np.random.default_rng(0)
    ends = tuple(grid.boundingbox)
    x, y = rng.uniform(ends[:2], ends[2:], (50, 2)).T
    places = list(zip(*transform(crs, "EPSG:4326", x, y), strict=True))
    for lon, lat in places:
        lon = (lon + 180) % 360 - 180
        east = lon + 0.01 if lon + 0.01 <= 180 else lon - 359.99
        around = {"bbox": [lon, lat - 0.005, east, lat + 0.005]}
        around["geometry"] = shapely.geometry.mapping(shapely.box(lon, lat - 0.005, lon + 0.01, lat + 0.005))
        assert touches(around, bounds)
        assert lies_on(around, grid, bounds)
        if abs(lat) < 60:  # other places
            opposite = lon - 180 if lon > 0 else lon + 180
            assert not touches({"bbox": [opposite, lat, opposite + 0.01, lat + 0.01]}, bounds)
            assert not touches({"bbox": [lon, lat + 20, east, lat + 21]}, bounds)


@pytest.mark.parametrize(
    ("crs", "west"),
    [("EPSG:32660", None), ("EPSG:32601", None), ("EPSG:5041", 2_000_000), ("EPSG:5042", 2_000_000)],
)
def test_items_at_the_antimeridian_and_the_poles_have_their_own_grid(four_bands, tmp_path, crs, west):
    if west is None:
        west = transform("EPSG:4326", crs, [180], [45])[0][0] - 5 * SIDE
    one = item(tmp_path, "one", 0, layers(), crs=crs, west=west)
    job = rsb.embed.plan(four_bands, [one], tmp_path / "e.zarr", **OPTIONS)
    assert tuple(job.source.grid.transform[:6]) == (10, 0, west, 0, -10, 5_000_000)
    assert (job.source.grid.height, job.source.grid.width) == (SIDE, SIDE)
    pixels = read_whole(job, four_bands)
    assert pixels.valid.all()
    np.testing.assert_array_equal(pixels.arrays["s2"], np.stack(list(layers().values())))
    assert job.source.names((0, 0, SIDE, 4)) == job.source.names((0, SIDE - 4, SIDE, 4)) == ["one"]


def test_one_grid_holds_items_at_both_sides_of_the_antimeridian(four_bands, tmp_path):
    given = []
    for i, (crs, lon) in enumerate({"EPSG:32660": 179.98, "EPSG:32601": -179.98}.items()):
        west = transform("EPSG:4326", crs, [lon], [45.1])[0][0]
        given.append(item(tmp_path, f"tile{i}", 0, layers(i), crs=crs, west=west))
    job = rsb.embed.plan(four_bands, given, tmp_path / "e.zarr", grid="utm10m", **OPTIONS)
    height, width = job.source.grid.height, job.source.grid.width
    assert (height < 2 * SIDE, width < 400) == (True, True)  # some 3.6 km from edge to edge
    assert len(job.days) == 1
    assert (job.source.names((0, 0, height, 20)), job.source.names((0, width - 20, height, 20))) == (
        ["tile0"], ["tile1"],
    )  # fmt: skip
    valid = read_whole(job, four_bands).valid
    assert abs(valid.sum() - 2 * SIDE * SIDE) < 0.05 * SIDE * SIDE
