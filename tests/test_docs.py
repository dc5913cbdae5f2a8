"""What people read is true: generated files are up to date, the README's lines and the examples run."""

import json
import re
import shlex
import statistics
import sys
from pathlib import Path

import click
import pytest

import rsbackbones as rsb
from rsbackbones.zoo.cards import generated_files
from tests import forked
from tests.test_examples import RUN_HERE

ROOT = Path(__file__).parent.parent
EXAMPLES = [path for path in sorted((ROOT / "examples").glob("*.py")) if path.name not in RUN_HERE]


def test_generated_files_are_up_to_date():
    """`make tables` writes them."""
    for path, text in generated_files(ROOT).items():
        assert path.read_text(encoding="utf-8") == text, f"{path} is out of date: make tables"
    cards = set((ROOT / "docs" / "cards").glob("*.md"))
    assert cards == {p for p in generated_files(ROOT) if p.parent.name == "cards"}


def test_the_lines_of_the_readme_run():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    # The same lines with the small model: the weights of the large one need the network.
    small = code.replace('"croma_vit_b", pretrained=True', '"croma_vit_tiny"')
    assert small != code
    names: dict[str, object] = {}
    exec(small, names)
    assert tuple(names["embedding"].shape) == (1, 96)
    assert names["features"].maps("joint").shape == (1, 96, 15, 15)


def test_the_adaptation_report_of_the_readme_is_real():
    text = (ROOT / "README.md").read_text()
    model = rsb.create_model(
        "croma_vit_tiny", pretrained=True, modalities=("s2",), sensors={"s2": "landsat_oli"},
        bands={"s2": ("B2", "B3", "B4", "B5", "B6")}, missing_bands="nearest",
    )  # fmt: skip
    report = "\n".join(line.rstrip() for line in str(model.adaptation).splitlines())
    assert f"```\n{report}\n```" in text


def test_links_of_the_readme_lead_somewhere():
    for name in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / name).read_text()):
            assert (ROOT / target).exists(), f"{name}: {target}"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_examples_run(path, tmp_path):
    arguments = ["--output", str(tmp_path / "out")] if path.name == "demo.py" else []
    result = forked.run([sys.executable, path, *arguments], cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    if path.name == "demo.py":
        assert "RANDOM weights" in result.stdout or "weights croma_vit_tiny." in result.stdout
        made = {p.name for p in (tmp_path / "out").iterdir()}
        assert made == {"demo.png", "features.png", "features.tif", "scene_s1.tif", "scene_s2.tif"}
    else:
        assert result.stdout.strip()


PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_the_commands_of_the_pages_are_understood(page):
    """Every command in a block of code, parsed and not run."""
    from rsbackbones.cli import commands
    from rsbackbones.train.engine.config_io import parse_arguments
    from rsbackbones.train.recipes import RECIPES

    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"^(?:rsbackbones|.*-m rsbackbones\.train) [^|\n]*$", text, re.M):
        _, _, after = line.partition("rsbackbones")
        words = shlex.split(after, comments=True)
        if line.startswith("rsbackbones"):
            name, command, given = commands.resolve_command(click.Context(commands), words)
            assert command.make_context(name, given)
        elif "recipe=" in line:
            assert parse_arguments([word for word in words[1:] if "=" in word], RECIPES)


def test_the_tables_of_the_bands_page_are_those_of_their_measurement():
    """`python -m benchmarks.bands --docs docs/bands.md` writes them."""
    pytest.importorskip("sklearn")
    from benchmarks.bands import in_docs

    page = (ROOT / "docs" / "bands.md").read_text(encoding="utf-8")
    assert in_docs(page, json.loads((ROOT / "benchmarks" / "bands.json").read_text())) == page


def test_the_table_of_second_phases_is_that_of_its_measurement():
    """`python -m benchmarks.seamo` writes it."""
    pytest.importorskip("sklearn")
    from benchmarks.seamo import in_docs

    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    assert in_docs(page, json.loads((ROOT / "benchmarks" / "seamo.json").read_text())) == page


def test_the_tables_of_what_s4_costs_are_those_of_its_measurement():
    """`python -m benchmarks.s4_cost tables` writes them."""
    from benchmarks.s4_cost import RECORD, in_docs

    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    assert in_docs(page, json.loads(RECORD.read_text())) == page


def test_what_the_second_phase_gave_the_bundled_seamo_is_recorded():
    """Of the bundled file itself, and of the same run after both phases."""
    record = json.loads((ROOT / "benchmarks" / "seamo_bundled.json").read_text())
    card = (ROOT / "docs" / "cards" / "seamo_vit_tiny.samples.md").read_text(encoding="utf-8")
    assert f"sha256: {record['weights']['phase 1 alone (bundled)']}" in card

    def shown(data, phases, stream):
        scores = record["sets"][data]["scores"][phases][f"{stream}, logistic"]
        return f"{statistics.mean(scores):.1f} ± {statistics.stdev(scores):.1f}"

    one, both = "phase 1 alone (bundled)", "both phases"
    eurosat, pairs = ("EuroSAT MS", "s2"), ("BigEarthNet pairs", "joint")
    first, second = (shown(eurosat[0], phase, eurosat[1]) for phase in (one, both))
    assert f"{first} after phase 1 and {second} after both" in card
    first, second = (shown(pairs[0], phase, pairs[1]) for phase in (one, both))
    assert f"{pairs[0]} {first} and {second}" in card


def test_the_results_page_and_the_cards_numbers_are_those_of_the_measurement():
    """`python -m benchmarks.results` writes them; every bundled model is there, beside what it must beat."""
    pytest.importorskip("sklearn")
    pytest.importorskip("pydantic")  # of the extra train
    from benchmarks.results import RECORD, card_metrics, page

    record = json.loads(RECORD.read_text(encoding="utf-8"))
    assert page(record) == (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for entry in (e for e in rsb.list_weights() if e.availability == "bundled"):
        assert entry.metrics == card_metrics(entry.id, record[entry.id])
        assert any("means and deviations per band" in str(line) for line in entry.metrics.values())
