"""What other systems lack is not needed: neither for an import nor to embed a scene."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import rasterio

import rsbackbones as rsb
from rsbackbones.data.simulator import simulate_scene
from rsbackbones.embed import embed_scene
from tests.data.test_rasters import S2, write_tif

# Windows has none of these; without a place of its own, a module is not found.
WITHOUT = """
    import os, sys
    sys.modules["fcntl"] = sys.modules["resource"] = None
    for name in ("fork", "forkpty"):
        delattr(os, name)
"""


def run_without(code, *arguments):
    program = textwrap.dedent(WITHOUT) + textwrap.dedent(code)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_every_module_is_imported_and_a_scene_embedded(tmp_path):
    """Also those that train; by the bundled model, to the same features as with what is lacking."""
    scene = write_tif(tmp_path / "scene.tif", simulate_scene(64, 64, seed=1).s2, S2)
    run_without(
        """
        import importlib, pkgutil
        from pathlib import Path
        import rsbackbones as rsb
        for module in pkgutil.walk_packages(rsb.__path__, "rsbackbones."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
        from rsbackbones.embed import embed_scene
        model = rsb.create_model("croma_vit_tiny", pretrained=True, modalities=("s2",))
        embed_scene(model, [Path(sys.argv[1])], Path(sys.argv[2]), progress=False)
    """,
        scene,
        tmp_path / "out.tif",
    )
    model = rsb.create_model("croma_vit_tiny", pretrained=True, modalities=("s2",))
    embed_scene(model, [scene], tmp_path / "here.tif", progress=False)
    with rasterio.open(tmp_path / "out.tif") as without, rasterio.open(tmp_path / "here.tif") as here:
        np.testing.assert_allclose(without.read(), here.read(), atol=2e-6)
