"""``rsbackbones eval --pictures``: which are drawn, and that predictions are drawn where they belong."""

import sys

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from PIL import Image

from rsbackbones.data.labelled import open_labelled
from rsbackbones.eval.feature_source import FeatureSource, model_for
from rsbackbones.eval.plot_evaluation import segmented
from rsbackbones.eval.run import evaluate
from tests.eval.test_command import checkerboard, described, run


@pytest.fixture
def no_umap(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)  # as where it is not installed


def drawn(out):
    for path in (out / "pictures").iterdir():
        with Image.open(path) as picture:
            assert picture.format == "PNG"
    return {path.name for path in (out / "pictures").iterdir()}


def test_label_maps_give_features_segmentations_and_curves(no_umap, tmp_path, capsys):
    out, data = tmp_path / "out", checkerboard(tmp_path / "maps.npz")
    sizes = ("--train-size", "32", "--sizes", "16,32")
    assert run(out, data, "linear,sparse,extrapolation", "--pictures", *sizes) == 0
    told = capsys.readouterr()
    names = {
        "tsne_croma_vit_tiny_s2.png", "segmentation_croma_vit_tiny_s2.png", "sparse.png", "extrapolation.png"
    }  # fmt: skip
    assert drawn(out) == names
    assert all(str(out / "pictures" / name) in told.out for name in names)
    assert "rsbackbones[umap]" in told.err


def test_without_the_flag_nothing_is_drawn_and_what_cannot_be_is_said(no_umap, tmp_path, capsys):
    out, data = tmp_path / "out", checkerboard(tmp_path / "maps.npz")
    assert run(out, data, "knn") == 0
    assert not (out / "pictures").exists()
    assert run(out, data, "knn", "--pictures") == 0
    assert drawn(out) == {"tsne_croma_vit_tiny_s2.png"}
    assert "run linear too" in capsys.readouterr().err
    several = described(
        tmp_path / "several.npz", label=np.eye(20, 3, dtype=np.int64) + np.eye(20, 3, -9, int)
    )
    assert run(tmp_path / "labels", several, "sparse", "--pictures") == 0
    assert drawn(tmp_path / "labels") == {"sparse.png"}
    assert "several labels" in capsys.readouterr().err


def test_umap_stands_beside_t_sne(tmp_path):
    pytest.importorskip("umap")
    assert run(tmp_path / "out", described(tmp_path / "set.npz"), "knn", "--pictures") == 0
    assert drawn(tmp_path / "out") == {"tsne_croma_vit_tiny_s2.png", "umap_croma_vit_tiny_s2.png"}


@pytest.mark.parametrize("dates", [1, 2])
@pytest.mark.parametrize("size", [None, 64, (64, 32)])
def test_what_is_drawn_is_what_was_scored(dates, size, tmp_path):
    data = open_labelled(checkerboard(tmp_path / "maps.npz", dates))
    model = model_for(data, "croma_vit_tiny")
    source = FeatureSource.pretrained("tiny", model, {"level": "patch", "size": size})
    found = evaluate(["linear"], [source], lambda seed: data, tmp_path / "out", progress=False)
    examples = segmented(found["rows"][0], source, data, size=size)
    assert [example.name for example in examples] == [data.ids[i] for i in data.splits["test"]]  # all four
    right = np.mean([example.prediction == example.label for example in examples])
    assert right == pytest.approx(found["rows"][0]["metrics"]["pixel_accuracy"])
    assert right > 0.7
    assert all(example.image.shape == (4, 32, 32) for example in examples)


def test_patches_without_a_label_are_predicted_too(tmp_path):
    with np.load(checkerboard(tmp_path / "maps.npz")) as file:
        arrays = dict(file)
    arrays["label"][6:, :, 8:] = -1
    np.savez(tmp_path / "sparse.npz", **arrays)
    data = open_labelled(tmp_path / "sparse.npz")
    source = FeatureSource.pretrained("tiny", model_for(data, "croma_vit_tiny"), {"level": "patch"})
    found = evaluate(["linear"], [source], lambda seed: data, tmp_path / "out", progress=False)
    examples = segmented(found["rows"][0], source, data)
    assert all(np.isin(example.prediction, (0, 1)).all() for example in examples)
    assert all((example.label[:, 8:] == -1).all() for example in examples)


def test_a_rectangle_keeps_its_rows_and_columns(tmp_path):
    draw = np.random.default_rng(0)
    squares = draw.integers(0, 2, (8, 2, 5)).repeat(8, 1).repeat(8, 2)  # [8, 16, 40]
    np.savez(
        tmp_path / "set.npz", s2=np.repeat((500 + 2000 * squares)[:, None], 4, axis=1).astype(np.uint16),
        s2_bands=np.array(["B02", "B03", "B04", "B08"]), label=squares, classes=np.array(["a", "b"]),
        split=np.array(["train"] * 4 + ["test"] * 4),
    )  # fmt: skip
    data = open_labelled(tmp_path / "set.npz")
    source = FeatureSource.pretrained("tiny", model_for(data, "croma_vit_tiny"), {"level": "patch"})
    found = evaluate(["linear"], [source], lambda seed: data, tmp_path / "out", progress=False)
    examples = segmented(found["rows"][0], source, data)
    right = np.mean([example.prediction == example.label for example in examples])
    assert right == pytest.approx(found["rows"][0]["metrics"]["pixel_accuracy"])
