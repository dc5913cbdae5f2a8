"""A pretraining method of your own, on any backbone: SimCLR, contrast between two views of every image.

Run it with python or torchrun: own_objective.py FOLDER, in a layout of docs/training.md, such as s2/*.tif.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from rsbackbones.train import Objective, ObjectiveConfig, Recipe, pretrain, register_objective
from rsbackbones.train.engine.config import OptimOptions
from rsbackbones.train.export import export
from rsbackbones.train.objectives.gather import first_row, gather_rows
from rsbackbones.train.recipe import DataOptions


@register_objective
@dataclass(frozen=True, kw_only=True)
class SimclrObjective(ObjectiveConfig):
    method: Literal["simclr"] = "simclr"
    temperature: float = 0.2
    views = ("first", "second")  # each cropped, flipped and turned for itself

    def build(self, backbone):
        return Simclr(self, backbone)


class Simclr(Objective):
    def __init__(self, options, backbone):
        super().__init__()
        self.options, self.backbone = options, backbone
        self.projector = nn.Sequential(nn.Linear(backbone.num_features, 64), nn.ReLU(), nn.Linear(64, 32))

    def forward(self, batch):
        a, b = (F.normalize(self.projector(self.backbone(x)), dim=-1) for x in batch.views.values())
        logits = a @ gather_rows(b).T / self.options.temperature  # the negatives are those of all processes
        return {"loss": F.cross_entropy(logits, first_row(a) + torch.arange(len(a), device=a.device))}


recipe = Recipe(
    name="simclr_tiny",
    model="croma_vit_tiny",
    overrides={"modalities": ["s2"], "bands": {"s2": ["B02", "B03", "B04", "B08"]}},
    objective=SimclrObjective(),
    data=DataOptions(root=Path(sys.argv[1]), size=32, crop=(16, 32), mixup=0, workers=0),
    optim=OptimOptions(base_lr=1e-2),
    epochs=4, batch_size=8, precision="fp32", log_every=1, output=Path("run"),
)  # fmt: skip

if __name__ == "__main__":
    summary = pretrain(recipe)
    if os.environ.get("RANK", "0") == "0":
        print(summary, export(Path("run"), Path("weights"), tag="simclr"))
