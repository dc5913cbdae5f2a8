"""A scene as a store of shards: its features, its layout, and that other libraries read it."""

import json
import warnings
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import rasterio
import torch

import rsbackbones as rsb
from rsbackbones.cli import main
from rsbackbones.embed.driver import JobError
from rsbackbones.embed.quantize import FILL
from tests.data.test_rasters import GRID, S1, S2, write_tif
from tests.embed.test_embed import optical, radar, read_map

xarray = pytest.importorskip("xarray")
pytest.importorskip("odc.geo.xr")  # registers .odc of arrays
pytest.importorskip("obstore")
zarr = pytest.importorskip("zarr")

SCHEMAS = Path(__file__).parent / "schemas"
SMALL = {"window": 64, "overlap": 16, "shard": 32}
QUIET = {"progress": False}
CRS = "EPSG:32633"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return rsb.create_model("croma_vit_tiny", modalities=("s2",), overrides={"depth": 2})


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A scene of 41 x 37 cells, with a hole."""
    data = optical(328, 296)
    data[:, 100:120, 40:50] = 0
    path = tmp_path_factory.mktemp("scene") / "scene.tif"
    return write_tif(path, data, S2, nodata=0), data


def run(model, source, output, **options):
    job = rsb.embed.plan(model, source, output, **(SMALL | options))
    rsb.embed.run(job, **QUIET)
    return job


def stored(output):
    """All stored values of a store, by zarr alone."""
    import zarr

    group = zarr.open_group(str(output), mode="r", use_consolidated=False)
    return {name: array[...] for name, array in group.arrays()}


def files(output):
    """The bytes of every file of a store."""
    return {
        str(p.relative_to(output)): p.read_bytes() for p in sorted(Path(output).rglob("*")) if p.is_file()
    }


def shards(output):
    return {name: data for name, data in files(output).items() if "/c/" in name}


def test_the_features_are_those_of_embed_scene(model, scene, tmp_path):
    windows = {"window": 64, "overlap": 16}
    expected = read_map(rsb.embed.embed_scene(model, scene[0], tmp_path / "map.tif", **windows, **QUIET))
    run(model, scene[0], tmp_path / "plain.zarr", quantize="none")
    found = np.moveaxis(rsb.embed.open(tmp_path / "plain.zarr")["embeddings"].values, 0, -1)
    # But for the batches, which end with a shard.
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
    assert np.isnan(found).any()
    job = run(model, scene[0], tmp_path / "e.zarr")
    found = np.moveaxis(rsb.embed.open(tmp_path / "e.zarr")["embeddings"].values, 0, -1)
    quantization = rsb.embed.open(tmp_path / "e.zarr").attrs["rsbackbones"]["quantization"]
    error = np.abs(found - expected) / np.float32(quantization["scale"])
    within = np.abs(expected - np.float32(quantization["offset"])) <= 127 * np.float32(quantization["scale"])
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    assert np.nanmax(error[within]) <= 0.51
    assert len(job.blocks) == 4


def test_the_size_of_a_shard_and_the_kind_of_source_change_nothing(model, scene, tmp_path):
    path, data = scene
    expected = None
    array = xarray.DataArray(
        data, dims=("band", "y", "x"), attrs={"_FillValue": 0},
        coords={"band": list(S2), "y": 5e6 - 10 * np.arange(328) - 5, "x": 5e5 + 10 * np.arange(296) + 5},
    ).odc.assign_crs(CRS)  # fmt: skip
    upside_down = array.isel(y=slice(None, None, -1))
    store = tmp_path / "pixels.zarr"
    array.to_dataset(name="reflectance").to_zarr(store, zarr_format=3, consolidated=False)
    tiles = [
        cut(data, rows, columns, tmp_path)
        for rows in ((0, 200), (180, 328))
        for columns in ((0, 160), (160, 296))
    ]
    sources = {"raster": path, "shard64": path, "array": upside_down, "zarr": store, "tiles": tiles}
    for name, source in sources.items():
        output = tmp_path / f"{name}.zarr"
        run(model, source, output, **({"shard": 64} if name == "shard64" else {}))
        found = stored(output)
        expected = found if expected is None else expected
        for key in ("embeddings", "band_scale", "band_offset", "x", "y"):
            np.testing.assert_array_equal(found[key], expected[key], err_msg=f"{name} {key}")
    assert (expected["embeddings"] == FILL).any()
    zarr.open_group(store)["reflectance"][:, :8, :8] = 1
    with pytest.raises(JobError, match=r"other inputs or settings \(source\)"):
        run(model, store, tmp_path / "zarr.zarr")


def cut(data, rows, columns, folder):
    part = data[:, rows[0] : rows[1], columns[0] : columns[1]]
    transform = GRID @ rasterio.Affine.translation(columns[0], rows[0])
    return write_tif(folder / f"tile_{rows[0]}_{columns[0]}.tif", part, S2, nodata=0, transform=transform)


def test_two_sensors_and_a_mask(tmp_path):
    torch.manual_seed(0)
    both = rsb.create_model("croma_vit_tiny", overrides={"depth": 2})
    scl = np.full((1, 96, 96), 4, np.uint16)
    scl[:, 16:40, 24:48] = 9
    sources = [
        write_tif(tmp_path / "s2.tif", np.concatenate([optical(96, 96), scl]), (*S2, "SCL")),
        write_tif(tmp_path / "s1.tif", radar(96, 96), S1),
    ]
    options = {"window": 32, "overlap": 16, "mask": {"SCL": (3, 8, 9)}}
    expected = read_map(rsb.embed.embed_scene(both, sources, tmp_path / "map.tif", **options, **QUIET))
    run(both, sources, tmp_path / "e.zarr", quantize="none", **options)
    found = np.moveaxis(rsb.embed.open(tmp_path / "e.zarr")["embeddings"].values, 0, -1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
    assert np.isnan(found[2:5, 3:6]).all()


@pytest.mark.parametrize("rule", ["per-band", "per-vector", "alphaearth"])
def test_what_the_store_states_decodes_it(model, scene, tmp_path, rule):
    output = tmp_path / "e.zarr"
    run(model, scene[0], output, quantize=rule)
    held = stored(output)
    q = held["embeddings"].astype(np.float32)
    q[held["embeddings"] == FILL] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = xarray.open_zarr(output, consolidated=False)  # without our package
        coordinates = plain["x"].values, plain["y"].values
    np.testing.assert_array_equal(plain["embeddings"].values, q)
    with rasterio.open(scene[0]) as source:
        assert coordinates[0][0] == source.bounds.left + 40
        assert coordinates[1][0] == source.bounds.top - 40
        assert plain["embeddings"].odc.geobox.extent.boundingbox.bbox == tuple(source.bounds)
    if rule == "per-band":
        expected = q * held["band_scale"][:, None, None] + held["band_offset"][:, None, None]
    else:
        expected = q * held["scales"] if rule == "per-vector" else np.sign(q) * (q / 127.5) ** 2
    found = rsb.embed.open(output)["embeddings"].values
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    raw = rsb.embed.open(output, decode=False)["embeddings"]
    np.testing.assert_array_equal(raw.values, held["embeddings"])


def test_the_layout_and_the_attributes_are_those_of_the_conventions(model, scene, tmp_path):
    output = tmp_path / "e.zarr"
    job = run(model, scene[0], output)
    group = json.loads((output / "zarr.json").read_text())
    for name in ("geoemb", "proj", "spatial"):
        schema = json.loads((SCHEMAS / f"{name}.json").read_text())
        jsonschema.validators.validator_for(schema)(schema).validate(group)
    assert group["attributes"]["geoemb:gsd"] == 80
    assert group["attributes"]["spatial:bbox"] == [500000, 5000000 - 3280, 500000 + 2960, 5000000]
    assert (
        group["attributes"]["rsbackbones"]["model"]["parameters_sha256"]
        == job.facts["model"]["parameters_sha256"]
    )
    array = json.loads((output / "embeddings" / "zarr.json").read_text())
    sharding = array["codecs"][0]
    assert array["data_type"] == "int8"
    assert array["fill_value"] == FILL
    assert array["dimension_names"] == ["band", "y", "x"]
    assert array["chunk_grid"]["configuration"]["chunk_shape"] == [96, 32, 32]
    assert sharding["name"] == "sharding_indexed"
    assert sharding["configuration"]["codecs"][-1]["name"] == "zstd"
    assert len(shards(output)) == len(job.blocks) + 2 + 2  # coordinates, scale and offset


def test_a_grid_of_degrees_has_coordinates_too(model, tmp_path):
    grid = rasterio.Affine(1e-4, 0, 10, 0, -1e-4, 40)
    run(model, write_tif(tmp_path / "s.tif", optical(64, 96), S2, crs="EPSG:4326", transform=grid),
        tmp_path / "e.zarr")  # fmt: skip
    found = rsb.embed.open(tmp_path / "e.zarr")["embeddings"]
    np.testing.assert_allclose(found["x"], 10 + 8e-4 * (np.arange(12) + 0.5))
    np.testing.assert_allclose(found["y"], 40 - 8e-4 * (np.arange(8) + 0.5))


def test_a_shard_without_data_is_absent_and_no_window_of_it_is_encoded(model, tmp_path):
    data = optical(256, 512)
    data[:, :, 200:] = 0
    source = write_tif(tmp_path / "s.tif", data, S2, nodata=0)
    run(model, source, tmp_path / "e.zarr")
    assert (tmp_path / "e.zarr/embeddings/c/0/0/0").exists()
    assert not (tmp_path / "e.zarr/embeddings/c/0/0/1").exists()
    record = json.loads((tmp_path / "e.zarr.job/done/00000001.json").read_text())
    assert (record["cells_with_data"], record["windows"]) == (0, 0)
    values = rsb.embed.open(tmp_path / "e.zarr")["embeddings"].values
    assert np.isnan(values[:, :, 25:]).all()
    assert np.isfinite(values[:, :, :25]).all()


def test_planning_reads_no_pixel_and_names_what_is_wrong(model, scene, tmp_path, monkeypatch):
    path, data = scene
    with monkeypatch.context() as patch:
        patch.setattr("rasterio.io.DatasetReader.read", lambda *a, **k: pytest.fail("a pixel was read"))
        job = rsb.embed.plan(model, path, tmp_path / "e.zarr", **SMALL)
    assert not (tmp_path / "e.zarr").exists()
    assert set(job.memory_bound) == {"model", "pixels", "features", "gdal_cache"}
    two = {name: (("band", "y", "x"), np.zeros((1, 2, 2), np.uint16)) for name in "ab"}
    xarray.Dataset(two).to_zarr(tmp_path / "two.zarr")
    rotated = write_tif(tmp_path / "r.tif", data, S2, transform=rasterio.Affine(8, -6, 5e5, -6, -8, 5e6))
    for source, options, text in [
        (rotated, {}, "north up"),
        (path, {"shard": 40}, "multiple of 32"),
        (path, {"quantize": "int4"}, "per-band"),
        (path, {"dtype": "int8"}, "float32, bfloat16"),
        (path, {"variable": "x"}, "Zarr"),
        (tmp_path / "none.zarr", {}, "no Zarr group at"),
        (tmp_path / "two.zarr", {}, "--variable a"),
        (3, {}, "source must be"),
    ]:
        with pytest.raises(ValueError, match=text):
            rsb.embed.plan(model, source, tmp_path / "e.zarr", **(SMALL | options))
    with pytest.raises(ValueError, match=r"\.zarr"):
        rsb.embed.plan(model, path, tmp_path / "e.nc")
    elsewhere = write_tif(
        tmp_path / "t.tif", data, S2, transform=GRID @ rasterio.Affine.translation(300.5, 0)
    )
    with pytest.raises(ValueError, match="--resample"):
        rsb.embed.plan(model, [path, elsewhere], tmp_path / "e.zarr")
    array = xarray.DataArray(data, dims=("band", "y", "x"), coords={"y": range(328), "x": range(296)})
    with pytest.raises(ValueError, match="CRS"):
        rsb.embed.plan(model, array, tmp_path / "e.zarr")
    assert not (tmp_path / "none.zarr").exists()


def test_the_cog_is_valid_and_other_readers_decode_it(model, scene, tmp_path):
    from rio_cogeo import cog_validate
    from torchgeo.datasets import RasterDataset

    run(model, scene[0], tmp_path / "e.zarr")
    expected = rsb.embed.open(tmp_path / "e.zarr")["embeddings"].values
    cog = tmp_path / "e.tif"
    run(model, scene[0], cog)
    assert cog_validate(cog, strict=True, quiet=True)[0]
    with rasterio.open(cog) as raster, rasterio.open(scene[0]) as source:
        assert set(raster.dtypes) == {"int8"}
        assert raster.nodata == FILL
        assert raster.crs == source.crs
        assert tuple(raster.bounds) == pytest.approx(tuple(source.bounds))
        decoded = raster.read(masked=True).astype(np.float32)
        decoded = (
            decoded * np.float32(raster.scales)[:, None, None] + np.float32(raster.offsets)[:, None, None]
        )
        assert json.loads(raster.tags()["rsbackbones"])["model"]["architecture"] == "croma_vit_tiny"
    np.testing.assert_allclose(decoded.filled(np.nan), expected, rtol=1e-6)
    assert not (tmp_path / "e.tif.job/embeddings.zarr/embeddings/zarr.json").exists()

    class Features(RasterDataset):
        filename_glob = "e.tif"

    assert Features(tmp_path)[Features(tmp_path).bounds]["image"].shape[0] == 96
    with pytest.raises(ValueError, match="per-band, none"):
        rsb.embed.plan(model, scene[0], tmp_path / "f.tif", quantize="alphaearth")


def test_overviews_are_means_of_features(model, tmp_path):
    data = np.tile(optical(280, 128), (1, 8, 1))
    run(model, write_tif(tmp_path / "s.tif", data, S2), tmp_path / "e.tif", overlap=0, shard=96)
    with rasterio.open(tmp_path / "e.tif") as raster:
        assert raster.overviews(1) == [2]
        full = raster.read(3).astype(np.float32)
    with rasterio.open(tmp_path / "e.tif", overview_level=0) as raster:
        half = raster.read(3)
    means = full.reshape(140, 2, 8, 2).mean((1, 3))
    assert np.abs(half - means).max() <= 0.51


def test_the_stac_beside_it_is_valid(model, scene, tmp_path):
    import pystac
    from pystac.validation import JsonSchemaSTACValidator

    run(model, scene[0], tmp_path / "e.zarr")
    folder = tmp_path / "e.zarr.stac"
    collection, item = (json.loads((folder / name).read_text()) for name in ("collection.json", "e.json"))
    schema = json.loads((SCHEMAS / "embeddings.json").read_text())
    for stated in (collection, item):
        without = {**stated, "stac_extensions": []}
        pystac.read_dict(without).validate(validator=JsonSchemaSTACValidator())
        jsonschema.Draft7Validator(schema).validate(stated)
    assert (collection["emb:type"], collection["emb:dimensions"], collection["data_type"]) == (
        "pixel",
        96,
        "int8",
    )
    assert {"emb:model", "emb:source-data"} <= {link["rel"] for link in collection["links"]}
    assert len(item["properties"]["emb:quantization"]["scale"]) == 96
    assert [link["href"] for link in item["links"] if link["rel"] == "derived_from"] == [scene[0].as_uri()]
    assert (folder / item["assets"]["embeddings"]["href"]).resolve() == tmp_path / "e.zarr"


@pytest.mark.parametrize(
    "option", ["--shard=64", "--cache=64", "--workers=2", "--status", "--dates=2024-06-01/"]
)
def test_options_of_stores_are_refused_for_a_map(option, scene, tmp_path, capsys):
    command = ["embed", str(scene[0]), "--model", "croma_vit_tiny", "--output", str(tmp_path / "map.tif")]
    assert main([*command, option]) == 2
    assert option.partition("=")[0] in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
