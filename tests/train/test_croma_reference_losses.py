"""Losses and gradients of the authors' public pretraining code, recorded in files: ours must be the same.

The folder is the one that RSB_REFERENCE names, by default tests/recorded.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import rsbackbones as rsb
from rsbackbones.train.engine.batch import Batch
from rsbackbones.train.objectives.croma import CromaObjective
from tests.conftest import RECORDED
from tests.train.croma_published import load_published
from tests.train.croma_setup import BANDS

FOLDER = Path(os.environ.get("RSB_REFERENCE", RECORDED))
NAME = "croma_pretrain_d32"
VARIANTS = {
    "published": {"joint_self_bias": "published", "gather": "published"},
    "corrected": {},
}


def noise_of(restore):
    """Noise whose mask is the recorded one: the place of a patch in the shuffled order."""
    return torch.from_numpy(restore) / restore.shape[1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_croma_reference_losses_and_gradient(variant):
    recorded = np.load(FOLDER / f"{NAME}.npz")
    backbone = rsb.create_model("croma_vit_b", overrides={"dim": 32, "depth": 2}).train()
    objective = CromaObjective(decoder_dim=32, **VARIANTS[variant]).build(backbone)
    load_published(objective, torch.load(FOLDER / f"{NAME}.pt", weights_only=True))
    images = torch.from_numpy(recorded["imgs_uint8"]).float() / 255
    batch = Batch(
        images={"s2": images[:, :12], "s1": images[:, 12:]},
        bands=BANDS,
        noise={
            "s2_noise": noise_of(recorded["optical_ids_restore"]),
            "s1_noise": noise_of(recorded["radar_ids_restore"]),
        },
    )
    masks = objective._masks(batch)
    assert torch.equal(masks["s2"].kept, torch.from_numpy(recorded["optical_ids_keep"]))
    assert torch.equal(masks["s1"].kept, torch.from_numpy(recorded["radar_ids_keep"]))

    parts = objective(batch)
    parts["loss"].backward()
    norm = torch.stack([p.grad.norm() for p in objective.parameters()]).norm().item()
    assert parts["contrast"].item() == pytest.approx(recorded[f"contrastive_loss_{variant}"], abs=1e-5, rel=0)
    assert parts["reconstruction"].item() == pytest.approx(recorded[f"mae_loss_{variant}"], abs=1e-5, rel=0)
    assert norm == pytest.approx(recorded[f"total_grad_norm_{variant}"], rel=1e-4)
