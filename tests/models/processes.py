"""A few steps of a small model of every family, alone or as one of two processes, for test_processes.py."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

import tests.conftest  # noqa: F401  (registers the families of the tests)
from rsbackbones.data.series import model_arguments
from rsbackbones.models.unused import called_units, freeze_unused
from rsbackbones.train.engine.batch import Batch
from rsbackbones.train.engine.batch_norm import set_batch_norm
from rsbackbones.train.engine.config import RunOptions
from rsbackbones.train.engine.distributed import end_process
from rsbackbones.train.engine.ema import ParameterEma
from rsbackbones.train.engine.module import TrainModule
from rsbackbones.train.engine.parallel import parallelize
from tests.models.examples import ALL, batch, dated, small, times_of

GLOBAL_BATCH, STEPS, DECAY = 4, 3, 0.5
KINDS = ("ddp", "fsdp")


class Classify(TrainModule):
    """A backbone with a head that learns classes."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        freeze_unused(backbone, lambda images, **series: [backbone(images, **series)])

    def units(self):
        return called_units(self.backbone)

    def forward(self, batch):
        series = model_arguments(batch.dates, batch.valid, self.backbone.modalities)
        return {"loss": F.cross_entropy(self.backbone(batch.images, **series), batch.noise["target"])}


def run(name, kind, rank=0, world_size=1):
    """The losses of all steps (means over the processes), and the state and its average after the last."""
    module = (
        Classify(small(name, num_classes=3)).double().train()
    )  # rounding grows in BatchNorm of few values
    if any(True for _ in module.buffers()):
        set_batch_norm(module, "sync")
    recipe = RunOptions(name="test", batch_size=GLOBAL_BATCH, parallel=kind, precision="fp32")
    parallel = parallelize(module, recipe, torch.device("cpu"), unused=False)
    ema = ParameterEma(module, DECAY)
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], 0.05)
    each = GLOBAL_BATCH // world_size
    mine = slice(rank * each, (rank + 1) * each)
    losses = []
    for step in range(STEPS):
        backbone, halves = module.backbone, range(GLOBAL_BATCH // 2)
        times = times_of(backbone)
        x = [batch(backbone, 32, 32, times=times, seed=10 * step + half) for half in halves]
        images = {m: torch.cat([part[m] for part in x])[mine].double() for m in x[0]}
        days = [dated(backbone, times) for _ in halves]
        dates = {m: torch.cat([d["dates"] + step for d in days])[mine] for m in images if days[0]}
        target = torch.arange(GLOBAL_BATCH)[mine] % 3
        given = Batch(images=images, dates=dates, bands=backbone.bands, noise={"target": target})
        loss = parallel(given)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update()
        mean = loss.detach().clone()
        if world_size > 1:
            dist.all_reduce(mean)
        losses.append(mean.item() / world_size)
    options = StateDictOptions(full_state_dict=True)
    state = get_model_state_dict(parallel, options=options)
    averages = {
        n: (x.full_tensor() if hasattr(x, "full_tensor") else x).detach() for n, x in ema.averages.items()
    }
    return losses, {n: x.clone() for n, x in state.items()}, averages


# Two sensors, and streams that the head does not use.
TWO_SENSORS = ("croma_vit_b", "seamo_vit_b")


def train_plainly(name, rank=0, world_size=1):
    """A user's loop: torch's DDP around the model as it is, with its default options. The last state."""
    model = small(name, num_classes=3).double().train()
    module = model if world_size == 1 else torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for step in range(STEPS):
        x = {
            m: image.double() for m, image in batch(model, 32, 32, seed=step).items()
        }  # one image per process
        target = torch.tensor([0, 2])
        if world_size > 1:  # one image per process
            x, target = {m: image[rank : rank + 1] for m, image in x.items()}, target[rank : rank + 1]
        F.cross_entropy(module(x), target).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


def work(rank, world_size, folder):
    """Compute every family under both kinds; the first process writes the results."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=world_size)
    results = {(name, kind): run(name, kind, rank, world_size) for name in ALL for kind in KINDS}
    results |= {(name, "plain"): train_plainly(name, rank, world_size) for name in TWO_SENSORS}
    if rank == 0:
        torch.save(results, f"{folder}/results.pt")
    dist.barrier()
    dist.destroy_process_group()
    end_process()
