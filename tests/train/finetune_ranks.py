"""For torchrun: ``python -m tests.train.finetune_ranks JSON``, runs one after another in one group."""

import json
import sys
from pathlib import Path

import torch

from rsbackbones.train.engine.config_io import from_json
from rsbackbones.train.engine.distributed import DistributedContext, destroy, end_process, init_distributed
from rsbackbones.train.finetune import FinetuneRecipe, finetune, tune


def main(file: Path) -> None:
    """Run the recipes that the file lists."""
    torch.set_num_threads(1)
    processes = init_distributed(60)
    tune.init_distributed, tune.destroy = lambda timeout: processes, DistributedContext.barrier
    for fields in json.loads(file.read_text()):
        finetune(from_json(fields, FinetuneRecipe))
    destroy(processes)
    end_process()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
