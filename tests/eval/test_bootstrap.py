import numpy as np
import pytest
from sklearn import metrics as sk

from rsbackbones.eval import bootstrap as module
from rsbackbones.eval.bootstrap import count_intervals, interval, intervals
from rsbackbones.eval.metrics import compute_metric, compute_metrics, confusion
from rsbackbones.eval.predictions import Predictions


def guesses(count, right, rng):
    """Two classes; each prediction is right with that probability."""
    target = rng.integers(0, 2, count)
    predicted = np.where(rng.random(count) < right, target, 1 - target)
    return Predictions(scores=np.eye(2)[predicted], target=target)


def test_intervals_cover_the_true_accuracy_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    found = [
        interval(guesses(200, 0.8, rng), "top1", seed=i, num_resamples=300, level=0.9) for i in range(300)
    ]
    covered = np.mean([low <= 0.8 <= high for low, high in found])
    assert 0.84 < covered < 0.95  # three standard errors of 300 simulations are 0.05
    width = np.mean([high - low for low, high in found])
    assert width == pytest.approx(2 * 1.645 * np.sqrt(0.8 * 0.2 / 200), rel=0.1)


def test_groups_widen_the_interval_as_a_plain_bootstrap_of_groups_does():
    rng = np.random.default_rng(1)
    one = guesses(40, 0.7, rng)
    # Ten patches of an image that are all right or all wrong are worth one.
    target, scores = np.repeat(one.target, 10), np.repeat(one.scores, 10, axis=0)
    grouped = Predictions(scores=scores, target=target, groups=np.repeat(np.arange(40) * 7, 10))
    wide = interval(grouped, "top1", seed=0, num_resamples=4000)
    narrow = interval(Predictions(scores=scores, target=target), "top1", seed=0, num_resamples=4000)
    assert wide == pytest.approx(interval(one, "top1", seed=1, num_resamples=4000), abs=0.03)
    assert wide[1] - wide[0] > 2.5 * (narrow[1] - narrow[0])


@pytest.mark.parametrize("metric", ["map_macro", "map_micro", "f1_macro", "f1_micro"])
@pytest.mark.parametrize("grouped", [False, True])
def test_several_labels_against_a_plain_loop(metric, grouped, monkeypatch):
    monkeypatch.setattr(module, "_AT_ONCE", 2000)  # several blocks of draws
    rng = np.random.default_rng(2)
    target = rng.random((60, 3)) < 0.5
    scores = np.clip(target * 0.3 + rng.random((60, 3)) * 0.7, 0, 1)
    groups = np.arange(60) // 4 if grouped else np.arange(60)
    found = interval(
        Predictions(scores=scores, target=target, groups=groups if grouped else None),
        metric,
        seed=0,
        num_resamples=2000,
    )
    kind, average = metric.split("_")
    values = []
    for _ in range(500):
        drawn = rng.integers(0, groups.max() + 1, groups.max() + 1)
        rows = np.concatenate([np.flatnonzero(groups == g) for g in drawn])
        values.append(
            sk.average_precision_score(target[rows], scores[rows], average=average) if kind == "map"
            else sk.f1_score(target[rows], scores[rows] >= 0.5, average=average)
        )  # fmt: skip
    assert found == pytest.approx(tuple(np.percentile(values, (2.5, 97.5))), abs=0.025)


def test_counts_of_images_and_grouped_pixels_give_the_same():
    rng = np.random.default_rng(3)
    target, predicted = rng.integers(-1, 3, (12, 50)), rng.integers(0, 3, (12, 50))
    counts = np.stack([confusion(t, p, 3) for t, p in zip(target, predicted, strict=True)])
    pixels = Predictions(
        scores=np.eye(3)[predicted.ravel()], target=target.ravel(), groups=np.repeat(np.arange(12), 50)
    )
    by_image = count_intervals(counts, ("a", "b", "c"), seed=5)
    by_pixel = intervals(pixels, "pixels", ("a", "b", "c"), seed=5)
    scored = compute_metrics(pixels, "pixels", ("a", "b", "c"))
    assert set(by_pixel) <= set(by_image)
    for name, pair in by_pixel.items():
        assert pair == by_image[name]
        assert pair[0] <= scored[name] <= pair[1]


def test_a_seed_gives_the_same_interval_and_certainty_has_no_width():
    outcome = guesses(100, 0.7, np.random.default_rng(4))
    assert interval(outcome, "f1_macro", seed=1) == interval(outcome, "f1_macro", seed=1)
    assert interval(guesses(100, 2, np.random.default_rng(5)), "top1", seed=0) == (1, 1)
    low, high = interval(outcome, "top1", seed=0)
    assert low < compute_metric(outcome, "top1") < high


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_resamples": 0}, "num_resamples=0"),
        ({"level": 1.0}, "level=1"),
        ({"metric": "auc"}, "no metric 'auc'"),
    ],
)
def test_bad_options_are_refused(options, message):
    outcome = guesses(20, 0.7, np.random.default_rng(6))
    with pytest.raises(ValueError, match=message):
        interval(outcome, **({"metric": "top1", "seed": 0} | options))
    with pytest.raises(ValueError, match="images, K, K"):
        count_intervals(np.ones((3, 3)), seed=0)


def test_a_mean_over_classes_is_never_one_over_fewer():
    """One image alone has the rare class, and it is wrong there: without it the mean would jump up."""
    counts = np.tile(np.array([[50, 0, 0], [0, 50, 0], [0, 0, 0]]), (8, 1, 1))
    counts[0, 2] = (0, 10, 0)
    found = count_intervals(counts, seed=0)["miou"]
    assert found[1] <= 2 / 3
    several = Predictions(scores=np.tile([[1.0, 0.0]], (40, 1)), target=np.tile([[True, False]], (40, 1)))
    several.target[7] = (True, True)
    several.target[8] = (False, True)
    _, high = interval(several, "f1_macro", seed=0)
    assert high <= 0.5
