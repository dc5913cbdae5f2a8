"""Texts of others are printed with their control characters written out."""

import io
import json
import sys
import warnings

import click
import pytest
from tqdm import tqdm

from rsbackbones.cli import main
from rsbackbones.files.terminal import escape_controls, plain_output
from rsbackbones.train.command import call_command

EVIL = "MIT \x1b]0;owned\x07\x1b[2J\x9b31m\rall verified\x08\x7f \u202egnp.exe"


def harmless(text):
    return all(sign.isprintable() or sign in "\n\t" for sign in text)


def test_what_is_escaped():
    assert escape_controls("ä 中 a\tb\n") == "ä 中 a\tb\n"
    assert escape_controls("a\x1b[1m\u202e\udcff\r!") == "a\\x1b[1m\\u202e\\udcff\\r!"
    assert harmless(escape_controls(EVIL))


def entry(**changes):
    return {
        "id": "croma_vit_tiny.mine", "default": True, "architecture": "croma_vit_tiny",
        "source": {"kind": "unreleased", "reason": f"none {EVIL}"}, "format": "rsbackbones",
        "sha256": "a" * 64,
        "license": EVIL, "provenance": EVIL, "inputs": {}, **changes,
    }  # fmt: skip


@pytest.mark.parametrize("arguments", [["list", "croma_vit_tiny"], ["info", "croma_vit_tiny.mine"],
                                       ["verify", "croma_vit_tiny.mine"], ["info", f"a{EVIL}"],
                                       ["list", "--license", EVIL], [f"--x{EVIL}"]])  # fmt: skip
def test_commands(tmp_path, monkeypatch, capsys, arguments):
    (tmp_path / "m.json").write_text(json.dumps({"schema_version": 1, "weights": [entry()]}))
    monkeypatch.setenv("RSBACKBONES_MANIFEST", str(tmp_path / "m.json"))
    before = sys.stdout, sys.stderr
    main(arguments)
    assert (sys.stdout, sys.stderr) == before
    printed = "".join(capsys.readouterr())
    assert "x1b" in printed
    assert harmless(printed)


def test_training_commands_and_warnings(capsys):
    @click.command()
    def command():
        print(EVIL)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn(EVIL, stacklevel=1)
        raise ValueError(EVIL)

    assert call_command(command, [], "module") == 2
    printed = capsys.readouterr()
    assert "owned" in printed.out
    assert printed.err.count("owned") >= 1
    assert harmless(printed.out + printed.err)


def test_progress_bars_stay_in_their_line(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with plain_output():
        bar = tqdm(total=3, file=sys.stderr, mininterval=0)
        bar.update(1)
        tqdm.write("note", file=sys.stderr)
        bar.close()
    assert "\r" in stream.getvalue()
    assert "\\r" not in stream.getvalue()
