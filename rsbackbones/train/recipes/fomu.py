r"""FoMu-SSL's recipe (Seo, Jung and Kim, ICML 2024 workshop, section 3.1 and appendix D), and ours.

``fomu_resnet50``: 200 epochs of fMoW-RGB without radar, then 50 of SEN1-2 with it, in batches of 256. The
rest is MMSelfSup's configuration of MoCo-v2, which the paper takes: SGD at 0.03 with a momentum of 0.9, a
weight decay of 1e-4 on all parameters, and a cosine. That the rate begins anew in the second phase, and that
queue and key encoder are carried over, the paper does not say. It was not run here.

    python -m rsbackbones.train recipe=fomu_resnet50 output=run \
        stages.0.data.root=FMOW stages.1.data.root=SEN12

The rows of the paper's tables are options of this recipe; see docs/training.md.
"""

from dataclasses import replace

from rsbackbones.data.picture_source import PictureFiles
from rsbackbones.data.two_views import AREA
from rsbackbones.train.engine.config import OptimOptions, SaveOptions
from rsbackbones.train.engine.config_io import to_json
from rsbackbones.train.objectives.fomu import FomuObjective
from rsbackbones.train.objectives.guidance import GuidanceOptions
from rsbackbones.train.objectives.oracle_files import WHEEL
from rsbackbones.train.recipe import DataOptions, Part, Recipe
from rsbackbones.train.recipes.samples import PAIRS

_NO_RADAR = {"objective": {"guidance": {"sar": 0}}}

_BASE = Recipe(
    name="fomu_resnet50",
    model="fomu_resnet50",
    objective=FomuObjective(),
    data=DataOptions(crop=AREA, size=224, flips="horizontal", rot90=False, mixup=0),
    optim=OptimOptions(name="sgd", base_lr=0.03, momentum=0.9, weight_decay=1e-4, decay_all=True, warmup=0),
    stages=({**_NO_RADAR, "epochs": 200}, {"epochs": 50, "data": {"units": {"s1": "rgb8"}}}),
    epochs=200,
    batch_size=256,
)

# The pictures at hand, without those that no bundled model may see.
_EUROSAT = Part(file=PictureFiles(path="eurosat_rgb_5000.zip", exclude="held_out"))
_UCM = Part(file=PictureFiles(path="ucmerced_rgb128_1575.zip", exclude="held_out"))

# For two CPU cores: small pictures, and a queue that holds less than an epoch, with a key encoder that
# follows within it. The second phase is on Sentinel-2 images, with radar in dB.
_OBJECTIVE = FomuObjective(queue=2048, momentum=0.99)
_SMALL = replace(
    _BASE,
    objective=_OBJECTIVE,
    data=replace(_BASE.data, size=64, parts=(_EUROSAT,)),
    save=SaveOptions(every=200),
    stages=(
        {**_NO_RADAR, "steps": 600},
        {"steps": 200, "data": {"parts": [to_json(PAIRS[0])], "units": {"rgb": "dn"}}},
    ),
    epochs=None,
    steps=600,
    batch_size=64,
    precision="fp32",
    log_every=1,
)

RECIPES = (
    _BASE,
    # For tests: 0.37 M parameters. An oracle must be named.
    replace(
        _SMALL,
        name="fomu_resnet_tiny",
        model="fomu_resnet_tiny",
        objective=replace(_OBJECTIVE, guidance=GuidanceOptions(oracle="")),
    ),
    replace(
        _SMALL,
        name="fomu_lite0",
        model="fomu_lite0",
        objective=replace(_OBJECTIVE, guidance=GuidanceOptions(oracle=WHEEL)),
    ),
    # MoCo-v2 from random weights, without guidance: the bundled one. Momentum and temperature are those of
    # MoCo's own example for CIFAR, which has small pictures as well. The queue is a fifth of an epoch, so
    # that few of its keys are of the same picture.
    replace(
        _SMALL,
        name="fomu_resnet10t",
        model="fomu_resnet10t",
        objective=FomuObjective(
            queue=1024, momentum=0.99, temperature=0.1,
            guidance=GuidanceOptions(rgb=0, sar=0, initial_oracle=False),
        ),
        data=replace(_SMALL.data, parts=(_EUROSAT, _UCM)),
        optim=OptimOptions(base_lr=0.002, weight_decay=0.05, warmup=0.05),
        precision="bf16",
        stages=(),
        epochs=30,
        steps=None,
        batch_size=128,
    ),
)  # fmt: skip
