"""What is evaluated: the features of weights, those of random weights, or statistics of the bands."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rsbackbones.backbone import Backbone
from rsbackbones.eval.encode import encode, statistics_features
from rsbackbones.eval.encoded import Encoded
from rsbackbones.eval.identity import weights_digest
from rsbackbones.eval.inputs import channels_of
from rsbackbones.eval.labelled import NORMALISED, LabelledSet
from rsbackbones.factory import create_model
from rsbackbones.registry import find_architecture
from rsbackbones.sensors import get_sensor


@dataclass(frozen=True)
class Subject:
    """A row of the table: its name, and what gives its features of a set, for a seed.

    Attributes:
        name: for tables.
        features: gives them.
        model: gives, for a seed, the model that they come from; ``None``: they are no network's.
        facts: which weights and bands, for the record.
        statistics: logistic regression alone is run on them.
    """

    name: str
    features: Callable[[LabelledSet, int], Encoded]
    facts: Mapping[str, Any]
    model: Callable[[int], Backbone] | None = None
    statistics: bool = False


def model_for(
    data: LabelledSet,
    name: str,
    *,
    modalities: Sequence[str] | None = None,
    bands: Mapping[str, Sequence[str]] | None = None,
    bands_missing: str = "error",
    pretrained: bool = True,
    checkpoint: Path | None = None,
    image_size: int | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Backbone:
    """Build a model for what a set holds: its sensors that the model knows, and their bands by name.

    Args:
        data: the set.
        name, pretrained, checkpoint, image_size, overrides: as for :func:`rsbackbones.create_model`.
        modalities: the sensors to use; default: all that the set and the architecture have.
        bands: by sensor the bands to use; default: those of the weights that the set has. Weights of
            bands that it lacks are left out, and ``model.adaptation`` says so.
        bands_missing: what a band of ``bands`` gets that the weights lack.

    Raises:
        ValueError: the set has none of the model's sensors or bands.
    """
    known = tuple(find_architecture(name.partition(".")[0]).config.modalities)
    used = tuple(modalities) if modalities else tuple(m for m in known if m in data.bands)
    if not used or (lacking := [m for m in used if m not in data.bands]):
        raise ValueError(
            f"{data.name} has {', '.join(data.bands)}; {name} takes {', '.join(known)}"
            + (f", and {', '.join(lacking)} was asked for" if used else "")
        )
    # The rules for bands have names that mypy knows as literals; create_model checks them.
    build: Any = create_model
    arguments: dict[str, Any] = {
        "pretrained": pretrained and checkpoint is None,
        "checkpoint": checkpoint,
        "modalities": used,
        "bands_missing": bands_missing,
        "image_size": image_size,
        "overrides": dict(overrides or {}),
    }
    if bands is None:
        model: Backbone = build(name, **arguments)
        kept = {}
        for modality in used:
            sensor = get_sensor(model.config.sensors[modality])
            given = sensor.canonical(data.bands[modality])
            kept[modality] = [b for b in model.bands[modality] if b in given]
            if not kept[modality]:
                raise ValueError(
                    f"{name} takes the {modality} bands {', '.join(model.bands[modality])}; {data.name} has "
                    f"none of them: {', '.join(given)}"
                )
        if all(len(kept[m]) == len(model.bands[m]) for m in used):
            return model
        bands = kept
    adapted: Backbone = build(name, **arguments, bands=dict(bands))
    return adapted


def of_weights(name: str, model: Backbone, options: Mapping[str, Any]) -> Subject:
    """Return the subject of a loaded model; ``options`` are those of :func:`encode`."""
    entry = model.weights_entry
    facts = {
        "weights": entry.id if entry else None,
        "sha256": (entry.sha256 or entry.sha256_prefix) if entry else None,
        # Of the tensors as they are used: also of a checkpoint of one's own, and after bands were adapted.
        "tensors_sha256": weights_digest(model),
        "bands": {m: list(b) for m, b in model.bands.items()},
        "adaptation": str(model.adaptation) if model.adaptation else None,
    }
    return Subject(name, lambda data, seed: encode(model, data, **options), facts, lambda seed: model)


def of_random_weights(build: Callable[[], Backbone], options: Mapping[str, Any]) -> Subject:
    """Return the subject of the same architecture with random weights, others for every seed."""

    def model(seed: int) -> Backbone:
        torch.manual_seed(seed)
        return build()

    return Subject(
        "random initialisation",
        lambda data, seed: encode(model(seed), data, **options),
        {"weights": "random, by seed"},
        model,
    )


def of_statistics(model: Backbone, options: Mapping[str, Any]) -> Subject:
    """Return the subject of means and standard deviations of the bands that a model takes, of its patches."""
    same = {name: value for name, value in options.items() if name not in ("pool", "device")}

    def features(data: LabelledSet, seed: int) -> Encoded:
        channels = {m: channels_of(model, m, data) for m in model.modalities}
        return statistics_features(data, channels=channels, patch_size=model.patch_size, **same)

    return Subject("mean and deviation per band", features, {"weights": None}, statistics=True)


def said_of(data: LabelledSet, model: Backbone) -> list[str]:
    """Return what a user should read beside the numbers: of the data, and of the bands that met."""
    lines = list(data.notes)
    for modality, bands in model.bands.items():
        unused = [b for b in data.bands[modality] if b not in bands]
        product = model.inputs[modality].product
        if data.units.get(modality) != NORMALISED and "B10" in unused and product == "L2A":
            lines.append(
                f"{modality}: the images have B10, which only L1C products have; the weights expect L2A"
            )
        if unused:
            lines.append(f"{modality}: not used: {', '.join(unused)}")
    if model.adaptation:
        lines.append(str(model.adaptation))
    return lines
