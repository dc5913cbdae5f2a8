"""CROMA's recipes: the paper's (Fuller et al., 2023, section 3 and appendix A), and ours for small models.

The paper's recipes are for SSL4EO-S12 (``data.root=``): crops of 60 to 180 of 264 pixels, resized to 120.
They were not run here on the full data set.
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
    # For the ablations of table 6 and appendix A.1 change one option of this recipe, such as
    # objective.contrast=none. (The paper chooses each batch to fit the memory: 3700 at 50 % masking.)
    Recipe(
        name="croma_vit_b_ablation", model="croma_vit_b", objective=CromaObjective(), epochs=100,
        batch_size=7200,
    ),
    # Appendix A.1, "Lower Masked Tuning" at 10, 25 or 50 %: needs init_from=; one epoch of warm-up, then four
    # of cosine decay.
    Recipe(
        name="croma_vit_l_lower_masked",
        model="croma_vit_l",
        objective=CromaObjective(mask_ratio_s2=0.5, mask_ratio_s1=0.5),
        optim=OptimOptions(base_lr=8e-8, warmup=1 / 5),
        epochs=5,
        batch_size=3000,
    ),
    # Ours, between tiny and the paper's sizes. The learning rate is MAE's for small batches; it is not tuned.
    Recipe(
        name="croma_vit_s", model="croma_vit_s", objective=CromaObjective(), epochs=100, batch_size=2048,
        optim=OptimOptions(base_lr=1.5e-4),
    ),
    # Ours: the bundled demonstration model, which trains in minutes on two CPU cores. It has the four bands
    # that all data sources have. With twelve bands, eight of them from 11 pairs only, the embeddings of L1C
    # images were worse than those of random weights. The other differences from the paper are due to small
    # images (64 pixels, as most of them have), few images and a short run: half of the patches are masked, so
    # that 32 are visible (56 in the paper); targets keep the brightness of a patch; the decoder is as small
    # as the model; there is no mixup.
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
