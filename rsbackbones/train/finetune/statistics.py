"""The statistics that a labelled data set comes with, as the input contract of a model."""

from dataclasses import replace

from rsbackbones.data.labelled.dataset import LabelledDataset
from rsbackbones.input_spec import InputSpec
from rsbackbones.models.backbone import Backbone
from rsbackbones.preprocess import preprocess_for
from rsbackbones.train.engine.errors import TrainingError


def dataset_inputs(model: Backbone, data: LabelledDataset) -> dict[str, InputSpec]:
    """Return the input contracts of a model with the mean and deviation that a data set comes with.

    Raises:
        TrainingError: it comes with none for a band of the model, or they are in another unit.
    """
    own: dict[str, dict[str, tuple[float, float]]] = {}
    stated = data.statistics() if data.statistics is not None else {}
    for m, bands in model.bands.items():
        held = stated.get(m, {})
        if lacking := [band for band in bands if band not in held]:
            raise TrainingError(
                f"statistics=dataset: {data.name} comes with no mean and deviation of {m} "
                f"{', '.join(lacking)}; use those of the weights, statistics=weights"
            )
        if (unit := model.inputs[m].unit) not in ("dn", "db"):
            raise TrainingError(
                f"statistics=dataset: those of {data.name} are of {m} in DN or dB, and the model takes "
                f"{unit or 'values of a unit that nobody states'}; use those of the weights, "
                "statistics=weights"
            )
        own[m] = {band: held[band] for band in bands}
    specs = preprocess_for(model.inputs, model.bands, sensors=model.config.sensors, statistics=own).specs
    return {m: replace(spec, statistics=f"{data.name}, as it states") for m, spec in specs.items()}
