"""Images of one place at several ground sampling distances."""

import pytest

from rsbackbones.data.grid import same_extent


@pytest.mark.parametrize(
    ("fine", "coarse", "same"),
    [
        ((120, 120), (60, 60), True),
        ((120, 120), (20, 20), True),
        ((395, 360), (198, 180), True),
        # Rennes of OSCD: one side is rounded up, the other down.
        ((339, 563), (170, 281), True),
        ((339, 563), (57, 94), True),
        ((17, 17), (1, 1), True),
        ((120, 120), (60, 40), False),
        ((120, 60), (60, 60), False),
        ((339, 563), (170, 285), False),
        ((8, 8), (8, 4), False),
    ],
)
def test_places_are_told_apart_by_their_ratio(fine, coarse, same):
    assert same_extent(fine, coarse) is same
    assert same_extent(coarse, fine) is same
