"""FoMu-SSL as small models on the pictures at hand: the bundled one, and the guidance beside its oracle.

    RSB_DATA=... python -m benchmarks.fomu --output runs/fomu    # trains, measures, writes JSON and page
    python -m benchmarks.fomu                                  # writes the page from the JSON

Two comparisons, for three seeds of the training and of random weights. `fomu_resnet10t` is MoCo-v2 from
random weights, beside its untrained network, band statistics and `croma_vit_tiny`. `fomu_lite0` begins with
its oracle (ImageNet) and trains at equal steps without guidance, guided on pictures, and guided on pictures
and radar; beside them are the oracle, and the oracle with the running statistics of the training pictures,
which MoCo changes, too. The second phase is on Sentinel-2 and Sentinel-1 pairs.

Frozen features on the held-out pictures of EuroSAT RGB and UC Merced (benchmarks/heldout.py), on which
nothing was trained or selected; the probes are trained on the other ones, those that may pretrain.
"""

import shutil
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import rsbackbones as rsb
from benchmarks.heldout import open_held_out
from benchmarks.page import mean_and_deviation
from benchmarks.trained_runs import features_of, measured, scores_of, train, weights_of
from rsbackbones.data.labelled.dataset import LabelledDataset
from rsbackbones.eval.encode import encode
from rsbackbones.eval.feature_source import FeatureSource, model_for
from rsbackbones.eval.feature_table import FeatureTable
from rsbackbones.eval.run import evaluate
from rsbackbones.files.atomic import write_text
from rsbackbones.files.environment import environment
from rsbackbones.files.markdown import markdown_table
from rsbackbones.train import RECIPES, Recipe, apply_overrides
from rsbackbones.train.objectives.guidance import load_oracle
from rsbackbones.train.objectives.oracle_files import WHEEL

ROOT = Path(__file__).parents[1]
RECORD, PAGE = ROOT / "benchmarks" / "fomu.json", ROOT / "benchmarks" / "fomu.md"
SEEDS = (0, 1, 2)
BUNDLED, GUIDED, CROMA = "fomu_resnet10t", "fomu_lite0", "croma_vit_tiny.samples"
# By the name of the list of held-out pictures.
NAMES = {"eurosat_rgb": "EuroSAT RGB", "ucmerced": "UC Merced"}
SETS = {BUNDLED: ("eurosat_rgb", "ucmerced"), GUIDED: ("eurosat_rgb",)}
PROTOCOLS = ("knn", "logistic")
STEPS = (200, 100)  # of the two phases
METHODS: dict[str, dict[str, Any]] = {
    "MoCo": {"objective.guidance.rgb": 0, "objective.guidance.sar": 0},
    "MoCo + RGB": {"objective.guidance.sar": 0},
    "MoCo + RGB + SAR": {},  # without radar in the first phase, which is that of MoCo + RGB
}


def recipe_of(model: str, seed: int, data: Path, out: Path, **changes: Any) -> Recipe:
    """Return the recipe of a run."""
    run = {"data.root": str(data), "output": str(out), "seed": seed, "data.workers": 0, "log_every": 10}
    return apply_overrides(RECIPES[model], run | changes)


def train_bundled(data: Path, out: Path, seeds: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Train `fomu_resnet10t` if it is not there yet; return the runs by seed."""
    made = {}
    for seed in seeds:
        run = out / f"{BUNDLED}_{seed}"
        train(recipe_of(BUNDLED, seed, data, run))
        made[seed] = weights_of(run, BUNDLED)
    return made


def train_guided(
    data: Path, out: Path, seeds: Sequence[int], steps: tuple[int, int]
) -> dict[str, dict[int, dict[str, Any]]]:
    """Train `fomu_lite0` with and without guidance, what is not there yet; return by method and seed."""
    made: dict[str, dict[int, dict[str, Any]]] = {}
    for seed in seeds:
        for method, changes in METHODS.items():
            run = out / f"{method.replace(' + ', '_').lower()}_{seed}"
            same = out / f"moco_rgb_{seed}" / "stage_1"
            if method == "MoCo + RGB + SAR" and not run.exists():
                shutil.copytree(same, run / "stage_1")
            lengths = {f"stages.{i}.steps": many for i, many in enumerate(steps)}
            train(recipe_of(GUIDED, seed, data, run, **lengths, **changes))
            made.setdefault(method, {})[seed] = weights_of(run, GUIDED)
    return made


def oracle(data: LabelledDataset, *, re_estimated: bool) -> rsb.Backbone:
    """Return the oracle, with the running statistics of ImageNet or those of a set's training pictures."""
    model = load_oracle(WHEEL, GUIDED).backbone
    if not re_estimated:
        return model
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    ready = rsb.create_preprocess(model)
    with torch.no_grad():
        for part in torch.from_numpy(data.splits["train"]).split(200):
            images = torch.stack([ready(data.read(int(i)))["rgb"] for i in part])
            model({"rgb": images})
    return model.eval()


def oracle_features(
    re_estimated: bool, how: dict[str, Any], data: LabelledDataset, seed: int
) -> FeatureTable:
    """Return the features that the oracle gives of a set; no seed matters."""
    return encode(oracle(data, re_estimated=re_estimated), data, **how)


def evaluated(
    data: Path,
    name: str,
    sources: Sequence[FeatureSource],
    out: Path,
    seeds: Sequence[int],
    sensor: str = "rgb",
) -> dict[str, dict[str, list[float]]]:
    """Return the scores of feature sources on the held-out pictures of a set, as images of a sensor."""
    open_set = cache(partial(open_held_out, data, name, sensors={sensor: sensor}))
    out.mkdir(parents=True, exist_ok=True)
    return scores_of(evaluate(PROTOCOLS, sources, lambda seed: open_set(), out, seeds=tuple(seeds)))


def measure(
    data: Path, out: Path, *, seeds: Sequence[int] = SEEDS, steps: tuple[int, int] = STEPS
) -> dict[str, Any]:
    """Train and evaluate everything."""
    bundled = train_bundled(data, out, seeds)
    guided = train_guided(data, out, seeds, steps)
    record: dict[str, Any] = {"environment": environment(), "seeds": list(seeds), "steps": list(steps)}
    record["seconds"] = {
        BUNDLED: [run["seconds"] for run in bundled.values()],
        **{method: [run["seconds"] for run in runs.values()] for method, runs in guided.items()},
    }
    how: dict[str, Any] = {"level": "image", "cache": out / "cache"}
    record[BUNDLED], record[GUIDED] = {}, {}
    for name in SETS[BUNDLED]:
        here = out / "eval" / name
        untrained = partial(
            model_for, open_held_out(data, name, sensors={"rgb": "rgb"}), BUNDLED, pretrained=False
        )
        sources = [
            FeatureSource(BUNDLED, partial(features_of, BUNDLED, bundled, how), {}),
            FeatureSource.random_init(untrained, how),
            FeatureSource.band_statistics(untrained(), how),
        ]
        croma = model_for(open_held_out(data, name), CROMA)
        record[BUNDLED][name] = evaluated(data, name, sources, here / BUNDLED, seeds) | evaluated(
            data, name, [FeatureSource.pretrained(CROMA, croma, how)], here / CROMA, seeds, "s2"
        )
    for name in SETS[GUIDED]:
        sources = [
            *(
                FeatureSource(label, partial(oracle_features, again, how), {})
                for label, again in (("oracle", False), ("oracle, statistics re-estimated", True))
            ),
            *(
                FeatureSource(method, partial(features_of, GUIDED, runs, how), {})
                for method, runs in guided.items()
            ),
        ]
        record[GUIDED][name] = evaluated(data, name, sources, out / "eval" / name / GUIDED, seeds)
    return record


def table(record: dict[str, Any], model: str) -> str:
    """Return the scores of one of the two comparisons as Markdown: one column for each protocol and set."""
    rows: dict[str, list[str]] = {}
    header = ["features"]
    for name, found in record[model].items():
        for protocol in PROTOCOLS:
            header.append(f"{NAMES[name]}: {protocol}")
            for source, scores in found.items():
                one = next((x for column, x in scores.items() if column.endswith(f", {protocol}")), None)
                rows.setdefault(source, [source]).append("" if one is None else mean_and_deviation(one))
    return markdown_table(header, list(rows.values()), "l" + "r" * (len(header) - 1))


def section(record: dict[str, Any]) -> list[str]:
    """Return the text and the table of `fomu_resnet10t`."""
    recipe, seconds = RECIPES[BUNDLED], record["seconds"][BUNDLED]
    return [
        f"`{BUNDLED}`, {recipe.epochs} epochs of EuroSAT RGB and UC Merced at {recipe.data.size} pixels,",
        f"without the held-out pictures; {mean_and_deviation([s / 60 for s in seconds])} minutes on one",
        f"thread. On held-out pictures, {len(record['seeds'])} seeds of the training and of random weights:",
        "",
        table(record, BUNDLED),
    ]


def page(record: dict[str, Any]) -> str:
    """Return benchmarks/fomu.md."""
    made, (first, second) = record["environment"], record["steps"]
    lines = [
        "# FoMu-SSL as small models",
        "",
        "Small models on the pictures at hand: no evidence about the paper's results. Frozen features of",
        "held-out pictures, on which nothing was trained or selected; top-1 in percent, mean and standard",
        f"deviation over the seeds {', '.join(map(str, record['seeds']))} of training and of random weights",
        "(the split is one). Generated by `python -m benchmarks.fomu`.",
        "",
        "## MoCo-v2 from random weights",
        "",
        *section(record),
        "",
        "## Guidance by an oracle",
        "",
        f"`{GUIDED}` from the oracle's weights: {first} steps of 64 pictures of EuroSAT RGB, then {second}",
        "of BigEarthNet pairs with VV, at 64 pixels. Training changes the running statistics to those of",
        "remote-sensing pictures; the second row is the oracle with this change alone.",
        "",
        table(record, GUIDED),
        "",
        f"{made['machine']}, torch {made['torch']}, rsbackbones {made['rsbackbones']} ({made['commit']}).",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure if a folder is named, then write the page."""
    write_text(PAGE, page(measured(measure, RECORD, __doc__)))


if __name__ == "__main__":
    main()
