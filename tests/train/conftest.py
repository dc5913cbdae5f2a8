"""What tests of whole runs may leave out."""

import pytest


@pytest.fixture(scope="module")
def without_pictures():
    """Drawing takes longer than a small run; test_trainer.py looks at the pictures, others draw."""
    from rsbackbones.train import pretraining

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "draw_reconstructions", lambda *_: None)
        patch.setattr(pretraining, "draw_losses", lambda *_: None)
        yield
