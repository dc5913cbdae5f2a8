"""Rasters opened for the bands of a model, and the job under which unfinished work is kept."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rsbackbones.data.rasters import RasterStack
from rsbackbones.models.backbone import Backbone
from rsbackbones.zoo.fingerprint import weights_digest


def as_paths(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return one or several files as paths."""
    each = [paths] if isinstance(paths, str | Path) else paths
    return [Path(path).expanduser() for path in each]


def sensors_of(model: Backbone) -> dict[str, str]:
    """Return by modality the sensor of the model's bands."""
    return {m: model.config.sensors[m] for m in model.modalities}


def embedding_job(
    model: Backbone, paths: Sequence[Path], *, units: Mapping[str, str] | None, nodata: float | None
) -> dict[str, Any]:
    """Return what the features of files depend on, as JSON takes it."""
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
) -> RasterStack:
    """Open rasters on one grid that hold bands of all of the model's modalities; the model's alone are read.

    Raises:
        ValueError: a modality has no raster, or as :class:`RasterStack`.
    """
    sensors = sensors_of(model)
    stack = RasterStack(paths, sensors, wanted=model.bands, names=names, nodata=nodata, units=units)
    if missing := [m for m in model.modalities if m not in stack.bands]:
        stack.close()
        text = "; ".join(f"{m} (of {sensors[m]}: {', '.join(model.bands[m])})" for m in missing)
        raise ValueError(
            f"{', '.join(map(str, paths))}: no raster holds bands of {text}, which the model takes"
        )
    return stack
