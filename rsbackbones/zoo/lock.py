"""Write what is known of weights after a download: full digests, sizes, golden activations.

``rsbackbones manifest lock`` records them in a manifest of the user, and ``rsbackbones download --output``
beside the files that it copies, for machines without a network.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rsbackbones.files.atomic import write_text
from rsbackbones.files.bounds import read_json
from rsbackbones.files.lock import exclusive
from rsbackbones.files.sha256 import sha256_of
from rsbackbones.zoo import weights
from rsbackbones.zoo.errors import WeightsError
from rsbackbones.zoo.manifest import (
    FOLDER_MANIFEST,
    SCHEMA_VERSION,
    WeightsEntry,
    entries_as_json,
    read_manifest,
)

# How long a download waits for another one to the same folder.
_LOCK_PATIENCE_S = 60.0


def lock_entries(
    entries: Iterable[WeightsEntry],
    path: Path,
    *,
    download: bool = False,
    golden: bool = False,
    report: Callable[[str], None] = print,
) -> list[str]:
    """Record the sha256 and the size of weights files in the manifest at ``path``, which is made or updated.

    Args:
        entries: those to record; entries that are not on the Hub are left alone.
        path: the manifest; its other entries stay as they are.
        download: fetch what is not in the cache; otherwise that is left out.
        golden: also load the weights, and record golden activations where there are none.
        report: called with a line for every entry.

    Returns:
        The ids of the recorded entries.

    Raises:
        WeightsError: the bytes of a file are not the pinned ones.
        ValueError: the manifest at ``path`` cannot be read.
    """
    written = entries_as_json()
    held = _read(path)
    locked = []
    for entry in entries:
        if entry.availability != "hub":
            continue
        if not download and weights.cached_file(entry) is None:
            report(f"{entry.id}: not downloaded")
            continue
        file = weights.fetch(entry)
        digest, size = sha256_of(file), file.stat().st_size
        stated = dict(written.get(entry.id, {}))
        before = held.get(entry.id, {})
        # Of another revision, nothing that was recorded holds for these bytes.
        if not stated or before.get("source") == stated["source"]:
            stated |= before
        held[entry.id] = _locked(stated, digest, size)
        if golden and not stated.get("golden"):
            held[entry.id]["golden"] = _golden(entry)
        locked.append(entry.id)
        report(f"{entry.id}: sha256 {digest}, {size} bytes")
    write_manifest(held.values(), path)
    return locked


def download_entries(entries: Iterable[WeightsEntry], folder: Path) -> list[Path]:
    """Copy weights files to ``folder``, with a manifest that points at them, and return the files.

    ``RSBACKBONES_MANIFEST=FOLDER/manifest.json`` loads them on another machine.

    Raises:
        WeightsError: as :func:`rsbackbones.zoo.weights.download_to`.
        ValueError: another process downloads to the folder, or it cannot be written to.
    """
    written = entries_as_json()
    paths = []
    with exclusive(folder, patience=_LOCK_PATIENCE_S):  # the manifest is read and written again
        for entry in entries:
            path = weights.download_to(entry, folder)
            paths.append(path)
            if entry.id not in written:  # of a repository: it is passed as a file
                continue
            locked = _locked(written[entry.id], sha256_of(path), path.stat().st_size)
            # After every file: what is there when a long download is stopped can be used.
            held = _read(folder / FOLDER_MANIFEST)
            held[entry.id] = {**locked, "source": {"kind": "bundled", "path": path.name}}
            write_manifest(held.values(), folder / FOLDER_MANIFEST)
    return paths


def write_manifest(entries: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write a manifest of entries as JSON."""
    content = {"schema_version": SCHEMA_VERSION, "weights": list(entries)}
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _read(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    read_manifest(path)  # checks it
    return {entry["id"]: entry for entry in read_json(path)["weights"]}


def _locked(entry: Mapping[str, Any], digest: str, size: int) -> dict[str, Any]:
    """Return an entry with a digest and a size in the place of what stood for them."""
    kept = {name: value for name, value in entry.items() if name not in ("sha256_prefix", "sha256_from")}
    return {**kept, "sha256": digest, "bytes": size}


def _golden(entry: WeightsEntry) -> dict[str, Any]:
    from rsbackbones.zoo.factory import create_model
    from rsbackbones.zoo.golden import compute_golden

    size = entry.image_size
    if not size:
        raise WeightsError(f"{entry.id}: its entry states no image_size, so there is no size for a golden")
    return compute_golden(create_model(entry.id, True), (size, size))
