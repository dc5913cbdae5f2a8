"""Features in 8 bits: what a rule states is what it does, and what it loses is measured."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from rsbackbones.embed.quantize import FILL, RULES, Quantization


def sample(n=400, dim=16, seed=0):
    """Features as a ViT has them: clusters, and one channel much larger than the others."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(8, dim))
    x = centers[rng.integers(8, size=n)] + 0.3 * rng.normal(size=(n, dim))
    x[:, 3] = 40 + 5 * x[:, 3]
    return x.astype(np.float32)


@pytest.mark.parametrize("rule", RULES)
def test_the_inverse_is_within_half_a_step(rule):
    x = sample()
    q = Quantization.of_sample(rule, x)
    stored, scales, clipped = q.encode(x)
    assert stored.dtype == q.dtype
    decoded = q.decode(stored, scales)
    if rule == "per-band":
        low, high = (np.float32(q.offset) + s * 127 * np.float32(q.scale) for s in (-1, 1))
        inside = (x >= low) & (x <= high)
        assert clipped <= (~inside).sum() <= 0.005 * x.size
        assert (
            np.abs(decoded - x)[inside]
            <= (np.float32(q.scale) * 0.501 + 1e-6)[None].repeat(len(x), 0)[inside]
        ).all()
    elif rule == "per-vector":
        assert (np.abs(decoded - x).max(1) <= np.abs(x).max(1) / 127 * 0.501).all()
        assert clipped == 0
    elif rule == "alphaearth":
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        # The square root is stored in steps of 1 / 127.5.
        assert np.abs(np.sqrt(np.abs(decoded)) - np.sqrt(np.abs(unit))).max() <= 0.5001 / 127.5
    else:
        np.testing.assert_allclose(decoded, x, rtol=0 if rule == "none" else 1e-3)


@pytest.mark.parametrize("rule", RULES)
def test_vectors_without_data_stay_so(rule):
    x = sample()
    q = Quantization.of_sample(rule, x)
    x[5], x[7, 2] = np.nan, np.nan
    stored, scales, _ = q.encode(x)
    if stored.dtype == np.int8:
        assert (stored[[5, 7]] == FILL).all()
        assert (np.delete(stored, [5, 7], axis=0) != FILL).all()
    assert np.isnan(q.decode(stored, scales)[5]).all()


def test_the_loss_is_what_scikit_learn_finds():
    x = sample()
    for rule in ("per-band", "per-vector", "alphaearth"):
        q = Quantization.of_sample(rule, x)
        stored, scales, clipped = q.encode(x)
        y = q.decode(stored, scales)
        near = [NearestNeighbors(n_neighbors=11).fit(v).kneighbors(v)[1][:, 1:] for v in (x, y)]
        shared = [len({*a} & {*b}) / 10 for a, b in zip(*near, strict=True)]
        cosine = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
        found = q.measure(x)
        assert found["neighbor_agreement"] == pytest.approx(np.mean(shared), abs=0.005)
        assert found["cosine_error_p99"] == pytest.approx(np.quantile(1 - cosine, 0.99), abs=1e-6)
        assert found["clipped_share"] == clipped / x.size
    # The large channel decides the step of a vector, and not that of the other bands.
    assert Quantization.of_sample("per-band", x).measure(x)["neighbor_agreement"] > 0.9
    assert Quantization.of_sample("per-vector", x).measure(x)["neighbor_agreement"] < 0.9


@settings(max_examples=30)
@given(value=st.floats(-1e4, 1e4, width=32))
def test_a_band_of_one_value_is_kept(value):
    x = np.full((50, 3), value, np.float32)
    q = Quantization.of_sample("per-band", x)
    np.testing.assert_allclose(q.decode(q.encode(x)[0]), x, rtol=1e-5, atol=1e-9)


def test_it_survives_json():
    q = Quantization.of_sample("per-band", sample())
    assert Quantization.from_json(q.as_json()) == q


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="per-band, per-vector"):
        Quantization.of_sample("int4", sample())
