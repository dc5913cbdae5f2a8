"""Similar cells: against numpy over the whole map, with the outputs as other libraries read them."""

import json
import re
import shutil

import numpy as np
import pytest
import rasterio
import shapely
import torch

import rsbackbones as rsb
from rsbackbones.cli import main
from rsbackbones.embed.search.page import heat_picture, write_page
from rsbackbones.embed.search.pictures import ScenePictures
from rsbackbones.embed.search.search import Searched
from tests.data.test_rasters import S2, write_tif
from tests.embed.test_embed import QUIET, optical, place

faiss = pytest.importorskip("faiss")
geopandas = pytest.importorskip("geopandas")
pytest.importorskip("obstore")


@pytest.fixture(scope="module")
def model():
    return rsb.create_model("croma_vit_tiny", pretrained=True, modalities=("s2",))


@pytest.fixture(scope="module")
def store(model, tmp_path_factory):
    """A store of 40 x 40 cells in four shards, with two lakes and a hole."""
    data = optical(320, 320)
    for top, left in ((40, 40), (200, 240)):
        data[:, top : top + 48, left : left + 48] = np.array([300, 250, 200, 120] * 3)[:, None, None]
    data[:, 280:, :40] = 0
    folder = tmp_path_factory.mktemp("store")
    path = write_tif(folder / "scene.tif", data, S2, nodata=0)
    job = rsb.embed.plan(model, path, folder / "e.zarr", window=64, overlap=16, shard=32)
    rsb.embed.run(job, **QUIET)
    return folder / "e.zarr", path


def degrees(path, row, column):
    """The place of a cell's center."""
    with rasterio.open(path) as raster:
        x, y = raster.transform * (8 * column + 4, 8 * row + 4)
        (lon,), (lat,) = rasterio.warp.transform(raster.crs, "EPSG:4326", [x], [y])
    return lon, lat


@pytest.mark.parametrize("center", ["none", "mean", "whiten"])
def test_hits_are_those_of_all_vectors_at_once(store, center):
    place, path = store
    features = np.moveaxis(rsb.embed.open(place)["embeddings"].values, 0, -1).astype(np.float64)
    there = np.isfinite(features).all(-1)
    flat = features[there]
    prepared = flat - (0 if center == "none" else flat.mean(0))
    if center == "whiten":
        values, vectors = np.linalg.eigh(np.cov(prepared, rowvar=False))
        prepared = prepared @ (vectors / np.sqrt(np.maximum(values, values.max() * 1e-4))) @ vectors.T
    prepared /= np.linalg.norm(prepared, axis=1, keepdims=True)
    everything = np.full((*features.shape[:2], features.shape[2]), np.nan)
    everything[there] = prepared
    query, other = everything[8, 8], everything[20, 20]
    searched = Searched(place, center=center)
    for negatives in ([], [other]):
        wanted = query - (0.5 * other if negatives else 0)
        expected = everything @ (wanted / np.linalg.norm(wanted))
        unlike = [searched.at(*degrees(path, 20, 20))] if negatives else []
        hits = searched.search([searched.at(*degrees(path, 8, 8))], unlike, k=30)
        np.testing.assert_allclose(hits.similarities[0], expected, atol=1e-4)
        np.testing.assert_allclose(hits.similarity, np.sort(expected[there])[::-1][:30], atol=1e-4)
        np.testing.assert_allclose(expected[hits.rows, hits.columns], hits.similarity, atol=1e-4)
    (row, column), (lon, lat) = (hits.rows[0], hits.columns[0]), (hits.lon[0], hits.lat[0])
    assert (lon, lat) == pytest.approx(degrees(path, row, column), abs=1e-9)


def test_a_lake_finds_the_other_one(store):
    searched = Searched(store[0])
    corners = [degrees(store[1], 6, 6), degrees(store[1], 9, 9)]
    with pytest.raises(ValueError, match="no cell of"):  # latitude and longitude swapped
        searched.box(corners[1][1], corners[0][0], corners[0][1], corners[1][0])
    query = searched.box(corners[0][0], corners[1][1], corners[1][0], corners[0][1])
    hits = searched.search([query], k=72)  # as many as the cells of both
    other = (hits.rows >= 25) & (hits.rows < 31) & (hits.columns >= 30) & (hits.columns < 36)
    assert other.sum() >= 8


def test_the_command_writes_a_table_a_map_and_a_page(store, tmp_path, capsys):
    place, path = store
    lon, lat = degrees(path, 20, 8)
    outputs = {name: tmp_path / name for name in ("hits.parquet", "map.tif", "page.html")}
    arguments = ["search", place, "--at", f"{lon},{lat}", "--k", "12", "--output", outputs["hits.parquet"],
                 "--map", outputs["map.tif"], "--html", outputs["page.html"], "--scene", path]  # fmt: skip
    assert main(list(map(str, arguments))) == 0
    table = geopandas.read_parquet(outputs["hits.parquet"])
    assert table["rank"].tolist() == list(range(1, 13))
    assert (table["row"][0], table["column"][0]) == (20, 8)
    assert table.geometry[0].contains(shapely.Point(lon, lat))
    from rio_cogeo import cog_validate

    assert cog_validate(outputs["map.tif"], quiet=True)[0]
    with rasterio.open(outputs["map.tif"]) as raster, rasterio.open(path) as scene:
        assert raster.read(1)[20, 8] == pytest.approx(1, abs=1e-5)
        assert tuple(raster.bounds) == pytest.approx(tuple(scene.bounds))
        assert np.isnan(raster.read(1)[-1, 0])
    page = outputs["page.html"].read_text()
    assert not re.search(r"(?:src|href)=[\"'](?!data:)", page)  # nothing is loaded from elsewhere
    assert page.count("<figure>") == 12
    assert f"{lon:.5f}, {lat:.5f}" in page
    assert "parameters_sha256" in page
    assert f"{lon:.5f},{lat:.5f}" in capsys.readouterr().out


def test_a_scene_is_the_one_that_was_embedded(store, tmp_path):
    place, path = store
    with rasterio.open(path) as raster:
        data, moved = raster.read(), rasterio.Affine.translation(80, 0) @ raster.transform
        other = write_tif(tmp_path / "moved.tif", data, S2, transform=moved, crs=raster.crs)
    searched = Searched(place)
    hits = searched.search([searched.at(*degrees(path, 8, 8))], k=1)
    with pytest.raises(ValueError, match=r"moved\.tif does not lie under the map"):
        write_page(tmp_path / "p.html", searched, hits, scene=other)
    write_page(tmp_path / "p.html", searched, hits, scene=path)
    assert "<h1>The most similar cell of e.zarr</h1>" in (tmp_path / "p.html").read_text()
    found = ScenePictures(path, searched.layers[0])
    with found:
        chip, whole = found.chip(searched.layers[0], 2, 39), found.whole(searched.layers[0])
    assert chip.shape == (4, 72, 72)  # nine cells of eight pixels; what lies beyond the map has no color
    np.testing.assert_array_equal(chip[:, 16:, :40], whole[:, :56, 280:])
    assert not chip[3, :16].any()
    assert not chip[3, :, 40:].any()


def test_a_pixel_of_a_large_map_is_the_best_of_its_cells():
    similarities = np.full((2100, 7), 0.1, np.float32)
    similarities[1300, 5], similarities[:3] = 1, np.nan
    heat = heat_picture(similarities, (0, 1))
    assert heat.shape == (4, 700, 3)
    assert np.argwhere(heat[0] == 253).tolist() == [[433, 1]]
    assert not heat[3, 0].any()
    assert heat[3, 1:].all()


def test_an_example_is_encoded_by_the_recorded_model_alone(store, model, tmp_path):
    place, path = store
    with rasterio.open(path) as raster:
        chip = raster.read(window=rasterio.windows.Window(40, 40, 64, 64))
    example = write_tif(tmp_path / "chip.tif", chip, S2)
    from rsbackbones.embed.search.output import encode_example

    searched = Searched(place)
    vector = encode_example(example, searched.provenance)
    batch = rsb.create_preprocess(model, bands={"s2": S2})({"s2": chip[None]})
    with torch.inference_mode():
        expected = model.forward_features(batch).maps("s2")[0].mean((1, 2)).numpy()
    np.testing.assert_allclose(vector, expected, atol=1e-5)
    hits = searched.search([vector], k=10)
    assert (hits.rows < 16).all()
    assert (hits.columns < 16).all()
    other = tmp_path / "other.safetensors"
    changed = rsb.create_model("croma_vit_tiny", pretrained=True, modalities=("s2",))
    with torch.no_grad():
        next(changed.parameters()).view(-1)[0] += 1
    rsb.save_model(changed, other)
    with pytest.raises(ValueError, match="not those of the store"):
        encode_example(example, searched.provenance, other)


def test_a_table_is_searched_by_place(model, tmp_path):
    paths = [
        write_tif(tmp_path / f"{i}.tif", optical(32, 32, seed=i), S2, transform=place(i)) for i in range(5)
    ]
    rsb.embed.embed_patches(model, paths, tmp_path / "rows.parquet", **QUIET)
    table = geopandas.read_parquet(tmp_path / "rows.parquet")
    searched = Searched(tmp_path / "rows.parquet", center="none")
    center = table.geometry[3].centroid
    hits = searched.search([searched.at(center.x, center.y)], k=3)
    assert hits.rows[0] == 3
    vectors = np.stack(table["embedding"].to_list())
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(hits.similarity, np.sort(vectors @ vectors[3])[::-1][:3], atol=1e-5)
    assert json.loads(json.dumps(hits.facts))["provenance"]["model"] == "croma_vit_tiny"


def test_an_index_finds_what_the_exact_search_does(store, tmp_path, capsys):
    """With the recall that it states and similarities of 16 bits; it is of one store alone."""
    place, path = store
    index = tmp_path / "e.ivf"
    arguments = ["search", place, "--at", ",".join(map(str, degrees(path, 20, 8))), "--index", index]
    assert main(list(map(str, [*arguments, "--output", tmp_path / "hits.parquet"]))) == 0
    assert "with a recall of" in capsys.readouterr().err
    built = index.read_bytes()
    exact, found = Searched(place), Searched(place, index=index)
    assert index.read_bytes() == built  # it was used, not built again
    recalls = []
    for row, column in np.random.default_rng(0).integers(0, 40, (40, 2)):
        if row < 35:
            query = exact.at(*degrees(path, row, column))
            wanted, hits = exact.search([query], k=11), found.search([query], k=11)
            places = {(r, c) for r, c in zip(wanted.rows, wanted.columns, strict=True)} - {(row, column)}
            recalls.append(len(places & set(zip(hits.rows, hits.columns, strict=True))) / len(places))
            assert wanted.similarities is not None
            np.testing.assert_allclose(
                wanted.similarities[0][hits.rows, hits.columns], hits.similarity, atol=0.02
            )
    stated = hits.facts["index"]
    assert stated["lists_compared"] < stated["lists"]  # and all lists where all vectors are wanted
    assert len(found.search([query], k=stated["vectors"]).rows) == stated["vectors"]
    assert stated["vectors"] == int(np.isfinite(wanted.similarities[0]).sum())
    assert stated["recall_at_10"] >= 0.95 or stated["lists_compared"] == stated["lists"]
    assert np.mean(recalls) == pytest.approx(stated["recall_at_10"], abs=0.05)
    with pytest.raises(ValueError, match=r"an index of other vectors .*center"):
        Searched(place, center="none", index=index)
    shutil.copytree(place, tmp_path / "less.zarr")
    next((tmp_path / "less.zarr" / "embeddings" / "c").rglob("[0-9]*/1/1")).unlink()
    with pytest.raises(ValueError, match=r"an index of other vectors .*digest"):
        Searched(tmp_path / "less.zarr", index=index)
    with pytest.raises(ValueError, match="no index of a search"):
        Searched(place, index=path)


def test_what_cannot_be_searched_is_named(store, tmp_path, capsys):
    place, path = store
    lon, lat = degrees(path, 8, 8)
    hole = ",".join(map(str, degrees(path, 39, 0)))
    for arguments, text in [
        ([place], "--at LON,LAT"),
        ([place, "--at", "1,2,3"], "takes 2 numbers"),
        ([place, "--at", "100,10"], "lies outside"),
        ([place, "--at", hole], "no data at"),
        ([place, "--box", f"{lon},{lat},{lon - 1},{lat}"], "west, south, east, north"),
        ([place, "--box", f"{lon},{lat},{lon},{lat + 90}"], "west, south, east, north"),
        ([place, "--at", f"{lon},{lat}", "--scene", path], "--html PAGE.html"),
        ([place, "--at", f"{lon},{lat}", "--checkpoint", path], "--example CHIP.tif"),
        ([place, "--example", path, "--at-date", "2024-06-01"], "--at-date is of a place or a box"),
        ([place, "--box", "1,2,3,4", "--within", "5"], "--within is of a place"),
        ([place, "--at", f"{lon},{lat}", "--index", "i.ivf", "--map", tmp_path / "m.tif"], "hits alone"),
        ([tmp_path / "t.parquet", "--at", "1,2", "--html", tmp_path / "p.html"], "a table has none"),
        ([tmp_path / "none.zarr", "--at", f"{lon},{lat}"], "no Zarr store"),
        ([tmp_path / "none.zarr", "--at", f"{lon},{lat}", "--group", "utm32"], "no Zarr store"),
        ([place, "--at", f"{lon},{lat}", "--output", tmp_path / "h.csv"], "--output is a .parquet"),
        ([place, "--at", f"{lon},{lat}", "--map", tmp_path / "m.png"], "--map is a .tif"),
        ([path, "--at", f"{lon},{lat}"], "a store (.zarr) or a table (.parquet)"),
    ]:
        assert main(["search", *map(str, arguments)]) == 2
        assert text in capsys.readouterr().err
    assert not list(tmp_path.iterdir())  # a store that is looked for is not made
