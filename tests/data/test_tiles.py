"""Tiles cover an image, and merging them is the plain mean."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rsbackbones.data.tiles import Tiling, tiles_of
from tests.eval.dense_sets import pixel_set

tilings = st.tuples(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 17), st.integers(0, 16)
).map(lambda t: Tiling(t[0], t[1], t[2], min(t[3], t[2] - 1)))  # fmt: skip


def image(tiling, *leading, scale=1):
    """Integers, whose sums and means are exact."""
    generator = torch.Generator().manual_seed(0)
    size = (*leading, tiling.height * scale, tiling.width * scale)
    return torch.randint(0, 1000, size, generator=generator).float()


def plain_mean(tiling, tiles, scale):
    """Pixel by pixel: the mean over the tiles that hold it."""
    s, t = scale, tiling.tile * scale
    out = np.zeros((tiles.shape[1], tiling.height * s, tiling.width * s))
    for row in range(out.shape[1]):
        for column in range(out.shape[2]):
            inside = [
                tile[:, row - top * s, column - left * s].numpy()
                for tile, (top, left) in zip(tiles, tiling.corners, strict=True)
                if 0 <= row - top * s < t and 0 <= column - left * s < t
            ]
            out[:, row, column] = np.mean(inside, axis=0)
    return out


@given(tilings, st.integers(1, 7))
@settings(max_examples=60)
def test_merging_what_was_cut_gives_it_back(tiling, batch_size):
    x = image(tiling, 2)
    tiles = tiling.cut(x)
    assert tiles.shape == (len(tiling.corners), 2, tiling.tile, tiling.tile)
    assert torch.equal(tiling.merge(tiles.split(batch_size)), x)


@given(tilings)
@settings(max_examples=60)
def test_tiles_cover_every_pixel_and_lie_inside(tiling):
    covered = np.zeros((tiling.height, tiling.width), int)
    for top, left in tiling.corners:
        assert 0 <= top <= max(0, tiling.height - tiling.tile)
        assert 0 <= left <= max(0, tiling.width - tiling.tile)
        covered[top : top + tiling.tile, left : left + tiling.tile] += 1
    assert covered.min() >= 1
    assert len(set(tiling.corners)) == len(tiling.corners)


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("size", [(9, 12), (8, 5), (3, 2)])
def test_values_that_differ_between_tiles_are_averaged(size, scale):
    tiling = Tiling(*size, 4, 2)
    tiles = torch.rand(len(tiling.corners), 3, 4 * scale, 4 * scale, dtype=torch.float64,
                       generator=torch.Generator().manual_seed(1))  # fmt: skip
    np.testing.assert_allclose(tiling.merge([tiles]).numpy(), plain_mean(tiling, tiles, scale), atol=1e-14)


def test_tiles_of_half_overlap_are_the_papers():
    assert Tiling(256, 192).corners == [(t, l) for t in (0, 64, 128) for l in (0, 64)]  # noqa: E741
    # The last ones are moved back to end at the edge.
    assert Tiling(300, 128).corners == [(0, 0), (64, 0), (128, 0), (172, 0)]


def test_a_side_shorter_than_a_tile_repeats_its_last_pixels():
    tile = Tiling(2, 3, 4, 2).cut(torch.arange(6.0).view(1, 2, 3))
    assert tile[0, 0].tolist() == [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [3, 4, 5, 5]]


@pytest.mark.parametrize(("sizes", "message"), [
    ((8, 8, 4, 4), "tile 4 and overlap 4"),
    ((8, 8, 4, -1), "overlap -1"),
    ((8, 8, 0, 0), "tile 0"),
    ((0, 8, 4, 2), "nothing to cut from 0 x 8"),
])  # fmt: skip
def test_tiles_that_cannot_be_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        Tiling(*sizes)


def test_merging_needs_every_tile_of_one_size():
    tiling = Tiling(8, 8, 4, 2)
    tiles = tiling.cut(image(tiling, 2))
    with pytest.raises(ValueError, match="expected 9 tiles, got fewer"):
        tiling.merge([tiles[:8]])
    with pytest.raises(ValueError, match="expected 9 tiles, got fewer"):
        tiling.merge([])
    with pytest.raises(ValueError, match="expected 9 tiles, got more"):
        tiling.merge([tiles, tiles])
    with pytest.raises(ValueError, match=r"expected tiles \[2, 4, 4\], got \[2, 4, 3\]"):
        tiling.merge([tiles[..., :3].transpose(-1, -2).transpose(-1, -2)[:0], tiles[:4], tiles[4:, ..., :3]])


def labelled(sizes, **changes):
    rng = np.random.default_rng(0)
    images = [{"s2": rng.integers(1, 3000, (12, *s)).astype(np.uint16)} for s in sizes]
    labels = [rng.integers(-1, 2, s) for s in sizes]
    return pixel_set(images, labels, splits={"train": np.arange(len(sizes))}, **changes), images, labels


def test_a_split_in_tiles_holds_every_pixel_where_it_was():
    data, images, labels = labelled([(10, 13), (5, 3)])
    tiles = tiles_of(data, "train", tile=6, overlap=3)
    assert len(tiles) == len(Tiling(10, 13, 6, 3).corners) + 1 == len(set(tiles.ids))
    assert list(tiles.splits) == ["train"]
    assert tiles.splits["train"].tolist() == list(range(len(tiles)))
    for number, name in enumerate(tiles.ids):
        place, top, left = name.rsplit(":", 2)
        i, top, left = int(place[-1]), int(top), int(left)
        sample = tiles.read(number)
        assert sample["s2"].shape == (12, 6, 6)
        assert sample["label"].shape == (6, 6)
        h, w = (min(6, side) for side in labels[i].shape)
        np.testing.assert_array_equal(sample["label"][:h, :w], labels[i][top : top + h, left : left + w])
        np.testing.assert_array_equal(
            sample["s2"][:, :h, :w], images[i]["s2"][:, top : top + h, left : left + w]
        )
        # What fills a tile counts nowhere, and holds no zeros that a model would see.
        assert (sample["label"][h:] == -1).all()
        assert (sample["label"][:, w:] == -1).all()
        assert (sample["s2"] > 0).all()
    assert tiles.read(len(tiles) - 1)["label"][5:].tolist() == [[-1] * 6]


def test_labels_finer_than_images_are_cut_with_them():
    _, images, labels = labelled([(10, 13)])
    fine = np.kron(labels[0], np.ones((4, 4), np.int64)) * np.arange(1, 53)  # every column its own numbers
    tiles = tiles_of(pixel_set(images, [fine]), "test", tile=6, overlap=3)
    corners = Tiling(10, 13, 6, 3).corners
    assert len(tiles) == len(corners)
    for number, (top, left) in enumerate(corners):
        part = fine[4 * top : 4 * top + 24, 4 * left : 4 * left + 24]
        found = tiles.read(number)["label"]
        assert found.shape == (24, 24)
        np.testing.assert_array_equal(found[:, : part.shape[1]], part)
        assert (found[:, part.shape[1] :] == -1).all()
    for wrong in (fine[:, :50], fine[:38], fine[:6, :6]):
        with pytest.raises(ValueError, match=r"label map has \d+ x \d+ pixels, the image 10 x 13"):
            tiles_of(pixel_set(images, [wrong]), "test")


def test_tiles_of_two_dates_and_what_they_are_called():
    rng = np.random.default_rng(0)
    images = [{"s2": rng.integers(1, 3000, (2, 12, 8, 8))}]
    data = pixel_set(images, [np.zeros((8, 8), np.int64)], task="change")
    tiles = tiles_of(data, "test", tile=4, overlap=2)
    np.testing.assert_array_equal(tiles.read(4)["s2"], images[0]["s2"][..., 2:6, 2:6])
    assert tiles.task == "change"
    assert len({data.digest, tiles.digest, tiles_of(data, "test", tile=4, overlap=0).digest}) == 3


def test_sets_without_label_maps_have_no_tiles():
    data, *_ = labelled([(8, 8)])
    with pytest.raises(ValueError, match="no split 'val'; it has train"):
        tiles_of(data, "val")
    with pytest.raises(ValueError, match="by hand has classes"):
        tiles_of(labelled([(8, 8)], task="classes")[0], "train")
    data, images, _ = labelled([(8, 8)])
    images[0]["s2"] = images[0]["s2"][..., :4]
    with pytest.raises(ValueError, match="place 0: the label map has 8 x 8 pixels, the image 8 x 4"):
        tiles_of(data, "train", tile=4, overlap=0).read(0)
