"""A client of the loopback Hub in a process of its own.

HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE are read once, when huggingface_hub is imported: one setting
needs one process that has not imported it. The child's code has `report(name=value)`, which hands JSON
back, and `attempt(function, *args)`, which turns an exception into `{"error": class name, "text": ...}`.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.forked import Forked
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
class Client:
    process: Forked
    log: Path


@dataclass(frozen=True)
class Done:
    rc: int
    output: str

    @property
    def report(self) -> dict[str, Any]:
        """What the child reported, all its `report(...)` calls in one."""
        assert self.rc == 0, f"exit code {self.rc}\n{self.output}"
        lines = [line for line in self.output.splitlines() if line.startswith("@report ")]
        return {key: value for line in lines for key, value in json.loads(line[8:]).items()}


def start_client(
    code: str,
    hub: LoopbackHub | None,
    hf_home: Path,
    limits: Callable[[], object] | None = None,
    **env: str,
) -> Client:
    """Start `code` in a process with `hub` as its endpoint (None: one that refuses).

    Of the settings that bear on downloads it sees only those named here. `limits` is called in it at first.
    """
    foreign = re.compile("HF_|HUGGING|RSBACKBONES_|TORCH_|.*_proxy", re.IGNORECASE)
    inherited = {name: value for name, value in os.environ.items() if not foreign.match(name)}
    hf = {"HF_HOME": str(hf_home), "HF_ENDPOINT": hub.url if hub else "http://127.0.0.1:9"}
    fixed = {"HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    environment = inherited | hf | fixed | env
    command = [sys.executable, "-c", PRELUDE + code]
    descriptor, name = tempfile.mkstemp(suffix=".log")
    os.close(descriptor)
    return Client(Forked(command, Path(name), env=environment, limits=limits), Path(name))


def finish_client(client: Client, timeout: float = 100) -> Done:
    try:
        code = client.process.wait(timeout)
    finally:
        client.process.kill()
        client.process.wait()
        output = client.log.read_text()
        client.log.unlink()
    return Done(code, output)


def run_client(code: str, hub: LoopbackHub | None, hf_home: Path, **options: Any) -> Done:
    return finish_client(start_client(code, hub, hf_home, **options))
