"""Pretrained backbones for remote sensing: verified weights for your sensors, bands and sizes.

See ``create_model`` for the way in, and ``rsbackbones.list_models()`` for what there is.
"""

from rsbackbones.adapt import Adaptation, BandSource, BandTable, Change
from rsbackbones.errors import (
    CorruptCheckpointError,
    UnsafeCheckpointError,
    WeightsAccessError,
    WeightsCacheError,
    WeightsError,
    WeightsIntegrityError,
    WeightsMismatchError,
    WeightsNotFound,
    WeightsUnavailable,
)
from rsbackbones.export import export_onnx, export_program
from rsbackbones.factory import create_model
from rsbackbones.manifest import WeightsEntry
from rsbackbones.models.backbone import Backbone
from rsbackbones.models.feature_maps import FeatureMaps
from rsbackbones.models.features import Features
from rsbackbones.preprocess import Preprocess, create_preprocess
from rsbackbones.publish import push_to_hub
from rsbackbones.registry import list_models, list_weights, register_family
from rsbackbones.saving import save_model
from rsbackbones.sensors import SENSORS, Band, InputSpec, Sensor, get_sensor, hyperspectral, register_sensor

__version__ = "0.1.0"

__all__ = [
    "SENSORS",
    "Adaptation",
    "Backbone",
    "Band",
    "BandSource",
    "BandTable",
    "Change",
    "CorruptCheckpointError",
    "FeatureMaps",
    "Features",
    "InputSpec",
    "Preprocess",
    "Sensor",
    "UnsafeCheckpointError",
    "WeightsAccessError",
    "WeightsCacheError",
    "WeightsEntry",
    "WeightsError",
    "WeightsIntegrityError",
    "WeightsMismatchError",
    "WeightsNotFound",
    "WeightsUnavailable",
    "create_model",
    "create_preprocess",
    "export_onnx",
    "export_program",
    "get_sensor",
    "hyperspectral",
    "list_models",
    "list_weights",
    "push_to_hub",
    "register_family",
    "register_sensor",
    "save_model",
]
