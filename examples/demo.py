"""CROMA on a Sentinel-1/2 scene: features as a picture. `make demo` runs this.

Without --scene a scene is simulated. The model is the small one, whose weights come with the package: no
network is needed.
"""

import argparse
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import rasterio

import rsbackbones as rsb
from rsbackbones.data.rasters import RasterStack, find_bands
from rsbackbones.data.simulator import simulate_scene, write_scene
from rsbackbones.embed import embed_scene, principal_colors

MODEL = "croma_vit_tiny"


def create(modalities: list[str]) -> tuple[rsb.Backbone, str]:
    """Return the demonstration model and what to say of its weights."""
    model = rsb.create_model(MODEL, pretrained=True, modalities=modalities)
    assert model.weights_entry is not None
    return model, f"weights {model.weights_entry.id}"


def stretch(bands: np.ndarray) -> np.ndarray:
    """[3, H, W] to [H, W, 3] in [0, 1], each band between its 2nd and 98th percentile."""
    low, high = np.nanpercentile(bands, (2, 98), axis=(1, 2), keepdims=True)
    return np.moveaxis(np.clip((bands - low) / np.maximum(high - low, 1e-6), 0, 1), 0, -1)


def picture(path: Path, scene: RasterStack, features: Path, title: str) -> None:
    """Draw what went in and what came out, side by side on the same ground."""
    arrays, valid = scene.read()
    panels = []
    if "s2" in arrays:
        names = scene.bands["s2"]
        if all(b in names for b in ("B04", "B03", "B02")):
            rgb = arrays["s2"][[names.index(b) for b in ("B04", "B03", "B02")]]
            panels.append(("Sentinel-2, true color", stretch(np.where(valid, rgb, np.nan))))
    if "s1" in arrays:
        vv, vh = (arrays["s1"][scene.bands["s1"].index(b)] for b in ("VV", "VH"))
        radar = np.where(valid, np.stack([vv, vh, vv - vh]), np.nan)
        panels.append(("Sentinel-1: VV, VH, VV - VH", stretch(radar)))
    with rasterio.open(features) as raster:
        maps = np.moveaxis(raster.read(), 0, -1)
        size = f"{raster.count} x {raster.height} x {raster.width}"
    panels.append(
        (
            f"features ({size}), three\nprincipal components as colors",
            np.moveaxis(principal_colors(maps), 0, -1),
        )
    )

    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 5.8), layout="constrained")
    for axis, (name, image) in zip(np.atleast_1d(axes), panels, strict=True):
        # The map is of whole patches: its edge lies where the last whole patch ends.
        height, width = image.shape[:2]
        scale = 8 if image.shape[2] == 4 else 1
        axis.imshow(image, extent=(0, width * scale, height * scale, 0), interpolation="nearest")
        axis.set_xlim(0, scene.width)
        axis.set_ylim(scene.height, 0)
        axis.set_title(name, fontsize=11)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.suptitle(title, fontsize=12)
    figure.savefig(path, dpi=110)


def main() -> int:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__)
    parser.add_argument("--scene", type=Path, help="a Sentinel-2 GeoTIFF (its bands have descriptions)")
    parser.add_argument("--radar", type=Path, help="a Sentinel-1 GeoTIFF on the same grid, in dB")
    parser.add_argument("--output", type=Path, default=Path("demo"))
    options = parser.parse_args()
    if options.radar and not options.scene:
        parser.error("--radar goes with --scene")
    options.output.mkdir(parents=True, exist_ok=True)

    if options.scene:
        paths = [path for path in (options.scene, options.radar) if path]
        what = " + ".join(path.name for path in paths)
    else:
        paths = list(write_scene(simulate_scene(512, 512, seed=0), options.output))
        what = "a simulated Sentinel-1/2 scene"
    modalities = [m for m in ("s2", "s1") if any(m in find_bands(p, ("s2", "s1"))[0] for p in paths)]
    model, weights = create(modalities)
    print(f"{MODEL} with {weights}, on {what}")
    if model.adaptation:
        print(model.adaptation)

    features = embed_scene(model, paths, options.output / "features.tif")
    with RasterStack(paths, modalities) as scene:
        picture(options.output / "demo.png", scene, features, f"{MODEL}, {weights}\n{what}")
    for path in (features, features.with_suffix(".png"), options.output / "demo.png"):
        print(path)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        sys.exit(f"demo: {error}")
