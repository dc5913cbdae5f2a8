"""``create_model``: build a model by name, load its weights, adapt it to the user's sensors and bands."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, overload

import torch

from rsbackbones.input_spec import InputSpec
from rsbackbones.models.backbone import Backbone
from rsbackbones.models.feature_maps import FeatureMaps
from rsbackbones.sensors import Sensor, get_sensor, register_sensor
from rsbackbones.zoo import checkpoint_files as checkpoints
from rsbackbones.zoo import hub, licenses, weights
from rsbackbones.zoo.adapt import Adaptation, check_rules
from rsbackbones.zoo.checkpoint_parts import CheckpointPart, find_part
from rsbackbones.zoo.errors import WeightsMismatchError
from rsbackbones.zoo.loading import (
    CheckpointInfo,
    adapt_input_specs,
    inspect_checkpoint,
    load_weights,
    match_model_bands,
    zero_stem_channels,
)
from rsbackbones.zoo.manifest import WeightsEntry
from rsbackbones.zoo.registry import (
    Architecture,
    find_architecture,
    override_config,
    resolve_architecture,
    resolve_untrained,
    resolve_weights,
)


@overload
def create_model(
    name: str,
    pretrained: bool = False,
    *,
    modalities: Sequence[str] | None = None,
    sensors: Mapping[str, str | Sensor] | None = None,
    bands: Mapping[str, Sequence[str]] | None = None,
    missing_bands: str = "error",
    kernel_scale: str = "count",
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
    missing_bands: str = "error",
    kernel_scale: str = "count",
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
    missing_bands: str = "error",
    kernel_scale: str = "count",
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
        name: an architecture (``croma_vit_b``), ``architecture.tag`` for specific weights, or
            ``hf-hub:ORG/NAME`` for a repository made with ``push_to_hub``. ``hf-hub:ORG/NAME@COMMIT``, with
            all 40 digits, always gives the same weights; a branch may move.
        pretrained: load and verify the weights. False initializes the model randomly.
        modalities: the inputs to build and load; default all that the weights have.
        sensors: the sensor of *your* channels, by modality, if it is not the modality's own:
            ``{"s2": "landsat_oli"}``, or your own :class:`Sensor`. The model still calls the input ``s2``.
            Its bands are then matched to the pretrained ones by wavelength, not by name.
        bands: the channel order of *your* tensors, by modality; default the pretrained bands, or all bands of
            a sensor passed in ``sensors``. Within one sensor, bands are matched by name.
        missing_bands: the rule for bands without a match in the weights: ``error``, ``nearest``, ``mean``,
            ``zero`` or ``reinit``. ``reinit_all`` re-initializes the stems of the modalities in ``bands`` and
            ``sensors``, or all stems if neither is passed. See :mod:`rsbackbones.zoo.adapt`.
        kernel_scale: the rule that keeps the scale of tokens if bands are dropped or shared: ``count``,
            ``sqrt`` or ``none``. See :mod:`rsbackbones.zoo.adapt`.
        image_size: the usual image size in pixels, or (height, width); for a ViT a multiple of the patch
            size. Later calls may use other sizes.
        patch_size: a patch size in pixels other than the pretrained one; patch embeddings are resized
            (:func:`rsbackbones.zoo.adapt.resize_kernel`). ``image_size`` must be a multiple of it.
        pad: pad images whose sides are not multiples of ``Backbone.size_multiple``, instead of raising an
            error; see ``Backbone.pad``.
        num_classes: add a linear head if greater than 0. It is newly initialized, unless ``checkpoint`` holds
            a head with the same number of classes. ``None`` keeps the head of ``checkpoint``.
        features_only: return a model whose output is a list of feature maps; see ``FeatureMaps``.
        out_indices, stream: for ``features_only``: the stages to return, and their stream.
        checkpoint: a local ``.safetensors`` or ``.pt`` file, or a folder made by ``rsbackbones download
            --output``, instead of the Hub; with or without ``pretrained``.
        overrides: configuration fields to change. For a checkpoint without metadata they state its contents
            (``{"dim": 32}``). They cannot contradict a checkpoint with metadata; ``image_size`` then has the
            meaning of the argument of that name.

    Raises:
        ValueError: a name, sensor, band, field or value is unknown.
        WeightsError: (a ``ValueError``) the weights do not exist, cannot be fetched, differ from the pinned
            bytes, or do not fit the model; see :mod:`rsbackbones.zoo.errors`.
    """
    if features_only and num_classes:
        raise ValueError("features_only returns feature maps and has no head: leave out num_classes")
    if not features_only and (out_indices is not None or stream is not None):
        raise ValueError("out_indices and stream require features_only=True")
    check_rules(missing_bands, kernel_scale)
    repository: WeightsEntry | None = None
    if name.startswith(hub.PREFIX):
        if checkpoint is not None or not pretrained:
            raise ValueError(f"{name} names published weights: pass pretrained=True and no checkpoint")
        repository = resolve_weights(name)
        name = repository.architecture
    architecture_name, _, tag = name.partition(".")
    architecture = find_architecture(architecture_name)
    entry: WeightsEntry | None = None
    file: CheckpointPart | None = None
    if checkpoint is not None and not Path(checkpoint).expanduser().is_dir():
        if tag:
            raise ValueError(
                f"{name}: the tag names weights of the manifest, checkpoint= a file; pass one of them. "
                "A file that holds those weights gets their bands and input contract by: "
                f"rsbackbones convert FILE OUTPUT.safetensors --model {name}"
            )
        file = _open(Path(checkpoint), architecture, overrides)
    elif pretrained or checkpoint is not None:
        entry = repository or resolve_weights(name)
        folder = None if checkpoint is None else Path(checkpoint).expanduser()
        path = weights.fetch(entry, folder)
        licenses.show_notice(entry)
        file = _open(path, architecture, overrides, allow_pickle=entry.format != "rsbackbones")
    elif tag:
        raise ValueError(
            f"{name} names published weights: pass pretrained=True to load them, or leave out .{tag} for a "
            "randomly initialized model"
        )

    if repository and file:
        hub.check_contract(repository, file.metadata)
    model = _assemble(
        architecture, entry, file, modalities=modalities, sensors=sensors, bands=bands,
        missing_bands=missing_bands, kernel_scale=kernel_scale, image_size=image_size, patch_size=patch_size,
        pad=pad, num_classes=num_classes, overrides=overrides,
    )  # fmt: skip
    return FeatureMaps(model, indices=out_indices, stream=stream) if features_only else model


def create_untrained(name: str, **arguments: Any) -> Backbone:
    """Create the network of weights with random values in their place: a trial, or a baseline.

    ``name`` with a tag or a repository has the configuration, bands and input contract of those weights. The
    other arguments are those of :func:`create_model`.

    Raises:
        WeightsError: the repository cannot be read or was not made by rsbackbones.
        ValueError: as ``create_model``.
    """
    entry = resolve_untrained(name)
    if entry is None:
        model: Backbone = create_model(name, **arguments)
        return model
    return _assemble(find_architecture(entry.architecture), entry, None, **arguments)


def create_from_file(name: str, checkpoint: str | Path, **arguments: Any) -> Backbone:
    """Create a model from a file of which the user says that it holds the weights ``name``, a manifest entry.

    It has their bands and input contract. The file is not compared with their digest: its tensors may have
    been taken out of a pickle. The other arguments are those of :func:`create_model`.

    Raises:
        WeightsError: the file is damaged, or does not hold their network.
        ValueError: as ``create_model``.
    """
    entry = resolve_weights(name)
    architecture = find_architecture(entry.architecture)
    file = _open(Path(checkpoint), architecture, arguments.get("overrides"))
    model = _assemble(architecture, entry, file, **arguments)
    model.weights_entry = None
    return model


def _assemble(
    architecture: Architecture,
    entry: WeightsEntry | None,
    file: CheckpointPart | None,
    *,
    modalities: Sequence[str] | None = None,
    sensors: Mapping[str, str | Sensor] | None = None,
    bands: Mapping[str, Sequence[str]] | None = None,
    missing_bands: str = "error",
    kernel_scale: str = "count",
    image_size: int | tuple[int, int] | None = None,
    patch_size: int | None = None,
    pad: bool = False,
    num_classes: int | None = 0,
    overrides: Mapping[str, Any] | None = None,
) -> Backbone:
    """Build a model and load ``file``; without one initialize it randomly."""
    check_rules(missing_bands, kernel_scale)
    # First the configuration of the weights, then the requested one.
    changes = dict(overrides or {})
    info = inspect_checkpoint(architecture, file, entry, changes)
    if file is not None and info.is_explicit and "image_size" in changes:
        # The weights state their own size, so this can only be the size that the user plans to use.
        image_size = _single_image_size(image_size, changes.pop("image_size"))
    source_config = override_config(info.config, changes, architecture.name)
    differing = [f for f in changes if getattr(source_config, f) != getattr(info.config, f)]
    if file is not None and info.is_explicit and differing:
        where = [f.metadata["trained"] for f in fields(source_config) if f.name in differing and f.metadata]
        raise WeightsMismatchError(
            f"overrides cannot contradict the weights in {file.path}: they have "
            + ", ".join(f"{f} {getattr(info.config, f)}" for f in differing)
            + " (to adapt them use bands=, sensors= (--sensors), modalities= or patch_size=)"
            + "".join(f"; {hint}" for hint in where)
        )
    # Pretrained weights fix the modalities; a random model may have any that its family supports.
    more = info.inputs if file is None else None
    target_config = _requested_config(source_config, modalities, sensors, bands, image_size, patch_size, more)
    classes = info.num_classes if num_classes is None else num_classes
    build = architecture.family.build
    # A random model has weights for any band, but its input contract may lack statistics for one.
    missing_bands = "reinit" if file is None and missing_bands == "error" else missing_bands
    mappings = match_model_bands(
        source_config,
        target_config,
        missing_bands,
        kernel_scale,
        requested={*(sensors or {}), *(bands or {})},
        inputs=info.inputs,
    )
    with torch.inference_mode(False):  # parameters created in inference mode cannot be trained
        if file is None:
            model: Backbone = build(target_config, num_classes=classes)
            _check_contract(model, architecture.name)
            zero_stem_channels(model, mappings)
        else:
            with torch.device("meta"):
                model = build(target_config, num_classes=classes)
            _check_contract(model, architecture.name)
            model.adaptation = load_weights(model, file, info, source_config, architecture, entry, mappings)
    model.architecture = architecture.name
    model.inputs = adapt_input_specs(info, source_config, mappings)
    model.weights_entry = entry if file is not None else None
    # It belongs to the stored head; whoever names a size of their own takes that.
    if file is not None and classes == info.num_classes and image_size is None:
        model.input_size = info.input_size
    model.pad = pad
    model.eval()
    return model


def _check_contract(model: Backbone, name: str) -> None:
    """Check the streams and stems of a newly built model.

    Raises:
        ValueError: streams end in different maps, or two modalities share a stem.
    """
    last = {stream: model.final(stream)[:2] for stream in model.stream_inputs}
    if len(set(last.values())) > 1:
        raise ValueError(
            f"{name}: the final maps of all streams must have the same channels and stride, got {last}"
        )
    owner: dict[str, str] = {}
    for modality in model.modalities:
        weight = model.stem(modality).weight
        other = owner.setdefault(weight, modality)
        if other != modality:
            raise ValueError(
                f"{name}: the stems of {other} and {modality} have one weight, {weight}. Bands are adapted "
                "modality by modality, so each needs a weight of its own. For early fusion add the outputs "
                "of one convolution per modality: the sum is that of one convolution over all bands"
            )


def plan_adaptation(
    name: str,
    *,
    sensors: Mapping[str, str | Sensor] | None = None,
    bands: Mapping[str, Sequence[str]] | None = None,
    missing_bands: str = "error",
    kernel_scale: str = "count",
    checkpoint: str | Path | None = None,
) -> Adaptation:
    """Return how ``create_model`` would adapt the bands of weights, without fetching or reading the weights.

    The arguments are those of :func:`create_model`. Only the metadata of a ``checkpoint`` is read; without
    metadata, its bands are assumed to be the architecture's defaults.

    Raises:
        ValueError: as ``create_model``.
    """
    _, info = _inspect(name, True, checkpoint)
    source_config = info.config
    target_config = _requested_config(source_config, None, sensors, bands, None, None)
    requested = {*(sensors or {}), *(bands or {})}
    mappings = match_model_bands(
        source_config, target_config, missing_bands, kernel_scale, requested=requested, inputs=info.inputs
    )
    return Adaptation(bands=tuple(mapping for mapping in mappings if mapping))


def weights_config(
    name: str,
    pretrained: bool = False,
    *,
    checkpoint: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Any:
    """Return the configuration of the weights that ``create_model`` would load, without loading them.

    Without ``pretrained``, a tag or repository in ``name`` states it all the same (:func:`create_untrained`).
    It has their modalities, and the bands and sensor of each modality. The arguments are those of
    :func:`create_model`.

    Raises:
        ValueError: a name or field is unknown, the weights do not exist, or their metadata is damaged.
    """
    architecture, info = _inspect(name, pretrained, checkpoint, overrides)
    return override_config(info.config, overrides or {}, architecture.name)


def _inspect(
    name: str,
    pretrained: bool,
    checkpoint: str | Path | None,
    overrides: Mapping[str, Any] | None = None,
) -> tuple[Architecture, CheckpointInfo]:
    file: CheckpointPart | None = None
    entry: WeightsEntry | None = None
    if checkpoint is not None and not Path(checkpoint).expanduser().is_dir():
        file = _open(Path(checkpoint), resolve_architecture(name), overrides)
    elif pretrained or checkpoint is not None:
        entry = resolve_weights(name)
    else:
        entry = resolve_untrained(name)
    architecture = find_architecture(entry.architecture) if entry else resolve_architecture(name)
    return architecture, inspect_checkpoint(architecture, file, entry, overrides or {})


def _open(
    path: Path,
    architecture: Architecture,
    overrides: Mapping[str, Any] | None,
    *,
    allow_pickle: bool = True,
) -> CheckpointPart:
    file = checkpoints.open_checkpoint(path.expanduser(), allow_pickle=allow_pickle)
    return find_part(file, architecture, overrides or {})


def _single_image_size(argument: Any, override: Any) -> Any:
    """Return the size passed as ``image_size=`` or in ``overrides={"image_size": ...}``; they must agree."""
    given, other = (list(x) if isinstance(x, Sequence) else x for x in (argument, override))
    if argument is not None and given != other:
        raise ValueError(
            f"image_size={argument!r} and overrides={{'image_size': {override!r}}} differ; pass one of them"
        )
    return override


def _requested_config(
    source_config: Any,
    modalities: Sequence[str] | None,
    sensors: Mapping[str, str | Sensor] | None,
    bands: Mapping[str, Sequence[str]] | None,
    image_size: int | tuple[int, int] | None,
    patch_size: int | None,
    inputs: Mapping[str, InputSpec] | None = None,
) -> Any:
    """Return ``source_config`` with the requested modalities, sensors, bands and sizes.

    ``inputs``: for a model without weights, the input contracts of all modalities that it may be built for.
    """
    requested = tuple(source_config.modalities) if modalities is None else tuple(modalities)
    known = tuple(dict.fromkeys([*source_config.modalities, *(inputs or {})]))
    if isinstance(modalities, str) or not requested or len(set(requested)) < len(requested):
        raise ValueError(f"modalities must be distinct names such as {known}, got {modalities!r}")
    if unknown := [m for m in requested if m not in known]:
        raise ValueError(
            f"unknown modality {', '.join(map(repr, unknown))}; these weights have "
            f"{', '.join(map(repr, known))}: pass modalities={known} (--modalities {','.join(known)})"
        )
    for name, given in (("bands", bands), ("sensors", sensors)):
        if not isinstance(given or {}, Mapping):
            raise ValueError(
                f"{name} must be a mapping by modality, {name}={{'{requested[0]}': ...}}, got {given!r}"
            )
    if unknown := [m for m in bands or {} if m not in requested]:
        raise ValueError(f"bands has {', '.join(unknown)}, but the model's modalities are {requested}")
    if unknown := [m for m in sensors or {} if m not in requested]:
        raise ValueError(f"sensors has {', '.join(unknown)}, but the model's modalities are {requested}")
    own = {m: source_config.sensors.get(m, m) for m in requested}
    default_bands = {
        m: source_config.bands[m] if m in source_config.bands else (inputs or {})[m].bands for m in requested
    }
    chosen = {m: get_sensor(own[m]) for m in requested}
    for m, sensor in (sensors or {}).items():
        chosen[m] = register_sensor(sensor) if isinstance(sensor, Sensor) else get_sensor(sensor)
    names = {
        m: tuple(default_bands[m]) if s.name == own[m] else tuple(band.name for band in s.bands)
        for m, s in chosen.items()
    }
    names |= {m: chosen[m].canonical(given) for m, given in (bands or {}).items()}
    changes: dict[str, Any] = {
        "modalities": requested,
        "sensors": {m: sensor.name for m, sensor in chosen.items()},
        "bands": names,
    }
    if patch_size is not None:
        if not hasattr(source_config, "patch_size"):
            raise ValueError(
                f"patch_size={patch_size}: this architecture has no patches; leave patch_size out"
            )
        changes["patch_size"] = patch_size
    if image_size is not None:
        changes["image_size"] = image_size
    return source_config.requested(**changes) if inputs is None else replace(source_config, **changes)
