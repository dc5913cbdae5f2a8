"""Label maps finer than their images (super-resolution): read, cut with them, counted by patch."""

import numpy as np
import pytest
import torch

import rsbackbones as rsb
from rsbackbones.data.labelled import open_labelled
from rsbackbones.data.labelled.crops import cropped
from rsbackbones.eval.encode import encode

SCALE = 4


@pytest.fixture
def data(tmp_path):
    """Six radar images of 16 x 24 pixels, one with a hole; labels of 64 x 96: one for each 8 x 8 patch."""
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 3, (6, 2, 3))
    s1 = rng.normal(-12, 2, (6, 2, 16, 24)).astype(np.float32)
    s1[0, 1, 3, 5] = np.nan
    label = np.kron(classes, np.ones((8 * SCALE, 8 * SCALE), np.int64)).astype(np.uint8)
    split = ["train"] * 4 + ["test"] * 2
    np.savez(tmp_path / "fine.npz", s1=s1, s1_bands=["VV", "VH"], label=label, split=split)
    return open_labelled(tmp_path / "fine.npz"), classes


def test_pixels_without_data_have_no_labels_all_over_their_area(data):
    sample = data[0].read(0)
    assert sample["label"].shape == (64, 96)
    assert (sample["label"][12:16, 20:24] == -1).all()
    assert (sample["label"] == -1).sum() == SCALE**2
    assert np.isfinite(sample["s1"]).all()


def test_crops_hold_their_part_of_the_labels(data):
    whole, classes = data
    crops = cropped(whole, 8)
    assert len(crops) == 6 * 6
    for i in range(6, 36):  # the first image has a hole
        label = crops.read(i)["label"]
        assert label.shape == (32, 32)
        assert (label == classes[i // 6].ravel()[i % 6]).all()


def test_a_patch_has_the_label_of_its_area(data):
    whole, classes = data
    torch.manual_seed(0)
    encoded = encode(
        rsb.create_model("croma_vit_tiny", modalities=("s1",), overrides={"dim": 32, "depth": 2}),
        whole,
        level="patch",
    )
    assert encoded.labels.tolist() == classes.ravel().tolist()


@pytest.mark.parametrize("shape", [(64, 48), (60, 96), (8, 12)])
def test_other_sizes_are_refused(tmp_path, shape):
    label = np.arange(6 * shape[0] * shape[1]).reshape(6, *shape) % 3
    np.savez(tmp_path / "x.npz", s1=np.zeros((6, 2, 16, 24)), s1_bands=["VV", "VH"], label=label)
    message = (
        rf"x:2: the label map has {shape[0]} x {shape[1]} pixels, the image 16 x 24: expected as many, or"
    )
    with pytest.raises(ValueError, match=message):
        open_labelled(tmp_path / "x.npz").read(2)
