"""Tables and generated parts of pages, byte for byte: pages that are committed hold them."""

import pytest

from rsbackbones.files.markdown import markdown_table, replace_between


@pytest.mark.parametrize(
    ("spaced", "dashes"), [(False, "|---|---:|---|"), (True, "| --- | ---: | --- |")], ids=["dense", "spaced"]
)
def test_a_table_is_its_header_its_alignment_and_its_rows(spaced, dashes):
    rows = (row for row in [("a", "1", ""), ["b", "20", "`c`"]])
    found = markdown_table(("name", "number", ""), rows, "lrl", spaced=spaced)
    assert found == f"| name | number |  |\n{dashes}\n| a | 1 |  |\n| b | 20 | `c` |"


def test_a_table_may_have_no_rows():
    assert markdown_table(["a"], [], "r") == "| a |\n|---:|"


def test_what_is_between_two_markers_is_replaced_whatever_it_is():
    page = "before\n<!-- a -->\nold\nlines\n<!-- b -->\nafter <!-- b -->"
    found = replace_between(page, "<!-- a -->", "<!-- b -->", r"new \1 \n")
    assert found == "before\n<!-- a -->\nnew \\1 \\n\n<!-- b -->\nafter <!-- b -->"
    assert replace_between(found, "<!-- a -->", "<!-- b -->", r"new \1 \n") == found
