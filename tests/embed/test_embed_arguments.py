"""Models and paths in the forms that users have: strings, one file, wrappers, half precision."""

import numpy as np
import pytest
import torch

import rsbackbones as rsb

rasterio = pytest.importorskip("rasterio")

from rsbackbones.data.simulator import simulate_scene, write_scene  # noqa: E402
from rsbackbones.embed import embed_patches, embed_scene  # noqa: E402


@pytest.fixture(scope="module")
def raster(tmp_path_factory):
    return write_scene(simulate_scene(64, 64), str(tmp_path_factory.mktemp("scene")))[0]


def model(**arguments):
    return rsb.create_model("croma_vit_tiny", pretrained=True, modalities=("s2",), **arguments)


def read(path):
    with rasterio.open(path) as file:
        return file.read()


def test_strings_and_a_single_file_are_taken(raster, tmp_path):
    expected = read(embed_scene(model(), [raster], tmp_path / "a.tif", progress=False))
    for given in (str(raster), raster, [str(raster)]):
        assert np.array_equal(
            read(embed_scene(model(), given, f"{tmp_path}/b.tif", progress=False)), expected
        )
        assert embed_patches(model(), given, f"{tmp_path}/b.npz", progress=False) == {}
        with np.load(tmp_path / "b.npz") as table:
            assert table["paths"].tolist() == [str(raster)]


def test_a_model_of_feature_maps_is_taken(raster, tmp_path):
    expected = read(embed_scene(model(), raster, tmp_path / "a.tif", progress=False))
    wrapped = torch.compile(model(features_only=True))
    found = read(embed_scene(wrapped, raster, tmp_path / "b.tif", progress=False))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_float32_near_the_full_one(raster, tmp_path, dtype):
    files = {}
    for kind in (torch.float32, dtype):
        net = model().to(kind)
        maps = read(embed_scene(net, raster, tmp_path / f"{kind}.tif", progress=False))
        embed_patches(net, raster, tmp_path / f"{kind}.npz", progress=False)
        with np.load(tmp_path / f"{kind}.npz") as table:
            files[kind] = (maps, table["s2"])
    for full, half in zip(files[torch.float32], files[dtype], strict=True):
        assert half.dtype == np.float32
        assert not np.array_equal(half, full)
        assert np.abs(half - full).max() < (0.2 if dtype == torch.bfloat16 else 0.02) * full.std()
