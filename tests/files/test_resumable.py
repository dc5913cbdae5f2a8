"""Rows and results that outlive a kill, and are never taken for those of another job."""

import json
import sys
import time
from contextlib import suppress

import numpy as np
import pytest

from rsbackbones.files.lock import exclusive
from rsbackbones.files.resumable import RowStore, cached_result
from tests import forked

JOB = {"weights": "abc", "sizes": (1, 2)}


def rows(numbers):
    numbers = np.asarray(numbers, np.float32)
    return {"a": numbers[:, None] * np.ones(3, np.float32), "n": numbers.astype(np.int64)}


def test_rows_are_read_back_in_memory_and_from_a_folder(tmp_path):
    for folder in (None, tmp_path / "store"):
        with RowStore(folder, JOB, 5) as store:
            store.write([3, 1], rows([3, 1]))
            assert store.done.tolist() == [False, True, False, True, False]
            held = store.read(np.array([1, 3]))
        np.testing.assert_array_equal(held["a"], rows([1, 3])["a"])
        assert held["n"].tolist() == [1, 3]
    with RowStore(tmp_path / "store", JOB, 5) as again:
        assert again.done.tolist() == [False, True, False, True, False]
        again.write([0, 2, 4], rows([0, 2, 4]))
        assert again.read()["n"].tolist() == [0, 1, 2, 3, 4]
        again.discard()
    assert not (tmp_path / "store").exists()


WRITER = """
import pathlib, sys
from rsbackbones.files.resumable import RowStore
from tests.files.test_resumable import JOB, rows
with RowStore(pathlib.Path(sys.argv[1]), JOB, 10**6) as store:
    for number in range(10**6):
        store.write([number], rows([number]))
"""


def test_a_killed_process_leaves_whole_rows_and_no_lock(tmp_path):
    folder = tmp_path / "store"
    writer = forked.Forked([sys.executable, "-c", WRITER, folder], tmp_path / "log")
    try:
        end = time.monotonic() + 120
        while not (folder / "done.bin").exists() or (folder / "done.bin").stat().st_size < 80:
            assert writer.poll() is None
            assert time.monotonic() < end
            time.sleep(0.01)
        with RowStore(folder, JOB, 10**6, rows=range(10)) as reader:  # reading needs no lock
            assert reader.done[:10].all()
        with pytest.raises(ValueError, match=r"another process is writing to .*store"):
            RowStore(folder, JOB, 10**6)
    finally:
        writer.kill()
        writer.wait()
    with RowStore(folder, JOB, 10**6) as store:
        whole = np.flatnonzero(store.done)
        assert len(whole) >= 10
        assert store.read(whole)["n"].tolist() == whole.tolist()
        store.write([len(whole)], rows([len(whole)]))


def test_rows_of_another_job_size_or_folder_are_refused(tmp_path):
    folder = tmp_path / "store"
    with RowStore(folder, JOB, 4) as store:
        store.write([0], rows([0]))
        with pytest.raises(ValueError, match=r"a \[3\].*one size"):
            store.write([1], {"a": np.zeros((1, 4), np.float32)})
    with pytest.raises(ValueError, match="other inputs or settings"):
        RowStore(folder, JOB | {"weights": "xyz"}, 4)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        RowStore(folder, JOB, 4)


def test_a_damaged_row_is_computed_again_and_the_others_are_kept(tmp_path):
    folder = tmp_path / "store"
    with RowStore(folder, JOB, 3) as store:
        store.write([0, 1, 2], rows([0, 1, 2]))
    content = bytearray((folder / "rows.bin").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "rows.bin").write_bytes(content)
    with pytest.warns(UserWarning, match="1 of 3 rows are damaged"):
        assert RowStore(folder, JOB, 3).done.tolist() == [True, False, True]
    (folder / "job.json").write_text("{")
    with pytest.warns(UserWarning, match="damaged and made anew"):
        assert not RowStore(folder, JOB, 3).done.any()


def test_a_lock_ends_with_its_block(tmp_path):
    refused = pytest.raises(ValueError, match="another process")
    with exclusive(tmp_path / "run"), refused, exclusive(tmp_path / "run"):
        pass
    with exclusive(tmp_path / "run"):
        pass


def test_a_result_is_computed_once_for_every_job(tmp_path):
    calls = []

    def compute():
        calls.append(None)
        return {"metrics": {"top1": 0.1 + 0.2}, "sizes": (1, 2)}

    first = cached_result(tmp_path / "parts", JOB, compute)
    assert first == {"weights": "abc", "sizes": [1, 2], "metrics": {"top1": 0.1 + 0.2}}
    assert cached_result(tmp_path / "parts", JOB, compute) == first
    assert len(calls) == 1
    cached_result(tmp_path / "parts", JOB | {"weights": "xyz"}, compute)
    assert len(calls) == 2
    path = next(p for p in (tmp_path / "parts").iterdir() if json.loads(p.read_text())["weights"] == "abc")
    path.write_text(path.read_text()[:20])
    with pytest.warns(UserWarning, match="damaged and made anew"):
        assert cached_result(tmp_path / "parts", JOB, compute) == first
    assert len(calls) == 3


def test_a_run_that_has_done_nothing_leaves_nothing_and_blocks_no_other(tmp_path):
    folder = tmp_path / "store"
    layout = np.dtype([("a", "<f4", (3,))])
    with suppress(KeyboardInterrupt), RowStore(folder, JOB, 4, layout=layout):
        assert (folder / "rows.bin").stat().st_size == 4 * layout.itemsize
        raise KeyboardInterrupt
    assert not folder.exists()
    with RowStore(folder, JOB, 4, layout=layout):
        left = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}
    folder.mkdir()
    for name, content in left.items():  # as a process that was killed before its first row
        (folder / name).write_bytes(content)
    with RowStore(folder, JOB | {"weights": "xyz"}, 4) as other:
        other.write([1], rows([1]))
    with pytest.raises(ValueError, match=r"other inputs or settings \(weights\)"):
        RowStore(folder, JOB, 4)


def test_who_is_refused_takes_nothing_from_the_first(tmp_path):
    folder = tmp_path / "store"
    for job in (JOB, JOB | {"weights": "xyz"}):
        with RowStore(folder, JOB, 4) as first:
            with pytest.raises(ValueError, match="another process is writing"):
                RowStore(folder, job, 4)
            first.write([0], rows([0]))
            with pytest.raises(ValueError, match=r"another process is writing|other inputs"):
                RowStore(folder, job, 4)
            first.write([2], rows([2]))
        with RowStore(folder, JOB, 4) as again:
            assert again.done.tolist() == [True, False, True, False]
            again.discard()
        assert not folder.exists()


def test_a_disk_without_room_is_noticed_before_the_first_row(tmp_path):
    huge = np.dtype([("a", "<f4", (2**28,))])
    with pytest.raises(ValueError, match=rf"needs {2**28 * 4 * 10**6} bytes in .*where \d+ are free"):
        RowStore(tmp_path / "store", JOB, 10**6, layout=huge)
    assert not list(tmp_path.iterdir())
