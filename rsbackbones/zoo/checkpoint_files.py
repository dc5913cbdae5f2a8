"""Checkpoint files: safetensors, and pickles read as tensors only. Nothing in them is ever executed.

A file is looked at before it is read: names, shapes and dtypes are known from the header (of a pickle,
after a ``weights_only`` load), so that a wrong file is refused before a model is touched.
"""

import json
import pickle
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rsbackbones.zoo.errors import (
    CorruptCheckpointError,
    UnsafeCheckpointError,
    WeightsNotFound,
)

# A header of 67 MB with a million empty tensors takes 17 s to parse; a real one is far below this.
MAX_HEADER_BYTES = 5 * 2**20
MAX_TENSORS = 10_000
# Under this key our own safetensors files describe what they hold.
METADATA_KEY = "rsbackbones"
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
    """Shape and dtype of a stored tensor; ``dtype`` is torch's, or the file's own name for a rare one."""

    shape: tuple[int, ...]
    dtype: torch.dtype | str


class SafetensorsFile:
    """A safetensors file: header checked when opened, tensors read by name."""

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = path
        header = _read_header(path)
        metadata = header.pop("__metadata__", {})
        try:
            # The library checks offsets, sizes and dtypes against the length of the file.
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise CorruptCheckpointError(f"{path} is not a sound safetensors file: {error}") from error
        self.metadata: dict[str, str] = dict(metadata)
        self.tensors = {
            name: TensorInfo(tuple(info["shape"]), _DTYPES.get(info["dtype"], str(info["dtype"])))
            for name, info in header.items()
        }

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return the named tensors, on the CPU; they may be mapped onto the file."""
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
    """A ``torch.save`` file of tensors, nested dictionaries flattened to dotted names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, str] = {}
        try:
            # weights_only is passed explicitly: without it an environment variable turns the check off.
            # An archive is mapped, so that only the tensors that are read take memory.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except pickle.UnpicklingError as error:
            # torch's own text goes on to recommend loading the file without the check.
            reason = (
                str(error).split("WeightsUnpickler error:")[-1].strip().split(" Please")[0].split("\n")[0]
            )
            if _is_torch_archive(path):
                raise UnsafeCheckpointError(
                    f"{path} holds more than tensors, so it was not loaded: {reason} Convert it to tensors "
                    "only where you trust it"
                ) from error
            raise CorruptCheckpointError(f"{path} is not a torch checkpoint: {reason}") from error
        except Exception as error:  # the reader of old files fails in many ways on a damaged one
            raise CorruptCheckpointError(f"{path} is damaged or no torch checkpoint: {error}") from error
        try:
            flat = list(_flatten(content, "", path))
        except RecursionError as error:
            raise CorruptCheckpointError(f"{path}: dictionaries nested without end") from error
        if twice := _twice(name for name, _ in flat):
            raise CorruptCheckpointError(f"{path}: tensors named twice: {', '.join(twice)}")
        self._tensors = dict(flat)
        self.tensors = {n: TensorInfo(tuple(t.shape), t.dtype) for n, t in self._tensors.items()}

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return the named tensors, on the CPU; they may share memory, and be mapped onto the file."""
        return {name: self._tensors[name] for name in names}


def _is_torch_archive(path: Path) -> bool:
    """Tell a pickle (in a zip archive, or bare) from something else, such as a web page."""
    with path.open("rb") as file:
        start = file.read(2)
    return start == b"PK" or start[:1] in (b"\x80", b"c", b"(", b"]", b"}")


def _flatten(content: Any, prefix: str, path: Path) -> Iterable[tuple[str, Tensor]]:
    if not isinstance(content, Mapping):
        raise CorruptCheckpointError(
            f"{path}: expected a dictionary of tensors, got {type(content).__name__}"
            + (f" at {prefix!r}" if prefix else "")
        )
    for key, value in content.items():
        name = f"{prefix}{key}"
        if not isinstance(value, Tensor):
            yield from _flatten(value, f"{name}.", path)
            continue
        if value.layout is not torch.strided or value.device.type != "cpu":
            raise CorruptCheckpointError(f"{path}: {name} is {value.layout} on {value.device}")
        # A view can claim a shape of any size over a few stored bytes; copying it would exhaust memory.
        stored = value.untyped_storage().nbytes()
        if stored < value.numel() * value.element_size():
            raise CorruptCheckpointError(f"{path}: {name} claims {tuple(value.shape)} over {stored} bytes")
        yield name, value


CheckpointFile = SafetensorsFile | PickleFile


def open_checkpoint(path: Path, *, allow_pickle: bool) -> CheckpointFile:
    """Open a checkpoint by its suffix: ``.safetensors``, or ``.pt``, ``.pth``, ``.bin``, ``.ckpt``.

    Args:
        path: the file.
        allow_pickle: whether a pickle may be opened (with ``weights_only``): for a local file that the
            user names, or a manifest entry that says so.

    Raises:
        WeightsNotFound: there is no such file.
        CorruptCheckpointError: it is damaged, or not a checkpoint.
        UnsafeCheckpointError: it is a pickle of more than tensors, or pickles are not allowed here.
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
    """Return the names of the tensors that hold NaN or infinity."""
    return [name for name, t in tensors.items() if t.is_floating_point() and not t.isfinite().all().item()]
