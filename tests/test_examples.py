"""What the longer examples print is right; test_docs.py runs the others."""

import json
import os
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import rsbackbones as rsb
from rsbackbones.data.aligned_series import AlignedSeries, Alignment
from rsbackbones.data.series_folder import SeriesFolder
from rsbackbones.data.simulator import simulate_scene
from tests import forked

EXAMPLES = Path(__file__).parent.parent / "examples"
RUN_HERE = (
    "detection_torchvision.py",
    "embed_folder.py",
    "land_cover_map.py",
    "large_area.py",
    "linear_probe.py",
    "own_objective.py",
    "segmentation_smp.py",
    "write_series.py",
    "xarray_features.py",
)


def run(name, *arguments, cwd):
    result = forked.run([sys.executable, EXAMPLES / name, *arguments], cwd=cwd)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_map_is_better_than_the_most_frequent_class(tmp_path):
    said = run("land_cover_map.py", cwd=tmp_path)
    right, frequent = map(float, re.findall(r"([\d.]+)%", said))
    assert right > frequent + 10
    assert (tmp_path / "land_cover" / "map.png").stat().st_size > 10_000


def test_water_finds_water_and_shards_show_no_seams(tmp_path):
    pytest.importorskip("faiss")
    said = run("large_area.py", "--side", "448", cwd=tmp_path)
    assert "in 4 shards" in said
    assert float(re.search(r"any neighbors: ([\d.]+)", said)[1]) == pytest.approx(1, abs=0.3)
    assert float(re.search(r"ROC curve ([\d.]+)", said)[1]) > 0.9
    made = {path.name for path in (tmp_path / "large_area").iterdir()}
    assert {"shards.png", "similarity.png", "hits.parquet", "hits.html"} <= made


def test_the_probe_knows_more_than_the_most_frequent_class(tmp_path):
    probe, chance = map(float, re.findall(r"([\d.]+)%", run("linear_probe.py", cwd=tmp_path)))
    assert probe > chance + 5


def test_the_decoder_learns(tmp_path):
    pytest.importorskip("segmentation_models_pytorch")
    printed = run("segmentation_smp.py", cwd=tmp_path)
    before, after = map(float, re.findall(r"(0\.\d+) (?:before|after)", printed))
    assert after > before + 0.05


def test_a_detector_trains_the_exported_backbone(tmp_path):
    """Five steps of Faster R-CNN with a feature pyramid: gradients reach the first layer of the encoder."""
    pytest.importorskip("torchvision")
    exported = rsb.create_model("fomu_resnet_tiny")
    file = rsb.save_model(exported, tmp_path / "weights.safetensors")
    example = runpy.run_path(str(EXAMPLES / "detection_torchvision.py"))
    net = example["detector"]("fomu_resnet_tiny", file, num_classes=2).train()
    before = {name: p.detach().clone() for name, p in net.backbone.encoder.backbone.named_parameters()}
    assert all(torch.equal(p, before[name]) for name, p in exported.named_parameters())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.005)
    torch.manual_seed(0)
    for _ in range(5):
        loss = sum(net(*example["squares"](2)).values())
        assert loss.isfinite()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trained = dict(net.backbone.encoder.backbone.named_parameters())
    assert not [name for name, p in trained.items() if torch.equal(p, before[name])]


def test_embeddings_of_a_folder_are_those_of_the_model(tmp_path):
    printed = run("embed_folder.py", "--output", tmp_path / "e.npz", cwd=tmp_path)
    assert len(printed.splitlines()) == 6
    table = np.load(tmp_path / "e.npz")
    model = rsb.create_model("croma_vit_tiny", pretrained=True)
    scene = simulate_scene(96, 96, seed=1, day_of_year=100)  # the third patch
    preprocess = rsb.create_preprocess(model, bands={"s2": scene.s2_bands})
    with torch.inference_mode():
        expected = model(preprocess({"s2": scene.s2[None], "s1": scene.s1[None]}))[0].numpy()
    (row,) = [i for i, path in enumerate(table["paths"]) if "patch_2" in path]
    np.testing.assert_allclose(table["joint"][row], expected, atol=1e-5)


def test_a_folder_of_ones_own(tmp_path, monkeypatch, capsys):
    example = runpy.run_path(str(EXAMPLES / "embed_folder.py"))
    example["simulate"](tmp_path / "patches", count=2)
    arguments = ["embed_folder.py", tmp_path / "patches", "--output", tmp_path / "e.npz"]
    monkeypatch.setattr(sys, "argv", [str(argument) for argument in arguments])
    example["main"]()
    assert capsys.readouterr().out == "patch_0: most like patch_1\npatch_1: most like patch_0\n"


def test_a_method_of_ones_own_trains_on_a_folder(tmp_path, monkeypatch):
    pytest.importorskip("pydantic")
    rasterio = pytest.importorskip("rasterio")
    (tmp_path / "data" / "s2").mkdir(parents=True)
    noise = np.random.default_rng(0).normal(size=(16, 4, 4, 4)).repeat(10, axis=2).repeat(10, axis=3)
    for i, pixels in enumerate((2000 + 500 * noise).clip(1, 9999).astype(np.uint16)):
        with rasterio.open(
            tmp_path / "data" / "s2" / f"{i:02}.tif", "w", driver="GTiff", count=4, height=40, width=40,
            dtype="uint16", crs="EPSG:32632", transform=rasterio.Affine(10, 0, 500000, 0, -10, 5e6),
        ) as file:  # fmt: skip
            file.write(pixels)
            file.descriptions = ("B02", "B03", "B04", "B08")
    printed = run("own_objective.py", tmp_path / "data", cwd=tmp_path)
    assert "status='finished', step=8, total_steps=8" in printed
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert min(losses[-2:]) < losses[0]
    weights = tmp_path / "weights" / "croma_vit_tiny.simclr.safetensors"
    model = rsb.create_model("croma_vit_tiny", checkpoint=weights)
    fresh = rsb.create_model("croma_vit_tiny", modalities=("s2",), bands=model.bands)
    assert model.modalities == ("s2",)
    assert not torch.equal(model(torch.ones(1, 4, 32, 32)), fresh(torch.ones(1, 4, 32, 32)))
    # Its run says what to do where the method is not known.
    from rsbackbones.train.initialize import read_run

    with pytest.raises(ValueError, match=r"unknown method 'simclr'.*register_objective"):
        read_run(tmp_path / "run")


@pytest.fixture
def image():
    xr = pytest.importorskip("xarray")
    scene = simulate_scene(64, 80, seed=3)
    coordinates = {"band": list(scene.s2_bands), "y": 640.0 - 10 * np.arange(64), "x": 10.0 * np.arange(80)}
    return xr.DataArray(scene.s2, dims=("band", "y", "x"), coords=coordinates)


def test_the_example_of_xarray_runs(capsys):
    pytest.importorskip("xarray")
    runpy.run_path(str(EXAMPLES / "xarray_features.py"), run_name="__main__")
    assert "(feature: 96, y: 15, x: 20)" in capsys.readouterr().out


def test_xarray_comes_back_with_its_place(image):
    features = runpy.run_path(str(EXAMPLES / "xarray_features.py"))["features"]
    model = rsb.create_model("croma_vit_tiny", pretrained=True, modalities=("s2",))
    found = features(model, image)
    assert found.dims == ("feature", "y", "x")
    assert found.shape == (96, 8, 10)
    np.testing.assert_allclose(found["x"], 35 + 80 * np.arange(10))
    np.testing.assert_allclose(found["y"], 605 - 80 * np.arange(8))
    own = image.sel(band=list(model.bands["s2"]))
    with torch.inference_mode():
        maps = model.forward_features(rsb.create_preprocess(model)(own.values[None])).maps()[0]
    np.testing.assert_allclose(found.values, maps.numpy(), atol=1e-6)


def test_xarray_bands_and_dimensions_in_any_order(image):
    xr = pytest.importorskip("xarray")
    features = runpy.run_path(str(EXAMPLES / "xarray_features.py"))["features"]
    model = rsb.create_model("croma_vit_tiny", pretrained=True, modalities=("s2",))
    expected = features(model, image)
    names = ["B8A", "B08", "B04", "B03", "B02"]
    shuffled = image.sel(band=names).transpose("y", "x", "band")
    assert features(model, shuffled).equals(expected)
    assert features(model, image.to_dataset("band")).equals(expected)
    classes = image.isel(band=[0]).assign_coords(band=["scl"])  # of no sensor: among the bands, and left out
    assert features(model, xr.concat([classes, image], "band")).equals(expected)
    with pytest.raises(ValueError, match="B02"):
        features(model, image.sel(band=names[:-1]))


@pytest.mark.skipif("RSB_DATA" not in os.environ, reason="RSB_DATA names a folder of samples; it is not set")
def test_real_series_are_written(tmp_path):
    said = run("write_series.py", os.environ["RSB_DATA"], "--output", str(tmp_path), cwd=tmp_path)
    assert [int(count) for count in re.findall(r"(\d+) locations", said)] == [1, 7, 16, 1]
    tiles = SeriesFolder(tmp_path / "tiles")
    assert {split: len(names) for split, names in tiles.set.splits.items()} == {
        "train": 8,
        "val": 4,
        "test": 4,
    }
    whole = AlignedSeries(tiles, ("s2", "s1"), Alignment())
    assert whole.frames == 40
    assert "images are 4.7 days apart on average, at most 22" in whole.notes[0]  # the radar stays
    plot = SeriesFolder(tmp_path / "treesatai").read(0)
    assert {m: x.shape for m, x in plot.images.items()} == {"s2": (146, 10, 6, 6), "s1": (146, 2, 6, 6)}
