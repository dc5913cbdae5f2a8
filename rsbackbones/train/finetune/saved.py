"""A fine-tuned model on disk: a folder with its weights, classes and metrics."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from rsbackbones.files.atomic import write_text
from rsbackbones.files.bounds import read_json
from rsbackbones.files.sha256 import sha256_of
from rsbackbones.heads import dense_model
from rsbackbones.models.backbone import Backbone, unwrap_model
from rsbackbones.typed_fields import check_fields
from rsbackbones.zoo.factory import create_model
from rsbackbones.zoo.saving import save_model, write_safetensors


@dataclass(frozen=True)
class _About:
    """The fields of ``about.json`` that are needed."""

    architecture: str
    head: Mapping[str, Any] | None
    sha256: Mapping[Literal["model.safetensors", "head.safetensors"], str]


_ABOUT = ("architecture", "head", "sha256")
MODEL, HEAD, ABOUT = "model.safetensors", "head.safetensors", "about.json"


def save_finetuned(model: nn.Module, folder: Path, about: Mapping[str, Any]) -> None:
    """Write a model and its metadata to a folder, under a temporary name that is then renamed.

    ``model.safetensors`` is the backbone with its classifier, readable by ``create_model(..., checkpoint=...,
    num_classes=None)``; ``head.safetensors`` the head of a dense model; ``about.json`` the metadata, and the
    sha256 of both. An existing folder of that name is replaced.
    """
    part, old = folder.with_name(folder.name + ".tmp"), folder.with_name(folder.name + ".old.tmp")
    for left in (part, old):
        shutil.rmtree(left, ignore_errors=True)
    part.mkdir()
    files = [save_model(unwrap_model(model), part / MODEL)]
    if not isinstance(model, Backbone):
        head: nn.Module = model.get_submodule("head")
        write_safetensors(head.state_dict(), part / HEAD, torch.float32, {})
        files.append(part / HEAD)
    hashes = {file.name: sha256_of(file) for file in files}
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
    from safetensors.torch import load_file

    about_finetuned(folder)
    unwrap_model(model).load_state_dict(load_file(folder / MODEL), strict=True)
    if (folder / HEAD).exists():
        model.get_submodule("head").load_state_dict(load_file(folder / HEAD), strict=True)


def load_finetuned(folder: str | Path) -> nn.Module:
    """Load a model that :func:`save_finetuned` wrote, in ``eval()`` mode. ``about.json`` has its classes.

    ``create_preprocess`` of a classifier resizes images to the size that it was trained and scored at.

    Raises:
        ValueError: as :func:`about_finetuned`.
    """
    folder = Path(folder).expanduser()
    about = about_finetuned(folder)
    model: nn.Module = create_model(about["architecture"], checkpoint=folder / MODEL, num_classes=None)
    if isinstance(model, Backbone) and (
        size := about.get("size")
    ):  # of folders that an earlier version wrote
        model.input_size = (size, size)
    if about["head"] is not None:
        model = dense_model(unwrap_model(model), **about["head"])
        read_weights(model, folder)
    return model.eval()
