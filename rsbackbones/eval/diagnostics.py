"""CROMA's diagnostics of a model beside the protocols: tables 7, 11 and 12.

They take a model and its images, not features, so their rows have other columns than those of
:mod:`rsbackbones.eval.run`, and a table each. Finished rows are cached in the same way.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from rsbackbones import __version__
from rsbackbones.data.labelled.crops import Size, name_of, pair
from rsbackbones.data.labelled.dataset import LabelledDataset
from rsbackbones.eval.diversity import patch_similarity, position_probing
from rsbackbones.eval.extrapolation import SIZES, extrapolate
from rsbackbones.eval.feature_source import FeatureSource
from rsbackbones.eval.fingerprint import fingerprint, split_digest
from rsbackbones.eval.invariance import invariance
from rsbackbones.eval.linear_probe import CROMA_OPTIONS, ProbeOptions, Progress
from rsbackbones.eval.metrics import primary_metric
from rsbackbones.eval.run import chosen_streams
from rsbackbones.files.lock import exclusive
from rsbackbones.files.progress import progress_bar, progress_message
from rsbackbones.files.resumable import cached_result
from rsbackbones.models.backbone import Backbone

DIAGNOSTICS = ("invariance", "patches", "positions", "extrapolation")


@dataclass(frozen=True, kw_only=True)
class DiagnosticOptions:
    """How diagnostics are run.

    Attributes:
        train_size, sizes: of ``extrapolation``, in pixels or (height, width).
        probe: of ``positions`` and ``extrapolation``.
        num_resamples: bootstrap resamples of ``extrapolation``.
        batch_size: images at a time.
        cache: a folder of features, as for :func:`rsbackbones.eval.encode.encode`.
    """

    train_size: int | Size = 120
    sizes: Sequence[int | Size] = SIZES
    probe: ProbeOptions = CROMA_OPTIONS
    num_resamples: int = 1000
    batch_size: int = 32
    cache: str | Path | None = None

    def deciding(self, name: str) -> dict[str, Any]:
        """Return the options that the numbers of a diagnostic depend on."""
        decides = {
            "positions": ("probe",),
            "extrapolation": ("train_size", "sizes", "probe", "num_resamples"),
        }
        every = asdict(self)
        return {field: every[field] for field in decides.get(name, ())}


def run_diagnostics(
    names: Sequence[str],
    sources: Sequence[FeatureSource],
    open_set: Callable[[int], LabelledDataset],
    out: str | Path,
    *,
    seeds: Sequence[int] = (0,),
    streams: Sequence[str] | None = None,
    options: DiagnosticOptions | None = None,
    progress: bool = True,
) -> dict[str, list[dict[str, Any]]]:
    """Run diagnostics and return the rows of each; see :func:`rsbackbones.eval.report.write_report`.

    A row has the keys of the protocols' rows: ``source``, ``stream``, ``protocol`` (the diagnostic),
    ``seed``, ``metrics`` (of ``extrapolation`` the task's metric by size), ``intervals`` and ``details``.

    Args:
        names: of :data:`DIAGNOSTICS`.
        sources: those that have a model are used, on the device where it is.
        open_set: seed -> the data set, split by that seed where its files state no split.
        out: the output folder, with finished results in ``parts``.
        seeds: of splits, probes and random weights.
        streams: of every model. Default: all; of ``extrapolation`` the one that all sensors feed.
        options: how they are run.
        progress: show bars.

    Raises:
        ValueError: an unknown diagnostic or stream, images of two dates, or what a diagnostic raises.
    """
    if unknown := [name for name in names if name not in DIAGNOSTICS]:
        raise ValueError(f"unknown diagnostic {', '.join(unknown)}; there are {', '.join(DIAGNOSTICS)}")
    options, out = options or DiagnosticOptions(), Path(out).expanduser()
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    built = [(source.name, source.model) for source in sources if source.model is not None]
    total = len(seeds) * len(built)
    with exclusive(out), progress_bar(total, 0, enabled=progress, unit="source") as bar:
        for seed in seeds:
            data = open_set(seed)
            if data.task == "change":
                raise ValueError(
                    f"{data.name} has images of two dates; {', '.join(names)} take single images"
                )
            for source, build in built:
                model = build(seed)
                told = progress_message(bar, "positions: epoch")
                computations = _computations(model, data, seed, options, told, progress)
                of_all = {
                    "version": __version__,
                    "features": fingerprint(model),
                    "split": split_digest(data),
                    "source": source,
                }
                for name in names:
                    for stream in _streams(name, model, streams):
                        bar.set_postfix_str(f"{source}, {stream}: {name}")
                        job = {**of_all, "stream": stream, "protocol": name, "seed": seed}
                        job["options"] = options.deciding(name)
                        compute = partial(computations[name], stream)
                        found[name].append(cached_result(out / "parts", job, compute))
                bar.update()
    return found


def _computations(
    model: Backbone,
    data: LabelledDataset,
    seed: int,
    options: DiagnosticOptions,
    told: Progress,
    progress: bool,
) -> dict[str, Callable[[str], Mapping[str, Any]]]:
    """Return by diagnostic what computes the rest of the row of a stream."""
    # These compute all streams at once; the cache serves the other streams.
    turned = cache(partial(invariance, model, data, batch_size=options.batch_size))
    alike = cache(partial(patch_similarity, model, data, batch_size=options.batch_size))

    def positions(stream: str) -> Mapping[str, Any]:
        probed = position_probing(
            model, data, streams=[stream], seed=seed, options=options.probe, batch_size=options.batch_size,
            device=model.device_and_dtype()[0], progress=told,
        )[stream]  # fmt: skip
        metrics = asdict(probed)
        lr = metrics.pop("lr")
        return _row(metrics, lr=lr)

    def extrapolation(stream: str) -> Mapping[str, Any]:
        rows = extrapolate(
            model, data, train_size=options.train_size, sizes=options.sizes, stream=stream,
            options=options.probe, seed=seed, num_resamples=options.num_resamples,
            batch_size=options.batch_size, cache=options.cache, progress=progress,
        )  # fmt: skip
        metric = primary_metric(data.task, data.classes)
        return _row(
            {name_of(row.size): row.metrics[metric] for row in rows},
            {name_of(row.size): row.intervals[metric] for row in rows if metric in row.intervals},
            metric=metric,
            train_size=pair(options.train_size),
            by_size=[asdict(row) for row in rows],
        )

    return {
        "invariance": lambda stream: _row(turned()[stream]),
        "patches": lambda stream: _row({"similarity": alike()[stream]}),
        "positions": positions,
        "extrapolation": extrapolation,
    }


def _row(
    metrics: Mapping[str, float], intervals: Mapping[str, tuple[float, float]] | None = None, **details: Any
) -> dict[str, Any]:
    return {"metrics": dict(metrics), "intervals": dict(intervals or {}), "details": details}


def _streams(name: str, model: Backbone, wanted: Sequence[str] | None) -> list[str]:
    if wanted is None:
        main = model.choose_stream(None, dict.fromkeys(model.modalities))
        return [main] if name == "extrapolation" else list(model.stream_inputs)
    streams = chosen_streams(list(model.stream_inputs), wanted)
    if name != "extrapolation" and (several := [s for s in streams if "+" in s]):
        raise ValueError(
            f"{name} takes single streams, got {', '.join(several)}; name them one by one: s2,s1"
        )
    return streams
