"""S4 pretrained or not: land cover of the tiles that examples/write_series.py writes, by one sensor.

    python -m benchmarks.s4_tiles series/tiles --checkpoint weights.safetensors --output runs/s4_tiles

For every seed tiles are drawn anew: four to validate on and four to test on, which hold all classes, and the
training tiles of the rest, the first of which holds all classes. The same network is fine-tuned by the recipe
`s4_series` from the checkpoint and from random weights, for as many steps. The JSON
files have the result of every run; the table has means and standard deviations over the seeds.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from rsbackbones.data.series_folder import SeriesFolder
from rsbackbones.files.atomic import write_text
from rsbackbones.train.engine.config_io import apply_overrides
from rsbackbones.train.finetune.recipes import RECIPES
from rsbackbones.train.finetune.tune import finetune

VALIDATION, TEST = 4, 4
_FEWEST = 10  # pixels of a class, where all are needed


def draw_tiles(tiles: SeriesFolder, seed: int, count: int) -> dict[str, list[str]]:
    """Return the tiles of the splits; training tiles of a smaller ``count`` are among those of a larger."""
    codes = tiles.set.codes
    assert codes is not None
    labels = {name: codes.map(np.asarray(tiles.label(i))) for i, name in enumerate(tiles.locations)}

    def complete(names: list[str]) -> bool:
        held = np.concatenate([labels[name].ravel() for name in names])
        return all((held == k).sum() >= _FEWEST for k in range(len(codes.names)))

    rng = np.random.default_rng(seed)
    while True:
        names = rng.permutation(tiles.locations).tolist()
        val, test, train = names[:VALIDATION], names[VALIDATION:][:TEST], names[VALIDATION + TEST :]
        train.sort(key=lambda name: not complete([name]))
        if complete(val) and complete(test) and complete(train[:1]):
            return {"train": train[:count], "val": val, "test": test}


def run(
    folder: Path, output: Path, checkpoint: Path | None, *, sensor: str, count: int, seed: int, steps: int
) -> dict[str, Any]:
    """Fine-tune once and return the chosen and the last mean IoU."""
    output.mkdir(parents=True, exist_ok=True)
    tiles = draw_tiles(SeriesFolder(folder), seed, count)
    ids = output / "ids.csv"
    write_text(ids, "".join(f"{name},{split}\n" for split, names in tiles.items() for name in names))
    recipe = apply_overrides(
        RECIPES["s4_series"],
        {
            "model": "s4_unet3d_tiny", "data": str(folder), "data_options": {"ids": str(ids)},
            "modalities": [sensor], "overrides": {"inference_modality": sensor},
            "checkpoint": checkpoint and str(checkpoint), "pretrained": checkpoint is not None,
            "epochs": None, "steps": steps, "evaluate_every": max(1, steps // 10),
            "batch_size": min(4, count), "seed": seed, "precision": "fp32", "workers": 0,
            "output": str(output / "run"),
        },
    )  # fmt: skip
    result = finetune(recipe)
    return {"sensor": sensor, "tiles": count, "seed": seed, "pretrained": checkpoint is not None,
            "steps": steps, "result": result}  # fmt: skip


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__)
    parser.add_argument("tiles", type=Path)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/s4_tiles"))
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sensors", nargs="+", default=["s2", "s1"])
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    found: dict[tuple[str, int, bool], list[float]] = defaultdict(list)
    for seed in range(options.seeds):
        for sensor in options.sensors:
            for count in options.counts:
                for checkpoint in (options.checkpoint, None):
                    name = f"{sensor}_{count}_{seed}_{'pretrained' if checkpoint else 'random'}"
                    file = options.output / f"{name}.json"
                    if not file.exists():
                        made = run(
                            options.tiles, options.output / name, checkpoint, sensor=sensor, count=count,
                            seed=seed, steps=options.steps,
                        )  # fmt: skip
                        write_text(file, json.dumps(made, indent=1))
                    held = json.loads(file.read_text())["result"]
                    found[sensor, count, checkpoint is not None].append(held["metrics"]["miou"])
    print("| sensor | tiles | weights | mIoU on other tiles |\n|---|---|---|---|")
    for (sensor, count, pretrained), scores in found.items():
        kind = "S4" if pretrained else "random"
        print(f"| {sensor} | {count} | {kind} | {np.mean(scores):.3f} ± {np.std(scores):.3f} |")


if __name__ == "__main__":
    main()
