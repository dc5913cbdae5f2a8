"""Where models run: one rule for ``device=`` and ``--device``, and an error for what is not there."""

import pytest
import torch

from rsbackbones.cli import main
from rsbackbones.device import choose_device
from rsbackbones.embed import embed_patches, embed_scene
from tests.data.test_rasters import S2, write_tif
from tests.embed.test_embed import optical, read_map

GPUS, MPS = torch.cuda.device_count(), torch.backends.mps.is_available()
needs_gpu = pytest.mark.skipif(not GPUS, reason="needs a CUDA GPU")


def test_auto_takes_what_there_is():
    expected = "cuda" if GPUS else "mps" if MPS else "cpu"
    assert choose_device() == choose_device("auto") == torch.device(expected)
    assert choose_device("cpu") == choose_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu:0", "", "AUTO", "meta"])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match=r"expected auto, cuda, cuda:1, mps or cpu"):
        choose_device(name)


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=rf"no device cuda:{GPUS} .* finds {GPUS} CUDA GPUs"):
        choose_device(f"cuda:{GPUS}")
    if not MPS:
        with pytest.raises(ValueError, match="no device mps"):
            choose_device("mps")


def test_python_and_the_commands_take_the_same_names(tiny, tmp_path, capsys):
    source = write_tif(tmp_path / "scene.tif", optical(32, 32), S2)
    for call in (
        lambda: embed_scene(tiny, [source], tmp_path / "map.tif", device="gpu"),
        lambda: embed_patches(tiny, [source], tmp_path / "rows.npz", device="gpu"),
    ):
        with pytest.raises(ValueError, match="unknown device 'gpu'"):
            call()
    commands = {
        "embed": [str(source), "--output", str(tmp_path / "map.tif"), "--model", "croma_vit_tiny"],
        "eval": ["knn", "--data", str(tmp_path), "--output", str(tmp_path), "--model", "croma_vit_tiny"],
        "verify": ["croma_vit_tiny"],
    }
    for name, arguments in commands.items():
        assert main([name, *arguments, "--device", "gpu"]) == 2
        assert f"rsbackbones {name}: unknown device 'gpu'" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["scene.tif"]


@needs_gpu
def test_features_of_a_gpu_are_those_of_the_cpu(tmp_path, capsys):
    source = write_tif(tmp_path / "scene.tif", optical(64, 64), S2)
    maps = {}
    for device in ("cpu", "auto"):
        output = tmp_path / f"{device}.tif"
        arguments = [str(source), "--model", "croma_vit_tiny", "--output", str(output), "--device", device]
        assert main(["embed", *arguments, "--no-pretrained", "--no-progress"]) == 0
        assert ("device: cuda" in capsys.readouterr().err) == (device == "auto")
        maps[device] = torch.from_numpy(read_map(output))
    torch.testing.assert_close(maps["auto"], maps["cpu"], atol=1e-3, rtol=1e-3)
    assert main(["verify", "croma_vit_tiny", "--device", "cuda"]) in (0, 1)
