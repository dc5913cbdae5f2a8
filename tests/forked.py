"""Processes that begin with torch and the package imported: forks of a server, instead of new interpreters.

Importing them takes five seconds, longer than most of what a test has a process do. What begins here is a
process like any other, in a session of its own: it can be killed, stopped and limited, and has its own
environment and modules. Workers of torchrun are its children as they always are, forked instead of executed.
What is about imports themselves needs a new interpreter.
"""

import contextlib
import gc
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, NoReturn, Self

# Those that are not installed are left out.
_IMPORTED = [
    "torch._dynamo", "torch.distributed.run", "torch.distributed.checkpoint", "torch.distributed.fsdp",
    "torch.distributed.elastic.agent.server.local_elastic_agent", "rasterio",
    "matplotlib.backends.backend_agg", "rsbackbones.cli", "rsbackbones.zoo.factory", "rsbackbones.embed",
    "distributed", "geopandas", "odc.geo.xr", "rsbackbones.embed.cluster", "xarray", "zarr.storage",
    "rsbackbones.eval.run", "rsbackbones.train.pretraining", "rsbackbones.train.finetune",
]  # fmt: skip
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(_IMPORTED)


def spawn(work: Callable[..., object], args: tuple[object, ...], nprocs: int) -> None:
    """Like ``torch.multiprocessing.spawn``: ``work(rank, *args)`` in ``nprocs`` processes, to their end."""
    from torch.multiprocessing import start_processes

    start_processes(work, args=args, nprocs=nprocs, start_method="forkserver")


def run(
    arguments: Sequence[object],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 400,
) -> subprocess.CompletedProcess[str]:
    """Like ``subprocess.run`` with ``capture_output=True, text=True``, of a command that ``Forked`` takes."""
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder) / "output", Path(folder) / "errors"
        process = Forked(arguments, output, errors, env=env, cwd=cwd)
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
            process.wait()
        return subprocess.CompletedProcess(arguments, code, output.read_text(), errors.read_text())


class Forked:
    """Like ``subprocess.Popen`` of ``sys.executable`` with ``-m MODULE``, ``-c CODE`` or ``FILE``.

    Args:
        arguments: The command.
        output: The file that standard output is appended to.
        errors: The file of standard error; the same by default.
        env: The whole environment.
        cwd: The working directory.
        limits: Called in the process at first; has to be picklable.
        input: The file of standard input; empty by default.
    """

    def __init__(
        self,
        arguments: Sequence[object],
        output: Path,
        errors: Path | None = None,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        limits: Callable[[], object] | None = None,
        input: Path = Path(os.devnull),
    ) -> None:
        self.args = [str(argument) for argument in arguments]
        assert self.args[0] == sys.executable
        for file in (output, errors or output):
            file.touch()
        environment, folder = dict(os.environ if env is None else env), str(cwd or Path.cwd())
        files = (str(input), str(output), str(errors or output))
        begin = (self.args[1:], files, environment, folder, limits)
        self._process = _CONTEXT.Process(target=_begin, args=begin)
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


class Piped(Forked):
    """Like ``subprocess.Popen`` with ``text=True`` and pipes to and from the process; errors go to a file."""

    def __init__(self, arguments: Sequence[object], errors: IO[str]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            to, back = Path(folder) / "to", Path(folder) / "back"
            for pipe in (to, back):
                os.mkfifo(pipe)
            super().__init__(arguments, back, Path(f"/proc/{os.getpid()}/fd/{errors.fileno()}"), input=to)
            # In the order in which the process opens them: either waits for the other.
            self.stdin, self.stdout = to.open("w"), back.open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()
        self.stdout.close()
        self.wait()


def _begin(
    arguments: list[str],
    files: tuple[str, str, str],
    env: Mapping[str, str],
    cwd: str,
    limits: Callable[[], object] | None,
) -> None:
    gc.freeze()  # a collection of what was imported before would copy all its pages, too
    os.setsid()
    os.chdir(cwd)
    for number, name in enumerate(files):
        file = os.open(name, os.O_WRONLY | os.O_APPEND if number else os.O_RDONLY)
        os.dup2(file, number)
        os.close(file)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    if limits:
        limits()
    _execute(arguments, env)


def _execute(arguments: list[str], env: Mapping[str, str]) -> None:
    """Do in this process what an interpreter with these arguments would do."""
    import torch

    torch.set_num_threads(1)
    multiprocessing.set_start_method(None, force=True)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:0] = [str(Path.cwd()), *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    # Which reads its settings when it is imported; the package imports it where it is used.
    for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
        del sys.modules[name]
    if arguments[0] == "-u":  # as torchrun starts its workers
        arguments = arguments[1:]
    if arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
    elif arguments[0] == "-m":
        sys.argv = arguments[1:]
        if sys.argv[0] == "torch.distributed.run":
            from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler
            from torch.distributed.elastic.rendezvous import dynamic_rendezvous

            # For its log it looks for the files of all callers in all modules, which takes seconds.
            dynamic_rendezvous.get_method_name = lambda depth=2: sys._getframe(depth).f_code.co_name
            SubprocessHandler._popen = lambda self, args, env: _Worker(args, env)
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(arguments[0]).parent))
        runpy.run_path(arguments[0], run_name="__main__")


class _Worker:
    """A worker of torchrun: a fork of it."""

    def __init__(self, arguments: Sequence[str], env: Mapping[str, str]) -> None:
        self.pid, self.returncode = os.fork(), None
        if not self.pid:
            _execute_worker(list(arguments[1:]), env)

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


def _execute_worker(arguments: list[str], env: Mapping[str, str]) -> NoReturn:
    """As an executed process: without the launcher's files, sockets and signal handlers."""
    code = 1
    try:
        os.setsid()
        # Numbers stay taken: what closes an object of the launcher must not close a file of the worker.
        gc.freeze()
        nothing = os.open(os.devnull, os.O_RDWR)
        for file in list(Path("/dev/fd").iterdir()):
            if int(file.name) not in (0, 1, 2, nothing):
                os.dup2(nothing, int(file.name))
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        multiprocessing.util._finalizer_registry.clear()
        _execute(arguments, env)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)
