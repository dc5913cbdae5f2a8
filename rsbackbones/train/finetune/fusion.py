"""The model of recipe ``s4_mmf``: a frozen run makes the missing sensor, a second network sees both."""

import tempfile
from pathlib import Path

from rsbackbones.data.labelled.dataset import LabelledDataset
from rsbackbones.eval.feature_source import model_for
from rsbackbones.heads.build import dense_model
from rsbackbones.heads.dense import DenseModel
from rsbackbones.heads.fusion import FusionHead
from rsbackbones.train.engine.errors import TrainingError
from rsbackbones.train.finetune.recipe import FinetuneRecipe
from rsbackbones.train.initialize import read_run
from rsbackbones.train.objectives.s4 import S4Pretraining
from rsbackbones.zoo.saving import save_model


def build_fusion(recipe: FinetuneRecipe, data: LabelledDataset) -> DenseModel:
    """Build the model from the run ``recipe.reconstruct``. Its second network is random.

    Raises:
        TrainingError: there is no such run, it reconstructs nothing, or it reconstructs from another sensor,
            or bands, than those of the recipe and the data.
    """
    if recipe.reconstruct is None:
        raise TrainingError(
            "head=fusion needs reconstruct=RUN, a run of S4 with objective.losses=reconstruction"
        )
    run, _, objective, _ = read_run(recipe.reconstruct)
    if (
        not isinstance(objective, S4Pretraining)
        or objective.reconstruction is None
        or not objective.reconstructs
    ):
        raise TrainingError(
            f"{recipe.reconstruct} reconstructs no sensor: name a run of S4 with "
            "objective.losses=reconstruction"
        )
    sensor = objective.anchor
    if recipe.modalities not in ((), (sensor,)):
        raise TrainingError(
            f"modalities={','.join(recipe.modalities)}, and {recipe.reconstruct} reconstructs from {sensor}: "
            f"pass modalities={sensor}, or name another run"
        )
    with tempfile.TemporaryDirectory() as folder:
        file = save_model(objective.export_backbone(), Path(folder) / "backbone.safetensors")
        backbone = model_for(data, run.model, modalities=(sensor,), checkpoint=file)
    if (given := backbone.bands[sensor]) != (trained := objective.backbone.bands[sensor]):
        raise TrainingError(
            f"{recipe.reconstruct} was trained on the {sensor} bands {', '.join(trained)}; of these "
            f"{data.name} has {', '.join(given)}"
        )
    model = dense_model(
        backbone, "fusion", num_classes=len(data.classes), reconstructed=objective.reconstruction.out_channels
    )
    assert isinstance(model.head, FusionHead)
    model.head.reconstruction.load_state_dict(objective.reconstruction.state_dict())
    return model
