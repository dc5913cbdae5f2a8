"""SeaMo's recipes: the paper's (Li et al., arXiv 2412.19237, sections 4.1.2 and 4.5), and ours.

The paper's recipes are for SSL4EO-S12 (``data.root=``), four seasons of 264 pixels. Crops are 50 to 100 % of
the side, resized to 128, flipped left to right. Stage 1 is 20 epochs of the first season without the TM
block, stage 2 is 200 epochs of all seasons. They were not run here on the full data set.

The paper states no warm-up and no weight decay. We use no warm-up ("a half-cycle cosine decay over 200
epochs"), and MAE's weight decay of 0.05 with its betas (0.9, 0.95). The paper uses "the same normalization"
as SSL4EO-S12.
"""

from dataclasses import replace

from rsbackbones.train.engine.config import OptimOptions, SaveOptions
from rsbackbones.train.engine.config_io import to_json
from rsbackbones.train.objectives.seamo import SeamoObjective
from rsbackbones.train.recipe import DataOptions, Recipe
from rsbackbones.train.recipes.samples import CLOUDY, PAIRS, SEASONS

# With a length of 1 every strategy has neither seasons nor TM block.
_STAGE_1 = {"objective": {"length": 1}, "epochs": 20}
_STAGE_2: dict[str, object] = {}  # the recipe's own fields

_BASE = Recipe(
    name="seamo_vit_b",
    model="seamo_vit_b",
    objective=SeamoObjective(),
    data=DataOptions(crop=(0.5, 1.0), size=128, flips="horizontal", rot90=False, region="partial", mixup=0),
    optim=OptimOptions(base_lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, warmup=0),
    stages=(_STAGE_1, _STAGE_2),
    epochs=200,
    batch_size=2048,
)

RECIPES = (
    _BASE,
    # Not in the paper: a larger encoder.
    replace(_BASE, name="seamo_vit_l", model="seamo_vit_l"),
    # The bundled demonstration model. Stage 1 trains on all pairs, with the four bands that most of them
    # have, stage 2 on the dated places. It differs from the paper for the reasons of croma_vit_tiny: small
    # and few images, and a short run. In stage 1 images are also rotated by 90 degrees and crops are smaller.
    Recipe(
        name="seamo_vit_tiny",
        model="seamo_vit_tiny",
        overrides={"bands": {"s2": ["B02", "B03", "B04", "B08"], "s1": ["VV", "VH"]}},
        objective=SeamoObjective(
            normalized_targets=False,
            decoder_dim=128,
            decoder_depth=1,
            decoder_heads=4,
        ),
        data=DataOptions(
            parts=SEASONS,
            crop=(0.5, 1.0),
            size=64,
            flips="horizontal",
            rot90=False,
            region="partial",
            mixup=0,
        ),
        optim=OptimOptions(base_lr=2e-3, betas=(0.9, 0.95), weight_decay=0.05, clip_grad=1.0),
        save=SaveOptions(every=500),
        stages=(
            {
                "objective": {"length": 1},
                "data": {
                    "parts": [to_json(part) for part in (*PAIRS, *CLOUDY)],
                    "crop": [32, 96],
                    "flips": True,
                    "rot90": True,
                },
                "epochs": 60,
                "batch_size": 64,
            },
            _STAGE_2,
        ),
        epochs=20,
        batch_size=16,
        precision="fp32",
        log_every=1,
    ),
)
