"""The share of training that waits for data, measured in a real run from packed shards."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from rsbackbones.data.pack import pack
from rsbackbones.data.simulator import S1_BANDS, S2_BANDS, simulate_scene
from rsbackbones.data.source import Sample
from rsbackbones.train.engine.config import SaveOptions
from rsbackbones.train.engine.config_io import to_json
from rsbackbones.train.engine.run_dir import read_log
from rsbackbones.train.recipes import RECIPES

SIDE = 264  # pixels, as SSL4EO-S12's images
_SETTLING = 2  # steps left out at the start: the workers' own start and the first prefetches


class Scenes:
    """Simulated places at one date each, as a source of training data."""

    name = "simulated scenes"
    frames = 1
    block = 1
    notes: tuple[str, ...] = ()

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self.bands = {"s2": S2_BANDS, "s1": S1_BANDS}

    def __len__(self) -> int:
        return self.count

    def describe(self, place: int) -> str:
        """Return the seed of the scene."""
        return f"scene {self.seed + place}"

    def read(self, place: int, frame: int | None = None) -> Sample:
        """Simulate a scene; with a date's axis where no ``frame`` is named."""
        scene = simulate_scene(SIDE, SIDE, seed=self.seed + place)
        if frame is None:
            return Sample(images={"s2": scene.s2[None], "s1": scene.s1[None]})
        return Sample(images={"s2": scene.s2, "s1": scene.s1})


def measure_data_wait(
    folder: Path, *, model: str, batch_size: int, side: int, steps: int, seed: int, workers: int = 2
) -> dict[str, Any]:
    """Pack scenes into ``folder``, train on them, and return what the log says after the first steps.

    Raises:
        ValueError: the run failed; the message is what it said.
    """
    source = Scenes(2 * batch_size, seed)
    report = pack(source, folder / "packed", progress=False)
    recipe = replace(
        RECIPES[model],
        data=replace(RECIPES[model].data, root=folder / "packed", parts=(), crop=(60, 180), size=side,
                     workers=workers),
        save=SaveOptions(every=10**6, asynchronous=False), output=folder / "run", batch_size=batch_size,
        epochs=steps + _SETTLING, max_steps=steps + _SETTLING, precision="fp32", log_every=1, seed=seed,
    )  # fmt: skip
    (folder / "recipe.json").write_text(json.dumps(to_json(recipe)), encoding="utf-8")
    command = [sys.executable, "-m", "rsbackbones.train", f"recipe={folder / 'recipe.json'}"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise ValueError(f"the run for data_wait ended with {result.returncode}: {result.stderr[-2000:]}")
    lines = read_log(folder / "run")[_SETTLING:]
    seconds = [batch_size / line["samples_per_s"] for line in lines]
    waited = sum(line["data_wait"] * s for line, s in zip(lines, seconds, strict=True))
    return {
        "scenes": len(source), "pixels": SIDE, "bytes": report.bytes, "workers": workers, "steps": len(lines),
        "samples_per_s": batch_size * len(lines) / sum(seconds), "data_wait": waited / sum(seconds),
    }  # fmt: skip
