"""Where evaluated features come from: a pretrained model, an untrained one, or statistics of the bands."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rsbackbones.data.labelled.dataset import LabelledDataset
from rsbackbones.eval.encode import encode, statistics_features
from rsbackbones.eval.feature_table import FeatureTable
from rsbackbones.eval.transform import channels_of
from rsbackbones.input_spec import RGB8
from rsbackbones.models.backbone import Backbone
from rsbackbones.preprocess import picture_note
from rsbackbones.sensors import get_sensor
from rsbackbones.zoo.adapt import match_bands
from rsbackbones.zoo.factory import create_model, create_untrained, weights_config
from rsbackbones.zoo.fingerprint import weights_digest
from rsbackbones.zoo.pixel_size import pixel_size_notes


@dataclass(frozen=True)
class FeatureSource:
    """Features to evaluate: of a pretrained model, of an untrained one, or statistics of the bands.

    Attributes:
        name: for tables.
        features: (data set, seed) -> its features.
        facts: which weights and bands, for the record.
        model: seed -> the model; ``None``: the features are no network's.
        statistics: only logistic regression is run on them.
    """

    name: str
    features: Callable[[LabelledDataset, int], FeatureTable]
    facts: Mapping[str, Any]
    model: Callable[[int], Backbone] | None = None
    statistics: bool = False

    @staticmethod
    def pretrained(name: str, model: Backbone, options: Mapping[str, Any]) -> "FeatureSource":
        """Return the features of a loaded model; ``options`` are those of :func:`encode`."""
        entry = model.weights_entry
        facts = {
            "weights": entry.id if entry else None,
            "sha256": (entry.sha256 or entry.sha256_prefix) if entry else None,
            # The tensors in use: those of a user's checkpoint too, after bands were adapted.
            "tensors_sha256": weights_digest(model),
            "bands": {m: list(b) for m, b in model.bands.items()},
            "adaptation": str(model.adaptation) if model.adaptation else None,
        }
        return FeatureSource(
            name, lambda data, seed: encode(model, data, **options), facts, lambda seed: model
        )

    @staticmethod
    def random_init(build: Callable[[], Backbone], options: Mapping[str, Any]) -> "FeatureSource":
        """Return the features of an untrained model, initialized by the seed."""

        def model(seed: int) -> Backbone:
            torch.manual_seed(seed)
            return build()

        return FeatureSource(
            "random initialization",
            lambda data, seed: encode(model(seed), data, **options),
            {"weights": "random, by seed"},
            model,
        )

    @staticmethod
    def band_statistics(model: Backbone, options: Mapping[str, Any]) -> "FeatureSource":
        """Return the mean and standard deviation of the bands that a model takes, per image or patch."""
        same = {name: value for name, value in options.items() if name not in ("pool", "device")}

        def features(data: LabelledDataset, seed: int) -> FeatureTable:
            channels = {m: channels_of(model, m, data) for m in model.modalities}
            return statistics_features(data, channels=channels, patch_size=model.stride, **same)

        return FeatureSource("mean and deviation per band", features, {"weights": None}, statistics=True)


def model_for(
    data: LabelledDataset,
    name: str,
    *,
    modalities: Sequence[str] | None = None,
    bands: Mapping[str, Sequence[str]] | None = None,
    missing_bands: str = "error",
    kernel_scale: str = "count",
    pretrained: bool = True,
    checkpoint: Path | None = None,
    image_size: int | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Backbone:
    """Build a model for the modalities, sensors and bands of a data set.

    ``data.sensors`` names the sensors of its bands. Bands are matched by name where the weights are of the
    same sensor, by wavelength otherwise.

    Args:
        data: the set.
        name, pretrained, checkpoint, image_size, overrides: as for :func:`rsbackbones.create_model`.
        modalities: those to use; default: all that the set and the weights have.
        bands: by modality the bands to use; default: those of the set that the weights know, and with a
            ``missing_bands`` other than ``error`` all of the set. Weights of unused bands are dropped, as
            ``model.adaptation`` records.
        missing_bands, kernel_scale: the policy for bands that the weights lack, and the scaling of kernels,
            as for :func:`rsbackbones.create_model`.

    Raises:
        ValueError: the set has none of the model's modalities or bands.
    """
    config = weights_config(
        name, pretrained and checkpoint is None, checkpoint=checkpoint, overrides=overrides
    )
    known = tuple(config.modalities)
    used = tuple(modalities) if modalities else tuple(m for m in known if m in data.bands)
    if not used or (lacking := [m for m in used if m not in data.bands]):
        raise ValueError(
            f"{data.name} has {', '.join(data.bands)}; {name} takes {', '.join(known)}"
            + (f", and {', '.join(lacking)} was requested" if used else "")
            + _sensor_hint(data, known)
        )
    # The rules for bands have names that mypy knows as literals; create_model checks them.
    build: Any = create_untrained
    arguments: dict[str, Any] = {
        "modalities": used,
        "missing_bands": missing_bands,
        "kernel_scale": kernel_scale,
        "image_size": image_size,
        "overrides": dict(overrides or {}),
    }
    if pretrained or checkpoint is not None:
        build = create_model
        arguments |= {"pretrained": checkpoint is None, "checkpoint": checkpoint}
    if bands is None and missing_bands == "error":
        model: Backbone = build(name, **arguments)
        bands = {modality: _known_bands(data, modality, model, name) for modality in used}
        same = all(model.config.sensors[m] == data.sensor(m).name for m in used)
        if same and all(set(bands[m]) == set(model.bands[m]) for m in used):
            return model
    elif bands is None:
        bands = {modality: data.bands[modality] for modality in used}
    sensors = {modality: data.sensor(modality) for modality in used}
    adapted: Backbone = build(name, **arguments, sensors=sensors, bands=dict(bands))
    return adapted


def _known_bands(data: LabelledDataset, modality: str, model: Backbone, name: str) -> list[str]:
    """Return the bands of a data set that match a band of the weights."""
    source_sensor, sensor = model.config.sensors[modality], data.sensor(modality)
    given = sensor.canonical(data.bands[modality])
    if source_sensor == sensor.name:
        known = [b for b in model.bands[modality] if b in given]
    else:
        table = match_bands(
            modality,
            given,
            model.bands[modality],
            sensor=sensor.name,
            weights_sensor=source_sensor,
            missing_bands="reinit",
        )
        known = [match.band for match in table.matches if match.source is not None]
    if not known:
        raise ValueError(
            f"{name} takes the {modality} bands {', '.join(model.bands[modality])} (of {source_sensor}); "
            f"{data.name} has none of them: {', '.join(given)} (of {sensor.name}); missing_bands= "
            "(--missing-bands) is the policy for such bands"
        )
    return known


def _sensor_hint(data: LabelledDataset, known: Sequence[str]) -> str:
    """Say how to use images of other sensors than the model's own."""
    return "".join(
        f"; to take {key} as {m} open the set with sensors={{'{m}': '{key}'}} (--sensors {m}={key}), and "
        f"with {{'{m}': '{m}'}} if its images are of {m}"
        for key in data.bands
        for m in known
        if key not in known and get_sensor(key).kind == get_sensor(m).kind
    )


def describe(data: LabelledDataset, model: Backbone) -> list[str]:
    """Return notes for the reader of the numbers: on the data, and on how its bands were matched."""
    lines = list(data.notes)
    for modality, bands in model.bands.items():
        unused = [b for b in data.bands[modality] if b not in bands]
        unit = data.units.get(modality, "")
        if note := picture_note(model.inputs[modality], unit):
            lines.append(f"{modality}: {note}")
        sentinel_2 = data.sensor(modality).name == "s2" and not unit.startswith(RGB8)
        if sentinel_2 and "B10" in unused and model.inputs[modality].product == "L2A":
            lines.append(
                f"{modality}: the images have B10, which only L1C products have; the weights expect L2A"
            )
        if unused:
            lines.append(f"{modality}: not used: {', '.join(unused)}")
    for table in model.adaptation.bands if model.adaptation else ():
        if table.sensor != table.weights_sensor:
            lines.append(
                f"{table.modality}: the images are taken as {table.sensor}, and the weights are for "
                f"{table.weights_sensor}; where that is wrong, name the sensor of the images (--sensors)"
            )
    for note in pixel_size_notes(model, data.pixel_m):
        lines.append(note)
        warnings.warn(f"{data.name}: {note}", stacklevel=2)
    if model.adaptation:
        lines.append(str(model.adaptation))
    return lines
