"""CROMA's recipes: the paper's (Fuller et al., 2023, section 3 and appendix A), and ours for small models.

The data of the paper's recipes is SSL4EO-S12 (``data.root=``), its crops are 60 to 180 of 264 pixels,
resized to 120. They were not run here on the full set.
"""

from rsbackbones.train.engine.config import OptimOptions, SaveOptions
from rsbackbones.train.objectives.croma import CromaObjective
from rsbackbones.train.recipe import DataOptions, Recipe
from rsbackbones.train.recipes.samples import OPTICAL, PAIRS

RECIPES = (
    Recipe(
        name="croma_vit_b", model="croma_vit_b", objective=CromaObjective(), epochs=300, batch_size=7200,
    ),
    Recipe(
        name="croma_vit_l", model="croma_vit_l", objective=CromaObjective(), epochs=600, batch_size=3000,
    ),
    # The ablations of table 6 and appendix A.1 are this one with one option changed, such as
    # objective.contrast=none. (The paper fits each batch to its memory: batch_size=3700 at 50 % masking.)
    Recipe(
        name="croma_vit_b_ablation", model="croma_vit_b", objective=CromaObjective(), epochs=100,
        batch_size=7200,
    ),
    # Appendix A.1, "Lower Masked Tuning" at 10, 25 or 50 %: begins with init_from=; an epoch of warm-up, then
    # four of cosine.
    Recipe(
        name="croma_vit_l_lower_masked",
        model="croma_vit_l",
        objective=CromaObjective(mask_ratio_s2=0.5, mask_ratio_s1=0.5),
        optim=OptimOptions(base_lr=8e-8, warmup=1 / 5),
        epochs=5,
        batch_size=3000,
    ),
    # Ours, between tiny and the paper's; the learning rate is MAE's for small batches and not tuned.
    Recipe(
        name="croma_vit_s", model="croma_vit_s", objective=CromaObjective(), epochs=100, batch_size=2048,
        optim=OptimOptions(base_lr=1.5e-4),
    ),
    # Ours, the bundled demonstration model: minutes on two CPU cores. It has the four bands that all of its
    # sources have: with twelve, eight of them known from 11 pairs only, the embeddings of another product
    # (L1C) were worse than those of random weights. What else is not the paper's is so because images are
    # small (64 pixels, as most of them are) and few, and the run is short: half of the patches are masked, so
    # that 32 are seen as against the paper's 56; targets keep the brightness of a patch; the decoder is as
    # small as the model; there is no mixup.
    Recipe(
        name="croma_vit_tiny",
        model="croma_vit_tiny",
        overrides={"bands": {"s2": ["B02", "B03", "B04", "B08"], "s1": ["VV", "VH"]}},
        objective=CromaObjective(
            mask_ratio_s2=0.5, mask_ratio_s1=0.5, normalized_targets=False, reconstruction_weight=2,
            decoder_dim=128, decoder_heads=4,
        ),
        data=DataOptions(parts=(*PAIRS, *OPTICAL), crop=(32, 96), size=64, mixup=0),
        optim=OptimOptions(base_lr=4e-3, weight_decay=0.05, clip_grad=1.0),
        save=SaveOptions(every=500),
        epochs=80,
        batch_size=64,
        precision="fp32",
        log_every=1,
    ),
)  # fmt: skip
