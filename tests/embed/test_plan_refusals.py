"""What plan() refuses before a file is written; and a refused job leaves nothing in the way."""

import numpy as np
import pytest
import rasterio
import torch

import rsbackbones as rsb
from tests.data.test_rasters import GRID, S1, S2, write_tif
from tests.embed.test_embed import optical, radar
from tests.embed.test_job import QUIET

xarray = pytest.importorskip("xarray")
pytest.importorskip("obstore")
SIDE = 64
OPTIONS = {"window": 32, "overlap": 0, "shard": 32}


@pytest.fixture(scope="module")
def both():
    torch.manual_seed(0)
    return rsb.create_model("croma_vit_tiny", overrides={"depth": 2})


@pytest.fixture(scope="module")
def s2(both):
    torch.manual_seed(0)
    return rsb.create_model("croma_vit_tiny", modalities=("s2",), overrides={"depth": 2})


def test_what_pixels_need_not_tell_is_refused_by_plan(both, s2, tmp_path):
    scene = write_tif(tmp_path / "s2.tif", optical(SIDE, SIDE), S2)
    few = write_tif(tmp_path / "few.tif", optical(SIDE, SIDE)[:4], S2[:4])
    east = GRID @ rasterio.Affine.translation(SIDE, 0)
    tile = write_tif(tmp_path / "radar.tif", radar(SIDE, SIDE), S1, transform=east)
    array = xarray.DataArray(
        optical(SIDE, SIDE)[:4], dims=("band", "y", "x"),
        coords={"band": list(S2[:4]), "y": 5e6 - 10 * np.arange(SIDE), "x": 5e5 + 10 * np.arange(SIDE)},
    ).odc.assign_crs("EPSG:32633")  # fmt: skip
    before = set(tmp_path.iterdir())
    for model, source, options, text in [
        (both, scene, {}, r"no raster holds bands of s1.*modalities="),
        (both, [scene, tile], {}, r"no raster holds bands of s1"),
        (s2, few, {}, "B05"),
        (s2, array, {}, "B05"),
        (s2, scene, {"units": {"s2": "decibel"}}, "decibel"),
        (s2, scene, {"units": {"s1": "db"}}, "s1"),
        (s2, scene, {"mask": {"SCL": (8,)}}, "SCL"),
    ]:
        with pytest.raises(ValueError, match=text):
            rsb.embed.plan(model, source, tmp_path / "e.zarr", **(OPTIONS | options))
    assert set(tmp_path.iterdir()) == before


def test_a_job_whose_sample_is_refused_is_not_in_the_way(s2, tmp_path):
    output = tmp_path / "e.zarr"
    empty = write_tif(tmp_path / "empty.tif", np.zeros((12, SIDE, SIDE), np.uint16), S2, nodata=0)
    scene = write_tif(tmp_path / "s2.tif", optical(SIDE, SIDE), S2, nodata=0)
    with pytest.raises(ValueError, match="no pixel has data in all bands"):
        rsb.embed.run(rsb.embed.plan(s2, empty, output, **OPTIONS), **QUIET)
    rsb.embed.run(rsb.embed.plan(s2, scene, output, **OPTIONS), **QUIET)
    assert np.isfinite(rsb.embed.open(output)["embeddings"].values).all()
