"""The losses of S4 against numbers of independent code, written from the paper in float64."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rsbackbones.train.objectives.space_time import cross_modal_l1, space_time_contrast
from tests.conftest import RECORDED

FOLDER = Path(os.environ.get("RSB_REFERENCE", RECORDED)) / "s4"
if not FOLDER.exists():
    pytest.skip(f"{FOLDER} is not there", allow_module_level=True)
R = {k: torch.from_numpy(v) for k, v in np.load(FOLDER / "s4_losses.npz").items() if v.dtype.kind in "fib"}
POSITIONS = R["z_s2"][0, 0].numel()


def maps():
    return [R[name].clone().requires_grad_() for name in ("z_s2", "z_s1")]


@pytest.mark.parametrize("chunk", [None, 1, 7, POSITIONS, 2 * POSITIONS, 1024])
@pytest.mark.parametrize("case", ["", "_batch", "_valid"])
def test_contrast_and_gradients_are_the_recorded_ones(case, chunk):
    z = maps()
    options = {"_batch": {"negatives": "batch"}, "_valid": {"valid": R["valid"]}}.get(case, {})
    loss = space_time_contrast(*z, temperature=float(R["temperature"]), chunk=chunk, **options)
    loss.backward()
    torch.testing.assert_close(loss.double(), R[f"contrastive{case}"], rtol=1e-5, atol=1e-6)
    for name, each in zip(("z_s2", "z_s1"), z, strict=True):
        recorded = R[f"grad{case}_{name}"].float()
        torch.testing.assert_close(each.grad, recorded, rtol=1e-4, atol=1e-7)


def test_a_frame_that_does_not_count_has_no_effect():
    z, valid = maps(), R["valid"]
    before = space_time_contrast(*z, valid=valid)
    hidden = ~valid[:, None, :, None, None].expand_as(z[0])
    changed = [x.detach().masked_fill(hidden, 7.0) for x in z]
    assert space_time_contrast(*changed, valid=valid) == before


def test_a_sample_without_frames_is_left_out():
    z = maps()
    valid = torch.tensor([[True] * 3, [False] * 3])
    alone = space_time_contrast(z[0][:1], z[1][:1])
    torch.testing.assert_close(space_time_contrast(*z, valid=valid), alone)


def test_half_precision_maps_give_a_float32_loss():
    z = [x.detach().bfloat16() for x in maps()]
    with torch.autocast("cpu", torch.bfloat16):
        loss = space_time_contrast(*z)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, space_time_contrast(*(x.float() for x in z)))


def test_reconstruction_is_the_recorded_one():
    prediction = R["prediction"].clone().requires_grad_()
    loss = cross_modal_l1(prediction, R["target"])
    loss.backward()
    torch.testing.assert_close(loss.double(), R["reconstruction"], rtol=1e-6, atol=0)
    torch.testing.assert_close(prediction.grad.double(), R["grad_prediction"], rtol=1e-5, atol=1e-9)


def test_reconstruction_of_the_frames_that_count():
    prediction, target = R["prediction"], R["target"]
    valid = torch.tensor([[True, False, True, True], [False] * 4])
    target = target.masked_fill(~valid[..., None, None, None], float("nan"))
    expected = F.l1_loss(prediction[0, [0, 2, 3]], target[0, [0, 2, 3]])
    torch.testing.assert_close(cross_modal_l1(prediction, target, valid=valid), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"chunk": 0}, "chunk"),
        ({"negatives": "all"}, "negatives"),
        ({"valid": torch.ones(2, 4, dtype=torch.bool)}, r"\[B, T\] = \[2, 3\]"),
        ({"valid": torch.zeros(2, 3, dtype=torch.bool)}, "leaves no frame"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        space_time_contrast(*maps(), **options)


def test_maps_of_unequal_length_are_refused():
    z = maps()
    with pytest.raises(ValueError, match="align the series"):
        space_time_contrast(z[0], z[1][:, :, :2])
