"""S4's recipes: the paper's (Shenoy et al., Remote Sensing 2024, 16, 3470, section 6.3), and ours.

They are for folders of paired series (``data.root=``, :mod:`rsbackbones.data.series_folder`). Adam at 1e-3 as
it stands, no decay, no warm-up and a constant rate; 100 epochs; whole images of 128 pixels without
augmentation (section 5.1); red, green and blue with VV and VH. The paper does not state the batch; 4 is that
of the network that it follows. Statistics are those of the data (``data.statistics=dataset``). The paper
takes those of the set that is fine-tuned on: state them instead (``data.statistics={...}``). Not run here on
the paper's data, which are not published.
"""

from dataclasses import replace

from rsbackbones.train.engine.config import OptimOptions, SaveOptions
from rsbackbones.train.objectives.s4 import S4Objective
from rsbackbones.train.recipe import DataOptions, Recipe

_BASE = Recipe(
    name="s4_unet3d",
    model="s4_unet3d",
    overrides={"bands": {"s2": ["B02", "B03", "B04"], "s1": ["VV", "VH"]}},
    objective=S4Objective(),
    data=DataOptions(crop=(128, 128), size=128, flips=False, rot90=False, mixup=0, statistics="dataset"),
    optim=OptimOptions(
        name="adam", base_lr=1e-3, scaled=False, weight_decay=0, warmup=0, schedule="constant"
    ),
    epochs=100,
    batch_size=4,
)

RECIPES = (
    _BASE,
    # Every date is encoded alone; the contrast is over all dates all the same.
    replace(_BASE, name="s4_unet2d", model="s4_unet2d"),
    # For a CPU core and the few places that examples/write_series.py writes: short series, and random crops,
    # of which there are more than of whole images.
    replace(
        _BASE,
        name="s4_unet3d_tiny",
        model="s4_unet3d_tiny",
        objective=S4Objective(length=12),
        data=replace(_BASE.data, crop=(32, 32), size=32),
        save=SaveOptions(every=100),
        epochs=None,
        steps=300,
        precision="fp32",
        log_every=1,
    ),
)
