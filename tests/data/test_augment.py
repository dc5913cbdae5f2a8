"""Views and mixup: the same for all sensors, within bounds, with the stated distributions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rsbackbones.data.augment import (
    View,
    cut,
    draw_mixup,
    draw_view,
    draw_views,
    mix,
    resize_and_turn,
    turn,
)
from rsbackbones.data.npz import NpzFile, NpzSource
from rsbackbones.input_spec import SSL4EO_S12
from rsbackbones.train.dataset import DataStream, TrainingSet, Views
from tests.reference.seamo_plain import pixels_of, squares_fit
from tests.train.training import BANDS


def generator(seed):
    return torch.Generator().manual_seed(seed)


def coordinates(height, width):
    """[2, H, W]: every pixel holds its row and its column."""
    return np.stack(np.mgrid[0:height, 0:width]).astype(np.float32)


@given(
    st.integers(0, 2**40), st.integers(20, 60), st.integers(20, 60), st.integers(1, 20), st.integers(20, 90)
)
@settings(max_examples=150)
def test_a_view_lies_in_its_image(seed, height, width, low, high):
    view = draw_view(generator(seed), height, width, crop=(low, high), flips=True, rot90=True)
    assert low <= view.side <= min(high, height, width)
    assert 0 <= view.top <= height - view.side
    assert 0 <= view.left <= width - view.side
    assert cut(view, coordinates(height, width)).shape == (2, view.side, view.side)
    assert view == draw_view(generator(seed), height, width, crop=(low, high), flips=True, rot90=True)


def test_all_sides_and_corners_occur():
    views = [draw_view(generator(seed), 12, 10, crop=(7, 99), flips=True, rot90=True) for seed in range(1500)]
    assert {view.side for view in views} == {7, 8, 9, 10}
    assert stats.chisquare(np.bincount([v.side for v in views])[7:]).pvalue > 1e-4  # all as often
    assert {(v.top, v.left) for v in views if v.side == 7} == {(i, j) for i in range(6) for j in range(4)}
    with pytest.raises(ValueError, match=r"12 x 10 pixels.*smallest crop, 11.*data\.crop to at most 10"):
        draw_view(generator(0), 12, 10, crop=(11, 20), flips=True, rot90=True)


def test_the_eight_turns_are_equally_often_and_exact():
    image = torch.from_numpy(coordinates(6, 6))
    plain = image.numpy()
    symmetries = [np.rot90(x, k, (1, 2)) for x in (plain, plain[:, :, ::-1]) for k in range(4)]
    counts = np.zeros(8, dtype=int)
    for seed in range(1600):
        view = draw_view(generator(seed), 6, 6, crop=(6, 6), flips=True, rot90=True)
        got = resize_and_turn(view, torch.from_numpy(cut(view, plain)), 6).numpy()
        matching = [i for i, expected in enumerate(symmetries) if np.array_equal(got, expected)]
        assert len(matching) == 1
        counts[matching[0]] += 1
    assert stats.chisquare(counts).pvalue > 1e-4
    for flips, rot90, allowed in (
        (False, False, {0}),
        (False, True, {0, 1, 2, 3}),
        (True, False, {0, 2, 4, 6}),
    ):
        found = set()
        for seed in range(60):
            view = draw_view(generator(seed), 6, 6, crop=(6, 6), flips=flips, rot90=rot90)
            got = resize_and_turn(view, image, 6).numpy()
            found |= {i for i, expected in enumerate(symmetries) if np.array_equal(got, expected)}
        assert found == allowed


@given(st.integers(0, 2**40))
@settings(max_examples=50)
def test_a_resized_view_shows_the_places_it_should(seed):
    """Coordinates stay coordinates under resizing: every pixel shows the place that it stands for."""
    view = draw_view(generator(seed), 64, 48, crop=(16, 48), flips=True, rot90=True)
    size = 16
    got = resize_and_turn(view, torch.from_numpy(cut(view, coordinates(64, 48))), size).double().numpy()
    centers = (np.arange(size) + 0.5) * view.side / size - 0.5
    expected = np.stack(np.meshgrid(view.top + centers, view.left + centers, indexing="ij"))
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


# -- the views of the seasons of a place --------------------------------------------------------------------


@given(
    st.integers(0, 2**40), st.integers(8, 60), st.integers(8, 60), st.integers(1, 4),
    st.sampled_from(["same", "partial", "disjoint"]),
    st.one_of(
        st.tuples(st.integers(2, 30), st.integers(2, 90)),
        st.tuples(st.floats(0.25, 1.0), st.floats(0.25, 1.0)).map(sorted).map(tuple),
    ),
)  # fmt: skip
@settings(max_examples=300)
def test_views_of_seasons_lie_in_the_image_and_as_the_region_says(seed, height, width, seasons, region, crop):
    side = min(height, width)
    low, high = crop if crop[0] > 1 else (max(1, math.floor(share * side)) for share in crop)
    high = min(high, side)
    options = {"region": region, "crop": crop, "flips": "horizontal", "rot90": False}
    # So many equal squares fit: each holds one point of a grid that is as wide as they are.
    fits = seasons == 1 or region != "disjoint" or (height // low) * (width // low) >= seasons
    if not fits or low > high:
        with pytest.raises(
            ValueError, match=r"do not fit into an image of|is smaller than the smallest crop"
        ):
            draw_views(generator(seed), height, width, seasons, **options)
        return
    views = draw_views(generator(seed), height, width, seasons, **options)
    assert len(views) == seasons
    assert views == draw_views(generator(seed), height, width, seasons, **options)
    whole = {(row, column) for row in range(height) for column in range(width)}
    crops = [pixels_of(view) for view in views]
    for view, pixels in zip(views, crops, strict=True):
        assert low <= view.side <= high
        assert len(pixels) == view.side**2
        assert pixels <= whole
        assert view.quarter_turns == 0
        assert not view.flip_rows
    if region == "same":
        assert len(set(views)) == 1
    if region == "disjoint":
        assert len(set.union(*crops)) == sum(len(pixels) for pixels in crops)


def test_quarters_of_an_odd_side_fit_beside_each_other():
    views = draw_views(
        generator(0), 101, 101, 4, region="disjoint", crop=(0.5, 1.0), flips=False, rot90=False
    )
    assert [view.side for view in views] == [50] * 4


@pytest.mark.parametrize("seasons", [2, 3, 4])
def test_disjoint_crops_are_refused_only_where_none_fit_at_all(seasons):
    """Every way to place the smallest crops is tried."""
    refused = 0
    for height in range(2, 9):
        for width in range(2, 9):
            for side in range(2, min(height, width) + 1):
                arguments = {"region": "disjoint", "crop": (side, 99), "flips": True, "rot90": True}
                if squares_fit(seasons, side, height, width):
                    assert len(draw_views(generator(0), height, width, seasons, **arguments)) == seasons
                else:
                    refused += 1
                    with pytest.raises(ValueError, match=rf"{seasons} crops of at least {side} pixels"):
                        draw_views(generator(0), height, width, seasons, **arguments)
    assert refused > 50


def test_disjoint_crops_that_do_not_fit_say_what_would():
    with pytest.raises(ValueError, match=r"into an image of 264 x 264; the smallest may be 132: lower data"):
        draw_views(generator(0), 264, 264, 4, region="disjoint", crop=(0.51, 1.0), flips=False, rot90=False)
    views = draw_views(
        generator(0), 264, 264, 4, region="disjoint", crop=(0.5, 1.0), flips=False, rot90=False
    )
    assert {(v.top, v.left, v.side) for v in views} == {(r, c, 132) for r in (0, 132) for c in (0, 132)}


def test_partial_crops_are_drawn_apart_and_disjoint_ones_anywhere_in_their_cell():
    partial = {"region": "partial", "crop": (0.5, 1.0), "flips": "horizontal", "rot90": False}
    drawn = [draw_views(generator(seed), 20, 20, 2, **partial) for seed in range(1500)]
    for t in range(2):
        sides = np.bincount([views[t].side for views in drawn], minlength=21)[10:]
        assert stats.chisquare(sides).pvalue > 1e-4
    sides = np.array([[view.side for view in views] for views in drawn])
    assert abs(np.corrcoef(sides.T)[0, 1]) < 0.1
    flips = np.array([[view.flip_columns for view in views] for views in drawn])
    assert stats.chisquare(np.bincount(flips @ [2, 1], minlength=4)).pvalue > 1e-4
    # Half of the side: some of them overlap, and some only touch or miss each other.
    overlaps = {bool(pixels_of(a) & pixels_of(b)) for a, b in drawn}
    assert True in overlaps
    small = {**partial, "crop": (0.25, 0.5)}
    found = [draw_views(generator(seed), 20, 20, 2, **small) for seed in range(200)]
    assert {bool(pixels_of(a) & pixels_of(b)) for a, b in found} == {True, False}

    disjoint = {**partial, "region": "disjoint", "crop": (3, 4)}
    drawn = [draw_views(generator(seed), 10, 10, 4, **disjoint) for seed in range(1500)]
    for t in range(4):  # every season is seen in every cell and everywhere in it
        places = {(views[t].top, views[t].left) for views in drawn if views[t].side == 3}
        assert places == {(r, c) for r in (0, 1, 2, 5, 6, 7) for c in (0, 1, 2, 5, 6, 7)}
        cells = np.bincount([views[t].top // 5 * 2 + views[t].left // 5 for views in drawn])
        assert stats.chisquare(cells).pvalue > 1e-4


class _Plain:
    """Leaves values as they are."""

    def __init__(self):
        self.specs = SSL4EO_S12

    def __call__(self, given):
        return {m: torch.from_numpy(np.ascontiguousarray(x)) for m, x in given.items()}


@pytest.mark.parametrize("region", ["same", "partial", "disjoint"])
def test_the_sensors_of_a_season_share_its_view(region, tmp_path):
    """Pixels are their own coordinates and season: crops are not resized, so that both can be read off."""
    rows, columns = np.mgrid[0:40, 0:48].astype(np.float32)
    place = (1 + np.arange(3, dtype=np.float32))[:, None, None, None]
    season = np.arange(4, dtype=np.float32)[:, None, None]
    values = [np.broadcast_to(x, (3, 4, 40, 48)) for x in (rows, columns, place, season)]
    images = {}
    for m, channels in (("s2", 12), ("s1", 2)):  # the first two channels tell the place, of both sensors
        code = values[0] + 100 * values[1], values[2] + 10 * values[3]
        images[m] = np.stack([*code, *[code[0]] * (channels - 2)], axis=2)
    np.savez(tmp_path / "images.npz", **images)
    source = NpzSource(
        NpzFile(path=str(tmp_path / "images.npz"), images={m: {m: BANDS[m]} for m in images}, series=True)
    )
    views = Views(crop=(16, 16), size=16, flips=True, rot90=True, region=region)
    use = DataStream(source=source, preprocess=_Plain(), views=views, seasons=4)
    dataset = TrainingSet([use], stride=8, sample_noise=lambda *_: {}, seed=0)
    epochs = 20
    batch = dataset.__getitems__([(e, 0, i) for e in range(epochs) for i in range(3)])
    assert batch.images["s2"].shape == (3 * epochs, 4, 12, 16, 16)
    assert torch.equal(batch.images["s2"][:, :, :2], batch.images["s1"])
    together = set()
    for sample in batch.images["s1"].numpy():
        seen = []
        for t in range(4):
            where, what = sample[t]
            assert (what // 10 == t).all()  # in order of time
            assert len(np.unique(what)) == 1
            row, column = where % 100, where // 100
            assert np.ptp(row) == np.ptp(column) == 15  # a square of 16 x 16 neighbors
            seen.append({*zip(row.ravel().tolist(), column.ravel().tolist(), strict=True)})
            assert len(seen[-1]) == 256
        alike = all(np.array_equal(sample[t, 0], sample[0, 0]) for t in range(4))
        apart = len(set.union(*seen)) == 4 * 256
        together.add((alike, apart))
    expected = {"same": {(True, False)}, "partial": {(False, False)}, "disjoint": {(False, True)}}[region]
    # Four independent crops of this size miss each other now and then.
    assert together - ({(False, True)} if region == "partial" else set()) == expected


def test_a_turn_is_the_same_for_any_array():
    view = View(top=0, left=0, side=4, flip_rows=True, flip_columns=False, quarter_turns=1)
    image = torch.arange(32.0).view(2, 4, 4)
    assert torch.equal(turn(view, image)[1], turn(view, image[1]))
