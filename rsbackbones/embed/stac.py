"""STAC beside the features of a job: a Collection and its Item.

The embedding extension is a proposal, v0.0.1 (github.com/geo-embeddings/embeddings-stac-specification); all
that follows it is in this file.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from rsbackbones.embed.geoparquet import acquired, outline
from rsbackbones.embed.job import Job
from rsbackbones.embed.sources.stac_source import StacSource
from rsbackbones.embed.store import bounds_of, model_link, provenance
from rsbackbones.files.objects import Objects

EXTENSION = "https://stac-extensions.github.io/embeddings/v0.0.1/schema.json"
PROCESSING = "https://stac-extensions.github.io/processing/v1.2.0/schema.json"
PROJECTION = "https://stac-extensions.github.io/projection/v2.0.0/schema.json"
_MEDIA = {
    ".zarr": "application/vnd.zarr; version=3",
    ".tif": "image/tiff; application=geotiff; profile=cloud-optimized",
    ".parquet": "application/vnd.apache.parquet",
}


def write_stac(output: str, parts: Sequence[tuple[Job, dict[str, Any]]]) -> Objects:
    """Write ``OUTPUT.stac/collection.json`` and an item of each job (one, or of zones); return where."""
    objects = Objects(output).beside(".stac")
    items = [_item(job, summary) for job, summary in parts]
    for item in items:
        objects.put_json(f"{item.id}.json", item.to_dict(include_self_link=False, transform_hrefs=False))
    objects.put_json("collection.json", _collection(output, parts, items))
    return objects


def _item(job: Job, summary: dict[str, Any]) -> Any:
    import pystac
    from shapely import box

    from rsbackbones import __version__

    place = PurePosixPath(job.output.rstrip("/"))
    name, quantization = place.stem, job.quantization
    identity = name if job.group is None else f"{name}-{job.group}"
    shape = outline(job.grid) if job.points is None else box(*job.points.facts["bounds"])
    times = times_of(job)
    now = datetime.now(UTC).replace(microsecond=0)
    dated = {"start_datetime": _text(times[0]), "end_datetime": _text(times[-1])} if times else {}
    properties: dict[str, Any] = {
        **dated,
        "emb:runtime_parameters": provenance(job),
        "processing:datetime": _text(now),
        "processing:software": {"rsbackbones": __version__},
        "processing:facility": "rsbackbones embed",
    }
    properties |= _projection(job) if job.points is None else {"proj:code": "EPSG:4326"}
    if summary["left_out"]:
        properties["rsbackbones:left_out"] = summary["left_out"]
    if summary["pairs"]:
        properties["rsbackbones:pairs"] = summary["pairs"]
    if quantization.dtype == np.int8:
        properties["emb:quantization"] = {
            "method": {"per-band": "linear", "alphaearth": "sqrt_scale"}.get(
                quantization.rule, quantization.rule
            ),
            "original_dtype": "float32",
            "quantized_dtype": "int8",
            **(
                {"scale": list(quantization.scale), "offset": list(quantization.offset)}
                if quantization.scale
                else {}
            ),
        }
    item = pystac.Item(
        id=identity, geometry=shape.__geo_interface__, bbox=list(shape.bounds), properties=properties,
        datetime=None if times else now,
    )  # fmt: skip
    item.stac_extensions = [EXTENSION, PROCESSING, PROJECTION]
    in_group = job.group is not None and job.points is None  # a table is one, also of several zones
    href = f"../{place.name}/{job.group}" if in_group else f"../{place.name}"
    item.add_asset(
        "embeddings",
        pystac.Asset(href=href, media_type=_MEDIA[place.suffix], roles=["data"],
                     extra_fields={"data_type": str(quantization.dtype)}),
    )  # fmt: skip
    item.add_link(pystac.Link("collection", "./collection.json", "application/json"))
    item.collection_id = f"{name}-collection"
    for link in job.source.links:
        item.add_link(pystac.Link("derived_from", link))
        item.add_link(pystac.Link("emb:source-data", link))
    if not times:
        item.properties["description"] = (
            "No source states a time: datetime is when the features were computed."
        )
    return item


def _collection(
    output: str, parts: Sequence[tuple[Job, dict[str, Any]]], items: Sequence[Any]
) -> dict[str, Any]:
    import pystac

    from rsbackbones import __version__

    job = parts[0][0]
    weights = job.facts["model"]["weights"] or job.facts["model"]["architecture"]
    boxes = np.array([item.bbox for item in items])
    whole = [*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist()]
    times = sorted(time for one, _ in parts for time in times_of(one))
    now = items[0].datetime
    meters = [m for one, _ in parts if (m := one.grid.pixel_in_meters) is not None]
    collection = pystac.Collection(
        id=items[0].collection_id,
        description=f"Features of {weights}, stream {job.stream}, by rsbackbones {__version__}",
        extent=pystac.Extent(
            pystac.SpatialExtent([whole, *(boxes.tolist() if len(parts) > 1 else [])]),
            pystac.TemporalExtent([[times[0], times[-1]] if times else [now, now]]),
        ),
        license="other",
        extra_fields={
            "emb:type": "pixel" if job.points is None else "chip",
            "emb:dimensions": job.dim,
            "data_type": str(job.quantization.dtype),
            **({"gsd": min(meters)} if meters else {}),
            "summaries": {"cells_with_data": [sum(summary["cells_with_data"] for _, summary in parts)]},
        },
    )
    collection.stac_extensions = [EXTENSION]
    collection.add_link(pystac.Link("emb:model", model_link(job.facts), title=weights))
    for link in dict.fromkeys(link for one, _ in parts for link in one.source.links):
        collection.add_link(pystac.Link("emb:source-data", link))
    for item in items:
        collection.add_link(pystac.Link("item", f"./{item.id}.json", "application/geo+json"))
    return dict(collection.to_dict(include_self_link=False, transform_hrefs=False))


def _projection(job: Job) -> dict[str, Any]:
    code = job.grid.crs.to_authority()
    return {
        "proj:shape": [job.grid.height, job.grid.width],
        "proj:transform": list(job.grid.transform[:6]),
        "proj:bbox": list(bounds_of(job)),
        "proj:code": ":".join(code) if code else None,
        **({} if code else {"proj:wkt2": job.grid.crs.to_wkt()}),
    }


def times_of(job: Job) -> list[datetime]:
    """Return the times that the sources state, in order."""
    if isinstance(job.source, StacSource):
        return job.source.times
    stated = [acquired([link]) for link in job.source.links]
    return sorted({t.astype(datetime).replace(tzinfo=UTC) for t in stated if t is not None})


def _text(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")
