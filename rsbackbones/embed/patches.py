"""One embedding per patch file, for many of them."""

import json
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from rsbackbones.data.class_masks import ClassMaskReader, ClassMasks, mask_files
from rsbackbones.data.image_warnings import ImageWarnings
from rsbackbones.data.input_files import InputFiles
from rsbackbones.data.raster_grid import Grid
from rsbackbones.data.raster_path import RasterPath, UnreadableRaster, raster_name, raster_paths
from rsbackbones.data.rasters import Array
from rsbackbones.device import choose_device
from rsbackbones.embed.geoparquet import ROWS, acquired, outline, table_metadata, write_geoparquet
from rsbackbones.embed.inputs import (
    TABLES,
    check_on_unreadable,
    check_output,
    create_preprocess_of,
    embedding_job,
    open_model_rasters,
    require_images,
    sensors_of,
    unfinished,
    warn_of_pixel_sizes,
    writing,
)
from rsbackbones.embed.places import Patch, group_files
from rsbackbones.files.atomic import atomic_write
from rsbackbones.files.progress import progress_bar
from rsbackbones.files.resumable import RowStore, check_space
from rsbackbones.models.backbone import Backbone, unwrap_model
from rsbackbones.zoo.fingerprint import weights_digest

# A raster of a patch file is one input; beyond this side it is a scene.
MAX_PATCH_SIDE = 512


def embed_patches(
    model: nn.Module,
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    bands: Sequence[Sequence[str] | None] | None = None,
    units: Mapping[str, str] | None = None,
    nodata: float | None = None,
    mask: ClassMasks | None = None,
    batch_size: int = 8,
    device: str | torch.device | None = None,
    skip_nodata: bool = False,
    on_unreadable: str = "fail",
    resample: str | None = None,
    progress: bool = True,
) -> dict[RasterPath, str]:
    """Write one pooled embedding per patch to ``.npz`` or ``.parquet``.

    Rasters on the same grid with different bands (the S1 and the S2 file of a place, or a file for each band)
    are one patch, encoded whole; its sides are multiples of ``model.size_multiple``, or the model pads them
    (``create_model(..., pad=True)``).

    An ``.npz`` has ``paths`` (joined by ``;``), ``crs``, the center ``x`` and ``y``, the side of a pixel in
    meters ``pixel_m`` (NaN: no georeference), and [patches, D] float32 for every stream, also from a model in
    half precision. A ``.parquet`` is GeoParquet 1.1: ``id``, ``geometry`` (the outline in EPSG:4326),
    ``datetime`` (where a name states it), ``source`` (the paths), ``crs``, ``x``, ``y``, ``pixel_m``,
    ``embedding`` (what ``model(x)`` gives) and ``embedding_STREAM`` for every stream.

    With ``mask`` the result also has ``valid_share``, the share of pixels that count in all sensors; cells of
    which less than half count are in no embedding, and an embedding without any cell is NaN. With
    ``resample`` it has ``resampling``, which says for each patch which files were resampled. What is left out
    is named in ``left_out`` with ``left_out_reasons`` (of Parquet in the metadata).

    Finished rows are kept in ``OUTPUT.partial`` until the end, so that the same call resumes a killed or
    failed run, as :func:`embed_scene` does.

    Args:
        model, bands, units, nodata, mask, batch_size, device, progress: as for :func:`embed_scene`.
        paths: raster files, or one; strings may be names for GDAL (``/vsizip/...``, ``https://...``).
        output: a path ending in ``.npz`` or ``.parquet``.
        skip_nodata: leave out patches with pixels without data; they are an error otherwise.
        on_unreadable: ``skip`` leaves out files that cannot be read, and patches that lack them; ``fail``:
            they are an error, and what was done before is kept.
        resample: as for :func:`embed_scene`; files that cover the same ground in other pixels are one patch.

    Returns:
        Why patches, by their first file, or single files are left out.

    Raises:
        ImportError: a library that writes GeoParquet is not installed.
        UnreadableRaster: a file cannot be read.
        ValueError: a model of series; rasters, bands or sizes that do not fit, pixels without data, a full
            disk, rasters that change meanwhile, or another process that writes the same output.
    """
    model, paths, output = unwrap_model(model), raster_paths(paths), Path(output).expanduser()
    require_images(model)
    check_on_unreadable(on_unreadable)
    if output.suffix.lower() not in TABLES:
        raise ValueError(f"embeddings of patches go to .npz or .parquet, got {output}")
    check_output(output)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if device is not None:
        model.to(choose_device(device))
    left_out: dict[RasterPath, str] = {}
    skip = on_unreadable == "skip"
    patches = group_files(
        model, paths, bands, units, resample=resample, left_out=left_out if skip else None, mask=mask
    )
    warn_of_pixel_sizes(
        model, {raster_name(patch.name): patch.files[0].grid.pixel_in_meters for patch in patches}
    )
    inputs = [InputFiles([file.path for file in patch.files]) for patch in patches]
    inputs.append(InputFiles(mask_files(mask)))  # of all patches
    job = embedding_job(model, inputs, units=units, nodata=nodata, mask=mask)
    job |= {"bands": bands, "resample": resample}
    folder = unfinished(output)
    # Rows and result: what is left of a disk must hold both.
    size = 2 * 4 * len(patches) * len(model.stream_inputs) * model.num_features
    with RowStore(folder, job, len(patches)) as store:
        check_space(output.parent, 0 if store.done.any() else size, f"the table {output.name}")
        try:
            _embed_patches(
                store, model, patches, inputs, units, nodata, mask, batch_size, skip_nodata, resample, skip,
                left_out, progress,
            )  # fmt: skip
        except UnreadableRaster as error:
            if not (count := int(store.done.sum())):
                raise
            raise UnreadableRaster(
                f"{error}. {count} of {len(patches)} patches are done and kept in {folder}; the same call "
                "with --on-unreadable skip (on_unreadable='skip') goes on without this one"
            ) from error
        if not store.done.any():
            first, reason = next(iter(left_out.items()))
            raise ValueError(f"no patch is left: all {len(left_out)} are left out, as {first}: {reason}")
        kept = [patch for patch, done in zip(patches, store.done, strict=True) if done]
        grids = [patch.files[0].grid for patch in kept]
        centers = [grid.position(grid.width / 2, grid.height / 2) for grid in grids]
        columns: dict[str, Any] = {
            "paths": [";".join(str(file.path) for file in patch.files) for patch in kept],
            "crs": [str(grid.crs or "") for grid in grids],
            "x": [x for x, _ in centers],
            "y": [y for _, y in centers],
            "pixel_m": [math.nan if (m := grid.pixel_in_meters) is None else m for grid in grids],
            **({"resampling": [patch.resampling for patch in kept]} if resample else {}),
        }
        rows = np.flatnonzero(store.done)
        if mask:
            _add_valid_shares(columns, store, rows, next(iter(model.stream_inputs)))
        _write_table(
            output, columns, partial(_read_vectors, store, rows), grids, model, inputs, folder, left_out
        )
        store.discard()
    return left_out


def _embed_patches(
    store: RowStore,
    model: Backbone,
    patches: Sequence[Patch],
    inputs: Sequence[InputFiles],
    units: Mapping[str, str] | None,
    nodata: float | None,
    mask: ClassMasks | None,
    batch_size: int,
    skip_nodata: bool,
    resample: str | None,
    skip_unreadable: bool,
    left_out: dict[RasterPath, str],
    progress: bool,
) -> None:
    """Compute the rows that the store lacks; patches that are left out get none, and a reason."""
    pending: list[tuple[int, dict[str, torch.Tensor], dict[str, torch.Tensor]]] = []

    def encode() -> None:
        stacked = model.as_input({m: torch.stack([x[m] for _, x, _ in pending]) for m in model.modalities})
        valid = {m: torch.stack([masks[m] for _, _, masks in pending]) for m in pending[0][2]}
        with torch.inference_mode():
            features = model.forward_streams(stacked, valid=valid)
        rows = {s: f.pooled[s].float().cpu().numpy() for s, f in features.items()}
        if valid:
            counts = torch.stack(list(valid.values())).all(dim=0)
            rows["valid_share"] = counts.float().mean(dim=(1, 2)).numpy()
        for number in (*(number for number, _, _ in pending), -1):
            inputs[number].check()
        store.write([number for number, _, _ in pending], rows)
        pending.clear()

    todo, doubts = np.flatnonzero(~store.done).tolist(), ImageWarnings()
    with progress_bar(len(patches), len(patches) - len(todo), enabled=progress, unit="patch") as bar:
        for number in todo:
            bar.update()
            try:
                with doubts.of_image(number):
                    images, valid = _read_patch(model, patches[number], units, nodata, mask, resample)
            except UnreadableRaster as error:
                if not skip_unreadable:
                    if pending:
                        encode()  # what was read before is kept
                    raise
                left_out[patches[number].name] = f"unreadable: {error}"
                continue
            except _NoData:
                if not skip_nodata:
                    raise
                left_out[patches[number].name] = "pixels without data"
                continue
            shapes = [image.shape for image in images.values()]
            if pending and [image.shape for image in pending[0][1].values()] != shapes:
                encode()
            pending.append((number, images, valid))
            if len(pending) == batch_size:
                encode()
    if pending:
        encode()
    if todo:
        doubts.warn(raster_name(patches[todo[0]].name), todo)


def _read_vectors(store: RowStore, rows: npt.NDArray[np.int64], part: slice) -> dict[str, Array]:
    vectors = store.read(rows[part])
    vectors.pop("valid_share", None)
    return vectors


def _add_valid_shares(
    columns: dict[str, Any], store: RowStore, rows: npt.NDArray[np.int64], stream: str
) -> None:
    """Add the shares to the columns, and warn of embeddings without a cell."""
    shares, lost = [], 0
    for start in range(0, len(rows), ROWS):
        part = store.read(rows[start : start + ROWS])
        if "valid_share" not in part:  # the masks are of other sensors
            return
        shares.append(part["valid_share"])
        lost += int(np.isnan(part[stream]).any(axis=1).sum())
    columns["valid_share"] = np.concatenate(shares)
    if lost:
        warnings.warn(
            f"{lost} of {len(rows)} patches have no cell of which half the pixels count: their embeddings "
            "are NaN",
            stacklevel=3,
        )


class _NoData(ValueError):
    """A patch has pixels without data."""


def _read_patch(
    model: Backbone,
    files: Patch,
    units: Mapping[str, str] | None,
    nodata: float | None,
    mask: ClassMasks | None,
    resample: str | None,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the normalized images of a patch by modality, [C, H, W], and where there are masks the pixels
    that count, [H, W].
    """
    first, paths = files.name, [file.path for file in files.files]
    names = [file.names for file in files.files]
    options: dict[str, Any] = {"units": units, "nodata": nodata, "resample": resample, "mask": mask}
    with (
        open_model_rasters(model, paths, names=names, **options) as patch,
        ClassMaskReader(patch, mask or {}, sensors_of(model), names=names) as masks,
    ):
        if max(patch.height, patch.width) > MAX_PATCH_SIDE:
            raise ValueError(
                f"{first} has {patch.height} x {patch.width} pixels: a scene, not a patch (at most "
                f"{MAX_PATCH_SIDE}); write a feature map, --output NAME.tif"
            )
        arrays, valid = patch.read()
        if not valid.all():
            raise _NoData(
                f"{first}: {int((~valid).sum())} pixels have no data; leave the file out, or leave "
                "out all such patches with --skip-nodata"
            )
        multiple = model.size_multiple
        if not model.pad and (patch.height % multiple or patch.width % multiple):
            raise ValueError(
                f"{first} has {patch.height} x {patch.width} pixels, not a multiple of {multiple}, as "
                "this model needs; crop it first, or pad it: create_model(..., pad=True) (--pad)"
            )
        try:
            preprocess = create_preprocess_of(model, patch, units)
            counts = {m: torch.from_numpy(x) for m, x in masks.read().items()}
            images = preprocess(
                {m: x[None] for m, x in arrays.items()}, valid={m: x[None] for m, x in counts.items()}
            )
        except ValueError as error:
            raise ValueError(f"{first}: {error}") from error
    return {m: image[0] for m, image in images.items()}, counts


def _write_table(
    output: Path,
    columns: dict[str, Any],
    vectors: Callable[[slice], Mapping[str, Array]],
    grids: Sequence[Grid],
    model: Backbone,
    inputs: Sequence[InputFiles],
    folder: Path,
    left_out: Mapping[RasterPath, str],
) -> None:
    with writing(output, folder), atomic_write(output, within=folder) as file:
        if output.suffix.lower() == ".npz":
            if left_out:
                columns["left_out"] = [str(path) for path in left_out]
                columns["left_out_reasons"] = list(left_out.values())
            save: Any = np.savez_compressed  # its typing takes every keyword for allow_pickle
            save(
                file,
                **{key: np.asarray(values) for key, values in {**columns, **vectors(slice(None))}.items()},
            )
        else:
            _write_parquet(file, columns, vectors, grids, model, left_out)
        for files in inputs:
            files.check(again=True)


def _write_parquet(
    file: BinaryIO,
    columns: Mapping[str, Any],
    vectors: Callable[[slice], Mapping[str, Array]],
    grids: Sequence[Grid],
    model: Backbone,
    left_out: Mapping[RasterPath, str],
) -> None:
    sources = columns["paths"]
    named: dict[str, Any] = {
        "id": [Path(raster_name(paths.partition(";")[0])).stem for paths in sources],
        "datetime": np.array([acquired(paths.split(";")) for paths in sources], "datetime64[s]"),
        "source": sources,
        **{name: values for name, values in columns.items() if name != "paths"},
    }

    def lists(part: slice) -> dict[str, Array]:
        of_streams = vectors(part)
        return {
            "embedding": of_streams[model.choose_stream()],
            **{f"embedding_{stream}": values for stream, values in of_streams.items()},
        }

    entry = model.weights_entry
    named_too = {"left_out": json.dumps({str(path): reason for path, reason in left_out.items()})}
    metadata = table_metadata(
        model.architecture, entry.id if entry else None, weights_digest(model), model.bands,
        named_too if left_out else {},
    )  # fmt: skip
    write_geoparquet(file, named, [outline(grid) for grid in grids], lists, metadata)
