"""The fine-tuning recipes of the papers, one for every row of their tables.

CROMA: Fuller et al., 2023, appendix A.4.2. SeaMo: section 4.2. AuxMAE: section 4.2 and tables 1 and 2. FoMu:
appendix D.2 and D.4. S4: Shenoy et al., 2024, section 6.3. Choices that a paper leaves open are marked in a
comment. AuxMAE's recipes also run its baseline and MixMAE (``model=mixmae_vit_b``), with the ``checkpoint``
of each. Every row uses one sensor; pass ``modalities=s2,s1`` to fine-tune on both. The papers' numbers were
not reproduced here.
"""

from dataclasses import replace

from rsbackbones.train.engine.config import SaveOptions
from rsbackbones.train.finetune.recipe import FinetuneOptim, FinetuneRecipe, Views

CROMA_RATES = (3e-5, 5e-5, 8e-5, 1e-4, 3e-4, 5e-4, 8e-4, 1e-3)
_OPTICAL, _RADAR = ("s2",), ("s1",)
# A checkpoint is written at every evaluation; more often only where epochs are long.
_SAVE = SaveOptions(every=5000, keep=1)
_NOT_MIXED = Views(mixup=0, cutmix=0, label_smoothing=0)

# The paper uses the largest batch that fits its GPU; a batch of 256 leaves the learning rates unscaled. The
# paper reports the best single evaluation (select=paper); our default chooses epoch and rate on a validation
# split.
_CROMA = FinetuneRecipe(
    name="croma",
    model="croma_vit_b",
    modalities=_OPTICAL,
    views=Views(size=120),
    optim=FinetuneOptim(weight_decay=0.01, warmup_epochs=5),
    epochs=35,
    batch_size=256,
    rates=CROMA_RATES,
    save=_SAVE,
)

# Not in the paper: weight decay (0.05, as in SatMAE's code, whose augmentation the paper follows), label
# smoothing and switch probability (SatMAE's), layer decay (none).
_SEAMO = FinetuneRecipe(
    name="seamo_eurosat",
    model="seamo_vit_b",
    modalities=_OPTICAL,
    views=Views(size=128),
    optim=FinetuneOptim(base_lr=1e-2, weight_decay=0.05, warmup_epochs=20),
    epochs=150,
    batch_size=512,
    drop_path=0.2,
    save=_SAVE,
)
# The paper states drop path for EuroSAT and the data sets after it, not for dense prediction. No warm-up if
# none is stated. For OSCD the paper says "learning rate", elsewhere "base learning rate": both are base rates
# here.
_SEAMO_DENSE = replace(
    _SEAMO,
    views=replace(_NOT_MIXED, rot90=False),
    optim=FinetuneOptim(base_lr=1e-4, weight_decay=0.05),
    drop_path=0.0,
)

# Its images are 96 pixels, and are not resized.
_SEAMO_DFC = replace(
    _SEAMO_DENSE,
    name="seamo_dfc2020",
    optim=replace(_SEAMO_DENSE.optim, warmup_epochs=5),
    epochs=30,
    batch_size=64,
)
_SEAMO_WATER = replace(
    _SEAMO_DENSE,
    name="seamo_s1s2_water_s2",
    views=replace(_SEAMO_DENSE.views, tile=256, overlap=0),
    epochs=30,
    batch_size=24,
)

# Not in the paper: learning rate and schedule (Adafactor's relative rate of Shazeer and Stern, constant), and
# augmentation (flips and rotations). BigEarthNet has a linear head, label maps have ViT-Lite.
_AUXMAE = FinetuneRecipe(
    name="auxmae",
    model="auxmae_vit_b",
    modalities=_OPTICAL,
    views=_NOT_MIXED,
    optim=FinetuneOptim(name="adafactor", base_lr=1e-2, scaled=False, weight_decay=0.0, schedule="constant"),
    steps=30_000,
    evaluate_every=1000,
    batch_size=4096,
    head="vit_lite",
    save=_SAVE,
)

# BigEarthNet is L2A: twelve of the thirteen bands. Its 120 pixels are no multiple of the patch, so they are
# resized to 128.
_AUXMAE_LINEAR = replace(
    _AUXMAE, name="auxmae_bigearthnet", head="linear", views=replace(_NOT_MIXED, size=128)
)

# Label maps as MMSegmentation's converters write them: 0 is the boundary, 6 clutter. Other numbers:
# data_options.classes=. Potsdam is trained and scored without clutter, as in CMID's code.
_FIVE = {"impervious_surface": [1], "building": [2], "low_vegetation": [3], "tree": [4], "car": [5]}

# Learning rates are not scaled. Images are 512 pixels: random crops of that size are whole images.
_FOMU = FinetuneRecipe(
    name="fomu_potsdam",
    model="fomu_resnet50",
    modalities=("rgb",),
    sensors={"rgb": "rgb"},
    data_options={"classes": _FIVE},
    # Random scales, colors and the second head are of the configurations that the paper follows.
    views=replace(
        _NOT_MIXED,
        rot90=False,
        flips="horizontal",
        tile=512,
        overlap=0,
        ratio_range=(0.5, 2.0),
        photometric=True,
    ),
    auxiliary=0.4,
    optim=FinetuneOptim(
        name="sgd", base_lr=0.01, scaled=False, momentum=0.9, weight_decay=5e-4, warmup_steps=100, min_lr=1e-6
    ),
    epochs=50,
    batch_size=8,
    head="upernet",
    save=_SAVE,
)
# Not in the paper: the optimizer of the linear layer (SGD with cosine, as in MoCo's linear evaluation).
_FOMU_LINEAR = replace(
    _FOMU,
    data_options={},
    auxiliary=0.0,
    views=replace(_NOT_MIXED, rot90=False, flips="horizontal", size=224),
    optim=FinetuneOptim(name="sgd", base_lr=0.1, momentum=0.9, weight_decay=0.0),
    freeze=True,
)

# Not in the paper: the batch (that of the authors of PASTIS). Of their ten bands the paper uses three. Images
# are not augmented.
_S4 = FinetuneRecipe(
    name="s4_pastis",
    model="s4_unet3d",
    modalities=_OPTICAL,
    bands={"s2": ("B02", "B03", "B04"), "s1": ("VV", "VH")},
    statistics="dataset",
    views=replace(_NOT_MIXED, flips=False, rot90=False),
    optim=FinetuneOptim(name="adam", base_lr=1e-3, scaled=False, weight_decay=0.0, schedule="constant"),
    epochs=50,
    batch_size=4,
    evaluation_batch=4,
    head="unet3d",
    save=_SAVE,
)
# Four crops; 0, the background, is no label.
_S4_AFRICA = replace(_S4, name="s4_africa", data_options={"ignore": [0]})

_ROWS = (
    # BigEarthNet, fMoW-Sentinel and Canadian Cropland, each 10 % (appendix A.4.1).
    _CROMA,
    replace(_CROMA, name="croma_eurosat", epochs=155),
    # The whole of fMoW-Sentinel, not swept (table 13).
    replace(_CROMA, name="croma_fmow_full", optim=replace(_CROMA.optim, base_lr=1e-5), rates=()),
    _SEAMO,
    replace(_SEAMO, name="seamo_eurosat_sar", modalities=_RADAR),
    # The batch is not in the paper: EuroSAT's.
    replace(_SEAMO, name="seamo_fmow", optim=replace(_SEAMO.optim, base_lr=2e-4), epochs=80),
    replace(
        _SEAMO,
        name="seamo_bigearthnet",
        optim=replace(_SEAMO.optim, base_lr=1e-5, warmup_epochs=10),
        epochs=50,
    ),
    replace(
        _SEAMO,
        name="seamo_bigearthnet_sar",
        optim=replace(_SEAMO.optim, base_lr=8e-5, warmup_epochs=10),
        epochs=50,
        modalities=_RADAR,
    ),
    _SEAMO_DFC,
    replace(_SEAMO_DFC, name="seamo_dfc2020_sar", modalities=_RADAR),
    replace(
        _SEAMO_DENSE,
        name="seamo_segmunich",
        views=replace(_SEAMO_DENSE.views, tile=128, overlap=64),
        epochs=100,
        batch_size=128,
    ),
    replace(
        _SEAMO_DENSE,
        name="seamo_oscd",
        views=replace(_SEAMO_DENSE.views, tile=128, overlap=64, rot90=True),
        epochs=50,
        batch_size=128,
    ),
    # Images of 12,800 pixels, cut into 25 x 25 tiles without overlap.
    replace(
        _SEAMO_DENSE,
        name="seamo_glh_water",
        views=replace(_SEAMO_DENSE.views, tile=512, overlap=0),
        epochs=30,
        batch_size=24,
    ),
    _SEAMO_WATER,
    replace(_SEAMO_WATER, name="seamo_s1s2_water_s1", modalities=_RADAR),
    _AUXMAE_LINEAR,
    replace(_AUXMAE_LINEAR, name="auxmae_bigearthnet_frozen", freeze=True),
    # Trained on background, water and clouds, scored on water. The radar images of the set are not used.
    replace(_AUXMAE, name="auxmae_sen1floods11", metric="iou_water"),
    replace(_AUXMAE, name="auxmae_sen1floods11_frozen", metric="iou_water", freeze=True),
    # UrbanSRSeg8: labels of 2.5 m for images of 10 m.
    replace(_AUXMAE, name="auxmae_superresolution", scale=4, steps=10_000),
    replace(_AUXMAE, name="auxmae_superresolution_frozen", scale=4, steps=10_000, freeze=True),
    _FOMU,
    replace(
        _FOMU,
        name="fomu_vaihingen",
        data_options={"classes": {**_FIVE, "clutter": [6]}},
        optim=replace(_FOMU.optim, schedule="poly", power=0.9, warmup_steps=0, min_lr=1e-4),
        epochs=None,
        steps=40_000,
        batch_size=4,
    ),
    # Split 8:2 at random, "not class-balanced" (appendix D.4).
    replace(
        _FOMU_LINEAR,
        name="fomu_ucm_linear",
        data_options={"stratify": False},
        epochs=200,
        batch_size=32,
    ),
    replace(_FOMU_LINEAR, name="fomu_eurosat_linear", epochs=50, batch_size=256),
    _S4,
    replace(_S4, name="s4_pastis_sar", modalities=_RADAR),
    _S4_AFRICA,
    replace(_S4_AFRICA, name="s4_africa_sar", modalities=_RADAR),
    # Any set in our own layout.
    replace(_S4, name="s4_series"),
    # Bands and statistics are those of the run that reconstructs.
    replace(_S4, name="s4_mmf", bands={}, statistics="weights", head="fusion"),
)

RECIPES: dict[str, FinetuneRecipe] = {recipe.name: recipe for recipe in _ROWS}
