"""The commit of a checkout: read without writing to the repository or running what it configures."""

import os
import subprocess

import pytest

import rsbackbones
from rsbackbones.files.environment import environment


def git(folder, *arguments):
    subprocess.run(["git", "-C", folder, *arguments], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    package = tmp_path / "rsbackbones"
    package.mkdir()
    (package / "__init__.py").write_text("a = 1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b.c", "add", ".")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "first")
    monkeypatch.setattr(rsbackbones, "__file__", str(package / "__init__.py"))
    return tmp_path


def test_the_commit_and_whether_it_is_clean(checkout):
    head = subprocess.check_output(["git", "-C", checkout, "rev-parse", "HEAD"], text=True).strip()
    (checkout / "new.txt").write_text("untracked files do not count")
    assert environment()["commit"] == head
    (checkout / "rsbackbones" / "__init__.py").write_text("a = 2\n")
    assert environment()["commit"] == f"{head}-dirty"


def test_it_neither_locks_the_index_nor_runs_a_monitor(checkout):
    marker = checkout / "executed"
    hook = checkout / "hook.sh"
    hook.write_text(f"#!/bin/sh\ntouch {marker}\n")
    hook.chmod(0o755)
    git(checkout, "config", "core.fsmonitor", str(hook))
    # A file of another time makes git want to refresh the index.
    os.utime(checkout / "rsbackbones" / "__init__.py", (1, 1))
    index = checkout / ".git" / "index"
    before, folder = index.read_bytes(), (checkout / ".git").stat().st_mtime_ns
    assert not environment()["commit"].endswith("-dirty")
    assert (index.read_bytes(), (checkout / ".git").stat().st_mtime_ns) == (before, folder)
    assert not marker.exists()
    git(checkout, "describe", "--always", "--dirty")  # the control: the same question, as it is usually put
    assert marker.exists()
    assert index.read_bytes() != before
