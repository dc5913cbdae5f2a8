"""Measurements in processes of their own, which live side by side and compute in turn.

A process is ``python -m MODULE JSON``. It answers each line of its stdin by a JSON line on its stdout
(:func:`serve`), so that it computes when it is asked to, while the others wait; ``end`` ends it.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any


def say(text: str) -> None:
    """Tell the person who waits how far it is."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def serve(answer: Callable[[str], dict[str, Any]]) -> None:
    """Answer the lines of stdin, the child's side."""
    for line in sys.stdin:
        print(json.dumps(answer(line.strip())), flush=True)
        if line.strip() == "end":
            return


class SideBySide:
    """Processes by name; one that fails is asked no more and does not stop the others.

    ``errors`` says why one failed, by name.
    """

    def __init__(self, processes: "Mapping[str, _Process]") -> None:
        self._processes = processes
        self.errors: dict[str, str] = {}

    def ask(self, name: str, what: str) -> dict[str, Any] | None:
        """Send a line to a process and return its answer, or nothing from one that has failed."""
        if name in self.errors:
            return None
        try:
            return self._processes[name].ask(what)
        except _ProcessError as error:
            self.errors[name] = str(error)
            return None


@contextmanager
def side_by_side(
    module: str, arguments: Mapping[str, Any], *, seconds: float | None = None
) -> Iterator[SideBySide]:
    """Start a process of ``module`` for each argument (a dataclass); they end with the context.

    ``seconds``: one that took longer than this for all its answers together is ended, and says so.
    """
    with ExitStack() as stack:
        yield SideBySide({name: _Process(module, of, seconds, stack) for name, of in arguments.items()})


class _ProcessError(Exception):
    """A process that gave no answer; says why."""


class _Process:
    def __init__(self, module: str, argument: Any, seconds: float | None, stack: ExitStack) -> None:
        self._errors = stack.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115
        process = subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(asdict(argument))], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
        )  # fmt: skip
        self._process = stack.enter_context(process)
        stack.callback(self._process.kill)
        self._limit = self._left = seconds

    def ask(self, what: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(what + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, and its answer is none
        began = time.monotonic()
        timer = threading.Timer(self._left or 0, self._process.kill)
        if self._left is not None:
            timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        if self._left is not None:
            self._left -= time.monotonic() - began
        if not line:
            raise _ProcessError(self._why())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _why(self) -> str:
        code = self._process.wait()
        if self._limit is not None and self._left is not None and self._left <= 0:
            return f"over {self._limit / 60:g} minutes"
        self._errors.seek(0)
        said = self._errors.read().strip().splitlines()
        return f"exit code {code}" + (f": {said[-1]}" if said else "")
