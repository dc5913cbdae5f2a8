"""The recipes of AuxMAE, MixMAE and their Sentinel-2 baseline (Linial et al., Google Research), and ours.

Section 4.2: batches of 4096 and Adafactor for all; 1,000,000 steps of AuxMAE, of which each task has half;
500,000 of MixMAE. The paper does not state the baseline's: 500,000, the encoder's steps of task 1 in
AuxMAE. Of Adafactor it gives the name alone: the step size is min(1e-2, 1 / sqrt(t)), relative to the scale
of a parameter (Shazeer and Stern, 2018), constant, without warm-up and weight decay. Crops and flips are not
in the paper: those of our other recipes.

The paper's 40 million pairs are not public, and these recipes were not run in full. They take any data with
L1C images (``data.root=``); each Sentinel-2 image goes with the Sentinel-1 image nearest in time, at most 7
days away (section 3.1). The paper leaves images without one out. Here they serve the task that needs none.
"""

from dataclasses import replace

from rsbackbones.train.engine.config import OptimOptions, SaveOptions
from rsbackbones.train.objectives.auxmae import AuxmaeObjective, Task
from rsbackbones.train.objectives.mixmae import MixmaeObjective
from rsbackbones.train.recipe import DataOptions, Recipe
from rsbackbones.train.recipes.samples import CLOUDY, PAIRS

_AUXMAE = Recipe(
    name="auxmae_vit_b",
    model="auxmae_vit_b",
    objective=AuxmaeObjective(),
    data=DataOptions(crop=(0.5, 1.0), size=224, mixup=0, pair_days=7),
    optim=OptimOptions(
        name="adafactor", base_lr=1e-2, scaled=False, weight_decay=0, warmup=0, schedule="constant"
    ),
    steps=1_000_000,
    batch_size=4096,
)

_SMALL = AuxmaeObjective(decoder_dim=128, decoder_depth=1, decoder_heads=4)

# For two CPU cores: the pairs at hand, with the four bands that all have. Most are L2A. Small images and a
# short run, so the optimizer and its rate are those of our other small models, the decoders are as small as
# the model, and all three see the same images equally often.
_TINY = replace(
    _AUXMAE,
    name="auxmae_vit_tiny",
    model="auxmae_vit_tiny",
    overrides={"bands": {"s2": ["B02", "B03", "B04", "B08"]}},
    objective=_SMALL,
    data=DataOptions(
        parts=(*PAIRS, *CLOUDY), crop=(32, 96), size=64, mixup=0, pair_days=7, products={"s2": "L2A"}
    ),
    optim=OptimOptions(base_lr=2e-3, betas=(0.9, 0.95), weight_decay=0.05, clip_grad=1.0),
    save=SaveOptions(every=500),
    steps=800,
    batch_size=64,
    precision="fp32",
    log_every=1,
)

RECIPES = (
    _AUXMAE,
    replace(_AUXMAE, name="mixmae_vit_b", model="mixmae_vit_b", objective=MixmaeObjective(), steps=500_000),
    replace(_AUXMAE, name="s2mae_vit_b", objective=AuxmaeObjective(tasks=(Task(),)), steps=500_000),
    _TINY,
    replace(
        _TINY,
        name="mixmae_vit_tiny",
        model="mixmae_vit_tiny",
        overrides={"bands": {"s2": ["B02", "B03", "B04", "B08"], "s1": ["VV", "VH"]}},
        objective=MixmaeObjective(decoder_dim=128, decoder_depth=1, decoder_heads=4),
    ),
    replace(_TINY, name="s2mae_vit_tiny", objective=replace(_SMALL, tasks=(Task(),))),
)
