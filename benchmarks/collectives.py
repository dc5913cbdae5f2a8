"""What processes send each other in a training step: counted in real ones, and on paper.

Counted are the tensors that go into collectives: what an all-reduce reduces, an all-gather gathers to, a
reduce-scatter scatters from. What of it travels over a link depends on the algorithm and is not measured.
"""

import json
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rsbackbones.train.engine.batch import Batch
from rsbackbones.train.engine.config_io import from_json, to_json
from rsbackbones.train.engine.distributed import end_process
from rsbackbones.train.engine.parallel import parallelize
from rsbackbones.train.initialize import build_objective
from rsbackbones.train.objectives.objective import Objective
from rsbackbones.train.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Payload:
    """Bytes that go through the collectives of a step, and the number of collectives."""

    all_reduce: int = 0
    all_gather: int = 0
    reduce_scatter: int = 0
    calls: int = 0

    def __add__(self, other: "Payload") -> "Payload":
        return Payload(**{name: value + getattr(other, name) for name, value in asdict(self).items()})

    def __sub__(self, other: "Payload") -> "Payload":
        return Payload(**{name: value - getattr(other, name) for name, value in asdict(self).items()})


def contrast_payload(dim: int, batch_size: int) -> Payload:
    """InfoNCE: the rows of two sensors, [B, D] in float32, are gathered; their gradients are reduced."""
    rows = 4 * batch_size * dim
    return Payload(all_gather=2 * rows, all_reduce=2 * rows, calls=4)


def ddp_payload(parameters: int, bucket: int = 25 * 2**20) -> Payload:
    """DDP: float32 gradients of all parameters are reduced, in buckets."""
    return Payload(all_reduce=4 * parameters, calls=-(-4 * parameters // bucket))


def fsdp_payload(parameters: int, in_blocks: int, blocks: int) -> Payload:
    """FSDP2: blocks are gathered twice, the rest once and kept; all gradients are scattered. float32.

    Without the padding of parameters whose first dimension the processes do not divide.
    """
    return Payload(
        all_gather=4 * (parameters + in_blocks), reduce_scatter=4 * parameters, calls=3 * blocks + 2
    )


_KINDS = {
    "allreduce_": "all_reduce",
    "allgather_": "all_gather",
    "_allgather_base_": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
}


class Collectives(TorchDispatchMode):
    """Counts the collectives that are called while it is active, and their bytes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes: Counter[str] = Counter()
        self.calls = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call it, and count it where it is a collective."""
        name = str(func).split(".")
        if name[0] == "c10d":
            kind = _KINDS.get(name[1], name[1])
            # The first argument is what is written: for all but reduce-scatter the larger side.
            counted = tree_leaves(args[1] if kind == "reduce_scatter" else args[0])
            self.bytes[kind] += sum(x.nbytes for x in counted if isinstance(x, Tensor))
            self.calls += 1
        return func(*args, **(kwargs or {}))

    def payload(self) -> Payload:
        """Return the sums; a collective of a kind that no formula knows is an error.

        Raises:
            ValueError: there was one.
        """
        if unknown := set(self.bytes) - set(_KINDS.values()):
            raise ValueError(f"collectives that are not accounted for: {', '.join(sorted(unknown))}")
        return Payload(**self.bytes, calls=self.calls)


def measure_payloads(recipe: Recipe, *, rows: int, processes: int = 2) -> dict[str, Payload]:
    """Count a step of a recipe's objective with ``ddp`` and with ``fsdp``.

    The processes are real ones on this machine (gloo), each with a batch of ``rows``.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "recipe.json").write_text(json.dumps(to_json(recipe)), encoding="utf-8")
        spawn(_work, args=(processes, rows, folder), nprocs=processes)
        counted = json.loads((Path(folder) / "payloads.json").read_text(encoding="utf-8"))
    return {parallel: Payload(**payload) for parallel, payload in counted.items()}


def _work(rank: int, processes: int, rows: int, folder: str) -> None:
    """Be one of the processes."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=processes)
    recipe = from_json(json.loads((Path(folder) / "recipe.json").read_text(encoding="utf-8")), Recipe)
    kinds: tuple[Literal["ddp", "fsdp"], ...] = ("ddp", "fsdp")
    counted = {kind: asdict(_count(replace(recipe, parallel=kind), rows)) for kind in kinds}
    if rank == 0:
        (Path(folder) / "payloads.json").write_text(json.dumps(counted), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()
    end_process()


def _count(recipe: Recipe, rows: int) -> Payload:
    objective = build_objective(recipe)
    module = parallelize(objective, recipe, torch.device("cpu"), unused=False)
    bands, side = objective.backbone.bands, recipe.data.size
    patches = (side // objective.backbone.stride) ** 2
    batch = Batch(
        images={m: torch.rand(rows, len(names), side, side) for m, names in bands.items()},
        bands=dict(bands),
        noise={f"{m}_noise": torch.rand(rows, patches) for m in bands},
    )
    for _ in range(3):  # DDP arranges its buckets after the first step and tells the others in the second
        with Collectives() as collectives:
            module(batch)["loss"].backward()
        objective.zero_grad()
    payload: Payload = collectives.payload()
    return payload


def count_parameters(objective: Objective) -> tuple[int, int, int]:
    """Return the trained parameters, those of them in blocks, and the number of blocks."""
    blocks = objective.units()
    total = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    inside = sum(p.numel() for block in blocks for p in block.parameters() if p.requires_grad)
    return total, inside, len(blocks)
