"""The configuration of networks with one input: any of the sensors, s2 by default."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from rsbackbones.input_spec import SINGLE_SENSOR_INPUTS
from rsbackbones.models.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class SingleSensorConfig(ModelConfig):
    """The configuration of a network with one modality.

    ``bands`` may leave out the modality; it then has those of its default input contract.

    Raises:
        ValueError: there is not one modality, or as :class:`ModelConfig`.
    """

    image_size: int | tuple[int, int] = 224
    modalities: tuple[str, ...] = ("s2",)
    bands: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.bands, Mapping):
            default = {modality: spec.bands for modality, spec in SINGLE_SENSOR_INPUTS.items()}
            object.__setattr__(self, "bands", {**default, **self.bands})
        super().__post_init__()
        if len(self.modalities) != 1:
            raise ValueError(f"this network has one modality, got {', '.join(self.modalities)}")
