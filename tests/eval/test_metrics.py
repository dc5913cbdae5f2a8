import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from torchmetrics.functional.classification import multiclass_jaccard_index

from rsbackbones.eval.metrics import LabelRanking, compute_metric, compute_metrics, confusion, from_confusion
from rsbackbones.eval.predictions import Predictions
from tests.conftest import RECORDED


def outcome(target, predicted, classes):
    return Predictions(scores=np.eye(classes)[predicted], target=np.asarray(target))


def test_counts_by_hand():
    target, predicted = np.array([[0, 0, 1], [2, -1, 1]]), np.array([[0, 1, 1], [0, 2, 1]])
    assert confusion(target, predicted, 3).tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]
    found = from_confusion(confusion(target, predicted, 3), ("water", "wood", "field"))
    # water: 1 of 1 + 1 missed + 1 wrong; wood: 2 of 2 + 1 wrong; field: none of 1.
    assert found == pytest.approx({
        "miou": (1 / 3 + 2 / 3 + 0) / 3, "pixel_accuracy": 3 / 5, "f1_macro": (1 / 2 + 4 / 5 + 0) / 3,
        "iou_water": 1 / 3, "f1_water": 1 / 2, "iou_wood": 2 / 3, "f1_wood": 4 / 5,
        "iou_field": 0, "f1_field": 0,
    })  # fmt: skip


def test_a_class_that_occurs_nowhere_is_left_out_and_one_that_is_only_predicted_is_not():
    counts = confusion(np.array([0, 0, 1]), np.array([0, 2, 1]), 4)
    found = from_confusion(counts)
    assert "iou_3" not in found
    assert "f1_3" not in found
    assert found["iou_2"] == 0
    assert found["miou"] == pytest.approx((1 / 2 + 1 + 0) / 3)


def test_the_mean_iou_of_a_set_is_that_of_the_summed_counts():
    rng = np.random.default_rng(0)
    target, predicted = rng.integers(-1, 3, (5, 8, 8)), rng.integers(0, 3, (5, 8, 8))
    summed = sum(confusion(t, p, 3) for t, p in zip(target, predicted, strict=True))
    assert (summed == confusion(target, predicted, 3)).all()
    theirs = multiclass_jaccard_index(
        torch.tensor(predicted), torch.tensor(target), 3, average="macro", ignore_index=-1
    )
    assert from_confusion(summed)["miou"] == pytest.approx(float(theirs))


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_metrics_of_classes_are_scikit_learns(pairs):
    target, predicted = np.array(pairs).T
    found = compute_metrics(outcome(target, predicted, 4), "classes")
    assert found["top1"] == pytest.approx(sk.accuracy_score(target, predicted))
    recalls = sk.recall_score(target, predicted, labels=np.unique(target), average=None, zero_division=0)
    assert found["balanced_accuracy"] == pytest.approx(recalls.mean())
    assert found["f1_macro"] == pytest.approx(
        sk.f1_score(target, predicted, average="macro", zero_division=0)
    )
    there = np.union1d(target, predicted)
    iou = sk.jaccard_score(target, predicted, labels=there, average="macro", zero_division=0)
    assert compute_metric(outcome(target, predicted, 4), "miou") == pytest.approx(iou)
    assert (confusion(target, predicted, 4) == sk.confusion_matrix(target, predicted, labels=range(4))).all()


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(2, 30), st.booleans())
def test_metrics_of_several_labels_are_scikit_learns(seed, count, ties):
    rng = np.random.default_rng(seed)
    scores, target = rng.random((count, 3)), rng.random((count, 3)) < 0.5
    scores = np.round(scores, 1) if ties else scores
    target[0] = True  # scikit-learn has no average precision of a label that never occurs
    found = compute_metrics(Predictions(scores=scores, target=target), "multilabel")
    assert found["map_macro"] == pytest.approx(sk.average_precision_score(target, scores, average="macro"))
    assert found["map_micro"] == pytest.approx(sk.average_precision_score(target, scores, average="micro"))
    for average in ("macro", "micro"):
        theirs = sk.f1_score(target, scores >= 0.5, average=average, zero_division=0)
        assert found[f"f1_{average}"] == pytest.approx(theirs)
    weights = rng.integers(0, 4, (2, count))
    weights[:, 0] += 1
    weighted = LabelRanking(scores, target).value("map_macro", weights)
    for row, value in zip(weights, weighted, strict=True):
        theirs = sk.average_precision_score(target, scores, average="macro", sample_weight=row)
        assert value == pytest.approx(theirs)


def test_a_label_that_never_occurs_is_left_out_of_the_macro_mean():
    scores, target = np.array([[0.9, 0.2], [0.1, 0.3]]), np.array([[True, False], [False, False]])
    assert compute_metrics(Predictions(scores=scores, target=target), "multilabel")["map_macro"] == 1


def test_change_names_its_class():
    found = compute_metrics(outcome([0, 1, 1], [0, 1, 0], 2), "change")
    assert found["f1_change"] == pytest.approx(2 / 3)
    assert found["iou_change"] == pytest.approx(1 / 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: confusion(np.array([0, 3]), np.array([0, 1]), 3), "label 3: with 3 classes"),
        (lambda: confusion(np.array([0, -2]), np.array([0, 1]), 3), "label -2"),
        (lambda: confusion(np.array([0, 1]), np.array([0, -1]), 3), "prediction -1"),
        (lambda: confusion(np.array([0, 1]), np.array([0]), 3), "differ in shape"),
        (lambda: from_confusion(np.zeros((3, 3), int)), "no sample was counted"),
        (lambda: from_confusion(np.ones((3, 3)), ("a", "b")), r"\[3, 3\].*K = 2"),
        (lambda: compute_metric(outcome([0], [0], 2), "map_macro"), "no metric 'map_macro'.*top1"),
        (lambda: compute_metrics(outcome([0], [0], 2), "multilabel"), "multilabel does not fit"),
        (lambda: compute_metrics(outcome([0, 1], [0], 2), "classes"), r"scores \[1, 2\] and labels \[2\]"),
        (
            lambda: compute_metrics(
                Predictions(scores=np.array([[np.nan, 1]]), target=np.array([0])), "classes"
            ),
            "NaN",
        ),
        (lambda: LabelRanking(np.array([[2.0]]), np.array([[True]])), "probabilities"),
        (lambda: LabelRanking(np.array([[0.5]]), np.array([[False]])), "no sample has any label"),
    ],
)
def test_what_cannot_be_scored_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_background_counts_but_is_left_out_of_the_mean():
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 50, (3, 3))
    found = from_confusion(counts, ("background", "maize", "rice"))
    assert found["miou_foreground"] == pytest.approx((found["iou_maize"] + found["iou_rice"]) / 2)
    assert found["miou"] == from_confusion(counts)["miou"]
    assert "miou_foreground" not in from_confusion(counts, ("water", "maize", "rice"))
    # Of a set without one of the crops the mean is over the other.
    alone = from_confusion(np.array([[5, 1, 0], [0, 7, 0], [0, 0, 0]]), ("background", "maize", "rice"))
    assert alone["miou_foreground"] == alone["iou_maize"] == pytest.approx(7 / 8)


def test_counts_and_means_of_a_set_are_the_recorded_ones():
    folder = Path(os.environ.get("RSB_REFERENCE", RECORDED)) / "s4"
    if not folder.exists():
        pytest.skip(f"{folder} is not there")
    stored = np.load(folder / "s4_losses.npz")
    classes, left_out = int(stored["classes"]), int(np.atleast_1d(stored["left_out"])[0])
    label = np.where(np.isin(stored["label"], stored["ignored"]), -1, stored["label"])
    counts = confusion(label, stored["predicted"], classes)
    names = [f"c{i}" for i in range(classes)]
    names[left_out] = "background"
    found = from_confusion(counts, names)
    assert found["miou"] == pytest.approx(float(stored["miou"]))
    assert found["miou_foreground"] == pytest.approx(float(stored["miou_left_out"]))
    for name, value in zip(names, stored["iou"], strict=True):
        assert (
            (f"iou_{name}" not in found) if np.isnan(value) else found[f"iou_{name}"] == pytest.approx(value)
        )
