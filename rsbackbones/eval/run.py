"""An evaluation: every protocol over every stream of every subject, each written down when it is done.

A killed run goes on: features come from their cache, and a finished protocol from its file under ``parts``.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from rsbackbones.data.labelled.dataset import LabelledSet, Task
from rsbackbones.eval.bootstrap import intervals
from rsbackbones.eval.encoded import Encoded
from rsbackbones.eval.kmeans import kmeans
from rsbackbones.eval.knn import NEIGHBOURS, knn
from rsbackbones.eval.logistic import logistic
from rsbackbones.eval.metrics import headline, metrics_of
from rsbackbones.eval.outcome import Outcome
from rsbackbones.eval.parts import kept, split_digest
from rsbackbones.eval.probe import probe
from rsbackbones.eval.sparse import sparse
from rsbackbones.eval.subject import Subject
from rsbackbones.eval.sweep import Kind, Progress
from rsbackbones.files.environment import environment
from rsbackbones.files.progress import progress_bar, told_beside

# The statistics of the bands, each of another magnitude, go to logistic regression (standardized) only.
PROTOCOLS = ("knn", "kmeans", "linear", "mlp", "sparse", "logistic")


@dataclass(frozen=True)
class Job:
    """What decides a row: the digests of the features and of the split, and what is done with them."""

    features: str
    split: str
    subject: str
    stream: str
    protocol: str
    seed: int
    draws: int
    ks: Sequence[int] | Literal["all"] | None = None  # of sparse probes


def evaluate(
    protocols: Sequence[str],
    subjects: Sequence[Subject],
    open_set: Callable[[int], LabelledSet],
    out: Path,
    *,
    seeds: Sequence[int] = (0,),
    streams: Sequence[str] | None = None,
    draws: int = 1000,
    sparse_k: Sequence[int] | Literal["all"] | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """Run the protocols and return their rows; see :func:`rsbackbones.eval.report.write_report`.

    Args:
        protocols: of :data:`PROTOCOLS`.
        subjects: what gives features.
        open_set: seed -> the set, split by that seed where the data states no split.
        out: the folder of what is done so far.
        seeds: of splits, probes, clusters and random weights.
        streams: of every subject; ``a+b`` puts two beside each other. Default: all, and all together.
        draws: of the bootstrap.
        sparse_k: of sparse probes the numbers of dimensions beside 1, or ``all``; default: powers of two.
        device: where probes are trained, see :func:`rsbackbones.device.choose_device`; the other protocols
            are numpy's and scikit-learn's.
        progress: show bars.

    Raises:
        ValueError: an unknown protocol or stream, or data that a protocol cannot take.
    """
    if unknown := [p for p in protocols if p not in PROTOCOLS]:
        raise ValueError(f"unknown protocol {', '.join(unknown)}; there are {', '.join(PROTOCOLS)}")
    if not protocols or not subjects or not seeds:
        raise ValueError("name at least one protocol, one subject and one seed")
    if any(subject.statistics for subject in subjects):
        protocols = list(dict.fromkeys([*protocols, "logistic"]))  # what they are compared by
    parts = out / "parts"
    rows: list[dict[str, Any]] = []
    with progress_bar(len(seeds) * len(subjects), 0, enabled=progress, unit="subject") as bar:
        for seed in seeds:
            data = open_set(seed)
            _check(data, protocols)
            split = split_digest(data)
            for subject in subjects:
                encoded = subject.features(data, seed)
                for stream in streams_of(encoded, streams):
                    for protocol in ("logistic",) if subject.statistics else protocols:
                        what = f"{subject.name}, {stream}: {protocol}"
                        bar.set_postfix_str(what)
                        told = told_beside(bar, what)
                        job = Job(encoded.key, split, subject.name, stream, protocol, seed, draws)
                        if protocol == "sparse" and sparse_k is not None:
                            job = replace(job, ks=sparse_k if sparse_k == "all" else sorted({1, *sparse_k}))
                        stated = {name: value for name, value in asdict(job).items() if value is not None}
                        rows.append(kept(parts, stated, partial(_row, encoded, data, job, told, device)))
                bar.update()
    return described(open_set(seeds[0]), seeds) | {"rows": rows}


def _check(data: LabelledSet, protocols: Sequence[str]) -> None:
    """Refuse before anything is encoded what could not be scored."""
    if lacking := [name for name in ("train", "test") if name not in data.splits]:
        raise ValueError(f"{data.name} has no split {' and '.join(lacking)}; it has {', '.join(data.splits)}")
    if data.task == "multilabel" and "kmeans" in protocols:
        raise ValueError(
            f"{data.name} has several labels per image, and K-means needs one class of each: leave kmeans out"
        )


def described(data: LabelledSet, seeds: Sequence[int]) -> dict[str, Any]:
    """Return what a record says of the data."""
    return {
        "task": data.task,
        "metric": headline(data.task, data.classes),
        "data": {"name": data.name, "digest": data.digest, "classes": list(data.classes),
                 "samples": {name: len(rows) for name, rows in data.splits.items()}},
        "seeds": list(seeds),
        "environment": environment(("numpy", "scikit-learn", "timm")),
    }  # fmt: skip


def streams_of(encoded: Encoded, wanted: Sequence[str] | None) -> list[str]:
    """Return the streams to run: those asked for, or all, and all beside each other."""
    known = list(encoded.features)
    if wanted is None or known == ["bands"]:
        return known + (["+".join(known)] if len(known) > 1 else [])
    return chosen_streams(known, wanted)


def chosen_streams(known: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Return the streams that are asked for; ``a+b`` are two beside each other.

    Raises:
        ValueError: there is no such stream.
    """
    for stream in wanted:
        if unknown := [s for s in stream.split("+") if s not in known]:
            raise ValueError(
                f"there is no stream {', '.join(unknown)}; these features have {', '.join(known)}"
            )
    return list(wanted)


def _row(
    encoded: Encoded, data: LabelledSet, job: Job, told: Progress, device: str | torch.device
) -> dict[str, Any]:
    outcome = _outcome(encoded, data, job, told, device)
    task: Task = "multilabel" if outcome.target.ndim == 2 else data.task  # sparse: each class its own
    # Of a single image there is nothing to draw.
    several = outcome.groups is None or len(np.unique(outcome.groups)) > 1
    drawn = intervals(outcome, task, data.classes, seed=job.seed, draws=job.draws) if several else {}
    return {
        "metrics": metrics_of(outcome, task, data.classes),
        "intervals": drawn,
        "details": dict(outcome.details),
    }


def _outcome(
    encoded: Encoded, data: LabelledSet, job: Job, told: Progress, device: str | torch.device
) -> Outcome:
    classes, seed = len(data.classes), job.seed
    x = encoded.stream(job.stream)
    splits = {name: encoded.samples(x, data.splits[name]) for name in data.splits}
    train, test, val = splits["train"], splits["test"], splits.get("val")
    match job.protocol:
        case "knn":
            return knn(train, test, classes=classes, k=min(NEIGHBOURS, len(train)))
        case "kmeans":
            return kmeans(train, test, classes=classes, seed=seed)
        case "sparse":
            return sparse(train, test, classes=classes, ks=job.ks, progress=told)
        case "logistic":
            return logistic(train, test, classes=classes, seed=seed)
        case _:
            kind: Kind = "mlp" if job.protocol == "mlp" else "linear"
            # Within a probe classes have numbers, in what is written down their names.
            metric, named = headline(data.task, range(classes)), headline(data.task, data.classes)
            found = probe(
                train,
                test,
                val=val,
                classes=classes,
                kind=kind,
                seed=seed,
                metric=metric,
                device=device,
                progress=told,
            )
            details = {**found.details, "metric": named}
            if best := details.get("best_on_test"):
                details["best_on_test"] = {"lr": best["lr"], named: best[metric]}
            return replace(found, details=details)
