"""What several test files of embeddings need: a small model of four bands."""

import pytest

import rsbackbones as rsb


@pytest.fixture(scope="session")
def four_bands() -> rsb.Backbone:
    """A model of Sentinel-2 with random weights, which no test changes."""
    from tests.embed.test_stac_dates import model_of

    return model_of("croma_vit_tiny", depth=2)
