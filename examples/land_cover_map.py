"""A land cover map from frozen features: a linear classifier learns on one scene and maps another.

    python examples/land_cover_map.py --output land_cover

The scenes are simulated, so that their land cover is known and nothing is downloaded. With scenes of yours,
replace `write_scene` by your files and `land_cover` by your labels.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import rasterio
from matplotlib.colors import ListedColormap
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import rsbackbones as rsb
from rsbackbones.data.simulator import Scene, simulate_scene, write_scene
from rsbackbones.embed import embed_scene

SIZE = 384
COVER = ("water", "forest", "grass and crops", "built-up")
OF_CLASS = {
    "water": 0,
    "coniferous forest": 1,
    "broadleaf forest": 1,
    "building": 3,
    "road": 3,
}  # the others: 2


def land_cover(scene: Scene) -> np.ndarray:
    """Return which of `COVER` each pixel is, [H, W]."""
    return np.array([OF_CLASS.get(name, 2) for name in scene.classes])[scene.land_cover]


def features_of(model: rsb.Backbone, scene: Scene, folder: Path) -> np.ndarray:
    """Return the feature map of a scene, [h, w, D], one cell for each patch."""
    folder.mkdir(parents=True, exist_ok=True)
    path = embed_scene(model, list(write_scene(scene, folder)), folder / "features.tif", progress=False)
    with rasterio.open(path) as raster:
        return np.moveaxis(raster.read(), 0, -1)


def majority(labels: np.ndarray, cell: int, classes: int) -> np.ndarray:
    """Return the most frequent label of each cell, [h, w], of labels [H, W]."""
    height, width = (side // cell for side in labels.shape)
    cells = labels[: height * cell, : width * cell].reshape(height, cell, width, cell)
    one_hot = np.eye(classes, dtype=np.int64)[cells]  # [h, cell, w, cell, classes]
    return one_hot.sum(axis=(1, 3)).argmax(-1)


def main() -> None:
    """Fit on one scene, map another, and draw the map beside the truth."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("land_cover"))
    options = parser.parse_args()
    model = rsb.create_model("croma_vit_tiny", pretrained=True)
    train, test = simulate_scene(SIZE, SIZE, seed=1), simulate_scene(SIZE, SIZE, seed=0)
    count, cell = len(COVER), model.stride

    features = {
        name: features_of(model, s, options.output / name) for name, s in (("train", train), ("test", test))
    }
    labels = {
        "train": majority(land_cover(train), cell, count),
        "test": majority(land_cover(test), cell, count),
    }
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    classifier.fit(features["train"].reshape(-1, features["train"].shape[-1]), labels["train"].ravel())
    shape = features["test"].shape
    predicted = classifier.predict(features["test"].reshape(-1, shape[-1])).reshape(shape[:2])

    truth = labels["test"]
    most_frequent = np.bincount(labels["train"].ravel()).argmax()
    print(f"cells of {cell} x {cell} pixels that are right: {(predicted == truth).mean():.1%}")
    print(f"the most frequent class everywhere: {(truth == most_frequent).mean():.1%}")

    colors = ListedColormap(["#2b6cb0", "#276749", "#d6bc5e", "#c53030"])
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.8), layout="constrained")
    rgb = test.s2[[test.s2_bands.index(band) for band in ("B04", "B03", "B02")]].astype(float)
    low, high = np.percentile(rgb, (2, 98), axis=(1, 2), keepdims=True)
    axes[0].imshow(np.moveaxis(np.clip((rgb - low) / (high - low), 0, 1), 0, -1))
    for axis, image in ((axes[1], predicted), (axes[2], truth)):
        axis.imshow(image, cmap=colors, vmin=-0.5, vmax=count - 0.5, interpolation="nearest")
    for axis, title in zip(axes, ("the scene", "map from frozen features", "the truth"), strict=True):
        axis.set(title=title, xticks=[], yticks=[])
    handles = [plt.Rectangle((0, 0), 1, 1, color=colors(i)) for i in range(count)]
    figure.legend(handles, COVER, loc="outside lower center", ncols=count)
    figure.savefig(options.output / "map.png", dpi=110)
    print(options.output / "map.png")


if __name__ == "__main__":
    main()
