"""CITATION.cff is valid YAML of this version."""

from pathlib import Path

import yaml

import rsbackbones

ROOT = Path(__file__).parent.parent


def test_the_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == rsbackbones.__version__
    assert {"cff-version", "message", "title", "authors", "license"} <= citation.keys()


def test_issue_templates_are_forms():
    """Each field of a form has an id of its own and a label."""
    forms = [p for p in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if p.name != "config.yml"]
    assert forms
    for path in forms:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        ids = [field["id"] for field in form["body"]]
        assert len(ids) == len(set(ids))
        assert all(field["attributes"]["label"] for field in form["body"])
        assert {"name", "description"} <= form.keys()
