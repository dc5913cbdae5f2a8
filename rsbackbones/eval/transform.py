"""From the raw samples of a labelled data set to the inputs of a model."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from rsbackbones.data.date_alignment import warn_of_pairs
from rsbackbones.data.image_warnings import ImageWarnings
from rsbackbones.data.labelled.crops import Size
from rsbackbones.data.labelled.dataset import Array, LabelledDataset
from rsbackbones.data.series import DatedImages, read_series
from rsbackbones.models.backbone import Backbone, unwrap_model
from rsbackbones.preprocess import preprocess_for, resize
from rsbackbones.zoo.saving import find_dense

# Raw images by modality, [..., C, H, W], in the band order and units of their data set; ignores other keys.
Transform = Callable[[Mapping[str, Array | Tensor]], dict[str, Tensor]]
# A raw sample to its images, and the dates and masks of a series.
DatedTransform = Callable[[Mapping[str, Array]], DatedImages]


def make_transform(
    model: nn.Module,
    data: LabelledDataset,
    *,
    series: bool = False,
    size: Size | None = None,
    hides: bool = False,
) -> Transform:
    """Return the function from raw images of ``data`` to the inputs of ``model``.

    It takes arrays or tensors [..., C, H, W] by modality and returns float32 tensors of the same leading
    shape on the same device. The model's bands are gathered by name, and values are normalized by the
    model's input contract (:func:`rsbackbones.create_preprocess`). Other sensors and ``"label"`` are ignored.
    ``series``: the caller passes the dates and masks of series to the model, see :func:`dated_transform`.
    ``size``: resize the normalized images. ``hides``: the caller hides pixels from the model that are NaN in
    any sensor's result (:func:`shown_pixels`); of a ``masked`` set these are the pixels without data.

    Raises:
        ValueError: the set holds series and the caller or the model takes single images, it lacks a sensor or
            a band of the model, or its bands are of another sensor. By what is returned: NaN or infinity,
            another number of channels, or values that cannot be in the stated unit.
    """
    backbone = unwrap_model(model)
    if not series:
        check_single_images(data)
    if data.series and data.task == "change":
        raise ValueError(f"{data.name} holds series, and change is between two images: [2, C, H, W]")
    if data.series and "series" not in (backbone.consumes, getattr(find_dense(model), "consumes", None)):
        raise ValueError(
            f"{data.name} holds series, and {backbone.architecture} encodes single images: choose a model "
            "that consumes series, or for label maps head='temporal'; or open a set of single dates"
        )
    if lacking := [m for m in backbone.modalities if m not in data.bands]:
        held = tuple(m for m in backbone.modalities if m in data.bands)
        fix = f"build the model for the others: create_model(..., modalities={held})" if held else (
            "choose a model of these sensors"
        )  # fmt: skip
        raise ValueError(
            f"{data.name} has no images of {', '.join(lacking)}, which the model takes; it has "
            f"{', '.join(data.bands)}: {fix}"
        )
    for modality in backbone.modalities:
        own, given = backbone.config.sensors[modality], data.sensor(modality).name
        if own != given:
            raise ValueError(
                f"{modality}: the model takes bands of {own}, those of {data.name} are of {given}. Build "
                f"the model for them: create_model(..., sensors={{'{modality}': '{given}'}}); or, if they "
                f"are of {own}, open the set with sensors={{'{modality}': '{own}'}} "
                f"(--sensors {modality}={own})"
            )
    preprocess = preprocess_for(
        backbone.inputs,
        backbone.bands,
        sensors=backbone.config.sensors,
        bands={m: data.bands[m] for m in backbone.modalities},
        units={m: data.units[m] for m in backbone.modalities if m in data.units},
    )

    preprocess.size = size

    def transform(raw: Mapping[str, Array | Tensor]) -> dict[str, Tensor]:
        if missing := [m for m in backbone.modalities if m not in raw]:
            raise ValueError(
                f"{data.name}: a sample has no images of {', '.join(missing)}, which the set names"
            )
        images = {m: raw[m] for m in backbone.modalities}
        if hides and data.masked:
            return preprocess(images, valid=preprocess.valid_pixels(images))
        return preprocess(images)

    return transform


def shown_pixels(images: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return by modality which pixels of normalized images [..., C, H, W] are not NaN, [..., H, W]."""
    return {m: ~x.isnan().any(dim=-3) for m, x in images.items()}


def dated_transform(model: nn.Module, data: LabelledDataset) -> DatedTransform:
    """Return the function from raw samples of ``data`` to the inputs of ``model``, with dates and masks.

    Raises:
        ValueError: as :func:`make_transform`. By what is returned: as :func:`read_series`, or as the function
            of :func:`make_transform`.
    """
    transform, modalities = make_transform(model, data, series=True), unwrap_model(model).modalities

    def dated(raw: Mapping[str, Array]) -> DatedImages:
        if not data.series:
            return DatedImages(images=transform(raw))
        read = {m: read_series(raw, m) for m in modalities if m in raw}
        masks = {m: torch.from_numpy(held) for m, (_, _, held) in read.items()}
        images = transform({m: stack[held] for m, (stack, _, held) in read.items()})
        for m, mask in masks.items():
            series = images[m].new_zeros(len(mask), *images[m].shape[1:])
            series[mask] = images[m]
            images[m] = series
        dated = {m: days for m, (_, days, _) in read.items() if days is not None}
        warn_of_pairs(data.name, dated, {m: held for m, (_, _, held) in read.items()})
        return DatedImages(
            images=images,
            dates={m: torch.from_numpy(days) for m, (_, days, _) in read.items() if days is not None},
            valid={m: mask for m, mask in masks.items() if not mask.all()},
        )

    return dated


def check_single_images(data: LabelledDataset) -> None:
    """Refuse a set of series.

    Raises:
        ValueError: it is one.
    """
    if data.series:
        raise ValueError(
            f"{data.name} holds series, and features of frozen models are computed from single images: "
            "fine-tune a model that consumes series, or open a set of single dates"
        )


def load_inputs(
    data: LabelledDataset,
    index: int,
    transform: Transform,
    warned: ImageWarnings,
    size: Size | None = None,
) -> tuple[dict[str, Tensor], dict[str, Array]]:
    """Read a sample; return its inputs, resized to ``size`` where that is given, and the raw sample.

    ``warned`` records the warnings that it earns.

    Raises:
        ValueError: the sample cannot be read or used; the message names it.
    """
    with _errors_name(data, index), warned.of_image(index):
        raw = data.read(index)
        return {m: resize(x, size) for m, x in transform(raw).items()}, raw


def load_dated(
    data: LabelledDataset,
    index: int,
    transform: DatedTransform,
    warned: ImageWarnings,
    size: Size | None = None,
) -> tuple[DatedImages, dict[str, Array]]:
    """As :func:`load_inputs`, with the dates and masks of a series."""
    with _errors_name(data, index), warned.of_image(index):
        raw = data.read(index)
        inputs = transform(raw)
        return replace(inputs, images={m: resize(x, size) for m, x in inputs.images.items()}), raw


@contextmanager
def _errors_name(data: LabelledDataset, index: int) -> Iterator[None]:
    name = data.ids[index]
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{data.name}: {name}: {str(error).removeprefix(f'{name}: ')}") from error


def channels_of(backbone: Backbone, modality: str, data: LabelledDataset) -> list[int]:
    """Return the positions of the model's bands of a sensor among those of the data set.

    Raises:
        ValueError: the set lacks one.
    """
    given = data.sensor(modality).canonical(data.bands[modality])
    if lacking := [b for b in backbone.bands[modality] if b not in given]:
        raise ValueError(
            f"{modality}: the model takes {', '.join(lacking)}, which {data.name} lacks. Build the model "
            f"for its bands: create_model(..., bands={{'{modality}': {given}}})"
        )
    return [given.index(b) for b in backbone.bands[modality]]
