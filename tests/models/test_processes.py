"""DDP and FSDP on two processes train every family as one process does at the same global batch."""

import pytest
import torch

from tests.forked import spawn
from tests.models.examples import ALL, small
from tests.models.processes import DECAY, KINDS, STEPS, TWO_SENSORS, Classify, run, train_plainly, work


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    spawn(work, args=(2, str(folder)), nprocs=2)
    return torch.load(folder / "results.pt", weights_only=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ALL)
def test_two_processes_train_as_one(two, name, kind):
    losses, state, averages = two[name, kind]
    expected, alone, average = run(name, kind)
    assert losses == pytest.approx(expected, abs=1e-9)
    assert len(set(expected)) == STEPS
    for found, one in ((state, alone), (averages, average)):
        assert found.keys() == one.keys()
        for key, value in one.items():
            torch.testing.assert_close(found[key], value, atol=1e-8, rtol=1e-6, msg=f"{name} {key}")


@pytest.mark.parametrize("name", TWO_SENSORS)
def test_a_model_of_two_sensors_trains_under_plain_ddp(two, name):
    """DDP waits for a gradient of every parameter; those of unused streams have none."""
    alone = train_plainly(name)
    assert two[name, "plain"].keys() == alone.keys()
    for key, value in alone.items():
        torch.testing.assert_close(two[name, "plain"][key], value, atol=1e-8, rtol=1e-6, msg=f"{name} {key}")


@pytest.mark.parametrize("name", ALL)
def test_averages_cover_parameters_and_buffers(name):
    """Against the plain recursion over the states of two steps of training."""
    from rsbackbones.train.engine.ema import ParameterEma
    from tests.models.examples import batch

    module = Classify(small(name, num_classes=3)).train()
    ema = ParameterEma(module, DECAY)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    expected = {n: x.clone() for n, x in module.state_dict().items()}
    assert ema.averages.keys() == expected.keys()
    for seed in range(2):
        module.backbone(batch(module.backbone, seed=seed)).square().sum().backward()
        optimizer.step()
        ema.update()
        for n, x in module.state_dict().items():
            expected[n] = DECAY * expected[n] + (1 - DECAY) * x if x.is_floating_point() else x.clone()
    for n, value in expected.items():
        torch.testing.assert_close(ema.averages[n], value, atol=1e-6, rtol=1e-5, msg=n)
