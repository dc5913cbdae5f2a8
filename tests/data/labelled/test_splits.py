"""Splits: as the set says, as lists say, or our own."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsbackbones.data.labelled.splits import choose_splits, find_ids, stated_splits

IDS = [f"c{i % 4}/img_{i}.tif" for i in range(200)]
CLASSES = [i % 4 for i in range(200)]


def named(splits, name):
    return {IDS[i] for i in splits[name]}


def test_a_seeded_split_is_stratified_and_named_in_the_notes():
    splits, notes = choose_splits(IDS, CLASSES, {}, seed=0)
    assert np.bincount(np.array(CLASSES)[splits["test"]]).tolist() == [10] * 4
    assert sorted(np.concatenate([splits["train"], splits["test"]]).tolist()) == list(range(200))
    assert "seeded" in notes[0]
    again, _ = choose_splits(IDS, CLASSES, {}, seed=0)
    other, _ = choose_splits(IDS, CLASSES, {}, seed=1)
    assert np.array_equal(splits["test"], again["test"])
    assert not np.array_equal(splits["test"], other["test"])


def test_the_split_does_not_depend_on_the_order_of_samples():
    order = np.random.default_rng(0).permutation(200)
    shuffled, _ = choose_splits([IDS[i] for i in order], [CLASSES[i] for i in order], {})
    splits, _ = choose_splits(IDS, CLASSES, {})
    assert {IDS[order[i]] for i in shuffled["test"]} == named(splits, "test")


@settings(max_examples=25)
@given(st.floats(0.01, 1), st.floats(0.01, 1), st.integers(0, 5))
def test_a_smaller_share_is_part_of_a_larger_one(a, b, seed):
    small, large = sorted((a, b))
    fewer, notes = choose_splits(IDS, CLASSES, {}, subset=small, seed=seed)
    more, _ = choose_splits(IDS, CLASSES, {}, subset=large, seed=seed)
    assert named(fewer, "train") <= named(more, "train")
    assert np.array_equal(fewer["test"], more["test"])
    assert len(fewer["train"]) == max(1, round(small * 160))
    assert "not the list of any paper" in notes[-1]


def test_a_validation_split_alone_is_tested_on():
    stated = stated_splits(IDS, ["train"] * 150 + ["validation"] * 50)
    splits, notes = choose_splits(IDS, CLASSES, stated)
    assert list(splits) == ["train", "test"]
    assert len(splits["test"]) == 50
    assert "validation" in notes[0]


def test_lists_of_ids(tmp_path):
    table = tmp_path / "splits.csv"
    table.write_text("id,split\nc0/img_0.tif,train\nimg_1.jpg,train\nimg_2,test\n")
    splits, notes = choose_splits(IDS, CLASSES, {}, lists=table)
    assert {k: v.tolist() for k, v in splits.items()} == {"train": [0, 1], "test": [2]}
    assert notes == []
    table.write_text("c0/img_0.tif,train\nimg_2,valid\n")  # without a heading
    splits, _ = choose_splits(IDS, CLASSES, {}, lists=table)
    assert {k: v.tolist() for k, v in splits.items()} == {"train": [0], "test": [2]}
    plain = tmp_path / "ten_percent.txt"
    plain.write_text("img_7\nimg_9\n\n")
    stated = stated_splits(IDS, ["train"] * 150 + ["test"] * 50)
    splits, _ = choose_splits(IDS, CLASSES, stated, lists=plain)
    assert splits["train"].tolist() == [7, 9]
    assert splits["test"].tolist() == list(range(150, 200))
    splits, _ = choose_splits(IDS, CLASSES, {}, lists={"train": plain})
    assert len(splits["test"]) == 198
    table.write_text("img_7,train\nimg_9,val\n")  # the test samples stay those of the set
    splits, notes = choose_splits(IDS, CLASSES, stated, lists=table)
    assert {k: len(v) for k, v in splits.items()} == {"train": 1, "val": 1, "test": 50}
    assert notes == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,split\nnowhere,train\nc0/img_0.tif,test\n", "1 of 2 ids are not in the set: nowhere"),
        ("id,split\nimg_0,train\nimg_0,test\n", "named more than once"),
        ("id,split\nimg_0,train\nimg_1,holdout\n", "holdout"),
        ("id,split\n", "holds no id"),
        ("\n", "holds no id"),
        ("id,split\nimg_0,test\n", "no training samples"),
    ],
)
def test_bad_lists(tmp_path, text, said):
    path = tmp_path / "list.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        choose_splits(IDS, CLASSES, {}, lists=path)


def test_a_training_list_must_not_hold_test_samples(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("img_0\nimg_199\n")
    with pytest.raises(ValueError, match="in the set's test split"):
        choose_splits(IDS, CLASSES, {"train": np.arange(150), "test": np.arange(150, 200)}, lists=path)
    other = tmp_path / "test.txt"
    other.write_text("img_0\n")
    with pytest.raises(ValueError, match="test and the train list"):
        choose_splits(IDS, CLASSES, {}, lists={"train": path, "test": other})


@pytest.mark.parametrize(
    ("words", "said"), [(["fit"] * 200, "unknown split"), (["test"] * 200, "no training")]
)
def test_bad_splits_of_the_set(words, said):
    with pytest.raises(ValueError, match=said):
        choose_splits(IDS, CLASSES, stated_splits(IDS, words))


@pytest.mark.parametrize("subset", [0, -0.1, 1.1])
def test_a_share_out_of_range(subset):
    with pytest.raises(ValueError, match="subset"):
        choose_splits(IDS, CLASSES, {}, subset=subset)


def test_ambiguous_file_names_are_not_guessed():
    with pytest.raises(ValueError, match="not in the set"):
        find_ids(["a/x.png", "b/x.png"], ["x"], "list")
