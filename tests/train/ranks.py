"""For torchrun: ``python -m tests.train.ranks JSON``, the first steps of recipes, each computed by all ranks.

The file holds ``recipes`` by name, the ``count`` of steps, and where the ``results`` go: by name the loss and
the norm of every step, and the sum of every parameter after the last; and how long each group waits.
"""

import json
import sys
from itertools import islice
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from rsbackbones.train.engine.checkpoint import Checkpoints
from rsbackbones.train.engine.config import SaveOptions
from rsbackbones.train.engine.config_io import from_json
from rsbackbones.train.engine.distributed import destroy, end_process, init_distributed
from rsbackbones.train.pretraining import stages_of
from rsbackbones.train.recipe import Recipe


def steps_of(recipe, processes, count):
    """The curve of the first steps: mean loss over the processes and norm of the gradient."""
    run = stages_of(recipe)[-1].build(processes)
    batches = run.batches(0, count)
    curve = []
    for step in range(count):
        of_step = list(islice(batches, recipe.accumulate))
        parts, norm = run.forward_backward(of_step)
        loss = processes.reduce([parts["loss"].item()], dist.ReduceOp.SUM)[0] / processes.world_size
        curve.append((loss, norm.item()))
        run.update(of_step, run.step(step), norm)
    state = get_model_state_dict(run.module, options=StateDictOptions(full_state_dict=True))
    return curve, {name: value.double().sum().item() for name, value in state.items()}


def main(file: Path) -> None:
    """Compute what the file asks for."""
    torch.set_num_threads(1)
    content = json.loads(file.read_text())
    processes = init_distributed(60)
    saving = Checkpoints(file.parent / "checkpoints", processes, SaveOptions())
    groups = [group._get_backend(processes.device) for group in (dist.group.WORLD, saving._group)]
    results = {"timeouts": [group.options._timeout.total_seconds() for group in groups]}
    for name, fields in content["recipes"].items():
        results[name] = steps_of(from_json(fields, Recipe), processes, content["count"])
    if processes.is_main_process:
        Path(content["results"]).write_text(json.dumps(results))
    destroy(processes)
    end_process()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
