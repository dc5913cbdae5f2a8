"""A packed folder from somebody else: only Blosc is decoded, and only to the size that the header states."""

import json
import os
import pickle
import zipfile

import numcodecs
import numpy as np
import pytest

from rsbackbones.data.open import open_source
from rsbackbones.data.pack import pack
from rsbackbones.data.source import BadSample


class Touch:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


class PickleCodec(numcodecs.abc.Codec):
    """As numcodecs before 0.16.6 had one that everybody's shard could name."""

    codec_id = "unsafe_pickle"

    def encode(self, buf):
        return pickle.dumps(buf)

    def decode(self, buf, out=None):
        return pickle.loads(buf)


@pytest.fixture
def packed(tmp_path):
    images = np.arange(4 * 64 * 64, dtype="uint16").reshape(1, 4, 64, 64)
    np.savez(tmp_path / "a.npz", s2=images, s2_bands=np.array(["B02", "B03", "B04", "B08"]))
    pack(open_source(tmp_path / "a.npz"), tmp_path / "packed", progress=False)
    assert np.array_equal(open_source(tmp_path / "packed").read(0, 0).images["s2"], images[0])
    return tmp_path / "packed"


def rewrite(packed, *, header=None, chunk=None, compression=zipfile.ZIP_STORED, attributes=None):
    path = packed / "000000.zarr.zip"
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    content["s2/0/.zarray"] = json.dumps(json.loads(content["s2/0/.zarray"]) | (header or {})).encode()
    content["s2/0/0.0.0.0"] = content["s2/0/0.0.0.0"] if chunk is None else chunk
    if attributes is not None:
        content[".zattrs"] = attributes
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, held in content.items():
            archive.writestr(name, held)


@pytest.mark.parametrize("codec", ["pickle", "unsafe_pickle", "json2", "zlib", "vlen-utf8"])
def test_other_codecs_are_not_run(packed, tmp_path, codec):
    numcodecs.register_codec(PickleCodec)
    marker = tmp_path / "executed"
    rewrite(packed, header={"compressor": {"id": codec}}, chunk=pickle.dumps(Touch(marker)))
    with pytest.raises(BadSample, match=codec):
        open_source(packed).read(0, 0)
    assert not marker.exists()


BLOSC = {"id": "blosc", "cname": "zstd", "clevel": 3, "shuffle": 2, "blocksize": 0}


@pytest.mark.parametrize(
    "change",
    [
        {"header": {"compressor": None}},
        {"header": {"compressor": BLOSC | {"typesize": 8}}},
        {"header": {"dtype": "|O"}},
        {"header": {"dtype": "<M8[s]"}},
        {"header": {"shape": [1, 4, 64, 63]}},
        {"header": {"shape": [1, -4, -64, 64]}},
        {"header": {"shape": "abcd"}},
        {"header": {"shape": [10**9, 4, 64, 64]}},
        {"header": {"shape": None}},
        {"chunk": b""},
        {"chunk": b"\2\1\x93\2" + (2**31 - 1).to_bytes(4, "little") + bytes(24)},
        {"chunk": numcodecs.blosc.compress(bytes(2**28), b"zstd", 9, 1)},
        {"compression": zipfile.ZIP_DEFLATED},
        {"attributes": b"[]"},
        {"attributes": b"[" * 100_000},
        {"attributes": b'{"names": [], "dates": []}'},
        {"attributes": json.dumps({"names": ["a"], "dates": [{"s2": [10**30]}]}).encode()},
    ],
    ids=str,
)
def test_damaged_shards_are_bad_samples(packed, change):
    rewrite(packed, **change)
    source = open_source(packed)
    with pytest.raises(BadSample, match=r"000000\.zarr\.zip"):
        source.read(0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bands", None), ("bands", {"s2": "B02"}), ("bands", {"s2": [1]}), ("frames", "1"),
        ("name", 1), ("notes", "text"), ("per_shard", 1.5), ("schema", None), ("shards", None),
        ("shards", [1]), ("shards", []), ("shards.file", "../000000.zarr.zip"),
        ("shards.file", "/etc/passwd"),
        ("shards.places", -1), ("shards.places", "1"), ("shards.bytes", float("nan")), ("shards.sha256", 3),
    ],
)  # fmt: skip
def test_a_malformed_description_is_refused(packed, field, value):
    file = packed / "dataset.json"
    content = json.loads(file.read_text())
    if field.startswith("shards."):
        content["shards"][0][field.removeprefix("shards.")] = value
    else:
        content[field] = value
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"dataset\.json"):
        open_source(packed)
