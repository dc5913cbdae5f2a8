"""Images encoded once: what is given, what is kept, and what is noticed."""

import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

import rsbackbones as rsb
from rsbackbones.data.labelled import open_labelled
from rsbackbones.data.labelled.dataset import LabelledDataset
from rsbackbones.eval.encode import encode, statistics_features
from rsbackbones.eval.metrics import compute_metrics, from_confusion, group_counts
from tests import forked

TINY = {"depth": 2, "dim": 32, "num_heads": 4}
BANDS = {"s2": ("B02", "B04", "B08"), "s1": ("VV", "VH")}


def build(seed=0, **options):
    torch.manual_seed(seed)
    return rsb.create_model("croma_vit_tiny", bands=BANDS, overrides=TINY, **options)


class Reads:
    """Hands out samples and counts how many were asked for."""

    def __init__(self, samples):
        self.samples, self.asked = samples, []

    def __call__(self, index):
        self.asked.append(index)
        return dict(self.samples[index])


def made(count=10, size=16, task="classes", seed=0, **changes):
    rng = np.random.default_rng(seed)
    dates = (2,) if task == "change" else ()
    samples = [
        {
            "s2": rng.integers(100, 4000, (*dates, 3, size, size)).astype(np.uint16),
            "s1": rng.normal(-14, 3, (*dates, 2, size, size)).astype(np.float32),
        }
        for _ in range(count)
    ]
    if task in ("pixels", "change"):
        for sample in samples:
            sample["label"] = rng.integers(-1, 3, (size, size))
    several = rng.integers(0, 2, (count, 3)).astype(bool)
    labels = {"classes": np.arange(count) % 3, "multilabel": several}.get(task)
    return LabelledDataset(**{
        "name": "made", "task": task, "classes": ("a", "b", "c"), "bands": BANDS,
        "ids": tuple(f"place {i}" for i in range(count)),
        "splits": {"train": np.arange(count - 4), "test": np.arange(count - 3, count)},
        "labels": labels, "read": Reads(samples), "digest": f"made {seed} {task} {size}", **changes,
    })  # fmt: skip


def test_features_are_those_of_the_model_one_image_at_a_time():
    model, data = build(), made()
    encoded = encode(model, data, batch_size=4)
    preprocess = rsb.create_preprocess(model)
    for i in (0, 5, 7, 9):
        with torch.inference_mode():
            x = preprocess({m: data.read(i)[m][None] for m in BANDS})
            alone = model.forward_features(x)
        for stream in ("s2", "s1", "joint"):
            np.testing.assert_allclose(encoded.stream(stream).features[i], alone.pooled[stream][0], atol=2e-6)
    assert np.isnan(encoded.stream("joint").features[6]).all(), "in no split, so not encoded"
    mean = encode(model, data, pool="mean", streams=["s2"])
    assert list(mean.dims) == ["s2"]
    np.testing.assert_allclose(mean.stream("s2").features[9], alone.tokens["s2"][0].mean(0), atol=2e-6)
    assert len({encoded.key, mean.key}) == 2


def test_streams_beside_each_other():
    encoded = encode(build(), made())
    joined = encoded.stream("s1+s2+joint")
    assert joined.dims == {"s1": 32, "s2": 32, "joint": 32}
    assert np.array_equal(joined.features[0, 32:64], encoded.stream("s2").features[0])
    assert np.array_equal(joined.stream("s2").features[0], encoded.stream("s2").features[0])
    assert joined.features.shape == (10, 96)
    samples = joined.of_images(np.array([7, 9]))
    assert np.array_equal(samples.features, joined.features[[7, 9]])
    assert samples.labels.tolist() == [1, 0]
    with pytest.raises(ValueError, match="no stream rgb"):
        encoded.stream("s1+rgb")


def test_patches_get_their_most_frequent_class():
    data = made(task="pixels")
    label = np.full((16, 16), -1)
    label[:8, :8] = 2
    label[0, 0] = 1
    label[8:, 8:] = np.repeat([0, 1], 4)[None]  # a tie: the first class
    data.read.samples[0]["label"] = label
    encoded = encode(build(), data, level="patch")
    first = encoded.of_images(np.array([0]))
    assert first.labels.tolist() == [2, 0], "two patches without a label are left out"
    assert first.pixels.tolist() == [[0, 1, 63], [32, 32, 0]]
    with torch.inference_mode():
        preprocess = rsb.create_preprocess(build())
        tokens = (
            build().forward_features(preprocess({m: data.read(0)[m][None] for m in BANDS})).tokens["joint"]
        )
    np.testing.assert_allclose(first.stream("joint").features, tokens[0, [0, 3]], atol=2e-6)
    assert set(encoded.groups.tolist()) == {0, 1, 2, 3, 4, 5, 7, 8, 9}


def test_pixels_are_counted_as_a_loop_over_them_counts():
    data = made(task="pixels")
    encoded = encode(build(), data, level="patch")
    samples = encoded.stream("joint").of_images(data.splits["test"])
    predicted = np.random.default_rng(0).integers(0, 3, len(samples))
    expected = np.zeros((3, 3), int)
    place = iter(predicted)
    for i in data.splits["test"]:
        label = data.read(i)["label"]
        for top in (0, 8):
            for left in (0, 8):
                guess = next(place)
                for true in label[top : top + 8, left : left + 8].ravel():
                    if true >= 0:
                        expected[true, guess] += 1
    outcome = samples.predictions(np.eye(3)[predicted])
    assert compute_metrics(outcome, "pixels", data.classes) == from_confusion(expected, data.classes)
    assert group_counts(outcome, np.zeros(len(samples), int)).tolist() == [expected.tolist()]


def test_patches_of_images_with_labels_of_their_own():
    data = made(task="multilabel")
    encoded = encode(build(), data, level="patch")
    assert encoded.labels.shape == (9 * 4, 3)
    assert np.array_equal(encoded.labels[4:8], np.repeat(data.labels[1:2], 4, axis=0))
    assert encoded.pixels is None


def test_change_is_the_difference_of_two_dates():
    data = made(task="change", classes=("no change", "change", "other"))
    encoded = encode(build(), data, level="patch")
    once = [
        encode(
            build(),
            replace(data, task="classes", labels=np.zeros(10, int), digest=f"date {date}",
                    read=lambda i, date=date: {m: data.read(i)[m][date] for m in BANDS}),
            level="patch",
        ).stream("s2").features
        for date in (0, 1)
    ]  # fmt: skip
    kept = np.isin(np.repeat(np.arange(9), 4), np.arange(9))
    np.testing.assert_allclose(encoded.stream("s2").features, np.abs(once[1] - once[0])[kept], atol=2e-6)


def test_a_label_map_needs_patches():
    encoded = encode(build(), made(task="pixels"))
    with pytest.raises(ValueError, match="level='patch'"):
        encoded.stream("s2").of_images(np.array([0]))


def test_sizes():
    data = made(size=20)
    message = r"20 x 20 pixels are no multiple of 8, the side of a patch.*size=24"
    with pytest.raises(ValueError, match=message):
        encode(build(), data)
    resized = encode(build(), data, size=24)
    one = rsb.create_preprocess(build())({m: data.read(0)[m][None] for m in BANDS})
    one = {
        m: torch.nn.functional.interpolate(x, (24, 24), mode="bilinear", antialias=True)
        for m, x in one.items()
    }
    with torch.inference_mode():
        expected = build().forward_features(one).pooled["joint"][0]
    np.testing.assert_allclose(resized.stream("joint").features[0], expected, atol=2e-6)
    with pytest.raises(ValueError, match=r"size= 30 x 30"):
        encode(build(), data, size=30)
    data = made(size=16)
    data.read.samples[3] = made(size=24, seed=1).read.samples[0]
    with pytest.raises(ValueError, match=r"made: place 3: .*24 x 24 pixels, others of the set have 16 x 16"):
        encode(build(), data)
    assert np.isfinite(encode(build(), data, size=(16, 24)).stream("s1").features[3]).all()


def test_a_second_run_reads_no_image(tmp_path):
    model, data = build(), made()
    first = encode(model, data, cache=tmp_path)
    data.read.asked.clear()
    second = encode(model, data, cache=tmp_path)
    assert data.read.asked == []
    assert first.key == second.key
    for stream in first.dims:
        assert np.array_equal(first.stream(stream).features, second.stream(stream).features, equal_nan=True)
    narrower = replace(data, splits={"train": np.array([0, 1]), "test": np.array([6])})
    encode(model, narrower, cache=tmp_path)
    assert data.read.asked == [6], "other splits find what is there"


def test_patches_are_kept_too(tmp_path):
    model, data = build(), made(task="pixels")
    first = encode(model, data, level="patch", cache=tmp_path)
    data.read.asked.clear()
    second = encode(model, data, level="patch", cache=tmp_path)
    assert data.read.asked == []
    for a, b in ((first.labels, second.labels), (first.pixels, second.pixels), (first.groups, second.groups)):
        assert np.array_equal(a, b)
    assert np.array_equal(first.stream("joint").features, second.stream("joint").features)


@pytest.mark.parametrize(
    "change",
    [
        lambda model, data: (build(seed=1), data, {}),
        lambda model, data: (model, replace(data, digest="other"), {}),
        lambda model, data: (model, data, {"size": 24}),
        lambda model, data: (model, data, {"pool": "mean"}),
        lambda model, data: (model, data, {"level": "patch"}),
        lambda model, data: (model, data, {"streams": ["s1"]}),
    ],
)
def test_what_changes_features_changes_the_key(tmp_path, change):
    model, data = build(), made()
    key = encode(model, data, cache=tmp_path).key
    model, data, options = change(model, data)
    assert encode(model, data, cache=tmp_path, **options).key != key


def test_a_trained_model_is_not_taken_for_the_one_that_was_loaded(tmp_path):
    model, data = build(), made()
    first = encode(model, data, cache=tmp_path)
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    assert encode(model, data, cache=tmp_path).key != first.key


def test_what_is_damaged_is_noticed_and_made_again(tmp_path):
    model, data = build(), made()
    first = encode(model, data, cache=tmp_path)
    (folder,) = tmp_path.iterdir()
    content = bytearray((folder / "rows.bin").read_bytes())
    content[5] ^= 1
    (folder / "rows.bin").write_bytes(content)
    data.read.asked.clear()
    with pytest.warns(UserWarning, match="1 of 9 rows are damaged"):
        again = encode(model, data, cache=tmp_path)
    assert data.read.asked == [0]
    # FeatureTable alone now, and beside others before: equal but for rounding.
    np.testing.assert_allclose(first.stream("joint").features, again.stream("joint").features, atol=2e-6)
    (folder / "job.json").write_text("{")
    with pytest.warns(UserWarning, match="made anew"):
        encode(model, data, cache=tmp_path)


@pytest.mark.parametrize("name", ["rows.bin", "done.bin"])
def test_files_cut_short(tmp_path, name):
    model, data = build(), made()
    first = encode(model, data, cache=tmp_path)
    (folder,) = tmp_path.iterdir()
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2 + 3])
    data.read.asked.clear()
    if name == "rows.bin":
        with pytest.warns(UserWarning, match="damaged"):
            again = encode(model, data, cache=tmp_path)
    else:
        again = encode(model, data, cache=tmp_path)
    assert 0 < len(data.read.asked) < 9
    np.testing.assert_allclose(first.stream("joint").features, again.stream("joint").features, atol=2e-6)


def test_a_foreign_folder_is_left_alone(tmp_path):
    model, data = build(), made()
    encode(model, data, cache=tmp_path)
    (folder,) = tmp_path.iterdir()
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        encode(model, data, cache=tmp_path)
    assert (folder / "thesis.txt").read_text() == "mine"


KILLED = """
import os, sys, pathlib
from tests.eval.test_encode import build, made
from rsbackbones.eval.encode import encode
data = made()
whole = data.read
class Dies:
    def __call__(self, index):
        if index == 5:
            os.kill(os.getpid(), 9)
        return whole(index)
from dataclasses import replace
encode(build(), replace(data, read=Dies()), batch_size=2, cache=pathlib.Path(sys.argv[1]))
"""


def test_a_killed_run_goes_on_after_its_last_batch(tmp_path):
    result = forked.run([sys.executable, "-c", KILLED, tmp_path])
    assert result.returncode == -9, result.stderr
    data = made()
    resumed = encode(build(), data, batch_size=2, cache=tmp_path)
    assert data.read.asked == [4, 5, 7, 8, 9]
    whole = encode(build(), made(), batch_size=2)
    np.testing.assert_allclose(resumed.stream("joint").features, whole.stream("joint").features, atol=2e-6)


def test_bad_pixels_are_named_and_nothing_is_kept(tmp_path):
    data = made()
    data.read.samples[4]["s1"][0, 2, 3] = np.nan
    with pytest.raises(ValueError, match="made: place 4: s1 has NaN or infinity in 1 of 256 pixels"):
        encode(build(), data, batch_size=2, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_unit_and_bands_are_checked():
    data = made()
    for sample in data.read.samples:
        sample["s2"] = (sample["s2"] / 10000).astype(np.float32)
    with pytest.raises(ValueError, match=r"place 0: .*look like reflectances"):
        encode(build(), data)
    assert np.isfinite(
        encode(build(), replace(data, units={"s2": "reflectance"})).stream("s2").features[0]
    ).all()
    with pytest.raises(ValueError, match="B08"):
        encode(build(), replace(made(), bands={**BANDS, "s2": ("B02", "B04", "B03")}))
    with pytest.raises(ValueError, match="unknown or no streams"):
        encode(build(), made(), streams=["optical"])
    with pytest.raises(ValueError, match="level must be"):
        encode(build(), made(), level="pixel")


def test_the_model_keeps_its_mode():
    model = build().train()
    encode(model, made())
    assert model.training


def test_statistics_of_bands():
    data = made()
    found = statistics_features(data)
    sample = data.read(8)
    x = np.concatenate([sample["s2"].astype(float), sample["s1"].astype(float)]).reshape(5, -1)
    np.testing.assert_allclose(
        found.stream("bands").features[8], np.concatenate([x.mean(1), x.std(1)]), rtol=1e-6
    )
    pixels = statistics_features(made(task="pixels"), level="patch", patch_size=8)
    corner = made(task="pixels").read(1)["s2"][2, :8, 8:].astype(float)
    second = pixels.of_images(np.array([1])).features[1]
    np.testing.assert_allclose(second[[2, 7]], [corner.mean(), corner.std()], rtol=1e-6)
    linear = replace(data, units={"s1": "linear"}, digest="linear",
                     read=lambda i: {**data.read(i), "s1": 10 ** (data.read(i)["s1"] / 10)})  # fmt: skip
    np.testing.assert_allclose(
        statistics_features(linear).stream("bands").features, found.stream("bands").features, rtol=1e-4
    )


def test_real_pictures(real_data, tmp_path):
    data = open_labelled(real_data / "eurosat_rgb_5000.zip")
    data = replace(data, splits={"train": np.arange(0, 5000, 250), "test": np.arange(1, 5000, 500)})
    torch.manual_seed(0)
    model = rsb.create_model(
        "croma_vit_tiny", modalities=("s2",), bands={"s2": data.bands["s2"]}, overrides=TINY
    )
    encoded = encode(model, data, cache=tmp_path)
    with torch.inference_mode():
        measured = data.read(250)["s2"][None] * np.float32(2750 / 255)
        expected = model(rsb.create_preprocess(model)(measured))[0]
    np.testing.assert_allclose(encoded.stream("s2").features[250], expected, atol=2e-6)


def test_a_missing_dark_pixel_is_judged_over_all_images():
    """A bright field is no sign of an offset; a set of them is, also if a few are dark (before 2022)."""
    bright = np.random.default_rng(0).integers(1500, 3000, (4, 3, 16, 16)).astype(np.uint16)
    model = rsb.create_model("croma_vit_tiny", modalities=("s2",), bands={"s2": BANDS["s2"]}, overrides=TINY)

    def of(images, digest):
        return LabelledDataset(
            name="bright", task="classes", classes=("a", "b"), bands={"s2": BANDS["s2"]}, units={"s2": "dn"},
            ids=tuple("abcd"), splits={"train": np.arange(2), "test": np.arange(2, 4)},
            labels=np.arange(4) % 2, read=lambda i: {"s2": images[i]}, digest=digest,
        )  # fmt: skip

    with pytest.warns(UserWarning, match="bright, all images: .*dn_baseline_0400"):
        encode(model, of(bright, "bright"))
    dark = bright.copy()
    dark[2, 0, 0] = 200  # a row: a single pixel tells nothing
    with pytest.warns(UserWarning, match="bright, 3 of 4 images: .*dn_baseline_0400"):
        encode(model, of(dark, "dark"))
    dark[1:, 0, 0] = 200
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode(model, of(dark, "darker"))
