"""A client of the loopback Hub in a process of its own.

HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE are read once, when huggingface_hub is imported: one setting
needs one fresh process. The child's code has `report(name=value)`, which hands JSON back, and
`attempt(function, *args)`, which turns an exception into `{"error": class name, "text": ...}`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.loopback_hub import LoopbackHub

PRELUDE = """
import json, time

def report(**found):
    print("@report", json.dumps(found), flush=True)

def attempt(act, *args, **kwargs):
    began = time.monotonic()
    try:
        outcome = {"ok": act(*args, **kwargs)}
    except Exception as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        cause = type(error.__cause__).__name__
        outcome = {"error": kinds[0], "kinds": kinds, "text": str(error), "cause": cause}
    return outcome | {"seconds": time.monotonic() - began}
"""


@dataclass(frozen=True)
class Done:
    rc: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def report(self) -> dict[str, Any]:
        """What the child reported, all its `report(...)` calls in one."""
        assert self.rc == 0, f"exit code {self.rc}\n{self.stdout}\n{self.stderr}"
        lines = [line for line in self.stdout.splitlines() if line.startswith("@report ")]
        return {key: value for line in lines for key, value in json.loads(line[8:]).items()}


def start_client(
    code: str,
    hub: LoopbackHub | None,
    hf_home: Path,
    prefix: Sequence[str] = (),
    preexec: Callable[[], None] | None = None,
    **env: str,
) -> subprocess.Popen[str]:
    """Start `code` in a fresh interpreter with `hub` as its endpoint (None: one that refuses).

    Of the settings that bear on downloads it sees only those named here.
    """
    foreign = re.compile("HF_|HUGGING|RSBACKBONES_|TORCH_|.*_proxy", re.IGNORECASE)
    inherited = {name: value for name, value in os.environ.items() if not foreign.match(name)}
    hf = {"HF_HOME": str(hf_home), "HF_ENDPOINT": hub.url if hub else "http://127.0.0.1:9"}
    fixed = {"HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen(
        [*prefix, sys.executable, "-c", PRELUDE + code],
        env=inherited | hf | fixed | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=preexec,
    )


def finish_client(process: subprocess.Popen[str], timeout: float = 100) -> Done:
    began = time.monotonic()
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return Done(process.returncode, stdout, stderr, time.monotonic() - began)


def run_client(code: str, hub: LoopbackHub | None, hf_home: Path, **options: Any) -> Done:
    return finish_client(start_client(code, hub, hf_home, **options))
