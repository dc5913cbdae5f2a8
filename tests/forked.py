"""Processes that begin with torch and the package imported: forks of a server, instead of new interpreters.

Importing them takes five seconds, longer than most of what a test has a process do. What begins here is a
process like any other, in a session of its own: it can be killed, stopped and limited, and has its own
environment and modules. Workers of torchrun are its children as they always are, forked instead of executed.
"""

import contextlib
import gc
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

# Those that are not installed are left out.
_IMPORTED = [
    "torch._dynamo", "torch.distributed.run", "torch.distributed.checkpoint", "torch.distributed.fsdp",
    "torch.distributed.elastic.agent.server.local_elastic_agent",
    "rsbackbones.cli", "rsbackbones.zoo.factory",
    "rsbackbones.train.pretraining", "rsbackbones.train.finetune",
]  # fmt: skip
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(_IMPORTED)


def spawn(work: Callable[..., object], args: tuple[object, ...], nprocs: int) -> None:
    """Like ``torch.multiprocessing.spawn``: ``work(rank, *args)`` in ``nprocs`` processes, to their end."""
    from torch.multiprocessing import start_processes

    start_processes(work, args=args, nprocs=nprocs, start_method="forkserver")


class Forked:
    """Like ``subprocess.Popen`` for commands of ``sys.executable``: ``-m MODULE ...`` and ``-c CODE ...``.

    Args:
        arguments: The command.
        env: The whole environment.
        log: The file that standard output and error are appended to.
        limits: Called in the process at first; has to be picklable.
    """

    def __init__(
        self, arguments: Sequence[str], env: Mapping[str, str], log: Path, limits: Callable[[], object] | None
    ) -> None:
        self.args = arguments
        log.touch()
        self._process = CONTEXT.Process(target=_begin, args=(list(arguments), dict(env), str(log), limits))
        self._process.start()
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code, negative for a signal."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self._process.exitcode

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def _begin(arguments: list[str], env: dict[str, str], log: str, limits: Callable[[], object] | None) -> None:
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    if limits:
        limits()
    _be(arguments, env)


def _be(arguments: list[str], env: Mapping[str, str]) -> None:
    """Do in this process what the command would do in one of its own."""
    import torch

    torch.set_num_threads(1)
    os.environ.clear()
    os.environ.update(env)
    # Which reads its settings when it is imported; the package imports it where it is used.
    for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
        del sys.modules[name]
    kind, what, *rest = arguments[arguments.index("-m" if "-m" in arguments else "-c") :]
    if kind == "-c":
        sys.argv = ["-c", *rest]
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
        return
    sys.argv = [what, *rest]
    if what == "torch.distributed.run":
        from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

        SubprocessHandler._popen = lambda self, args, env: _Worker(args, env)
    runpy.run_module(what, run_name="__main__", alter_sys=True)


class _Worker:
    """A worker of torchrun: a fork of it."""

    def __init__(self, arguments: Sequence[str], env: Mapping[str, str]) -> None:
        self.pid, self.returncode = os.fork(), None
        if not self.pid:
            _be_worker(list(arguments), env)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("worker", timeout)
            time.sleep(0.01)
        return self.returncode


def _be_worker(arguments: list[str], env: Mapping[str, str]) -> NoReturn:
    """As an executed process: without the launcher's files, sockets and signal handlers."""
    code = 1
    try:
        os.setsid()
        # Numbers stay taken: what closes an object of the launcher must not close a file of the worker.
        gc.freeze()
        nothing = os.open(os.devnull, os.O_RDWR)
        for file in list(Path("/proc/self/fd").iterdir()):
            if int(file.name) not in (0, 1, 2, nothing):
                os.dup2(nothing, int(file.name))
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        multiprocessing.util._finalizer_registry.clear()
        _be(arguments, env)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)
