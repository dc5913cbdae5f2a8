"""The comparison of S4 on real series: which tiles are trained on, the anchor, and the page."""

import numpy as np
import pytest

from benchmarks.s4 import forest, page, some_tiles
from rsbackbones.data.labelled.dataset import LabelledDataset


def tiles():
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, 2, (8, 8)) for _ in range(12)]

    def read(index):
        x = rng.normal(size=(5, 2, 8, 8)) + 5 * labels[index]
        return {"s1": x, "label": labels[index]}

    return LabelledDataset(
        name="tiles", task="pixels", classes=("a", "b"), bands={"s1": ("VV", "VH")},
        ids=tuple("abcdefghijkl"), splits={"train": np.arange(8), "test": np.arange(8, 12)}, labels=None,
        read=read, digest="", series=True,
    )  # fmt: skip


def test_fewer_tiles_are_part_of_more():
    one, four = (set(some_tiles(tiles(), count, 3).splits["train"].tolist()) for count in (1, 4))
    assert (len(one), len(four)) == (1, 4)
    assert one < four
    assert set(some_tiles(tiles(), 4, 4).splits["train"].tolist()) != four


def test_the_anchor_sees_what_shows_over_time():
    assert forest(some_tiles(tiles(), 4, 0), "s1", 0) > 0.95


def test_the_page_has_both_steps_of_both_networks():
    rows = [
        {"sensor": "s1", "tiles": 4, "weights": name, "last": [low, low + 0.1], "chosen": [low, low + 0.2]}
        for name, low in (("pretrained", 0.5), ("random", 0.4))
    ]
    made = {"machine": "M", "torch": "T", "rsbackbones": "R", "commit": "C"}
    record = {
        "environment": made, "seeds": [0, 1], "steps": 9, "rows": rows,
        "pretraining": {"s1": {"steps": 300, "seconds": 90.0}},
        "forest": [{"sensor": "s1", "tiles": 4, "miou": [0.6, 0.6]}],
        "ablations": [{
            "sensor": "s1", "name": "contrast alone", "last": [0.5, 0.6], "chosen": [0.6, 0.6],
            "seconds": [60, 90],
        }],
    }  # fmt: skip
    text = page(record)
    assert "| s1 | 4 | 55.0 ± 7.1 | 45.0 ± 7.1 | 60.0 ± 14.1 | 50.0 ± 14.1 | 60.0 ± 0.0 |" in text
    assert "s1: 300 steps, 1.5 minutes" in text
    assert "| s1 | contrast alone | 55.0 ± 7.1 | 60.0 ± 0.0 | 1.5 |" in text
    record["rows"] = rows[:1]
    with pytest.raises(KeyError):
        page(record)
