"""The command ``embed``: compute features of GeoTIFFs."""

import ast
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from rsbackbones.cli.embed_job import (
    check_job_options,
    has_items,
    is_job,
    items_of,
    job_options,
    print_status,
    run_job,
)
from rsbackbones.cli.options import (
    COUNT,
    FILE,
    CommaList,
    Command,
    Raster,
    band_options,
    band_rules,
    mapping,
    option,
    pixel_options,
    refuse_two_weights,
    run_options,
    unreadable_option,
    weights_options,
)
from rsbackbones.data.raster_path import RasterPath, UnreadableRaster, raster_name, raster_path
from rsbackbones.data.resample import RESAMPLING


@click.command(cls=Command)
@click.argument("rasters", nargs=-1, type=Raster())
@option("--output", required=True, type=Raster(), metavar="FILE",
        help="NAME.tif: feature map of one scene; NAME.tif with --quantize: a Cloud Optimized GeoTIFF in 8 "
        "bits; NAME.npz or NAME.parquet: an embedding per patch file; NAME.parquet with --points: per "
        "geometry; NAME.zarr: a store of shards, for large areas and several processes. The last two also "
        "s3://...")  # fmt: skip
@weights_options
@option("--modalities", type=CommaList(), metavar="NAME,...", section="Model",
        show_default="all in the rasters",
        help="sensors to use, such as s2 or s2,s1")  # fmt: skip
@option("--stream", metavar="NAME", section="Model", show_default="joint if the model has it",
        help="the features of a map: s2, s1 or joint")  # fmt: skip
@option("--bands", type=CommaList(), multiple=True, metavar="B02,B03,...", section="Bands",
        help="the bands of the rasters, in order, if the files do not name them ('-' leaves one out); once "
        "for all, or once per raster")  # fmt: skip
@band_options
@option("--allow-dropped-bands", is_flag=True, section="Bands",
        help="drop the weights of bands that the rasters lack; not needed if --sensors names another sensor. "
        "(For bands of the rasters without a match in the weights see --missing-bands: by default they are "
        "not used, and refused if --sensors names another sensor)")  # fmt: skip
@mapping("--units", form="SENSOR=UNIT", section="Values",
         help="unit of the values: s2=reflectance, s2=dn_baseline_0400, s1=linear or s2=rgb8 (8-bit "
         "pictures whose 255 is DN 2750; rgb8:3558 for ESA's true color image); repeatable")  # fmt: skip
@pixel_options
@option("--skip-nodata", is_flag=True, section="Values", help="skip patches with missing pixels")
@unreadable_option(
    "of patches, tiles of a mosaic and STAC items: stop at one that cannot be read, or leave it out and name "
    "it in the result"
)
@option("--resample", type=click.Choice(RESAMPLING), section="Bands", show_default="refuse other grids",
        help="resample rasters of other pixel sizes onto the finest grid")  # fmt: skip
@option("--window", type=COUNT, metavar="PIXELS", section="Windows", show_default="the size of pretraining",
        help="side of the windows that a scene is read in")  # fmt: skip
@option("--overlap", type=click.IntRange(min=0), metavar="PIXELS", section="Windows",
        show_default="two fifths of the window", help="overlap of the windows")  # fmt: skip
@option("--pad", is_flag=True, section="Windows",
        help="pad sides that are not multiples of the patch size; default: refuse patch files, "
        "crop scenes")  # fmt: skip
@option("--colors-from", type=FILE, metavar="MAP.tif", section="Windows",
        help="color the preview of a scene like that of this feature map, so that both can be compared: "
        "another date, of the same model; otherwise colors are of one map alone")  # fmt: skip
@job_options
@option("--dtype", type=click.Choice(("float32", "bfloat16", "float16")), default="float32", section="Run",
        help="of the model; bfloat16 is faster on GPUs and on CPUs with AMX, and features differ a "
        "little")  # fmt: skip
@run_options(batch_size=8)
def embed(
    rasters: tuple[RasterPath, ...],
    output: RasterPath,
    model: str,
    pretrained: bool,
    checkpoint: Path | None,
    overrides: Mapping[str, Any],
    modalities: list[str] | None,
    stream: str | None,
    bands: tuple[list[str], ...],
    sensors: Mapping[str, str],
    missing_bands: str,
    kernel_scale: str,
    allow_dropped_bands: bool,
    units: Mapping[str, str],
    nodata: float | None,
    mask: Mapping[str, list[int]],
    skip_nodata: bool,
    on_unreadable: str,
    resample: str | None,
    window: int | None,
    overlap: int | None,
    pad: bool,
    colors_from: Path | None,
    dtype: str,
    batch_size: int,
    device: str,
    progress: bool,
    **store_options: Any,
) -> int:
    """Compute features of GeoTIFFs.

    RASTERS are GeoTIFFs or other rasters, folders of them, Sentinel-2 products (SAFE), or names for GDAL
    (/vsizip/..., https://...): the files of one scene, or of many patches. For --output NAME.zarr also the
    tiles of a mosaic, or one Zarr store. For a model of series one location of a folder of series (set.json).
    """
    check_job_options(output, store_options)
    if store_options["status"]:
        return print_status(output)
    of_items = has_items(store_options)
    if not rasters and not of_items:
        raise click.UsageError("name RASTERS to embed, or STAC items by --stac FILE or --search URL")
    if rasters and of_items:
        raise click.UsageError("RASTERS and STAC items (--stac, --search) exclude each other: leave out one")

    import torch

    from rsbackbones.data.rasters import open_raster
    from rsbackbones.device import choose_device
    from rsbackbones.embed import embed_patches, embed_scene, embed_series
    from rsbackbones.embed.inputs import MAPS, check_output
    from rsbackbones.embed.series import is_location
    from rsbackbones.input_spec import RGB8
    from rsbackbones.preprocess import picture_note
    from rsbackbones.sensors import get_sensor
    from rsbackbones.zoo.factory import create_model, create_untrained, weights_config

    refuse_two_weights(pretrained, checkpoint)
    place = choose_device(device)
    to_store = is_job(output, store_options)
    if not to_store:
        check_output(output)
    is_scene = not to_store and Path(output).suffix.lower() in MAPS
    if is_scene and on_unreadable == "skip":
        raise ValueError(
            "--on-unreadable skip is for patches (.npz, .parquet); a scene needs all of its files"
        )
    if colors_from is not None and not is_scene:
        raise ValueError(f"--colors-from is for the picture of a feature map, a .tif; got --output {output}")
    weights: dict[str, Any] = {
        "pretrained": pretrained and checkpoint is None,
        "checkpoint": checkpoint,
        "overrides": dict(overrides),
    }
    rules = band_rules(sensors, missing_bands, kernel_scale)  # first: weights may be of a file's sensor
    config = weights_config(model, **weights)
    asked = modalities or []
    if unknown := [m for m in (*asked, *rules["sensors"]) if m not in config.modalities]:
        raise ValueError(f"{model} takes {', '.join(config.modalities)}, not {', '.join(unknown)}")
    sensor_names = {m: config.sensors[m] for m in config.modalities} | rules["sensors"]
    source: Any = None
    location = rasters[0] if len(rasters) == 1 and isinstance(rasters[0], Path) else None
    if of_items:
        source = items_of(store_options)
        files = [_in_items(store_options["stac"] or store_options["search"], source, sensor_names)]
    elif location is not None and is_location(location):
        _check_series_options(is_scene, bands, nodata, mask, skip_nodata, resample, window, overlap)
        files = [_in_location(location, sensor_names, asked or config.modalities, units)]
    elif to_store and len(rasters) == 1 and str(rasters[0]).rstrip("/").endswith(".zarr"):
        source = str(rasters[0])
        files = [_in_store(source, store_options["variable"], sensor_names)]
    else:
        files = _find(rasters, bands, sensor_names, asked or config.modalities, units, mask, on_unreadable)
    held = {m: {b for file in files for b in file.bands.get(m, ())} for m in sensor_names}
    used = {m: sensor_names[m] for m in asked or config.modalities if held[m]}
    if lacking := [m for m in (*asked, *rules["sensors"]) if m not in used]:
        of = ", ".join(m if sensor_names[m] == m else f"{m} ({sensor_names[m]})" for m in lacking)
        raise ValueError(f"no raster holds bands of {of}{_not_understood(files)}")
    chosen, absent = _model_bands(model, config, used, held, missing_bands)
    if absent and not allow_dropped_bands:
        unclear = _not_understood(files)
        other = next((m for m in used if get_sensor(used[m]).kind == "optical"), None)
        raise ValueError(
            f"the rasters lack bands that the model takes: {'; '.join(absent)}{unclear}. "
            + ("Otherwise pass" if unclear else "Pass")
            + " --allow-dropped-bands to drop the weights of these bands"
            + (
                f", or the sensor of the rasters, if it is another one: --sensors {other}=landsat_oli"
                if other
                else ""
            )
        )

    torch.manual_seed(0)
    adapted: dict[str, Any] = {**rules, "modalities": list(used), "pad": pad, "bands": chosen}
    if pretrained:
        built = create_model(model, **weights, **adapted).to(place)
    else:
        built = create_untrained(model, overrides=dict(overrides), **adapted).to(place)
    if not pretrained:
        print("weights: RANDOM (seed 0); the features are meaningless", file=sys.stderr)
    else:
        print(f"weights: {built.weights_entry.id if built.weights_entry else checkpoint}", file=sys.stderr)
    if place.type != "cpu":
        print(f"device: {place}", file=sys.stderr)
    if built.adaptation:
        print(built.adaptation, file=sys.stderr)
    for m, names in built.bands.items():
        print(f"{m}: read as {get_sensor(used[m]).title}: {', '.join(names)}", file=sys.stderr)
    _warn_unused(files, built.bands)
    product = built.inputs["s2"].product if "s2" in built.inputs else ""
    if (
        used.get("s2") == "s2" and "B10" in held["s2"] and product == "L2A"
        and "B10" not in built.bands["s2"] and not units.get("s2", "").startswith(RGB8)
    ):  # fmt: skip
        print(
            "note: band B10 exists only in L1C products, but the weights expect L2A (surface reflectance); "
            "B10 is not used, and features may be worse",
            file=sys.stderr,
        )
    paths = [file.path for file in files]
    common: dict[str, Any] = {
        "bands": [file.names for file in files], "units": units, "nodata": nodata, "mask": mask,
        "batch_size": batch_size, "progress": progress, "resample": resample,
    }  # fmt: skip
    if dtype != "float32":
        built = built.to(getattr(torch, dtype))
    for m, unit in units.items():
        if m in built.inputs and (note := picture_note(built.inputs[m], unit)):
            print(f"{m}: {note}", file=sys.stderr)
    if to_store:
        common["bands"] = None if source else common["bands"]
        return run_job(
            built, source or paths, output, store_options, stream=stream, window=window, overlap=overlap,
            device=place, on_unreadable=on_unreadable, **common,
        )  # fmt: skip
    assert isinstance(output, Path)  # only stores have URLs
    if location is not None and is_location(location):
        embed_series(built, location, output, units=units, stream=stream, colors_from=colors_from)
        print(f"{output}\n{output.with_suffix('.png')}")
    elif is_scene:
        embed_scene(
            built, paths, output, stream=stream, window=window, overlap=overlap, colors_from=colors_from,
            **common,
        )  # fmt: skip
        with open_raster(output) as written:
            tags = written.tags()
        who = ast.literal_eval(tags["units_from"])
        for m, unit in ast.literal_eval(tags["units"]).items():
            known = {"user": "as named", "files": "as the files state"}
            print(
                f"{m}: values in {unit}, {known.get(who[m], 'assumed: name another with --units')}",
                file=sys.stderr,
            )
        if tags["resampling"] != "none":
            print(f"resampled: {tags['resampling']}", file=sys.stderr)
        if mask:
            share = float(tags["valid_share"])
            print(f"{share:.1%} of the pixels have data and count by --mask", file=sys.stderr)
        print(f"{output}\n{Path(output).with_suffix('.png')}")
        if colors_from is None:
            print("the colors of the picture are of this map alone; to compare dates, pass --colors-from "
                  f"{output} with the others", file=sys.stderr)  # fmt: skip
    else:
        left_out = embed_patches(
            built, paths, output, skip_nodata=skip_nodata, on_unreadable=on_unreadable, **common
        )
        print(output)
        for path, reason in left_out.items():
            print(f"left out, {reason}: {path}", file=sys.stderr)
        if left_out:
            print(
                f"{len(left_out)} left out of {len(paths)} files, named in {Path(output).name}",
                file=sys.stderr,
            )
    return 0


def _check_series_options(is_scene: bool, *options: object) -> None:
    """Refuse what a series cannot have."""
    if not is_scene:
        raise ValueError("the features of a series are a map: --output NAME.tif")
    if any(option not in (None, False, (), {}) for option in options):
        raise ValueError(
            "a series is encoded whole, and set.json names its bands: leave out --bands, --nodata, --mask, "
            "--skip-nodata, --resample, --window and --overlap"
        )


class _File(NamedTuple):
    """A raster, its band names from the user, its bands by modality, and its other bands."""

    path: RasterPath
    names: list[str] | None
    bands: Mapping[str, Sequence[str]]
    ignored: Sequence[str]


def _find(
    rasters: Sequence[RasterPath],
    bands: Sequence[list[str]],
    sensors: Mapping[str, str],
    wanted: Sequence[str],
    units: Mapping[str, str],
    mask: Mapping[str, list[int]],
    on_unreadable: str,
) -> list[_File]:
    """Find the bands of the ``wanted`` modalities in the rasters. Report rasters without any."""
    from rsbackbones.data.class_masks import mask_bands, masked_names
    from rsbackbones.data.rasters import find_bands

    paths, searched = _expand(rasters), {m: sensors[m] for m in wanted}
    files = []
    for path, given in zip(paths, _band_names(bands, paths), strict=True):
        names = masked_names(given, mask)
        try:
            elsewhere = not set(find_bands(path, sensors, names, units=units)[0]) & set(wanted)
            found, ignored = ({}, []) if elsewhere else find_bands(path, searched, names, units=units)
        except UnreadableRaster:
            if on_unreadable == "fail":
                raise
            files.append(_File(path, given, {}, []))  # named by what reads the patches
            continue
        if elsewhere:
            print(f"{raster_name(path)}: left out, it holds no bands of {', '.join(wanted)}", file=sys.stderr)
            continue
        ignored = [name for name in ignored if name.strip().lower() not in mask_bands(mask)]
        files.append(_File(path, given, {m: tuple(bands) for m, bands in found.items()}, ignored))
    return files


def _in_store(place: str, variable: str | None, sensors: Mapping[str, str]) -> _File:
    """Find the bands of an array in a Zarr store; one that names none is taken to hold those of the model."""
    from rsbackbones.embed.sources.zarr_store import names_in_store

    return _named_bands(place, names_in_store(place, variable), sensors)


def _in_items(place: Path | str, items: Sequence[Any], sensors: Mapping[str, str]) -> _File:
    """Find the bands among the assets of STAC items."""
    return _named_bands(
        str(place), list(dict.fromkeys(key for item in items for key in item.assets)), sensors
    )


def _named_bands(place: str, names: Sequence[str], sensors: Mapping[str, str]) -> _File:
    from rsbackbones.data.band_names import bands_of_description
    from rsbackbones.sensors import get_sensor

    found: dict[str, list[str]] = {m: [] for m in sensors}
    ignored = []
    for name in names:
        for m, sensor in sensors.items():
            if len(named := bands_of_description(get_sensor(sensor), name)) == 1:
                found[m] += [band for band in named if band not in found[m]]
                break
        else:
            ignored.append(name)
    if not any(found.values()):
        raise ValueError(
            f"{place} names no band of {', '.join(sensors.values())}: it has "
            f"{', '.join(names) or 'no names'}. "
            "(An array names its bands by a coordinate of the dimension band)"
        )
    return _File(raster_path(place), None, {m: b for m, b in found.items() if b}, ignored)


def _in_location(
    path: Path, sensors: Mapping[str, str], wanted: Sequence[str], units: Mapping[str, str]
) -> _File:
    """Return the bands of a location of a folder of series, by modality."""
    from rsbackbones.embed.series import open_location

    source, place = open_location(path, units)
    held = source.times(place, list(source.bands))
    return _File(path, None, {m: source.bands[sensors[m]] for m in wanted if sensors[m] in held}, [])


def _not_understood(files: Sequence[_File]) -> str:
    from rsbackbones.data.rasters import not_understood

    return not_understood({file.path: file.ignored for file in files if file.ignored})


def _model_bands(
    name: str,
    config: Any,
    sensors: Mapping[str, str],
    held: Mapping[str, set[str]],
    missing_bands: str,
) -> tuple[dict[str, list[str]], list[str]]:
    """Return the bands to build the model for, and the pretrained ones that the rasters lack.

    For the pretrained sensor the model gets the pretrained bands, and with --missing-bands also bands without
    a match. For another sensor it gets all bands in the rasters.
    """
    from rsbackbones.sensors import get_sensor

    chosen, lacking = {}, []
    for m, sensor in sensors.items():
        every = [band.name for band in get_sensor(sensor).bands]
        pretrained = list(config.bands[m]) if sensor == config.sensors[m] else []
        only_matched = pretrained and missing_bands == "error"
        more = [] if only_matched else [b for b in every if b not in pretrained]
        chosen[m] = [b for b in (*pretrained, *more) if b in held[m]]
        if absent := [b for b in pretrained if b not in held[m]]:
            lacking.append(f"{m} {', '.join(absent)}")
        if not chosen[m]:
            raise ValueError(
                f"{m}: {name} takes {', '.join(pretrained)} of {sensor}, and the rasters hold "
                f"{', '.join(b for b in every if b in held[m])}; choose a rule: --missing-bands nearest"
            )
    return chosen, lacking


def _warn_unused(files: Sequence[_File], used: Mapping[str, Sequence[str]]) -> None:
    """Print the bands of the rasters that are not used, once for all rasters with the same ones."""
    alike: dict[str, list[str]] = {}
    for file in files:
        idle = [b for m, bands in file.bands.items() for b in bands if b not in used[m]]
        if unused := [*idle, *file.ignored]:
            alike.setdefault(", ".join(unused), []).append(raster_name(file.path))
    for bands, (first, *others) in alike.items():
        rest = f" and {len(others)} more" if others else ""
        print(f"{first}{rest}: not used: {bands}", file=sys.stderr)


def _expand(paths: Sequence[RasterPath]) -> list[RasterPath]:
    """Replace folders by the rasters in them, in order of name. Report those that are left out."""
    from rsbackbones.data.raster_folder import rasters_in
    from rsbackbones.data.series_set import SET_FILE

    found: list[RasterPath] = []
    for path in paths:
        if isinstance(path, Path) and (path / SET_FILE).is_file():
            raise ValueError(f"{path} is a folder of series: name one of its locations, {path}/LOCATION")
        if isinstance(path, Path) and path.is_dir():
            inside, others = rasters_in(path)
            found += inside
            if others:
                names = ", ".join(other.name for other in others)
                print(f"{path}: left out, no bands or in larger pixels: {names}", file=sys.stderr)
        else:
            found.append(path)
    return found


def _band_names(given: Sequence[list[str]], paths: Sequence[RasterPath]) -> Sequence[list[str] | None]:
    if not given:
        return [None] * len(paths)
    if len(given) == 1:
        return list(given) * len(paths)
    if len(given) != len(paths):
        raise ValueError(
            f"--bands was given {len(given)} times for {len(paths)} rasters; once, or once per raster"
        )
    return list(given)
