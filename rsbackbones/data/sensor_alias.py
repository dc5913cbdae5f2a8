"""The sensors of a source renamed to a model's modalities, e.g. Landsat images feeding the ``s2`` input."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from rsbackbones.data.source import Sample, Source

T = TypeVar("T")


def rename_sensors(source: Source, sensors: Mapping[str, str]) -> Source:
    """Rename the sensors of a source to the modalities that take them; ``sensors`` is by modality.

    Images that the source has under the name of such a modality are dropped.
    """
    modalities = {sensor: m for m, sensor in sensors.items() if sensor != m}
    return RenamedSource(source, modalities) if modalities else source


class RenamedSource:
    """A source whose sensors are renamed; ``modalities`` is by sensor."""

    def __init__(self, source: Source, modalities: Mapping[str, str]) -> None:
        self.source, self.modalities = source, dict(modalities)
        self.name, self.frames = source.name, source.frames
        self.block, self.notes = source.block, source.notes
        self.bands = self._renamed(source.bands)

    def __len__(self) -> int:
        return len(self.source)

    def read(self, place: int, frame: int | None = None) -> Sample:
        """See :meth:`Source.read`."""
        sample = self.source.read(place, frame)
        return replace(
            sample,
            images=self._renamed(sample.images),
            dates=self._renamed(sample.dates),
            valid=self._renamed(sample.valid),
        )

    def describe(self, place: int) -> str:
        """See :meth:`Source.describe`."""
        return self.source.describe(place)

    def _renamed(self, held: Mapping[str, T]) -> dict[str, T]:
        new = self.modalities
        return {new.get(s, s): x for s, x in held.items() if s in new or s not in new.values()}
