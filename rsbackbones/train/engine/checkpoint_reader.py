"""Read a distributed checkpoint without executing code in it.

torch.distributed.checkpoint (DCP) unpickles ``.metadata`` and what is no tensor (a learning rate). A run
folder may come from somebody else, and the hashes in it are whatever that folder says. So only DCP's own
records are created from ``.metadata``, everything else is read with ``weights_only``, and files outside the
folder are never opened.
"""

import io
import pickle
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import metadata as records
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import load

# Thousands of tensors on hundreds of processes take a few megabytes.
MAX_METADATA_BYTES = 256 * 2**20
_RECORDS = (
    records.Metadata, records.MetadataIndex, records.TensorStorageMetadata, records.BytesStorageMetadata,
    records.TensorProperties, records.ChunkStorageMetadata, records.StorageMeta, records._MEM_FORMAT_ENCODING,
    _StorageInfo, torch.Size, torch.serialization._get_layout,
)  # fmt: skip
_ALLOWED: dict[tuple[str, str], Any] = {(kind.__module__, kind.__name__): kind for kind in _RECORDS}
# The folder that the checkpoint was written to: a path on any system, which is not used.
_ALLOWED |= {
    (module, name): kind
    for module in ("pathlib", "pathlib._local")
    for kind in (PurePosixPath, PureWindowsPath)
    for name in (kind.__name__, kind.__name__.removeprefix("Pure"))
}


def load_checkpoint(
    state: dict[str, Any],
    path: Path,
    *,
    process_group: dist.ProcessGroup | None = None,
    no_dist: bool = False,
) -> None:
    """Load a checkpoint into ``state``, as ``torch.distributed.checkpoint.load`` does.

    Raises:
        CheckpointException: it cannot be read, does not hold ``state``, or holds more than tensors and
            numbers.
    """
    load(
        state, storage_reader=_Reader(path), planner=_Planner(), process_group=process_group, no_dist=no_dist
    )  # fmt: skip


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        raise pickle.UnpicklingError(
            f"it names {module}.{name}, which no checkpoint of rsbackbones does: reading it could run code"
        )


class _Reader(FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> records.Metadata:
        path = Path(self._get_metadata_path(kwargs.get("rank")))
        if (size := path.stat().st_size) > MAX_METADATA_BYTES:
            raise ValueError(f"{path} has {size} bytes; at most {MAX_METADATA_BYTES} are accepted")
        with path.open("rb") as file:
            metadata = _Unpickler(file).load()
        if not isinstance(metadata, records.Metadata) or not isinstance(metadata.storage_data, dict):
            raise ValueError(f"{path} is no description of a checkpoint")
        for place in metadata.storage_data.values():
            if not isinstance(place, _StorageInfo) or place.transform_descriptors:
                raise ValueError(f"{path} describes files of another kind")
            if not isinstance(name := place.relative_path, str) or PurePath(name).name != name:
                raise ValueError(f"{path} names the file {name!r}, which is not in its folder")
        metadata.storage_meta = records.StorageMeta(load_id=self.load_id)
        return metadata


class _Planner(DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        # DCP's method unpickles everything, so it gets a copy of what the restricted reader understood.
        plain = io.BytesIO()
        torch.save(torch.load(value, map_location="cpu", weights_only=True), plain)
        plain.seek(0)
        super().load_bytes(read_item, plain)
