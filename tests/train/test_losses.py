"""VICReg, InfoNCE and hard negatives by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from rsbackbones.train.objectives.hard_negatives import mix_hard_negatives
from rsbackbones.train.objectives.infonce import InfoNCE
from rsbackbones.train.objectives.vicreg import vicreg


def test_vicreg_by_hand():
    x = torch.tensor([[0.0, 0.0], [2.0, 2.0]]).double()
    y = torch.tensor([[0.0, 0.5], [1.0, 0.5]]).double()
    # Differences 0, -.5, 1, 1.5; variances of x are 2 (no hinge), of y .5 and 0; covariance of x is 2.
    invariance = (0.25 + 1 + 2.25) / 4
    variance = ((1 - math.sqrt(0.5 + 1e-4)) + (1 - math.sqrt(1e-4))) / 2
    covariance = 2 * 2.0**2 / 2
    expected = 25 * invariance + 25 * variance + covariance
    assert vicreg(x, y).item() == pytest.approx(expected, rel=1e-12)


def test_vicreg_statistics_are_of_equal_chunks_of_800_at_most():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 1001, 3, generator=generator).double()
    parts = [vicreg(x[a:b], y[a:b]) for a, b in ((0, 501), (501, 1001))]
    torch.testing.assert_close(vicreg(x, y), torch.stack(parts).mean())
    assert not torch.isclose(
        vicreg(x[:800], y[:800]), (vicreg(x[:400], y[:400]) + vicreg(x[400:800], y[400:800])) / 2
    )


def test_vicreg_and_hard_negatives_need_two_samples():
    one = torch.ones(1, 3)
    with pytest.raises(ValueError, match="at least two samples"):
        vicreg(one, one)
    with pytest.raises(ValueError, match="at least two samples"):
        mix_hard_negatives(one, one, torch.zeros(1, dtype=torch.long), torch.rand(1, 2), torch.rand(1, 2))


def test_infonce_of_rows_that_all_match_alike_is_the_log_of_their_number():
    loss = InfoNCE(4).double()
    rows = torch.ones(5, 4).double()
    assert loss({"s2": rows, "s1": rows}).item() == pytest.approx(math.log(5), rel=1e-12)


def test_hard_negatives_lie_between_the_query_and_its_hardest_negatives():
    generator = torch.Generator().manual_seed(0)
    queries, keys = F.normalize(torch.randn(2, 6, 8, generator=generator).double(), dim=-1)
    queries.requires_grad_()
    own = torch.arange(6)
    picks, mixes = torch.rand(2, 6, 9, generator=generator)
    mixed = mix_hard_negatives(queries, keys, own, picks, mixes)
    assert mixed.shape == (6, 9, 8)
    assert not mixed.requires_grad
    torch.testing.assert_close(mixed.norm(dim=-1), torch.ones(6, 9).double())
    for i in range(6):
        negatives = [j for j in range(6) if j != i]
        ranked = sorted(negatives, key=lambda j: -(queries[i] @ keys[j]).item())
        for s in range(9):
            share = float(mixes[i, s]) / 2
            key = keys[ranked[int(float(picks[i, s]) * 5)]]
            expected = share * queries[i].detach() + (1 - share) * key
            torch.testing.assert_close(mixed[i, s], expected / expected.norm(), atol=1e-7, rtol=0)


def test_only_the_hardest_are_mixed(monkeypatch):
    monkeypatch.setattr("rsbackbones.train.objectives.hard_negatives.NUM_HARDEST", 1)
    keys = F.normalize(torch.tensor([[1.0, 0, 0], [0.9, 0.1, 0], [0, 1.0, 0], [0, 0, 1.0]]), dim=-1)
    mixed = mix_hard_negatives(keys[:1], keys, torch.tensor([0]), torch.rand(1, 4), torch.zeros(1, 4))
    torch.testing.assert_close(mixed[0], keys[1].expand(4, -1))


def test_hard_negatives_raise_the_loss():
    torch.manual_seed(0)
    loss = InfoNCE(8)
    rows = {m: torch.randn(6, 8) for m in ("s2", "s1")}
    hard = {m: (torch.rand(6, 4), torch.rand(6, 4)) for m in rows}
    assert loss(rows, hard) > loss(rows)
