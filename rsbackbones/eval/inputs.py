"""From the raw samples of a labelled set to what a model takes."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from rsbackbones.data.labelled.dataset import Array, LabelledSet
from rsbackbones.models.backbone import Backbone, unwrap_model
from rsbackbones.preprocess import preprocess_for

# Raw images by modality, [..., C, H, W], in the order and the units of their set; other keys are left alone.
Inputs = Callable[[Mapping[str, Array | Tensor]], dict[str, Tensor]]


def model_inputs(model: nn.Module, data: LabelledSet) -> Inputs:
    """Return what turns raw images of ``data`` into the inputs of ``model``.

    The model's bands are gathered from the set's by name. Values are normalized by the model's input contract
    (:func:`rsbackbones.create_preprocess`); those of the unit ``uint8_rgb`` (8-bit pictures) become value /
    255. The images that it takes are arrays or tensors [..., C, H, W] by modality, stacked or not; those of
    sensors that the model does not take, and ``"label"``, are left out. It gives float32 tensors of the same
    leading shape, on the device of the images.

    Raises:
        ValueError: the set lacks a sensor or a band of the model, or its bands are of another sensor. By what
            is returned: NaN or infinity, another number of channels, or values that cannot be in the stated
            unit.
    """
    backbone = unwrap_model(model)
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
        mine, theirs = backbone.config.sensors[modality], data.sensor(modality).name
        if mine != theirs:
            raise ValueError(
                f"{modality}: the model takes bands of {mine}, those of {data.name} are of {theirs}. Build "
                f"the model for them: create_model(..., sensors={{'{modality}': '{theirs}'}}); or, if they "
                f"are of {mine}, open the set with sensors={{'{modality}': '{mine}'}} "
                f"(--sensors {modality}={mine})"
            )
    preprocess = preprocess_for(
        backbone.inputs,
        backbone.bands,
        sensors=backbone.config.sensors,
        bands={m: data.bands[m] for m in backbone.modalities},
        units={m: data.units[m] for m in backbone.modalities if m in data.units},
    )

    def inputs(raw: Mapping[str, Array | Tensor]) -> dict[str, Tensor]:
        if missing := [m for m in backbone.modalities if m not in raw]:
            raise ValueError(
                f"{data.name}: a sample has no images of {', '.join(missing)}, which the set names"
            )
        return preprocess({m: raw[m] for m in backbone.modalities})

    return inputs


def channels_of(backbone: Backbone, modality: str, data: LabelledSet) -> list[int]:
    """Return where the model's bands of a sensor are among the set's.

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
