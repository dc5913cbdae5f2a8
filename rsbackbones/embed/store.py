"""The Zarr store of features: its arrays, its attributes by existing conventions, and how it is read.

Conventions: ``geoemb:`` v1 (github.com/geo-embeddings/embeddings-zarr-convention), ``proj:`` and ``spatial:``
(github.com/zarr-conventions), and ``spatial_ref`` with ``grid_mapping`` (CF) for xarray.
"""

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from rsbackbones.data.rasters import Array
from rsbackbones.embed.job import CHUNK, Job
from rsbackbones.embed.lattice import Block
from rsbackbones.embed.quantize import Quantization
from rsbackbones.files.objects import Objects

_CONVENTIONS = [
    {
        "schema_url": "https://raw.githubusercontent.com/geo-embeddings/embeddings-zarr-convention/refs/tags/"
        "v1/schema.json",
        "spec_url": "https://github.com/geo-embeddings/embeddings-zarr-convention/blob/v1/README.md",
        "uuid": "61c12cc5-0e28-4056-999a-480cf3fb7e4c",
        "name": "geoemb:",
        "description": "Geoembeddings convention for geospatial embedding arrays with model provenance",
    },
    {
        "schema_url": "https://raw.githubusercontent.com/zarr-conventions/geo-proj/refs/tags/v1/schema.json",
        "spec_url": "https://github.com/zarr-conventions/geo-proj/blob/v1/README.md",
        "uuid": "f17cb550-5864-4468-aeb7-f3180cfb622f",
        "name": "proj:",
        "description": "Coordinate reference system information for geospatial data",
    },
    {
        "schema_url": "https://raw.githubusercontent.com/zarr-conventions/spatial/refs/tags/v1/schema.json",
        "spec_url": "https://github.com/zarr-conventions/spatial/blob/v1/README.md",
        "uuid": "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4",
        "name": "spatial",
        "description": "Spatial coordinate information",
    },
]
PROVENANCE = "rsbackbones"


def create_store(job: Job) -> None:
    """Write the metadata of all arrays, and the coordinates; what is there is replaced."""
    import zarr
    from odc.geo.geobox import GeoBox
    from odc.geo.xr import xr_coords
    from zarr.codecs import ZstdCodec

    grid, quantization = job.grid, job.quantization
    box = GeoBox((grid.height, grid.width), grid.transform, grid.crs.to_wkt())
    group: Any = zarr.create_group(_zarr_store(job.objects), overwrite=True, attributes=_attributes(job))
    shape = (grid.height, grid.width)
    spatial: dict[str, Any] = {"grid_mapping": "spatial_ref", "coordinates": "spatial_ref"}
    codec = ZstdCodec(level=3)
    stated = {"_FillValue": quantization.fill} if quantization.dtype == np.int8 else {}
    # A shard is of one date.
    dates, one, time = ((len(job.days),), (1,), ("time",)) if job.days else ((), (), ())
    group.create_array(
        "embeddings", shape=(*dates, job.dim, *shape), dtype=quantization.dtype,
        shards=(*one, job.dim, job.shard, job.shard), chunks=(*one, job.dim, CHUNK, CHUNK),
        compressors=codec, fill_value=quantization.fill, dimension_names=(*time, "band", "y", "x"),
        attributes=spatial | stated,
    )  # fmt: skip
    if quantization.has_scales:
        group.create_array(
            "scales", shape=(*dates, *shape), dtype="float32", shards=(*one, job.shard, job.shard),
            chunks=(*one, CHUNK, CHUNK), compressors=codec, fill_value=float("nan"),
            dimension_names=(*time, "y", "x"), attributes=spatial,
        )  # fmt: skip
    if quantization.scale:
        for name, values in (("band_scale", quantization.scale), ("band_offset", quantization.offset)):
            _put(group, name, np.array(values, np.float32), ("band",), {})
    if job.days:
        days = np.array(job.days, "datetime64[D]").astype(np.int64)
        _put(group, "time", days, ("time",), {"units": "days since 1970-01-01", "calendar": "standard"})
    for axis, coordinate in xr_coords(box, always_yx=True).items():
        attributes = {k: v for k, v in coordinate.attrs.items() if isinstance(v, (str, int, float))}
        _put(group, str(axis), coordinate.values, coordinate.dims, attributes)


def create_groups(place: str, groups: list[str]) -> None:
    """Write the root of a store whose groups are those of zones."""
    import zarr

    group: Any = zarr.open_group(_zarr_store(Objects(place)), mode="a", use_consolidated=False)
    group.attrs.update({PROVENANCE: {"groups": groups}})


def write_shard(job: Job, block: Block, stored: Array, scales: Array | None, date: int | None = None) -> None:
    """Write the stored values [rows, columns, D] of a shard, of a place on the time axis if there is one."""
    import zarr

    group: Any = zarr.open_group(_zarr_store(job.objects), mode="r+", use_consolidated=False)
    here = slice(block.top, block.bottom), slice(block.left, block.right)
    at = () if date is None else (date,)
    if scales is not None:
        group["scales"][*at, *here] = scales
    group["embeddings"][*at, :, *here] = np.ascontiguousarray(np.moveaxis(stored, -1, 0))


def open_group(store: str, *, group: str | None = None) -> Any:
    """Open a store of features, or one of its groups, as zarr has it, to read blocks of it."""
    import zarr

    objects = Objects(store) if group is None else Objects(store).within(group)
    return zarr.open_group(_zarr_store(objects, read_only=True), mode="r", use_consolidated=False)


def read_block(
    group: Any, block: Block, quantization: Quantization, date: int | None = None
) -> npt.NDArray[np.float32]:
    """Return the features [rows, columns, D] of a block, NaN without data, of a place on the time axis if
    there is one. A block of a shard is one read, where :func:`open_store` reads chunk by chunk.
    """
    here = slice(block.top, block.bottom), slice(block.left, block.right)
    at = () if date is None else (date,)
    scales = group["scales"][*at, *here] if quantization.has_scales else None
    return quantization.decode(np.moveaxis(group["embeddings"][*at, :, *here], 0, -1), scales)


def open_store(store: str | os.PathLike[str], *, group: str | None = None, decode: bool = True) -> Any:
    """Open a store of features as an ``xarray.Dataset``, lazily.

    Args:
        store: its path or URL.
        group: ``utm32``, of a store of several UTM zones.
        decode: return ``embeddings`` (band, y, x), or (time, band, y, x) of the composite ``none``, as
            float32, NaN without data; False: as they are stored.

    Raises:
        ValueError: there is no store of features, or no such group.
    """
    import xarray

    objects = Objects(os.fspath(store))
    if objects.get("zarr.json") is None:
        raise ValueError(f"there is no Zarr store at {objects.place}")
    groups = groups_of(objects)
    if groups and group not in groups:
        raise ValueError(
            f"{objects.place} has a group for each UTM zone: {', '.join(groups)}; choose one, "
            f"group={groups[0]!r} (--group {groups[0]}), got {group!r}"
        )
    if not groups and group is not None:
        raise ValueError(f"{objects.place} has no groups: leave out the group, {group!r}")
    objects = objects if group is None else objects.within(group)
    if objects.get("zarr.json") is None:
        raise ValueError(f"there is no Zarr store at {objects.place}")
    data = xarray.open_zarr(
        _zarr_store(objects, read_only=True), chunks={}, consolidated=False, mask_and_scale=False
    )
    if "embeddings" not in data or PROVENANCE not in data.attrs:
        raise ValueError(f"{objects.place} is a Zarr store of something else: it has no features of a job")
    data = data.set_coords([name for name in ("spatial_ref",) if name in data])
    if not decode:
        return data
    quantization = Quantization.from_json(data.attrs[PROVENANCE]["quantization"])
    given = [data["embeddings"]] + ([data["scales"]] if quantization.has_scales else [])
    features = xarray.apply_ufunc(
        lambda q, *scales: quantization.decode(q, *scales),
        *given, input_core_dims=[["band"], *([[]] * (len(given) - 1))], output_core_dims=[["band"]],
        dask="parallelized", output_dtypes=[np.float32],
    ).transpose(..., "band", "y", "x")  # fmt: skip
    features.attrs = {k: v for k, v in data["embeddings"].attrs.items() if k != "_FillValue"}
    dropped = [n for n in ("scales", "band_scale", "band_offset") if n in data]
    return data.drop_vars(dropped).assign(embeddings=features)


def groups_of(objects: Objects) -> list[str]:
    """Return the groups of a store of several UTM zones; of another none."""
    stated = objects.get_json("zarr.json") or {}
    return list(stated.get("attributes", {}).get(PROVENANCE, {}).get("groups", []))


def _attributes(job: Job) -> dict[str, Any]:
    from rsbackbones import __version__

    grid, quantization = job.grid, job.quantization
    t = grid.transform
    code = grid.crs.to_authority()
    attributes: dict[str, Any] = {
        "zarr_conventions": _CONVENTIONS,
        "geoemb:type": "pixel",
        "geoemb:dimensions": job.dim,
        "geoemb:model": model_link(job.facts),
        "geoemb:source_data": job.source.links or ["urn:none"],
        "geoemb:data_type": str(quantization.dtype),
        "geoemb:build_version": f"rsbackbones {__version__}",
        "spatial:dimensions": ["y", "x"],
        "spatial:transform": list(t[:6]),
        "spatial:shape": [grid.height, grid.width],
        "spatial:bbox": list(bounds_of(job)),
        "spatial:registration": "pixel",
        PROVENANCE: provenance(job),
    }
    # The convention takes one of them.
    attributes |= (
        {"proj:code": ":".join(code)} if code else {"proj:wkt2": grid.crs.to_wkt(version="WKT2_2019")}
    )
    if (meters := grid.pixel_in_meters) is not None:
        attributes["geoemb:gsd"] = meters
    if quantization.dtype == np.int8:
        attributes["geoemb:quantization"] = _stated_quantization(quantization)
    return attributes


def _stated_quantization(quantization: Quantization) -> dict[str, Any]:
    stated: dict[str, Any] = {"original_dtype": "float32", "quantized_dtype": "int8"}
    if quantization.rule == "per-band":
        return stated | {"method": "linear", "scale": {"type": "array", "array_name": "band_scale"}}
    if quantization.rule == "per-vector":
        scale = {"type": "array", "array_name": "scales", "nodata": "NaN"}
        return stated | {"method": "per_pixel_scale", "scale": scale}
    return stated | {"method": "signed_square"}


def provenance(job: Job) -> dict[str, Any]:
    """Return what decided the features of a job, for all outputs."""
    from rsbackbones import __version__

    return {"version": __version__, "fingerprint": job.fingerprint, **job.facts, **job.calibration}


def model_link(facts: dict[str, Any]) -> str:
    """Return a URL of the weights: of their repository, or of their digest."""
    from rsbackbones.zoo.manifest import find_entry

    named = facts["model"]["weights"]
    source = None if named is None else find_entry(named).source
    if source is not None and source.kind == "hub":
        return f"https://huggingface.co/{source.repo_id}/blob/{source.revision}/{source.filename}"
    return f"urn:sha256:{facts['model']['parameters_sha256']}"


def bounds_of(job: Job) -> tuple[float, float, float, float]:
    """Return the outer edges of the map in its CRS: west, south, east, north."""
    grid = job.grid
    (west, north), (east, south) = grid.position(0, 0), grid.position(grid.width, grid.height)
    return west, south, east, north


def _zarr_store(objects: Objects, *, read_only: bool = False) -> Any:
    try:
        from zarr.storage import ObjectStore
    except ImportError as error:
        raise ImportError("a store of features needs zarr: pip install 'rsbackbones[scale]'") from error
    return ObjectStore(objects.store, read_only=read_only)


def _put(group: Any, name: str, values: Array, dims: Any, attributes: dict[str, Any]) -> None:
    array = group.create_array(
        name, shape=values.shape, dtype=values.dtype, chunks=values.shape or (), dimension_names=tuple(dims),
        attributes=attributes,
    )  # fmt: skip
    array[...] = values
