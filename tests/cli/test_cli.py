"""The command line, in process: what it prints, writes and answers to mistakes."""

import copy
import hashlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import rsbackbones as rsb
from rsbackbones.cli import commands, main
from tests import forked
from tests.conftest import RECORDED
from tests.data.test_rasters import S1, S2, write_tif
from tests.embed.test_embed import inputs, optical, place, plain_map, plain_pooled, radar, read_map
from tests.reference import croma_plain

DATA = RECORDED
MANIFEST = Path(__file__).parents[2] / "weights_manifest.json"
SCRIPT = Path(sys.executable).with_name("rsbackbones")
OFFICIAL, PRETRAIN = DATA / "croma_official_d32.pt", DATA / "croma_pretrain_d32.pt"
# The recorded files are croma_vit_b in everything but width and depth.
SMALL = ["--model", "croma_vit_b", "--overrides", "dim=32", "--overrides", "depth=2"]
RANDOM = ["--model", "croma_vit_tiny", "--no-pretrained", "--no-progress"]
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(monkeypatch):
    for name in ("RSBACKBONES_MANIFEST", "RSBACKBONES_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(capsys):
    """Run a command; return its exit code and what it printed."""

    def run(*arguments):
        code = main([str(a) for a in arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def fails(run):
    """Run a command that must fail with exit code 2; return its message."""

    def fails(*arguments):
        code, out, err = run(*arguments)
        assert code == 2, out + err
        lines = [line for line in err.splitlines() if line.startswith(f"rsbackbones {arguments[0]}: ")]
        assert len(lines) == 1, err
        return lines[0]

    return fails


@pytest.fixture
def pair(tmp_path):
    """Both sensors of one place."""
    images = {"s2": optical(32, 48), "s1": radar(32, 48)}
    a = write_tif(tmp_path / "a_s2.tif", images["s2"], S2)
    b = write_tif(tmp_path / "a_s1.tif", images["s1"], S1)
    return a, b, images


def random_model(**options):
    torch.manual_seed(0)
    return rsb.create_model("croma_vit_tiny", **options)


# -- the command itself -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "printed"),
    [
        ("list --json", 0, '{\n "models": ['),
        ("info croma_vit_x", 2, "rsbackbones info: unknown model 'croma_vit_x'"),
        ("bands croma_vit_tiny --bands B02,B03", 0, "s2"),
        ("download croma_vit_tiny", 0, "croma_vit_tiny.samples: "),
        ("verify croma_vit_tiny", 0, "croma_vit_tiny.samples: "),
        (f"convert {OFFICIAL} x.pt --model croma_vit_b", 2, "rsbackbones convert: "),
        ("finetune --list", 0, "| recipe | model | "),
        ("pack nowhere --output x", 2, "rsbackbones pack: "),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else None,
)
def test_the_console_script_runs_the_commands(arguments, code, printed, tmp_path):
    """The tests of killed runs do so with embed, eval and training; all others call ``main``."""
    done = forked.run([sys.executable, SCRIPT, *arguments.split()], cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert (done.stderr if code else done.stdout).startswith(printed)


def test_version_and_help(capsys):
    version = f"rsbackbones {rsb.__version__}"
    for option, expected in [("--version", version), ("--help", "Usage: rsbackbones")]:
        assert main([option]) == 0
        assert capsys.readouterr().out.startswith(expected)


@pytest.mark.parametrize("command", commands.commands.values(), ids=lambda command: command.name)
def test_every_command_explains_itself(command, capsys):
    assert main([command.name, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"Usage: rsbackbones {command.name}")
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help
            assert parameter.opts[0] in out
        else:
            assert parameter.human_readable_name in out


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        (["embed", "a.tif", "--model", "m", "--out", "o.tif"], "--output"),
        (["embed", "a.tif", "--model", "m", "--output", "o.tif", "--sensor", "s2=rgb"], "--sensors"),
        (
            ["eval", "knn", "--model", "m", "--data", "d", "--output", "o", "--overide", "depth=3"],
            "--overrides",
        ),
        (["pack", "a.npz", "--outputs", "o"], "--output"),
        (["embd"], "embed"),
    ],
)
def test_what_is_misspelled_or_abbreviated_is_answered_with_what_is_meant(wrong, right, capsys):
    assert main(wrong) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("rsbackbones")
    assert "No such" in message
    assert f"'{right}'" in message


@pytest.mark.parametrize(
    ("option", "value", "limit"),
    [("--batch-size", "0", "x>=1"), ("--window", "-8", "x>=1"), ("--overlap", "-1", "x>=0"),
     ("--missing-bands", "guess", "'nearest'"), ("--kernel-scale", "2", "'sqrt'")],
)  # fmt: skip
def test_values_out_of_range_are_answered_with_option_value_and_range(option, value, limit, capsys):
    assert main(["embed", "a.tif", "--model", "m", "--output", "o.tif", option, value]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert all(word in message for word in (option, value, limit))


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["frobnicate"],
        ["embed", "a.tif"],
        ["embed", "a.tif", "--model", "m", "--output", "o.tif", "--nodata", "none"],
        ["embed", "a.tif", "--model", "m", "--output", "o.tif", "--no-pretrained", "--checkpoint", "c.pt"],
        ["convert", "a.pt", "b.safetensors"],
        ["convert", "a.pt", "b.safetensors", "--model", "m", "--dtype", "float8"],
    ],
)
def test_malformed_commands_exit_with_2(arguments, capsys):
    assert main(arguments) == 2
    assert "Usage: rsbackbones" in capsys.readouterr().err


def test_an_option_for_one_sensor_given_twice_is_refused(fails, capsys):
    twice = ["--units", "s2=dn", "--units", "s2=reflectance"]
    assert main(["embed", "a.tif", "--model", "m", "--output", "o.tif", *twice]) == 2
    assert "s2 is given twice" in capsys.readouterr().err
    assert "s2 are given twice" in fails("bands", "croma_vit_b", "--bands", "B02", "--bands", "s2=B03")


def test_info_of_a_model_without_weights_names_weights_that_exist(fails):
    assert "croma_vit_b.ssl4eo_s12" in fails("info", "croma_vit_b.other")


def test_a_warning_is_one_line_without_the_code_that_gave_it(tmp_path):
    """In a new interpreter: pytest records warnings and prints none."""
    write_tif(tmp_path / "s2.tif", np.full((12, 13, 13), 500, np.uint16), S2)
    words = ["embed", "s2.tif", "--modalities", "s2", *RANDOM, "--output", "m.tif"]
    ended = forked.run([sys.executable, SCRIPT, *map(str, words)], cwd=tmp_path)
    assert "UserWarning: s2.tif: the map does not cover" in ended.stderr
    assert ".py" not in ended.stderr


def test_a_reader_that_stops_early_is_no_error():
    """Of the console script, in a new interpreter."""
    command = f"{shlex.quote(str(SCRIPT))} list --json | head -n 1; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "{\n", "")


def test_ctrl_c_ends_without_a_traceback(run, pair, tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    hook = torch.nn.modules.module.register_module_forward_pre_hook(stop)
    try:
        code, _, err = run("embed", pair[0], *RANDOM, "--output", tmp_path / "map.tif")
    finally:
        hook.remove()
    assert code == 130
    assert err.splitlines()[-1] == "interrupted"


# -- a manifest of one's own --------------------------------------------------------------------------


def plain_golden(state, heads):
    """Golden activations by the plain version in float64, for a checkpoint of the released layout."""
    images = {}
    for sensor, count in (("s2", 12), ("s1", 2)):
        image = torch.empty(1, count, 32, 48, dtype=torch.float64)
        for band in range(count):
            for row in range(32):
                for column in range(48):
                    step = row * 7 + column * 13 + band * 29 + (row // 8) * (column // 8) * 31
                    image[0, band, row, column] = (step % 256) / 255
        images[sensor] = image
    state = {part: {k: v.double() for k, v in tensors.items()} for part, tensors in state.items()}
    tokens, pooled = croma_plain.croma(images, state, heads)
    streams = {
        stream: {
            "pooled": pooled[stream][0, :8].tolist(),
            "first_token": x[0, 0, :8].tolist(),
            "last_token": x[0, -1, :8].tolist(),
            "mean_abs": float(x.abs().mean()),
        }
        for stream, x in tokens.items()
    }
    return {"size": [32, 48], "tolerance": 1e-4, "streams": streams}


class Zoo:
    """A folder of weights and a manifest that pins them."""

    def __init__(self, folder):
        self.folder, self.entries = folder / "zoo", []
        self.manifest = folder / "own_manifest.json"
        self.folder.mkdir()

    def add(self, **fields):
        published = json.loads(MANIFEST.read_text())["weights"][0]
        entry = {
            "id": "croma_vit_b.mine",
            "architecture": "croma_vit_b",
            "config": {"dim": 32, "depth": 2},
            "source": {
                "kind": "hub",
                "repo_id": "me/zoo",
                "revision": REVISION,
                "filename": "x.safetensors",
            },
            "format": "rsbackbones",
            "inputs": published["inputs"],
            "image_size": 120,
            "license": "CC0-1.0",
            "provenance": "Drawn at random for a test.",
        }
        self.entries.append(entry | fields)
        self.manifest.write_text(json.dumps({"schema_version": 1, "weights": self.entries}))


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """The recorded small checkpoint in our format, and golden activations."""
    file = tmp_path_factory.mktemp("mine") / "model.safetensors"
    assert main(["convert", str(OFFICIAL), str(file), *SMALL]) == 0
    return file.read_bytes(), plain_golden(torch.load(OFFICIAL, weights_only=True), heads=16)


@pytest.fixture
def zoo(mine, tmp_path, monkeypatch):
    """`croma_vit_b.mine`: the recorded small checkpoint in our format, in a folder."""
    zoo = Zoo(tmp_path)
    content, golden = mine
    (zoo.folder / "croma_vit_b.mine.safetensors").write_bytes(content)
    zoo.add(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content), golden=copy.deepcopy(golden))
    monkeypatch.setenv("RSBACKBONES_MANIFEST", str(zoo.manifest))
    return zoo


@pytest.fixture
def no_weights(tmp_path, monkeypatch):
    """A manifest in which croma_vit_tiny has no weights, whatever the package's says."""
    source = {"kind": "unreleased", "reason": "the dog ate them"}
    fields = {"id": "croma_vit_tiny.none", "architecture": "croma_vit_tiny", "config": {}, "default": True}
    zoo = Zoo(tmp_path)
    zoo.add(source=source, **fields)
    monkeypatch.setenv("RSBACKBONES_MANIFEST", str(zoo.manifest))


# -- list and info ------------------------------------------------------------------------------------


def test_list_names_every_model_and_its_weights(run, zoo):
    code, out, _ = run("list")
    assert code == 0
    lines = out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == rsb.list_models()
    assert any(line.split()[:2] == ["croma_vit_b.ssl4eo_s12", "(default)"] for line in lines)
    mine = next(line for line in lines if "croma_vit_b.mine" in line)
    assert re.search(r"hub, s2 12 bands, s1 2 bands, CC0-1\.0", mine)
    # Under its architecture, before the next one.
    assert lines.index("croma_vit_b") < lines.index(mine) < lines.index("croma_vit_l")


def test_list_says_why_there_are_none(run, no_weights):
    _, out, _ = run("list", "croma_vit_tiny")
    assert re.search(r"croma_vit_tiny\.none +unreleased: the dog ate them", out)


def test_list_json_is_the_manifest_in_short(run):
    code, out, _ = run("list", "--json")
    assert code == 0
    found = json.loads(out)
    manifest = json.loads(MANIFEST.read_text())["weights"]
    assert set(found["models"]) >= {"croma_vit_tiny", "croma_vit_s", "croma_vit_b", "croma_vit_l"}
    assert {w["id"]: (w["availability"], w["license"]) for w in found["weights"]} == {
        e["id"]: (e["source"]["kind"], e["license"]) for e in manifest
    }
    for weights in found["weights"]:
        assert bool(weights["reason"]) == (weights["availability"] == "unreleased")
    base = next(w for w in found["weights"] if w["id"] == "croma_vit_b.ssl4eo_s12")
    assert base["bands"] == {"s2": list(S2), "s1": list(S1)}


def test_list_takes_a_pattern(run, fails, zoo):
    _, out, _ = run("list", "croma*_b*", "--json")
    found = json.loads(out)
    assert found["models"] == ["croma_vit_b"]
    assert [w["id"] for w in found["weights"]] == ["croma_vit_b.mine", "croma_vit_b.ssl4eo_s12"]
    _, out, _ = run("list", "*.mine")
    assert re.findall(r"\S*croma_vit\S*", out) == ["croma_vit_b", "croma_vit_b.mine"]
    assert "'convnext*'" in fails("list", "convnext*")


def test_list_filters_by_sensor_method_data_license_and_bands(run, fails):
    code, out, _ = run("list", "--sensor", "s1", "--method", "softcon", "--json")
    assert code == 0
    found = [each["id"] for each in json.loads(out)["weights"]]
    assert found == [f"{name}.ssl4eo_s12_softcon_s1" for name in ("resnet50", "vit_b14", "vit_s14")]
    filters = ["--data", "ssl4eco", "--license", "permissive", "--bands", "B01,B02"]
    _, out, _ = run("list", *filters)
    assert [line for line in out.splitlines() if line.startswith("  ")] == [
        "  resnet50.ssl4eco_seco_eco_s2  hub, s2 12 bands, MIT"
    ]
    _, out, _ = run("list", "resnet50.*", "--data", "fmow")
    assert "none stated (see its card)" in out
    assert "--method none" in fails("list", "--method", "none")


def test_info_is_the_card_of_an_entry(run, zoo):
    code, out, _ = run("info", "croma_vit_b.mine")
    assert code == 0
    assert out.startswith("# croma_vit_b.mine\n")
    for expected in (
        "Drawn at random for a test.",
        f"me/zoo/x.safetensors@{REVISION}",
        zoo.entries[0]["sha256"],
        "CC0-1.0",
        "golden activations: recorded",
        "| B8A |",
        "| VH |",
    ):
        assert expected in out
    assert "# croma_vit_b.ssl4eo_s12" not in out
    _, out, _ = run("info", "croma_vit_b")
    assert re.findall(r"^# (.*)", out, re.MULTILINE) == ["croma_vit_b.mine", "croma_vit_b.ssl4eo_s12"]


def test_info_states_the_size_of_the_weights_and_not_of_the_name(run, zoo):
    # The entry's config makes this croma_vit_b a small one.
    _, out, _ = run("info", "croma_vit_b.mine")
    assert "dim 32, depth 2, 16 heads, patch 8" in out


@pytest.mark.parametrize("command", ["info", "download", "verify"])
def test_unknown_names_are_answered_with_close_ones(fails, command):
    message = fails(command, "croma_vit_bb")
    assert "croma_vit_bb" in message
    assert "croma_vit_b" in message.replace("croma_vit_bb", "")


def test_an_unknown_model_for_embed_is_answered_with_close_ones(fails, pair, tmp_path):
    output = ["--no-pretrained", "--output", tmp_path / "map.tif"]
    assert "did you mean croma_vit_tiny" in fails("embed", pair[0], "--model", "croma_vit_tini", *output)


def test_an_unknown_tag_is_named(fails):
    assert "croma_vit_b.nix" in fails("info", "croma_vit_b.nix")
    assert "croma_vit_b.ssl4eo_s12" in fails("verify", "croma_vit_b.nix")


# -- verify and download ------------------------------------------------------------------------------


def test_verify_hashes_loads_and_compares_features(run, zoo):
    code, out, _ = run("verify", "croma_vit_b.mine", "--checkpoint", zoo.folder)
    assert code == 0
    assert f"sha256 {zoo.entries[0]['sha256']}, as pinned in full" in out
    assert "within 0.0001 of those recorded" in out


@pytest.mark.parametrize("number", ["pooled", "first_token", "last_token", "mean_abs"])
def test_verify_fails_where_features_are_not_those_recorded(run, zoo, number):
    recorded = zoo.entries[0]["golden"]["streams"]["joint"]
    if number == "mean_abs":
        recorded[number] += 2e-4
    else:
        recorded[number][5] -= 2e-4
    zoo.manifest.write_text(json.dumps({"schema_version": 1, "weights": zoo.entries}))
    code, out, _ = run("verify", "croma_vit_b.mine", "--checkpoint", zoo.folder)
    assert code == 1
    assert re.search(rf"features: DIFFERENT from those recorded\n  joint {number}: differs by 0\.000", out)


def test_verify_refuses_a_recorded_number_that_is_not_a_number(fails, zoo):
    zoo.entries[0]["golden"]["streams"]["s2"]["pooled"][0] = float("nan")
    zoo.manifest.write_text(json.dumps({"schema_version": 1, "weights": zoo.entries}))
    assert "golden" in fails("verify", "croma_vit_b.mine", "--checkpoint", zoo.folder)


def test_verify_without_golden_activations_says_so(run, zoo):
    zoo.entries[0]["golden"] = None
    zoo.manifest.write_text(json.dumps({"schema_version": 1, "weights": zoo.entries}))
    code, out, _ = run("verify", "croma_vit_b.mine", "--checkpoint", zoo.folder)
    assert code == 0
    assert "features: not compared" in out


def test_verify_refuses_other_bytes(fails, zoo):
    file = zoo.folder / "croma_vit_b.mine.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    message = fails("verify", "croma_vit_b.mine", "--checkpoint", zoo.folder)
    assert zoo.entries[0]["sha256"] in message
    assert hashlib.sha256(content).hexdigest() in message


def test_verify_names_what_a_folder_lacks(fails, zoo, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder in (empty, tmp_path / "absent"):
        message = fails("verify", "croma_vit_b.mine", "--checkpoint", folder)
        assert f"rsbackbones download croma_vit_b.mine --output {folder}" in message


def test_download_copies_verified_weights_to_carry_along(run, zoo, pair, tmp_path, monkeypatch):
    carried = tmp_path / "new" / "folder"
    monkeypatch.setenv("RSBACKBONES_WEIGHTS", str(zoo.folder))
    code, out, _ = run("download", "croma_vit_b.mine", "--output", carried)
    assert code == 0
    assert zoo.entries[0]["sha256"] in out
    assert f"RSBACKBONES_WEIGHTS={carried}" in out
    assert {p.name for p in carried.iterdir()} == {"croma_vit_b.mine.safetensors", "manifest.json"}
    monkeypatch.delenv("RSBACKBONES_WEIGHTS")

    options = ["--model", "croma_vit_b.mine", "--checkpoint", carried, "--no-progress"]
    code, _, err = run("embed", *pair[:2], *options, "--output", tmp_path / "rows.npz")
    assert code == 0
    assert "weights: croma_vit_b.mine" in err
    recorded = rsb.create_model("croma_vit_b", checkpoint=OFFICIAL, overrides={"dim": 32, "depth": 2})
    expected = plain_pooled(recorded, pair[2])
    with np.load(tmp_path / "rows.npz") as rows:
        np.testing.assert_allclose(rows["joint"][0], expected["joint"], atol=1e-5)


# -- embed: which weights -----------------------------------------------------------------------------


def test_embed_without_weights_says_so_and_what_to_do(fails, pair, no_weights, tmp_path):
    message = fails("embed", pair[0], "--model", "croma_vit_tiny", "--output", tmp_path / "map.tif")
    assert "the dog ate them" in message
    assert "croma_vit_b.ssl4eo_s12" in message  # weights that exist
    assert "--no-pretrained" in message
    assert not list(tmp_path.glob("map*"))


def test_embed_with_random_weights_says_so_and_is_repeatable(run, pair, tmp_path):
    code, out, err = run("embed", *pair[:2], *RANDOM, "--output", tmp_path / "map.tif")
    assert code == 0
    assert out.split() == [str(tmp_path / "map.tif"), str(tmp_path / "map.png")]
    assert "RANDOM" in err
    expected = plain_map(random_model(), pair[2], "joint")
    np.testing.assert_allclose(read_map(tmp_path / "map.tif"), expected, atol=1e-5)
    code, out, _ = run("embed", *pair[:2], *RANDOM, "--output", tmp_path / "rows.npz")
    assert code == 0
    assert out.split() == [str(tmp_path / "rows.npz")]
    with np.load(tmp_path / "rows.npz") as rows:
        expected = plain_pooled(random_model(), pair[2])["joint"]
        np.testing.assert_allclose(rows["joint"][0], expected, atol=1e-5)


def test_embed_with_a_saved_file(run, pair, tmp_path):
    torch.manual_seed(5)
    model = rsb.create_model("croma_vit_tiny", num_classes=3)
    file = rsb.save_model(model, tmp_path / "mine.safetensors")
    options = ["--model", "croma_vit_tiny", "--checkpoint", file, "--no-progress", "--stream", "s1"]
    code, _, err = run("embed", *pair[:2], *options, "--output", tmp_path / "map.tif")
    assert code == 0
    assert f"weights: {file}" in err
    assert "RANDOM" not in err
    expected = plain_map(model, pair[2], "s1")
    np.testing.assert_allclose(read_map(tmp_path / "map.tif"), expected, atol=1e-5)


def test_embed_with_a_foreign_file_of_another_size(run, pair, tmp_path):
    options = [*SMALL, "--checkpoint", OFFICIAL, "--no-progress"]
    assert run("embed", *pair[:2], *options, "--output", tmp_path / "rows.npz")[0] == 0
    state = torch.load(OFFICIAL, weights_only=True)
    model = rsb.create_model("croma_vit_b", overrides={"dim": 32, "depth": 2})
    tokens, pooled = croma_plain.croma(inputs(model, pair[2]), state, heads=16)
    assert set(tokens) == {"s2", "s1", "joint"}
    with np.load(tmp_path / "rows.npz") as rows:
        for stream, expected in pooled.items():
            np.testing.assert_allclose(rows[stream], expected.numpy(), atol=1e-5)


# -- embed: which rasters -----------------------------------------------------------------------------


def test_embed_leaves_out_the_weights_of_missing_bands_when_asked(run, fails, tmp_path):
    torch.manual_seed(5)
    model = rsb.create_model("croma_vit_tiny", modalities=("s2",))
    file = rsb.save_model(model, tmp_path / "mine.safetensors")
    data = optical(32, 48)
    kept = [7, 1, 3, 2]
    source = write_tif(tmp_path / "four.tif", data[kept], [S2[i] for i in kept])
    options = [
        "--model",
        "croma_vit_tiny",
        "--checkpoint",
        file,
        "--no-progress",
        "--output",
        tmp_path / "map.tif",
    ]
    message = fails("embed", source, *options)
    assert "B01, B05, B06, B07, B8A, B09, B11, B12" in message
    assert "--allow-dropped-bands" in message
    code, _, err = run("embed", source, *options, "--allow-dropped-bands")
    assert code == 0
    assert re.search(r"dropped pretrained bands: B01, B05, B06, B07, B8A, B09, B11, B12", err)
    # The same as all bands with nothing in these columns of the tokenizer, and the others 12 / 4 times.
    with torch.no_grad():
        weight = model.encoders["s2"].tokenizer.proj.weight.unflatten(1, (12, 64))
        weight[:, [i for i in range(12) if i not in kept]] = 0
        weight *= 3
    np.testing.assert_allclose(
        read_map(tmp_path / "map.tif"), plain_map(model, {"s2": data}, "s2"), atol=1e-5
    )


def test_embed_takes_band_names_once_for_all_or_once_per_raster(run, fails, tmp_path):
    data = [optical(32, 32, seed=i) for i in range(2)]
    sources = [write_tif(tmp_path / f"{i}.tif", x, transform=place(i)) for i, x in enumerate(data)]
    forwards, backwards = ",".join(S2), ", ".join(reversed(S2))
    output = ["--output", tmp_path / "rows.npz"]
    message = fails("embed", *sources, *RANDOM, *output)
    assert "0.tif" in message
    assert "--bands" in message
    model = random_model(modalities=("s2",))

    assert run("embed", *sources, *RANDOM, *output, "--bands", forwards)[0] == 0
    with np.load(tmp_path / "rows.npz") as rows:
        for row, x in zip(rows["s2"], data, strict=True):
            np.testing.assert_allclose(row, plain_pooled(model, {"s2": x})["s2"], atol=1e-5)

    bands = ["--bands", forwards, "--bands", backwards]
    assert run("embed", *sources, *RANDOM, *output, *bands)[0] == 0
    with np.load(tmp_path / "rows.npz") as rows:
        for row, x in zip(rows["s2"], (data[0], data[1][::-1]), strict=True):
            np.testing.assert_allclose(row, plain_pooled(model, {"s2": x})["s2"], atol=1e-5)

    message = fails("embed", *sources, *RANDOM, *output, *bands, "--bands", forwards)
    assert "3 times for 2 rasters" in message


def test_embed_takes_folders_of_rasters(run, fails, tmp_path):
    folder = tmp_path / "patches"
    folder.mkdir()
    (folder / "notes.txt").write_text("not a raster")
    for i, name in enumerate(["c.TIF", "a.tif", "b.tiff"]):
        write_tif(folder / name, optical(32, 32, seed=i), S2, transform=place(i))
    assert run("embed", folder, *RANDOM, "--output", tmp_path / "rows.npz")[0] == 0
    with np.load(tmp_path / "rows.npz") as rows:
        assert [Path(p).name for p in rows["paths"]] == ["a.tif", "b.tiff", "c.TIF"]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no .tif, .tiff, .jp2 in the folder" in fails(
        "embed", empty, *RANDOM, "--output", tmp_path / "rows.npz"
    )


def test_embed_uses_the_sensors_asked_for(run, fails, pair, tmp_path):
    a, b, images = pair
    both = np.concatenate([images["s1"], images["s2"].astype(np.float32)])
    source = write_tif(tmp_path / "both.tif", both, (*S1, *S2))
    options = [*RANDOM, "--output", tmp_path / "map.tif"]
    code, _, err = run("embed", source, *options, "--modalities", "s1")
    assert code == 0
    assert "both.tif: not used: B01, B02" in err
    expected = plain_map(random_model(modalities=("s1",)), {"s1": images["s1"]}, "s1")
    np.testing.assert_allclose(read_map(tmp_path / "map.tif"), expected, atol=1e-5)
    assert "no raster holds bands of s1" in fails("embed", a, *options, "--modalities", "s2,s1")
    assert "s9" in fails("embed", a, b, *options, "--modalities", "s2,s9")


def test_embed_leaves_out_rasters_of_sensors_not_asked_for(run, pair, tmp_path):
    # What the message about a missing partner advises must work on the same files.
    a, b, images = pair
    alone = write_tif(tmp_path / "b_s2.tif", optical(32, 48, seed=7), S2, transform=place(3))
    code, _, err = run("embed", a, b, alone, *RANDOM, "--output", tmp_path / "rows.npz")
    assert code == 2
    assert "--modalities s2" in err
    options = ["--modalities", "s2", "--output", tmp_path / "rows.npz"]
    code, _, err = run("embed", a, b, alone, *RANDOM, *options)
    assert code == 0, err
    assert "a_s1.tif" in err
    with np.load(tmp_path / "rows.npz") as rows:
        assert rows["paths"].tolist() == [str(a), str(alone)]
        expected = plain_pooled(random_model(modalities=("s2",)), {"s2": images["s2"]})["s2"]
        np.testing.assert_allclose(rows["s2"][0], expected, atol=1e-5)


def test_embed_leaves_out_patches_without_data_when_asked(run, fails, tmp_path):
    data = optical(32, 32)
    good = write_tif(tmp_path / "good.tif", data, S2)
    data[:, 5, 5] = 0
    bad = write_tif(tmp_path / "bad.tif", data, S2)
    options = [*RANDOM, "--output", tmp_path / "rows.npz"]
    for nodata in ((), ("--nodata", "0")):  # zero in all optical bands is no measurement
        message = fails("embed", bad, good, *options, *nodata)
        assert "bad.tif" in message
        assert "--skip-nodata" in message
    code, _, err = run("embed", bad, good, *options, "--nodata", "0", "--skip-nodata")
    assert code == 0
    assert f"left out, pixels without data: {bad}" in err
    with np.load(tmp_path / "rows.npz") as rows:
        assert rows["paths"].tolist() == [str(good)]


def test_embed_takes_units(run, fails, pair, tmp_path):
    a, b, images = pair
    offset = write_tif(tmp_path / "offset.tif", images["s2"] + 1000, S2)
    linear = write_tif(tmp_path / "linear.tif", (10 ** (images["s1"] / 10)).astype(np.float32), S1)
    output = tmp_path / "map.tif"
    assert run("embed", a, b, *RANDOM, "--output", output)[0] == 0
    expected = read_map(output)
    units = ["--units", "s2=dn_baseline_0400", "--units", "s1=linear"]
    assert run("embed", offset, linear, *RANDOM, *units, "--output", output)[0] == 0
    # The logarithm in float32 puts a few values on the other side of an 8-bit step.
    np.testing.assert_allclose(read_map(output), expected, atol=0.02)
    for unit, word in [("s2=percent", "percent"), ("s2", "s2"), ("s7=dn", "s7")]:
        assert word in fails("embed", a, b, *RANDOM, "--units", unit, "--output", output)


def test_embed_takes_window_and_overlap(run, tmp_path):
    source = write_tif(tmp_path / "scene.tif", optical(64, 64), S2)
    options = [*RANDOM, "--window", "32", "--overlap", "0", "--batch-size", "3"]
    assert run("embed", source, *options, "--output", tmp_path / "map.tif")[0] == 0
    model, found = random_model(modalities=("s2",)), read_map(tmp_path / "map.tif")
    for row in (0, 4):
        for column in (0, 4):
            part = optical(64, 64)[:, row * 8 : row * 8 + 32, column * 8 : column * 8 + 32]
            expected = plain_map(model, {"s2": part}, "s2")
            np.testing.assert_allclose(found[row : row + 4, column : column + 4], expected, atol=1e-5)


# -- embed: mistakes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--overrides", "dpeth=4"], ["dpeth", "depth"]),
        (["--overrides", "depth"], ["--overrides", "FIELD=VALUE", "depth"]),
        (["--overrides", "depth=3"], ["depth", "3"]),
        (["--overrides", "num_heads=5"], ["num_heads=5"]),
        (["--overrides", "dim=wide"], ["dim", "wide"]),
        (["--overrides", "dim=[96]"], ["dim"]),
        (["--overrides", "patch_size=0"], ["patch_size"]),
        (["--batch-size", "0"], ["batch"]),
        (["--batch-size", "-1"], ["batch"]),
        (["--window", "60"], ["window", "60", "8"]),
        (["--stream", "joint"], ["joint", "s2"]),
        (["--device", "abacus"], ["abacus"]),
    ],
)
def test_embed_answers_mistakes_with_a_message(fails, pair, tmp_path, options, words):
    message = fails("embed", pair[0], *RANDOM, *options, "--output", tmp_path / "map.tif")
    for word in words:
        assert word in message
    assert not (tmp_path / "map.tif").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_embed_on_a_device_that_is_not_there_is_a_message(fails, pair, tmp_path):
    message = fails("embed", pair[0], *RANDOM, "--device", "cuda", "--output", tmp_path / "map.tif")
    assert "cuda" in message


@pytest.mark.parametrize("name", ["map", "map.png", "map.csv", "absent/map.tif", "absent/rows.npz"])
def test_embed_refuses_outputs_that_it_cannot_write(fails, pair, tmp_path, name):
    message = fails("embed", pair[0], *RANDOM, "--output", tmp_path / name)
    assert name.split("/")[-1] in message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a_s1.tif", "a_s2.tif"]


def test_embed_refuses_unreadable_rasters(fails, pair, tmp_path):
    text = tmp_path / "notes.tif"
    text.write_text("not a raster")
    for source in (text, tmp_path / "absent.tif"):
        message = fails("embed", pair[0], source, *RANDOM, "--output", tmp_path / "map.tif")
        assert f"cannot read {source}" in message


def test_messages_name_the_options_of_the_command_line(run, fails, tmp_path):
    # Whoever types commands knows no create_preprocess and no keyword arguments.
    scaled = write_tif(tmp_path / "scaled.tif", (optical(32, 48) / 1e4).astype(np.float32), S2)
    for name in ("map.tif", "rows.npz"):
        message = fails("embed", scaled, *RANDOM, "--output", tmp_path / name)
        assert "look like reflectances" in message
        assert "--units s2=reflectance" in message
    units = ["--units", "s2=reflectance", "--output", tmp_path / "map.tif"]
    assert run("embed", scaled, *RANDOM, *units)[0] == 0


def test_random_weights_are_accepted_for_every_model_that_is_named_rightly(run, fails, pair, tmp_path):
    options = ["--no-pretrained", "--output", tmp_path / "map.tif", "--no-progress"]
    for name in ("croma_vit_tiny", "croma_vit_s.untrained"):
        code, _, err = run("embed", pair[0], "--model", name, *options)
        assert code == 0, err
        assert "RANDOM" in err
    assert "no weights croma_vit_tiny.bogus" in fails(
        "embed", pair[0], "--model", "croma_vit_tiny.bogus", *options
    )


def test_a_checkpoint_of_another_size_is_a_short_message(fails, tmp_path):
    # Some hundred tensors differ; a screen holds the first few, and what to do about it.
    message = fails("convert", OFFICIAL, tmp_path / "x.safetensors", "--model", "croma_vit_b")
    assert "does not hold this model" in message
    assert "--overrides" in message
    assert len(message) < 3000


# -- convert ------------------------------------------------------------------------------------------


def flattened(content):
    """A nested dictionary of tensors under dotted names."""
    flat = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": tensor for name, tensor in value.items()}
        else:
            flat[key] = value
    return flat


def assert_same_tensors(found, expected):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def difference_from_recorded(path, options=None):
    """The largest difference between the features of a file and those recorded by the authors' code."""
    recorded = np.load(OFFICIAL.with_suffix(".npz"))
    model = rsb.create_model("croma_vit_b", checkpoint=path, overrides=options)
    images = {m: torch.from_numpy(recorded[f"{m}_uint8_96"]).float() / 255 for m in ("s2", "s1")}
    with torch.inference_mode():
        features = model.forward_features(images)
    return max(
        float((features.tokens[s] - torch.from_numpy(recorded[f"{s}_tokens_96"])).abs().max())
        for s in ("s2", "s1", "joint")
    )


CHAINS = {
    "nested": [("croma_official", [])],
    "flat": [("croma_official", ["--flat"])],
    "pretrain": [("croma_pretrain", [])],
    "all": [("croma_official", ["--flat"]), ("croma_pretrain", []), ("croma_official", [])],
}


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_convert_there_and_back_changes_nothing(run, tmp_path, chain):
    ours = tmp_path / "ours.safetensors"
    code, out, _ = run("convert", OFFICIAL, ours, *SMALL)
    assert code == 0
    assert out.split() == [str(ours)]
    first = load_file(ours)
    current = ours
    for i, (layout, more) in enumerate(chain):
        following = tmp_path / f"{i}.pt"
        assert run("convert", current, following, *SMALL, "--format", layout, *more)[0] == 0
        current = following
    back = tmp_path / "back.safetensors"
    assert run("convert", current, back, *SMALL)[0] == 0
    assert_same_tensors(load_file(back), first)
    # Our file describes itself: no overrides are needed to read it.
    assert difference_from_recorded(back) < 1e-5
    assert difference_from_recorded(current, {"dim": 32, "depth": 2}) < 1e-5
    with torch.inference_mode():
        images = {"s2": torch.rand(1, 12, 24, 40), "s1": torch.rand(1, 2, 24, 40)}
        a, b = (rsb.create_model("croma_vit_b", checkpoint=f).forward_features(images) for f in (ours, back))
    for stream in a.tokens:
        torch.testing.assert_close(a.tokens[stream], b.tokens[stream], atol=1e-6, rtol=0)
        torch.testing.assert_close(a.pooled[stream], b.pooled[stream], atol=1e-6, rtol=0)


def test_convert_writes_the_authors_file_again(run, tmp_path):
    theirs = torch.load(OFFICIAL, weights_only=True)
    assert run("convert", OFFICIAL, tmp_path / "nested.pt", *SMALL, "--format", "croma_official")[0] == 0
    nested = torch.load(tmp_path / "nested.pt", weights_only=True)
    assert set(nested) == set(theirs)
    for part, tensors in theirs.items():
        assert_same_tensors(nested[part], tensors)
    options = ["--format", "croma_official", "--flat"]
    assert run("convert", OFFICIAL, tmp_path / "flat.pt", *SMALL, *options)[0] == 0
    assert_same_tensors(torch.load(tmp_path / "flat.pt", weights_only=True), flattened(theirs))


def test_convert_takes_the_encoders_out_of_a_pretraining_file(run, tmp_path):
    code, _, err = run("convert", PRETRAIN, tmp_path / "ours.safetensors", *SMALL)
    assert code == 0
    assert re.search(r"not part of the model +decoder, global_contrast_loss", err)
    again = [tmp_path / "ours.safetensors", tmp_path / "again.pt", *SMALL, "--format", "croma_pretrain"]
    assert run("convert", *again)[0] == 0
    theirs = torch.load(PRETRAIN, weights_only=True)
    kept = {k: v for k, v in theirs.items() if not k.startswith(("decoder.", "global_contrast_loss."))}
    assert len(kept) < len(theirs)
    assert_same_tensors(torch.load(tmp_path / "again.pt", weights_only=True), kept)

    # The same encoders under the released names compute what the plain version does.
    released = [tmp_path / "ours.safetensors", tmp_path / "released.pt", *SMALL, "--format", "croma_official"]
    assert run("convert", *released)[0] == 0
    state = torch.load(tmp_path / "released.pt", weights_only=True)
    images = {"s2": torch.rand(1, 12, 16, 24), "s1": torch.rand(1, 2, 16, 24)}
    tokens, pooled = croma_plain.croma(images, state, heads=16)
    model = rsb.create_model("croma_vit_b", checkpoint=tmp_path / "ours.safetensors")
    with torch.inference_mode():
        features = model.forward_features(images)
    for stream in ("s2", "s1", "joint"):
        torch.testing.assert_close(features.tokens[stream], tokens[stream], atol=1e-5, rtol=0)
        torch.testing.assert_close(features.pooled[stream], pooled[stream], atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_convert_to_half_precision_halves_the_file(run, tmp_path, dtype):
    full, half = tmp_path / "full.safetensors", tmp_path / "half.safetensors"
    assert run("convert", OFFICIAL, full, *SMALL)[0] == 0
    assert run("convert", OFFICIAL, half, *SMALL, "--dtype", dtype)[0] == 0
    first, second = load_file(full), load_file(half)
    assert {t.dtype for t in second.values()} == {getattr(torch, dtype)}
    assert_same_tensors(second, {k: v.to(getattr(torch, dtype)) for k, v in first.items()})
    assert 1e-5 < difference_from_recorded(half) < (0.01 if dtype == "float16" else 0.1)


def test_convert_keeps_only_the_sensors_asked_for(run, tmp_path):
    ours = tmp_path / "s2.safetensors"
    code, _, err = run("convert", OFFICIAL, ours, *SMALL, "--modalities", "s2")
    assert code == 0
    assert re.search(r"dropped +s1", err)
    state = torch.load(OFFICIAL, weights_only=True)
    kept = {k for k in flattened(state) if k.startswith("s2_")}
    assert len(load_file(ours)) == len(kept)
    model = rsb.create_model("croma_vit_b", checkpoint=ours)
    image = torch.rand(1, 12, 16, 24)
    with torch.inference_mode():
        found = model(image)
    expected = croma_plain.croma({"s2": image}, state, heads=16)[1]["s2"]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)

    options = ["--modalities", "s2", "--format", "croma_official", "--flat"]
    assert run("convert", OFFICIAL, tmp_path / "s2.pt", *SMALL, *options)[0] == 0
    assert set(torch.load(tmp_path / "s2.pt", weights_only=True)) == kept


def test_a_foreign_file_of_one_sensor_is_read_back_with_that_sensor(run, tmp_path):
    options = ["--modalities", "s2", "--format", "croma_official"]
    assert run("convert", OFFICIAL, tmp_path / "s2.pt", *SMALL, *options)[0] == 0
    only = ["--overrides", 'modalities=["s2"]']
    assert run("convert", tmp_path / "s2.pt", tmp_path / "back.safetensors", *SMALL, *only)[0] == 0
    assert run("convert", OFFICIAL, tmp_path / "s2.safetensors", *SMALL, "--modalities", "s2")[0] == 0
    assert_same_tensors(load_file(tmp_path / "back.safetensors"), load_file(tmp_path / "s2.safetensors"))


def test_convert_refuses_what_does_not_fit(fails, tmp_path):
    def refused(*arguments):
        message = fails("convert", *arguments)
        assert not list(tmp_path.iterdir())
        return message

    x, pt = tmp_path / "x.safetensors", tmp_path / "x.pt"
    assert ".safetensors" in refused(OFFICIAL, pt, *SMALL)
    assert ".pt" in refused(OFFICIAL, x, *SMALL, "--format", "croma_official")
    assert "croma_official, croma_pretrain" in refused(OFFICIAL, pt, *SMALL, "--format", "timm")
    half = ["--format", "croma_official", "--dtype", "float16"]
    assert "--dtype float16" in refused(OFFICIAL, pt, *SMALL, *half)
    assert "no checkpoint file" in refused(DATA / "absent.pt", x, *SMALL)
    assert "is a folder" in refused(DATA, x, *SMALL)
    assert "croma_official_d32.npz" in refused(OFFICIAL.with_suffix(".npz"), x, *SMALL)
    assert "s9" in refused(OFFICIAL, x, *SMALL, "--modalities", "s9")
    assert "dpeth" in refused(OFFICIAL, x, *SMALL, "--overrides", "dpeth=2")
    assert "does not hold this model" in refused(OFFICIAL, x, "--model", "croma_vit_b.ssl4eo_s12")


def test_convert_refuses_another_architecture(run, fails, tmp_path):
    ours = tmp_path / "ours.safetensors"
    assert run("convert", OFFICIAL, ours, *SMALL)[0] == 0
    message = fails("convert", ours, tmp_path / "x.safetensors", "--model", "croma_vit_tiny")
    assert "holds croma_vit_b, not croma_vit_tiny" in message


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
def test_convert_names_a_folder_that_is_not_there(fails, tmp_path, name):
    to = ["--format", "croma_official"] if name.endswith(".pt") else []
    message = fails("convert", OFFICIAL, tmp_path / "absent" / name, *SMALL, *to)
    # Not the temporary name that was tried inside it.
    assert re.search(rf"the folder {re.escape(str(tmp_path / 'absent'))}(?!/\.)", message)
