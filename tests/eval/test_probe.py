from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from rsbackbones.eval import linear_probe
from rsbackbones.eval.feature_table import FeatureTable
from rsbackbones.eval.linear_probe import RATES, ProbeOptions, train_probes
from rsbackbones.eval.metrics import compute_metric, compute_metrics
from rsbackbones.eval.predictions import Predictions
from rsbackbones.eval.probe import hold_out, probe, select_lr
from tests.eval.blobs import blobs, several_labels
from tests.reference.probe_plain import train_plain

SHORT = ProbeOptions(hidden=16, warmup=2, epochs=12, batch=32)


def test_the_sweep_is_the_papers():
    assert len(RATES) == 27
    assert RATES[0] == 1e-4
    assert RATES[9] == 1e-3
    assert RATES[-1] == 9e-2
    paper = ProbeOptions()
    assert (paper.hidden, paper.warmup, paper.epochs, paper.batch) == (2048, 5, 100, 1024)
    assert (paper.weight_decay, paper.standardize) == (0.01, False)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("make", [lambda n, seed: blobs(n, spread=1.5, seed=seed), several_labels])
def test_all_rates_at_once_are_the_runs_one_by_one(kind, make):
    train, test = make(25, seed=0), make(25, seed=1)
    classes = 4 if train.labels.ndim == 1 else 3
    probes = train_probes(train, classes=classes, kind=kind, seed=3, options=SHORT)
    sizes = [8, classes] if kind == "linear" else [8, 16, classes]
    metric = "top1" if train.labels.ndim == 1 else "map_micro"
    for rate in RATES:
        model = train_plain(
            torch.from_numpy(train.features), torch.from_numpy(train.labels), sizes, rate,
            seed=3, warmup=2, epochs=12, batch=32, weight_decay=0.01,
        )  # fmt: skip
        with torch.no_grad():
            logits = model(torch.from_numpy(test.features))
        theirs = (logits.softmax(1) if train.labels.ndim == 1 else logits.sigmoid()).numpy()
        ours = probes.scores(test.features, rate)
        assert np.allclose(ours, theirs, atol=2e-4), rate
        values = [compute_metric(Predictions(scores=s, target=test.labels), metric) for s in (ours, theirs)]
        assert values[0] == pytest.approx(values[1], abs=1e-6), rate


def test_parts_of_the_sweep_change_nothing(monkeypatch):
    train, test = blobs(25, spread=1.5), blobs(25, spread=1.5, seed=1)
    done = []
    whole = train_probes(train, classes=4, kind="mlp", options=SHORT)
    monkeypatch.setattr(linear_probe, "_AT_ONCE", 30_000)
    parts = train_probes(
        train, classes=4, kind="mlp", options=SHORT, progress=lambda now, total: done.append((now, total))
    )
    assert done[-1][0] == done[-1][1] > 14  # more than one part, each of 14 epochs
    assert [now for now, _ in done] == list(range(1, done[-1][1] + 1))
    for rate in RATES:
        assert np.allclose(parts.scores(test.features, rate), whole.scores(test.features, rate), atol=1e-5)


def test_a_rate_alone_is_the_same_as_among_others():
    train, test = blobs(25, spread=1.5), blobs(25, spread=1.5, seed=1)
    alone = train_probes(train, classes=4, options=replace(SHORT, rates=(5e-3,)))
    among = train_probes(train, classes=4, options=SHORT)
    assert np.allclose(alone.scores(test.features, 5e-3), among.scores(test.features, 5e-3), atol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_separable_classes_are_all_right(kind):
    options = ProbeOptions(hidden=32, epochs=40)
    one = probe(blobs(20), blobs(10, seed=1), classes=4, kind=kind, options=options)
    assert compute_metrics(one, "classes")["top1"] == 1
    several = probe(
        several_labels(80), several_labels(40, seed=1), classes=3, kind=kind,
        options=ProbeOptions(hidden=32, epochs=300),
    )  # fmt: skip
    assert compute_metrics(several, "multilabel") == pytest.approx(dict.fromkeys(several_metrics(), 1.0))


def several_metrics():
    return ("map_macro", "map_micro", "f1_macro", "f1_micro")


def test_a_linear_probe_comes_to_where_logistic_regression_does():
    train, test = blobs(200, spread=2), blobs(200, spread=2, seed=1)
    ours = probe(train, test, classes=4, options=ProbeOptions(epochs=60, weight_decay=0))
    theirs = LogisticRegression(C=1e6, max_iter=1000).fit(train.features, train.labels)
    assert compute_metric(ours, "top1") == pytest.approx(theirs.score(test.features, test.labels), abs=0.02)


def test_an_mlp_learns_what_a_line_cannot():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (600, 2)).astype(np.float32)
    corners = FeatureTable(x, (x[:, 0] * x[:, 1] > 0).astype(int))
    train, test = corners.take(np.arange(400)), corners.take(np.arange(400, 600))
    options = ProbeOptions(hidden=64, epochs=60, batch=64)
    assert compute_metric(probe(train, test, classes=2, kind="mlp", options=options), "top1") > 0.95
    assert compute_metric(probe(train, test, classes=2, options=options), "top1") < 0.7


def test_the_rate_is_chosen_where_it_says():
    train, test = blobs(25, spread=2), blobs(40, spread=2, seed=1)
    val = blobs(40, spread=2, seed=2)
    by_val = probe(train, test, classes=4, val=val, options=SHORT)
    by_test = probe(train, test, classes=4, select="test", options=SHORT)
    by_part = probe(train, test, classes=4, options=SHORT)
    probes = train_probes(train, classes=4, options=SHORT)
    value = {
        r: compute_metric(Predictions(scores=probes.scores(val.features, r), target=val.labels), "top1")
        for r in RATES
    }
    assert value[by_val.details["lr"]] == max(value.values())
    assert by_val.details["chosen_on"] == "val"
    assert by_part.details["chosen_on"] == "20 of 100 training samples"
    # The probes are the same ones whatever chooses among them.
    assert by_val.details["by_lr"] == by_test.details["by_lr"] == by_part.details["by_lr"]
    best = max(by_test.details["by_lr"].values())
    assert by_val.details["best_on_test"]["top1"] == best == compute_metric(by_test, "top1")
    for outcome in (by_val, by_part):
        assert (
            compute_metric(outcome, "top1") == outcome.details["by_lr"][f"{outcome.details['lr']:g}"] <= best
        )


def test_between_equal_rates_cross_entropy_decides():
    train, val = blobs(25), blobs(25, seed=1)
    probes = train_probes(train, classes=4, options=replace(SHORT, rates=(0.02, 0.09, 0.05)))
    assert select_lr(probes, val, "top1") == 0.09  # all are right; the fastest is the surest


def test_a_fifth_is_held_out_of_every_class_and_whole_groups():
    rng = np.random.default_rng(0)
    samples = FeatureTable(rng.random((203, 2)), np.repeat([0, 1, 2], [150, 48, 5]))
    part, held = hold_out(samples, 0)
    assert len(part) + len(held) == 203
    assert {tuple(row) for row in samples.features} == {tuple(r) for r in [*part.features, *held.features]}
    assert np.bincount(held.labels).tolist() == pytest.approx([30, 9.6, 1], abs=1)
    grouped = FeatureTable(samples.features, samples.labels, np.arange(203) // 20)
    part, held = hold_out(grouped, 0)
    assert not set(part.groups) & set(held.groups)
    assert len(set(held.groups)) == 2
    assert (hold_out(grouped, 1)[1].groups != held.groups[: len(hold_out(grouped, 1)[1])]).any()
    with pytest.raises(ValueError, match="only one"):
        hold_out(FeatureTable(samples.features, samples.labels, np.zeros(203, int)), 0)


def test_standardized_features_may_have_any_scale():
    train, test = blobs(25, spread=1.5), blobs(25, spread=1.5, seed=1)
    scale = np.array([1e4, 1, 1e-3, 1, 1, 1, 1, 1], np.float32)
    options = replace(SHORT, standardize=True)
    plain = train_probes(train, classes=4, options=options)
    scaled = train_probes(FeatureTable(train.features * scale + 7, train.labels), classes=4, options=options)
    for rate in (1e-3, 5e-2):
        ours = scaled.scores(test.features * scale + 7, rate)
        assert np.allclose(ours, plain.scores(test.features, rate), atol=1e-2)
    constant = FeatureTable(np.pad(train.features, ((0, 0), (0, 1)), constant_values=3), train.labels)
    assert np.isfinite(
        train_probes(constant, classes=4, options=options).scores(constant.features, 1e-2)
    ).all()


def test_what_cannot_be_trained_is_refused():
    train, test = blobs(5), blobs(5, seed=1)
    with pytest.raises(ValueError, match="kind='svm'"):
        train_probes(train, classes=4, kind="svm")
    with pytest.raises(ValueError, match="select='best'"):
        probe(train, test, classes=4, select="best")
    with pytest.raises(ValueError, match=r"dimensions \(val\)"):
        probe(train, test, classes=4, val=blobs(5, dim=6), options=SHORT)
    with pytest.raises(ValueError, match="no metric 'map_macro'"):
        probe(train, test, classes=4, metric="map_macro", options=SHORT)
    probes = train_probes(train, classes=4, options=SHORT)
    with pytest.raises(ValueError, match="take \\[n, 8\\]"):
        probes.scores(test.features[:, :3], 1e-4)
    with pytest.raises(ValueError, match="no probe was trained"):
        probes.scores(test.features, 0.5)
    for bad in ({"rates": ()}, {"rates": (0.0,)}, {"rates": (0.1, 0.1)}, {"epochs": 0}, {"warmup": -1}):
        with pytest.raises(ValueError, match="expected"):
            ProbeOptions(**bad)
