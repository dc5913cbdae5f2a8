"""The weights manifest: all weights of the zoo, pinned to bytes.

``weights_manifest.json`` is at the top of the repository and inside the installed package. The environment
variable ``RSBACKBONES_MANIFEST`` names a second manifest of the user, with the same schema (for a private
zoo, a mirror, a test). Its entries and its default for an architecture take precedence.
"""

import copy
import difflib
import functools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rsbackbones.files.bounds import parse_json, read_json, read_text
from rsbackbones.input_spec import InputSpec
from rsbackbones.models.config import ModelConfig
from rsbackbones.typed_fields import check_fields, show
from rsbackbones.zoo.errors import WeightsNotFound

SCHEMA_VERSION = 1
# The manifest of a folder made by ``rsbackbones download --output``.
FOLDER_MANIFEST = "manifest.json"
_PACKAGE = Path(__file__).parents[1]
_MOST_SHOWN = 6  # ids in an error


@dataclass(frozen=True, kw_only=True)
class Source:
    """The location of a file: ``hub``, ``bundled`` with its manifest, or ``unreleased`` with a reason.

    ``path`` of a bundled file is relative to the folder of the manifest (to the package for its own
    manifest).
    ``private``: send the user's Hub token; otherwise it is not sent.
    """

    kind: str
    repo_id: str = ""
    revision: str = ""
    filename: str = ""
    path: str = ""
    reason: str = ""
    private: bool = False

    def __str__(self) -> str:
        if self.kind == "hub":
            return f"{self.repo_id}/{self.filename}@{self.revision}"
        return self.path or "nowhere"


@dataclass(frozen=True, kw_only=True)
class WeightsEntry:
    """One weights file: ``id`` is ``architecture.tag``. For the fields see weights_manifest.schema.json."""

    id: str
    architecture: str
    source: Source
    format: str
    license: str
    provenance: str
    inputs: Mapping[str, Mapping[str, Any]]
    default: bool = False
    method: str = ""
    data: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    sha256: str | None = None
    sha256_prefix: str | None = None
    sha256_from: str | None = None
    bytes: int | None = None
    image_size: int = 0
    params: int = 0
    dtype: str = "float32"
    citation: str | None = None
    metrics: Mapping[str, Any] | None = None
    golden: Mapping[str, Any] | None = None
    # The folder of bundled files. read_manifest sets it; it is not a field of the manifest.
    folder: Path = field(default=Path(), compare=False)

    @property
    def tag(self) -> str:
        """The part of the id after the architecture."""
        return self.id.partition(".")[2]

    @property
    def availability(self) -> str:
        """``hub``, ``bundled`` or ``unreleased``."""
        return self.source.kind

    @property
    def pinned(self) -> str:
        """How the bytes are pinned: ``sha256``, ``sha256_prefix``, ``hub``; ``""``: none are published."""
        if self.availability == "unreleased":
            return ""
        return "sha256" if self.sha256 else "sha256_prefix" if self.sha256_prefix else "hub"

    @property
    def file_name(self) -> str:
        """The name of the file in a folder made by ``rsbackbones download --output``."""
        return self.id + Path(self.source.filename or self.source.path).suffix

    @staticmethod
    def from_json(entry: Any, where: str, folder: Path) -> "WeightsEntry":
        """Parse and check an entry. ``where`` names the manifest in errors; ``folder`` has its bundled files.

        Raises:
            ValueError: a field is missing, unknown or malformed.
        """
        if not isinstance(entry, Mapping):
            raise ValueError(f"{where}: an entry is an object of fields, got {show(entry)}")
        here = f"{where}, entry {show(entry.get('id', '(without an id)'))}"
        known = {f.name for f in fields(WeightsEntry)} - {"folder"}
        required = {"id", "architecture", "source", "format", "license", "provenance", "inputs"}
        if wrong := [name[:60] for name in entry if name not in known] + sorted(required - set(entry)):
            raise ValueError(f"{here}: unknown or missing fields: {', '.join(wrong[:8])}")
        check_fields(WeightsEntry, entry, here)
        check_fields(Source, entry["source"], f"{here}: source")
        if "kind" not in entry["source"]:
            raise ValueError(f"{here}: source: kind is missing")
        for modality, spec in entry["inputs"].items():
            try:
                InputSpec.check_mapping(modality, spec)
            except ValueError as error:
                raise ValueError(f"{here}: {error}") from error
        own = {f.name for f in fields(ModelConfig)} & set(config := entry.get("config", {}))
        check_fields(ModelConfig, {name: config[name] for name in own}, f"{here}: config")
        source = Source(**entry["source"])
        result = WeightsEntry(**{**entry, "source": source, "folder": folder})
        if problem := _problem(result):
            raise ValueError(f"{here}: {problem}")
        return result


def _problem(entry: WeightsEntry) -> str | None:
    source = entry.source
    if not re.fullmatch(r"[a-z0-9_]+\.[a-z0-9_]+", entry.id) or not entry.id.startswith(
        entry.architecture + "."
    ):
        return f"id must be architecture.tag in lower case, got architecture {entry.architecture!r}"
    if source.kind == "unreleased":
        return None if source.reason else "source.kind 'unreleased' needs a reason"
    if source.kind == "hub":
        if not re.fullmatch(r"[0-9a-f]{40}", source.revision):
            return f"source.revision must be a full 40-digit commit, got {source.revision!r}"
        if not source.repo_id or not source.filename or ".." in Path(source.filename).parts:
            return "source needs a repo_id and a filename inside the repository"
    elif source.kind == "bundled":
        if not source.path or Path(source.path).is_absolute() or ".." in Path(source.path).parts:
            return f"source.path must lie below the manifest (or inside the package), got {source.path!r}"
    else:
        return f"source.kind must be hub, bundled or unreleased, got {source.kind!r}"
    if entry.sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", entry.sha256):
        return f"sha256 must be 64 hexadecimal digits, got {entry.sha256!r}"
    if entry.sha256_from is not None and (entry.sha256_from != "hub" or source.kind != "hub"):
        return f"sha256_from must be 'hub', for a file on the Hub, got {entry.sha256_from!r}"
    if entry.sha256_prefix is not None and not re.fullmatch(r"[0-9a-f]{8,64}", entry.sha256_prefix):
        return f"sha256_prefix must be 8 to 64 hexadecimal digits, got {show(entry.sha256_prefix)}"
    if not (entry.sha256 or entry.sha256_from or entry.sha256_prefix):
        return "sha256, a sha256_prefix of at least 8 hexadecimal digits, or sha256_from is needed"
    if entry.format == "rsbackbones" and not entry.file_name.endswith(".safetensors"):
        return "format 'rsbackbones' is a .safetensors file, so source.path or source.filename ends in that"
    if entry.dtype not in ("float32", "float16", "bfloat16"):
        return f"dtype must be float32, float16 or bfloat16, got {entry.dtype!r}"
    if entry.bytes is not None and entry.bytes < 1:
        return f"bytes must be positive, got {entry.bytes}"
    if negative := [name for name in ("image_size", "params") if getattr(entry, name) < 0]:
        return f"{' and '.join(negative)} must not be negative"
    return None


def _packaged_manifest() -> Path:
    # It is inside the package in a wheel, and above the package in a checkout (an editable install).
    inside = _PACKAGE / "weights_manifest.json"
    return inside if inside.exists() else _PACKAGE.parent / "weights_manifest.json"


def read_manifest(path: str | Path) -> tuple[WeightsEntry, ...]:
    """Read and check a manifest. Its bundled files are in its folder (in the package for its own manifest).

    Raises:
        ValueError: it is missing, not JSON, has another schema, or an entry is malformed.
    """
    path = Path(path).expanduser()
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    folder = _PACKAGE if path == _packaged_manifest() else path.parent
    return copy.deepcopy(_entries_of(text, path, folder))  # what a caller changes is not what others get


# By content, so that a file that changed is read again. Most calls of the zoo read the package's own, whose
# checks take 20 ms.
@functools.lru_cache(maxsize=8)
def _entries_of(text: str, path: Path, folder: Path) -> tuple[WeightsEntry, ...]:
    try:
        content = parse_json(text)
    except ValueError as error:
        raise _unreadable(path, error) from error
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"{path}: expected a manifest of schema_version {SCHEMA_VERSION}")
    weights = content.get("weights", [])
    if not isinstance(weights, list):
        raise ValueError(f"{path}: weights must be a list of entries, got {show(weights)}")
    entries = tuple(WeightsEntry.from_json(e, str(path), folder) for e in weights)
    ids = [e.id for e in entries]
    defaults = [e.architecture for e in entries if e.default]
    if twice := sorted({x for x in (*ids, *defaults) if (ids + defaults).count(x) > 1}):
        raise ValueError(f"{path}: more than one entry or default for {', '.join(twice)}")
    return entries


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"cannot read the weights manifest {path}: {error}")


def entries_as_json() -> dict[str, dict[str, Any]]:
    """Return the entries of :func:`all_entries` by id, as they are written in their manifests."""
    own = os.environ.get("RSBACKBONES_MANIFEST")
    paths = [_packaged_manifest(), *([Path(own).expanduser()] if own else [])]
    written = [read_json(path)["weights"] for path in paths]
    return {entry["id"]: entry for entries in written for entry in entries}


def all_entries() -> tuple[WeightsEntry, ...]:
    """Return all entries: those of the user's manifest, then those of the package that it does not
    replace.
    """
    entries: dict[str, WeightsEntry] = {}
    if own := os.environ.get("RSBACKBONES_MANIFEST"):
        entries = {entry.id: entry for entry in read_manifest(Path(own).expanduser())}
    for entry in read_manifest(_packaged_manifest()):
        entries.setdefault(entry.id, entry)
    return tuple(entries.values())


def find_entry(name: str) -> WeightsEntry:
    """Return the entry for ``architecture.tag``, or the default one for ``architecture``.

    Raises:
        WeightsNotFound: there is none, or none was published; the message lists the available weights.
    """
    entries = all_entries()
    architecture, _, tag = name.partition(".")
    candidates = [entry for entry in entries if entry.architecture == architecture]
    chosen = [entry for entry in candidates if (entry.tag == tag if tag else entry.default)]
    if chosen and chosen[0].availability != "unreleased":
        return chosen[0]
    why = chosen[0].source.reason if chosen else f"no weights are known under the name {name!r}"
    if reasons := [entry.source.reason for entry in candidates if entry.availability == "unreleased"]:
        why = why if chosen else f"{why}: {reasons[0]}"
    raise WeightsNotFound(
        f"{name}: {why}. {_existing(name)} "
        "For a randomly initialized model leave out pretrained=True (commands: --no-pretrained; "
        "finetune: pretrained=false)."
    )


def _existing(name: str) -> str:
    """Return a sentence with weights whose names are close to ``name``: those of its architecture, if any."""
    released = [entry for entry in all_entries() if entry.availability != "unreleased"]
    architecture = name.partition(".")[0]
    own = [entry.id for entry in released if entry.architecture == architecture]
    names = {entry.architecture for entry in released} - {architecture}
    close = difflib.get_close_matches(architecture, names, n=3, cutoff=0.8)
    others = [entry.id for entry in released if entry.architecture in close]
    ids = [
        *sorted(own, key=lambda known: -difflib.SequenceMatcher(None, known, name).ratio()),
        *sorted(others, key=lambda known: close.index(known.partition(".")[0])),
    ]
    every = f"`rsbackbones list` names all {len(released)}."
    if not ids:
        return f"There are no weights of similar names; {every}"
    return f"Weights exist for: {', '.join(ids[:_MOST_SHOWN])}{', ...' * (len(ids) > _MOST_SHOWN)}; {every}"
