"""PASTIS-R as published (:mod:`rsbackbones.data.pastis`), with the crop of every pixel.

``ANNOTATIONS/TARGET_ID.npy`` [3, H, W]: the first channel is the crop. 0 is the background, a class; 19 is
void, and ignored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rsbackbones.data.input_files import InputFiles
from rsbackbones.data.labelled.build import build_dataset
from rsbackbones.data.labelled.classes import LabelCodes
from rsbackbones.data.labelled.dataset import LabelledDataset
from rsbackbones.data.labelled.missing import Missing
from rsbackbones.data.pastis import (
    BANDS,
    LABELS,
    METADATA,
    SPLITS,
    Orbit,
    Patch,
    find_series,
    fold_statistics,
    load,
    orbit_notes,
    read_patch,
    read_rows,
)
from rsbackbones.data.series import apart_in_time, warn_apart

_UNITS = {"s2": "dn", "s1": "db"}
CLASSES = (
    "background", "meadow", "soft_winter_wheat", "corn", "winter_barley", "winter_rapeseed", "spring_barley",
    "sunflower", "grapevine", "beet", "winter_triticale", "winter_durum_wheat", "fruits_vegetables_flowers",
    "potatoes", "leguminous_fodder", "soybeans", "orchard", "mixed_cereal", "sorghum",
)  # fmt: skip
VOID = 19


def read_pastis(
    folder: Path, *, orbit: Orbit = "ascending", ignore: Sequence[int] = (), missing: Missing
) -> LabelledDataset:
    """Open PASTIS or PASTIS-R.

    Args:
        folder: of ``metadata.geojson``.
        orbit: of the radar images; those of ``both`` are one series, in order of time.
        ignore: labels that stand for none, beside void.
        missing: the value of pixels without data. An image that holds it is missing.

    Raises:
        ValueError: a file is missing or damaged, a date cannot be read, or their number is not that of the
            images. Patch and sensor are named.
    """
    kinds = find_series(folder, orbit)
    rows = read_rows(folder)
    patches = [read_patch(folder, row, kinds) for row in rows]
    labels = [folder / LABELS / f"TARGET_{row.id}.npy" for row in rows]
    if lacking := [(row, path) for row, path in zip(rows, labels, strict=True) if not path.is_file()]:
        raise ValueError(f"{folder.name}: {lacking[0][0].id}: there is no {lacking[0][1]}")
    notes = ["void is ignored; the background is a class", *orbit_notes(kinds, orbit)]
    apart = [patch.id for patch in patches if apart_in_time(patch.days(kinds))]
    notes += warn_apart(folder.name, apart, len(patches))
    files = [
        InputFiles(plain=[*(path for path, _ in patch.series.values()), label])
        for patch, label in zip(patches, labels, strict=True)
    ]
    return build_dataset(
        name=folder.name,
        task="pixels",
        bands={m: BANDS[m] for m in kinds},
        units={m: _UNITS[m] for m in kinds},
        ids=[row.id for row in rows],
        codes=LabelCodes.of(CLASSES, (VOID, *ignore)),
        labels=None,
        splits=[SPLITS[row.fold] for row in rows],
        read=_Reader(tuple(patches), tuple(labels), kinds),
        content=[InputFiles(plain=[folder / METADATA]).facts, orbit, [each.facts for each in files]],
        files=files,
        notes=notes,
        pixel_m=10.0,
        missing=missing,
        unmarked=True,
        series=True,
        statistics=partial(fold_statistics, folder, kinds),
    )


@dataclass(frozen=True)
class _Reader:
    """Reads a patch by its number; travels to the workers of a loader by pickle."""

    patches: tuple[Patch, ...]
    labels: tuple[Path, ...]
    kinds: Mapping[str, Sequence[str]]

    def __call__(self, index: int) -> dict[str, Any]:
        patch = self.patches[index]
        images = {}
        for m, names in self.kinds.items():
            parts = [load(patch.series[kind][0]) for kind in names]
            images[m] = parts[0] if len(parts) == 1 else np.concatenate(parts)
        label = load(self.labels[index])
        return {**images, "dates": patch.days(self.kinds), "label": label[0] if label.ndim == 3 else label}
