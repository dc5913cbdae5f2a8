"""The comparison of FoMu-SSL's small models: its runs and splits are what its page says."""

import json
from dataclasses import replace
from pathlib import Path

from benchmarks import fomu
from benchmarks.heldout import open_held_out
from rsbackbones.data.picture_source import HELD_OUT


def test_the_methods_differ_in_guidance_alone_and_two_have_one_first_phase():
    lengths = {"stages.0.steps": 4, "stages.1.steps": 2}
    phases = [
        [replace(stage, output=None) for stage in
         fomu.recipe_of(fomu.GUIDED, 0, Path("data"), Path("out"), **lengths, **changes).resolve_stages()]
        for changes in fomu.METHODS.values()
    ]  # fmt: skip
    assert phases[1][0] == phases[2][0]
    weights = [[(p.objective.guidance.rgb, p.objective.guidance.sar) for p in stages] for stages in phases]
    assert weights == [[(0, 0), (0, 0)], [(0.25, 0), (0.25, 0)], [(0.25, 0), (0.25, 0.25)]]
    for number, steps in enumerate((4, 2)):
        assert {stages[number].steps for stages in phases} == {steps}
        assert len({repr((stages[number].data, stages[number].optim)) for stages in phases}) == 1


def test_held_out_pictures_test_and_no_other_ones(real_data):
    lists = json.loads(HELD_OUT.read_text())
    for name, counts in (("eurosat_rgb", (3800, 1000)), ("ucmerced", (1260, 315))):
        data = open_held_out(real_data, name)
        train, test = ({Path(data.ids[i]).stem for i in data.splits[split]} for split in ("train", "test"))
        assert (len(train), len(test)) == counts
        assert test == set(lists[name])
        assert not train & {one for names in lists.values() for one in names}


def test_the_page_has_every_score_that_was_measured():
    record = json.loads(fomu.RECORD.read_text())
    assert fomu.PAGE.read_text() == fomu.page(record)
    for model in (fomu.BUNDLED, fomu.GUIDED):
        for found in record[model].values():
            counts = {len(scores) for of in found.values() for scores in of.values()}
            assert counts == {len(record["seeds"])}
