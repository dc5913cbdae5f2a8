"""A fine-tuned model on disk: a folder with its weights, classes and metrics."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from rsbackbones.files.atomic import write_text
from rsbackbones.files.bounds import read_json
from rsbackbones.files.sha256 import sha256_of
from rsbackbones.heads import load_dense_model
from rsbackbones.heads.loading import load_head
from rsbackbones.models.backbone import unwrap_model
from rsbackbones.typed_fields import check_fields
from rsbackbones.zoo.checkpoint_files import DENSE_PREFIX, SafetensorsFile
from rsbackbones.zoo.factory import create_model
from rsbackbones.zoo.saving import save_model


@dataclass(frozen=True)
class _About:
    """The fields of ``about.json`` that are needed."""

    architecture: str
    head: Mapping[str, Any] | None
    sha256: Mapping[Literal["model.safetensors"], str]


_ABOUT = ("architecture", "head", "sha256")
MODEL, ABOUT = "model.safetensors", "about.json"
# The folder of the best model in that of a run.
BEST = "best"


def save_finetuned(model: nn.Module, folder: Path, about: Mapping[str, Any]) -> None:
    """Write a model and its metadata to a folder, under a temporary name that is then renamed.

    ``model.safetensors`` is what ``save_model`` writes, readable by ``create_model(..., checkpoint=...,
    num_classes=None)`` and, with its decoder, by ``load_dense_model``; ``about.json`` the metadata, and the
    sha256. An existing folder of that name is replaced.
    """
    part, old = folder.with_name(folder.name + ".tmp"), folder.with_name(folder.name + ".old.tmp")
    for left in (part, old):
        shutil.rmtree(left, ignore_errors=True)
    part.mkdir()
    hashes = {MODEL: sha256_of(save_model(model, part / MODEL))}
    write_text(part / ABOUT, json.dumps({**about, "sha256": hashes}, indent=1))
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def about_finetuned(folder: Path) -> dict[str, Any]:
    """Return the content of ``about.json``, after verifying the hashes of the files.

    Raises:
        ValueError: the folder has none, or a file was changed.
    """
    try:
        about: dict[str, Any] = read_json(folder / ABOUT)
        check_fields(_About, {name: about[name] for name in _ABOUT}, ABOUT)
        wrong = [name for name, digest in about["sha256"].items() if sha256_of(folder / name) != digest]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{folder} holds no fine-tuned model: {type(error).__name__}: {error}") from error
    if wrong:
        raise ValueError(f"{folder / wrong[0]} is not what was written; fine-tune again")
    return about


def read_weights(model: nn.Module, folder: Path) -> None:
    """Load the weights of a fine-tuned model into a model of the same architecture and head.

    Raises:
        ValueError: as :func:`about_finetuned`.
    """
    about_finetuned(folder)
    file = SafetensorsFile(folder / MODEL)
    own = [name for name in file.tensors if not name.startswith(DENSE_PREFIX)]
    unwrap_model(model).load_state_dict(file.read(own), strict=True)
    if len(own) < len(file.tensors):
        load_head(model, file)


def load_finetuned(folder: str | Path) -> nn.Module:
    """Load a model that :func:`save_finetuned` wrote, in ``eval()`` mode. ``about.json`` has its classes.

    ``create_preprocess`` of a classifier resizes images to the size that it was trained and scored at.

    Raises:
        ValueError: as :func:`about_finetuned`.
    """
    folder = Path(folder).expanduser()
    about = about_finetuned(folder)
    pad = bool(about.get("pad"))  # of a model that was trained so
    if about["head"] is not None:
        return load_dense_model(folder / MODEL, pad=pad)
    return create_model(about["architecture"], checkpoint=folder / MODEL, num_classes=None, pad=pad)
