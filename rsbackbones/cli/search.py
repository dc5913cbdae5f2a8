"""The command ``search``: cells of a store of features, or rows of a table, that are like an example."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from rsbackbones.cli.options import COUNT, FILE, CommaList, Command, Raster, option
from rsbackbones.data.raster_path import RasterPath

_POINT = CommaList(click.FLOAT)


@click.command(cls=Command)
@click.argument("store", type=Raster())
@option("--at", type=_POINT, multiple=True, metavar="LON,LAT", section="Example",
        help="a place in degrees that is like what you look for, of a table the geometry there; "
        "repeatable")  # fmt: skip
@option("--box", type=_POINT, multiple=True, metavar="W,S,E,N", section="Example",
        help="a box in degrees: the mean of its cells, or of the geometries within; repeatable")  # fmt: skip
@option("--example", type=FILE, multiple=True, metavar="CHIP.tif", section="Example",
        help="a raster, which the recorded model encodes; repeatable")  # fmt: skip
@option("--unlike", type=_POINT, multiple=True, metavar="LON,LAT", section="Example",
        help="a place that is unlike what you look for; repeatable")  # fmt: skip
@option("--at-date", metavar="DATE", section="Example", show_default="mean of all",
        help="2024-06-01: the date that --at, --unlike and --box are of, of a store with a time "
        "axis")  # fmt: skip
@option("--within", type=click.FloatRange(min=0), metavar="METERS", section="Example", show_default="100",
        help="of a table: how far --at and --unlike may be from the nearest geometry")  # fmt: skip
@option("--checkpoint", type=FILE, metavar="FILE", section="Example",
        help="weights of the recorded model, for --example, if they are not published")  # fmt: skip
@option("--k", type=COUNT, default=50, metavar="N", section="Search", help="how many hits")
@option("--center", type=click.Choice(("none", "mean", "whiten")), default="mean", section="Search",
        help="what is done to features before they are compared: nothing, their mean subtracted, or one "
        "variance in all directions")  # fmt: skip
@option("--group", metavar="utmNN", section="Search", show_default="all",
        help="the only UTM zone to search, of a store of several")  # fmt: skip
@option("--date", metavar="DATE", section="Search", show_default="all",
        help="2024-06-01: the only date to search, of a store with a time axis")  # fmt: skip
@option("--index", type=FILE, metavar="FILE.ivf", section="Search",
        help="for more than ten million vectors: search by an index, which is built where there is no such "
        "file; hits are approximate, with the recall that they record")  # fmt: skip
@option("--output", type=FILE, metavar="HITS.parquet", section="Result", help="the hits as GeoParquet")
@option("--map", "similarity", type=FILE, metavar="MAP.tif", section="Result",
        help="the similarity of all cells as a Cloud Optimized GeoTIFF; of several zones or dates one each, "
        "MAP_utm32_2024-06-01.tif")  # fmt: skip
@option("--html", type=FILE, metavar="PAGE.html", section="Result",
        help="one page: a heat map, ranked chips, the provenance")  # fmt: skip
@option("--scene", type=FILE, metavar="SCENE.tif", section="Result",
        help="a raster whose red, green and blue bands the page shows, instead of colors of "
        "features")  # fmt: skip
def search(
    store: RasterPath,
    at: Sequence[list[float]],
    box: Sequence[list[float]],
    example: Sequence[Path],
    unlike: Sequence[list[float]],
    at_date: str | None,
    within: float | None,
    checkpoint: Path | None,
    k: int,
    center: str,
    group: str | None,
    date: str | None,
    index: Path | None,
    output: Path | None,
    similarity: Path | None,
    html: Path | None,
    scene: Path | None,
) -> int:
    """Find places like an example in embeddings.

    STORE is a store that `rsbackbones embed --output NAME.zarr` wrote, or a table (.parquet).
    """
    from rsbackbones.embed.search.output import encode_example, write_hits, write_similarity
    from rsbackbones.embed.search.page import write_page
    from rsbackbones.embed.search.pictures import check_one_map
    from rsbackbones.embed.search.search import Searched

    if not (at or box or example):
        raise click.UsageError("give an example: --at LON,LAT, --box W,S,E,N or --example CHIP.tif")
    for name, given, count in (("--at", at, 2), ("--unlike", unlike, 2), ("--box", box, 4)):
        if wrong := [values for values in given if len(values) != count]:
            raise click.UsageError(f"{name} takes {count} numbers, got {', '.join(map(str, wrong[0]))}")
    if checkpoint and not example:
        raise click.UsageError("--checkpoint is the model of an image: name it, --example CHIP.tif")
    if within is not None and not (at or unlike):
        raise click.UsageError("--within is of a place: name it, --at LON,LAT")
    if at_date and not (at or unlike or box):
        raise click.UsageError("--at-date is of a place or a box: name it, --at LON,LAT or --box W,S,E,N")
    if scene and not html:
        raise click.UsageError("--scene is shown on the page: name it, --html PAGE.html")
    for name, path, suffixes in (
        ("--output", output, (".parquet",)), ("--map", similarity, (".tif", ".tiff")),
        ("--html", html, (".html",)),
    ):  # fmt: skip
        if path is not None and path.suffix.lower() not in suffixes:
            raise click.UsageError(f"{name} is a {suffixes[0]}, got {path}")
    if (html or similarity) and str(store).endswith(".parquet"):
        raise click.UsageError("--html and --map show the cells of a store (.zarr); a table has none")
    if (html or similarity) and index:
        raise click.UsageError("--html and --map show the similarity of all cells; --index gives hits alone")
    searched = Searched(str(store), center=center, group=group, date=date, index=index, report=_say)
    if scene:
        check_one_map(scene, searched.layers)
    wanted = [_found("--at", place, searched.example_at(*place, date=at_date, within=within)) for place in at]
    wanted += [_found("--box", bounds, searched.example_in(bounds, date=at_date)) for bounds in box]
    wanted += [encode_example(path, searched.provenance, checkpoint) for path in example]
    unwanted = [_found("--unlike", place, searched.example_at(*place, date=at_date, within=within))
                for place in unlike]  # fmt: skip
    hits = searched.search(wanted, unwanted, k=k, maps=bool(html or similarity))
    listed = zip(hits.similarity, hits.lon, hits.lat, searched.names(hits), strict=True)
    for i, (score, lon, lat, name) in enumerate(listed):
        if i < 10:
            print(f"{i + 1:4d}  {score:.4f}  {lon:.5f},{lat:.5f}  {name}".rstrip())
    if len(hits.similarity) > 10:
        _say(f"and {len(hits.similarity) - 10} more")
    if index:
        made = hits.facts["index"]
        _say(f"by an index with a recall of {made['recall_at_10']:.3f}: {index}")
    if output:
        write_hits(output, searched, hits)
        print(output)
    if similarity:
        print(*write_similarity(similarity, searched, hits), sep="\n")
    if html:
        write_page(html, searched, hits, scene=scene)
        print(html)
    return 0


def _found(name: str, numbers: Sequence[float], example: Any) -> Any:
    """Say where an example was found, where that is not clear, and return its vector."""
    if example.where:
        _say(f"{name} {','.join(map(str, numbers))}: {example.where}")
    return example.vector


def _say(text: str) -> None:
    print(text, file=sys.stderr)
