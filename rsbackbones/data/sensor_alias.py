"""Images of a sensor as those of the modality that takes them: of Landsat for a model whose ``s2`` it is."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from rsbackbones.data.source import Sample, Source

T = TypeVar("T")


def rename_sensors(source: Source, sensors: Mapping[str, str]) -> Source:
    """Return a source under the names of a model whose modalities take the bands of ``sensors``.

    A source names its images after their sensor. What it has under the name of a modality that takes another
    sensor is left out.
    """
    modalities = {sensor: m for m, sensor in sensors.items() if sensor != m}
    return RenamedSource(source, modalities) if modalities else source


class RenamedSource:
    """The images of a source, with ``modalities`` in place of the names of their sensors."""

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
        taken = self.modalities
        return {taken.get(s, s): x for s, x in held.items() if s in taken or s not in taken.values()}
