"""Who drives a job: one process at a time, which says every few seconds that it lives."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import uuid4

from rsbackbones.files.objects import Objects

# A driver writes that it lives every so many seconds; one that did not for so long is taken for dead.
BEAT_S, DEAD_S = 15.0, 120.0


class JobError(ValueError):
    """A job that could not be finished; what is done is kept, and the same call goes on."""


class Lease:
    """That this process is the driver of a job."""

    def __init__(self, records: Objects, stated: dict[str, Any]) -> None:
        self._records, self._stated = records, stated
        self._lost, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Refuse to go on where another driver has taken over."""
        if self._lost.is_set():
            raise JobError(f"another driver has taken over the job of {self._records.place}")

    def close(self) -> None:
        """Let others drive."""
        self._stop.set()
        self._thread.join()
        held = self._records.get_json("driver.json")
        if held is not None and held["id"] == self._stated["id"]:
            self._records.delete("driver.json")

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_S):
            with suppress(*store_errors()):  # a store that does not answer now may answer at the next beat
                held = self._records.get_json("driver.json")
                if held is None or held["id"] != self._stated["id"]:
                    self._lost.set()
                    return
                self._records.put_json("driver.json", {**self._stated, "beat": time.time()})


@contextmanager
def driving(records: Objects, output: str, *, take_over: bool) -> Iterator[Lease]:
    """Drive the job of an output while the context lasts.

    Raises:
        JobError: another driver runs it.
    """
    stated = {"id": uuid4().hex, "host": socket.gethostname(), "pid": os.getpid(), "beat": time.time()}
    if not records.create_json("driver.json", stated):
        held = records.get_json("driver.json")
        if held is not None and alive(held) and not take_over:
            raise JobError(
                f"another driver runs the job of {output} (process {held['pid']} on {held['host']}); "
                "wait until it ends, or take over: take_over=True (--take-over)"
            )
        records.put_json("driver.json", stated)
    lease = Lease(records, stated)
    try:
        yield lease
    finally:
        lease.close()


def start_over(records: Objects) -> None:
    """Delete the records of a job that computed nothing, but for who drives."""
    for key in set(records.keys()) - {"driver.json"}:
        records.delete(key)


def of_another_job(output: str, records: Objects, other: str = "") -> JobError:
    """Return the error of an output that another job has; ``other``: in what it differs."""
    return JobError(
        f"{output} is the output of a job with other inputs or settings{other}; delete it and "
        f"{records.place}, or choose another output"
    )


def of_no_job(output: str) -> JobError:
    """Return the error of an output that holds something else than what a job writes."""
    return JobError(
        f"{output} holds something that is no output of a job; choose another output, or delete it"
    )


def alive(driver: dict[str, Any]) -> bool:
    """Tell whether a driver lives: it has written lately, and of this machine its process is there.

    The number of a dead process may be that of another one now, also of another user.
    """
    if driver["host"] == socket.gethostname():
        try:
            os.kill(driver["pid"], 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # it is there
            pass
    return time.time() - float(driver["beat"]) < DEAD_S


def store_errors() -> tuple[type[Exception], ...]:
    """Return what a folder or a bucket raises that cannot be written to or read."""
    from obstore.exceptions import BaseError

    return OSError, BaseError


@contextmanager
def one_error(output: str) -> Iterator[None]:
    """Turn what an output or its records raise into a message that says how to go on."""
    try:
        yield
    except store_errors() as error:
        raise JobError(
            f"cannot write {output}, or the records beside it: {one_line(error)}; what is done is "
            "kept: make room, or give access, and run the same again"
        ) from error


def one_line(error: BaseException) -> str:
    """Return the message of an error in one line, without what obstore adds for its developers."""
    return " ".join(str(error).partition("Debug source:")[0].split())[:600]
