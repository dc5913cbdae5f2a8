"""Embed an area as a store of shards, and find places like one: the numbers and pictures of docs/scale.md.

    python examples/large_area.py --output large_area

The scene is simulated, so that its water is known and nothing is downloaded. With a scene of yours, replace
`write_scene` by your file and choose a place of your own.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import rasterio
from rasterio.warp import transform
from sklearn.metrics import roc_auc_score

import rsbackbones as rsb
from rsbackbones.data.simulator import Scene, simulate_scene, write_scene
from rsbackbones.embed import principal_colors
from rsbackbones.embed.search.output import write_hits
from rsbackbones.embed.search.page import write_page
from rsbackbones.embed.search.search import Hits, Searched

SHARD = 32  # cells; a large area has 256


def true_color(scene: Scene) -> np.ndarray:
    """Return red, green and blue of a scene for the eye, [H, W, 3]."""
    bands = scene.s2[[scene.s2_bands.index(band) for band in ("B04", "B03", "B02")]].astype(float)
    low, high = np.percentile(bands, (2, 98), axis=(1, 2), keepdims=True)
    return np.moveaxis(np.clip((bands - low) / (high - low), 0, 1), 0, -1)


def seam(features: np.ndarray) -> float:
    """Return how much neighbors in different shards differ, over how much any neighbors do: 1 is no seam."""
    across, any_two = [], []
    for axis in (0, 1):
        steps = np.linalg.norm(np.diff(features, axis=axis), axis=-1)
        border = np.arange(SHARD - 1, steps.shape[axis], SHARD)
        across.append(np.take(steps, border, axis=axis).ravel())
        any_two.append(steps.ravel())
    return float(np.concatenate(across).mean() / np.concatenate(any_two).mean())


def draw_shards(path: Path, scene: Scene, features: np.ndarray) -> None:
    """Draw the scene and its features as colors, with the shards marked outside of the map alone."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 5.2), layout="constrained")
    axes[0].imshow(true_color(scene))
    axes[0].set(title="the scene", xticks=[], yticks=[])
    axes[1].imshow(np.moveaxis(principal_colors(features), 0, -1), interpolation="nearest")
    borders = [np.arange(0, side + 1, SHARD) - 0.5 for side in features.shape[:2]]
    axes[1].set(yticks=borders[0], xticks=borders[1])
    axes[1].set_title("features of the store; ticks: borders of shards", pad=14)
    axes[1].tick_params(length=10, labelleft=False, labelbottom=False, right=True, top=True)
    figure.savefig(path, dpi=90, bbox_inches="tight")
    plt.close(figure)


def draw_hits(path: Path, scene: Scene, hits: Hits, query: tuple[int, int]) -> None:
    """Draw the similarity of all cells to one, and the most similar ones on the scene."""
    assert hits.similarities is not None
    figure, axes = plt.subplots(1, 2, figsize=(10.6, 5.2), layout="constrained")
    shown = axes[0].imshow(hits.similarities[0], interpolation="nearest")
    axes[0].set(title="similarity to the marked cell", xticks=[], yticks=[])
    figure.colorbar(shown, ax=axes[0], shrink=0.8)
    axes[1].imshow(true_color(scene))
    axes[1].set(title=f"the {len(hits.rows)} most similar cells", xticks=[], yticks=[])
    axes[1].scatter(8 * hits.columns + 4, 8 * hits.rows + 4, s=24, facecolor="none", edgecolor="white")
    for axis, cell in ((axes[0], 1), (axes[1], 8)):
        at = [(n + 0.5) * cell - 0.5 for n in query]
        axis.plot(at[1], at[0], marker="+", color="red", markersize=14, markeredgewidth=2)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    """Embed, search, and say what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("large_area"))
    parser.add_argument("--side", type=int, default=768, help="of the scene in pixels")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    scene = simulate_scene(options.side, options.side, seed=3)
    path, _ = write_scene(scene, options.output)
    model = rsb.create_model("croma_vit_tiny", pretrained=True, modalities=("s2",))

    store = options.output / "summer.zarr"
    job = rsb.embed.plan(model, path, output=store, shard=SHARD)
    done = rsb.embed.run(job, progress=False)  # a finished job is only read
    features = np.moveaxis(rsb.embed.open(store)["embeddings"].values, 0, -1)  # [h, w, D]
    once = len(job.lattice.tops) * len(job.lattice.lefts)
    print(f"{features.shape[0]} x {features.shape[1]} cells in {done['shards']} shards, {features.shape[2]} "
          f"bands; {done['windows']} windows, {done['windows'] / once - 1:.0%} of them for a second "
          "shard")  # fmt: skip
    print(f"{done['measured']['neighbor_agreement']:.1%} of the ten nearest neighbors stay in 8 bits")
    print(f"difference of neighbors across shards / of any neighbors: {seam(features):.2f}")
    draw_shards(options.output / "shards.png", scene, features)

    cells = scene.land_cover.reshape(features.shape[0], 8, -1, 8)
    is_water = cells == scene.classes.index("water")
    water, dry = is_water.all((1, 3)), ~is_water.any((1, 3))
    row, column = np.argwhere(water)[water.sum() // 2]
    with rasterio.open(path) as raster:
        x, y = raster.transform * (8 * column + 4, 8 * row + 4)
        (lon,), (lat,) = transform(raster.crs, "EPSG:4326", [x], [y])
    searched = Searched(store)
    hits = searched.search([searched.at(lon, lat)], k=50)
    write_hits(options.output / "hits.parquet", searched, hits)
    write_page(options.output / "hits.html", searched, hits, scene=path)
    draw_hits(options.output / "similarity.png", scene, hits, (row, column))
    assert hits.similarities is not None
    known = water | dry
    score = roc_auc_score(water[known], hits.similarities[0][known])
    print(f"{water[hits.rows, hits.columns].sum()} of the {water.sum()} cells of water are among the 50 most "
          f"like one of them, of {water.size}; area under the ROC curve {score:.4f}")  # fmt: skip
    print(options.output / "hits.html")


if __name__ == "__main__":
    main()
