"""No run of these tests draws, but those that look at the pictures: see ``drawing`` in training.py."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def _without_pictures(without_pictures):
    """For every file."""
