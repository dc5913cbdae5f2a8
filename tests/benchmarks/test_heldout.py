"""The committed list of held-out pictures is what the rule says."""

import json
import re

from benchmarks.heldout import held_out
from rsbackbones.data.picture_source import HELD_OUT


def test_the_list_is_that_of_the_data(real_data):
    assert json.loads(HELD_OUT.read_text()) == held_out(real_data)


def test_the_numbers_of_the_lists():
    lists = json.loads(HELD_OUT.read_text())
    assert {name: len(names) for name, names in lists.items()} == {
        "eurosat_rgb": 10 * 100, "eurosat_ms": 10 * 20, "ucmerced": 21 * 15
    }  # fmt: skip
    assert {int(name.rpartition("_")[2]) for name in lists["eurosat_ms"]} == set(range(1, 21))
    assert {int(re.sub(r"\D", "", name)) for name in lists["ucmerced"]} == set(range(60, 75))
    assert not set(lists["eurosat_rgb"]) & set(lists["eurosat_ms"])
