"""What tests of whole runs may leave out."""

import pytest


@pytest.fixture(scope="module")
def without_pictures():
    """Drawing takes longer than a small run; test_loop.py looks at the pictures, runs in processes draw."""
    from rsbackbones.train import run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "draw_reconstructions", lambda *_: None)
        patch.setattr(run, "draw_losses", lambda *_: None)
        yield
