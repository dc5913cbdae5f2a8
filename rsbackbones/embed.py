"""Features of GeoTIFFs: a georeferenced feature map of a scene, or one embedding per patch file.

Needs the extra ``geo`` (rasterio, pyarrow, tqdm).
"""

import hashlib
import json
import os
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rsbackbones.features import Backbone
from rsbackbones.preprocess import Preprocess, create_preprocess
from rsbackbones.rasters import Array, RasterStack

# Rows of the feature map are handed to the GeoTIFF in strips of about this many bytes.
_STRIP_BYTES = 64 * 2**20
# A raster of a patch file is one input; beyond this side it is a scene.
MAX_PATCH_SIDE = 1024


def window_starts(length: int, window: int, overlap: int) -> list[int]:
    """Return where windows begin that cover ``length``; the last is moved back to end at the end."""
    if length <= window:
        return [0]
    return [*range(0, length - window, window - overlap), length - window]


def blend_weights(window: int, overlap: int) -> npt.NDArray[np.float32]:
    """Return the weight of a window's rows (or columns): 1 in the middle, falling over the overlap."""
    inside = np.minimum(np.arange(1, window + 1), np.arange(window, 0, -1))
    return (np.minimum(inside, overlap + 1) / (overlap + 1)).astype(np.float32)


def embed_scene(
    model: Backbone,
    paths: Sequence[Path],
    output: Path,
    *,
    names: Sequence[Sequence[str] | None] | None = None,
    units: Mapping[str, str] | None = None,
    nodata: float | None = None,
    stream: str | None = None,
    window: int | None = None,
    overlap: int | None = None,
    batch_size: int = 8,
    progress: bool = True,
) -> Path:
    """Write the feature map of a scene as a GeoTIFF, and its PCA preview as a PNG beside it.

    A pixel of the result is one patch; its transform is the input's, scaled by the patch size, so the
    two line up. The scene is read in overlapping windows, and features are blended where they overlap,
    so that no seams show. A patch with a pixel without data is NaN. Where the size is no multiple of the
    patch, the last few pixels at the right and at the bottom are not covered.

    Memory is bounded by one row of windows. Finished rows are kept in ``OUTPUT.partial`` until the end:
    the same call after a kill goes on from there.

    Args:
        model: for the sensors that the rasters hold.
        paths: rasters on one grid, together holding all bands of the model.
        output: a path ending in ``.tif``.
        names: the band names of each raster, where its descriptions do not tell.
        units: as in ``create_preprocess``.
        nodata: the value without data, where the files do not state it.
        stream: ``joint`` by default with both sensors, else the only one.
        window: side of a window in pixels; default the size the model was trained on.
        overlap: by how many pixels windows overlap; default two fifths of the window.
        batch_size: windows encoded at a time.
        progress: show a progress bar.

    Raises:
        ValueError: rasters, bands, sizes or an unfinished run that do not fit.
    """
    p = model.patch_size
    if output.suffix.lower() not in (".tif", ".tiff"):
        raise ValueError(f"a feature map is a .tif, got {output}")
    if not output.parent.is_dir():
        raise ValueError(f"there is no folder {output.parent} to write {output.name} to")
    with RasterStack(paths, model.modalities, names=names, nodata=nodata) as scene:
        grid = (scene.height // p, scene.width // p)
        if not all(grid):
            raise ValueError(f"the scene has {scene.height} x {scene.width} pixels, less than one patch")
        if missing := [m for m in model.modalities if m not in scene.bands]:
            raise ValueError(f"no raster holds bands of {', '.join(missing)}, which the model takes")
        side, shared = _window(model, window, overlap)
        preprocess = create_preprocess(model, bands=scene.bands, units=units)
        _check_values(scene, preprocess)
        preprocess.check = False
        stream = model._stream(stream, dict.fromkeys(model.modalities))
        description = {
            "model": model.architecture,
            "weights": model.weights_entry.id if model.weights_entry else "none of the manifest",
            "parameters_sha256": _parameters_sha256(model),
            "stream": stream,
            "bands": {m: list(b) for m, b in model.bands.items()},
            "input": [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in paths],
            "given": {m: list(b) for m, b in scene.bands.items()},
            "units": preprocess.units,
            "nodata": nodata,
            "window": side,
            "overlap": shared,
            "patch_size": p,
        }
        partial = output.with_name(output.name + ".partial")
        with _Unfinished(partial, description, (*grid, model.num_features)) as work:
            _fill(work, scene, model, preprocess, stream, side // p, shared // p, batch_size, progress)
            _write_map(output, work.features, scene, p, description)
            _write_preview(output.with_suffix(".png"), work.features)
        shutil.rmtree(partial)
    return output


def _window(model: Backbone, window: int | None, overlap: int | None) -> tuple[int, int]:
    p, size = model.patch_size, model.config.image_size
    side = window or (size if isinstance(size, int) else min(size))
    shared = side * 2 // 5 // p * p if overlap is None else overlap
    if side % p or shared % p or not 0 <= shared < side:
        raise ValueError(
            f"window and overlap must be multiples of the patch size {p}, the overlap smaller than the "
            f"window; got window {side}, overlap {shared}"
        )
    return side, shared


def _check_values(scene: RasterStack, preprocess: Preprocess) -> None:
    """Look at the whole scene, decimated: a single window may be too uniform to tell a wrong unit."""
    shape = (min(scene.height, 512), min(scene.width, 512))
    arrays, valid = scene.read(out_shape=shape)
    if not valid.any():
        raise ValueError(f"{scene.paths[0]}: no pixel has data in all bands (nodata {scene.nodata})")
    preprocess({m: x[:, valid][:, None] for m, x in arrays.items()})


def _fill(
    work: "_Unfinished",
    scene: RasterStack,
    model: Backbone,
    preprocess: Preprocess,
    stream: str,
    window: int,
    overlap: int,
    batch_size: int,
    progress: bool,
) -> None:
    """Compute the rows of the feature map that are not done, one row of windows after the other."""
    height, width, dim = work.features.shape
    size = (min(window, height), min(window, width))
    tops, lefts = (window_starts(n, window, overlap) for n in (height, width))
    weights = blend_weights(size[0], overlap)[:, None] * blend_weights(size[1], overlap)  # [h, w]
    # After a kill the rows in progress need the earlier windows that reach into them once more.
    strips = [i for i, top in enumerate(tops) if top + size[0] > work.rows_done]
    total, left = len(tops) * len(lefts), len(strips) * len(lefts)
    total_sum = np.zeros((size[0], width, dim), np.float32)
    total_weight = np.zeros((size[0], width, 1), np.float32)
    complete = np.ones((size[0], width), bool)
    with _progress_bar(total, total - left, enabled=progress) as bar:
        for i in strips:
            for start in range(0, len(lefts), batch_size):
                batch = lefts[start : start + batch_size]
                maps, masks = _encode_windows(model, scene, preprocess, stream, tops[i], batch, size)
                for column, values, mask in zip(batch, maps, masks, strict=True):
                    columns = slice(column, column + size[1])
                    total_sum[:, columns] += values * weights[..., None]
                    total_weight[:, columns] += weights[..., None]
                    complete[:, columns] = mask
                bar.update(len(batch))
            # Rows above the next window are final; the others wait for it.
            final = (tops[i + 1] if i + 1 < len(tops) else height) - tops[i]
            if tops[i] + final > work.rows_done:
                rows = total_sum[:final] / total_weight[:final]
                rows[~complete[:final]] = np.nan
                work.write(tops[i], rows)
            total_sum, total_weight, complete = (
                np.concatenate((x[final:], np.full_like(x[:final], rest)))
                for x, rest in ((total_sum, 0), (total_weight, 0), (complete, 1))
            )


def _encode_windows(
    model: Backbone,
    scene: RasterStack,
    preprocess: Preprocess,
    stream: str,
    top: int,
    lefts: Sequence[int],
    size: tuple[int, int],
) -> tuple[Array, list[Array]]:
    """Encode windows of one row; return maps [B, h, w, D] and where each patch has all its data."""
    p = model.patch_size
    images: dict[str, list[Array]] = {m: [] for m in model.modalities}
    masks: list[Array] = []
    for left in lefts:
        arrays, valid = scene.read((top * p, left * p, size[0] * p, size[1] * p))
        for modality, x in arrays.items():
            if not valid.all():
                # What fills the gaps reaches the neighbours through attention: something typical.
                typical = x[:, valid].mean(axis=1) if valid.any() else np.ones(len(x), np.float32)
                x = np.where(valid, x, typical[:, None, None])
            images[modality].append(x)
        masks.append(np.all(valid.reshape(size[0], p, size[1], p), axis=(1, 3)))
    device = next(model.parameters()).device
    batch = preprocess({m: torch.from_numpy(np.stack(x)).to(device) for m, x in images.items()})
    with torch.inference_mode():
        maps = model.forward_features(batch).maps(stream)  # [B, D, h, w]
    return maps.permute(0, 2, 3, 1).float().cpu().numpy(), masks


class _Unfinished:
    """The folder of an unfinished feature map: the map so far, how many rows are done, and of what job."""

    def __init__(self, folder: Path, job: Mapping[str, Any], shape: tuple[int, ...]) -> None:
        text = json.dumps(job, indent=1, sort_keys=True)
        job_file, map_file = folder / "job.json", folder / "map.npy"
        self._rows_file = folder / "rows_done.txt"
        self.rows_done = 0
        if job_file.exists():
            if job_file.read_text() != text:
                raise ValueError(
                    f"{folder} holds an unfinished run with other inputs or settings; delete it, or "
                    "choose another output"
                )
            if self._rows_file.exists():
                self.rows_done = int(self._rows_file.read_text())
            self.features = np.lib.format.open_memmap(map_file, mode="r+")
            return
        # job.json comes last: a folder that a kill left without it is begun anew.
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        self.features = np.lib.format.open_memmap(map_file, mode="w+", dtype=np.float32, shape=shape)
        _write_text(job_file, text)

    def write(self, top: int, rows: Array) -> None:
        """Store rows of the map, and only when they are on disk count them as done."""
        self.features[top : top + len(rows)] = rows
        self.features.flush()
        self.rows_done = top + len(rows)
        _write_text(self._rows_file, str(self.rows_done))

    def __enter__(self) -> "_Unfinished":
        return self

    def __exit__(self, *_: object) -> None:
        del self.features


def _write_text(path: Path, text: str) -> None:
    part = path.with_suffix(".tmp")
    with part.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _parameters_sha256(model: Backbone) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _write_map(
    output: Path, features: Array, scene: RasterStack, patch_size: int, job: Mapping[str, Any]
) -> None:
    import rasterio
    from rasterio.windows import Window

    from rsbackbones import __version__

    rows, columns, dim = features.shape
    part = output.with_name(f".{output.name}.part.tif")
    profile = {
        "driver": "GTiff", "dtype": "float32", "count": dim, "height": rows, "width": columns,
        "crs": scene.crs, "transform": scene.transform * scene.transform.scale(patch_size),
        "nodata": float("nan"), "compress": "deflate", "predictor": 3, "zlevel": 1,
        "blockysize": 16, "BIGTIFF": "IF_SAFER",
    }  # fmt: skip
    strip = max(16, _STRIP_BYTES // (columns * dim * 4) // 16 * 16)
    try:
        with rasterio.open(part, "w", **profile) as raster:
            raster.update_tags(rsbackbones=__version__, **{k: str(v) for k, v in job.items()})
            raster.descriptions = tuple(f"{job['stream']}_{i:04d}" for i in range(dim))
            for row in range(0, rows, strip):
                block = np.moveaxis(features[row : row + strip], -1, 0)
                raster.write(block, window=Window(0, row, columns, block.shape[1]))
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)


def principal_colours(features: Array) -> npt.NDArray[np.uint8]:
    """Return the first three principal components of a feature map [h, w, D] as RGBA, [4, h, w].

    Each component is stretched between its 2nd and 98th percentile; NaN is transparent.
    """
    rows, columns, dim = features.shape
    flat = features.reshape(-1, dim)
    step = max(1, len(flat) // 20_000)
    sample = np.array(flat[::step])
    sample = sample[np.isfinite(sample).all(axis=1)].astype(np.float64)
    image = np.zeros((4, rows * columns), np.uint8)
    if len(sample) > 3:
        mean = sample.mean(axis=0)
        _, vectors = np.linalg.eigh(np.cov(sample - mean, rowvar=False))
        axes = vectors[:, ::-1][:, :3].astype(np.float32)
        # The sign of an eigenvector is arbitrary: fix it, so that a preview is reproducible.
        axes *= np.sign(axes[np.abs(axes).argmax(axis=0), range(3)])
        low, high = np.percentile((sample - mean) @ axes, (2, 98), axis=0)
        for start in range(0, len(flat), 65_536):
            block = (flat[start : start + 65_536] - mean) @ axes
            seen = np.isfinite(block).all(axis=1)
            scaled = np.clip((np.nan_to_num(block) - low) / np.maximum(high - low, 1e-12), 0, 1)
            image[:3, start : start + len(block)] = (scaled * 255 * seen[:, None]).T
            image[3, start : start + len(block)] = seen * 255
    return image.reshape(4, rows, columns)


def _write_preview(path: Path, features: Array) -> None:
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    image = principal_colours(features)
    factor = max(1, round(512 / max(image.shape[1:])))
    image = image.repeat(factor, axis=1).repeat(factor, axis=2)
    part = path.with_name(f".{path.name}.part.png")
    count, height, width = image.shape
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a picture, not a map
            with rasterio.open(
                part, "w", driver="PNG", dtype="uint8", count=count, height=height, width=width
            ) as raster:
                raster.write(image)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _progress_bar(total: int, done: int, *, enabled: bool, unit: str = "window") -> Any:
    from tqdm import tqdm

    return tqdm(total=total, initial=done, unit=unit, disable=not enabled, file=sys.stderr)


# -- many patches -------------------------------------------------------------------------------------


def embed_patches(
    model: Backbone,
    paths: Sequence[Path],
    output: Path,
    *,
    names: Sequence[Sequence[str] | None] | None = None,
    units: Mapping[str, str] | None = None,
    nodata: float | None = None,
    batch_size: int = 8,
    skip_nodata: bool = False,
    progress: bool = True,
) -> list[Path]:
    """Write one pooled embedding per patch to ``.npz`` or ``.parquet``.

    Rasters on the same grid (the S1 and the S2 file of a place) are one patch, encoded whole. The
    result has ``paths`` (joined by ``;``), ``crs``, the centre ``x`` and ``y``, and [patches, D] float32
    for every stream.

    Args:
        model, names, units, nodata, batch_size, progress: as for :func:`embed_scene`.
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
    groups = _group_by_grid(paths, model.modalities, names)
    rows: list[dict[str, Any]] = []
    skipped: list[Path] = []
    pending: list[tuple[dict[str, Any], dict[str, torch.Tensor]]] = []

    def encode() -> None:
        device = next(model.parameters()).device
        stacked = {m: torch.stack([x[m] for _, x in pending]).to(device) for m in model.modalities}
        with torch.inference_mode():
            pooled = model.forward_features(stacked).pooled
        for i, (row, _) in enumerate(pending):
            rows.append(row | {s: v[i].float().cpu().numpy() for s, v in pooled.items()})
        pending.clear()

    bar = _progress_bar(len(groups), 0, enabled=progress, unit="patch")
    for files, file_names in groups:
        bar.update()
        with RasterStack(files, model.modalities, names=file_names, nodata=nodata) as patch:
            if max(patch.height, patch.width) > MAX_PATCH_SIDE:
                raise ValueError(
                    f"{files[0]} has {patch.height} x {patch.width} pixels: a scene, not a patch (at most "
                    f"{MAX_PATCH_SIDE}); write a feature map, --output NAME.tif"
                )
            arrays, valid = patch.read()
            if not valid.all():
                if skip_nodata:
                    skipped.append(files[0])
                    continue
                raise ValueError(
                    f"{files[0]}: {int((~valid).sum())} pixels have no data; leave the file out, or leave "
                    "out all such patches with --skip-nodata"
                )
            preprocess = create_preprocess(model, bands=patch.bands, units=units)
            images = preprocess({m: x[None] for m, x in arrays.items()})
            x, y = patch.transform * (patch.width / 2, patch.height / 2)
            row = {"paths": ";".join(map(str, files)), "crs": str(patch.crs or ""), "x": x, "y": y}
        sample = {m: image[0] for m, image in images.items()}
        shapes = [image.shape for image in sample.values()]
        if pending and [image.shape for image in pending[0][1].values()] != shapes:
            encode()
        pending.append((row, sample))
        if len(pending) == batch_size:
            encode()
    bar.close()
    if pending:
        encode()
    if not rows:
        raise ValueError(f"no patch is left: all {len(groups)} have pixels without data")
    _write_rows(output, rows, model)
    return skipped


def _group_by_grid(
    paths: Sequence[Path],
    modalities: Sequence[str],
    names: Sequence[Sequence[str] | None] | None,
) -> list[tuple[list[Path], list[Sequence[str] | None]]]:
    """Put the files of one place together, in the order of the first of each."""
    from rsbackbones.rasters import find_bands, open_raster

    places: dict[tuple[Any, ...], list[tuple[Path, Sequence[str] | None, set[str]]]] = {}
    for i, path in enumerate(paths):
        name = names[i] if names else None
        sensors = set(find_bands(path, modalities, name)[0])
        with open_raster(path) as raster:
            corner = [round(v, 6) for v in raster.transform[:6]]
            # Pictures without georeference all lie at the origin; each is a patch of its own.
            where = (str(raster.crs), *corner, raster.shape) if raster.crs else (path,)
        places.setdefault(where, []).append((path, name, sensors))
    groups: list[list[tuple[Path, Sequence[str] | None, set[str]]]] = []
    for files in places.values():
        if len(modalities) == 1:
            groups += [[file] for file in files]  # several dates of one place
            continue
        held = [sensor for _, _, sensors in files for sensor in sensors]
        if twice := [m for m in modalities if held.count(m) > 1]:
            raise ValueError(
                f"several rasters of {', '.join(twice)} lie on the grid of {files[0][0]}: "
                f"{', '.join(path.name for path, *_ in files)}; embed one date at a time"
            )
        if lacking := [m for m in modalities if m not in held]:
            raise ValueError(
                f"{files[0][0]} has no raster of {', '.join(lacking)} on its grid; give one, or embed "
                f"the other sensor alone: --modalities {next(m for m in modalities if m in held)}"
            )
        groups.append(files)
    return [([path for path, *_ in files], [name for _, name, _ in files]) for files in groups]


def _write_rows(output: Path, rows: Sequence[Mapping[str, Any]], model: Backbone) -> None:
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    part = output.with_name(f".{output.name}.part{output.suffix}")
    weights = model.weights_entry.id if model.weights_entry else ""
    try:
        if output.suffix == ".npz":
            arrays = {key: np.asarray(values) for key, values in columns.items()}
            np.savez_compressed(part, allow_pickle=False, **arrays)
        else:
            _write_parquet(part, columns, {"model": model.architecture, "weights": weights})
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)


def _write_parquet(path: Path, columns: Mapping[str, list[Any]], metadata: dict[str, str]) -> None:
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
    pq.write_table(pa.table(arrays).replace_schema_metadata(metadata), path)
