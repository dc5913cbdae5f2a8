"""Labelled samples: turned with their labels, mixed with them, and the same however processes divide them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rsbackbones import create_model
from rsbackbones.eval.transform import dated_transform
from rsbackbones.train.finetune.recipe import Views
from rsbackbones.train.finetune.run import build_model
from rsbackbones.train.finetune.samples import LabelledPlan, LabelledSamples, PairedSampler, zoom
from tests.train.finetune_setup import CLASSES, DENSE, labelled, small_recipe, with_samples

PLAIN = Views(flips=False, rot90=False, mixup=0, cutmix=0, label_smoothing=0)


def samples(data, views=PLAIN, seed=0):
    model = build_model(small_recipe(**(DENSE if data.labels is None else {})), data)
    inputs = dated_transform(model, data)
    return LabelledSamples(data, np.arange(len(data)), inputs, views, scale=1, seed=seed)


def keys(indices, epoch=0, step=0):
    return [(epoch, step, i) for i in indices]


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(0, 3), st.integers(0, 1000))
@settings(max_examples=40)
def test_pieces_mix_the_pairs_of_the_whole_batch(processes, accumulate, half, step, seed):
    """Timm mixes the i-th from the front with the i-th from the back of what it is given."""
    batch = 2 * half * processes * accumulate
    plan = LabelledPlan(lengths=(3 * batch,), repeats=(1,), blocks=(1,), batch_size=batch, seed=seed)

    def pairs(of):
        return [{a[2], b[2]} for a, b in zip(of, reversed(of), strict=True)]

    whole = plan.batch(step)
    assert all(key[:2] == (step // 3, step) for key in whole)
    pieces = [
        list(PairedSampler(
            plan, start=step, stop=step + 1, rank=rank, world_size=processes, accumulate=accumulate
        ))
        for rank in range(processes)
    ]  # fmt: skip
    divided = [piece for of_rank in pieces for piece in of_rank]
    assert sorted(key for piece in divided for key in piece) == sorted(whole)
    assert sorted(map(sorted, (p for piece in divided for p in pairs(piece)))) == sorted(
        map(sorted, pairs(whole))
    )


@pytest.mark.parametrize("task", ["pixels", "change"])
def test_a_label_map_turns_with_its_image(task):
    """Where the image is bright the label is 1, whatever the view; all eight views come."""
    data = labelled(task, count=40)
    turning = samples(data, Views(mixup=0, cutmix=0, label_smoothing=0))
    batch = turning.__getitems__(keys(range(40)))
    image, label = batch.images["s2"], batch.target
    assert label.shape == (40, 16, 16)
    assert label.dtype == torch.int64
    red = image[:, 1, 2] if task == "change" else image[:, 2]
    seen = label >= 0
    assert (label == -1).sum() == 40 * 16  # the ignored row is a row or a column now
    bright = (red.amin() + red.amax()) / 2
    assert torch.equal((red > bright)[seen].long(), label[seen])
    plain = samples(data).__getitems__(keys(range(40))).target
    ways = {
        (k, flip)
        for before, after in zip(plain, label, strict=True)
        for k in range(4)
        for flip in (False, True)
        if torch.equal(torch.rot90(before.flip(1) if flip else before, k), after)
    }
    assert len(ways) == 8


def test_a_larger_image_is_cropped_with_its_labels():
    """At twice the size every label is four, and the window lies anywhere."""
    label = torch.arange(64).reshape(1, 8, 8)
    image = label.float().expand(3, 8, 8)
    large = label[0].repeat_interleave(2, 0).repeat_interleave(2, 1)
    generator, places = torch.Generator().manual_seed(0), set()
    for _ in range(30):
        images, cut = zoom({"s2": image}, label, (2.0, 2.0), 1, generator)
        (place,) = [
            (i, j) for i in range(9) for j in range(9) if torch.equal(cut[0], large[i : i + 8, j : j + 8])
        ]
        # Bilinear values of a plane lie within the step between two rows.
        assert (images["s2"] - cut).abs().max() < 9
        places.add(place)
    assert len(places) > 20


def test_a_smaller_image_is_filled_and_its_filling_ignored():
    image, label = torch.ones(2, 3, 8, 8), torch.ones(1, 32, 32, dtype=torch.int64)  # labels x4
    images, cut = zoom({"s2": image}, label, (0.5, 0.5), 4, torch.Generator())
    expected = torch.zeros(8, 8)
    expected[:4, :4] = 1
    torch.testing.assert_close(images["s2"], expected.expand(2, 3, 8, 8))
    assert torch.equal(cut[0] == 1, expected.bool().repeat_interleave(4, 0).repeat_interleave(4, 1))
    assert set(cut.unique().tolist()) == {-1, 1}


def test_colors_of_pictures_are_distorted_and_their_labels_are_not():
    model = create_model("fomu_resnet_tiny", overrides={"channels": (8, 8, 8, 8), "stem_width": 4})
    data = labelled("pixels", sensors=("rgb",), side=32, count=8)
    plain, other = (
        LabelledSamples(data, np.arange(8), dated_transform(model, data), views, scale=1, seed=0)
        .__getitems__(keys(range(8)))
        for views in (PLAIN, replace(PLAIN, photometric=True))
    )  # fmt: skip
    assert torch.equal(plain.target, other.target)
    changed = [not torch.equal(a, b) for a, b in zip(plain.images["rgb"], other.images["rgb"], strict=True)]
    assert 4 < sum(changed) <= 8
    wide = with_samples(data, i0={**data.read(0), "rgb": data.read(0)["rgb"].astype(np.uint16)})
    again = LabelledSamples(
        wide, np.arange(8), dated_transform(model, wide), replace(PLAIN, photometric=True), scale=1, seed=0
    )
    with pytest.raises(
        ValueError, match=r"distorts pictures of 8 bits, got uint16: views\.photometric=false"
    ):
        again.__getitems__(keys([0]))


def test_samples_are_zoomed_within_the_range():
    """Where the image is bright the label is still 1, but at the edges of pixels that were resized."""
    data = labelled("pixels", count=40)
    views = replace(PLAIN, ratio_range=(0.5, 2.0))
    batch = samples(data, views).__getitems__(keys(range(40)))
    image, label = batch.images["s2"][:, 2], batch.target
    seen = label >= 0
    bright = (image.amin() + image.amax()) / 2
    assert ((image > bright)[seen].long() == label[seen]).float().mean() > 0.9
    filled = [(one == -1).all(0).sum().item() for one in label]
    assert 0 < sum(0 < columns <= 8 for columns in filled) < 40


def test_a_sample_follows_from_seed_epoch_and_index():
    data = labelled()
    views = Views(mixup=0, cutmix=0)
    alone = samples(data, views).__getitems__(keys([3], epoch=1))
    among = samples(data, views).__getitems__(keys([5, 3, 0], epoch=1, step=9))
    assert torch.equal(alone.images["s2"][0], among.images["s2"][1])
    assert among.names == ("sample 5", "sample 3", "sample 0")
    others = [samples(data, views, seed).__getitems__(keys(range(24), epoch)) for seed, epoch in
              ((0, 0), (0, 1), (1, 0))]  # fmt: skip
    assert not torch.equal(others[0].images["s2"], others[1].images["s2"])
    assert not torch.equal(others[0].images["s2"], others[2].images["s2"])


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
@pytest.mark.parametrize("task", ["classes", "multilabel"])
def test_labels_are_mixed_as_the_images_are(task, mixup, cutmix):
    """Images of one value each: the mean of a mixed image is that of the values of what it shows."""
    data = labelled(task, sensors=("s2", "s1"))
    values = np.linspace(300, 2700, 24)
    flat = {
        f"i{i}": {"s2": np.full((4, 16, 16), v), "s1": np.full((2, 16, 16), -20 + v / 200)}
        for i, v in enumerate(values)
    }
    data = with_samples(data, **flat)
    views = Views(mixup=mixup, cutmix=cutmix, label_smoothing=0)
    plain = samples(data).__getitems__(keys(range(24)))
    mixing = samples(data, views)
    shares = []
    for step in range(6):
        mixed = mixing.__getitems__(keys(range(24), step=step))
        for m in ("s2", "s1"):
            now, before = (batch.images[m].mean((2, 3)) for batch in (mixed, plain))
            share = ((now - before.flip(0)) / (before - before.flip(0))).mean(1)  # of the sample itself
            assert float((share - share.mean()).abs().max()) < 1e-2  # 8 bits
        share = float(share.mean())
        hard = torch.from_numpy(data.labels)
        hard = torch.eye(3)[hard] if task == "classes" else hard.float()
        assert torch.allclose(mixed.target, share * hard + (1 - share) * hard.flip(0), atol=2e-2)
        shares.append(share)
    assert np.std(shares) > 0.05
    again = mixing.__getitems__(keys(range(24), step=0))
    assert torch.equal(again.target, mixing.__getitems__(keys(range(24), step=0)).target)


def test_what_is_mixed_leaves_numpys_generator_alone():
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    samples(labelled(), Views()).__getitems__(keys(range(4)))
    assert (np.random.get_state()[1] == before).all()


def test_label_smoothing():
    """A tenth is spread over the classes; of several labels each moves toward 1/2."""
    views = Views(mixup=0, cutmix=0, label_smoothing=0.1)
    one = samples(labelled(), views).__getitems__(keys([1])).target
    assert one.tolist() == [pytest.approx([0.1 / 3, 0.9 + 0.1 / 3, 0.1 / 3])]
    several = samples(labelled("multilabel"), views).__getitems__(keys([1])).target
    assert several.tolist() == [pytest.approx([0.95, 0.05, 0.05])]


def test_images_are_resized():
    views = Views(size=24, mixup=0, cutmix=0)
    batch = samples(labelled(), views).__getitems__(keys([0, 1]))
    assert batch.images["s2"].shape == (2, 4, 24, 24)
    assert batch.target.shape == (2, len(CLASSES))


def test_samples_that_cannot_be_used_are_named():
    good = labelled(sensors=("s2", "s1")).read(3)
    lost = {**good, "s1": np.where(np.arange(16) == 7, np.nan, good["s1"])}
    data = with_samples(labelled(sensors=("s2", "s1")), i3=lost)
    with pytest.raises(ValueError, match=r"small classes: sample 3: s1: NaN or infinity"):
        samples(data).__getitems__(keys([2, 3]))
    larger = {m: np.pad(x, ((0, 0), (0, 8), (0, 8)), mode="edge") for m, x in good.items()}
    data = with_samples(labelled(sensors=("s2", "s1")), i3=larger)
    with pytest.raises(ValueError, match=r"16 x 16, 24 x 24 pixels in one batch.*views.size"):
        samples(data).__getitems__(keys([2, 3]))
    wrong = labelled("pixels").read(3)
    wrong["label"] = wrong["label"][:8]
    with pytest.raises(ValueError, match=r"sample 3: the label map is \[8, 16\].*expected \[16, 16\]"):
        samples(with_samples(labelled("pixels"), i3=wrong)).__getitems__(keys([3]))


def test_half_of_the_steps_are_cut_and_half_are_mixed():
    """Images of one value each stay so where they are mixed; where they are cut they have two."""
    flat = {f"i{i}": {"s2": np.full((4, 16, 16), 300 + 100 * i)} for i in range(24)}
    mixing = samples(with_samples(labelled(), **flat), Views())
    kinds = []
    for step in range(300):
        images = mixing.__getitems__(keys(range(4), step=step)).images["s2"]
        values = {len(image[0].unique()) for image in images}
        kinds.append("cut" if values == {2} else "mixed" if values == {1} else "none")
    assert 110 < kinds.count("cut") <= 160  # a cut may be empty, or everything
    assert 130 < kinds.count("mixed") < 190
    assert kinds.count("none") == 0
