"""Linear and MLP probes on frozen features, and the choice of the learning rate.

CROMA (section 3.1, appendix A.4.2): one linear layer, or a hidden one of 2048 with ReLU before it; AdamW with
betas 0.9 and 0.999 and weight decay 0.01, batches of 1024, five epochs of linear warm-up and a hundred along
a cosine, every learning rate of {1 ... 9}e{-4, -3, -2}, and what counts is the probe after the last epoch.
:mod:`rsbackbones.eval.linear_probe` trains them all at once.

What the paper leaves open, and what was chosen: features enter as they are, without standardizing, which the
paper does not mention (``ProbeOptions.standardize`` is for features of very different scales); layers start
as ``torch.nn.Linear`` does; float32, where the paper computes in bfloat16. The paper reports the best of the
sweep on the evaluation set. That is optimistic, so here it stands in the details, and by default the learning
rate is chosen on a validation split or on a part of the training samples.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Literal

import numpy as np
import torch

from rsbackbones.eval.feature_table import FeatureTable, check_fit, validate_splits, validate_table
from rsbackbones.eval.linear_probe import (
    CROMA_OPTIONS,
    ProbeOptions,
    Probes,
    ProbeType,
    Progress,
    train_probes,
)
from rsbackbones.eval.metrics import METRICS, compute_metric
from rsbackbones.eval.predictions import Predictions

# Of the training samples, one in so many chooses the learning rate where there is no validation split.
_HELD_OUT = 5


def probe(
    train: FeatureTable,
    test: FeatureTable,
    *,
    classes: int,
    val: FeatureTable | None = None,
    kind: ProbeType = "linear",
    seed: int = 0,
    options: ProbeOptions = CROMA_OPTIONS,
    select: Literal["val", "test"] = "val",
    metric: str | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> Predictions:
    """Train the probes of all learning rates and score ``test`` with the one that is chosen.

    Args:
        train: what they are trained on.
        test: what they are scored on.
        classes: K.
        val: chooses the learning rate. Without it a fifth of ``train`` does (:func:`hold_out`), by probes
            trained on the rest; the probe that is scored is trained on all of ``train``.
        kind: ``linear`` or ``mlp``.
        seed: of the first weights, the order of the samples, and which are held out.
        options: how they are trained.
        select: ``val``: on ``val``, as above. ``test``: the best on ``test``, as papers report it, which is
            optimistic.
        metric: decides which is best, any that :func:`compute_metric` knows; default ``top1``, of several
            labels ``map_micro``. Between equals, the lower cross-entropy decides.
        device: where the probes are trained.
        progress: called with the epochs done and those in all.

    Returns:
        The probabilities [n, K] of the chosen probe. In the details: ``lr``, ``chosen_on``, ``metric``, its
        value on ``test`` for every learning rate (``by_lr``), and the best of these (``best_on_test``), which
        is the papers' number.

    Raises:
        ValueError: samples, labels or options are not as they should be.
    """
    train, test = validate_splits(train, test, classes)
    if select not in ("val", "test"):
        raise ValueError(f"select={select!r}: expected 'val' or 'test'")
    metric = metric or METRICS[train.task][0]

    def fit(samples: FeatureTable, told: Progress | None) -> Probes:
        return train_probes(
            samples, classes=classes, kind=kind, seed=seed, options=options, device=device, progress=told
        )

    if select == "test":
        probes = fit(train, progress)
        lr, chosen_on = select_lr(probes, test, metric), "test"
    elif val is not None:
        val = validate_table("val", val, classes)
        check_fit("val", val, train)
        probes = fit(train, progress)
        lr, chosen_on = select_lr(probes, val, metric), "val"
    else:
        part, held_out = hold_out(train, seed)
        lr = select_lr(fit(part, _half(progress, 0)), held_out, metric)
        probes, chosen_on = (
            fit(train, _half(progress, 1)),
            f"{len(held_out)} of {len(train)} training samples",
        )
    by_lr = {rate: compute_metric(_predict(probes, test, rate), metric) for rate in probes.rates}
    by_lr = {rate: value for rate, value in by_lr.items() if not np.isnan(value)}
    best = max(by_lr, key=lambda rate: by_lr[rate], default=None)
    return test.predictions(
        probes.scores(test.features, lr),
        details={
            "kind": kind,
            "lr": lr,
            "chosen_on": chosen_on,
            "metric": metric,
            **({} if best is None else {"best_on_test": {"lr": best, metric: by_lr[best]}}),
            "by_lr": {f"{rate:g}": value for rate, value in by_lr.items()},
            "options": {name: value for name, value in asdict(options).items() if name != "rates"},
            "seed": seed,
        },
    )


def select_lr(probes: Probes, samples: FeatureTable, metric: str) -> float:
    """Return the learning rate whose probe is best on these samples; between equals, by cross-entropy.

    Raises:
        ValueError: there is no such metric for these labels.
    """

    def quality(rate: float) -> tuple[float, float]:
        predictions = _predict(probes, samples, rate)
        if probes.multilabel:
            right = np.where(predictions.target, predictions.scores, 1 - predictions.scores)
        else:
            right = np.take_along_axis(predictions.scores, predictions.target[:, None], axis=1)
        value = compute_metric(predictions, metric)
        # It may not exist (no sample of the class, and none predicted): then cross-entropy alone decides.
        return 0.0 if np.isnan(value) else value, float(np.log(np.maximum(right, 1e-12)).mean())

    return max(probes.rates, key=quality)


def hold_out(samples: FeatureTable, seed: int) -> tuple[FeatureTable, FeatureTable]:
    """Return four fifths of the samples and the other fifth: of every class alike, or whole groups of them.

    Raises:
        ValueError: there is one group only.
    """
    units = np.arange(len(samples))
    if samples.groups is not None:
        units = np.unique(samples.groups, return_inverse=True)[1]
    chance = np.random.default_rng(seed).permutation(units.max() + 1)
    if len(chance) < 2:
        raise ValueError(
            "without a validation split a fifth of the training images is held out, and there is only one: "
            "pass val=, or select='test'"
        )
    # Every fifth of a random order, by class where samples have one, starting at the third: a class of five
    # samples or more is in both parts.
    by_class = samples.groups is None and samples.task == "classes"
    order = np.lexsort((chance, samples.labels)) if by_class else np.argsort(chance)
    held = np.isin(units, order[min(_HELD_OUT // 2, len(order) - 1) :: _HELD_OUT])
    return samples.take(~held), samples.take(held)


def _predict(probes: Probes, samples: FeatureTable, rate: float) -> Predictions:
    return samples.predictions(probes.scores(samples.features, rate))


def _half(progress: Progress | None, number: int) -> Callable[[int, int], None] | None:
    """Report a run that is one of two as its half of both."""
    if progress is None:
        return None
    return lambda done, total: progress(number * total + done, 2 * total)
