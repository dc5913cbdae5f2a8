"""Pretrained backbones for remote sensing: verified weights for your sensors, bands and sizes.

See ``create_model`` for the way in, and ``rsbackbones.list_models()`` for what there is.
"""

from typing import TYPE_CHECKING, Any

from rsbackbones.input_spec import InputSpec
from rsbackbones.integrations.export import export_onnx, export_program
from rsbackbones.models.backbone import Backbone
from rsbackbones.models.feature_maps import FeatureMaps
from rsbackbones.models.features import Features
from rsbackbones.preprocess import Preprocess, create_preprocess
from rsbackbones.sensors import SENSORS, Band, Sensor, get_sensor, hyperspectral, register_sensor
from rsbackbones.zoo.adapt import Adaptation, AdaptationStep, BandMapping, BandMatch
from rsbackbones.zoo.errors import (
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
from rsbackbones.zoo.factory import create_model
from rsbackbones.zoo.manifest import WeightsEntry
from rsbackbones.zoo.publish import push_to_hub
from rsbackbones.zoo.registry import list_models, list_weights, register_family
from rsbackbones.zoo.saving import save_in_format, save_model

if TYPE_CHECKING:
    from rsbackbones import embed

__version__ = "0.1.0"

__all__ = [
    "SENSORS",
    "Adaptation",
    "AdaptationStep",
    "Backbone",
    "Band",
    "BandMapping",
    "BandMatch",
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
    "embed",
    "export_onnx",
    "export_program",
    "get_sensor",
    "hyperspectral",
    "list_models",
    "list_weights",
    "push_to_hub",
    "register_family",
    "register_sensor",
    "save_in_format",
    "save_model",
]


def __getattr__(name: str) -> Any:
    """Import ``rsbackbones.embed`` when it is used."""
    if name == "embed":
        import importlib

        return importlib.import_module("rsbackbones.embed")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
