"""``load_dense_model``: read a dense model that ``save_model`` or ``push_to_hub`` wrote."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from rsbackbones.heads.build import dense_model
from rsbackbones.heads.dense import DenseModel
from rsbackbones.zoo import hub, weights
from rsbackbones.zoo.adapt import Adaptation
from rsbackbones.zoo.checkpoint_files import DENSE_PREFIX, CheckpointFile, not_finite, open_checkpoint
from rsbackbones.zoo.errors import CorruptCheckpointError, WeightsMismatchError
from rsbackbones.zoo.factory import create_model
from rsbackbones.zoo.loading import read_metadata
from rsbackbones.zoo.registry import resolve_weights


def load_dense_model(checkpoint: str | Path, **arguments: Any) -> DenseModel:
    """Load a dense model with its decoder, in ``eval()`` mode.

    Args:
        checkpoint: a file that ``save_model`` wrote, or ``hf-hub:ORG/NAME`` of ``push_to_hub``.
        arguments: of :func:`rsbackbones.create_model`, such as ``pad=True``.

    Raises:
        WeightsError: (a ``ValueError``) there is no such file, it is damaged, or it holds no dense model.
        ImportError: a decoder that needs the extra ``heads``.
    """
    name, source = "", dict[str, Any](checkpoint=checkpoint)
    path = Path(checkpoint).expanduser()
    if str(checkpoint).startswith(hub.PREFIX):
        name, source = str(checkpoint), {"pretrained": True}
        path = weights.fetch(resolve_weights(name))
    file = open_checkpoint(path, allow_pickle=True)
    stored = read_metadata(file)
    if not isinstance(stored.get("dense"), dict):
        raise WeightsMismatchError(
            f"{path} holds no dense model of save_model: load its backbone with create_model(..., "
            "checkpoint=...), and add a new head with rsbackbones.heads.dense_model"
        )
    backbone = create_model(name or stored["architecture"], num_classes=None, **{**arguments, **source})
    options = stored["dense"]
    try:
        if (options.get("depth") or 0) > len(file.tensors):
            raise ValueError(f"depth {options['depth']} of the decoder, {len(file.tensors)} tensors")
        with torch.device("meta"):  # the file may state a decoder of any size
            fits = _has_head(file, dense_model(backbone, **options))
        model = dense_model(backbone, **options) if fits else None
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise CorruptCheckpointError(f"{path}: its metadata is damaged: {error}") from error
    if model is None:
        raise WeightsMismatchError(f"{path} does not hold the decoder that its metadata states: {options}")
    if backbone.adaptation is not None:
        kept = tuple(step for step in backbone.adaptation.steps if step.part != "decoder")
        backbone.adaptation = Adaptation(kept, backbone.adaptation.bands)
    load_head(model, file)
    return model.eval()


def _has_head(file: CheckpointFile, model: DenseModel) -> bool:
    """Return whether a file holds the tensors of a decoder, by names and shapes."""
    held = {name: tuple(t.shape) for name, t in file.tensors.items() if name.startswith(DENSE_PREFIX)}
    return held == {DENSE_PREFIX + name: tuple(t.shape) for name, t in model.head.state_dict().items()}


def load_head(model: nn.Module, file: CheckpointFile) -> None:
    """Load the decoder of a file of ``save_model`` into a dense model, strictly.

    Raises:
        WeightsMismatchError: the file holds another decoder.
        CorruptCheckpointError: a tensor holds NaN or infinity.
    """
    names = [name for name in file.tensors if name.startswith(DENSE_PREFIX)]
    state = {name.removeprefix(DENSE_PREFIX): tensor for name, tensor in file.read(names).items()}
    if bad := not_finite(state):
        raise CorruptCheckpointError(f"{file.path}: NaN or infinity in {', '.join(bad)}")
    try:
        model.get_submodule("head").load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise WeightsMismatchError(f"{file.path} does not hold this decoder: {error}") from error
