"""Several processes have the loss and the gradients of one process at the same global batch."""

import pytest
import torch

from tests.forked import spawn
from tests.train.croma_ranks import CASES, DTYPES, one_process, work

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}


@pytest.fixture(scope="module", params=[2, 4])
def several(request, tmp_path_factory):
    """The results of 2 or 4 processes, for all cases: processes are slow to start."""
    folder = tmp_path_factory.mktemp("ranks")
    spawn(work, args=(request.param, str(folder)), nprocs=request.param)
    return torch.load(folder / "results.pt", weights_only=True)


def distance(grads, expected):
    """The largest difference of any element, relative to the norm of the whole gradient."""
    assert set(grads) == set(expected)
    norm = torch.stack([g.norm() for g in expected.values()]).norm()
    return max(float((grads[n] - g).abs().max() / norm) for n, g in expected.items())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [case for case in CASES if case != "published"])
def test_gradients_of_several_processes_are_those_of_one(several, case, dtype):
    loss, grads = several[case, str(dtype)]
    expected_loss, expected = one_process(case, dtype)
    assert loss == pytest.approx(expected_loss, rel=TOLERANCE[dtype])
    assert distance(grads, expected) < TOLERANCE[dtype]
    if case != "vicreg":
        assert expected["contrast.logit_scale"].abs().sum() > 0


def test_gradients_of_the_published_gather_are_not_those_of_the_global_batch(several):
    loss, grads = several["published", "torch.float64"]
    expected_loss, expected = one_process("infonce", torch.float64)
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    assert distance(grads, expected) > 1e-3
