"""Confusion counts of a split, against scikit-learn and a plain way of merging tiles."""

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix

import rsbackbones as rsb
from rsbackbones.eval.dense import predict, predict_tiled
from rsbackbones.eval.metrics import from_confusion
from rsbackbones.eval.transform import make_transform
from rsbackbones.heads import dense_model
from rsbackbones.sensors import get_sensor
from tests.eval.dense_sets import pixel_set, simulated

K = 3


def model(head="linear", *, modalities=("s2",), bands=None, seed=0, **changes):
    torch.manual_seed(seed)
    backbone = rsb.create_model(
        "croma_vit_tiny",
        modalities=modalities,
        bands=bands,
        overrides={"depth": 2, "dim": 32, "num_heads": 4},
    )
    return dense_model(backbone, head, **{"num_classes": K, **changes})


def scores_of(net, data, index):
    """[K, H, W] of one image, whole."""
    with torch.inference_mode():
        batch = make_transform(net, data)({m: x[None] for m, x in data.read(index).items() if m != "label"})
        return net(batch)[0].numpy()


def plain_counts(label, scores):
    counted = label != -1
    predicted = scores.argmax(0)
    return confusion_matrix(label[counted], predicted[counted], labels=range(len(scores)))


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_counts_are_those_of_scikit_learn_image_by_image(batch_size):
    data, net = simulated([(32, 48), (32, 48), (48, 32), (32, 48)], classes=K), model()
    counts = predict(net, data, "test", batch_size=batch_size)
    expected = [plain_counts(data.read(i)["label"], scores_of(net, data, i)) for i in range(4)]
    np.testing.assert_array_equal(counts, expected)
    assert counts.sum() == sum((data.read(i)["label"] != -1).sum() for i in range(4)) < 4 * 32 * 48
    assert (counts.sum((0, 1)) > 0).sum() > 1  # not one class everywhere


@pytest.mark.parametrize("size", [(40, 56), (16, 24), (11, 30)])
def test_tiles_give_the_mean_of_their_probabilities(size):
    data, net = simulated([size], classes=K, seed=3), model("upernet", width=16)
    sample = data.read(0)
    made = make_transform(net, data)({"s2": sample["s2"]})
    # Repeat the last pixels up to a tile, place tiles by hand, average what softmax gives.
    tile, overlap = 24, 8
    pad = [(0, 0)] + [(0, max(0, tile - n)) for n in size]
    image = np.pad(made["s2"].numpy(), pad, mode="edge")
    total, covered = np.zeros((K, *image.shape[1:])), np.zeros(image.shape[1:])
    ends = [sorted({*range(tile, n, tile - overlap), n}) for n in image.shape[1:]]
    for bottom in ends[0]:
        for right in ends[1]:
            window = (slice(bottom - tile, bottom), slice(right - tile, right))
            with torch.inference_mode():
                logits = net({"s2": torch.from_numpy(image[(slice(None), *window)].copy())[None]})[0].numpy()
            odds = np.exp(logits - logits.max(0))
            total[(slice(None), *window)] += odds / odds.sum(0)
            covered[window] += 1
    expected = (total / covered)[:, : size[0], : size[1]]
    with torch.inference_mode():
        scores = predict_tiled(net, made, tile=tile, overlap=overlap, batch_size=2)
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-5)
    counts = predict(net, data, "test", tile=tile, overlap=overlap, batch_size=3)
    np.testing.assert_array_equal(counts[0], plain_counts(sample["label"], scores.numpy()))


def test_one_tile_is_the_whole_image_and_half_overlaps_by_default():
    data, net = simulated([(32, 32)], classes=K), model()
    np.testing.assert_array_equal(predict(net, data, "test", tile=32), predict(net, data, "test"))
    data = simulated([(64, 64)], classes=K)
    half = predict(net, data, "test", tile=32, overlap=16)
    np.testing.assert_array_equal(predict(net, data, "test", tile=32), half)


def test_super_resolution_is_scored_against_its_own_labels():
    data, net = simulated([(16, 24), (16, 24)], classes=K), model("vit_lite", scale=4, width=16, depth=1)
    fine = [np.random.default_rng(i).integers(-1, K, (64, 96)) for i in range(2)]
    large = pixel_set([{"s2": data.read(i)["s2"]} for i in range(2)], fine, data.classes)
    expected = [plain_counts(fine[i], scores_of(net, large, i)) for i in range(2)]
    np.testing.assert_array_equal(predict(net, large, "test"), expected)
    np.testing.assert_array_equal(
        predict(net, large, "test", tile=24), predict(net, large, "test", tile=24, batch_size=1)
    )
    with pytest.raises(ValueError, match=r"place 0: labels \[16, 24\] and predictions \[64, 96\]"):
        predict(net, data, "test")


def test_change_sets_give_two_dates():
    scenes = simulated([(32, 32), (32, 32)], classes=2)
    images = [{"s2": np.stack([scenes.read(i)["s2"], scenes.read(1 - i)["s2"]])} for i in range(2)]
    labels = [np.random.default_rng(i).integers(0, 2, (32, 32)) for i in range(2)]
    data = pixel_set(images, labels, task="change")
    net = model("upernet", task="change", num_classes=2, width=16)
    expected = [plain_counts(labels[i], scores_of(net, data, i)) for i in range(2)]
    np.testing.assert_array_equal(predict(net, data, "test"), expected)
    np.testing.assert_array_equal(predict(net, data, "test", tile=32), expected)


def test_the_mode_of_the_model_is_left_as_it_was():
    data, net = simulated([(16, 16)], classes=K), model("upernet", width=16).train()
    before = {name: x.clone() for name, x in net.state_dict().items()}
    predict(net, data, "test")
    assert net.training
    assert net.head.decoder.training
    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())


def test_what_does_not_fit_names_the_sample_and_the_set():
    data, net = simulated([(16, 16), (16, 16)], classes=K), model()
    with pytest.raises(ValueError, match="no samples in 'val'; its splits: test"):
        predict(net, data, "val")
    with pytest.raises(ValueError, match="no samples in 'test'"):
        predict(net, pixel_set([], []), "test")
    with pytest.raises(ValueError, match="by hand has classes, not a label for every pixel"):
        predict(net, pixel_set([], [], task="classes"), "test")
    with pytest.raises(ValueError, match="the model gives 3 classes, by hand has 2"):
        predict(net, simulated([(16, 16)], classes=2), "test")
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        predict(net, data, "test", batch_size=0)
    with pytest.raises(ValueError, match="name their size with tile="):
        predict(net, data, "test", overlap=8)
    images = [data.read(i) for i in range(2)]
    labels = [image.pop("label") for image in images]
    labels[1] = labels[1] + K
    with pytest.raises(ValueError, match="place 1: label"):
        predict(net, pixel_set(images, labels, data.classes), "test")
    images[1]["s2"] = images[1]["s2"].astype(np.float32)
    images[1]["s2"][2, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"place 1: s2: NaN or infinity .*B03: 1"):
        predict(net, pixel_set(images, labels, data.classes), "test")


# -- real samples --------------------------------------------------------------------------------------

TEN_METRES = ("B02", "B03", "B04", "B08")


def test_a_real_city_at_two_dates(real_data):
    with np.load(real_data / "oscd" / "bercy.npz") as file:
        images, label = np.stack([file["t1_10m"], file["t2_10m"]]), file["change"].astype(np.int64)
    data = pixel_set(
        [{"s2": images}], [label], ("unchanged", "change"), task="change", bands={"s2": TEN_METRES}
    )
    net = model("upernet", task="change", num_classes=2, bands={"s2": TEN_METRES}, width=16)
    counts = predict(net, data, "test", tile=128, overlap=64)
    assert counts.shape == (1, 2, 2)
    assert counts.sum() == label.size == 395 * 360
    assert counts[0, 1].sum() == (label == 1).sum() > 0
    metrics = from_confusion(counts.sum(0), data.classes)
    hits, missed, false = counts[0, 1, 1], counts[0, 1, 0], counts[0, 0, 1]
    assert metrics["f1_change"] == pytest.approx(2 * hits / (2 * hits + missed + false))


def test_a_real_flood_is_scored_by_the_iou_of_water(real_data):
    with np.load(real_data / "sen1floods11" / "Spain_7370579.npz") as file:
        optical, label = file["s2"][:, :256, :192], file["label"][:256, :192].astype(np.int64)
    names = tuple(band.name for band in get_sensor("s2").bands)
    data = pixel_set([{"s2": optical}], [label], ("dry", "water", "cloud"), bands={"s2": names})
    net = model("vit_lite", width=16, depth=1)
    counts = predict(net, data, "test")
    assert counts.sum() == (label >= 0).sum()
    scores = scores_of(net, data, 0).argmax(0)
    water, said = label == 1, (scores == 1) & (label >= 0)
    expected = (water & said).sum() / (water | said).sum()
    assert from_confusion(counts.sum(0), data.classes)["iou_water"] == pytest.approx(expected)
