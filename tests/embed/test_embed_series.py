"""Feature maps of locations of a folder of series."""

import json

import numpy as np
import pytest
import rasterio
import torch

import rsbackbones as rsb
from rsbackbones.cli import main
from rsbackbones.data.series_folder import SeriesFolder
from rsbackbones.embed import embed_series
from rsbackbones.embed.series import is_location
from tests.data.test_series_folder import BANDS, DATES, series, store

SMALL = {"widths": (4, 8, 8)}


def small_model(**options):
    torch.manual_seed(0)
    return rsb.create_model("s4_unet3d_tiny", overrides=SMALL, bands=BANDS, **options)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("stream", ["s2", "s1"])
def test_the_map_is_the_models_and_lies_on_the_location(tmp_path, stream):
    images = series()
    images["s1"][1, 0, 0, 0] = np.nan
    store(tmp_path / "set", images=images)
    model = small_model().eval()
    output = embed_series(model, tmp_path / "set/a", tmp_path / "map.tif", stream=stream)
    sample = SeriesFolder(tmp_path / "set").read(0)
    held = sample.valid.get(stream, np.ones(len(sample.images[stream]), bool))
    usable = rsb.create_preprocess(model, check=False)({stream: sample.images[stream][held]})[stream]
    with torch.no_grad():  # without the missing image
        expected = model.forward_features({stream: usable[None]}).maps(stream)[0]
    with rasterio.open(output) as raster:
        values, tags = raster.read(), raster.tags()
        assert raster.transform == rasterio.Affine(40, 0, 500000, 0, -40, 5600000)
        assert raster.crs == "EPSG:32631"
        assert raster.descriptions[0] == f"{stream}_0000"
    if stream == "s2":
        np.testing.assert_allclose(values, expected, atol=1e-5)
    assert values.shape == expected.shape
    assert tags["location"] == "a"
    assert sorted(set(DATES[stream])) == json.loads(tags["dates"].replace("'", '"'))[stream]
    assert output.with_suffix(".png").is_file()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_command(tmp_path, capsys):
    images = {m: x[..., :6, :6] for m, x in series().items()}
    plain = {"label": None, "classes": None, "ignore": (), "cloud": None, "crs": None, "transform": None}
    store(tmp_path / "set", images=images, **plain)
    assert is_location(tmp_path / "set/a")
    assert not is_location(tmp_path / "set")
    command = [
        "embed", str(tmp_path / "set/a"), "--model", "s4_unet3d_tiny", "--no-pretrained",
        "--overrides", "widths=[4,8,8]", "--allow-dropped-bands", "--output", str(tmp_path / "map.tif"),
    ]  # fmt: skip
    assert main(command) == 2
    assert "pad=True" in capsys.readouterr().err
    assert main(["embed", str(tmp_path / "set"), *command[2:]]) == 2
    assert "name one of its locations" in capsys.readouterr().err
    assert main([*command, "--pad", "--modalities", "s1"]) == 0
    with rasterio.open(tmp_path / "map.tif") as raster:
        assert raster.shape == (2, 2)
        assert raster.crs is None
    assert main([*command, "--window", "64"]) == 2
    assert "a series is encoded whole" in capsys.readouterr().err


def test_models_of_single_images_are_refused(tmp_path):
    store(tmp_path / "set")
    model = rsb.create_model("s4_unet2d", overrides=SMALL)
    with pytest.raises(ValueError, match="encodes single images"):
        embed_series(model, tmp_path / "set/a", tmp_path / "map.tif")
    with pytest.raises(ValueError, match="is no location"):
        embed_series(small_model(), tmp_path / "set", tmp_path / "map.tif")
