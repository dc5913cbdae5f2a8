"""BatchNorm by the statistics of groups and of all processes, against torch's own on the whole batch."""

import copy

import pytest
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rsbackbones.layers.masked_batch_norm import MaskedBatchNorm
from rsbackbones.train.engine.batch_norm import set_batch_norm
from rsbackbones.train.engine.distributed import end_process
from rsbackbones.train.engine.errors import TrainingError
from tests.forked import spawn

ROWS, GROUP = 12, 3
# A layer and the shape of what it is given.
LAYERS = {
    "1d": (lambda: nn.BatchNorm1d(5), (ROWS, 5)),
    "1d, sequences": (lambda: nn.BatchNorm1d(5), (ROWS, 5, 7)),
    "2d": (lambda: nn.BatchNorm2d(5), (ROWS, 5, 4, 3)),
    "3d": (lambda: nn.BatchNorm3d(5), (ROWS, 5, 2, 4, 3)),
    "timm's with an activation": (lambda: BatchNormAct2d(5, act_layer=nn.GELU), (ROWS, 5, 4, 3)),
    "cumulative": (lambda: nn.BatchNorm2d(5, momentum=None), (ROWS, 5, 4, 3)),
    "not affine": (lambda: nn.BatchNorm2d(5, affine=False), (ROWS, 5, 4, 3)),
    "not tracking": (lambda: nn.BatchNorm2d(5, track_running_stats=False), (ROWS, 5, 4, 3)),
}


class OfSeries(nn.Module):
    """The norm of series, with frames that are missing."""

    def __init__(self):
        super().__init__()
        self.norm = MaskedBatchNorm(5, ("s2",))

    def forward(self, x):
        there = x[:, 0, :, 0, 0] > 0
        return self.norm(x, there, "s2").masked_fill(~there[:, None, :, None, None], 0)


# Its statistics are always those of all processes.
OWN = {"of series": (OfSeries, (ROWS, 5, 2, 4, 3))}


def layer_of(name):
    make, shape = (LAYERS | OWN)[name]
    generator = torch.Generator().manual_seed(3)
    layer = nn.Sequential(make().double().train())
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    inputs = [2 + 3 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]
    weights = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]
    return layer, inputs, weights


def passes(layer, inputs, weights, rows=slice(None)):
    """Outputs, gradients of a mean over rows, and buffers, after three passes."""
    outputs, gradients = [], []
    for x, weight in zip(inputs, weights, strict=True):
        x = x[rows].clone().requires_grad_()
        y = layer(x)
        (y * weight[rows]).sum(dim=tuple(range(1, y.ndim))).mean().backward()
        outputs.append(y.detach())
        gradients.append(x.grad)
    module = layer.module if isinstance(layer, DistributedDataParallel) else layer
    return {
        "outputs": outputs, "inputs": gradients, "parameters": [p.grad for p in module.parameters()],
        "buffers": [b.clone() for b in module.buffers()],
    }  # fmt: skip


def assert_equal(found, expected, scale=1.0):
    for kind, values in expected.items():
        for a, b in zip(found[kind], values, strict=True):
            a = a * scale if kind == "inputs" else a
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=lambda text, k=kind: f"{k}: {text}")


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("mode", "group"), [("sync", None), ("grouped", ROWS)])
def test_one_process_and_one_group_are_torchs_own(name, mode, group):
    layer, inputs, weights = layer_of(name)
    shared = copy.deepcopy(layer)
    set_batch_norm(shared, mode, group)
    assert_equal(passes(shared, inputs, weights), passes(layer, inputs, weights))
    assert shared.state_dict().keys() == layer.state_dict().keys()
    assert isinstance(shared[0], type(layer[0]))
    torch.testing.assert_close(shared.eval()(inputs[0]), layer.eval()(inputs[0]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in LAYERS if "not" not in name])
def test_groups_are_a_plain_loop_over_them(name):
    layer, inputs, weights = layer_of(name)
    grouped = copy.deepcopy(layer)
    set_batch_norm(grouped, "grouped", GROUP)
    found = passes(grouped, inputs, weights)
    plain = layer[0]
    running = [plain.running_mean.clone(), plain.running_var.clone()]
    for number, x in enumerate(inputs):
        share = plain.momentum or 1 / (number + 1)
        outputs, means, variances = [], [], []
        for part in x.split(GROUP):
            alone = copy.deepcopy(plain)
            outputs.append(alone(part).detach())
            rows = part.transpose(0, 1).flatten(1)
            means.append(rows.mean(1))
            variances.append(rows.var(1))
        torch.testing.assert_close(found["outputs"][number], torch.cat(outputs), rtol=1e-9, atol=1e-9)
        for i, values in enumerate((means, variances)):
            running[i] = (1 - share) * running[i] + share * torch.stack(values).mean(0)
    torch.testing.assert_close(found["buffers"][:2], running, rtol=1e-9, atol=1e-9)
    assert found["buffers"][2] == 3


CASES = [(name, mode) for name in LAYERS for mode in ("sync", "grouped")] + [(name, "") for name in OWN]


def work(rank, world_size, folder):
    """Compute every case as one of ``world_size`` processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=world_size)
    each = ROWS // world_size
    results = {}
    for name, mode in CASES:
        layer, inputs, weights = layer_of(name)
        if mode:
            set_batch_norm(layer, mode, GROUP)
        parallel = layer
        if any(p.requires_grad for p in layer.parameters()):
            parallel = DistributedDataParallel(layer, broadcast_buffers=False)
        results[name, mode] = passes(parallel, inputs, weights, slice(rank * each, (rank + 1) * each))
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    end_process()


@pytest.fixture(scope="module", params=[2, 4])
def of_many(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    spawn(work, args=(request.param, str(folder)), nprocs=request.param)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(request.param)]


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_many_processes_are_one_with_the_whole_batch(of_many, name, mode):
    """Outputs, the gradients of inputs and parameters, and the running statistics of every process."""
    layer, inputs, weights = layer_of(name)
    if mode == "grouped":
        set_batch_norm(layer, mode, GROUP)  # which the loop above holds
    expected = passes(layer, inputs, weights)
    held = [result[name, mode] for result in of_many]
    joined = {
        kind: [torch.cat(parts) for parts in zip(*(one[kind] for one in held), strict=True)]
        for kind in ("outputs", "inputs")
    }
    # A process's loss is the mean over its rows: gradients of its inputs are as many times larger.
    for one in held:
        found = {**joined, "parameters": one["parameters"], "buffers": one["buffers"]}
        assert_equal(found, expected, scale=1 / len(held))


def test_what_cannot_be_is_refused():
    plain = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    for mode in ("grouped", "sync"):
        with pytest.raises(TrainingError, match=f"batch_norm={mode}, and Sequential has no BatchNorm"):
            set_batch_norm(plain, mode, 2)
    set_batch_norm(plain, "local")
    unknown = nn.Sequential(nn.BatchNorm1d(3), nn.Sequential(nn.SyncBatchNorm(3)))
    with pytest.raises(TrainingError, match=r"cannot convert 1\.0 \(SyncBatchNorm\); known are"):
        set_batch_norm(unknown, "sync")
    assert type(unknown[0]) is nn.BatchNorm1d  # all or nothing
    frozen = nn.Sequential(FrozenBatchNormAct2d(3))
    with pytest.raises(TrainingError, match="no BatchNorm"):
        set_batch_norm(frozen, "sync")
    grouped = nn.Sequential(nn.BatchNorm2d(3))
    set_batch_norm(grouped, "grouped", 4)
    with pytest.raises(TrainingError, match=r"batch_norm_group=4 does not divide the 6 rows"):
        grouped(torch.rand(6, 3, 2, 2))
    single = nn.Sequential(nn.BatchNorm1d(3))
    set_batch_norm(single, "sync")
    with pytest.raises(TrainingError, match="more than 1 value per channel"):
        single(torch.rand(1, 3))
    assert single.eval()(torch.rand(1, 3)).shape == (1, 3)


def test_half_precision_keeps_its_type_and_is_computed_in_full():
    layer, (x, *_), _ = layer_of("2d")
    layer, x = layer.float(), x.bfloat16()
    shared = copy.deepcopy(layer)
    set_batch_norm(shared, "sync")
    y = shared(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x.float()), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(shared[0].running_mean, layer[0].running_mean, rtol=1e-5, atol=1e-6)
