"""``create_model``: from a name, weights and the user's sensors and bands to a model."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, overload

import torch

from rsbackbones.models.backbone import Backbone
from rsbackbones.models.feature_maps import FeatureMaps
from rsbackbones.sensors import InputSpec, Sensor, get_sensor, register_sensor
from rsbackbones.zoo import checkpoint_files as checkpoints
from rsbackbones.zoo import hub, weights
from rsbackbones.zoo.adapt import Adaptation, check_rules
from rsbackbones.zoo.errors import WeightsMismatchError
from rsbackbones.zoo.loading import (
    Description,
    adapted_inputs,
    describe,
    load_weights,
    plan_bands,
    replace_config,
    zero_stem_channels,
)
from rsbackbones.zoo.manifest import WeightsEntry
from rsbackbones.zoo.names import architecture_named, weights_named
from rsbackbones.zoo.registry import Architecture, find_architecture


@overload
def create_model(
    name: str,
    pretrained: bool = False,
    *,
    modalities: Sequence[str] | None = None,
    sensors: Mapping[str, str | Sensor] | None = None,
    bands: Mapping[str, Sequence[str]] | None = None,
    bands_missing: str = "error",
    bands_scale: str = "count",
    image_size: int | tuple[int, int] | None = None,
    patch_size: int | None = None,
    pad: bool = False,
    num_classes: int | None = 0,
    features_only: Literal[False] = False,
    out_indices: int | Sequence[int] | None = None,
    stream: str | None = None,
    checkpoint: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Backbone: ...


@overload
def create_model(
    name: str,
    pretrained: bool = False,
    *,
    modalities: Sequence[str] | None = None,
    sensors: Mapping[str, str | Sensor] | None = None,
    bands: Mapping[str, Sequence[str]] | None = None,
    bands_missing: str = "error",
    bands_scale: str = "count",
    image_size: int | tuple[int, int] | None = None,
    patch_size: int | None = None,
    pad: bool = False,
    num_classes: int | None = 0,
    features_only: Literal[True],
    out_indices: int | Sequence[int] | None = None,
    stream: str | None = None,
    checkpoint: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> FeatureMaps: ...


def create_model(
    name: str,
    pretrained: bool = False,
    *,
    modalities: Sequence[str] | None = None,
    sensors: Mapping[str, str | Sensor] | None = None,
    bands: Mapping[str, Sequence[str]] | None = None,
    bands_missing: str = "error",
    bands_scale: str = "count",
    image_size: int | tuple[int, int] | None = None,
    patch_size: int | None = None,
    pad: bool = False,
    num_classes: int | None = 0,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    stream: str | None = None,
    checkpoint: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Backbone | FeatureMaps:
    """Create a model, in ``eval()`` mode.

    Args:
        name: an architecture (``croma_vit_b``), ``architecture.tag`` for particular weights, or
            ``hf-hub:ORG/NAME`` for a repository that ``push_to_hub`` made. ``hf-hub:ORG/NAME@COMMIT``, with
            all 40 digits, always gives the same weights; a branch may move.
        pretrained: load the weights, verified. False builds random weights.
        modalities: which sensors to build and load; default all that the weights know.
        sensors: what *your* channels of a modality are of, where it is not the modality's own sensor:
            ``{"s2": "landsat_oli"}``, or a :class:`Sensor` of your own. The model goes on calling them
            ``s2``; bands then meet the weights by wavelength, never by name.
        bands: the channel order of *your* tensors, by modality; default the weights' own bands, or all of a
            sensor that is not the weights'. On one sensor the weights are gathered by band name.
        bands_missing: what a band unknown to the weights gets: ``error``, ``nearest``, ``mean``,
            ``zero`` or ``new``; ``all_new`` is a new tokenizer for all bands, of the modalities that
            ``bands`` and ``sensors`` name, or of all where they name none; see :mod:`rsbackbones.zoo.adapt`.
        bands_scale: how tokens keep their scale where bands are dropped or shared: ``count``, ``sqrt`` or
            ``none``; see :mod:`rsbackbones.zoo.adapt`.
        image_size: the size in pixels you mean to use, of a ViT a multiple of the patch, or (height, width);
            sizes may differ from call to call all the same.
        patch_size: a patch in pixels that is not the weights', whose tokenizers are then resized
            (:func:`rsbackbones.zoo.adapt.resize_kernel`). ``image_size`` must be a multiple of it.
        pad: pad images whose sides are no multiple of ``Backbone.size_multiple``, instead of refusing
            them; see ``Backbone.pad``.
        num_classes: more than 0 adds a linear head, newly initialised unless ``checkpoint`` holds one of
            as many classes; ``None`` keeps the head of ``checkpoint`` as it is.
        features_only: return a model that gives a list of maps; see ``FeatureMaps``.
        out_indices, stream: for ``features_only``: which stages of which stream.
        checkpoint: a local ``.safetensors`` or ``.pt`` file instead of the Hub, or a folder made by
            ``rsbackbones download --to``; with or without ``pretrained``.
        overrides: fields of the architecture's configuration to change. For a checkpoint that does not
            describe itself they say what it holds (``{"dim": 32}``); weights that do describe
            themselves cannot be contradicted; ``image_size`` then means what the argument of that name does.

    Raises:
        ValueError: an unknown name, sensor, band, field or value.
        WeightsError: (a ``ValueError``) weights that do not exist, cannot be had, are not the pinned
            bytes, or do not fit; see :mod:`rsbackbones.zoo.errors`.
    """
    if features_only and num_classes:
        raise ValueError("features_only gives maps and has no head: leave out num_classes")
    if not features_only and (out_indices is not None or stream is not None):
        raise ValueError("out_indices and stream go with features_only=True")
    check_rules(bands_missing, bands_scale)
    repository: WeightsEntry | None = None
    if name.startswith(hub.PREFIX):
        if checkpoint is not None or not pretrained:
            raise ValueError(f"{name} names weights: pass pretrained=True, and no checkpoint")
        repository = weights_named(name)
        name = repository.architecture
    architecture_name, _, tag = name.partition(".")
    architecture = find_architecture(architecture_name)
    entry: WeightsEntry | None = None
    file: checkpoints.CheckpointFile | None = None
    if checkpoint is not None and not Path(checkpoint).expanduser().is_dir():
        if tag:
            raise ValueError(
                f"{name}: a tag names weights of the manifest, and checkpoint names a file; give one of them"
            )
        file = checkpoints.open_checkpoint(Path(checkpoint).expanduser(), allow_pickle=True)
    elif pretrained or checkpoint is not None:
        entry = repository or weights_named(name)
        folder = None if checkpoint is None else Path(checkpoint).expanduser()
        path = weights.fetch(entry, folder)
        file = checkpoints.open_checkpoint(path, allow_pickle=entry.format != "rsbackbones")
    elif tag:
        raise ValueError(
            f"{name} names weights: pass pretrained=True to load them, or leave out .{tag} for a "
            "randomly initialised model"
        )

    # What the weights are of, then what the user wants of it.
    described = describe(architecture, file, entry)
    if repository and file:
        hub.check_contract(repository, file.metadata)
    changes = dict(overrides or {})
    if file is not None and described.stated and "image_size" in changes:
        # Here it can only be what the user means to use: what the weights are of, they say themselves.
        image_size = _one_size(image_size, changes.pop("image_size"))
    theirs = replace_config(described.config, changes, architecture.name)
    differing = [f for f in changes if getattr(theirs, f) != getattr(described.config, f)]
    if file is not None and described.stated and differing:
        where = [f.metadata["trained"] for f in fields(theirs) if f.name in differing and f.metadata]
        raise WeightsMismatchError(
            f"overrides cannot change what the weights in {file.path} are of: "
            + ", ".join(f"{f} {getattr(described.config, f)}" for f in differing)
            + " (bands=, sensors= (--sensor), modalities= and patch_size= say what you want of them)"
            + "".join(f"; {said}" for said in where)
        )
    # Weights decide which sensors there are; an architecture is built for any that its family knows.
    more = described.inputs if file is None else None
    mine = _requested_config(theirs, modalities, sensors, bands, image_size, patch_size, more)
    classes = described.num_classes if num_classes is None else num_classes
    build = architecture.family.build
    # A random model lacks no weights, but an input contract may have no statistics for a band.
    missing = "new" if file is None and bands_missing == "error" else bands_missing
    tables = plan_bands(
        theirs, mine, missing, bands_scale, named={*(sensors or {}), *(bands or {})}, inputs=described.inputs
    )
    with torch.inference_mode(False):  # parameters made in that mode could never be trained
        if file is None:
            model: Backbone = build(mine, num_classes=classes)
            zero_stem_channels(model, tables)
        else:
            with torch.device("meta"):
                model = build(mine, num_classes=classes)
            model.adaptation = load_weights(model, file, described, theirs, architecture, entry, tables)
    model.architecture = architecture.name
    last = {stream: model.stages(stream)[-1][:2] for stream in model.stream_inputs}
    if len(set(last.values())) > 1:
        raise ValueError(
            f"{architecture.name}: the final maps of all streams must have the same channels and stride, got "
            f"{last}"
        )
    model.inputs = adapted_inputs(described, theirs, tables)
    model.weights_entry = entry
    model.pad = pad
    model.eval()
    return FeatureMaps(model, indices=out_indices, stream=stream) if features_only else model


def plan_adaptation(
    name: str,
    *,
    sensors: Mapping[str, str | Sensor] | None = None,
    bands: Mapping[str, Sequence[str]] | None = None,
    bands_missing: str = "error",
    bands_scale: str = "count",
    checkpoint: str | Path | None = None,
) -> Adaptation:
    """Say what ``create_model`` would do to the bands of weights, without fetching or reading them.

    The arguments are those of :func:`create_model`. Of a ``checkpoint`` only what the file says of itself is
    read; of one that says nothing the bands are taken to be the architecture's.

    Raises:
        ValueError: as ``create_model``.
    """
    _, described = _describe(name, True, checkpoint)
    theirs = described.config
    mine = _requested_config(theirs, None, sensors, bands, None, None)
    named = {*(sensors or {}), *(bands or {})}
    tables = plan_bands(theirs, mine, bands_missing, bands_scale, named=named, inputs=described.inputs)
    return Adaptation(bands=tuple(table for table in tables if table))


def weights_config(
    name: str,
    pretrained: bool = False,
    *,
    checkpoint: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Any:
    """Return the configuration of the weights that ``create_model`` would load, without loading them.

    It names their modalities, and by modality their bands and the sensor that these are of. The arguments are
    those of :func:`create_model`.

    Raises:
        ValueError: an unknown name or field, or weights that do not exist or do not say what they are.
    """
    architecture, described = _describe(name, pretrained, checkpoint)
    return replace_config(described.config, overrides or {}, architecture.name)


def _describe(name: str, pretrained: bool, checkpoint: str | Path | None) -> tuple[Architecture, Description]:
    file: checkpoints.CheckpointFile | None = None
    entry: WeightsEntry | None = None
    if checkpoint is not None and not Path(checkpoint).expanduser().is_dir():
        file = checkpoints.open_checkpoint(Path(checkpoint).expanduser(), allow_pickle=True)
    elif pretrained or checkpoint is not None:
        entry = weights_named(name)
    architecture = find_architecture(entry.architecture) if entry else architecture_named(name)
    return architecture, describe(architecture, file, entry)


def _one_size(argument: Any, override: Any) -> Any:
    """The size that ``image_size=`` and ``overrides={"image_size": ...}`` both may name."""
    given, said = (list(x) if isinstance(x, Sequence) else x for x in (argument, override))
    if argument is not None and given != said:
        raise ValueError(
            f"image_size={argument!r} and overrides={{'image_size': {override!r}}} differ; give one of them"
        )
    return override


def _requested_config(
    theirs: Any,
    modalities: Sequence[str] | None,
    sensors: Mapping[str, str | Sensor] | None,
    bands: Mapping[str, Sequence[str]] | None,
    image_size: int | tuple[int, int] | None,
    patch_size: int | None,
    inputs: Mapping[str, InputSpec] | None = None,
) -> Any:
    """The user's configuration: ``theirs`` with the user's wishes.

    ``inputs``: of a model without weights, the contracts of all sensors that it may be built for.
    """
    wanted = tuple(theirs.modalities) if modalities is None else tuple(modalities)
    known = tuple(dict.fromkeys([*theirs.modalities, *(inputs or {})]))
    if isinstance(modalities, str) or not wanted or len(set(wanted)) < len(wanted):
        raise ValueError(f"modalities must be different names such as {known}, got {modalities!r}")
    if unknown := [m for m in wanted if m not in known]:
        raise ValueError(
            f"unknown modality {', '.join(map(repr, unknown))}; these weights know "
            f"{', '.join(map(repr, known))}: pass modalities={known} (--modalities {','.join(known)})"
        )
    for name, given in (("bands", bands), ("sensors", sensors)):
        if not isinstance(given or {}, Mapping):
            raise ValueError(
                f"{name} must be given by modality, {name}={{'{wanted[0]}': ...}}, got {given!r}"
            )
    if unknown := [m for m in bands or {} if m not in wanted]:
        raise ValueError(f"bands names {', '.join(unknown)}, but the model's modalities are {wanted}")
    if unknown := [m for m in sensors or {} if m not in wanted]:
        raise ValueError(f"sensors names {', '.join(unknown)}, but the model's modalities are {wanted}")
    own = {m: theirs.sensors.get(m, m) for m in wanted}
    default_bands = {m: theirs.bands[m] if m in theirs.bands else (inputs or {})[m].bands for m in wanted}
    mine = {m: get_sensor(own[m]) for m in wanted}
    for m, sensor in (sensors or {}).items():
        mine[m] = register_sensor(sensor) if isinstance(sensor, Sensor) else get_sensor(sensor)
    names = {
        m: tuple(default_bands[m]) if s.name == own[m] else tuple(band.name for band in s.bands)
        for m, s in mine.items()
    }
    names |= {m: mine[m].canonical(given) for m, given in (bands or {}).items()}
    changes: dict[str, Any] = {
        "modalities": wanted,
        "sensors": {m: sensor.name for m, sensor in mine.items()},
        "bands": names,
    }
    if patch_size is not None:
        if not hasattr(theirs, "patch_size"):
            raise ValueError(f"patch_size={patch_size}: this architecture has no patches; leave it out")
        changes["patch_size"] = patch_size
    if image_size is not None:
        changes["image_size"] = image_size
    return theirs.requested(**changes) if inputs is None else replace(theirs, **changes)
