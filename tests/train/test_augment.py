"""Views and mixup: the same for all sensors, within bounds, with the stated distributions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rsbackbones.train.data.augment import View, cut, draw_mixup, draw_view, mix, resize_and_turn


def generator(seed):
    return torch.Generator().manual_seed(seed)


def coordinates(height, width):
    """[2, H, W]: every pixel holds its row and its column."""
    return np.stack(np.mgrid[0:height, 0:width]).astype(np.float32)


@given(
    st.integers(0, 2**40), st.integers(20, 60), st.integers(20, 60), st.integers(1, 20), st.integers(20, 90)
)
@settings(deadline=None, max_examples=150)
def test_a_view_lies_in_its_image(seed, height, width, low, high):
    view = draw_view(generator(seed), height, width, crop=(low, high), flips=True, turns=True)
    assert low <= view.side <= min(high, height, width)
    assert 0 <= view.top <= height - view.side
    assert 0 <= view.left <= width - view.side
    assert cut(view, coordinates(height, width)).shape == (2, view.side, view.side)
    assert view == draw_view(generator(seed), height, width, crop=(low, high), flips=True, turns=True)


def test_all_sides_and_corners_occur():
    views = [draw_view(generator(seed), 12, 10, crop=(7, 99), flips=True, turns=True) for seed in range(1500)]
    assert {view.side for view in views} == {7, 8, 9, 10}
    assert stats.chisquare(np.bincount([v.side for v in views])[7:]).pvalue > 1e-4  # all as often
    assert {(v.top, v.left) for v in views if v.side == 7} == {(i, j) for i in range(6) for j in range(4)}
    with pytest.raises(ValueError, match=r"12 x 10 pixels.*smallest crop, 11.*data\.crop to at most 10"):
        draw_view(generator(0), 12, 10, crop=(11, 20), flips=True, turns=True)


def test_the_eight_turns_are_equally_often_and_exact():
    image = torch.from_numpy(coordinates(6, 6))
    plain = image.numpy()
    symmetries = [np.rot90(x, k, (1, 2)) for x in (plain, plain[:, :, ::-1]) for k in range(4)]
    counts = np.zeros(8, dtype=int)
    for seed in range(1600):
        view = draw_view(generator(seed), 6, 6, crop=(6, 6), flips=True, turns=True)
        got = resize_and_turn(view, torch.from_numpy(cut(view, plain)), 6).numpy()
        matching = [i for i, expected in enumerate(symmetries) if np.array_equal(got, expected)]
        assert len(matching) == 1
        counts[matching[0]] += 1
    assert stats.chisquare(counts).pvalue > 1e-4
    for flips, turns, allowed in (
        (False, False, {0}),
        (False, True, {0, 1, 2, 3}),
        (True, False, {0, 2, 4, 6}),
    ):
        found = set()
        for seed in range(60):
            view = draw_view(generator(seed), 6, 6, crop=(6, 6), flips=flips, turns=turns)
            got = resize_and_turn(view, image, 6).numpy()
            found |= {i for i, expected in enumerate(symmetries) if np.array_equal(got, expected)}
        assert found == allowed


@given(st.integers(0, 2**40))
@settings(deadline=None, max_examples=50)
def test_a_resized_view_shows_the_places_it_should(seed):
    """Coordinates stay coordinates under resizing: every pixel shows the place that it stands for."""
    view = draw_view(generator(seed), 64, 48, crop=(16, 48), flips=True, turns=True)
    size = 16
    got = resize_and_turn(view, torch.from_numpy(cut(view, coordinates(64, 48))), size).double().numpy()
    centres = (np.arange(size) + 0.5) * view.side / size - 0.5
    expected = np.stack(np.meshgrid(view.top + centres, view.left + centres, indexing="ij"))
    expected = expected[:, ::-1] if view.flip_rows else expected
    expected = expected[:, :, ::-1] if view.flip_columns else expected
    expected = np.rot90(expected, view.quarter_turns, (1, 2))
    inner = slice(2, -2)  # at the border the antialiasing filter is cut off
    np.testing.assert_allclose(got[:, inner, inner], expected[:, inner, inner], atol=0.15)  # of a pixel


def test_shrinking_averages():
    """Without antialiasing a fine chequerboard would stay black and white."""
    board = torch.from_numpy((np.indices((36, 36)).sum(0) % 2).astype(np.float32))[None]
    view = View(top=0, left=0, side=36, flip_rows=False, flip_columns=False, quarter_turns=0)
    assert (resize_and_turn(view, board, 12) - 0.5).abs().max() < 0.1


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_mixup_is_beta_distributed(alpha):
    drawn = [draw_mixup(generator(seed), alpha, 5) for seed in range(3000)]
    shares = [share for _, share in drawn]
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 1e-4
    assert stats.kstest(shares, stats.beta(1.5 * alpha, 1.5 * alpha).cdf).pvalue < 1e-4
    assert stats.chisquare(np.bincount([partner for partner, _ in drawn], minlength=5)).pvalue > 1e-4


def test_mixing_is_the_weighted_mean_of_every_sensor():
    a = {"s2": torch.full((1, 2, 2), 1.0), "s1": torch.full((1, 2, 2), 3.0)}
    b = {"s2": torch.full((1, 2, 2), 5.0), "s1": torch.full((1, 2, 2), 7.0)}
    mixed = mix(a, b, 0.75)
    assert set(mixed) == {"s2", "s1"}
    assert (mixed["s2"] == 2).all()
    assert (mixed["s1"] == 4).all()
    assert torch.equal(mix(a, b, 1.0)["s2"], a["s2"])
