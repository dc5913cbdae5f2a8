"""Colors of feature maps: one basis for all dates of a call, or that of another map."""

import numpy as np
import pytest
import rasterio
import torch

import rsbackbones as rsb
from rsbackbones.cli import main
from rsbackbones.embed import embed_scene, principal_colors
from rsbackbones.embed.preview import ColorBasis
from tests.data.test_rasters import write_tif

BANDS = ("B02", "B03", "B04", "B08")


def maps(seed=0):
    return np.random.default_rng(seed).normal(size=(20, 24, 8)).astype(np.float32) * np.arange(1, 9)


def test_dates_of_one_call_have_one_basis():
    first, second = maps(0), maps(1) + 3
    series = np.stack([first, second, first])
    colors = principal_colors(series)
    assert colors.shape == (3, 4, 20, 24)
    np.testing.assert_array_equal(colors[0], colors[2])
    # Slowly: one table of all pixels, its principal components by an SVD.
    table = series.reshape(-1, 8).astype(np.float64)
    _, _, axes = np.linalg.svd(table - table.mean(0), full_matrices=False)
    axes = axes[:3].T
    axes *= np.sign(axes[np.abs(axes).argmax(0), range(3)])
    values = (table - table.mean(0)) @ axes
    low, high = np.percentile(values, (2, 98), axis=0)
    expected = (np.clip((values - low) / (high - low), 0, 1) * 255).reshape(3, 20, 24, 3)
    assert np.abs(np.moveaxis(colors[:, :3], 1, -1) - expected).max() <= 1.01
    # Apart, the same features would have other colors.
    assert (principal_colors(second) != colors[1]).mean() > 0.3
    np.testing.assert_array_equal(principal_colors(second, ColorBasis.of(series)), colors[1])
    with pytest.raises(ValueError, match="of 8 features, and these are 5"):
        principal_colors(second[..., :5], ColorBasis.of(series))


def test_two_dates_of_a_scene(tmp_path, capsys):
    torch.manual_seed(0)
    model = rsb.create_model("croma_vit_tiny", modalities=["s2"], bands={"s2": BANDS})
    dates = []
    for date in range(2):
        values = np.random.default_rng(date).integers(1 + 900 * date, 4000, (4, 64, 64)).astype(np.uint16)
        dates.append(write_tif(tmp_path / f"in{date}.tif", values, BANDS))
    options = {"window": 32, "progress": False}
    first, second = tmp_path / "a.tif", tmp_path / "b.tif"
    embed_scene(model, [dates[0]], first, **options)
    embed_scene(model, [dates[1]], second, **options, colors_from=first)
    embed_scene(model, [dates[1]], tmp_path / "alone.tif", **options)
    with rasterio.open(first) as one, rasterio.open(second) as two:
        features = [np.moveaxis(file.read(), 0, -1) for file in (one, two)]
    basis = ColorBasis.of(features[0])
    pictures = {}
    for name in ("a", "b", "alone"):
        with rasterio.open(tmp_path / f"{name}.png") as file:
            factor = file.height // 8
            pictures[name] = file.read()[:, ::factor, ::factor]
    for name, held in (("a", features[0]), ("b", features[1])):
        expected = principal_colors(held, basis)
        assert np.abs(pictures[name].astype(int) - expected).max() <= 1
    assert (pictures["alone"] != pictures["b"]).mean() > 0.2

    other = rsb.create_model("croma_vit_tiny", modalities=["s2"], bands={"s2": BANDS}, overrides={"dim": 48})
    with pytest.raises(ValueError, match="same model"):
        embed_scene(other, [dates[1]], tmp_path / "c.tif", **options, colors_from=first)
    assert not (tmp_path / "c.tif").exists()

    command = ["embed", str(dates[0]), "--model", "croma_vit_tiny.samples", "--allow-dropped-bands",
               "--no-progress", "--output"]  # fmt: skip
    assert main([*command, str(tmp_path / "d.tif")]) == 0
    assert "--colors-from" in capsys.readouterr().err  # it says that colors are of this map alone
    assert main([*command, str(tmp_path / "e.tif"), "--colors-from", str(tmp_path / "d.tif")]) == 0
    assert "--colors-from" not in capsys.readouterr().err
    assert main([*command, str(tmp_path / "e.npz"), "--colors-from", str(tmp_path / "d.tif")]) == 2
