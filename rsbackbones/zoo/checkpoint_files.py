"""Checkpoint files: safetensors, and pickles that are read as tensors only. No code in them is executed.

Names, shapes and dtypes are read from the header first (for a pickle after a ``weights_only`` load), so that
a wrong file is refused before the model is changed.
"""

import json
import pickle
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rsbackbones.files.unpickling import what_torch_refused
from rsbackbones.zoo.errors import (
    CorruptCheckpointError,
    UnsafeCheckpointError,
    WeightsNotFound,
)

# Real headers are far smaller. A header of 67 MB with a million empty tensors takes 17 s to parse.
MAX_HEADER_BYTES = 5 * 2**20
MAX_TENSORS = 10_000
# The pickle in a torch.save file holds names and shapes; references let a small one hold a huge tree.
MAX_PICKLE_BYTES, MAX_PICKLE_VALUES = 4 * MAX_HEADER_BYTES, 10 * MAX_TENSORS
# The metadata key of native safetensors files.
METADATA_KEY = "rsbackbones"
# In the file of a dense model, the names of the decoder's tensors begin with this.
DENSE_PREFIX = "dense_head."
# An error names at most this many tensors; a wrong model size affects hundreds.
_MAX_NAMED = 8
PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of a stored tensor. ``dtype`` is a torch dtype, or the file's name for an unknown
    one.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | str


class SafetensorsFile:
    """A safetensors file. The header is checked on opening; tensors are read by name."""

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = path
        header = _read_header(path)
        metadata = header.pop("__metadata__", {})
        try:
            # The library checks offsets, sizes and dtypes against the file size.
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise CorruptCheckpointError(f"{path} is not a sound safetensors file: {error}") from error
        self.metadata: dict[str, str] = dict(metadata)
        self.groups: dict[str, list[str]] = {}
        self.others: dict[str, str] = {}
        self.tensors = {
            name: TensorInfo(tuple(info["shape"]), _DTYPES.get(info["dtype"], str(info["dtype"])))
            for name, info in header.items()
        }

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return the named tensors, on the CPU. They may be mapped onto the file."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in names}
        except (SafetensorError, OSError) as error:
            raise CorruptCheckpointError(f"{self.path}: {error}") from error


def _read_header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER_BYTES:
            raise CorruptCheckpointError(
                f"{path}: a safetensors header of {length} bytes; at most {MAX_HEADER_BYTES} are accepted "
                "(is it a safetensors file?)"
            )
        raw = file.read(length)
    repeated: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) < len(items):
            repeated.extend(_twice(name for name, _ in items))
        return result

    try:
        header = json.loads(raw, object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{path}: the safetensors header is not JSON: {error}") from error
    if repeated:
        raise CorruptCheckpointError(f"{path}: tensors named twice: {', '.join(repeated)}")
    if not isinstance(header, dict):
        raise CorruptCheckpointError(f"{path}: the safetensors header is no table of tensors")
    if len(header) > MAX_TENSORS:
        raise CorruptCheckpointError(f"{path}: {len(header)} tensors; at most {MAX_TENSORS} are accepted")
    return header


def _twice(names: Iterable[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)


class PickleFile:
    """A ``torch.save`` file. Nested dictionaries are flattened to dotted names.

    ``groups`` are the dictionaries within each dictionary, by the beginnings of names; ``others`` the types
    of values that are no tensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, str] = {}
        self.groups: dict[str, list[str]] = {}
        self.others: dict[str, str] = {}
        _check_archive(path)
        try:
            # weights_only is explicit, because an environment variable can change its default.
            # An archive is memory-mapped, so that only tensors that are read take memory.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except pickle.UnpicklingError as error:
            reason = what_torch_refused(error)
            if _is_torch_archive(path):
                raise UnsafeCheckpointError(
                    f"{path} holds more than tensors, so it was not loaded: "
                    f"{_objects_in(path) or reason} Only where you trust it, take the tensors out: "
                    f"rsbackbones convert --trust-pickle {path} OUTPUT.safetensors --model NAME "
                    "(for published weights architecture.tag, which keeps their bands and input contract)"
                ) from error
            raise CorruptCheckpointError(f"{path} is not a torch checkpoint: {reason}") from error
        except Exception as error:  # the reader of old files fails in many ways on a damaged one
            raise CorruptCheckpointError(f"{path} is damaged or no torch checkpoint: {error}") from error
        try:
            flat = list(self._flatten(content, "", count()))
        except RecursionError as error:
            raise CorruptCheckpointError(f"{path}: dictionaries nested without end") from error
        if twice := _twice(name for name, _ in flat):
            raise CorruptCheckpointError(f"{path}: tensors named twice: {', '.join(twice)}")
        if len(flat) > MAX_TENSORS:
            raise CorruptCheckpointError(f"{path}: {len(flat)} tensors; at most {MAX_TENSORS} are accepted")
        self._tensors = dict(flat)
        self.tensors = {n: TensorInfo(tuple(t.shape), t.dtype) for n, t in self._tensors.items()}

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return the named tensors, on the CPU. They may share memory and be mapped onto the file."""
        return {name: self._tensors[name] for name in names}

    def _flatten(self, content: Any, prefix: str, visited: Iterator[int]) -> Iterable[tuple[str, Tensor]]:
        if not isinstance(content, Mapping):
            raise CorruptCheckpointError(
                f"{self.path}: expected a dictionary of tensors, got {type(content).__name__}; write one: "
                "torch.save(model.state_dict(), ...)"
            )
        self.groups[prefix] = [f"{prefix}{k}." for k, held in content.items() if isinstance(held, Mapping)]
        for key, value in content.items():
            if next(visited) >= MAX_PICKLE_VALUES:
                raise CorruptCheckpointError(f"{self.path}: more than {MAX_PICKLE_VALUES} values")
            name = f"{prefix}{key}"
            if isinstance(value, Mapping):
                yield from self._flatten(value, f"{name}.", visited)
                continue
            if not isinstance(value, Tensor):
                self.others[name] = type(value).__name__
                continue
            if value.layout is not torch.strided or value.device.type != "cpu":
                raise CorruptCheckpointError(f"{self.path}: {name} is {value.layout} on {value.device}")
            # A view can claim a shape of any size over a few stored bytes; copying it would exhaust memory.
            stored = value.untyped_storage().nbytes()
            if stored < value.numel() * value.element_size():
                raise CorruptCheckpointError(
                    f"{self.path}: {name} claims {tuple(value.shape)} over {stored} bytes"
                )
            yield name, value


def _objects_in(path: Path) -> str:
    """Return a sentence about the objects of a pickle that are no tensors, without creating them."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # not every form of file can be looked into
        return ""
    return f"it holds objects of {', '.join(sorted(names)[:8])}." if names else ""


def _is_torch_archive(path: Path) -> bool:
    """Return whether the file is a pickle (bare or in a zip archive), and not a web page, for example."""
    with path.open("rb") as file:
        start = file.read(2)
    return start == b"PK" or start[:1] in (b"\x80", b"c", b"(", b"]", b"}")


def _check_archive(path: Path) -> None:
    """Refuse a zip archive whose members expand: torch.save stores them as they are, and maps them."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except Exception as error:  # zipfile fails in many ways on a damaged one
        raise CorruptCheckpointError(f"{path} is damaged: {error}") from error
    if packed := [member.filename for member in members if member.compress_type]:
        raise CorruptCheckpointError(
            f"{path}: {packed[0]} is compressed, which torch.save never does; save the file again with it"
        )
    if large := [member for member in members if member.filename.endswith("data.pkl")
                 and member.file_size > MAX_PICKLE_BYTES]:  # fmt: skip
        raise CorruptCheckpointError(
            f"{path}: {large[0].filename} has {large[0].file_size} bytes; at most {MAX_PICKLE_BYTES} are "
            "accepted"
        )


CheckpointFile = SafetensorsFile | PickleFile


def open_checkpoint(path: Path, *, allow_pickle: bool) -> CheckpointFile:
    """Open a checkpoint by its suffix: ``.safetensors``, or ``.pt``, ``.pth``, ``.bin``, ``.ckpt``.

    Args:
        path: the file.
        allow_pickle: allow pickles (read with ``weights_only``), for a local file named by the user or a
            manifest entry with a foreign format.

    Raises:
        WeightsNotFound: the file does not exist.
        CorruptCheckpointError: it is damaged, or not a checkpoint.
        UnsafeCheckpointError: it is a pickle with more than tensors, or pickles are not allowed.
    """
    if not path.is_file():
        raise WeightsNotFound(f"there is no checkpoint file {path}")
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    if path.suffix not in PICKLE_SUFFIXES:
        raise CorruptCheckpointError(
            f"{path}: unknown kind of file; expected .safetensors or {', '.join(PICKLE_SUFFIXES)}"
        )
    if not allow_pickle:
        raise UnsafeCheckpointError(f"{path}: a pickle where the manifest promises safetensors")
    return PickleFile(path)


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors with NaN or infinite values."""
    return [name for name, t in tensors.items() if t.is_floating_point() and not t.isfinite().all().item()]


def shorten(names: Sequence[str]) -> str:
    """Join names, the first few of many."""
    more = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
