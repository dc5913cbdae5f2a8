"""One embedding per patch file, for many of them."""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch

from rsbackbones.data.class_masks import ClassMaskReader, ClassMasks, masked_names
from rsbackbones.data.rasters import find_bands, ground_position, open_raster, same_grid
from rsbackbones.device import choose_device
from rsbackbones.embed.inputs import embedding_job, open_model_rasters, sensors_of, unfinished
from rsbackbones.files.atomic import atomic_write
from rsbackbones.files.progress import progress_bar
from rsbackbones.files.resumable import RowStore
from rsbackbones.models.backbone import Backbone
from rsbackbones.preprocess import create_preprocess

# A raster of a patch file is one input; beyond this side it is a scene.
MAX_PATCH_SIDE = 512


def embed_patches(
    model: Backbone,
    paths: Sequence[Path],
    output: Path,
    *,
    bands: Sequence[Sequence[str] | None] | None = None,
    units: Mapping[str, str] | None = None,
    nodata: float | None = None,
    mask: ClassMasks | None = None,
    batch_size: int = 8,
    device: str | torch.device | None = None,
    skip_nodata: bool = False,
    progress: bool = True,
) -> list[Path]:
    """Write one pooled embedding per patch to ``.npz`` or ``.parquet``.

    Rasters on the same grid (the S1 and the S2 file of a place) are one patch, encoded whole; its sides
    are multiples of ``model.size_multiple``, or the model pads them (``create_model(..., pad=True)``).
    The result has ``paths`` (joined by ``;``), ``crs``, the center ``x`` and ``y``, and [patches, D] float32
    for every stream. With ``mask`` it also has ``valid_share``, the share of pixels that count in all
    sensors; cells of which less than half count are in no embedding, and an embedding without any cell is
    NaN.

    Finished rows are kept in ``OUTPUT.partial`` until the end, so that the same call resumes a killed run.

    Args:
        model, bands, units, nodata, mask, batch_size, device, progress: as for :func:`embed_scene`.
        paths: raster files.
        output: a path ending in ``.npz`` or ``.parquet``.
        skip_nodata: leave out patches with pixels without data; they are an error otherwise.

    Returns:
        The first files of the patches left out.

    Raises:
        ValueError: rasters, bands or sizes that do not fit, or pixels without data.
    """
    if output.suffix not in (".npz", ".parquet"):
        raise ValueError(f"embeddings of patches go to .npz or .parquet, got {output}")
    if not output.parent.is_dir():
        raise ValueError(f"there is no folder {output.parent} to write {output.name} to")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if device is not None:
        model.to(choose_device(device))
    places = _group_by_grid(paths, sensors_of(model), bands, units, mask)
    job = embedding_job(model, paths, units=units, nodata=nodata, mask=mask) | {"bands": bands}
    with RowStore(unfinished(output), job, len(places)) as store:
        try:
            _embed_places(store, model, places, units, nodata, mask, batch_size, skip_nodata, progress)
            if not store.done.any():
                raise ValueError(f"no patch is left: all {len(places)} have pixels without data")
        except ValueError:
            store.discard()
            raise
        kept = [files for files, done in zip(places, store.done, strict=True) if done]
        columns: dict[str, Any] = {
            "paths": [";".join(str(file.path) for file in files) for files in kept],
            "crs": [files[0].crs for files in kept],
            "x": [files[0].center[0] for files in kept],
            "y": [files[0].center[1] for files in kept],
            **store.read(np.flatnonzero(store.done)),
        }
        if lost := sum(bool(np.isnan(x).any()) for x in columns[next(iter(model.stream_inputs))]):
            warnings.warn(
                f"{lost} of {len(kept)} patches have no cell of which half the pixels count: their "
                "embeddings are NaN",
                stacklevel=2,
            )
        _write_table(output, columns, model)
        store.discard()
    return [files[0].path for files, done in zip(places, store.done, strict=True) if not done]


class _File(NamedTuple):
    path: Path
    names: Sequence[str] | None
    modalities: set[str]
    crs: str
    center: tuple[float, float]


def _embed_places(
    store: RowStore,
    model: Backbone,
    places: Sequence[Sequence[_File]],
    units: Mapping[str, str] | None,
    nodata: float | None,
    mask: ClassMasks | None,
    batch_size: int,
    skip_nodata: bool,
    progress: bool,
) -> None:
    """Compute the rows that the store lacks; places that are left out get none."""
    pending: list[tuple[int, dict[str, torch.Tensor], dict[str, torch.Tensor]]] = []

    def encode() -> None:
        device = next(model.parameters()).device
        stacked = {m: torch.stack([x[m] for _, x, _ in pending]).to(device) for m in model.modalities}
        valid = {m: torch.stack([masks[m] for _, _, masks in pending]) for m in pending[0][2]}
        with torch.inference_mode():
            features = model.forward_streams(stacked, valid=valid)
        rows = {s: f.pooled[s].float().cpu().numpy() for s, f in features.items()}
        if valid:
            counts = torch.stack(list(valid.values())).all(dim=0)
            rows["valid_share"] = counts.float().mean(dim=(1, 2)).numpy()
        store.write([place for place, _, _ in pending], rows)
        pending.clear()

    todo = np.flatnonzero(~store.done).tolist()
    with progress_bar(len(places), len(places) - len(todo), enabled=progress, unit="patch") as bar:
        for place in todo:
            bar.update()
            read = _read_place(model, places[place], units, nodata, mask, skip_nodata)
            if read is None:
                continue
            images, valid = read
            shapes = [image.shape for image in images.values()]
            if pending and [image.shape for image in pending[0][1].values()] != shapes:
                encode()
            pending.append((place, images, valid))
            if len(pending) == batch_size:
                encode()
    if pending:
        encode()


def _read_place(
    model: Backbone,
    files: Sequence[_File],
    units: Mapping[str, str] | None,
    nodata: float | None,
    mask: ClassMasks | None,
    skip_nodata: bool,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] | None:
    """Return the normalized images of a place by modality, [C, H, W], and where there are masks the pixels
    that count, [H, W]; ``None``: it is left out.
    """
    first, paths = files[0].path, [file.path for file in files]
    names = [file.names for file in files]
    with (
        open_model_rasters(model, paths, names=names, units=units, nodata=nodata, mask=mask) as patch,
        ClassMaskReader(patch, mask or {}, sensors_of(model), names=names) as masks,
    ):
        if max(patch.height, patch.width) > MAX_PATCH_SIDE:
            raise ValueError(
                f"{first} has {patch.height} x {patch.width} pixels: a scene, not a patch (at most "
                f"{MAX_PATCH_SIDE}); write a feature map, --output NAME.tif"
            )
        arrays, valid = patch.read()
        if not valid.all():
            if skip_nodata:
                return None
            raise ValueError(
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
            preprocess = create_preprocess(model, bands=patch.bands, units=units)
            counts = {m: torch.from_numpy(x) for m, x in masks.read().items()}
            images = preprocess(
                {m: x[None] for m, x in arrays.items()}, valid={m: x[None] for m, x in counts.items()}
            )
        except ValueError as error:
            raise ValueError(f"{first}: {error}") from error
    return {m: image[0] for m, image in images.items()}, counts


def _cells(raster: Any, path: Path) -> set[tuple[Any, ...]]:
    """Return keys of which two rasters on one grid share at least one, however their corners are rounded."""
    if raster.crs is None and raster.transform.is_identity:
        return {(path,)}  # pictures without georeference all lie at the origin; each is a place of its own
    pixel = math.hypot(raster.transform.a, raster.transform.d)
    x, y = raster.transform.c / pixel, raster.transform.f / pixel
    return {
        (str(raster.crs), raster.shape, math.floor(x + dx), math.floor(y + dy))
        for dx in (0, 0.5)
        for dy in (0, 0.5)
    }


def _group_by_grid(
    paths: Sequence[Path],
    sensors: Mapping[str, str],
    names: Sequence[Sequence[str] | None] | None,
    units: Mapping[str, str] | None,
    mask: ClassMasks | None,
) -> list[list[_File]]:
    """Put the files of one place together, in the order of the first of each."""
    places: list[list[_File]] = []
    near: dict[tuple[Any, ...], list[int]] = {}
    for i, path in enumerate(paths):
        name = names[i] if names else None
        modalities = set(find_bands(path, sensors, masked_names(name, mask), units=units)[0])
        with open_raster(path) as raster:
            center = ground_position(raster.transform, raster.width / 2, raster.height / 2)
            file = _File(path, name, modalities, str(raster.crs or ""), center)
            cells = _cells(raster, path)
            for place in {place for cell in cells for place in near.get(cell, [])}:
                with open_raster(places[place][0].path) as first:
                    if same_grid(first, raster):
                        places[place].append(file)
                        break
            else:
                for cell in cells:
                    near.setdefault(cell, []).append(len(places))
                places.append([file])
    groups: list[list[_File]] = []
    for files in places:
        if len(sensors) == 1:
            groups += [[file] for file in files]  # several dates of one place
            continue
        held = [modality for file in files for modality in file.modalities]
        if twice := [m for m in sensors if held.count(m) > 1]:
            raise ValueError(
                f"several rasters of {', '.join(twice)} lie on the grid of {files[0].path}: "
                f"{', '.join(file.path.name for file in files)}; embed one date at a time"
            )
        if lacking := [m for m in sensors if m not in held]:
            raise ValueError(
                f"{files[0].path} has no raster of {', '.join(lacking)} on its grid; add one, or embed "
                f"the other sensor alone: --modalities {next(m for m in sensors if m in held)}. (Rasters "
                "without georeference cannot be paired)"
            )
        groups.append(files)
    return groups


def _write_table(output: Path, columns: Mapping[str, Any], model: Backbone) -> None:
    weights = model.weights_entry.id if model.weights_entry else ""
    with atomic_write(output) as file:
        if output.suffix == ".npz":
            save: Any = np.savez_compressed  # its typing takes every keyword for allow_pickle
            save(file, **{key: np.asarray(values) for key, values in columns.items()})
        else:
            _write_parquet(file, columns, {"model": model.architecture, "weights": weights})


def _write_parquet(file: BinaryIO, columns: Mapping[str, Any], metadata: dict[str, str]) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError("writing Parquet needs pyarrow: pip install 'rsbackbones[geo]'") from error
    arrays = {}
    for key, values in columns.items():
        if isinstance(values[0], np.ndarray):
            flat = pa.array(np.concatenate(values))
            arrays[key] = pa.FixedSizeListArray.from_arrays(flat, len(values[0]))
        else:
            arrays[key] = pa.array(values)
    pq.write_table(pa.table(arrays).replace_schema_metadata(metadata), file)
