"""The configuration fields shared by all families, and their checks."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self

from rsbackbones.sensors import Sensor, get_sensor


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The configuration of any network. A family adds its own fields and defaults.

    ``image_size`` is the pretraining size in pixels, or (height, width). ``bands`` are the channels of each
    modality, in order; they are bands of its sensor in ``sensors``, by default the modality's own. Lists are
    converted to tuples, so that a configuration may come from JSON.

    Raises:
        ValueError: a field has the wrong type or is out of range.
    """

    image_size: int | tuple[int, int]
    modalities: tuple[str, ...]
    bands: Mapping[str, tuple[str, ...]]
    sensors: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for each in fields(self):
            object.__setattr__(self, each.name, _lists_to_tuples(getattr(self, each.name)))
        size: Any = self.image_size
        sides = size if isinstance(size, tuple) else (size, size)
        if len(sides) != 2 or not all(is_count(side) for side in sides):
            raise ValueError(f"image_size must be a number of pixels, or (height, width), got {size!r}")
        names = self.modalities
        if not isinstance(names, tuple) or not names or len({*map(str, names)}) < len(names):
            raise ValueError(f"modalities must be distinct names such as ('s2', 's1'), got {names!r}")
        sensors = {name: self._sensor(name) for name in names}
        if not isinstance(self.bands, Mapping) or any(name not in self.bands for name in names):
            raise ValueError(f"bands must name the bands of {', '.join(map(str, names))}, got {self.bands!r}")
        bands = {name: sensor.canonical(self.bands[name]) for name, sensor in sensors.items()}
        object.__setattr__(self, "bands", bands)
        object.__setattr__(self, "sensors", {name: sensor.name for name, sensor in sensors.items()})

    @property
    def image_sides(self) -> tuple[int, int]:
        """``image_size`` as (height, width)."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else size

    def summary(self) -> str:
        """Return the network's size in a few words, for cards and reports."""
        return f"{' and '.join(self.modalities)} of {' x '.join(map(str, self.image_sides))} px"

    def min_tensors(self) -> int:
        """Return a lower bound on the number of tensors of the network.

        A file must hold at least as many, so that a small file cannot make us build a huge model.
        """
        return 1

    def takes_wavelengths(self, modality: str) -> bool:
        """Return whether the kernels of a modality are generated from wavelengths, for any bands."""
        return False

    def requested(self, **changes: Any) -> Self:
        """Return the configuration for a user's request: other sensors, bands or sizes.

        A family may override it to keep values that the weights were trained with.
        """
        return replace(self, **changes)

    def _sensor(self, modality: str) -> Sensor:
        if not isinstance(self.sensors, Mapping):
            raise ValueError(
                f"sensors must name the sensor of a modality, as in {{'s2': 'landsat_oli'}}, got "
                f"{self.sensors!r}"
            )
        try:
            own, sensor = get_sensor(modality), get_sensor(self.sensors.get(modality, modality))
        except ValueError as error:
            raise ValueError(f"modalities and sensors: {error}") from error
        if own.kind != sensor.kind:
            raise ValueError(
                f"sensors: {modality} is {own.kind} and {sensor.name} is {sensor.kind}; they cannot stand "
                "in for each other"
            )
        return sensor


def as_json(config: Any) -> dict[str, Any]:
    """Return the fields of a configuration as JSON values, with the bands of its modalities only."""
    fields = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(config).items()}
    return {**fields, "bands": {m: list(config.bands[m]) for m in config.modalities}}


def _lists_to_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists_to_tuples(held) for key, held in value.items()}
    return tuple(map(_lists_to_tuples, value)) if isinstance(value, list) else value


def is_count(value: Any) -> bool:
    """Return whether a value is a positive whole number, of a size that networks have."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 2**20
