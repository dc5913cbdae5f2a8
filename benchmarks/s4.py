"""S4's tiny network fine-tuned on real series, pretrained and from random weights, at equal steps.

    python examples/write_series.py $RSB_DATA --output runs/series
    RSB_DATA=... python -m benchmarks.s4 --series runs/series --output runs/s4    # trains, writes JSON, page
    python -m benchmarks.s4                                                       # writes the page

`--series` holds `places` to pretrain on (recipe `s4_unet3d_tiny`, once for each sensor of the decoder) and
`tiles`, 16 of 16 x 16 pixels with land cover in three classes: eight for training, of which 1, 4 or 8 are
used, four for validation and four for the test. Both series show one patch of 640 m: the pretraining has seen
the test pixels, without labels. A random forest on the statistics of each pixel over time is the anchor. The
ablations pretrain a network with the decoder of s2 once for each seed, and fine-tune it on four tiles.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.page import mean_and_deviation
from benchmarks.results import ROOT
from benchmarks.trained_runs import train, weights_of
from rsbackbones.data.labelled import open_labelled
from rsbackbones.data.labelled.dataset import LabelledDataset
from rsbackbones.eval.metrics import confusion, from_confusion
from rsbackbones.files.atomic import write_text
from rsbackbones.files.environment import environment
from rsbackbones.files.markdown import markdown_table
from rsbackbones.train import RECIPES as PRETRAINING
from rsbackbones.train import apply_overrides
from rsbackbones.train.engine.distributed import DistributedContext, StopSignal
from rsbackbones.train.engine.run_dir import RunDir
from rsbackbones.train.engine.trainer import Trainer
from rsbackbones.train.finetune import RECIPES
from rsbackbones.train.finetune.evaluation import evaluate
from rsbackbones.train.finetune.run import FinetuneRun
from rsbackbones.train.finetune.saved import BEST, read_weights

RECORD, PAGE = ROOT / "benchmarks" / "s4.json", ROOT / "benchmarks" / "s4.md"
MODEL = "s4_unet3d_tiny"
SENSORS = ("s1", "s2")
TILES = (1, 4, 8)
SEEDS = (0, 1, 2)
STEPS = 150
ABLATED_SENSOR, ABLATED_TILES = "s2", 4
# The rows of the paper's tables 4 and 5, and the alignment of section 5; the sensor is added to the last.
ABLATIONS: dict[str, dict[str, str]] = {
    "both losses": {},
    "contrast alone": {"objective.losses": "contrastive"},
    "reconstruction alone": {"objective.losses": "reconstruction"},
    "both losses, aligned by index": {"objective.align": "index"},
}
ALONE = DistributedContext(0, 1, torch.device("cpu"))


def pretrained(series: Path, run: Path, sensor: str, **changes: Any) -> dict[str, Any]:
    """Pretrain the network whose decoder is of ``sensor``; return its file, steps and seconds."""
    recipe = PRETRAINING[MODEL]
    own = {
        "overrides": {**recipe.overrides, "inference_modality": sensor}, "data.root": str(series / "places"),
        "data.workers": 0, "output": str(run),
    }  # fmt: skip
    train(apply_overrides(recipe, own | changes))
    return weights_of(run, MODEL)


def some_tiles(data: LabelledDataset, count: int, seed: int) -> LabelledDataset:
    """Return the set with so many of its training tiles, drawn from the seed; fewer are part of more."""
    order = np.random.default_rng(seed).permutation(data.splits["train"])
    return replace(data, splits={**data.splits, "train": np.sort(order[:count])})


def finetuned(
    data: LabelledDataset,
    run: Path,
    *,
    sensor: str,
    count: int,
    seed: int,
    checkpoint: str | None,
    steps: int,
) -> dict[str, float]:
    """Fine-tune once; return the test mIoU of the last step and of the one that the validation chose."""
    done = run / "scores.json"
    if done.exists():
        found: dict[str, float] = json.loads(done.read_text())
        return found
    start = {"pretrained": False} if checkpoint is None else {"checkpoint": checkpoint}
    recipe = apply_overrides(
        RECIPES["s4_series"],
        {
            "model": MODEL, "modalities": [sensor], "output": str(run), "seed": seed, "epochs": None,
            "steps": steps, "evaluate_every": max(1, steps // 10), "batch_size": min(4, count), "workers": 0,
            "precision": "fp32", "save.every": steps, **start,
        },
    )  # fmt: skip
    tiles = some_tiles(data, count, seed)
    with RunDir(run, ALONE) as locked, StopSignal() as stop:
        tuning = FinetuneRun(recipe, ALONE, tiles)
        if Trainer(tuning, locked, stop, max_steps=None).fit().step < steps:
            raise SystemExit("stopped; the same command goes on from there")
    model = tuning.objective.model
    scores = {"last": evaluate(model, tiles, "test", recipe, ALONE).metrics()["miou"]}
    read_weights(model, run / BEST)
    scores["chosen"] = evaluate(model, tiles, "test", recipe, ALONE).metrics()["miou"]
    write_text(done, json.dumps(scores))
    return scores


def forest(data: LabelledDataset, sensor: str, seed: int) -> float:
    """Return the test mIoU of a random forest on each pixel's statistics over time."""
    from sklearn.ensemble import RandomForestClassifier

    bands = [i for i, b in enumerate(data.bands[sensor]) if b in ("B02", "B03", "B04", "VV", "VH")]

    def pixels(split: str) -> tuple[Any, Any]:
        rows, labels = [], []
        for index in data.splits[split]:
            sample = data.read(int(index))
            x = sample[sensor][:, bands].astype(np.float32)
            x = np.where(x.any(axis=(1, 2, 3), keepdims=True), x, np.nan)  # images that are missing are zeros
            of_time = (np.nanmean(x, 0), np.nanstd(x, 0), *np.nanpercentile(x, (10, 50, 90), axis=0))
            rows.append(np.concatenate(of_time).reshape(5 * len(bands), -1).T)
            labels.append(sample["label"].ravel())
        features, targets = np.concatenate(rows), np.concatenate(labels)
        return features[targets >= 0], targets[targets >= 0]

    trees = RandomForestClassifier(300, random_state=seed, n_jobs=1).fit(*pixels("train"))
    features, targets = pixels("test")
    return from_confusion(confusion(targets, trees.predict(features), len(data.classes)))["miou"]


def measure(
    series: Path,
    out: Path,
    *,
    sensors: Sequence[str] = SENSORS,
    tiles: Sequence[int] = TILES,
    seeds: Sequence[int] = SEEDS,
    steps: int = STEPS,
) -> dict[str, Any]:
    """Train and score everything that is not there yet."""
    out.mkdir(parents=True, exist_ok=True)
    data = open_labelled(series / "tiles")
    record: dict[str, Any] = {
        "environment": environment(), "seeds": list(seeds), "steps": steps, "rows": [], "pretraining": {},
        "forest": [],
    }  # fmt: skip
    for sensor in sensors:
        weights = pretrained(series, out / f"pretrain_{sensor}", sensor)
        record["pretraining"][sensor] = {k: weights[k] for k in ("steps", "seconds")}
        for count in tiles:
            scores = [forest(some_tiles(data, count, seed), sensor, seed) for seed in seeds]
            record["forest"].append({"sensor": sensor, "tiles": count, "miou": scores})
            for name, checkpoint in (("pretrained", weights["file"]), ("random", None)):
                found = [
                    finetuned(
                        data, out / f"{sensor}_{count}_{name}_{seed}_{steps}", sensor=sensor, count=count,
                        seed=seed, checkpoint=checkpoint, steps=steps,
                    )
                    for seed in seeds
                ]  # fmt: skip
                of = {step: [one[step] for one in found] for step in ("last", "chosen")}
                record["rows"].append({"sensor": sensor, "tiles": count, "weights": name, **of})
    record["ablations"] = ablated(series, out, data, ABLATED_SENSOR, seeds=seeds, steps=steps)
    return record


def ablated(
    series: Path, out: Path, data: LabelledDataset, sensor: str, *, seeds: Sequence[int], steps: int
) -> list[dict[str, Any]]:
    """Pretrain every ablation once for each seed, and fine-tune it on four tiles."""
    single = {"objective.single": sensor, "objective.losses": "contrastive"}
    rows = []
    for name, changes in (ABLATIONS | {"contrast of two views of one sensor": single}).items():
        row: dict[str, Any] = {"sensor": sensor, "name": name, "last": [], "chosen": [], "seconds": []}
        for seed in seeds:
            run = out / f"{sensor}_{name.replace(', ', '_').replace(' ', '_')}_{seed}"
            weights = pretrained(series, run / "pretrain", sensor, seed=seed, **changes)
            scores = finetuned(
                data, run / f"tuned_{steps}", sensor=sensor, count=ABLATED_TILES, seed=seed,
                checkpoint=weights["file"], steps=steps,
            )  # fmt: skip
            for key, value in {**scores, "seconds": weights["seconds"]}.items():
                row[key].append(value)
        rows.append(row)
    return rows


def page(record: dict[str, Any]) -> str:
    """Return benchmarks/s4.md."""

    def percent(values: Sequence[float]) -> str:
        several = [100 * value for value in values]
        return mean_and_deviation(several) if len(several) > 1 else f"{several[0]:.1f}"

    rows = []
    for anchor in record["forest"]:
        where = (anchor["sensor"], anchor["tiles"])
        held = {r["weights"]: r for r in record["rows"] if (r["sensor"], r["tiles"]) == where}
        cells = [percent(held[w][s]) for s in ("last", "chosen") for w in ("pretrained", "random")]
        rows.append([anchor["sensor"], str(anchor["tiles"]), *cells, percent(anchor["miou"])])
    header = ["sensor", "tiles", "last: pretrained", "last: random", "chosen: pretrained", "chosen: random"]
    ablations = [
        [a["sensor"], a["name"], percent(a["last"]), percent(a["chosen"]), f"{max(a['seconds']) / 60:.1f}"]
        for a in record["ablations"]
    ]
    made = record["environment"]
    trained = "; ".join(
        f"{sensor}: {run['steps']} steps, {run['seconds'] / 60:.1f} minutes"
        for sensor, run in record["pretraining"].items()
    )
    return "\n".join([
        "# S4 on real series: pretrained against random weights",
        "",
        f"`{MODEL}`, fine-tuned for {record['steps']} steps by recipe `s4_series` on tiles of 16 x 16 pixels",
        "of one patch of WorldCereal, land cover in three classes; test mIoU in percent, mean and standard",
        f"deviation over the seeds {', '.join(map(str, record['seeds']))} of tiles, head and random weights.",
        "`chosen` is the step that is best on four validation tiles. One patch is no evidence about the",
        "paper's results, and where the spreads overlap there is no difference to claim. Pretraining has",
        "seen the patch, without labels. The forest sees each pixel's mean, deviation and 10/50/90",
        "percentiles over time. Generated by `python -m benchmarks.s4`.",
        "",
        markdown_table([*header, "random forest"], rows, "lr" + "r" * 5),
        "",
        f"Pretraining: {trained}.",
        "",
        "## Ablations",
        "",
        f"One pretraining of as many steps for each seed, then {ABLATED_TILES} tiles with that seed.",
        "",
        markdown_table(["sensor", "pretraining", "last", "chosen", "minutes at most"], ablations, "llrrr"),
        "",
        f"{made['machine']}, torch {made['torch']}, rsbackbones {made['rsbackbones']} ({made['commit']}).",
    ]) + "\n"  # fmt: skip


def main() -> None:
    """Measure if a folder is named, then write the page."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="train and measure; what is done so far is kept there")
    parser.add_argument("--series", type=Path, help="the folder of examples/write_series.py")
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    if options.output:
        if options.series is None:
            parser.error("--output needs --series, the folder of examples/write_series.py")
        found = measure(options.series, options.output, steps=options.steps)
        write_text(RECORD, json.dumps(found, indent=1) + "\n")
    elif not RECORD.exists():
        parser.error(f"there is no {RECORD} yet: measure first, with --series and --output")
    write_text(PAGE, page(json.loads(RECORD.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
