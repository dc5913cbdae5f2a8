"""An evaluation: every protocol over every stream of every feature source; finished results are cached.

A killed run resumes: features come from their cache, finished protocols from their files under ``parts``.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from rsbackbones import __version__
from rsbackbones.data.image_warnings import warning_notes
from rsbackbones.data.labelled.dataset import LabelledDataset, Task
from rsbackbones.eval.bootstrap import intervals
from rsbackbones.eval.feature_source import FeatureSource
from rsbackbones.eval.feature_table import FeatureTable
from rsbackbones.eval.fingerprint import split_digest
from rsbackbones.eval.kmeans import kmeans
from rsbackbones.eval.knn import NEIGHBORS, knn
from rsbackbones.eval.linear_probe import ProbeType, Progress
from rsbackbones.eval.logistic import logistic
from rsbackbones.eval.metrics import compute_metrics, primary_metric
from rsbackbones.eval.predictions import Predictions
from rsbackbones.eval.probe import probe
from rsbackbones.eval.sparse import sparse
from rsbackbones.files.environment import environment
from rsbackbones.files.lock import exclusive
from rsbackbones.files.progress import progress_bar, progress_message
from rsbackbones.files.resumable import cached_result

# Band statistics differ in magnitude: only logistic regression, which standardizes, is run on them.
PROTOCOLS = ("knn", "kmeans", "linear", "mlp", "sparse", "logistic")


@dataclass(frozen=True)
class Job:
    """What a result depends on: the digests of the features and of the split, and the protocol."""

    features: str
    split: str
    source: str
    stream: str
    protocol: str
    seed: int
    num_resamples: int
    ks: Sequence[int] | Literal["all"] | None = None  # of sparse probes


def evaluate(
    protocols: Sequence[str],
    sources: Sequence[FeatureSource],
    open_set: Callable[[int], LabelledDataset],
    out: str | Path,
    *,
    seeds: Sequence[int] = (0,),
    streams: Sequence[str] | None = None,
    num_resamples: int = 1000,
    sparse_k: Sequence[int] | Literal["all"] | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """Run the protocols; return their rows, and notes on the warnings that images earned.

    :func:`rsbackbones.eval.report.write_report` writes them.

    Args:
        protocols: of :data:`PROTOCOLS`.
        sources: where features come from.
        open_set: seed -> the data set, split by that seed where its files state no split.
        out: the output folder, with finished results in ``parts``.
        seeds: of splits, probes, clusters and random weights.
        streams: of every source; ``a+b`` concatenates two. Default: each, and all concatenated.
        num_resamples: bootstrap resamples.
        sparse_k: of sparse probes the numbers of dimensions beside 1, or ``all``; default: powers of two.
        device: where probes are trained, see :func:`rsbackbones.device.choose_device`; the other protocols
            are numpy's and scikit-learn's.
        progress: show bars.

    Raises:
        ValueError: an unknown protocol or stream, or data that a protocol cannot take.
    """
    if unknown := [p for p in protocols if p not in PROTOCOLS]:
        raise ValueError(f"unknown protocol {', '.join(unknown)}; there are {', '.join(PROTOCOLS)}")
    if not protocols or not sources or not seeds:
        raise ValueError("name at least one protocol, one feature source and one seed")
    if any(source.statistics for source in sources):
        protocols = list(dict.fromkeys([*protocols, "logistic"]))  # for comparison with the statistics
    out = Path(out).expanduser()
    parts = out / "parts"
    rows: list[dict[str, Any]] = []
    warned: dict[str, int] = {}
    _check(open_set(seeds[0]), protocols)
    total = len(seeds) * len(sources)
    with exclusive(out), progress_bar(total, 0, enabled=progress, unit="source") as bar:
        for seed in seeds:
            data = open_set(seed)
            _check(data, protocols)
            split = split_digest(data)
            for source in sources:
                encoded = source.features(data, seed)
                # The sources read the same images, so that a warning of several is one.
                warned |= {text: max(many, warned.get(text, 0)) for text, many in encoded.warnings.items()}
                for stream in streams_of(encoded, streams):
                    for protocol in ("logistic",) if source.statistics else protocols:
                        what = f"{source.name}, {stream}: {protocol}"
                        bar.set_postfix_str(what)
                        told = progress_message(bar, what)
                        job = Job(encoded.key, split, source.name, stream, protocol, seed, num_resamples)
                        if protocol == "sparse" and sparse_k is not None:
                            job = replace(job, ks=sparse_k if sparse_k == "all" else sorted({1, *sparse_k}))
                        stated = {name: value for name, value in asdict(job).items() if value is not None}
                        compute = partial(_row, encoded, data, job, told, device)
                        rows.append(cached_result(parts, {"version": __version__, **stated}, compute))
                bar.update()
    data = open_set(seeds[0])
    images = sum(map(len, data.splits.values()))
    return describe_data(data, seeds) | {"rows": rows, "notes": warning_notes(warned, images)}


def _check(data: LabelledDataset, protocols: Sequence[str]) -> None:
    """Refuse data that could not be scored, before anything is encoded."""
    if lacking := [name for name in ("train", "test") if name not in data.splits]:
        raise ValueError(f"{data.name} has no split {' and '.join(lacking)}; it has {', '.join(data.splits)}")
    if data.task == "multilabel" and "kmeans" in protocols:
        raise ValueError(
            f"{data.name} has several labels per image, and K-means needs one class of each: leave kmeans out"
        )


def describe_data(data: LabelledDataset, seeds: Sequence[int]) -> dict[str, Any]:
    """Return the part of a record that describes the data."""
    return {
        "task": data.task,
        "metric": primary_metric(data.task, data.classes),
        "data": {"name": data.name, "digest": data.digest, "classes": list(data.classes),
                 "samples": {name: len(rows) for name, rows in data.splits.items()}},
        "seeds": list(seeds),
        "environment": environment(("numpy", "scikit-learn", "timm")),
    }  # fmt: skip


def streams_of(encoded: FeatureTable, wanted: Sequence[str] | None) -> list[str]:
    """Return the requested streams; by default each one, and all of them concatenated."""
    known = list(encoded.dims)
    if wanted is None or known == ["bands"]:
        return known + (["+".join(known)] if len(known) > 1 else [])
    return chosen_streams(known, wanted)


def chosen_streams(known: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Return the requested streams; ``a+b`` concatenates two.

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
    encoded: FeatureTable, data: LabelledDataset, job: Job, told: Progress, device: str | torch.device
) -> dict[str, Any]:
    predictions = _run_protocol(encoded, data, job, told, device)
    task: Task = "multilabel" if predictions.target.ndim == 2 else data.task  # sparse: each class its own
    resamples = {"seed": job.seed, "num_resamples": job.num_resamples}
    return {
        "metrics": compute_metrics(predictions, task, data.classes),
        "intervals": intervals(predictions, task, data.classes, **resamples),
        "details": dict(predictions.details),
    }


def _run_protocol(
    encoded: FeatureTable, data: LabelledDataset, job: Job, told: Progress, device: str | torch.device
) -> Predictions:
    classes, seed = len(data.classes), job.seed
    table = encoded.stream(job.stream)
    splits = {name: table.of_images(images) for name, images in data.splits.items()}
    train, test, val = splits["train"], splits["test"], splits.get("val")
    match job.protocol:
        case "knn":
            return knn(train, test, classes=classes, k=min(NEIGHBORS, len(train)))
        case "kmeans":
            return kmeans(train, test, classes=classes, seed=seed)
        case "sparse":
            return sparse(train, test, classes=classes, ks=job.ks, progress=told)
        case "logistic":
            return logistic(train, test, classes=classes, seed=seed)
        case _:
            kind: ProbeType = "mlp" if job.protocol == "mlp" else "linear"
            # Within a probe classes have numbers, in what is written down their names.
            metric, named = primary_metric(data.task, range(classes)), primary_metric(data.task, data.classes)
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
