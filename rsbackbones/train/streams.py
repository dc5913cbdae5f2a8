"""The streams of a recipe: its sources opened, with the bands, normalization and tasks of each."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rsbackbones.data.aligned_series import AlignedSeries
from rsbackbones.data.image_warnings import ImageWarnings
from rsbackbones.data.limited import limit_source
from rsbackbones.data.open import open_part, open_source
from rsbackbones.data.selection import SelectedSource
from rsbackbones.data.sensor_alias import rename_sensors
from rsbackbones.data.source import BadSample, Source
from rsbackbones.models.backbone import Backbone
from rsbackbones.preprocess import preprocess_for
from rsbackbones.preprocess.create import can_have
from rsbackbones.sensors import get_sensor
from rsbackbones.train.dataset import DataStream, Views
from rsbackbones.train.engine.errors import TrainingError
from rsbackbones.train.input_contracts import source_units
from rsbackbones.train.recipe import Part, Recipe

# The number of samples of each source that are checked before a run, e.g. for wrong units.
_PROBED_SAMPLES = 8


def open_sources(recipe: Recipe, backbone: Backbone) -> list[DataStream]:
    """Open the recipe's sources, with the normalization, augmentation and task of each.

    A source without a task of its own is used once for every task.

    Raises:
        ValueError: there is no data, a source has no band of the model, a band has no statistics, values are
            not in the stated unit, or tasks do not match.
    """
    data, sensors = recipe.data, backbone.config.sensors
    if data.root is None:
        raise TrainingError("no data: pass data.root=FOLDER")
    if data.parts and data.options:
        raise TrainingError("data.options are of a root that is a training set of its own, not of data.parts")
    root = data.root.expanduser()
    try:
        stated = {m: unit for m, unit in data.units.items() if m in backbone.bands}
        preprocess_for(backbone.inputs, backbone.bands, sensors=sensors, units=stated)
    except ValueError as error:
        raise TrainingError(f"{error}. In a recipe: data.statistics=, data.units=") from error
    tasks = task_names(recipe)
    streams: list[DataStream] = []
    held: dict[str, tuple[str, ...]] = {}
    parts: list[tuple[Source, Part | None]] = [(open_part(part.file, root), part) for part in data.parts]
    units = source_units(recipe, sensors)
    for found, part in parts or [(open_source(root, named=units, **data.options), None)]:
        own = _streams_of(found, part, recipe, backbone, (part.task,) if part and part.task else tasks)
        held[found.name] = tuple(found.bands)
        if not own:
            raise TrainingError(
                f"{found.name} has {found.bands}, and no task takes it: {_needs(recipe, tasks)}. Leave it "
                "out of data.parts"
            )
        streams += own
    inventory = "; ".join(f"{name}: {', '.join(bands)}" for name, bands in held.items())
    fed = {m for stream in streams for m in stream.preprocess.specs}
    if idle := [m for m in backbone.modalities if m not in fed]:
        every = sorted({sensor for bands in held.values() for sensor in bands})
        raise TrainingError(
            f"no source has {', '.join(sensors[m] for m in idle)}, which {recipe.model} takes (there is "
            f"{', '.join(every)}): a part of the model would stay random. Check the folder, train "
            f"without: overrides.modalities={json.dumps(sorted(fed))}, or on another sensor: "
            f"overrides.sensors.{idle[0]}=SENSOR with its overrides.bands.{idle[0]}"
        )
    if idle := [task for task in tasks if not any(stream.task == task for stream in streams)]:
        raise TrainingError(
            f"no source is for the task {', '.join(idle)}: name it as the task of one of data.parts, or add "
            f"images ({_needs(recipe, idle)}); the sources hold {inventory}"
        )
    if unknown := [m for m in data.units if m not in fed]:
        raise TrainingError(
            f"data.units names {', '.join(unknown)}; the sensors are {', '.join(sorted(fed))}"
        )
    return streams


def _needs(recipe: Recipe, tasks: Sequence[str]) -> str:
    """Return which sensors tasks need, in words."""
    needed = {task: recipe.objective.task_images(task) for task in tasks}
    return (
        "; ".join(
            f"{task or recipe.objective.method} takes {' and '.join(images or ['any sensor of the model'])}"
            for task, images in needed.items()
        )
        + recipe.objective.needs_note
    )


def _streams_of(
    found: Source, part: Part | None, recipe: Recipe, backbone: Backbone, tasks: Sequence[str]
) -> list[DataStream]:
    """Return a stream of a source for each of the tasks that it has the images for."""
    data, sensors, name = recipe.data, _sensors_of(found, backbone), found.name
    crop = (part and part.crop) or data.crop
    size = (part and part.size) or data.size
    if (rest := size % backbone.size_multiple) and not backbone.pad:
        fix = f"data.size={size - rest + backbone.size_multiple}, to which crops are resized"
        if hasattr(recipe.objective, "pad"):
            fix += ", or objective.pad=true"
        raise TrainingError(f"data.size must be a multiple of {backbone.size_multiple}, got {size}: {fix}")
    if size < backbone.min_size:
        raise TrainingError(
            f"data.size={size} is below {backbone.min_size}, the smallest image of {recipe.model}: raise it"
        )
    views = Views(
        crop=crop,
        size=size,
        flips=data.flips,
        rot90=data.rot90,
        region=data.region,
        mixup=data.mixup,
        looks=recipe.objective.looks,
    )
    needed = {task: recipe.objective.task_images(task) for task in tasks}
    made: dict[tuple[str, ...] | None, DataStream | None] = {}
    streams = []
    for task, scales in needed.items():
        wanted = None if scales is None else tuple(scales)
        if wanted not in made:
            made[wanted] = None
            source = _select(found, wanted, recipe, sensors)
            bands = _bands_of(source, backbone, wanted) if source else {}
            if source and wanted is None and not bands:
                taken = {
                    m if sensor == m else f"{m} ({sensor})": backbone.bands[m]
                    for m, sensor in sensors.items()
                }
                raise TrainingError(f"{name} has {source.bands}, and the model takes {taken}")
            if source and bands and (wanted is None or len(bands) == len(wanted)):
                made[wanted] = _open_stream(source, bands, part, recipe, backbone, sensors, views)
        if (stream := made[wanted]) is not None:
            streams.append(replace(stream, task=task, scales=dict(scales or {})))
    return streams


def _sensors_of(found: Source, backbone: Backbone) -> Mapping[str, str]:
    """Return the sensor of every modality in a source: a model of pictures takes those of Sentinel-2, too.

    Their unit must then be stated, data.units.rgb=dn; as pictures, their values are too large.
    """
    sensors: dict[str, str] = dict(backbone.config.sensors)
    if sensors.get("rgb") == "rgb" and "rgb" not in found.bands and "s2" in found.bands:
        sensors["rgb"] = "s2"
    return sensors


def _select(
    found: Source, wanted: Sequence[str] | None, recipe: Recipe, sensors: Mapping[str, str]
) -> Source | None:
    """Return a source of the wanted modalities alone, ``None`` if it has no sample of them all."""
    limit, alignment = recipe.data.limit, recipe.objective.alignment
    if wanted is None:
        return rename_sensors(limit_source(found, limit, recipe.seed), sensors)
    raw = [sensors.get(m, m) for m in wanted]
    if any(sensor not in found.bands for sensor in raw):
        return None
    if not hasattr(found, "read_images"):
        raise TrainingError(
            f"{found.name} cannot read images of single sensors, as this method needs: "
            f"{type(found).__name__} lacks the methods of rsbackbones.data.source.DatedSource"
        )
    dated: Any = found
    selected: Source
    if alignment is not None:
        try:
            selected = AlignedSeries(dated, raw, alignment)
        except ValueError as error:
            raise TrainingError(str(error)) from error
    else:
        selected = SelectedSource(dated, raw, pair_days=recipe.data.pair_days)
    selected = limit_source(selected, limit, recipe.seed)
    return rename_sensors(selected, {m: s for m, s in sensors.items() if m in wanted}) if selected else None


def _bands_of(source: Source, backbone: Backbone, wanted: Sequence[str] | None) -> dict[str, tuple[str, ...]]:
    """Return by modality the bands of a source that the model takes, or that are a target.

    Preprocessing computes an index that the model takes and the source lacks.
    """
    bands = {}
    for m in backbone.modalities if wanted is None else wanted:
        if m not in source.bands:
            continue
        given = source.bands[m]
        if m in backbone.bands:
            sensor = get_sensor(backbone.config.sensors[m])
            spec = backbone.inputs[m]
            bands[m] = tuple(band for band in backbone.bands[m] if can_have(sensor, band, given, spec))
        else:
            bands[m] = tuple(band for band in backbone.inputs[m].bands if band in given)
    return {m: names for m, names in bands.items() if names}


def _open_stream(
    source: Source,
    bands: dict[str, tuple[str, ...]],
    part: Part | None,
    recipe: Recipe,
    backbone: Backbone,
    sensors: Mapping[str, str],
    views: Views,
) -> DataStream:
    """Return a stream of these bands of a source, after a look at some samples."""
    given = {m: source.bands[m] for m in bands}
    units = {m: unit for m, unit in recipe.data.units.items() if m in bands}
    checking, preprocess = (
        preprocess_for(backbone.inputs, bands, sensors=sensors, bands=given, units=units, check=check)
        for check in (True, False)
    )
    try:
        stream = DataStream(
            source=source, preprocess=preprocess, views=views, repeat=part.repeats if part else 1,
            seasons=recipe.objective.seasons,
        )  # fmt: skip
    except ValueError as error:
        raise TrainingError(str(error)) from error
    _probe_samples(stream, checking)
    return stream


def task_names(recipe: Recipe) -> tuple[str, ...]:
    """Return the tasks of the objective; if it has none, those of the sources.

    Raises:
        TrainingError: a source has a task that the objective does not have.
    """
    named = tuple(dict.fromkeys(part.task for part in recipe.data.parts if part.task))
    tasks = recipe.objective.task_names or named or ("",)
    if unknown := [task for task in named if task not in tasks]:
        raise TrainingError(
            f"data.parts name the task {', '.join(unknown)}; the tasks of {recipe.objective.method!r} are "
            f"{', '.join(tasks)}"
        )
    return tasks


def _probe_samples(stream: DataStream, preprocess: Any) -> None:
    """Read some samples with all checks, to detect wrong units and too small images before a run."""
    source, series = stream.source, stream.seasons not in (None, 1)
    too_small: list[BadSample | None] = []
    doubts = ImageWarnings()
    read: list[int] = []
    for place in sorted({i * len(source) // _PROBED_SAMPLES for i in range(_PROBED_SAMPLES)}):
        try:
            sample = source.read(place, None if series else 0)
        except BadSample:
            continue  # the run reports it
        read.append(place)
        images = {m: sample.images[m] for m in preprocess.specs}
        try:
            with doubts.of_image(place):
                preprocess({m: x[sample.valid[m]] if m in sample.valid else x for m, x in images.items()})
        except ValueError as error:
            raise TrainingError(
                f'{source.name}: {source.describe(place)}: {error}. In a recipe: data.units={{"s2": ...}}'
            ) from error
        try:
            stream.check_size(*next(iter(images.values())).shape[-2:])
        except BadSample as problem:
            too_small.append(problem)
        else:
            too_small.append(None)
    doubts.warn(source.name, read)
    if too_small and all(too_small):  # if only some are, the run skips them
        raise TrainingError(f"{source.name}: {too_small[0]}")
