"""Fine-tuning from the first step to the numbers: one run, or one for every learning rate of a sweep."""

import json
from collections.abc import Mapping
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

from rsbackbones.data.image_warnings import warning_notes
from rsbackbones.data.labelled import open_labelled
from rsbackbones.data.labelled.dataset import LabelledDataset
from rsbackbones.data.labelled.splits import training_share
from rsbackbones.files.atomic import write_text
from rsbackbones.files.bounds import read_json
from rsbackbones.files.environment import environment
from rsbackbones.train.engine.config_io import from_json, to_json
from rsbackbones.train.engine.distributed import DistributedContext, StopSignal, destroy, init_distributed
from rsbackbones.train.engine.errors import TrainingError
from rsbackbones.train.engine.run_dir import RECIPE, RunDir
from rsbackbones.train.engine.trainer import Summary, Trainer
from rsbackbones.train.finetune.evaluation import evaluate
from rsbackbones.train.finetune.recipe import FinetuneRecipe
from rsbackbones.train.finetune.run import FinetuneRun, evaluations
from rsbackbones.train.finetune.samples import probe_samples
from rsbackbones.train.finetune.saved import BEST, about_finetuned, read_weights

RESULT = "result.json"


def finetune(recipe: FinetuneRecipe, data: LabelledDataset | None = None) -> dict[str, Any]:
    """Fine-tune, or go on with what is in ``recipe.output``; under torchrun every process calls this.

    Args:
        recipe: with ``output``; with ``sweep`` there is a run for every rate in a folder ``lr_RATE`` below
            it.
        data: the set; default: what ``recipe.data`` names.

    Returns:
        What ``result.json`` in ``output`` holds: metrics and intervals of the chosen epoch, the best single
        evaluation, recipe, versions, seed and hashes. Of a run that a signal or ``max_steps`` ended before
        its last step: its ``status`` and ``step`` alone, and no file.

    Raises:
        ValueError: the recipe, the data or the folder are not usable.
        TrainingError: (a ``ValueError``) as :func:`rsbackbones.train.train`.
    """
    if recipe.output is None:
        raise TrainingError("no output folder: pass output=FOLDER")
    if data is None:
        data = open_data(recipe)
    if (share := recipe.subset or recipe.share) < 1:
        data = training_share(data, share, seed=recipe.seed)
    if wrong := [m for m, sensor in recipe.sensors.items() if data.sensor(m).name != sensor]:
        raise TrainingError(
            f"sensors says that {wrong[0]} is {recipe.sensors[wrong[0]]}; {data.name} was opened as "
            f"{data.sensor(wrong[0]).name}"
        )
    out = recipe.output.expanduser()
    if recipe.sweep and (out / RECIPE).exists():
        raise TrainingError(f"{out} holds a single run; name another folder for a sweep")
    processes = init_distributed(recipe.timeout)
    runs = [(recipe, out)]
    if recipe.sweep:
        runs = [(of_rate(recipe, rate), out / f"lr_{rate:g}") for rate in recipe.rates]
    trained = []
    for one, folder in runs:
        summary, run = _train(one, folder, processes, data, probe=one is runs[0][0])
        if summary.step < summary.total_steps:
            destroy(processes)
            return {"status": summary.status, "step": summary.step, "total_steps": summary.total_steps}
        lines = processes.broadcast_from_rank0(evaluations(folder) if processes.is_main_process else None)
        trained.append((one, folder, lines, run.metric, summary))
        del run  # before the next one is built
    chosen = max(trained, key=lambda t: max(line[t[3]] for line in t[2]))
    result = _score(*chosen[:3], processes, data)
    if recipe.sweep:
        result["sweep"] = {
            f"{one.optim.base_lr:g}": max(line[metric] for line in lines)
            for one, _, lines, metric, _ in trained
        }
    if processes.is_main_process:
        write_text(out / RESULT, json.dumps(result, indent=1))
    destroy(processes)
    return result


def open_data(recipe: FinetuneRecipe, path: str | None = None) -> LabelledDataset:
    """Open the data of a recipe, or of ``path`` with its options.

    Raises:
        ValueError: there are none, or they cannot be used.
    """
    if (path := path or recipe.data) is None:
        raise TrainingError("no data: pass data=PATH")
    if unknown := [o for o in recipe.data_options if o not in signature(open_labelled).parameters]:
        raise TrainingError(
            f"unknown data_options {', '.join(unknown)}; there are "
            f"{', '.join([*signature(open_labelled).parameters][1:])}"
        )
    return open_labelled(path, **{"sensors": recipe.sensors} | recipe.data_options)


def recipe_of(folder: Path) -> FinetuneRecipe:
    """Return the recipe of a run.

    Raises:
        ValueError: the folder holds no fine-tuning run.
    """
    try:
        return from_json(read_json(folder / RECIPE)["recipe"], FinetuneRecipe)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} holds no fine-tuning run: {type(error).__name__}: {error}") from error


def of_rate(recipe: FinetuneRecipe, rate: float) -> FinetuneRecipe:
    """Return the recipe of one learning rate of a sweep."""
    return replace(recipe, sweep=False, optim=replace(recipe.optim, base_lr=rate))


def _train(
    recipe: FinetuneRecipe, folder: Path, processes: DistributedContext, data: LabelledDataset, *, probe: bool
) -> tuple[Summary, FinetuneRun]:
    with RunDir(folder, processes) as locked:
        run = FinetuneRun(recipe, processes, data)
        if probe:
            probe_samples(run.dataset, warn=processes.is_main_process)
        with StopSignal() as stop:
            return Trainer(run, locked, stop, max_steps=recipe.max_steps).fit(), run


def _score(
    recipe: FinetuneRecipe,
    folder: Path,
    lines: list[Mapping[str, Any]],
    processes: DistributedContext,
    data: LabelledDataset,
) -> dict[str, Any]:
    """Return what is reported of a finished run: its best model on the split that counts."""
    run = FinetuneRun(recipe, processes, data)
    about = about_finetuned(folder / BEST)
    read_weights(run.objective.model, folder / BEST)
    best = max(lines, key=lambda line: float(line[run.metric]))
    single = {
        "split": best["split"], "metric": run.metric, "value": best[run.metric], "epoch": best["epoch"],
        "base_lr": recipe.optim.base_lr, "of": len(lines), "optimistic": True,
        "note": "the best of all evaluations on the split that it is reported on, as the papers do",
    }  # fmt: skip
    split = "test" if recipe.select == "val" else run.split
    found = evaluate(run.objective.model, run.data, split, recipe, processes)
    metrics = found.metrics()
    entry = run.objective.backbone.weights_entry
    return {
        "status": "finished",
        "data": {"name": data.name, "digest": data.digest, "task": data.task, "classes": list(data.classes),
                 "samples": {name: len(indices) for name, indices in run.data.splits.items()}},
        "metric": run.metric,
        "chosen": {"base_lr": recipe.optim.base_lr, "epoch": best["epoch"], "step": best["step"],
                   "by": run.split, "value": best[run.metric]},
        "split": split,
        # What was chosen on a split and is reported on it.
        "optimistic": recipe.select == "paper",
        # None where a class is neither among the labels of the split nor among the predictions.
        "value": metrics.get(run.metric),
        "metrics": metrics,
        "intervals": found.intervals(recipe.seed),
        "best_single_evaluation": single,
        "notes": [*run.notes, *warning_notes(found.warnings, len(run.data.splits[split]))],
        "seed": recipe.seed,
        "weights": {"id": entry.id, "sha256": entry.sha256 or entry.sha256_prefix} if entry else None,
        "model": {"folder": str(folder / BEST), "sha256": about["sha256"]},
        "processes": processes.world_size,
        "environment": environment(),
        "recipe": to_json(recipe),
    }  # fmt: skip


def said(result: Mapping[str, Any]) -> str:
    """Return a result as the lines that a person reads."""
    if result["status"] != "finished" or "metrics" not in result:
        return (
            f"{result['status']} at step {result['step']} of {result['total_steps']}; "
            "the same command resumes the run"
        )
    chosen, single = result["chosen"], result["best_single_evaluation"]
    lines = [f"{result['data']['name']}, {result['split']} split, seed {result['seed']}:"]
    for name, value in result["metrics"].items():
        line = f"  {name:24} {100 * value:6.2f} %"
        if name in result["intervals"]:
            low, high = result["intervals"][name]
            line += f"   95 % interval {100 * low:.2f} to {100 * high:.2f}"
        lines.append(line)
    lines.append(
        f"  chosen by {chosen['by']} {result['metric']} {100 * chosen['value']:.2f} %: epoch "
        f"{chosen['epoch']:g}, base rate {chosen['base_lr']:g}"
    )
    if result["optimistic"]:
        lines.append("  optimistic: chosen on the split that it is reported on, as the papers do")
    else:
        lines.append(
            f"  the papers' way, best single evaluation on {single['split']}: {100 * single['value']:.2f} % "
            "(optimistic)"
        )
    return "\n".join([*lines, *(f"  {note}" for note in result["notes"])])
