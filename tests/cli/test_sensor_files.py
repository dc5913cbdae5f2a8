"""Sensors of one's own on the command line: what a file says is what `register_sensor` would be given."""

import json
import re

import pytest

import rsbackbones as rsb
from rsbackbones.cli import main
from rsbackbones.sensors import SENSORS
from rsbackbones.zoo.factory import plan_adaptation

MINE = {
    "name": "two_bands",
    "bands": [
        {"name": "early", "wavelength": 492.4, "width": 20, "gsd": 5, "aliases": ["bleu"]},
        {"name": "late", "wavelength": 840.0, "width": 40.5, "gsd": 5},
    ],
}


@pytest.fixture(autouse=True)
def _as_before():
    before = dict(SENSORS)
    yield
    SENSORS.clear()
    SENSORS.update(before)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(MINE))
    return path


def test_the_bands_of_a_file_meet_the_weights(file, capsys):
    assert main(["bands", "croma_vit_tiny", "--sensors", f"s2={file}", "--bands", "late,bleu"]) == 0
    printed = capsys.readouterr().out
    expected = rsb.Sensor(
        name="two_bands",
        title="two_bands",
        kind="optical",
        bands=(
            rsb.Band(name="early", wavelength=492.4, width=20, gsd=5, aliases=("bleu",)),
            rsb.Band(name="late", wavelength=840.0, width=40.5, gsd=5),
        ),
    )
    assert SENSORS["two_bands"] == expected
    plan = plan_adaptation("croma_vit_tiny", sensors={"s2": expected}, bands={"s2": ("late", "early")})
    assert printed == f"{plan}\n"
    assert [match.source for match in plan.bands[0].matches] == ["B08", "B02"]


def test_a_checkpoint_says_its_own_bands(file, tmp_path, capsys):
    """Of a file on the sensor of another file, and of one that lacks its tensors: the header is enough."""
    sensor = {"name": "one", "bands": [{"name": "only", "wavelength": 500, "width": 60, "gsd": 5}]}
    (tmp_path / "one.json").write_text(json.dumps(sensor))
    main(["bands", "croma_vit_tiny", "--sensors", f"s2={tmp_path / 'one.json'}"])
    model = rsb.create_model(
        "croma_vit_tiny", modalities=("s2",), sensors={"s2": "one"}, overrides={"dim": 32, "depth": 2}
    )
    saved = rsb.save_model(model, tmp_path / "m.safetensors")
    capsys.readouterr()
    bands = ["bands", "croma_vit_tiny", "--checkpoint", str(saved), "--sensors", f"s2={file}"]
    assert main([*bands, "--bands", "early"]) == 0
    assert "weights for bands of one" in capsys.readouterr().out
    assert main([*bands, "--bands", "early,late"]) == 2
    assert "no band (of one) close in wavelength to late" in capsys.readouterr().err
    assert main(["bands", "seamo_vit_tiny", "--checkpoint", str(saved), "--bands", "B02"]) == 2
    assert "holds croma_vit_tiny" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("name"), "missing fields: name"),
        (lambda s: s.update(color="red"), "unknown field 'color'; fields: name, title, kind, bands"),
        (lambda s: s["bands"][1].pop("width"), r"bands\[1\]: missing fields: width"),
        (lambda s: s["bands"][0].update(wavelength="492"), r"bands\[0\]: wavelength must be a finite number"),
        (lambda s: s["bands"][0].update(gsd=True), "gsd must be a finite number"),
        (lambda s: s["bands"][0].update(aliases=[1]), r"bands\[0\]: aliases.0 must be text, got 1"),
        (lambda s: s["bands"][0].update(wavelength=0.49), "nanometers"),
        (lambda s: s["bands"][0].update(name="late"), "names more than one band"),
        (lambda s: s.update(bands=[]), "has no bands"),
        (lambda s: s.update(bands=[5]), r"bands\[0\]: expected an object"),
        (lambda s: s.update(name="s2"), "is already registered"),
        (lambda s: s.update(kind="sonar"), "kind must be one of optical, radar, got 'sonar'"),
    ],
)
def test_a_file_that_describes_no_sensor(file, capsys, change, said):
    content = json.loads(json.dumps(MINE))
    change(content)
    file.write_text(json.dumps(content))
    assert main(["bands", "croma_vit_tiny", "--sensors", f"s2={file}"]) == 2
    error = capsys.readouterr().err
    assert str(file) in error
    assert re.search(said, error), error


def test_a_file_that_cannot_be_read(tmp_path, capsys):
    (tmp_path / "broken.json").write_text("{")
    for name in ("nosuch.json", "broken.json"):
        assert main(["bands", "croma_vit_tiny", "--sensors", f"s2={tmp_path / name}"]) == 2
        assert f"cannot read the sensor in {tmp_path / name}" in capsys.readouterr().err
