"""``set.json``: what a folder of series holds; see :mod:`rsbackbones.data.series_folder`."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rsbackbones.data.labelled.classes import Classes, LabelCodes
from rsbackbones.data.labelled.dataset import SPLITS
from rsbackbones.files.bounds import read_json
from rsbackbones.sensors import get_sensor
from rsbackbones.typed_fields import check_fields

SET_FILE = "set.json"
STATISTICS_FILE = "statistics.json"  # :mod:`rsbackbones.data.series_statistics`
SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class SeriesSet:
    """The content of ``set.json``."""

    schema: int = SCHEMA
    bands: Mapping[str, tuple[str, ...]]
    classes: tuple[str, ...] | Mapping[str, tuple[int, ...]] | None = None
    ignore: tuple[int, ...] = ()
    splits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ValueError(f"it is of schema {self.schema}; this version reads {SCHEMA}")
        if not self.bands:
            raise ValueError("bands must name those of one sensor or more")
        if unknown := [split for split in self.splits if split not in SPLITS]:
            raise ValueError(f"splits are {', '.join(SPLITS)}, got {', '.join(unknown)}")
        counts = Counter(name for members in self.splits.values() for name in members)
        if twice := [name for name, count in counts.items() if count > 1]:
            raise ValueError(f"splits name locations twice: {', '.join(twice[:5])}")

    @property
    def codes(self) -> LabelCodes | None:
        """The classes of the labels; ``None`` where the set has none."""
        return None if self.classes is None else LabelCodes.of(self.classes, self.ignore)


def read_set(folder: Path) -> SeriesSet:
    """Read ``set.json``.

    Raises:
        ValueError: it is missing, damaged, of another schema, or has an unknown field, band or split.
    """
    path = folder / SET_FILE
    try:
        held = read_json(path)
        lists = held.pop("splits", {}) if isinstance(held, dict) else {}  # as long as they are
        check_fields(SeriesSet, held, SET_FILE)
        if "bands" not in held:
            raise ValueError("it lacks bands")
        if not isinstance(lists, dict) or not all(
            isinstance(names, list) and all(isinstance(name, str) for name in names)
            for names in lists.values()
        ):
            raise ValueError("splits must hold a list of locations for each split")
        return SeriesSet(
            schema=held.get("schema", SCHEMA),
            bands={s: get_sensor(s).canonical(names) for s, names in held["bands"].items()},
            classes=plain_classes(held.get("classes")),
            ignore=tuple(held.get("ignore", ())),
            splits={split: tuple(names) for split, names in lists.items()},
        )
    except FileNotFoundError as error:
        raise ValueError(f"there is no {path}, which says what a folder of series holds") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def plain_classes(classes: Classes | None) -> tuple[str, ...] | dict[str, tuple[int, ...]] | None:
    """Return classes as ``set.json`` holds them."""
    if classes is None:
        return None
    LabelCodes.of(classes)
    if not isinstance(classes, Mapping):
        return tuple(str(one) for one in classes)
    members = {str(one): (held,) if isinstance(held, int) else tuple(held) for one, held in classes.items()}
    return {one: tuple(int(code) for code in held) for one, held in members.items()}
