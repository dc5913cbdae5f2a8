"""Locks of real processes: killed ones, and those with workers; files that appear whole."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from rsbackbones.files.atomic import atomic_write, remove_temporary, write_text
from rsbackbones.files.lock import LockedError, exclusive

HOLDER = """
import pathlib, sys, time
import torch
from rsbackbones.files.lock import exclusive

class Slow(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        if index > 1:
            time.sleep(60)
        return torch.tensor(torch.utils.data.get_worker_info().id)

with exclusive(pathlib.Path(sys.argv[1])):
    settings = {"num_workers": 2, "multiprocessing_context": "fork"}
    loader = torch.utils.data.DataLoader(Slow(), batch_size=None, **settings)
    batches = iter(loader)
    next(batches)
    print(*[worker.pid for worker in batches._workers], flush=True)
    time.sleep(60)
"""


@pytest.mark.multiprocess
@pytest.mark.skipif(sys.platform == "win32", reason="processes are not forked here")
def test_the_lock_of_a_killed_process_is_free_while_its_forked_workers_live(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], env=environment, stdout=subprocess.PIPE, text=True
    )
    workers = [int(pid) for pid in holder.stdout.readline().split()]
    try:
        assert len(workers) == 2
        with (
            pytest.raises(LockedError, match=rf"another process is writing to {tmp_path}"),
            exclusive(tmp_path),
        ):
            pass
        holder.kill()
        holder.wait()
        for pid in workers:
            os.kill(pid, 0)  # it lives
        with exclusive(tmp_path):
            pass
    finally:
        holder.kill()
        holder.stdout.close()
        for pid in workers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert not list(tmp_path.iterdir())


def test_who_waits_gets_the_lock_that_was_deleted_meanwhile(tmp_path):
    order = []
    with exclusive(tmp_path):
        pid = os.fork() if hasattr(os, "fork") else None
        if pid == 0:
            try:
                with exclusive(tmp_path, patience=60):
                    write_text(tmp_path / "second.txt", "")
            finally:
                os._exit(0)
        if pid is None:
            pytest.skip("processes are not forked here")
        time.sleep(0.2)
        order.append((tmp_path / "second.txt").exists())
    os.waitpid(pid, 0)
    assert order == [False]
    assert [path.name for path in tmp_path.iterdir()] == ["second.txt"]


def test_two_writers_of_one_file_have_a_temporary_file_each(tmp_path):
    path = tmp_path / "a.txt"
    with atomic_write(path) as first:
        first.write(b"first")
        with atomic_write(path) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
    with suppress(KeyboardInterrupt), atomic_write(path) as third:
        third.write(b"third")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"first"
    assert [held.name for held in tmp_path.iterdir()] == ["a.txt"]


def test_only_our_temporary_files_are_removed(tmp_path):
    names = ["a.tif.0123abcd.tmp", "mine.tmp", "a.0123ABCD.tmp", "0123abcd.tmp"]
    for name in names:
        (tmp_path / name).write_text("")
    remove_temporary(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])
