"""Tables of embeddings, read by libraries that know nothing of this package."""

import json

import numpy as np
import pytest
import rasterio
import torch

import rsbackbones as rsb
from rsbackbones.embed import embed_patches
from tests.data.test_rasters import S2, write_tif
from tests.embed.test_embed import QUIET, optical, place, plain_pooled

geopandas = pytest.importorskip("geopandas")


def test_geopandas_reads_patches_with_their_outlines_and_dates(tmp_path):
    torch.manual_seed(0)
    model = rsb.create_model("croma_vit_tiny", modalities=("s2",))
    names = ["S2A_MSIL2A_20240607T101031_N0510_R022_T32UPU.tif", "undated.tif", "nowhere.tif"]
    images = [optical(32, 48, seed=i) for i in range(3)]
    paths = [
        write_tif(tmp_path / name, image, S2, transform=place(i), **({} if i < 2 else {"crs": None}))
        for i, (name, image) in enumerate(zip(names, images, strict=True))
    ]
    write_tif(paths[2], images[2], S2, transform=rasterio.Affine.identity(), crs=None)
    embed_patches(model, paths, tmp_path / "rows.parquet", **QUIET)
    table = geopandas.read_parquet(tmp_path / "rows.parquet")
    assert table.crs == "EPSG:4326"
    assert table["id"].tolist() == [name.removesuffix(".tif") for name in names]
    assert table["source"].tolist() == [str(p) for p in paths]
    assert str(table["datetime"][0]) == "2024-06-07 10:10:31"
    assert table["datetime"].isna().tolist() == [False, True, True]
    assert table.geometry.isna().tolist() == [False, False, True]
    for i in range(2):
        with rasterio.open(paths[i]) as raster:
            outline = table.geometry[[i]].to_crs(raster.crs)
            assert outline.total_bounds == pytest.approx(tuple(raster.bounds), abs=0.01)
    for name in ("embedding", "embedding_s2"):
        found = np.stack(table[name].to_list())
        assert found.dtype == np.float32
        expected = np.stack([plain_pooled(model, {"s2": image})["s2"] for image in images])
        np.testing.assert_allclose(found, expected, atol=1e-5)
    # The column of boxes: a reader takes those rows alone that may lie in one.
    west, south, east, north = table.geometry[1].bounds
    near = geopandas.read_parquet(tmp_path / "rows.parquet", bbox=(west, south, east, north))
    assert near["id"].tolist() == ["undated"]
    import pyarrow.parquet as pq

    geo = json.loads(pq.read_schema(tmp_path / "rows.parquet").metadata[b"geo"])
    assert geo["version"] == "1.1.0"
    assert geo["columns"]["geometry"]["covering"]["bbox"]["xmin"] == ["bbox", "xmin"]
