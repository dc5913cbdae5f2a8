"""Embeddings of a folder of GeoTIFFs, and for each patch the one most like it.

    python embed_folder.py FOLDER --output embeddings.npz

Rasters on one grid (the Sentinel-2 and the Sentinel-1 file of a place) are one patch; bands are found by
their descriptions. Without FOLDER some patches are simulated. Needs the extra `geo`.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

import numpy as np

import rsbackbones as rsb
from rsbackbones.data.simulator import simulate_scene, write_scene
from rsbackbones.embed import embed_patches


def simulate(folder: Path, count: int = 6) -> None:
    """Write patches of 96 x 96 pixels side by side, half of them in spring and half in summer."""
    for i in range(count):
        scene = simulate_scene(96, 96, seed=i // 2, day_of_year=(100, 200)[i % 2])
        a, b, left, d, e, top = scene.transform
        scene = dataclasses.replace(scene, transform=(a, b, left + i * 96 * a, d, e, top))
        write_scene(scene, folder / f"patch_{i}")


def main() -> None:
    """Embed, and print each patch's nearest neighbor."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--output", type=Path, default=Path("embeddings.npz"))
    options = parser.parse_args()
    model = rsb.create_model("croma_vit_tiny", pretrained=True)
    with tempfile.TemporaryDirectory() as temporary:
        if options.folder is None:
            simulate(Path(temporary))
        paths = sorted((options.folder or Path(temporary)).rglob("*.tif"))
        embed_patches(model, paths, options.output, progress=False)

    table = np.load(options.output)
    x = table["joint"] / np.linalg.norm(table["joint"], axis=1, keepdims=True)
    likeness = x @ x.T - 2 * np.eye(len(x))  # cosine; never itself
    for path, nearest in zip(table["paths"], likeness.argmax(axis=1), strict=True):
        first, other = (Path(str(p).split(";")[0]).parent.name for p in (path, table["paths"][nearest]))
        print(f"{first}: most like {other}")


if __name__ == "__main__":
    main()
