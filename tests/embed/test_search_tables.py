"""Search in tables of embeddings: the geometry at a place or nearest to it, and those in a box."""

import re
import shutil

import numpy as np
import pytest

from rsbackbones.cli import main
from rsbackbones.embed.search.search import Searched

pytest.importorskip("faiss")
geopandas = pytest.importorskip("geopandas")
shapely = pytest.importorskip("shapely")
pq = pytest.importorskip("pyarrow.parquet")

METER = 1 / 111_132  # a degree of latitude at 45 degrees north, by WGS84


def write_table(path, geometry, vectors, parts=1, **columns):
    """A table, or a folder of parts in row groups of 100 rows."""
    from rsbackbones.embed.geoparquet import arrow_table, vector_column

    frame = geopandas.GeoDataFrame(columns, geometry=geometry, crs="EPSG:4326")
    whole = arrow_table(frame).append_column("embedding", vector_column(vectors.astype(np.float32)))
    if parts == 1:
        pq.write_table(whole, path, row_group_size=100)
        return path
    path.mkdir()
    size = -(-len(whole) // parts)
    for i in range(parts):
        pq.write_table(whole.slice(i * size, size), path / f"part-{i}.parquet", row_group_size=100)
    return path


@pytest.fixture(scope="module")
def plots(tmp_path_factory):
    """1,200 points 100 m apart from north to south in three parts, of which some have no data."""
    vectors = np.random.default_rng(0).normal(1, 1, (1200, 8))
    vectors[[5, 700]] = np.nan
    points = [shapely.Point(11, 45.5 - 100 * i * METER) for i in range(1200)]
    folder = tmp_path_factory.mktemp("plots")
    ids = [f"p{i}" for i in range(1200)]
    return write_table(folder / "p.parquet", points, vectors, 3, id=ids), vectors


def test_the_nearest_point_is_meant(plots, capsys):
    path, vectors = plots
    searched = Searched(path)
    for row in (0, 399, 400, 1199):
        place = 11 + 20 * METER, 45.5 - (100 * row + 25) * METER
        example = searched.example_at(*place)
        np.testing.assert_allclose(example.vector, vectors[row], atol=1e-6)
        away = int(re.fullmatch(rf"id p{row}, (\d+) m away", example.where)[1])
        assert away == pytest.approx(np.hypot(20 * np.cos(np.radians(45.5)), 25), abs=1)
    at = f"11.003,{45.5 - 100 * METER}"
    assert main(["search", str(path), "--at", at]) == 2
    said = capsys.readouterr().err
    assert re.search(r"within 100 m of 11\.003, .*nearest is id p1, 23\d m away.*--within 23\d\)", said)
    assert main(["search", str(path), "--at", at, "--within", "240", "--k", "1"]) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(r" +1  1\.0000  11\.00000,45\.49910  p1\n", out)
    assert "id p1, 23" in err
    with pytest.raises(ValueError, match=r"no data at 11, .*id p5\)"):
        searched.at(11, 45.5 - 500 * METER)


def test_hits_are_those_of_numpy(plots, tmp_path):
    path, vectors = plots
    there = np.isfinite(vectors).all(1)
    x = vectors - vectors[there].mean(0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    expected = np.where(there, x @ x[1100], -2)
    hits = Searched(path).search([vectors[1100]], k=20)
    assert hits.rows.tolist() == np.argsort(-expected)[:20].tolist()
    np.testing.assert_allclose(hits.similarity, np.sort(expected)[::-1][:20], atol=1e-5)
    assert hits.similarities is None
    output = tmp_path / "hits.parquet"
    assert main(["search", str(path), "--at", f"11,{45.5 - 110000 * METER}", "--output", str(output)]) == 0
    table = geopandas.read_parquet(output)
    assert table["id"].tolist()[:20] == [f"p{row}" for row in hits.rows]
    assert "column" not in table


def test_a_polygon_that_covers_a_place_goes_before_a_nearer_point(tmp_path):
    square = shapely.box(11, 45, 11.1, 45.1)
    geometry = [shapely.Point(11.01, 45.01), square, None, square]
    path = write_table(tmp_path / "t.parquet", geometry, np.eye(4) * 4)
    searched = Searched(path, center="none")
    example = searched.example_at(11.01001, 45.01)
    np.testing.assert_allclose(example.vector, [0, 2, 0, 2])  # of two at one place the mean
    assert example.where == "2 geometries (row 1, ...)"
    assert searched.search([example.vector], k=2).rows.tolist() in ([1, 3], [3, 1])
    np.testing.assert_allclose(searched.at(11.01, 45.01), [4 / 3, 4 / 3, 0, 4 / 3])


def test_a_box_is_the_mean_of_geometries_within(plots):
    path, vectors = plots
    searched = Searched(path)
    box = 10.9, 45.5 - 410.5 * 100 * METER, 11.1, 45.5 - 390 * 100 * METER + METER
    np.testing.assert_allclose(searched.box(*box), vectors[390:411].mean(0), atol=1e-5)
    with pytest.raises(ValueError, match=r"no geometry of .* lies within 10, 45, .*all lie within 11\.0"):
        searched.box(10, 45, 10.5, 46)


def test_a_geometry_in_a_box_in_part_is_named(tmp_path):
    path = write_table(tmp_path / "t.parquet", [shapely.box(11, 45, 11.1, 45.1)], np.eye(1, 4))
    with pytest.raises(ValueError, match="1 that lie in it in part do not count"):
        Searched(path).box(11.05, 45.05, 11.2, 45.2)


def test_lists_of_any_length_are_read(tmp_path):
    """As other writers make them: no fixed size, and a row without an embedding."""
    import pyarrow as pa

    from rsbackbones.embed.geoparquet import arrow_table

    frame = geopandas.GeoDataFrame(geometry=[shapely.Point(i, 0) for i in range(3)], crs="EPSG:4326")
    vectors = pa.array([None, [1.0, 2.0], [2.0, 1.0]], pa.list_(pa.float32()))
    pq.write_table(arrow_table(frame).append_column("embedding", vectors), tmp_path / "t.parquet")
    hits = Searched(tmp_path / "t.parquet", center="none").search([np.array([1.0, 2.0])], k=5)
    assert hits.rows.tolist() == [1, 2]
    np.testing.assert_allclose(hits.similarity, [1, 0.8], atol=1e-6)


def test_an_index_of_parts_is_of_these_parts(plots, tmp_path):
    path, vectors = plots
    folder = shutil.copytree(path, tmp_path / "p.parquet")
    indexed = Searched(folder, index=tmp_path / "p.ivf")
    exact = Searched(folder)
    found, wanted = (one.search([vectors[1100]], k=1198) for one in (indexed, exact))
    assert set(found.rows) == set(wanted.rows) == set(range(1200)) - {5, 700}
    np.testing.assert_allclose(
        found.similarity[np.argsort(found.rows)], wanted.similarity[np.argsort(wanted.rows)], atol=0.03
    )
    part = pq.read_table(folder / "part-1.parquet")
    other = part.take(np.arange(len(part))[::-1])
    pq.write_table(other, folder / "part-1.parquet", row_group_size=100)
    with pytest.raises(ValueError, match=r"an index of other vectors .*digest"):
        Searched(folder, index=tmp_path / "p.ivf")
