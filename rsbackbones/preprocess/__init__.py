"""Preprocessing: convert raw sensor values to the model's input, by the rule of the weights' input contract.

====================  ========================================================================================
rule (``normalize``)  the model's input
====================  ========================================================================================
``clip_2sd``          clipped to mean +- 2 standard deviations, which become 0 and 1
``scale``             x / s, one s per band; with ``clip`` clipped to [0, 1]
``standard``          (x - mean) / standard deviation
``imagenet``          an 8-bit picture as [0, 1] (after a ``stretch``, if any), then (x - mean) / std
``none``              x
====================  ========================================================================================

Some weights were trained on values that were stored in 8 bits (the units ``uint8`` and ``tci_dn``). Where the
contract states how those were made, physical values are converted to them first, so that a user with
reflectance passes what the network saw: value = 255 (x - low) / (high - low), clipped and rounded down.

The rule ``clip_2sd`` clips every band to its mean +- 2 standard deviations and scales that range to [0, 1].
By default the result is truncated to 8 bits, as in the CROMA authors' code. The statistics are those of the
*dataset* that the weights were trained on. The authors' script uses the mean and standard deviation of each
*batch* instead, so that the features of an image depend on the other images of its batch; that rule is
``statistics="batch"``.

8-bit pictures of reflectance (the unit ``rgb8``) are converted to it: 255 stands for a reflectance of 0.275,
2,750 dn, as in the pictures of EuroSAT beside their originals (B02, B03, B04: 2,780, 2,742, 2,735).
``rgb8:DN`` names another one: ESA's true color images of L1C (TCI) saturate at 3,558, ``rgb8:3558``.
Under the rule ``imagenet``, which is one for pictures, ``rgb8`` is the picture itself.
"""

from rsbackbones.preprocess.create import create_preprocess, preprocess_for
from rsbackbones.preprocess.normalization import RULES
from rsbackbones.preprocess.pixels import resize
from rsbackbones.preprocess.transform import Preprocess
from rsbackbones.preprocess.units import PICTURE_DN, UNITS, picture_note

__all__ = [
    "PICTURE_DN",
    "RULES",
    "UNITS",
    "Preprocess",
    "create_preprocess",
    "picture_note",
    "preprocess_for",
    "resize",
]
