"""Embeddings of geometries: those of a store at their places, with the user's columns, by any engine."""

import json
import multiprocessing
import shutil
import sys
import tracemalloc
from concurrent.futures import ProcessPoolExecutor

import jsonschema
import numpy as np
import pytest
import rasterio
import rasterio.features
from rasterio.warp import transform

import rsbackbones as rsb
from rsbackbones.cli import main
from rsbackbones.data.raster_grid import Grid
from rsbackbones.embed import points
from rsbackbones.embed.driver import JobError
from rsbackbones.embed.geometry_cells import Cells
from rsbackbones.embed.lattice import Block
from rsbackbones.embed.points import Points
from rsbackbones.embed.points_task import check_points
from rsbackbones.files import retry
from tests import forked
from tests.data.test_rasters import GRID, S2, write_tif
from tests.embed.range_server import serve
from tests.embed.test_embed import QUIET, optical
from tests.embed.test_job import SCHEMAS, SMALL

geopandas = pytest.importorskip("geopandas")
pytest.importorskip("obstore")
xarray = pytest.importorskip("xarray")
shapely = pytest.importorskip("shapely")

FORKED = multiprocessing.get_context("forkserver")
CRS = "EPSG:32633"
WEST, NORTH, CELL = 500_000, 5_000_000, 80
ROWS, COLUMNS = 41, 37


@pytest.fixture(scope="module")
def model():
    return rsb.create_model("croma_vit_tiny", pretrained=True, modalities=("s2",))


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A scene of 41 x 37 cells, with a hole over the cells of rows 20 to 24 and columns 5 to 9."""
    data = optical(8 * ROWS, 8 * COLUMNS)
    data[:, 160:200, 40:80] = 0
    path = tmp_path_factory.mktemp("scene") / "S2A_MSIL2A_20240607T101031_N0510_R022_T32UPU.tif"
    return write_tif(path, data, S2, nodata=0), data


@pytest.fixture(scope="module")
def cells(model, scene, tmp_path_factory):
    """What a store has in each cell, [rows, columns, D]: as it is, and decoded from 8 bits; and the rule."""
    folder = tmp_path_factory.mktemp("store")
    for rule in ("none", "per-band"):
        job = rsb.embed.plan(model, scene[0], folder / f"{rule}.zarr", quantize=rule, **SMALL)
        rsb.embed.run(job, **QUIET)
    plain, decoded = (rsb.embed.open(folder / f"{r}.zarr") for r in ("none", "per-band"))
    rule = decoded.attrs["rsbackbones"]["quantization"]
    return *(np.moveaxis(s["embeddings"].values, 0, -1) for s in (plain, decoded)), rule


def in_cells(row, column):
    """A place of the scene, given in cells."""
    return WEST + CELL * column, NORTH - CELL * row


def plots():
    """Points, and polygons: small, large, in two parts, without a center of a cell, over the hole."""
    rng = np.random.default_rng(0)
    places = rng.uniform((0, 0), (ROWS, COLUMNS), (30, 2))
    places = [(r, c) for r, c in places if not (20 <= r < 25 and 5 <= c < 10)]
    shapes = [shapely.Point(in_cells(*place)) for place in places]
    discs = [(10.3, 10.2, 2.5), (20, 20, 17), (5.1, 30.1, 0.3), (22, 8, 6)]  # row, column, radius
    shapes += [shapely.Point(in_cells(r, c)).buffer(CELL * size, quad_segs=3) for r, c, size in discs]
    shapes.append(shapely.MultiPolygon([shapes[-4], shapely.box(*in_cells(40.2, 30.2), *in_cells(36.9, 35))]))
    frame = geopandas.GeoDataFrame(
        {"plot": [f"p{i}" for i in range(len(shapes))], "yield_t": np.arange(len(shapes)) / 3,
         "note": [None] * (len(shapes) - 1) + ["last"]},
        geometry=shapes, crs=CRS,
    )  # fmt: skip
    return frame.set_index(frame.index + 100)


def run(model, source, output, given, **options):
    job = rsb.embed.plan(model, source, points=given, output=output, **(SMALL | options))
    return rsb.embed.run(job, **QUIET)


def vectors_of(table):
    return np.stack(table.sort_values("id")["embedding"].to_list())


def read(output):
    return geopandas.read_parquet(output).sort_values("id").set_index("id")


def plain_means(frame, features):
    """The mean of the cells that GDAL burns for each shape, or of the one in which it lies; and how many."""
    means, counts = [], []
    grid = rasterio.Affine(CELL, 0, WEST, 0, -CELL, NORTH)
    for shape in frame.geometry:
        burned = rasterio.features.rasterize([shape], features.shape[:2], transform=grid).astype(bool)
        if shape.geom_type == "Point" or not burned.any():
            x, y = shape.representative_point().coords[0]
            burned[:] = False
            burned[int((NORTH - y) // CELL), int((x - WEST) // CELL)] = True
        own = features[burned]
        there = np.isfinite(own).all(1)
        means.append(own[there].mean(0) if there.any() else np.full(features.shape[2], np.nan))
        counts.append((len(own), int(there.sum())))
    return np.stack(means), np.array(counts)


def test_rows_are_what_a_store_says_of_the_places(model, scene, cells, tmp_path, monkeypatch):
    frame, (plain, decoded, rule) = plots(), cells
    expected, counts = plain_means(frame, plain)
    assert counts[-3].tolist() == [1, 1]  # without a center
    assert counts[-2, 1] < counts[-2, 0]  # over the hole
    monkeypatch.setattr(points, "GROUP", 8)  # several parts
    given = frame.to_crs("EPSG:3035")  # and another CRS
    summary = run(model, scene[0], tmp_path / "p.parquet", given)
    assert (summary["geometries"], summary["missing"], summary["shards"]) == (len(frame), 0, 5)
    assert len(list((tmp_path / "p.parquet").iterdir())) == 5
    table = read(tmp_path / "p.parquet")
    assert table.index.tolist() == frame.index.tolist()
    np.testing.assert_allclose(np.stack(table["embedding"]), expected, rtol=0, atol=3e-6)
    np.testing.assert_array_equal(table["cells"], counts[:, 0])
    np.testing.assert_allclose(table["valid_share"], counts[:, 1] / counts[:, 0])
    for name in ("plot", "yield_t", "note"):
        assert table[name].isna().tolist() == frame[name].isna().tolist()
        assert table[name].dropna().tolist() == frame[name].dropna().tolist()
    assert table.crs == "EPSG:4326"
    assert table.to_crs(CRS).geometry.hausdorff_distance(frame.geometry).max() < 1e-3
    assert set(table["crs"]) == {CRS}
    assert set(table["source"]) == {str(scene[0])}
    assert set(map(str, table["datetime"])) == {"2024-06-07 10:10:31"}
    # A point is the decoded value of the 8 bits of a store, within half a step.
    for i, shape in zip(range(20), frame.geometry, strict=False):
        row, column = int((NORTH - shape.y) // CELL), int((shape.x - WEST) // CELL)
        steps, found = np.float32(rule["scale"]), table["embedding"].iloc[i]
        kept = np.abs(found - np.float32(rule["offset"])) <= 127 * steps  # others are clipped
        assert np.mean(kept) > 0.8
        assert (np.abs(found - decoded[row, column])[kept] <= 0.51 * steps[kept]).all()
    west, south, east, north = table.geometry.iloc[3].bounds
    near = geopandas.read_parquet(tmp_path / "p.parquet", bbox=(west, south, east, north))
    assert frame.index[3] in near["id"].tolist()
    assert len(near) < len(frame) / 2


def test_neither_groups_nor_blocks_nor_engines_change_a_row(model, scene, tmp_path, monkeypatch):
    frame = plots().iloc[22:]
    run(model, scene[0], tmp_path / "a.parquet", frame.iloc[::-1], shard=64)
    expected = vectors_of(geopandas.read_parquet(tmp_path / "a.parquet"))
    monkeypatch.setattr(points, "GROUP", 3)
    run(model, scene[0], tmp_path / "serial.parquet", frame)
    found = vectors_of(geopandas.read_parquet(tmp_path / "serial.parquet"))
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6)
    job = rsb.embed.plan(model, scene[0], points=frame, output=tmp_path / "pool.parquet", **SMALL)
    with ProcessPoolExecutor(2, mp_context=FORKED) as executor:
        rsb.embed.run(job, executor, **QUIET)
    parts = [sorted((tmp_path / name).iterdir()) for name in ("serial.parquet", "pool.parquet")]
    assert len(parts[0]) == 5
    for one, other in zip(*parts, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_windows_that_no_geometry_needs_are_neither_read_nor_encoded(model, scene, tmp_path, monkeypatch):
    from rsbackbones.embed.raster_scene import RasterScene

    read = []
    plain = RasterScene.read
    monkeypatch.setattr(RasterScene, "read", lambda s, window: read.append(window) or plain(s, window))
    corners = [(0.5, 0.5), (0.5, 36.5), (40.5, 36.5)]
    frame = geopandas.GeoDataFrame(geometry=[shapely.Point(in_cells(*c)) for c in corners], crs=CRS)
    summary = run(model, scene[0], tmp_path / "p.parquet", frame, shard=64)
    assert summary["windows"] == 3
    assert {window[2:] for window in read} == {(64, 64)}


def test_any_source_gives_the_same_rows(model, scene, tmp_path):
    path, data = scene
    array = xarray.DataArray(
        data, dims=("band", "y", "x"), attrs={"_FillValue": 0},
        coords={"band": list(S2), "y": NORTH - 10 * np.arange(8 * ROWS) - 5,
                "x": WEST + 10 * np.arange(8 * COLUMNS) + 5},
    ).odc.assign_crs(CRS)  # fmt: skip
    array.to_dataset(name="reflectance").to_zarr(tmp_path / "s.zarr", zarr_format=3, consolidated=False)
    tiles = [
        write_tif(tmp_path / f"tile{top}.tif", data[:, top:bottom], S2, nodata=0,
                  transform=GRID @ rasterio.Affine.translation(0, top))
        for top, bottom in ((0, 200), (180, 328))
    ]  # fmt: skip
    frame = plots()
    tables = {}
    for name, source in {"raster": path, "array": array, "zarr": tmp_path / "s.zarr", "tiles": tiles}.items():
        run(model, source, tmp_path / f"{name}.parquet", frame)
        tables[name] = read(tmp_path / f"{name}.parquet")
    for name, table in tables.items():
        np.testing.assert_array_equal(
            np.stack(table["embedding"]), np.stack(tables["raster"]["embedding"]), err_msg=name
        )
    # A row names the tiles that its cells touch.
    sources = tables["tiles"]["source"].str.split(";")
    assert sources.iloc[-5] == [str(tiles[0])]
    assert sources.iloc[-4] == [str(tile) for tile in tiles]
    assert set(tables["zarr"]["source"]) == {(tmp_path / "s.zarr").as_uri()}


def test_stac_items_are_a_source_too(tmp_path):
    pytest.importorskip("odc.stac")
    from tests.embed.test_stac_source import BANDS, items

    net = rsb.create_model("croma_vit_tiny", modalities=("s2",), bands={"s2": BANDS}, overrides={"depth": 2})
    layers = zip(BANDS, optical(96, 96, bands=4), strict=True)
    files = [write_tif(tmp_path / f"0_{b}.tif", layer[None], [b], nodata=0) for b, layer in layers]
    shapes = [shapely.Point(in_cells(2, 3)), shapely.box(*in_cells(11, 1), *in_cells(4, 9))]
    frame = geopandas.GeoDataFrame(geometry=shapes, crs=CRS)
    for name, source in {"files": files, "stac": items(tmp_path, 1)}.items():
        run(net, source, tmp_path / f"{name}.parquet", frame, window=32)
    ours, theirs = read(tmp_path / "stac.parquet"), read(tmp_path / "files.parquet")
    np.testing.assert_array_equal(np.stack(ours["embedding"]), np.stack(theirs["embedding"]))
    assert set(ours["source"]) == {"item0"}
    assert set(map(str, ours["datetime"])) == {"2024-06-01 10:00:00"}


def test_geometries_without_data_are_named_or_kept_as_nan(model, scene, tmp_path):
    shapes = [shapely.Point(in_cells(3, 3)), shapely.Point(in_cells(22.5, 7.5)), shapely.Point(0, 0),
              shapely.box(*in_cells(30.4, -10), *in_cells(28.4, 2.2))]  # fmt: skip
    frame = geopandas.GeoDataFrame({"id": ["a", "hole", "far", "half"]}, geometry=shapes, crs=CRS)
    output = tmp_path / "p.parquet"
    with pytest.raises(ValueError, match=r"outside of the source: 1 geometry \(far\); .*--on-missing nan"):
        rsb.embed.plan(model, scene[0], points=frame, output=output, **SMALL)
    near = frame[frame["id"] != "far"]
    encoded = []
    hook = model.encoders["s2"].register_forward_pre_hook(lambda *_: encoded.append(1))
    with pytest.raises(JobError, match=r"without a cell with data: 1 geometry \(hole\)"):
        run(model, scene[0], output, near)
    assert not output.exists()
    assert encoded
    encoded.clear()
    assert run(model, scene[0], output, near, on_missing="nan")["missing"] == 1
    assert not encoded  # what was done counts
    hook.remove()
    table = read(output)
    assert np.isnan(np.stack(table["embedding"])).any(1).tolist() == [False, False, True]  # a, half, hole
    run(model, scene[0], tmp_path / "all.parquet", frame, on_missing="nan")
    table = read(tmp_path / "all.parquet").loc[["a", "hole", "far", "half"]]
    assert np.isnan(np.stack(table["embedding"])).all(1).tolist() == [False, True, True, False]
    assert table["cells"].tolist() == [1, 1, 0, 4]
    assert table["valid_share"].tolist() == [1, 0, 0, 1]
    assert table["inside_share"].tolist() == pytest.approx([1, 1, 0, 2.2 / 12.2])


def test_a_killed_driver_leaves_what_the_next_one_needs(scene, tmp_path):
    plots().to_file(tmp_path / "plots.gpkg")
    command = [sys.executable, "-m", "rsbackbones", "embed", scene[0], "--model", "croma_vit_tiny",
               "--modalities", "s2", "--points", tmp_path / "plots.gpkg", "--window", "64", "--overlap", "16",
               "--no-progress"]  # fmt: skip
    code = """
import os, sys
from rsbackbones.cli import main
from rsbackbones.embed import points
points.GROUP, run = 8, sys.modules["rsbackbones.embed.run"]
plain, calls = run.compute_group, []
def compute(job, index):
    calls.append(index)
    if len(calls) > int(sys.argv[1]):
        os.kill(os.getpid(), 9)
    return plain(job, index)
run.compute_group = compute
sys.exit(main([str(word) for word in sys.argv[2:]]))
"""
    output = tmp_path / "p.parquet"
    start = [sys.executable, "-c", code]
    assert forked.run([*start, 2, *command[3:], "--output", output]).returncode == -9
    records = tmp_path / "p.parquet.job/done"
    assert len(list(records.iterdir())) == 2
    assert not output.exists()
    (tmp_path / "p.parquet.job/parts/part-00000002.parquet#1").write_bytes(b"half")  # as of a kill in a write
    before = {path: path.stat().st_mtime_ns for path in records.iterdir()}
    for place in (output, tmp_path / "undisturbed.parquet"):
        result = forked.run([*start, 9, *command[3:], "--output", place])
        assert result.returncode == 0, result.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    parts = [sorted(place.iterdir()) for place in (output, tmp_path / "undisturbed.parquet")]
    assert len(parts[0]) == 5
    for one, other in zip(*parts, strict=True):
        ours, theirs = (geopandas.read_parquet(path) for path in (one, other))
        np.testing.assert_array_equal(vectors_of(ours), vectors_of(theirs))
    assert {p.name for p in (tmp_path / "p.parquet.job").iterdir() if p.is_file()} == {
        "job.json", "calibration.json", "ready.json", "finished.json",
    }  # fmt: skip


def test_a_finished_job_leaves_no_working_files_and_misses_its_output(model, scene, tmp_path):
    """A driver that was killed right before it deleted them; a user who deleted the output alone."""
    output, frame = tmp_path / "p.parquet", geopandas.GeoDataFrame(geometry=plots().geometry[:2])
    job = rsb.embed.plan(model, scene[0], points=frame, output=output, **SMALL)
    summary = rsb.embed.run(job, **QUIET)
    kept = {path.name for path in (tmp_path / "p.parquet.job").iterdir() if path.is_file()}
    job.points.write(job.records)
    job.records.put("model.safetensors", b"weights")
    assert rsb.embed.run(job, **QUIET) == summary
    assert {path.name for path in (tmp_path / "p.parquet.job").rglob("*") if path.is_file()} - kept == {
        "00000000.json"  # of what is done
    }
    shutil.rmtree(output)
    with pytest.raises(JobError, match=r"is finished, and the output is gone; .* delete .*p\.parquet\.job"):
        rsb.embed.run(job, **QUIET)


def test_the_table_states_what_made_it_and_is_searched(model, scene, tmp_path):
    pytest.importorskip("faiss")
    import pyarrow.parquet as pq

    from rsbackbones.embed.search.search import Searched

    output, frame = tmp_path / "p.parquet", plots()
    run(model, scene[0], output, frame)
    stated = pq.read_schema(next(output.iterdir())).metadata
    provenance = json.loads(stated[b"provenance"])
    assert stated[b"weights"].decode() == provenance["model"]["weights"] == model.weights_entry.id
    assert provenance["window"] == 64
    geo = json.loads(stated[b"geo"])
    assert geo["version"] == "1.1.0"
    assert geo["columns"]["geometry"]["covering"]["bbox"]["xmin"] == ["bbox", "xmin"]
    searched = Searched(output, center="none")
    table = geopandas.read_parquet(output)
    row = int(np.flatnonzero(table["plot"] == "p7")[0])
    west, south, east, north = table.geometry[row].bounds
    hits = searched.search([searched.box(west, south, east, north)], k=3)
    assert hits.rows[0] == row
    folder = tmp_path / "p.parquet.stac"
    collection, item = (json.loads((folder / name).read_text()) for name in ("collection.json", "p.json"))
    schema = json.loads((SCHEMAS / "embeddings.json").read_text())
    for one in (collection, item):
        jsonschema.Draft7Validator(schema).validate(one)
    assert (folder / item["assets"]["embeddings"]["href"]).resolve() == output
    assert item["bbox"] == pytest.approx(list(frame.to_crs("EPSG:4326").total_bounds))


def test_the_command_takes_files_of_geometries(model, scene, cells, tmp_path, capsys):
    frame = plots()
    frame.to_parquet(tmp_path / "plots.parquet")
    command = ["embed", scene[0], "--model", "croma_vit_tiny", "--modalities", "s2", "--window", "64",
               "--overlap", "16", "--points", tmp_path / "plots.parquet", "--no-progress"]  # fmt: skip
    assert main([str(w) for w in (*command, "--output", tmp_path / "p.parquet")]) == 0
    err = capsys.readouterr().err
    assert f"{len(frame)} geometries in 1 group; " in err
    assert f"without data: 0 of {len(frame)} geometries" in err
    found = np.stack(read(tmp_path / "p.parquet")["embedding"])
    np.testing.assert_allclose(found, plain_means(frame, cells[0])[0], rtol=0, atol=3e-6)
    assert (
        main(["embed", "--model", "croma_vit_tiny", "--status", "--output", str(tmp_path / "p.parquet")]) == 0
    )
    assert "1 of 1 group done" in capsys.readouterr().out
    for words, text in [
        ([*command, "--output", tmp_path / "e.zarr"], "--output NAME.parquet, got"),
        ([*command, "--output", tmp_path / "q.parquet", "--quantize", "per-band"], "float32"),
        ([*command[:-3], "--on-missing", "nan", "--output", tmp_path / "e.zarr"], "--on-missing: only"),
    ]:
        assert main([str(w) for w in words]) == 2
        assert text in capsys.readouterr().err


def test_geometries_that_cannot_be_embedded_are_named(model, scene, tmp_path):
    point, square = shapely.Point(in_cells(3, 3)), shapely.box(*in_cells(5, 2), *in_cells(2, 5))
    bow = shapely.Polygon([in_cells(r, c) for r, c in ((2, 2), (5, 5), (5, 2), (2, 5))])

    def frame(*shapes, crs=CRS, **columns):
        return geopandas.GeoDataFrame(columns, geometry=list(shapes), crs=crs)

    two = tmp_path / "two.gpkg"
    frame(point).to_file(two, layer="a")
    frame(point).to_file(two, layer="b")
    for given, text in [
        (frame(), "no geometry"),
        (frame(point, crs=None), "no CRS"),
        (
            frame(point, shapely.LineString([in_cells(2, 2), in_cells(5, 5)])),
            r"LineString: 1 geometry \(1\)",
        ),
        (frame(point, None, square, shapely.Point()), r"empty: 2 geometries \(1, 3\)"),
        (frame(square, bow), r"no valid polygons: 1 geometry \(1\)"),
        (frame(point, embedding=[1], source=["x"]), "columns embedding, source"),
        (frame(point, point, kind=[1, "x"]), "columns of the geometries do not go to GeoParquet: .* kind"),
        (frame(point, wave=[1j]), "columns of the geometries do not go to GeoParquet: .* wave"),
        (tmp_path / "none.gpkg", "no file"),
        (two, "layers a, b"),
        (scene[0], "cannot read geometries"),
        (3, "GeoDataFrame or the path"),
    ]:
        with pytest.raises(ValueError, match=text):
            rsb.embed.plan(model, scene[0], points=given, output=tmp_path / "p.parquet", **SMALL)
    for output, options, text in [
        ("p.zarr", {}, "go to a .parquet"),
        ("p.parquet", {"on_missing": "skip"}, "fail, nan"),
    ]:
        with pytest.raises(ValueError, match=text):
            rsb.embed.plan(model, scene[0], points=frame(point), output=tmp_path / output, **options)
    with pytest.raises(ValueError, match="points="):
        rsb.embed.plan(model, scene[0], tmp_path / "p.zarr", on_missing="nan")
    (tmp_path / "p.parquet").write_text("mine")
    with pytest.raises(JobError, match="no output of a job"):
        run(model, scene[0], tmp_path / "p.parquet", frame(point))


def test_rows_name_what_they_were_read_from(model, tmp_path, monkeypatch):
    """Tiles of two rasters, of which one cannot be read any more."""
    monkeypatch.setattr(retry, "PAUSE_S", 0.05)
    names = []
    for i in range(2):
        for part in (slice(0, 6), slice(6, 12)):
            transform = GRID @ rasterio.Affine.translation(0, 64 * i)
            names.append(f"{i}_{part.start}.tif")
            write_tif(tmp_path / names[-1], optical(64, 64)[part], S2[part], nodata=0, transform=transform)
    frame = geopandas.GeoDataFrame(
        geometry=[shapely.Point(in_cells(3, 3)), shapely.Point(in_cells(12, 3))], crs=CRS
    )
    with serve(tmp_path) as server:
        tiles = [f"{server.url}/{name}" for name in names]
        job = rsb.embed.plan(
            model, tiles, points=frame, output=tmp_path / "p.parquet", on_unreadable="skip",
            on_missing="nan", window=32,
        )  # fmt: skip
        server.tell(status={names[2]: 404})
        summary = rsb.embed.run(job, **QUIET)
    assert set(summary["left_out"]) == {f"{tiles[2]};{tiles[3]}"}
    assert read(tmp_path / "p.parquet")["source"].tolist() == [f"{tiles[0]};{tiles[1]}", ""]


def test_the_check_of_values_is_within_the_memory_that_is_stated(model, tmp_path):
    path = write_tif(tmp_path / "s.tif", np.tile(optical(80, 80), (1, 8, 8)), S2, nodata=0)
    whole = shapely.box(*in_cells(80, 0), *in_cells(0, 80))
    frame = geopandas.GeoDataFrame(geometry=[whole], crs=CRS)
    options = {"window": 256, "overlap": 128, "shard": 96, "batch_size": 1}
    job = rsb.embed.plan(model, path, points=frame, output=tmp_path / "p.parquet", **options)
    job.points.write(job.records)
    tracemalloc.start()
    try:
        assert check_points(job)["sample"]["windows"] == 16
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < job.memory_bound["pixels"]


def test_long_edges_are_where_the_user_drew_them():
    """A parallel is a curve in UTM: the chord of the long edge is six cells off here."""
    grid = Grid(
        ROWS, COLUMNS, rasterio.crs.CRS.from_string(CRS), rasterio.Affine(CELL, 0, WEST, 0, -CELL, NORTH)
    )
    down, across = np.mgrid[:ROWS, :COLUMNS] + 0.5
    x, y = in_cells(down, across)
    lon, lat = map(np.array, transform(CRS, "EPSG:4326", x.ravel(), y.ravel()))
    _, (south, north) = transform(CRS, "EPSG:4326", *zip(in_cells(29, 18), in_cells(12, 18), strict=True))
    long, short = shapely.box(14, south, 16, north), shapely.box(14.999, south, 15.02, north)
    given = geopandas.GeoDataFrame({"id": [0, 1]}, geometry=[long, short], crs="EPSG:4326")
    table = Points.of(given, grid, "fail").table.to_pylist()
    for row, west, east in ((0, 14, 16), (1, 14.999, 15.02)):
        shape = shapely.from_wkb(next(r["placed"] for r in table if r["id"] == row))
        found = np.zeros((ROWS, COLUMNS), bool)
        found[Cells(shape, grid, 64).within(Block(0, 0, ROWS, COLUMNS))] = True
        within = (lon >= west) & (lon <= east) & (lat >= south) & (lat <= north)
        np.testing.assert_array_equal(found.ravel(), within)
    assert len(shapely.get_coordinates(shape)) == 5  # a short edge stays
    kept = Points.of(given.to_crs(CRS), grid, "fail").table.to_pylist()
    assert {len(shapely.get_coordinates(shapely.from_wkb(row["placed"]))) for row in kept} == {5}


def test_parts_that_touch_in_the_crs_of_the_user_may_overlap_in_that_of_the_map():
    """The corner of a part lies on a parallel that is the edge of another; in UTM that is a curve."""
    grid = Grid(
        ROWS, COLUMNS, rasterio.crs.CRS.from_string(CRS), rasterio.Affine(CELL, 0, WEST, 0, -CELL, NORTH)
    )
    lon, lat = (np.ravel(x)[0] for x in transform(CRS, "EPSG:4326", *zip(in_cells(20, 20), strict=True)))
    slab = shapely.box(14.9, lat - 0.005, 15.1, lat)
    wedge = shapely.Polygon([(lon, lat), (lon + 0.005, lat + 0.008), (lon - 0.005, lat + 0.008)])
    hole = [(lon, lat - 0.005), (lon + 0.003, lat - 0.001), (lon - 0.003, lat - 0.001)]
    shapes = [shapely.MultiPolygon([slab, wedge]), slab.difference(shapely.Polygon(hole)), slab, wedge]
    assert shapely.is_valid(shapes).all()
    given = geopandas.GeoDataFrame({"id": range(4)}, geometry=shapes, crs="EPSG:4326")
    table = {row["id"]: row for row in Points.of(given, grid, "fail").table.to_pylist()}
    placed = {i: shapely.from_wkb(row["placed"]) for i, row in table.items()}
    assert not placed[0].is_valid
    inside = {i: row["inside_share"] for i, row in table.items()}
    assert inside[3] == 1  # exactly: it lies within
    area = {i: shape.area for i, shape in placed.items()}
    assert inside[0] == pytest.approx((inside[2] * area[2] + area[3]) / (area[2] + area[3]), abs=1e-4)
    assert inside[1] == pytest.approx(inside[2], abs=0.05)
    own = {i: set(zip(*Cells(shape, grid, 64).within(Block(0, 0, ROWS, COLUMNS)), strict=True))
           for i, shape in placed.items()}  # fmt: skip
    assert own[0] == own[2] | own[3]
    assert own[1] < own[2]


def test_polygons_beyond_the_crs_of_the_map_are_named():
    """Edges that reach beyond 90 degrees from the meridian of a UTM zone have no end there."""
    grid = Grid(
        ROWS, COLUMNS, rasterio.crs.CRS.from_string(CRS), rasterio.Affine(CELL, 0, WEST, 0, -CELL, NORTH)
    )
    shapes = [shapely.box(-30, 20, 60, 60), shapely.box(-179.9, -89, 179.9, 89)]
    given = geopandas.GeoDataFrame({"id": ["half", "world"]}, geometry=shapes, crs="EPSG:4326")
    assert 0 < Points.of(given[:1], grid, "fail").table["inside_share"][0].as_py() < 1
    with pytest.raises(ValueError, match=r"too large for EPSG:32633.*1 geometry \(world\); cut them"):
        Points.of(given, grid, "nan")


def test_each_geometry_is_of_one_zone():
    """Maps of neighbors on both sides of 12 degrees east, of which that of the north-east is smaller."""
    crs = {"utm32": 32632, "utm33": 32633, "utm33s": 32733}
    corners = {"utm32": (700_000, 100_000), "utm33": (100_000, 60_000), "utm33s": (100_000, 10_000_000)}
    grids = {}
    for zone, code in crs.items():
        west, north = corners[zone]
        transform = rasterio.Affine(100, 0, west, 0, -100, north)
        grids[zone] = Grid(1000, 1500, rasterio.crs.CRS.from_epsg(code), transform)
    places = {
        "west": shapely.Point(11.9, 0.2), "east": shapely.Point(12.1, 0.2),
        "south": shapely.Point(12.1, -0.2), "alone": shapely.Point(12.01, 0.7),
        "most": shapely.box(12.0, 0.5, 12.1, 0.6), "far": shapely.Point(16.9, 0.2),
    }  # fmt: skip
    frame = geopandas.GeoDataFrame({"id": list(places)}, geometry=list(places.values()), crs="EPSG:4326")
    found = Points.of_zones(frame, grids, "nan")
    zones = {name: zone for zone, own in found.items() for name in own.table["id"].to_pylist()}
    assert zones == {"west": "utm32", "east": "utm33", "south": "utm33s", "alone": "utm32", "most": "utm32",
                     "far": "utm33"}  # fmt: skip
    assert found["utm33"].table["inside_share"].to_pylist() == [1, 0]
    with pytest.raises(ValueError, match=r"outside of the source: 1 geometry \(far\)"):
        Points.of_zones(frame, grids, "fail")
    assert set(Points.of_zones(frame.iloc[:2], grids, "fail")) == {"utm32", "utm33"}
    # Where a map is empty, another zone has items: east of 12 degrees, here also counted beyond 180.
    around = shapely.box(11.8, 0.1, 12.15, 0.4)
    for one in (around, shapely.affinity.translate(around, 360)):
        footprints = {"utm32": [one], "utm33": [shapely.box(12.2, 0.1, 12.4, 0.4)]}
        found = Points.of_zones(frame.iloc[:2], grids, "fail", footprints)
        assert {zone: own.table["id"].to_pylist() for zone, own in found.items()} == {
            "utm32": ["west", "east"]
        }


def test_geometries_take_models_of_images(scene, tmp_path):
    net = rsb.create_model("s4_unet3d_tiny", modalities=("s2",))
    frame = geopandas.GeoDataFrame(geometry=[shapely.Point(in_cells(3, 3))], crs=CRS)
    for composite in ("none", "median"):
        with pytest.raises(ValueError, match="models of images"):
            rsb.embed.plan(net, scene[0], points=frame, output=tmp_path / "p.parquet", composite=composite)


def test_a_table_of_parts_has_an_index(tmp_path):
    pytest.importorskip("faiss")
    import pyarrow.parquet as pq

    from rsbackbones.embed.geoparquet import arrow_table, vector_column
    from rsbackbones.embed.search.search import Searched

    folder, rng = tmp_path / "p.parquet", np.random.default_rng(0)
    folder.mkdir()
    for part in range(3):
        places = [shapely.box(x, part, x + 0.1, part + 0.1) for x in range(100)] * 6
        vectors = rng.normal(size=(600, 8)).astype(np.float32)
        vectors[::100] = np.nan
        table = arrow_table(geopandas.GeoDataFrame(geometry=places, crs="EPSG:4326"))
        table = table.append_column("embedding", vector_column(vectors))
        pq.write_table(table, folder / f"part-{part}.parquet")
    searched = Searched(folder, index=tmp_path / "p.ivf")
    assert searched.search([vectors[7]], k=1).rows.tolist() == [1207]
    with pytest.raises(ValueError, match="no data at"):
        searched.at(0.05, 2.05)
    (folder / "part-0.parquet").unlink()
    with pytest.raises(ValueError, match="an index of other vectors"):
        Searched(folder, index=tmp_path / "p.ivf")
