"""The dates of STAC items: each is embedded as if alone, or with all others by the model itself."""

import json
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import torch
from rasterio import Affine
from rasterio.warp import transform_bounds

import rsbackbones as rsb
from rsbackbones.embed.search.search import Searched
from rsbackbones.zoo.factory import create_untrained
from tests.data.test_rasters import write_tif
from tests.embed.test_embed import optical, radar
from tests.embed.test_job import QUIET
from tests.embed.test_job_runs import FORKED

pystac = pytest.importorskip("pystac")
xarray = pytest.importorskip("xarray")
pytest.importorskip("odc.stac")

BANDS = ("B02", "B03", "B04", "B08")
SIDE = 64
WINDOWS = {"window": 32, "overlap": 16, "shard": 32, "quantize": "none"}
MASK = {"mask": {"SCL": (8, 9)}}
# Days after 2024-06-01: S1 is nearest to the first date of S2 on the second day, to the others on the 19th.
S2_DAYS, S1_DAYS = (0, 10, 20), (1, 18)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Three dates of Sentinel-2 with clouds and two of Sentinel-1: items by sensor, and their pixels."""
    folder = tmp_path_factory.mktemp("items")
    rng = np.random.default_rng(0)
    images = np.stack([optical(SIDE, SIDE, seed=i, bands=4) for i in range(3)])
    classes = np.where(rng.random((3, 8, 8)) < 0.2, 9, 4).repeat(8, 1).repeat(8, 2).astype(np.uint8)
    classes[2, :, 40:] = 8
    echoes = np.stack([radar(SIDE, SIDE, seed=i) for i in range(2)])
    found = {"s2": [], "s1": []}
    for t, day in enumerate(S2_DAYS):
        layers = dict(zip((*BANDS, "SCL"), [*images[t], classes[t]], strict=True))
        found["s2"].append(item(folder, f"s2_{t}", day, layers))
    for t, day in enumerate(S1_DAYS):
        found["s1"].append(item(folder, f"s1_{t}", day, dict(zip(("vv", "vh"), echoes[t], strict=True))))
    return found, images, classes == 4, echoes


def item(folder, name, day, layers, *, crs="EPSG:32633", west=500_000):
    """An item of a day after 2024-06-01 whose assets are files of layers [h, w]."""
    height, width = next(iter(layers.values())).shape
    transform = Affine(10, 0, west, 0, -10, 5_000_000)
    for key, layer in layers.items():
        nodata = None if layer.dtype == np.float32 else 0
        path = folder / f"{name}_{key}.tif"
        write_tif(path, layer[None], [key], nodata=nodata, crs=crs, transform=transform)
    south, east = 5_000_000 - 10 * height, west + 10 * width
    w, s, e, n = transform_bounds(crs, "EPSG:4326", west, south, east, 5_000_000)
    made = pystac.Item(
        id=name, geometry={"type": "Polygon", "coordinates": [[[w, s], [e, s], [e, n], [w, n], [w, s]]]},
        bbox=[w, s, e, n], datetime=datetime(2024, 6, 1, 10, tzinfo=UTC) + timedelta(days=day),
        properties={"proj:code": crs, "proj:shape": [height, width], "proj:transform": list(transform[:6])},
    )  # fmt: skip
    made.stac_extensions = ["https://stac-extensions.github.io/projection/v2.0.0/schema.json"]
    for key in layers:
        href = str(folder / f"{name}_{key}.tif")
        made.add_asset(key, pystac.Asset(href=href, media_type="image/tiff; application=geotiff"))
    return made


def model_of(name, modalities=("s2",), **overrides):
    torch.manual_seed(0)
    model = create_untrained(name, modalities=modalities, bands={"s2": BANDS}, overrides=overrides)
    return model.eval()


def run(model, source, output, **options):
    summary = rsb.embed.run(rsb.embed.plan(model, source, output, **(WINDOWS | options)), **QUIET)
    return rsb.embed.open(output)["embeddings"], summary


def test_each_date_is_that_of_its_items_alone(place, tmp_path):
    found = place[0]
    model = model_of("croma_vit_tiny", ("s2", "s1"), depth=2)
    given = found["s2"] + found["s1"]
    every, summary = run(model, given, tmp_path / "every.zarr", composite="none", **MASK)
    assert every.dims == ("time", "band", "y", "x")
    assert every["time"].dt.strftime("%d").values.tolist() == ["01", "11", "21"]
    pytest.importorskip("faiss")
    with pytest.raises(ValueError, match="2024-06-01, 2024-06-11, 2024-06-21; choose a date"):
        Searched(tmp_path / "every.zarr", date="2024-06-02")
    np.testing.assert_allclose(
        Searched(tmp_path / "every.zarr", date="2024-06-11").layers[0].thinned(1),
        np.moveaxis(every.values[1], 0, -1),
    )
    pairs = {0: 0, 1: 1, 2: 1}
    for t, of_s1 in pairs.items():
        alone = [found["s2"][t], found["s1"][of_s1]]
        expected, _ = run(model, alone, tmp_path / f"{t}.zarr", composite="first", **MASK)
        np.testing.assert_array_equal(every.values[t], expected.values)
    assert np.isnan(every.values[2]).any()
    assert np.isfinite(every.values[2]).any()
    stated = {
        f"2024-06-{S2_DAYS[t] + 1:02}": {"s1": [f"2024-06-{S1_DAYS[s] + 1:02}"]} for t, s in pairs.items()
    }
    assert summary["pairs"] == stated
    record = json.loads((tmp_path / "every.zarr.job/done/00000000.json").read_text())
    assert record["pairs"] == stated
    written = json.loads((tmp_path / "every.zarr.stac/every.json").read_text())
    assert written["properties"]["rsbackbones:pairs"] == stated


def test_a_pool_gives_the_same_dates(place, tmp_path):
    given = place[0]["s2"][:2]
    torch.manual_seed(0)
    model = rsb.create_model("croma_vit_tiny", pretrained=True, modalities=("s2",), bands={"s2": BANDS})
    expected, _ = run(model, given, tmp_path / "here.zarr", composite="none", **MASK)
    job = rsb.embed.plan(model, given, tmp_path / "pool.zarr", composite="none", **(WINDOWS | MASK))
    with ProcessPoolExecutor(1, mp_context=FORKED) as executor:
        rsb.embed.run(job, executor, **QUIET)
    found = rsb.embed.open(tmp_path / "pool.zarr")["embeddings"]
    np.testing.assert_array_equal(found.values, expected.values)


def test_a_pixel_has_the_radar_nearest_to_its_date(place, tmp_path):
    found, images, clear, echoes = place
    model = model_of("croma_vit_tiny", ("s2", "s1"), depth=2)
    made, expected_s1 = np.zeros_like(images[0]), np.zeros_like(echoes[0])
    for y, x in np.ndindex(SIDE, SIDE):
        if seen := [t for t in range(3) if clear[t, y, x]]:
            made[:, y, x] = images[seen[0], :, y, x]
            expected_s1[:, y, x] = echoes[(0, 1, 1)[seen[0]], :, y, x]
    paths = [
        write_tif(tmp_path / "s2.tif", made, BANDS, nodata=0),
        write_tif(tmp_path / "s1.tif", expected_s1, ("VV", "VH")),
    ]
    first, summary = run(model, found["s2"] + found["s1"], tmp_path / "f.zarr", composite="first", **MASK)
    files, _ = run(model, paths, tmp_path / "files.zarr")
    np.testing.assert_array_equal(first.values, files.values)
    assert set(summary["pairs"]["2024-06-01"]["s1"]) == {"2024-06-02"}


def windows_of(model):
    """The corners of windows of 32 pixels that overlap by 16, in cells."""
    return [i // model.stride for i in range(0, SIDE - 16, 16)]


def blended(model, encode):
    """The blend of ``encode(top, left)`` [..., D, h, w] of all windows, in pixels of the scene."""
    side, cells = 32 // model.stride, SIDE // model.stride
    edge = np.minimum(np.minimum(np.arange(1, side + 1), np.arange(side, 0, -1)), 16 // model.stride + 1)
    weight = np.multiply.outer(edge, edge) / (16 // model.stride + 1) ** 2
    total = norm = 0
    for top in windows_of(model):
        for left in windows_of(model):
            values = encode(top * model.stride, left * model.stride)
            whole = np.zeros((*values.shape[:-2], cells, cells))
            share = np.zeros((cells, cells))
            whole[..., top : top + side, left : left + side] = values * weight
            share[top : top + side, left : left + side] = weight
            total, norm = total + whole, norm + share
    return total / norm


def test_a_model_of_series_gets_the_dates_with_data(place, tmp_path):
    found, images, clear, _ = place
    model = model_of("s4_unet3d_tiny", widths=[4, 8, 8])
    preprocess = rsb.create_preprocess(model, check=False)

    def encode(top, left):
        here = np.s_[..., top : top + 32, left : left + 32]
        series = []
        for image, there in zip(images[here].astype(np.float32), clear[here], strict=True):
            if there.any():
                mean = image[:, there].mean(1)
                series.append(np.where(there, image, mean[:, None, None]))
        days = [[d for d, there in zip(S2_DAYS, clear[here], strict=True) if there.any()]]
        with torch.no_grad():
            x = preprocess(torch.from_numpy(np.stack(series))[None])
            return model.forward_features(x, dates=torch.tensor(days)).maps()[0].numpy()

    made, _ = run(model, found["s2"], tmp_path / "e.zarr", composite="none", **MASK)
    assert made.dims == ("band", "y", "x")
    assert not clear[2, :32, 40:].any()  # the windows at the right have two dates
    p = model.stride
    whole = clear.any(0).reshape(SIDE // p, p, SIDE // p, p).all((1, 3))
    np.testing.assert_array_equal(np.isfinite(made.values).all(0), whole)
    np.testing.assert_allclose(made.values[:, whole], blended(model, encode)[:, whole], atol=1e-5)


def test_a_model_that_fuses_dates_gives_a_map_of_each(place, tmp_path):
    found, images, _, echoes = place
    model = model_of("seamo_vit_tiny", ("s2", "s1"), depth=1, temporal=True)
    preprocess = rsb.create_preprocess(model, check=False)
    paired = echoes[[0, 1, 1]]

    def encode(top, left):
        here = np.s_[..., top : top + 32, left : left + 32]
        with torch.no_grad():
            x = preprocess({"s2": images[here][None].astype(np.float32), "s1": paired[here][None]})
            return model.forward_features(x, temporal=True).maps()[0].numpy()

    made, summary = run(model, found["s2"] + found["s1"], tmp_path / "e.zarr", composite="none")
    assert made.shape[0] == 3
    np.testing.assert_allclose(made.values, blended(model, encode), atol=1e-5)
    single, _ = run(model, found["s2"] + found["s1"], tmp_path / "f.zarr", composite="first")
    assert np.abs(made.values[1] - single.values).max() > 1e-3
    assert summary["pairs"]["2024-06-11"] == {"s1": ["2024-06-19"]}


def test_what_series_cannot_be_is_refused(place, tmp_path):
    found = place[0]
    series, image = model_of("s4_unet3d_tiny", widths=[4, 8, 8]), model_of("croma_vit_tiny", depth=2)
    scene = write_tif(tmp_path / "s.tif", place[1][0], BANDS)
    for model, source, output, options, text in [
        (series, found["s2"], "e.zarr", {}, "--composite none"),
        (series, scene, "e.zarr", {}, "the source has one date"),
        (image, found["s2"], "e.tif", {"composite": "none", "quantize": "per-band"}, "time axis"),
        (image, scene, "e.zarr", {"composite": "none"}, "only of STAC items"),
    ]:
        with pytest.raises(ValueError, match=text):
            rsb.embed.plan(model, source, tmp_path / output, **(WINDOWS | options))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.tif"]
