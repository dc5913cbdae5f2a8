"""Runs of recipes that a comparison trains, and the frozen features of their encoders."""

import argparse
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import rsbackbones as rsb
from rsbackbones.data.labelled.dataset import LabelledDataset
from rsbackbones.eval.encode import encode
from rsbackbones.eval.feature_source import model_for
from rsbackbones.eval.feature_table import FeatureTable
from rsbackbones.files.atomic import write_text
from rsbackbones.train import Recipe, pretrain
from rsbackbones.train.export import export


def measured(
    measure: Callable[[Path, Path], dict[str, Any]], record: Path, description: str | None
) -> dict[str, Any]:
    """Return a comparison's record, measured first if the command line names a folder with ``--output``."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="train and measure; what is done so far is kept there")
    options = parser.parse_args()
    if options.output:
        found = measure(Path(os.environ["RSB_DATA"]), options.output)
        write_text(record, json.dumps(found, indent=1) + "\n")
    elif not record.exists():
        parser.error(f"there is no {record} yet: measure first, with --output DIR")
    read: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    return read


def train(recipe: Recipe) -> None:
    """Train a run, or what is left of it. A signal ends the comparison; the same command goes on."""
    if pretrain(recipe).status == "stopped":
        raise SystemExit("stopped; the same command goes on from there")


def weights_of(run: Path, architecture: str) -> dict[str, Any]:
    """Return the weights' file, the steps and the seconds of a finished run; export it if it is not yet."""
    to = run / "weights"
    if not to.exists():
        export(run, to, tag="t")
    told = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return {
        "file": str(to / f"{architecture}.t.safetensors"),
        "steps": told["step"],
        "seconds": _seconds(run),
    }


def _seconds(run: Path) -> float:
    """Return how long the steps of a run took, by its log: the summary is of its last process alone."""
    batch = json.loads((run / "recipe.json").read_text(encoding="utf-8"))["recipe"]["batch_size"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [0, *(line["step"] for line in lines)]
    return float(
        sum(
            (step - before) * batch / line["samples_per_s"]
            for before, step, line in zip(steps, steps[1:], lines, strict=False)
        )
    )


def trained(
    architecture: str, runs: Mapping[int, dict[str, Any]], data: LabelledDataset, seed: int
) -> rsb.Backbone:
    """Return the model that the run of a seed gave, for a set."""
    return model_for(data, architecture, checkpoint=Path(runs[seed]["file"]))


def features_of(
    architecture: str,
    runs: Mapping[int, dict[str, Any]],
    how: Mapping[str, Any],
    data: LabelledDataset,
    seed: int,
) -> FeatureTable:
    """Return the features that the run of a seed gives of a set."""
    return encode(trained(architecture, runs, data, seed), data, **how)


def scores_of(found: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Return the set's metric in percent by source and column (stream and protocol), one for each seed."""
    scores: dict[str, dict[str, list[float]]] = {}
    for row in found["rows"]:
        column = f"{row['stream']}, {row['protocol']}"
        score = 100 * row["metrics"][found["metric"]]
        scores.setdefault(row["source"], {}).setdefault(column, []).append(score)
    return scores
