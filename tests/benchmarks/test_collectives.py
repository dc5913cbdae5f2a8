"""What processes send each other: the formulas say what real ones do, and the page says both."""

from collections import Counter

import pytest

from benchmarks import collectives
from benchmarks.collectives import BEGIN, COUNTED, END, PAGE, PROCESSES, ROWS
from rsbackbones.files.markdown import replace_between
from tests import forked


@pytest.fixture(scope="module")
def counted():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collectives, "spawn", forked.spawn)
        return collectives.measure_payloads(COUNTED, rows=ROWS, processes=PROCESSES)


def test_bytes_of_two_processes_are_those_of_the_formulas(counted):
    expected = collectives.formulas(COUNTED, PROCESSES * ROWS)
    # Temperature [1] and mask token [1, 1, D] are padded to two, where they are gathered and scattered.
    padding = 4 * (1 + COUNTED.objective.decoder_dim)
    expected["fsdp"] += Counter(all_gather=padding, reduce_scatter=padding)
    assert counted == expected
    assert f"FSDP gathers and scatters {padding} bytes more" in PAGE.read_text(encoding="utf-8")


def test_the_tables_of_the_page_are_what_is_counted(counted):
    """`python -m benchmarks.collectives` writes them."""
    page = PAGE.read_text(encoding="utf-8")
    assert page.count(BEGIN) == page.count(END) == 1
    assert replace_between(page, BEGIN, END, collectives.tables(counted)) == page
