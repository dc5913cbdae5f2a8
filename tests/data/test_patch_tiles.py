"""Patches of large images by overlapping tiles, against plain loops."""

import numpy as np
import pytest
import torch

from rsbackbones.data.patch_tiles import PatchTiles
from rsbackbones.eval.encode import encode, statistics_features
from rsbackbones.eval.transform import make_transform
from tests.eval.test_encode import BANDS, Reads, build, made

PATCH = 8


def scenes(task="pixels", sizes=((41, 30), (64, 24), (16, 52), (40, 40))):
    """A set of scenes of several sizes, with labels of every pixel."""
    data = made(len(sizes), task=task, splits={"train": np.arange(3), "test": np.array([3])})
    dates = (2,) if task == "change" else ()
    rng = np.random.default_rng(5)
    samples = [
        {
            "s2": rng.integers(100, 4000, (*dates, 3, h, w)).astype(np.uint16),
            "s1": rng.normal(-14, 3, (*dates, 2, h, w)).astype(np.float32),
            "label": rng.integers(-1, 3, (h, w)),
        }
        for h, w in sizes
    ]
    data.read.samples = samples
    return data


def by_hand(model, images, tile, overlap):
    """By stream the features [h, w, D] of the patches of one image: place every tile, and average."""
    height, width = next(iter(images.values())).shape[-2:]
    rows, columns = -(-height // PATCH), -(-width // PATCH)
    sides = [max(n * PATCH, tile) for n in (rows, columns)]
    padded = {
        m: np.pad(x.numpy(), ((0, 0), (0, sides[0] - height), (0, sides[1] - width)), mode="edge")
        for m, x in images.items()
    }
    starts = [sorted({*range(0, side - tile, tile - overlap), side - tile}) for side in sides]
    total, count = {}, np.zeros((sides[0] // PATCH, sides[1] // PATCH, 1))
    for top in starts[0]:
        for left in starts[1]:
            cut = {
                m: torch.from_numpy(x[None, :, top : top + tile, left : left + tile])
                for m, x in padded.items()
            }
            with torch.no_grad():
                tokens = model.forward_features(cut).tokens
            here = np.s_[top // PATCH : (top + tile) // PATCH, left // PATCH : (left + tile) // PATCH]
            count[here] += 1
            for stream, x in tokens.items():
                total.setdefault(stream, np.zeros((*count.shape[:2], x.shape[-1])))
                total[stream][here] += x[0].unflatten(0, (tile // PATCH, tile // PATCH)).numpy()
    return {stream: (x / count)[:rows, :columns] for stream, x in total.items()}


@pytest.mark.parametrize(("tile", "overlap"), [(24, 8), (32, 16), (16, 0)])
def test_features_are_the_mean_of_the_tiles_that_cover_a_patch(tile, overlap):
    data, model = scenes(), build().eval()
    encoded = encode(model, data, level="patch", tile=tile, overlap=overlap, batch_size=3)
    prepare = make_transform(model, data)
    for index in range(4):
        expected = by_hand(model, prepare(data.read(index)), tile, overlap)
        label = data.read(index)["label"]
        rows = encoded.groups == index
        for stream, features in expected.items():
            labelled = [
                features[i, j]
                for i in range(features.shape[0])
                for j in range(features.shape[1])
                if (label[i * PATCH : (i + 1) * PATCH, j * PATCH : (j + 1) * PATCH] >= 0).any()
            ]
            np.testing.assert_allclose(encoded.stream(stream).features[rows], labelled, atol=2e-5)


def test_one_tile_is_the_image_and_every_pixel_counts_once():
    data = scenes(sizes=((32, 32),) * 4)
    whole = encode(build(), data, level="patch")
    tiled = encode(build(), data, level="patch", tile=32, overlap=0)
    np.testing.assert_allclose(tiled.stream("joint").features, whole.stream("joint").features, atol=2e-6)
    varied = scenes()
    for found, images in ((whole, data), (encode(build(), varied, level="patch", tile=32), varied)):
        for index in range(4):
            label = images.read(index)["label"]
            counted = found.pixels[found.groups == index].sum(0)
            assert counted.tolist() == [(label == k).sum() for k in range(3)]


def test_two_dates_and_statistics_and_what_is_kept(tmp_path):
    data, model = scenes("change"), build().eval()
    images = make_transform(model, data)(data.read(3))
    before, after = (by_hand(model, {m: x[date] for m, x in images.items()}, 24, 8) for date in (0, 1))
    encoded = encode(model, data, level="patch", tile=24, overlap=8, cache=tmp_path)
    np.testing.assert_allclose(
        encoded.stream("s2").features[encoded.groups == 3],
        np.abs(after["s2"] - before["s2"]).reshape(25, -1),
        atol=2e-5,
    )
    data.read.asked.clear()
    again = encode(model, data, level="patch", tile=24, overlap=8, cache=tmp_path)
    assert (again.stream("s2").features == encoded.stream("s2").features).all()
    assert data.read.asked == []
    found = statistics_features(data, level="patch", tile=24, overlap=0)
    assert found.stream("bands").features.shape == (len(encoded.groups), 2 * sum(map(len, BANDS.values())))


def test_what_cannot_be_is_said():
    model = build()
    with pytest.raises(ValueError, match=r"label for every pixel; made has classes.*--tile"):
        encode(model, made(), tile=16)
    with pytest.raises(ValueError, match=r"overlap is that of tiles; name their size with tile="):
        encode(model, scenes(), level="patch", overlap=8)
    with pytest.raises(ValueError, match=r"tiles of 20 pixels .* multiples of 8, the side of a patch"):
        encode(model, scenes(), level="patch", tile=20)
    with pytest.raises(ValueError, match="less than their side, got tile 16 and overlap 16"):
        PatchTiles(8, 16, 16)
    assert isinstance(scenes().read, Reads)
