"""Publish a model on the Hub, in one commit; ``create_model("hf-hub:...")`` loads it.

The reply to a commit may be lost, so that the client does not know whether the commit succeeded. Therefore
the head of the branch is checked after every failure, and every attempt states its parent commit. The result
is one new commit or none, and never a commit on top of someone else's.
"""

import hashlib
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from rsbackbones.files.sha256 import sha256_of
from rsbackbones.models.backbone import Backbone, unwrap_model
from rsbackbones.models.config import as_json
from rsbackbones.zoo import hub, weights
from rsbackbones.zoo.errors import WeightsAccessError, WeightsError, WeightsUnavailable
from rsbackbones.zoo.licenses import NONE_STATED
from rsbackbones.zoo.manifest import Source, WeightsEntry
from rsbackbones.zoo.saving import find_dense, save_model

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

CARD_FILE = "README.md"
# The files that publishing writes. A repository with other files is not overwritten.
MANAGED_FILES = {hub.WEIGHTS_FILE, hub.CONFIG_FILE, CARD_FILE, ".gitattributes"}
T = TypeVar("T")


def push_to_hub(
    model: Backbone | nn.Module,
    repo_id: str,
    *,
    license: str = "",
    provenance: str = "",
    citation: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    private: bool = False,
    dtype: torch.dtype = torch.float32,
    message: str = "Weights, configuration and model card",
) -> str:
    """Publish a model on the Hub: weights, their description and a model card, in one commit.

    The token comes from ``hf auth login`` or the environment variable ``HF_TOKEN``. The repository is created
    if it does not exist. A repository of the same architecture gets a new version.

    Args:
        model: from ``create_model`` or ``rsbackbones.heads.dense_model``, as for ``save_model``.
        repo_id: ``ORG/NAME``.
        license: the license of the weights, as the Hub names it (``cc-by-4.0``); default that of the
            pretrained weights of the model.
        provenance: how the weights were trained, a sentence or two for the model card.
        citation: a BibTeX entry.
        metrics: measured values by name.
        private: make the repository private.
        dtype: the dtype to store; loading casts back to float32.
        message: the commit message.

    Returns:
        ``hf-hub:ORG/NAME@COMMIT``, which always gives these weights.

    Raises:
        ValueError: an unknown license, or a model that cannot be written; see ``save_model``.
        WeightsAccessError: you are not logged in, or the token has no write access.
        WeightsUnavailable: the network or the Hub failed, or someone else committed at the same time.
        WeightsError: the repository has other content.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        entry = write_repository(
            model, repo_id, folder,
            license=license, provenance=provenance, citation=citation, metrics=metrics, dtype=dtype,
        )  # fmt: skip
        commit = _upload(entry, sorted(folder.iterdir()), private, message)
    return f"{hub.PREFIX}{repo_id}@{commit}"


def write_repository(
    model: Backbone | nn.Module,
    repo_id: str,
    folder: str | Path,
    *,
    license: str = "",
    provenance: str = "",
    citation: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> WeightsEntry:
    """Write the files of a repository into a folder, without network; see :func:`push_to_hub`."""
    # Here, so that `python -m rsbackbones.zoo.cards` is not imported before it runs.
    from rsbackbones.zoo.cards import repository_card

    source = Source(kind="hub", repo_id=repo_id, revision="main", filename=hub.WEIGHTS_FILE)
    hub.hub_repo(hub.PREFIX + repo_id)  # checks repo_id
    given, model, folder = model, unwrap_model(model), Path(folder).expanduser()
    origin = model.weights_entry
    license = license or (origin.license if origin else "")
    if license in ("", "not stated", NONE_STATED):
        raise ValueError("the license of these weights is unknown: pass license='cc-by-4.0', 'mit', ...")
    if not provenance:
        provenance = f"Made from `{origin.id}` ({origin.source})." if origin else "Not stated."
    file = save_model(given, folder / hub.WEIGHTS_FILE, dtype=dtype)
    size = model.config.image_size
    entry = WeightsEntry(
        id=hub.entry_id(model.architecture, repo_id),
        architecture=model.architecture,
        method=origin.method if origin else "",
        data=origin.data if origin else "",
        source=source,
        format="rsbackbones",
        config=as_json(model.config),
        inputs={
            m: asdict(model.inputs[m].of(bands)) for m, bands in model.bands.items() if m in model.inputs
        },
        sha256=sha256_of(file),
        bytes=file.stat().st_size,
        image_size=size if isinstance(size, int) else 0,
        params=sum(parameter.numel() for parameter in model.parameters()),
        dtype=str(dtype).removeprefix("torch."),
        license=license,
        provenance=provenance,
        citation=citation,
        metrics=metrics,
    )
    (folder / hub.CONFIG_FILE).write_text(hub.config_json(entry), encoding="utf-8")
    card = repository_card(entry, model.num_classes, find_dense(given) is not None)
    (folder / CARD_FILE).write_text(card, encoding="utf-8")
    return entry


def _upload(entry: WeightsEntry, files: list[Path], private: bool, message: str) -> str:
    """Create the repository if needed, commit all files at once, and return the hash of the commit."""
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    if not get_token():
        raise WeightsAccessError(
            f"{entry.source.repo_id}: nobody is logged in; run `hf auth login`, or set HF_TOKEN, with a "
            "token that may write"
        )
    api, repo_id = HfApi(), entry.source.repo_id
    _call_hub(entry, lambda: api.create_repo(repo_id, private=private or None, exist_ok=True))
    before = _head(api, entry)
    _check_contents(entry, before, private)
    for attempt in range(weights.TRIES):
        try:
            added = [CommitOperationAdd(path.name, path) for path in files]
            return api.create_commit(repo_id, added, commit_message=message, parent_commit=before.sha).oid
        except Exception as error:
            after = _head(api, entry)
            if all(_unchanged(path, after) for path in files):
                assert after.sha is not None
                return after.sha
            if after.sha != before.sha:
                raise WeightsUnavailable(
                    f"{repo_id}: somebody else committed {after.sha} on top of {before.sha} meanwhile, so "
                    "nothing was committed; look at it, and push again"
                ) from error
            failure = _describe_error(entry, error)
            if failure is None:
                raise
            if not failure.transient or attempt == weights.TRIES - 1:
                raise failure.error from error
        time.sleep(0.5 * 2**attempt)
    raise AssertionError("unreachable")


def _head(api: "HfApi", entry: WeightsEntry) -> "ModelInfo":
    return _call_hub(entry, lambda: api.model_info(entry.source.repo_id, files_metadata=True))


def _check_contents(entry: WeightsEntry, head: "ModelInfo", private: bool) -> None:
    """Refuse a repository with other contents, or a public one if ``private`` is requested."""
    repo_id = entry.source.repo_id
    if private and not head.private:
        raise WeightsError(
            f"{repo_id} exists and is public; make it private on its page, or leave out private=True"
        )
    names = {file.rfilename for file in head.siblings or []}
    if others := sorted(names - MANAGED_FILES):
        raise WeightsError(
            f"{repo_id} holds other things ({', '.join(others[:5])}{', ...' if len(others) > 5 else ''}); "
            "choose another name"
        )
    if hub.CONFIG_FILE in names:
        held = hub.read_entry(f"{hub.PREFIX}{repo_id}@{head.sha}").architecture
        if held != entry.architecture:
            raise WeightsError(f"{repo_id} holds {held}, not {entry.architecture}; choose another name")


def _unchanged(path: Path, head: "ModelInfo") -> bool:
    """Return whether the repository has this file, by the hashes that the Hub reports."""
    held: list[RepoSibling] = [file for file in head.siblings or [] if file.rfilename == path.name]
    if not held:
        return False
    if held[0].lfs is not None:
        return held[0].lfs.sha256 == sha256_of(path)
    content = path.read_bytes()
    return held[0].blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _call_hub(entry: WeightsEntry, ask: Callable[[], T]) -> T:
    """Send a request to the Hub. Raise errors of its client as WeightsError."""
    try:
        return ask()
    except Exception as error:
        failure = _describe_error(entry, error)
        if failure is None:
            raise
        raise failure.error from error


def _describe_error(entry: WeightsEntry, error: Exception) -> weights.ErrorClass | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        repo_id = entry.source.repo_id
        return weights.ErrorClass(
            WeightsAccessError(
                f"{repo_id}: the Hub refuses to write (HTTP {status}). Does the token have write permission, "
                f"and may its user write to {repo_id.partition('/')[0]}? `hf auth whoami` tells, "
                "`hf auth login` changes it"
            )
        )
    return weights.describe_error(entry, error)
