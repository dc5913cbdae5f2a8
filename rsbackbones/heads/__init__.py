"""What a downstream task puts on top of a backbone: classes, or change, of every pixel.

:func:`dense_model` puts a head on any backbone; the heads can be had alone.
"""

from rsbackbones.heads.build import HEADS, dense_model
from rsbackbones.heads.change import ChangeModel
from rsbackbones.heads.dense import DenseModel
from rsbackbones.heads.linear import LinearHead
from rsbackbones.heads.upernet import UPerNet
from rsbackbones.heads.vit_lite import ViTLite, ViTLiteHead

__all__ = [
    "HEADS",
    "ChangeModel",
    "DenseModel",
    "LinearHead",
    "UPerNet",
    "ViTLite",
    "ViTLiteHead",
    "dense_model",
]
