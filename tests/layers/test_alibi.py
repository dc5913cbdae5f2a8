"""2D-ALiBi and X-ALiBi against loops, and the properties that the paper names."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rsbackbones.layers.alibi import alibi_bias, alibi_slopes, grid_positions
from tests.reference import croma_plain


def test_sixteen_heads_have_the_slopes_of_the_paper():
    assert torch.allclose(alibi_slopes(16), torch.tensor([2 ** (-k / 2) for k in range(1, 17)]), rtol=1e-6)


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 24])
def test_slopes_are_those_of_the_recursive_rule(heads):
    assert torch.allclose(alibi_slopes(heads), torch.tensor(croma_plain.slopes(heads)), rtol=1e-6)


def test_slopes_refuse_no_heads():
    with pytest.raises(ValueError, match="num_heads"):
        alibi_slopes(0)


@settings(max_examples=20)
@given(h=st.integers(1, 5), w=st.integers(1, 6), heads=st.sampled_from([2, 3, 4, 16]))
def test_bias_equals_the_loop_on_any_grid(h, w, heads):
    positions = grid_positions(h, w)
    cells = [(r, c) for r in range(h) for c in range(w)]
    expected = croma_plain.bias(heads, cells, cells).float()
    assert torch.allclose(alibi_bias(positions, positions, heads), expected, atol=1e-6)


def test_the_nine_patch_example_of_figure_2():
    distance = -alibi_bias(grid_positions(3, 3), grid_positions(3, 3), 1)[0] * 2**8
    row_of_q1 = torch.tensor([0, 1, 2, 1, 2**0.5, 5**0.5, 2, 5**0.5, 8**0.5])
    assert torch.allclose(distance[0], row_of_q1, atol=1e-5)


def test_a_subset_of_positions_gives_the_rows_and_columns_of_the_whole():
    positions = grid_positions(4, 7)
    whole = alibi_bias(positions, positions, 6)
    generator = torch.Generator().manual_seed(0)
    radar = torch.stack([torch.randperm(28, generator=generator)[:9] for _ in range(3)])
    optical = torch.stack([torch.randperm(28, generator=generator)[:5] for _ in range(3)])
    masked = alibi_bias(positions[radar], positions[optical], 6)
    assert masked.shape == (3, 6, 9, 5)
    for b in range(3):
        assert torch.equal(masked[b], whole[:, radar[b]][:, :, optical[b]])


@pytest.mark.parametrize("transform", ["rot90", "flip_rows", "flip_columns", "transpose"])
def test_bias_is_bitwise_invariant_under_turns_and_flips(transform):
    h, w = 5, 8
    index = torch.arange(h * w).view(h, w)
    moved = {
        "rot90": index.rot90(),
        "flip_rows": index.flip(0),
        "flip_columns": index.flip(1),
        "transpose": index.T,
    }[transform]
    before = alibi_bias(grid_positions(h, w), grid_positions(h, w), 4)
    after = alibi_bias(grid_positions(*moved.shape), grid_positions(*moved.shape), 4)
    order = moved.flatten()
    assert torch.equal(before[:, order][:, :, order], after)


def test_bias_is_translation_invariant():
    positions = grid_positions(3, 4)
    assert torch.equal(alibi_bias(positions, positions, 4), alibi_bias(positions + 100, positions + 100, 4))
