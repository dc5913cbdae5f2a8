import sys

import numpy as np
import pytest
from PIL import Image

from rsbackbones.eval.plots import Segmented, draw_features, draw_segmentations, draw_sparse
from rsbackbones.eval.sparse import sparse
from tests.eval.blobs import blobs, several_labels

NAMES = ("water", "wood", "field", "town")


def colors(path):
    """The distinct colors of a PNG that cover at least 20 pixels."""
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    values, counts = np.unique(pixels, axis=0, return_counts=True)
    return {tuple(v) for v, c in zip(values.tolist(), counts, strict=True) if c >= 20}


TAB = [(31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40)]


def test_features_are_drawn_in_a_color_per_class(tmp_path):
    draw_features(blobs(10), NAMES, tmp_path / "tsne.png")
    assert set(TAB) <= colors(tmp_path / "tsne.png")
    draw_features(blobs(10, classes=2), NAMES, tmp_path / "two.png")
    assert not set(TAB[2:]) & colors(tmp_path / "two.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tsne.png", "two.png"]


def test_a_picture_of_many_samples_draws_some_and_of_several_labels_none(tmp_path):
    draw_features(blobs(30), NAMES, tmp_path / "some.png", most=20)
    with pytest.raises(ValueError, match="one class each"):
        draw_features(several_labels(20), NAMES[:3], tmp_path / "none.png")
    with pytest.raises(ValueError, match="method='pca'"):
        draw_features(blobs(5), NAMES, tmp_path / "none.png", method="pca")
    assert not (tmp_path / "none.png").exists()


def test_umap_draws_the_same_and_says_what_is_missing(tmp_path, monkeypatch):
    draw_features(blobs(10), NAMES, tmp_path / "umap.png", method="umap")
    assert set(TAB) <= colors(tmp_path / "umap.png")
    monkeypatch.setitem(sys.modules, "umap", None)  # as where it is not installed
    with pytest.raises(ImportError, match=r"rsbackbones\[umap\]"):
        draw_features(blobs(10), NAMES, tmp_path / "umap.png", method="umap")


def test_segmentations_show_image_label_and_prediction(tmp_path):
    rng = np.random.default_rng(0)
    label = np.repeat(np.repeat([[0, 1], [2, -1]], 8, axis=0), 8, axis=1)
    example = Segmented(
        name="one", image=rng.random((4, 16, 16)), bands=("B02", "B03", "B04", "B08"), label=label,
        prediction=np.full((16, 16), 3),
    )  # fmt: skip
    draw_segmentations([example], NAMES, tmp_path / "maps.png")
    assert set(TAB) <= colors(tmp_path / "maps.png")
    other = Segmented(**{**vars(example), "prediction": np.zeros((8, 8), int)})
    with pytest.raises(ValueError, match=r"one: .* differ in size"):
        draw_segmentations([other], NAMES, tmp_path / "maps.png")
    with pytest.raises(ValueError, match="no example"):
        draw_segmentations([], NAMES, tmp_path / "maps.png")


def test_sparse_curves_have_a_line_for_each_of_the_features(tmp_path):
    curves = {
        name: sparse(
            several_labels(40, noise=noise), several_labels(20, noise=noise, seed=1), classes=3
        ).details
        for name, noise in (("clear", 0.1), ("noisy", 2))
    }
    draw_sparse(curves, NAMES[:3], tmp_path / "sparse.png")
    assert set(TAB[:2]) <= colors(tmp_path / "sparse.png")
