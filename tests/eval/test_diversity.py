"""How alike patches are, and what they know of their place, on cases with known answers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rsbackbones as rsb
from rsbackbones.eval.diversity import (
    mean_pairwise_cosine,
    patch_similarity,
    position_probing,
    probe_positions,
)
from rsbackbones.eval.linear_probe import ProbeOptions
from rsbackbones.input_spec import RGB8
from tests.eval.dense_sets import pixel_set, simulated

SMALL = {"depth": 2, "dim": 32, "num_heads": 4}
QUICK = ProbeOptions(hidden=128, rates=(1e-4, 1e-3, 1e-2), warmup=2, epochs=40, batch=128)


@given(seed=st.integers(0, 2**31), count=st.integers(2, 7), width=st.integers(1, 5))
@settings(max_examples=30)
def test_the_closed_form_is_the_mean_over_pairs(seed, count, width):
    x = torch.randn(3, count, width, generator=torch.Generator().manual_seed(seed))
    for vectors, found in zip(x.double(), mean_pairwise_cosine(x), strict=True):
        pairs = [
            float(a @ b / (a.norm() * b.norm()))
            for i, a in enumerate(vectors)
            for j, b in enumerate(vectors)
            if i != j
        ]
        assert float(found) == pytest.approx(np.mean(pairs), abs=1e-9)


def test_similarities_with_known_answers():
    same = torch.full((5, 3), 2.0)
    assert float(mean_pairwise_cosine(same)) == pytest.approx(1)
    assert float(mean_pairwise_cosine(torch.eye(4))) == pytest.approx(0)
    assert float(mean_pairwise_cosine(torch.tensor([[1.0, 0], [-3, 0]]))) == pytest.approx(-1)
    assert float(mean_pairwise_cosine(torch.tensor([[1.0, 0], [0, 0]]))) == 0
    with pytest.raises(ValueError, match="at least two"):
        mean_pairwise_cosine(torch.ones(1, 3))


def test_patches_of_a_model():
    data = simulated([(16, 32)] * 3)
    torch.manual_seed(0)
    model = rsb.create_model("croma_vit_tiny", overrides=SMALL, modalities=("s2",))
    found = patch_similarity(model, data, batch_size=2)
    x = rsb.create_preprocess(model)(np.stack([data.read(i)["s2"] for i in range(3)]))
    with torch.no_grad():
        tokens = torch.nn.functional.normalize(model.forward_features(x).tokens["s2"], dim=-1)
    pairs = tokens @ tokens.transpose(1, 2)
    others = pairs[:, ~torch.eye(8, dtype=torch.bool)]
    assert found == {"s2": pytest.approx(float(others.mean()), abs=1e-5)}


def test_random_features_do_not_know_their_place():
    """Nor does the probe pretend: cross-entropy about that of guessing, accuracy about chance."""
    generator = np.random.default_rng(0)
    train, test = (generator.standard_normal((n, 16, 8)).astype(np.float32) for n in (120, 60))
    found = probe_positions(train, test, options=QUICK)
    assert found.guessing == pytest.approx(math.log(16))
    assert found.guessing - 0.02 < found.cross_entropy < found.guessing + 0.1
    assert found.accuracy < 0.12


def test_features_that_hold_their_place_tell_it():
    generator = np.random.default_rng(0)
    place = 3 * generator.standard_normal((1, 16, 8))
    train, test = ((place + 0.1 * generator.standard_normal((n, 16, 8))).astype(np.float32) for n in (60, 20))
    found = probe_positions(train, test, options=QUICK)
    assert (found.cross_entropy < 0.05, found.accuracy) == (True, 1)


def test_cross_entropy_is_scikit_learns():
    """Places that half of the features tell, scored from the same probabilities."""
    from sklearn.metrics import accuracy_score, log_loss

    from rsbackbones.eval.diversity import _cross_entropy, _samples
    from rsbackbones.eval.linear_probe import train_probes

    x = np.random.default_rng(0).standard_normal((20, 6, 4)).astype(np.float32)
    x[:, :3, 0] += np.arange(3) * 4
    samples = _samples(x)
    probes = train_probes(samples, classes=6, kind="mlp", options=QUICK)
    scores = probes.scores(samples.features, 1e-2)
    places = np.arange(120) % 6
    loss, accuracy = _cross_entropy(probes, samples, 1e-2)
    assert loss == pytest.approx(log_loss(places, scores, labels=range(6)), abs=1e-5)
    assert accuracy == accuracy_score(places, scores.argmax(1))


@pytest.mark.parametrize(("positions", "known"), [("sincos", True), ("alibi", False)])
def test_a_model_with_absolute_positions_gives_them_away(positions, known):
    """On pictures of noise, whose patches differ between places by nothing but the encoding."""
    generator = np.random.default_rng(0)
    images = [{"s2": generator.integers(96, 160, (3, 32, 32)).astype(np.uint8)} for _ in range(60)]
    data = pixel_set(
        images, [None] * 60, bands={"s2": ("B04", "B03", "B02")}, units={"s2": RGB8},
        splits={"train": np.arange(40), "test": np.arange(40, 60)},
    )  # fmt: skip
    torch.manual_seed(0)
    model = rsb.create_model(
        "croma_vit_tiny", overrides={**SMALL, "positions": positions}, modalities=("s2",),
        bands={"s2": ("B04", "B03", "B02")},
    )  # fmt: skip
    found = position_probing(model, data, options=QUICK)["s2"]
    assert (found.accuracy > 0.95) is known
    assert (found.cross_entropy < 0.3 * found.guessing) is known


def test_bad_encodings_are_refused():
    x = np.zeros((4, 5, 3), np.float32)
    for train, test in ((x[0], x[0]), (x, x[:, :4]), (x[:1], x), (x, x[:0])):
        with pytest.raises(ValueError, match="at least two images to train on"):
            probe_positions(train, test)
    model = rsb.create_model("croma_vit_tiny", overrides=SMALL, modalities=("s2",))
    data = simulated([(16, 16)] * 2)
    with pytest.raises(ValueError, match="no images in split 'train'"):
        position_probing(model, data)
    splits = {"train": np.array([0]), "test": np.array([1])}
    data = pixel_set([data.read(i) for i in range(2)], [None] * 2, splits=splits)
    with pytest.raises(ValueError, match=r"stream .s1. is not available for s2.*available: s2"):
        position_probing(model, data, streams=("s1",))
