"""Sets of crops, and probes and trained models scored at sizes that they were not trained at."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import rsbackbones as rsb
from rsbackbones.data.labelled.crops import cropped
from rsbackbones.eval.dense import predict
from rsbackbones.eval.encode import encode
from rsbackbones.eval.extrapolation import AtSize, draw_extrapolation, extrapolate, score_at_sizes, table
from rsbackbones.eval.linear_probe import ProbeOptions
from rsbackbones.eval.metrics import from_confusion
from rsbackbones.heads import dense_model
from rsbackbones.input_spec import RGB8
from rsbackbones.layers.alibi import grid_positions
from rsbackbones.layers.sincos import (
    SinCosPositions,
    interpolate_positions,
    interpolated_from,
    sincos_embedding,
)
from tests.eval.dense_sets import pixel_set

SMALL = {"depth": 2, "dim": 32, "num_heads": 4}
RGB = ("B04", "B03", "B02")
QUICK = ProbeOptions(rates=(1e-3, 1e-2), warmup=1, epochs=60, batch=64)


def model(positions="alibi"):
    torch.manual_seed(0)
    overrides = {**SMALL, "positions": positions}
    return rsb.create_model("croma_vit_tiny", overrides=overrides, modalities=("s2",), bands={"s2": RGB})


def two_colors(sizes, *, splits, seed=0):
    """Pictures of dark and bright patches; which of the two a pixel is, is its label."""
    generator = np.random.default_rng(seed)
    images, labels = [], []
    for height, width in sizes:
        label = np.kron(generator.integers(0, 2, (height // 8, width // 8)), np.ones((8, 8), np.int64))
        noise = generator.integers(0, 30, (3, height, width))
        images.append({"s2": (label * 225 + noise).astype(np.uint8)})
        labels.append(label)
    splits = {name: np.array(indices) for name, indices in splits.items()}
    return pixel_set(images, labels, ("dark", "bright"), bands={"s2": RGB}, units={"s2": RGB8}, splits=splits)


@given(height=st.integers(8, 40), width=st.integers(8, 40), down=st.integers(1, 20), right=st.integers(1, 20))
@settings(max_examples=30)
def test_crops_are_parts_that_do_not_overlap_as_many_as_fit(height, width, down, right):
    where = np.arange(height * width).reshape(1, height, width)
    data = pixel_set([{"s2": where}], [where[0]], bands={"s2": ("B04",)})
    if down > height or right > width:
        with pytest.raises(ValueError, match=f"place 0 of {height} x {width} pixels has no crop"):
            cropped(data, (down, right))
        return
    crops = cropped(data, (down, right))
    read = [crops.read(i) for i in crops.splits["test"]]
    assert len(crops) == len(set(crops.ids)) == (height // down) * (width // right)
    assert {x["s2"].shape for x in read} == {(1, down, right)}
    assert all(np.array_equal(x["s2"][0], x["label"]) for x in read)
    seen = np.concatenate([x["s2"].ravel() for x in read])
    assert len(np.unique(seen)) == len(seen)
    rows, columns = np.unravel_index(seen, (height, width))
    # What is left over is the same on both sides, but for one pixel.
    assert abs(rows.min() - (height - 1 - rows.max())) <= 1
    assert abs(columns.min() - (width - 1 - columns.max())) <= 1


def one_label_each(images, labels, **changes):
    data = pixel_set(images, [None] * len(images), task="classes", bands={"s2": RGB}, **changes)
    return replace(data, labels=np.asarray(labels), units={"s2": RGB8}, read=lambda i: dict(images[i]))


def test_crops_keep_splits_and_labels_and_say_what_they_are():
    images = [{"s2": np.full((3, side, 20), i)} for i, side in enumerate((20, 40, 20))]
    splits = {"train": np.array([0, 1]), "test": np.array([2])}
    data = one_label_each(images, [1, 0, 1], splits=splits)
    crops = cropped(data, 10)
    assert {s: len(i) for s, i in crops.splits.items()} == {"train": 12, "test": 4}
    for i in crops.splits["train"]:
        assert crops.labels[i] == data.labels[crops.read(i)["s2"][0, 0, 0]]
    assert crops.ids[:2] == ("place 0 [0, 0]", "place 0 [0, 10]")
    assert "crops of 10 pixels" in crops.notes[-1]
    digests = {cropped(data, size, splits=s).digest for size in (10, (10, 20)) for s in (None, ("test",))}
    assert len({data.digest, *digests}) == 5
    with pytest.raises(ValueError, match=r"no images in 'val'; its splits: train, test"):
        cropped(data, 10, splits=("val",))
    with pytest.raises(ValueError, match="at least one pixel"):
        cropped(data, 0)


def test_a_probe_of_patches_is_scored_by_pixels_at_every_size():
    data = two_colors([(64, 96)] * 6, splits={"train": range(4), "test": (4, 5)})
    sizes = (16, 32, (16, 96))
    found = extrapolate(model(), data, train_size=32, sizes=sizes, options=QUICK, num_resamples=50)
    assert [row.size for row in found] == [(16, 16), (32, 32), (16, 96)]
    assert [row.images for row in found] == [48, 12, 8]
    for row in found:
        assert row.metrics["miou"] > 0.95
        low, high = row.intervals["miou"]
        assert low <= row.metrics["miou"] <= high


def test_the_probe_is_the_one_that_was_trained_at_the_training_size():
    """The score at a size, against the same probe run by hand on features of that size."""
    from rsbackbones.eval.probe import probe

    data = two_colors([(32, 48)] * 8, splits={"train": range(4), "val": (4, 5), "test": (6, 7)}, seed=1)
    data = pixel_set(  # labels that features do not give away, so that scores differ between sizes
        [data.read(i) for i in range(8)],
        [np.roll(data.read(i)["label"], 8, axis=1) for i in range(8)],
        ("dark", "bright"), bands=data.bands, units=data.units, splits=data.splits,
    )  # fmt: skip
    net = model("sincos")
    (found,) = extrapolate(net, data, train_size=16, sizes=(32,), options=QUICK, seed=3, num_resamples=10)
    small, large = cropped(data, 16), cropped(data, 32)
    a, b = (encode(net, crops, level="patch") for crops in (small, large))
    parts = {s: a.stream("s2").of_images(small.splits[s]) for s in ("train", "val")}
    test = b.stream("s2").of_images(large.splits["test"])
    outcome = probe(parts["train"], test, classes=2, val=parts["val"], options=QUICK, seed=3)
    counts = np.zeros((2, 2), int)
    for guess, pixels in zip(outcome.scores.argmax(1), test.pixels, strict=True):
        counts[:, guess] += pixels
    assert found.metrics == from_confusion(counts, ("dark", "bright"))


def test_images_with_one_label_each():
    generator = np.random.default_rng(0)
    labels = np.arange(24) % 2
    images = [
        {"s2": generator.integers(0, 60, (3, 32, 32)).astype(np.uint8) + np.uint8(150 * k)} for k in labels
    ]
    splits = {"train": np.arange(16), "test": np.arange(16, 24)}
    data = one_label_each(images, labels, splits=splits)
    found = extrapolate(model(), data, train_size=16, sizes=(16, 32), options=QUICK, num_resamples=20)
    assert [(row.images, row.metrics["top1"]) for row in found] == [(32, 1), (8, 1)]


def test_a_single_test_image_has_no_interval():
    data = two_colors([(32, 32)] * 3, splits={"train": (0, 1), "test": (2,)})
    (row,) = extrapolate(model(), data, train_size=16, sizes=(16,), options=QUICK, num_resamples=10)
    assert row.images == 4
    assert not row.intervals


def test_a_trained_model_at_every_size():
    data = two_colors([(48, 64)] * 3, splits={"test": range(3)})
    dense = dense_model(model(), head="linear", num_classes=2).eval()

    def score(crops):
        return from_confusion(predict(dense, crops, "test").sum(0), crops.classes)

    found = score_at_sizes(score, data, (16, (16, 64)))
    assert [(row.size, row.images) for row in found] == [((16, 16), 36), ((16, 64), 9)]
    for row in found:
        assert row.metrics == score(cropped(data, row.size))


# -- positions of sizes that were not trained -----------------------------------------------------------


def test_interpolated_positions_are_the_table_at_the_trained_grid_and_bicubic_elsewhere():
    layer = SinCosPositions()
    layer.trained_grid = (4, 6)
    x = torch.zeros(1, 24, 16)
    assert torch.equal(layer(x, (4, 6))[0], sincos_embedding(grid_positions(4, 6), 16))
    fine = layer(torch.zeros(1, 96, 16), (8, 12))[0].unflatten(0, (8, 12))
    table_ = sincos_embedding(grid_positions(4, 6), 16).unflatten(0, (4, 6)).permute(2, 0, 1)[None]
    expected = F.interpolate(table_, size=(8, 12), mode="bicubic", align_corners=False)[0].permute(1, 2, 0)
    assert torch.equal(fine, expected)
    # In the middle it is close to the embedding of the place between the patches; computed anew it is not.
    middle = sincos_embedding((grid_positions(8, 12) + 0.5) / 2 - 0.5, 16).unflatten(0, (8, 12))
    assert (fine - middle)[2:-2, 2:-2].abs().max() < 0.1
    assert (sincos_embedding(grid_positions(8, 12), 16).unflatten(0, (8, 12)) - middle).abs().max() > 1
    kept = torch.tensor([[5, 90, 17]])
    assert torch.equal(layer(torch.zeros(1, 3, 16), (8, 12), kept)[0], fine.flatten(0, 1)[kept[0]])


def test_interpolation_is_a_choice_of_use():
    net = model("sincos")
    names = list(net.state_dict())
    trained, larger = torch.rand(1, 3, 16, 24), torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        before = [net(trained), net(larger)]
        interpolate_positions(net, (2, 3))
        after = [net(trained), net(larger)]
        assert interpolated_from(net) == (2, 3)
        interpolate_positions(net, None)
        assert torch.equal(net(larger), before[1])
    assert interpolated_from(net) is None
    assert torch.equal(after[0], before[0])
    assert not torch.allclose(after[1], before[1], atol=1e-5)
    assert list(net.state_dict()) == names
    assert interpolated_from(model()) is None
    with pytest.raises(ValueError, match="Croma has no sine-cosine positions to interpolate"):
        interpolate_positions(model(), (2, 3))
    with pytest.raises(ValueError, match=r"the trained grid must be .*got \(0, 3\)"):
        interpolate_positions(net, (0, 3))


def test_cached_features_know_of_interpolation(tmp_path):
    """The weights are the same; features of one must not be taken for those of the other."""
    data = two_colors([(32, 32)] * 2, splits={"test": (0, 1)})
    net = model("sincos")
    plain = encode(net, data, level="patch", cache=tmp_path)
    interpolate_positions(net, (2, 2))
    other = encode(net, data, level="patch", cache=tmp_path)
    assert plain.key != other.key
    assert not np.allclose(plain.stream("s2").features, other.stream("s2").features, atol=1e-5)


@pytest.mark.parametrize("positions", ["alibi", "sincos", "peg"])
def test_all_positions_serve_all_sizes(positions):
    data = two_colors([(40, 80)] * 3, splits={"train": (0, 1), "test": (2,)})
    net = model(positions)
    if positions == "sincos":
        interpolate_positions(net, (2, 2))
    sizes = (8, 40, (16, 80))
    found = extrapolate(net, data, train_size=16, sizes=sizes, options=QUICK, num_resamples=10)
    assert all(0.5 < row.metrics["miou"] <= 1 for row in found)


# -- tables and pictures --------------------------------------------------------------------------------


def rows(*values):
    return [
        AtSize(size=size, images=1, metrics={"miou": value}, intervals={"miou": (value - 0.1, value + 0.05)})
        for size, value in zip(((48, 48), (96, 480), (120, 120)), values, strict=True)
    ]


def test_the_table():
    results = {"2D-ALiBi": rows(0.5, 0.6, 0.7), "PEG": rows(0.4, 0.123, 1)}
    assert table(results, "miou").splitlines() == [
        "|  | 48 | 96 x 480 | 120 |",
        "| --- | ---: | ---: | ---: |",
        "| 2D-ALiBi | 50.0 | 60.0 | 70.0 |",
        "| PEG | 40.0 | 12.3 | 100.0 |",
    ]
    with pytest.raises(ValueError, match="at the same sizes"):
        table({"a": rows(0.1, 0.2, 0.3), "b": rows(0.1, 0.2, 0.3)[:2]}, "miou")
    with pytest.raises(ValueError, match="at the same sizes"):
        table({}, "miou")
    with pytest.raises(ValueError, match="a has no top1 at 48, 96 x 480, 120; it has miou"):
        table({"a": rows(0.1, 0.2, 0.3)}, "top1")


def test_the_picture_is_a_png_with_a_line_for_each_model(tmp_path):
    from matplotlib.image import imread

    one, two = tmp_path / "one.png", tmp_path / "two.png"
    draw_extrapolation({"2D-ALiBi": rows(0.5, 0.6, 0.7)}, "miou", one)
    draw_extrapolation({"2D-ALiBi": rows(0.5, 0.6, 0.7), "PEG": rows(0.4, 0.2, 0.3)}, "miou", two)
    pictures = [imread(path)[..., :3] for path in (one, two)]

    def colored(picture, rgb):
        return (np.abs(picture - np.array(rgb) / 255).max(-1) < 0.02).sum()

    assert all(colored(picture, (31, 119, 180)) > 50 for picture in pictures)
    assert [colored(picture, (255, 127, 14)) > 50 for picture in pictures] == [False, True]
    assert not list(tmp_path.glob("*.tmp"))
