"""A folder that holds the result of another model or of other data is left alone."""

import json

import pytest

from rsbackbones.eval.report import refuse_other_result, write_report

HELD = {"model": "croma_vit_b", "sources": {"croma_vit_b": {}, "random": {}}, "data": {"name": "eurosat"}}


def test_the_same_model_and_data_may_be_evaluated_again(tmp_path):
    refuse_other_result(tmp_path, "croma_vit_b", "croma_vit_b", "eurosat")  # nothing there yet
    (tmp_path / "result.json").write_text(json.dumps(HELD))
    refuse_other_result(tmp_path, "croma_vit_b", "croma_vit_b", "eurosat")


@pytest.mark.parametrize(
    "other",
    [
        ("resnet50", "resnet50", "eurosat"),
        ("croma_vit_b", "mine.pt", "eurosat"),
        ("croma_vit_b", "croma_vit_b", "m"),
    ],
    ids=["model", "checkpoint", "data"],
)
def test_another_result_is_not_replaced(tmp_path, other):
    (tmp_path / "result.json").write_text(json.dumps(HELD))
    with pytest.raises(ValueError, match=r"croma_vit_b on eurosat.*another --output"):
        refuse_other_result(tmp_path, *other)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": 1, "sources": [], "data": {"name": ""}}'])
def test_a_file_of_someone_else_is_not_replaced(tmp_path, text):
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(ValueError, match="not a result of this command"):
        refuse_other_result(tmp_path, "croma_vit_b", "croma_vit_b", "eurosat")


def test_strings_are_paths(tmp_path):
    found = HELD | {"rows": [], "diagnostics": {}, "metric": "accuracy", "notes": ["none"]}
    assert write_report(str(tmp_path), found).startswith("# eurosat")
    assert json.loads((tmp_path / "result.json").read_text()) == found
    with pytest.raises(ValueError, match="another --output"):
        refuse_other_result(str(tmp_path), "resnet50", "resnet50", "eurosat")
