"""Packing: what goes in comes out, whatever happens in between."""

import json
import os
import pickle
import shutil
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import zarr

from rsbackbones.cli import main
from rsbackbones.data.geotiffs import GeoTiffSource
from rsbackbones.data.npz import NpzFile, NpzSource
from rsbackbones.data.open import open_source
from rsbackbones.data.pack import pack
from rsbackbones.data.shards import PackedSource
from rsbackbones.data.source import BadSample, Sample
from rsbackbones.data.ssl4eo import SSL4EOFolders
from rsbackbones.data.ssl4eo_v11 import SSL4EOZarr
from tests import forked
from tests.data.test_sources import B12, pairs
from tests.data.test_ssl4eo import write_v10, write_v11


class Places:
    """Made-up places: two sensors, three dates, sizes that differ; ``broken`` ones have NaN."""

    name = "places"
    bands = {"s2": ("B02", "B03"), "s1": ("VV",)}  # noqa: RUF012
    frames = 3
    block = 1
    notes = ("made up",)

    def __init__(self, count=10, broken=(), seconds=0.0):
        self.count, self.broken, self.seconds = count, broken, seconds

    def __len__(self):
        return self.count

    def describe(self, place):
        return f"place {place}"

    def read(self, place, frame=None):
        time.sleep(self.seconds)
        if place in self.broken:
            raise BadSample(f"broken {place}")
        rng = np.random.default_rng(place)
        side = 16 + 8 * (place % 3)
        s2 = rng.integers(0, 9000, (3, 2, side, side)).astype(np.uint16)
        s1 = rng.normal(-15, 3, (3, 1, side, side)).astype(np.float32)
        if place % 2:
            s1 = s1.astype(np.float16).astype(np.float32)
        days = np.array([18000, 18100, 18200]) + place
        chosen = slice(None) if frame is None else frame
        return Sample(
            images={"s2": s2[chosen], "s1": s1[chosen]},
            dates={m: np.atleast_1d(days[chosen]) for m in ("s2", "s1")},
        )


def same(a, b):
    assert a.images.keys() == b.images.keys()
    for sensor, image in a.images.items():
        assert image.dtype == b.images[sensor].dtype
        np.testing.assert_array_equal(image, b.images[sensor])
    assert {m: x.tolist() for m, x in a.dates.items()} == {m: x.tolist() for m, x in b.dates.items()}


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def v10(root):
    write_v10(root)
    return SSL4EOFolders(root, size=24)


def v11(root):
    write_v11(root, "zarr", offset=1000)
    return SSL4EOZarr(root)


def v11_tar(root):
    write_v11(root, "tar")
    return SSL4EOZarr(root)


def geotiffs(root):
    pairs(root, "{low}/p{i}.tif")
    return GeoTiffSource(root)


def npz(root):
    rng = np.random.default_rng(0)
    root.mkdir()
    s2 = rng.integers(1, 9000, (5, 2, 24, 24)).astype(np.int16)
    np.savez(root / "a.npz", s2=s2, s1=rng.normal(-15, 4, (5, 2, 24, 24)).astype(np.float16))
    images = {"s2": {"s2": ("B02", "B03")}, "s1": {"s1": ("VV", "VH")}}
    return NpzSource(NpzFile(path=str(root / "a.npz"), images=images, tile=10))


@pytest.mark.parametrize("make", [v10, v11, v11_tar, geotiffs, npz, lambda root: Places()])
def test_every_source_comes_back_exactly(tmp_path, make):
    source = make(tmp_path / "in")
    report = pack(source, tmp_path / "out", per_shard=4, progress=False)
    assert (report.places, report.shards, report.bad) == (len(source), -(-len(source) // 4), ())
    packed = pickle.loads(pickle.dumps(open_source(tmp_path / "out")))
    assert isinstance(packed, PackedSource)
    assert (packed.name, packed.bands, packed.frames) == (source.name, source.bands, source.frames)
    assert (packed.notes, packed.block, len(packed)) == (source.notes, 4, len(source))
    assert packed.verify() == []
    for place in reversed(range(len(source))):
        same(source.read(place), packed.read(place))
        for frame in range(source.frames):
            same(source.read(place, frame), packed.read(place, frame))
        assert packed.place_name(place) == source.describe(place)
    assert packed.describe(len(source) - 1).startswith(f"{report.shards - 1:06d}.zarr.zip[")
    for place in (-1, len(packed)):
        with pytest.raises(IndexError):
            packed.read(place)


def test_a_shard_is_zarr(tmp_path):
    pack(Places(), tmp_path / "out", per_shard=4, progress=False)
    with zarr.storage.ZipStore(tmp_path / "out" / "000001.zarr.zip", mode="r") as store:
        group = zarr.open_group(store, mode="r", zarr_format=2)
        assert group.attrs["names"] == ["place 4", "place 5", "place 6", "place 7"]
        np.testing.assert_array_equal(group["s2/2"][...], Places().read(6).images["s2"])
        assert group["s1/0"].dtype == np.float32
        assert group["s1/1"].dtype == np.float16  # where that holds the values exactly


def test_dataset_json_says_what_there_is(tmp_path):
    pack(Places(10, broken=(3,)), tmp_path / "out", per_shard=4, max_bad_share=0.1, progress=False)
    held = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert held["bands"] == {"s2": ["B02", "B03"], "s1": ["VV"]}
    assert held["units"] == {"s2": "dn", "s1": "db"}
    assert (held["schema"], held["frames"], held["places"], held["source_places"]) == (1, 3, 9, 10)
    assert held["notes"] == ["made up"]
    assert held["bad"] == [["place 3", "broken 3"]]
    assert [shard["places"] for shard in held["shards"]] == [4, 4, 1]
    assert sorted(contents(tmp_path / "out")) == [*(f"00000{i}.zarr.zip" for i in range(3)), "dataset.json"]


# -------------------------------------------------------------------------------------- unusable places


class Wrong(Places):
    """Returns what a source must not."""

    def read(self, place, frame=None):
        sample = super().read(place, frame)
        if place == 2:
            sample.images["s1"][0, 0, 0, 0] = np.nan
        elif place == 4:
            del sample.images["s1"]
        elif place == 6:
            sample.images["s2"] = sample.images["s2"][:, :1]
        elif place == 8:
            raise OSError("input/output error")
        return sample


def test_unusable_places_are_left_out_and_named(tmp_path):
    report = pack(Wrong(), tmp_path / "out", per_shard=2, max_bad_share=0.4, progress=False)
    assert [name for name, _ in report.bad] == ["place 2", "place 4", "place 6", "place 8"]
    for (_, reason), part in zip(report.bad, ("NaN", "missing", "shape", "input/output"), strict=True):
        assert part in reason
    packed = PackedSource(tmp_path / "out")
    assert [packed.place_name(i) for i in range(6)] == [f"place {i}" for i in (0, 1, 3, 5, 7, 9)]
    same(packed.read(3), Places().read(5))


def test_too_many_are_refused_and_a_larger_share_goes_on(tmp_path):
    with pytest.raises(ValueError, match=r"4 unusable places, more than the 3 of 10(.|\n)*place 8: input"):
        pack(Wrong(), tmp_path / "out", per_shard=2, max_bad_share=0.3, progress=False)
    assert not (tmp_path / "out" / "dataset.json").exists()
    with pytest.raises(ValueError, match=r"there is no .*dataset\.json"):
        PackedSource(tmp_path / "out")
    first = (tmp_path / "out" / "000000.zarr.zip").stat()
    pack(Wrong(), tmp_path / "out", per_shard=2, max_bad_share=0.4, progress=False)
    assert (tmp_path / "out" / "000000.zarr.zip").stat() == first
    pack(Wrong(), tmp_path / "whole", per_shard=2, max_bad_share=0.4, progress=False)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    for folder, per_shard in (("strict", 64), ("whole", 2)):  # a new folder, and one that is complete
        with pytest.raises(ValueError, match="more than the 0 of 10"):
            pack(Wrong(), tmp_path / folder, per_shard=per_shard, progress=False)


class OfFiles(Places):
    """Places of a folder of files. A kill comes after some reads: 10 to check units, 5 to pack."""

    def __init__(self, root, kill_after=None):
        super().__init__()
        self.root, self.kill_after, self.reads = root, kill_after, 0

    def read(self, place, frame=None):
        self.reads += 1
        if self.reads == self.kill_after:
            raise KeyboardInterrupt
        return super().read(place, frame)


@pytest.mark.parametrize("change", [None, "time", "new"])
def test_a_source_that_changed_since_the_kill_is_refused(tmp_path, change):
    root = tmp_path / "source"
    (root / "s2").mkdir(parents=True)
    (root / "s2" / "a.tif").write_bytes(b"a")
    out = root / "out"  # its own files are none of the source
    with pytest.raises(KeyboardInterrupt):
        pack(OfFiles(root, kill_after=15), out, per_shard=2, progress=False)
    assert len(list(out.glob("*.zip"))) == 2
    if change is None:
        assert pack(OfFiles(root), out, per_shard=2, progress=False).places == 10
        assert pack(OfFiles(root), out, per_shard=2, progress=False).places == 10
        (root / "s2" / "b.tif").write_bytes(b"b")
    elif change == "time":
        os.utime(root / "s2" / "a.tif", (10**9, 10**9))
    else:
        (root / "s2" / "b.tif").write_bytes(b"b")
    with pytest.raises(ValueError, match=r"another pack \(with other source_files_sha256\)"):
        pack(OfFiles(root), out, per_shard=2, progress=False)


def test_a_source_that_changes_meanwhile_is_refused(tmp_path):
    (tmp_path / "source").mkdir()

    class Growing(OfFiles):
        def read(self, place, frame=None):
            (self.root / f"{place}.tif").touch()
            return super().read(place, frame)

    with pytest.raises(ValueError, match="changed while they were packed"):
        pack(Growing(tmp_path / "source"), tmp_path / "out", progress=False)
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_the_last_places_may_be_unusable(tmp_path):
    report = pack(Places(9, broken=(8,)), tmp_path / "out", per_shard=4, max_bad_share=0.2, progress=False)
    assert (report.places, report.shards, len(report.bad)) == (8, 2, 1)
    with pytest.raises(ValueError, match="holds no places"):
        pack(Places(0), tmp_path / "none", progress=False)


# --------------------------------------------------------------------------------- broken off, resumed

CHILD = """
import sys
from tests.data.test_pack import Places, pack
pack(Places(12, broken=(1, 7), seconds=0.05), sys.argv[1], per_shard=2, max_bad_share=0.2, progress=False)
"""


def test_a_killed_pack_goes_on(tmp_path):
    whole = pack(
        Places(12, broken=(1, 7)), tmp_path / "whole", per_shard=2, max_bad_share=0.2, progress=False
    )
    child = forked.Forked([sys.executable, "-c", CHILD, tmp_path / "out"], tmp_path / "log")
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "out" / "000001.zarr.zip").exists():
            assert child.poll() is None, "the child ended early"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(0.06)  # into the next shard
        child.kill()
    finally:
        child.kill()
        child.wait()
    left = contents(tmp_path / "out")
    assert "dataset.json" not in left
    shards = [name for name in left if name.endswith(".zip")]
    assert 2 <= len(shards) < 5
    assert all(left[name] == contents(tmp_path / "whole")[name] for name in shards)
    times = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in shards}
    report = pack(Places(12, broken=(1, 7)), tmp_path / "out", per_shard=2, max_bad_share=0.2, progress=False)
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in shards} == times
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert report.bad == whole.bad


def test_a_finished_pack_is_left_as_it_is(tmp_path):
    first = pack(Places(), tmp_path / "out", per_shard=4, progress=False)
    before = {path: path.stat() for path in (tmp_path / "out").iterdir()}
    assert pack(Places(), tmp_path / "out", per_shard=4, progress=False) == first
    assert {path: path.stat() for path in (tmp_path / "out").iterdir()} == before


def test_another_job_and_other_files_are_refused(tmp_path):
    pack(Places(), tmp_path / "out", per_shard=4, progress=False)
    with pytest.raises(ValueError, match=r"another pack .*per_shard"):
        pack(Places(), tmp_path / "out", per_shard=5, progress=False)
    with pytest.raises(ValueError, match=r"another pack .*source_places"):
        pack(Places(11), tmp_path / "out", per_shard=4, progress=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ValueError, match="holds other files"):
        pack(Places(), tmp_path / "mine", progress=False)
    for options in ({"per_shard": 0}, {"max_bad_share": 1.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            pack(Places(), tmp_path / "new", progress=False, **options)


# --------------------------------------------------------------------------------------------- the disk

FULL = """
import resource, sys
from tests.data.test_pack import Places, pack
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
pack(Places(10), sys.argv[1], per_shard=int(sys.argv[2]), progress=False)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files here")
def test_a_full_disk_says_what_is_needed(tmp_path):
    """A limit on the size of a file stands for a full disk: the same OSError at the same place."""
    out = tmp_path / "out"
    result = forked.run([sys.executable, "-c", FULL, out, "8"])
    assert result.returncode == 1
    last = [line for line in result.stderr.splitlines() if line.startswith("ValueError")]
    assert len(last) == 1
    assert "cannot write to" in last[0]
    assert "10 places are left, at most" in last[0]
    assert "are free" in last[0]
    assert "Exception ignored" not in result.stderr
    assert sorted(contents(out)) == ["job.json"]
    pack(Places(10), out, per_shard=8, progress=False)  # there is room now
    assert PackedSource(out).verify() == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="cannot make the folder"):
        pack(Places(), tmp_path / "file" / "out", progress=False)


# ---------------------------------------------------------------------------------------- damaged shards


def test_a_damaged_shard_is_named(tmp_path):
    pack(Places(), tmp_path / "out", per_shard=4, progress=False)
    path = tmp_path / "out" / "000001.zarr.zip"
    content = path.read_bytes()

    def assert_named(places):
        source = PackedSource(tmp_path / "out")
        assert [problem.split()[0] for problem in source.verify()] == [str(path)]
        source.read(0)
        for place in places:
            with pytest.raises(BadSample, match=r"cannot read shard .*000001\.zarr\.zip"):
                source.read(place)

    path.write_bytes(content[: len(content) // 2])
    assert_named([4, 5, 6, 7])
    path.write_bytes(b"")
    assert_named([4])
    path.unlink()
    assert_named([4])
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as new:  # a chunk is missing: no zeros in its place
        path.write_bytes(content)
        with zipfile.ZipFile(path) as old:
            for name in old.namelist():
                if name != "s2/0/1.0.0.0":
                    new.writestr(name, old.read(name))
    shutil.move(tmp_path / "whole.zip", path)
    assert_named([4])
    PackedSource(tmp_path / "out").read(4, 0)


def test_no_flipped_byte_goes_unseen(tmp_path):
    """Anywhere in a shard: the values are right or the sample is bad; the hash always tells."""
    pack(Places(2), tmp_path / "out", per_shard=2, progress=False)
    path = tmp_path / "out" / "000000.zarr.zip"
    content = path.read_bytes()
    expected = [Places().read(i) for i in range(2)]
    rng = np.random.default_rng(0)
    refused = 0
    for at in rng.integers(0, len(content), 300):
        damaged = bytearray(content)
        damaged[at] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        source = PackedSource(tmp_path / "out")
        assert source.verify()
        for place in range(2):
            try:
                sample = source.read(place)
            except BadSample:
                refused += 1
                continue
            same(sample, expected[place])
    assert refused > 200


def test_a_bad_dataset_json_is_refused(tmp_path):
    pack(Places(), tmp_path / "out", progress=False)
    path = tmp_path / "out" / "dataset.json"
    held = json.loads(path.read_text())
    for text, message in (
        ("{", "cannot read"), ("[]", "cannot read"), (json.dumps({**held, "schema": 2}), "of schema 2"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            PackedSource(tmp_path / "out")


# ---------------------------------------------------------------------------------- processes and command


def test_a_forked_process_opens_its_own_files(tmp_path):
    pack(Places(), tmp_path / "out", per_shard=4, progress=False)
    source = PackedSource(tmp_path / "out")
    source.read(0)
    handle = source._shards.open(str(tmp_path / "out" / "000000.zarr.zip"))
    child = os.fork()
    if not child:
        other = source._shards.open(str(tmp_path / "out" / "000000.zarr.zip"))
        os._exit(0 if other is not handle and source.read(1).images else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert source._shards.open(str(tmp_path / "out" / "000000.zarr.zip")) is handle


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_few_shards_are_open_at_once(tmp_path):
    pack(Places(60), tmp_path / "out", per_shard=1, progress=False)
    source = PackedSource(tmp_path / "out")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for place in range(60):
        source.read(place, 0)
    assert len(list(Path("/proc/self/fd").iterdir())) - before == 40


def test_the_command(tmp_path, capsys):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", s2=rng.integers(1, 9000, (3, 12, 20, 20)).astype(np.uint16))
    arguments = ["pack", str(tmp_path / "a.npz"), "--output", str(tmp_path / "out"), "--no-progress"]
    assert main(arguments) == 2
    assert "no bands for s2" in capsys.readouterr().err
    arguments += ["--bands", "s2=" + ",".join(B12), "--tile", "10", "--per-shard", "5"]
    assert main(arguments) == 0
    assert "12 places in 3 shards" in capsys.readouterr().out
    assert len(PackedSource(tmp_path / "out")) == 12
    assert main([*arguments, "--offset", "none"]) == 2
    assert "has no option 'offset'" in capsys.readouterr().err


def test_real_data_come_back_exactly(tmp_path, real_data):
    source = open_source(real_data / "bigearthnet_v2_pairs_80.npz")
    report = pack(source, tmp_path / "out", per_shard=32, progress=False)
    packed = PackedSource(tmp_path / "out")
    for place in range(80):
        same(source.read(place, 0), packed.read(place, 0))
    raw = 80 * 120 * 120 * (4 * 2 + 2 * 2)
    assert report.bytes < 0.9 * raw  # S1 was float16, and is stored as float16
