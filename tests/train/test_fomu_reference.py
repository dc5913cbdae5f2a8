"""The parts of FoMu-SSL against numbers of independent code, written from the papers in float64.

The folder is the one that RSB_REFERENCE names, by default tests/recorded.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rsbackbones.train.objectives import guidance
from rsbackbones.train.objectives.moco import Queue, moco_loss, momentum_update
from tests.conftest import RECORDED

FOLDER = Path(os.environ.get("RSB_REFERENCE", RECORDED)) / "mixmae_fomu"
if not FOLDER.exists():
    pytest.skip(f"{FOLDER} is not there", allow_module_level=True)


def load(name):
    return {
        k: torch.from_numpy(v) for k, v in np.load(FOLDER / f"{name}.npz").items() if v.dtype.kind in "fi"
    }


class Encoder(nn.Module):
    """z = A x + a; h = B2 relu(B1 z + b1) + b2, then length 1."""

    def __init__(self, start):
        super().__init__()
        for name in ("A", "a", "B1", "b1", "B2", "b2"):
            setattr(self, name, nn.Parameter(start[f"start_{name}"].clone()))

    def features(self, x):
        return x @ self.A.T + self.a

    def forward(self, x):
        hidden = F.relu(self.features(x) @ self.B1.T + self.b1)
        return F.normalize(hidden @ self.B2.T + self.b2, dim=1)


@pytest.mark.parametrize("guided", [False, True])
def test_five_steps_of_moco(guided):
    r, suffix = load("fomu_moco"), "_guided" if guided else ""
    query, key = Encoder(r), Encoder(r)
    queue = Queue(*r["queue"].shape).double()
    queue.keys.copy_(r["queue"])
    sgd = torch.optim.SGD(
        query.parameters(), lr=float(r["lr"]), momentum=float(r["mom"]), weight_decay=float(r["wd"])
    )
    for t in range(5):
        momentum_update(key, query, float(r["m"]))
        for name, parameter in key.named_parameters():
            torch.testing.assert_close(parameter.detach(), r[f"key_{name}{suffix}"][t])
        with torch.no_grad():
            keys = key(r["xk"][t])
        torch.testing.assert_close(keys, r[f"keys{suffix}"][t])
        loss, logits = moco_loss(query(r["xq"][t]), keys, queue.keys, float(r["tau"]))
        torch.testing.assert_close(logits.detach(), r[f"logits{suffix}"][t])
        if guided:
            z = query.features(r["xq"][t])
            loss = loss + r["rgb"] * guidance.cosine_distance(r["z_rgb"][t], z)
            loss = loss + r["sar"] * guidance.cosine_distance(r["z_sar"][t], z)
        torch.testing.assert_close(loss.detach(), r[f"loss{suffix}"][t])
        sgd.zero_grad()
        loss.backward()
        for name, parameter in query.named_parameters():
            torch.testing.assert_close(parameter.grad, r[f"grad_{name}{suffix}"][t])
        sgd.step()
        queue.push(keys)
        for name, parameter in query.named_parameters():
            torch.testing.assert_close(parameter.detach(), r[f"query_{name}{suffix}"][t])
        torch.testing.assert_close(queue.keys, r[f"queues{suffix}"][t])
        assert queue.place == r[f"places{suffix}"][t]


def test_distances_and_their_gradients():
    r = load("fomu_guidance")
    oracle, student = r["z_oracle"], r["z_student"].requires_grad_()
    cosine = guidance.cosine_distance(oracle, student)
    torch.testing.assert_close(cosine, r["cosine"], check_dtype=False)
    (grad,) = torch.autograd.grad(guidance.cosine_distance(oracle[1:], student[1:]), student)
    torch.testing.assert_close(grad[1:], r["cosine_grad_without_row0"])  # a vector of zeros has none
    mse = guidance.mse_distance(oracle, student)
    torch.testing.assert_close(mse, r["mse"])
    torch.testing.assert_close(torch.autograd.grad(mse, student)[0], r["mse_grad"])
    miro = guidance.Miro(oracle.shape[1]).double()
    torch.testing.assert_close(miro.b.detach(), r["miro_b_start"], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(miro(oracle, student), r["miro_at_start"], atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        miro.b.copy_(r["miro_b"])
    found = miro(oracle, student)
    torch.testing.assert_close(found, r["miro"])
    of_student, of_b = torch.autograd.grad(found, (student, miro.b))
    torch.testing.assert_close(of_student, r["miro_grad"])
    torch.testing.assert_close(of_b, r["miro_grad_b"])


def test_a_radar_image_meets_one_slice_of_the_stem():
    r = load("fomu_guidance")
    how = {"stride": int(r["stride"]), "padding": int(r["padding"])}
    slices = []
    for i, channel in enumerate(guidance.CHANNELS):
        weight = guidance.one_channel(r["stem"], channel)
        slices.append(F.conv2d(r["radar"], weight, **how))
        torch.testing.assert_close(slices[-1], r[f"stem_of_{i}"])
    whole = F.conv2d(r["radar"], guidance.one_channel(r["stem"], "sum"), **how)
    torch.testing.assert_close(whole, sum(slices))
    torch.testing.assert_close(whole, F.conv2d(r["radar"].expand(-1, 3, -1, -1), r["stem"], **how))
    with pytest.raises(ValueError, match="one of red, green, blue or sum, got 'nir'"):
        guidance.one_channel(r["stem"], "nir")


def test_a_queue_keeps_the_newest_keys():
    queue, kept = Queue(5, 3), []
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(5))
    for count in (2, 2, 5, 1, 3):
        keys = F.normalize(torch.randn(count, 3), dim=1)
        queue.push(keys)
        kept = [*kept, *keys.tolist()][-5:]
    assert sorted(map(tuple, queue.keys.tolist())) == sorted(map(tuple, kept))
    with pytest.raises(ValueError, match="a queue of 5 keys cannot hold the 6 of a step"):
        queue.push(torch.randn(6, 3))
