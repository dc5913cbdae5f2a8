"""One of several processes that compute the gradients of one global batch, for test_croma_ranks.py."""

import dataclasses

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from rsbackbones.train.engine.distributed import end_process
from tests.train.croma_setup import build, gradients, make_batch

GLOBAL_BATCH = 8
CASES = {
    "infonce": {},
    "vicreg": {"contrast": "vicreg"},
    "patch infonce": {"local": "infonce", "masking": "shared"},
    "patch mse": {"local": "mse", "masking": "shared"},
    "hard negatives": {"hard_negatives": 5},
    "published": {"gather": "published"},
}
DTYPES = (torch.float64, torch.float32)
Result = tuple[float, dict[str, torch.Tensor]]


def one_process(case: str, dtype: torch.dtype) -> Result:
    """The loss and the gradients of the global batch."""
    objective = build(dtype=dtype, **CASES[case])
    out, grads = gradients(objective, make_batch(objective.options, count=GLOBAL_BATCH, dtype=dtype))
    return out["loss"].item(), grads


def _one_of_many(case: str, dtype: torch.dtype) -> Result:
    objective = build(dtype=dtype, **CASES[case])
    batch = make_batch(objective.options, count=GLOBAL_BATCH, dtype=dtype)
    each = GLOBAL_BATCH // dist.get_world_size()
    rows = slice(dist.get_rank() * each, (dist.get_rank() + 1) * each)
    mine = dataclasses.replace(
        batch,
        images={m: x[rows] for m, x in batch.images.items()},
        noise={name: x[rows] for name, x in batch.noise.items()},
    )
    parallel = DistributedDataParallel(objective)
    loss = parallel(mine)["loss"]
    loss.backward()
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    grads = {n: p.grad for n, p in objective.named_parameters() if p.requires_grad}
    assert all(g is not None for g in grads.values())
    return mean.item() / dist.get_world_size(), grads


def work(rank: int, world_size: int, folder: str) -> None:
    """Compute every case as one of ``world_size`` processes; the first writes the results."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=world_size)
    results = {(case, str(dtype)): _one_of_many(case, dtype) for case in CASES for dtype in DTYPES}
    if rank == 0:
        torch.save(results, f"{folder}/results.pt")
    dist.barrier()
    dist.destroy_process_group()
    end_process()
