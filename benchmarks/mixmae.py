"""The Sentinel-2 MAE, AuxMAE and MixMAE compared at equal steps, as small models on the pairs at hand.

    RSB_DATA=... python -m benchmarks.mixmae --output runs/mixmae    # trains, measures, writes JSON and page
    python -m benchmarks.mixmae                                    # writes the page from the JSON

The recipes are `s2mae_vit_tiny`, `auxmae_vit_tiny` and `mixmae_vit_tiny`, at two lengths, for three seeds.
All see the same Sentinel-2 images equally often: in AuxMAE half of the steps belong to each task, over the
same places. Equal steps are not equal work; FLOPs are in the record. Frozen features, as in
benchmarks/results.py; a seed is that of the training, of the split and of random weights. The bands are four,
and the images of EuroSAT MS are L1C, those of the training mostly L2A.
"""

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.page import mean_and_deviation
from benchmarks.results import ROOT, SETS
from benchmarks.trained_runs import features_of, measured, scores_of, train, trained, weights_of
from rsbackbones.eval.feature_source import FeatureSource, model_for
from rsbackbones.eval.run import evaluate
from rsbackbones.files.atomic import write_text
from rsbackbones.files.environment import environment
from rsbackbones.files.markdown import markdown_table
from rsbackbones.train import RECIPES, Recipe, apply_overrides
from rsbackbones.train.engine.distributed import DistributedContext
from rsbackbones.train.pretraining import PretrainRun

RECORD, PAGE = ROOT / "benchmarks" / "mixmae.json", ROOT / "benchmarks" / "mixmae.md"
METHODS = {"S2-MAE": "s2mae_vit_tiny", "AuxMAE": "auxmae_vit_tiny", "MixMAE": "mixmae_vit_tiny"}
SEEDS = (0, 1, 2)
LENGTHS = (250, 800)
PROTOCOLS = ("knn", "linear", "logistic")
COMPARED = ("EuroSAT MS", "BigEarthNet pairs")


def recipe_of(method: str, steps: int, seed: int, data: Path, out: Path) -> Recipe:
    """Return the recipe of a run."""
    run = {"data.root": str(data), "output": str(out), "seed": seed, "data.workers": 0, "log_every": 10}
    return apply_overrides(RECIPES[METHODS[method]], {"steps": steps, **run})


def train_all(
    data: Path, out: Path, lengths: Sequence[int], seeds: Sequence[int]
) -> dict[tuple[str, int], dict[int, dict[str, Any]]]:
    """Train what is not there yet; return the runs by method and length, then by seed."""
    made: dict[tuple[str, int], dict[int, dict[str, Any]]] = {}
    for steps in lengths:
        for method in METHODS:
            for seed in seeds:
                run = out / f"{METHODS[method]}_{steps}_{seed}"
                train(recipe_of(method, steps, seed, data, run))
                made.setdefault((method, steps), {})[seed] = weights_of(run, RECIPES[METHODS[method]].model)
    return made


def forward_flops(method: str, data: Path) -> float:
    """Return the FLOPs of a forward pass of the objective per sample, the mean over its tasks."""
    recipe = recipe_of(method, 2, 0, data, Path("unused"))
    run = PretrainRun(recipe, DistributedContext(0, 1, torch.device("cpu")))
    counts: list[float] = []
    for number in range(len(run.plan.task_names)):
        batch = run.dataset.__getitems__(run.plan.batch(number)[:2])
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run.objective(batch)
        counts.append(counter.get_total_flops() / len(batch))
    return float(sum(counts) / len(counts))


def measure(
    data: Path,
    out: Path,
    *,
    lengths: Sequence[int] = LENGTHS,
    seeds: Sequence[int] = SEEDS,
    sets: Sequence[str] = COMPARED,
    protocols: Sequence[str] = PROTOCOLS,
) -> dict[str, Any]:
    """Train and evaluate everything."""
    made = train_all(data, out, lengths, seeds)
    record: dict[str, Any] = {"environment": environment(), "seeds": list(seeds), "sets": {}}
    record["forward_flops"] = {method: forward_flops(method, data) for method in METHODS}
    record["runs"] = [
        {"method": method, "steps": steps, "seconds": [run["seconds"] for run in runs.values()]}
        for (method, steps), runs in made.items()
    ]
    for name in sets:
        open_set = cache(partial(SETS[name].open, data))
        held = open_set(seeds[0])
        how: dict[str, Any] = {"level": "image" if held.labels is not None else "patch"}
        sources = []
        for (method, steps), runs in made.items():
            architecture = RECIPES[METHODS[method]].model
            label = f"{method}, {steps} steps"
            sources.append(FeatureSource(label, partial(features_of, architecture, runs, how), {}))
        like = trained("auxmae_vit_tiny", made["AuxMAE", lengths[0]], held, seeds[0])
        alike: dict[str, Any] = {"modalities": like.modalities, "bands": like.bands, "pretrained": False}
        sources.append(FeatureSource.random_init(partial(model_for, held, "auxmae_vit_tiny", **alike), how))
        sources.append(FeatureSource.band_statistics(like, how))
        here = out / "eval" / name.replace(" ", "_")
        here.mkdir(parents=True, exist_ok=True)
        found = evaluate(tuple(protocols), sources, open_set, here, seeds=tuple(seeds))
        record["sets"][name] = {"metric": found["metric"], "scores": scores_of(found)}
    return record


def page(record: dict[str, Any]) -> str:
    """Return benchmarks/mixmae.md."""
    least = min(record["forward_flops"].values())
    work = [
        [method, f"{flops / 1e6:.0f}", f"{flops / least:.1f}"]
        for method, flops in record["forward_flops"].items()
    ]
    runs = [
        [run["method"], str(run["steps"]), mean_and_deviation([s / 60 for s in run["seconds"]])]
        for run in record["runs"]
    ]
    made = record["environment"]
    lines = [
        "# S2-MAE, AuxMAE and MixMAE at equal steps",
        "",
        "Small models on the pairs at hand: no evidence about the paper's results. All see the same",
        "Sentinel-2 images equally often; equal steps are not equal work, as MixMAE encodes four times the",
        "tokens of a masked image. Frozen features, percent, mean and standard deviation over the seeds",
        f"{', '.join(map(str, record['seeds']))} of training, split and random weights. The cells of",
        "BigEarthNet are of images that all models were pretrained on, without labels. Generated by",
        "`python -m benchmarks.mixmae`.",
        "",
        markdown_table(["method", "forward MFLOPs per sample", "relative"], work, "lrr"),
        "",
        markdown_table(["method", "steps of 64", "minutes"], runs, "lrr"),
    ]
    for name, found in record["sets"].items():
        columns = list(dict.fromkeys(c for of in found["scores"].values() for c in of))
        rows = [
            [source, *(mean_and_deviation(of[c]) if c in of else "" for c in columns)]
            for source, of in found["scores"].items()
        ]
        header = ["features", *columns]
        lines += ["", f"## {name} ({found['metric']})", ""]
        lines += [markdown_table(header, rows, "l" + "r" * len(columns))]
    lines += [
        "",
        f"{made['machine']}, torch {made['torch']}, rsbackbones {made['rsbackbones']} ({made['commit']}).",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure if a folder is named, then write the page."""
    write_text(PAGE, page(measured(measure, RECORD, __doc__)))


if __name__ == "__main__":
    main()
