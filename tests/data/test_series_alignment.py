"""The alignment of two series as S4 states it, against numbers of independent code."""

import datetime
import os
from pathlib import Path

import numpy as np
import pytest

from rsbackbones.data.series import align_series, fix_length, parse_dates, percentile_length
from tests.conftest import RECORDED

FILE = Path(os.environ.get("RSB_REFERENCE", RECORDED)) / "s4" / "s4_losses.npz"
if not FILE.exists():
    pytest.skip(f"{FILE} is not there", allow_module_level=True)
R = dict(np.load(FILE))


@pytest.mark.parametrize("i", range(int(R["alignments"])))
@pytest.mark.parametrize("kind", ["int64", "datetime64[D]", "float64"])
def test_the_shorter_series_stays(i, kind):
    found = align_series(*(R[f"align_{i}_days_{m}"].astype(kind) for m in ("s1", "s2")))
    for m, index in zip(("s1", "s2"), found, strict=True):
        np.testing.assert_array_equal(index, R[f"align_{i}_index_{m}"])


def test_length_of_a_set():
    assert percentile_length(R["lengths"]) == R["length"]
    assert percentile_length([5]) == 5
    assert percentile_length([1, 2, 3, 4], 100) == 4


def test_series_of_other_lengths():
    for count, index in zip(R["fix_counts"], R["fix_index"], strict=True):
        np.testing.assert_array_equal(fix_length(int(count), len(index)), index)


@pytest.mark.parametrize(
    "days",
    [
        [],
        [[1, 2]],
        [1.5],
        [float("nan"), 1.0],
        np.array(["NaT"], "datetime64[D]"),
        ["20200101"],
        [20200101],
        [True],
        [datetime.date(2020, 1, 1), None],
    ],
)
def test_dates_that_cannot_be(days):
    with pytest.raises(ValueError, match=r"^s2: "):
        align_series([3, 4], days)
    with pytest.raises(ValueError, match=r"^s1: "):
        align_series(days, [3, 4])


def test_dates_in_other_words():
    days = [datetime.date(2020, 1, 9), datetime.date(2020, 1, 2)]
    for given in (days, [str(day) for day in days], np.array(days, "M8[s]"), [18270, 18263.0]):
        assert parse_dates(given, "s2").astype("M8[D]").tolist() == days
    with pytest.raises(ValueError, match="date 9 of 11 is 2020-02-30"):
        parse_dates([*["2020-01-01"] * 9, "2020-02-30", "2020-01-01"], "s2")


def test_numbers_that_cannot_be():
    with pytest.raises(ValueError, match="at least one"):
        fix_length(0, 3)
    with pytest.raises(ValueError, match="percentage"):
        percentile_length([1], 101)
