"""Processes of the benchmarks begin as forks, with torch imported; those that are measured alone are real."""

import subprocess
from types import SimpleNamespace

import pytest

from benchmarks import data_wait, processes
from tests import forked


@pytest.fixture
def forks(monkeypatch):
    """What a new interpreter is for is shown by the tests without this."""

    def popen(arguments, *, text, stdin, stdout, stderr):
        assert text
        assert stdin == stdout == subprocess.PIPE
        return forked.Piped(arguments, stderr)

    monkeypatch.setattr(processes, "subprocess", SimpleNamespace(Popen=popen, PIPE=subprocess.PIPE))
    run = lambda arguments, **_: forked.run(arguments)  # noqa: E731
    monkeypatch.setattr(data_wait, "subprocess", SimpleNamespace(run=run))
