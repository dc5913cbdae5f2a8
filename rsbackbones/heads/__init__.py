"""Dense heads: semantic segmentation and change detection on a backbone.

:func:`dense_model` adds a head to any backbone, and :func:`load_dense_model` reads one that
:func:`rsbackbones.save_model` wrote. The heads are also available as modules.
"""

from rsbackbones.heads.build import HEADS, dense_model
from rsbackbones.heads.change import ChangeModel
from rsbackbones.heads.dense import DenseModel
from rsbackbones.heads.linear import LinearHead
from rsbackbones.heads.loading import load_dense_model
from rsbackbones.heads.temporal import TemporalHead
from rsbackbones.heads.unet3d import UNet3dHead
from rsbackbones.heads.upernet import UPerNet
from rsbackbones.heads.vit_lite import ViTLite, ViTLiteHead

__all__ = [
    "HEADS",
    "ChangeModel",
    "DenseModel",
    "LinearHead",
    "TemporalHead",
    "UNet3dHead",
    "UPerNet",
    "ViTLite",
    "ViTLiteHead",
    "dense_model",
    "load_dense_model",
]
