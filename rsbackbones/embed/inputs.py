"""Rasters opened for the bands of a model, and the job under which unfinished work is kept."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rsbackbones.data.class_masks import ClassMasks, masked_names
from rsbackbones.data.input_files import InputFiles
from rsbackbones.data.raster_grid import Grid
from rsbackbones.data.raster_path import RasterPath
from rsbackbones.data.rasters import RasterStack, not_understood
from rsbackbones.embed.geoparquet import require_geopandas
from rsbackbones.embed.pixels import Scene
from rsbackbones.embed.preview import check_preview, preview_path
from rsbackbones.models.backbone import Backbone
from rsbackbones.preprocess import Preprocess, create_preprocess
from rsbackbones.value_check import CIRRUS, WITH_CIRRUS, zero_is_missing
from rsbackbones.zoo.fingerprint import weights_digest
from rsbackbones.zoo.pixel_size import pixel_size_notes

MAPS, TABLES = (".tif", ".tiff"), (".npz", ".parquet")


def sensors_of(model: Backbone) -> dict[str, str]:
    """Return by modality the sensor of the model's bands."""
    return {m: model.config.sensors[m] for m in model.modalities}


def check_on_unreadable(given: str) -> None:
    """Refuse what is neither ``fail`` nor ``skip``.

    Raises:
        ValueError: it is something else.
    """
    if given not in ("fail", "skip"):
        raise ValueError(f"on_unreadable must be 'fail' or 'skip', got {given!r}")


def require_images(model: Backbone) -> None:
    """Refuse a model of series where there is one image.

    Raises:
        ValueError: it is one.
    """
    if model.consumes == "series":
        raise ValueError(
            f"{model.architecture} encodes series of dates, and the source has one date: pass STAC items, "
            "with composite='none' and a .zarr as the output (--stac, --composite none), or a location of a "
            "folder of series (embed_series); or choose a model of images"
        )


def embedding_job(
    model: Backbone,
    inputs: Sequence[InputFiles],
    *,
    units: Mapping[str, str] | None,
    nodata: float | None,
    mask: ClassMasks | None = None,
) -> dict[str, Any]:
    """Return what the features of files depend on, as JSON takes it."""
    masked = {"mask": {key: sorted(classes) for key, classes in mask.items()}} if mask else {}
    return {
        "model": model.architecture,
        "weights": model.weights_entry.id if model.weights_entry else "none of the manifest",
        "parameters_sha256": weights_digest(model),
        "sensors": sensors_of(model),
        "bands": {m: list(b) for m, b in model.bands.items()},
        "pad": model.pad,
        "input": [fact for files in inputs for fact in files.facts],
        "units": units,
        "nodata": nodata,
        **masked,
    }


def unfinished(output: Path) -> Path:
    """Return the folder in which the unfinished work for ``output`` is kept."""
    return output.with_name(output.name + ".partial")


def check_output(output: RasterPath) -> None:
    """Refuse an output that could not be written at the end, before any work is done.

    Raises:
        ImportError: the library that writes it is not installed.
        ValueError: another suffix, no folder to write to, a folder of that name, or a picture that is no
            preview where the preview goes.
    """
    suffix = Path(output).suffix.lower()
    if suffix not in (*MAPS, *TABLES):
        raise ValueError(f"features go to .tif, .npz, .parquet or .zarr, got {output}")
    if isinstance(output, str):
        raise ValueError(f"a {suffix} is a local file, got {output}; a store (.zarr) may be in a bucket")
    if not output.parent.is_dir():
        raise ValueError(f"there is no folder {output.parent} to write {output.name} to")
    if output.is_dir():
        raise ValueError(f"the output {output} is a folder; choose another name")
    if suffix in MAPS:
        check_preview(preview_path(output))
    if suffix == ".parquet":
        require_geopandas()


@contextmanager
def writing(output: Path, folder: Path) -> Iterator[None]:
    """Turn a failure to write the result into a message that says how to go on."""
    from rasterio.errors import RasterioError

    try:
        yield
    except (OSError, RasterioError) as error:
        raise ValueError(
            f"cannot write {output}: {error}; what was computed is kept in {folder}: make room and run the "
            "same again"
        ) from error


def open_model_rasters(
    model: Backbone,
    paths: Sequence[RasterPath],
    *,
    names: Sequence[Sequence[str] | None] | None,
    units: Mapping[str, str] | None,
    nodata: float | None,
    resample: str | None = None,
    mask: ClassMasks | None = None,
    grid: Grid | None = None,
) -> RasterStack:
    """Open rasters on one grid that hold bands of all of the model's modalities; the model's alone are read.

    The cirrus band is read beside them where it is in the same file, as it tells the offset of Sentinel-2.
    Pixels that hold zero in all bands have no data, where the unit of the values allows no such measurement.
    ``names`` may name the bands of ``mask``, which are no bands of a sensor.

    Raises:
        ValueError: a modality has no raster, or as :class:`RasterStack`.
    """
    sensors = sensors_of(model)
    names = None if names is None else [masked_names(each, mask) for each in names]
    stack = RasterStack(
        paths, sensors, wanted=model.bands, names=names, nodata=nodata, units=units, resample=resample,
        grid=grid,
        beside={m: (CIRRUS,) for m, sensor in sensors.items() if sensor in WITH_CIRRUS},
    )  # fmt: skip
    if missing := [m for m in model.modalities if m not in stack.bands]:
        stack.close()
        text = "; ".join(f"{m} (of {sensors[m]}: {', '.join(model.bands[m])})" for m in missing)
        raise ValueError(
            f"{', '.join(map(str, paths))}: no raster holds bands of {text}, which the model takes; "
            "without it: create_model(..., modalities=(...)), or --modalities"
            f"{not_understood(stack.ignored)}"
        )
    known = {m: spec.unit for m, spec in model.inputs.items()} | stack.stated_units | dict(units or {})
    stack.zero_missing = frozenset(m for m in stack.bands if zero_is_missing(known.get(m)))
    return stack


def create_preprocess_of(
    model: Backbone, stack: Scene | RasterStack, units: Mapping[str, str] | None
) -> Preprocess:
    """Return the preprocessing of a stack's bands, in the units that the user names, else those of the files.

    An error about bands names what was not understood.
    """
    try:
        return create_preprocess(model, bands=stack.bands, units={**stack.stated_units, **(units or {})})
    except ValueError as error:
        lacking = any({*needed} - {*stack.bands[m]} for m, needed in model.bands.items())
        raise ValueError(f"{error}{not_understood(stack.ignored) if lacking else ''}") from error


def units_from(scene: RasterStack | Scene, units: Mapping[str, str] | None) -> dict[str, str]:
    """Return by modality who states the unit of the values: the ``user``, the ``files``, or nobody.

    Without either it is ``assumed``, the one of the weights. Whether it is true, values tell in part only
    (docs/bands.md).
    """
    return {
        m: "user" if m in (units or {}) else "files" if m in scene.stated_units else "assumed"
        for m in scene.bands
    }


def warn_of_pixel_sizes(model: Backbone, pixels: Mapping[str, float | None]) -> None:
    """Warn of files, by name, whose pixels have another size than those of training; once for all alike."""
    alike: dict[str, list[str]] = {}
    for name, pixel in pixels.items():
        for note in pixel_size_notes(model, pixel):
            alike.setdefault(note, []).append(name)
    for note, (first, *others) in alike.items():
        rest = f" and {len(others)} more" if others else ""
        warnings.warn(f"{first}{rest}: {note}", stacklevel=3)
