"""The pictures that no bundled model is pretrained or selected on: ``rsbackbones/data/held_out.json``.

``python -m benchmarks.heldout --data FOLDER`` lists them from the sample data. Of EuroSAT RGB they are the
100 pictures of highest number in each class; of EuroSAT MS all 200, which are the numbers 1 to 20 of the RGB
pictures; of UC Merced the numbers 60 to 74 of each class. Names are those of the files without suffix, as
``data.options.exclude`` and ``exclude`` of a recipe's pictures take them; ``held_out`` names the file.
:func:`open_held_out` splits a set by it.
"""

import argparse
import json
import re
import zipfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from rsbackbones.data.labelled import open_labelled
from rsbackbones.data.labelled.dataset import LabelledDataset
from rsbackbones.data.picture_source import HELD_OUT
from rsbackbones.files.atomic import write_text

ARCHIVES = {"eurosat_rgb": "eurosat_rgb_5000.zip", "ucmerced": "ucmerced_rgb128_1575.zip"}
_LAST = 100  # of each class of EuroSAT RGB
_FIRST_OF_UCM = 60


def held_out(data: Path) -> dict[str, list[str]]:
    """Return the names of the held-out pictures, by data set, from the files in ``data``."""
    rgb, ucm = (_by_class(data / ARCHIVES[name]) for name in ("eurosat_rgb", "ucmerced"))
    with np.load(data / "eurosat_ms_200.npz") as file:
        ms = sorted(map(str, file["names"]), key=_class_and_number)
    return {
        "eurosat_rgb": [name for names in rgb.values() for name in names[-_LAST:]],
        "eurosat_ms": ms,
        "ucmerced": [n for names in ucm.values() for n in names if _class_and_number(n)[1] >= _FIRST_OF_UCM],
    }


def open_held_out(data: Path, name: str, *, sensors: Mapping[str, str] | None = None) -> LabelledDataset:
    """Open a set of pictures: the held-out ones test, those that may train a bundled model train.

    Args:
        data: the folder of the sample data.
        name: ``eurosat_rgb`` or ``ucmerced``.
        sensors: as for :func:`~rsbackbones.data.labelled.open_labelled`.
    """
    found = open_labelled(data / ARCHIVES[name], sensors=sensors)
    lists: dict[str, list[str]] = json.loads(HELD_OUT.read_text(encoding="utf-8"))
    tests, left_out = set(lists[name]), {one for names in lists.values() for one in names}
    stems = [PurePosixPath(one).stem for one in found.ids]
    splits = {
        "train": np.array([i for i, stem in enumerate(stems) if stem not in left_out], np.int64),
        "test": np.array([i for i, stem in enumerate(stems) if stem in tests], np.int64),
    }
    return replace(found, splits=splits, notes=())


def _by_class(path: Path) -> dict[str, list[str]]:
    """Return the names of the pictures of a zip file by class, in order of their numbers."""
    found = defaultdict(list)
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            name = PurePosixPath(member).stem
            found[_class_and_number(name)[0]].append(name)
    return {name: sorted(found[name], key=_class_and_number) for name in sorted(found)}


def _class_and_number(name: str) -> tuple[str, int]:
    match = re.fullmatch(r"(.*?)_?(\d+)", name)
    assert match, name
    return match[1], int(match[2])


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the sample data")
    write_text(HELD_OUT, json.dumps(held_out(parser.parse_args().data), indent=0) + "\n")


if __name__ == "__main__":
    main()
