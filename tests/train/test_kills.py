"""Kills at random moments: every checkpoint that is there is whole, and the losses are the unbroken run's.

``RSB_KILLS=20 pytest tests/train/test_kills.py`` kills more often than the suite does; RSB_SEED chooses when.
"""

import os
import random
import re
import time

import pytest

from rsbackbones.train.engine.checkpoint import finished, problem
from rsbackbones.train.pretraining import pretrain
from tests.train import fomu_setup, mixmae_setup
from tests.train.training import (
    assert_same,
    command,
    contents,
    curve,
    end,
    newest,
    run,
    small_recipe,
    start,
    steps_logged,
    wait_until,
    write_data,
)

KILLS = int(os.environ.get("RSB_KILLS", "2"))
# The tasks of AuxMAE take turns: kills at odd and even steps. FoMu is killed in each of its phases.
EVERY = {"croma": 6, "auxmae": 5, "fomu, phase 1": 5, "fomu, phase 2": 5}
WRITE = {"croma": write_data, "auxmae": mixmae_setup.write_dated, "fomu": fomu_setup.write_pictures}
BEGINNING = re.compile(r"going on from step \d+|from the start")


@pytest.mark.timeout(600 + 30 * KILLS)
@pytest.mark.parametrize("method", EVERY)
def test_kills_at_random_moments(tmp_path, method):
    chance = random.Random(int(os.environ.get("RSB_SEED", "0")))
    last = 8 * (2 * KILLS + 2)
    name, _, phase = method.partition(", phase ")
    data = WRITE[name](tmp_path / "data")

    def recipe(out, **options):
        if method == "croma":
            return small_recipe(data, out, epochs=last // 8, **options)
        if phase:
            steps = (last, 4) if phase == "1" else (4, last)
            return fomu_setup.two_phases(data, out, steps=steps, **options)
        return mixmae_setup.small_recipe(data, out, steps=last, **options)

    whole, unbroken, log = tmp_path / "run", tmp_path / "unbroken", tmp_path / "log"
    pretrain(recipe(unbroken))
    folder = "stage_1" if phase == "1" else "."
    out = whole / folder
    arguments = command(recipe(whole, save__every=EVERY[method]), tmp_path / "recipe.json")
    saves_hit = 0
    for number in range(KILLS):
        before = newest(out)
        said = len(BEGINNING.findall(log.read_text())) if log.exists() else 0
        process = start(arguments, log)
        try:
            wait_until(lambda now=said: len(BEGINNING.findall(log.read_text())) > now, process, log)
            # Every other kill while a checkpoint is being written, the others in the steps after one.
            if number % 2:
                wait_until(lambda: list((out / "checkpoints").glob("step_*.tmp")), process, log)
                time.sleep(chance.uniform(0, 0.03))
            else:
                wait_until(lambda now=before: newest(out) > now, process, log)
                lines = steps_logged(out)
                wait_until(lambda now=lines: steps_logged(out) > now, process, log)
                time.sleep(chance.uniform(0, 0.15))
        finally:
            end(process)
        saves_hit += bool(list((out / "checkpoints").glob("step_*.tmp")))
        assert all(problem(path) is None for path in finished(out / "checkpoints"))
        assert newest(out) >= before
        assert BEGINNING.findall(log.read_text())[-1] == (
            f"going on from step {before}" if before else "from the start"
        )
    run(arguments, log)
    assert newest(out) == last
    assert len(curve(out)) == last
    assert curve(out) == curve(unbroken / folder)
    assert_same(contents(out, last), contents(unbroken / folder, last))
    if phase:
        assert curve(whole) == curve(unbroken)
    print(f"{KILLS} kills, {saves_hit} of them in the middle of a save")
