"""Rasters opened for the bands of a model, and the job under which unfinished work is kept."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rsbackbones.data.class_masks import ClassMasks, masked_names
from rsbackbones.data.rasters import RasterStack
from rsbackbones.models.backbone import Backbone
from rsbackbones.zoo.fingerprint import weights_digest


def sensors_of(model: Backbone) -> dict[str, str]:
    """Return by modality the sensor of the model's bands."""
    return {m: model.config.sensors[m] for m in model.modalities}


def embedding_job(
    model: Backbone,
    paths: Sequence[Path],
    *,
    units: Mapping[str, str] | None,
    nodata: float | None,
    mask: ClassMasks | None = None,
) -> dict[str, Any]:
    """Return what the features of files depend on, as JSON takes it."""
    mask = mask or {}
    files = [Path(name).expanduser() for key in mask for name in (key, key.partition(":")[2]) if name]
    paths = [*paths, *(path for path in files if path.is_file())]
    masked = {"mask": {key: sorted(classes) for key, classes in mask.items()}} if mask else {}
    return {
        "model": model.architecture,
        "weights": model.weights_entry.id if model.weights_entry else "none of the manifest",
        "parameters_sha256": weights_digest(model),
        "sensors": sensors_of(model),
        "bands": {m: list(b) for m, b in model.bands.items()},
        "pad": model.pad,
        "input": [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in paths],
        "units": units,
        "nodata": nodata,
        **masked,
    }


def unfinished(output: Path) -> Path:
    """Return the folder in which the unfinished work for ``output`` is kept."""
    return output.with_name(output.name + ".partial")


def open_model_rasters(
    model: Backbone,
    paths: Sequence[Path],
    *,
    names: Sequence[Sequence[str] | None] | None,
    units: Mapping[str, str] | None,
    nodata: float | None,
    mask: ClassMasks | None = None,
) -> RasterStack:
    """Open rasters on one grid that hold bands of all of the model's modalities; the model's alone are read.

    ``names`` may name the bands of ``mask``, which are no bands of a sensor.

    Raises:
        ValueError: a modality has no raster, or as :class:`RasterStack`.
    """
    sensors = sensors_of(model)
    names = None if names is None else [masked_names(each, mask) for each in names]
    stack = RasterStack(paths, sensors, wanted=model.bands, names=names, nodata=nodata, units=units)
    if missing := [m for m in model.modalities if m not in stack.bands]:
        stack.close()
        text = "; ".join(f"{m} (of {sensors[m]}: {', '.join(model.bands[m])})" for m in missing)
        raise ValueError(
            f"{', '.join(map(str, paths))}: no raster holds bands of {text}, which the model takes"
        )
    return stack
