"""Fetch the file of a manifest entry and verify its bytes.

The Hub client only checks file sizes and trusts its cache. Here the bytes are hashed on every use, downloaded
or cached. Failures are retried a limited number of times and raised as a WeightsError.

Where no hash is published (``"sha256_from": "hub"``), the bytes are checked against the sha256 that the Hub
states for the file at the pinned commit. The Hub states it apart from the storage that sends the bytes, so a
lying or faulty storage is caught; that the Hub itself tells the truth is taken on trust.
``rsbackbones manifest lock`` records such digests in a manifest.

Environment: ``RSBACKBONES_WEIGHTS`` is a folder made by ``rsbackbones download --output`` that is searched
first. ``HF_HOME``, ``HF_ENDPOINT``, ``HF_HUB_OFFLINE``, ``HF_HUB_ETAG_TIMEOUT`` and
``HF_HUB_DOWNLOAD_TIMEOUT`` are the Hub client's own.
"""

import errno
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from rsbackbones.files.atomic import atomic_path
from rsbackbones.files.sha256 import sha256_of
from rsbackbones.zoo.errors import (
    CorruptCheckpointError,
    UnsafeCheckpointError,
    WeightsAccessError,
    WeightsCacheError,
    WeightsError,
    WeightsIntegrityError,
    WeightsMismatchError,
    WeightsNotFound,
    WeightsUnavailable,
)
from rsbackbones.zoo.manifest import FOLDER_MANIFEST, WeightsEntry, read_manifest

__all__ = [
    "CorruptCheckpointError",
    "ErrorClass",
    "UnsafeCheckpointError",
    "WeightsAccessError",
    "WeightsCacheError",
    "WeightsEntry",
    "WeightsError",
    "WeightsIntegrityError",
    "WeightsMismatchError",
    "WeightsNotFound",
    "WeightsUnavailable",
    "cached_file",
    "describe_error",
    "download",
    "download_to",
    "fetch",
    "verify",
]

T = TypeVar("T")

TRIES = 4
# The client itself retries some failures for up to a minute; no attempt is added after this many seconds.
RETRY_DEADLINE_S = 20.0
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def _mismatch(path: Path, entry: WeightsEntry) -> str | None:
    """Describe how the bytes at ``path`` differ from the pinned ones; ``None`` if they are equal."""
    size = path.stat().st_size
    digest = sha256_of(path)
    if entry.bytes is not None and size != entry.bytes:
        return f"expected {entry.bytes} bytes with sha256 {entry.sha256}, got {size} with {digest}"
    if entry.sha256 is not None and digest != entry.sha256:
        return f"expected sha256 {entry.sha256}, got {digest}"
    if not digest.startswith(entry.sha256_prefix or ""):
        return f"expected a sha256 that begins with {entry.sha256_prefix}, got {digest}"
    return None


def verify(path: Path, entry: WeightsEntry) -> None:
    """Compare the size and sha256 of a file with its entry.

    Raises:
        WeightsIntegrityError: they differ; the message has both digests.
    """
    if problem := _mismatch(path, entry):
        raise WeightsIntegrityError(f"{path} is not {entry.id} ({entry.source}): {problem}")


def fetch(entry: WeightsEntry, folder: Path | None = None) -> Path:
    """Return a local, verified file for ``entry``, from the first location that has it.

    Args:
        entry: what to fetch.
        folder: a folder made by ``rsbackbones download --output``; only this one is searched. By default
            ``RSBACKBONES_WEIGHTS`` is searched, then the package or the Hub (through its cache).

    Raises:
        WeightsError: one of its subclasses, see :mod:`rsbackbones.zoo.errors`.
    """
    if entry.availability == "unreleased":
        raise WeightsNotFound(f"{entry.id}: {entry.source.reason}")
    named = os.environ.get("RSBACKBONES_WEIGHTS")
    local = folder or (Path(named).expanduser() if named else None)
    if local is not None:
        if not local.is_dir():
            raise WeightsNotFound(
                f"{entry.id}: there is no folder {local}"
                + ("" if folder else " (named by RSBACKBONES_WEIGHTS)")
                + f"; make one with: rsbackbones download {entry.id} --output {local}"
            )
        if (path := local / entry.file_name).exists():
            verify(path, _pinned_in_folder(entry, local))
            return path
        if folder is not None:
            raise WeightsNotFound(
                f"{entry.id}: {folder} has no {entry.file_name}; "
                f"put it there with: rsbackbones download {entry.id} --output {folder}"
            )
    if entry.availability == "bundled":
        path = entry.folder / entry.source.path
        if not path.exists():
            raise WeightsNotFound(
                f"{entry.id}: {path} is missing; reinstall rsbackbones, or put it back beside its manifest"
            )
        verify(path, entry)
        return path
    try:
        return _from_hub(entry)
    except OSError as error:
        raise _cache_error(entry, error) from error


def _pinned_in_folder(entry: WeightsEntry, folder: Path) -> WeightsEntry:
    """Return ``entry`` with the digest that a download folder's manifest records, if it has none."""
    if entry.sha256 is not None or entry.sha256_from is None:
        return entry
    manifest = folder / FOLDER_MANIFEST
    known = {each.id: each for each in read_manifest(manifest)} if manifest.exists() else {}
    if entry.id not in known or known[entry.id].sha256 is None:
        raise WeightsIntegrityError(
            f"{entry.id}: no hash is published for it, and {manifest} records none, so "
            f"{folder / entry.file_name} cannot be checked; make the folder with: "
            f"rsbackbones download {entry.id} --output {folder}"
        )
    return replace(entry, sha256=known[entry.id].sha256)


def download_to(entry: WeightsEntry, folder: Path) -> Path:
    """Copy the verified file of ``entry`` into ``folder`` (created if needed), for use without network.

    Raises:
        WeightsError: as :func:`fetch`, or ``WeightsCacheError`` where ``folder`` cannot be written.
    """
    source, target = fetch(entry), folder / entry.file_name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        digest = sha256_of(source)  # fetch has just compared it with the pinned one
        with atomic_path(target) as part:
            shutil.copyfile(source, part)
            verify(part, replace(entry, sha256=digest))
    except OSError as error:
        raise WeightsCacheError(f"{entry.id}: cannot write {target}: {error}") from error
    return target


# -- the Hub ------------------------------------------------------------------------------------------


def _from_hub(entry: WeightsEntry) -> Path:
    from huggingface_hub import constants

    offline = bool(constants.HF_HUB_OFFLINE)
    cached = cached_file(entry)
    if entry.sha256 is None and entry.sha256_from == "hub" and (cached is not None or not offline):
        entry = _with_digest_of_hub(entry, cached)
    problem = None
    if cached is not None:
        problem = _mismatch(cached, entry)
        if problem is None:
            return cached
        if offline:
            raise _integrity_error(entry, cached, f"{problem}; offline, so it cannot be fetched anew")
    elif offline:
        raise WeightsUnavailable(
            f"{entry.id}: {entry.source} is not in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE "
            f"forbids the network. On a machine with network run: rsbackbones download {entry.id} --output "
            "DIR, then pass checkpoint=DIR here or set RSBACKBONES_WEIGHTS=DIR"
        )
    # A download replaces the file atomically, so that it is never missing for other processes.
    path = download(entry, force=problem is not None)
    again = _mismatch(path, entry)
    if again is not None and problem is None:
        path = download(entry, force=True)
        again = _mismatch(path, entry)
    if again is not None:
        raise _integrity_error(entry, path, f"{again}, after a second download")
    return path


def _with_digest_of_hub(entry: WeightsEntry, cached: Path | None) -> WeightsEntry:
    """Return ``entry`` with the sha256 that the Hub states, now or when the cached file was fetched.

    The client names a blob of its cache by what the Hub stated.

    Raises:
        WeightsIntegrityError: the Hub states no sha256.
        WeightsError: the Hub cannot be asked.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    source = entry.source
    stated: str | None = cached.resolve().name if cached is not None else None
    if stated is None or not re.fullmatch(r"[0-9a-f]{64}", stated):
        url = hf_hub_url(source.repo_id, source.filename, revision=source.revision)
        token = None if source.private else False
        stated = _with_retries(entry, lambda: get_hf_file_metadata(url, token=token)).etag
    if not re.fullmatch(r"[0-9a-f]{64}", stated or ""):  # that of a small file is git's, of 40 digits
        raise WeightsIntegrityError(
            f"{entry.id}: {source}: the Hub states no sha256 for this file (it is no large file there), and "
            "none is published, so its bytes cannot be checked. If you trust the file, download it "
            f"yourself and run: rsbackbones convert FILE OUTPUT.safetensors --model {entry.id} (OUTPUT has "
            "its bands and input contract), or put its sha256 into an entry of your own manifest "
            "(RSBACKBONES_MANIFEST)"
        )
    return replace(entry, sha256=stated)


def cached_file(entry: WeightsEntry) -> Path | None:
    """Return the unverified file of ``entry`` in the Hub client's cache, if it is there."""
    from huggingface_hub import try_to_load_from_cache

    source = entry.source
    try:
        found = try_to_load_from_cache(source.repo_id, source.filename, revision=source.revision)
    except OSError as error:
        raise _cache_error(entry, error) from error
    return Path(found) if isinstance(found, str) else None


def _integrity_error(entry: WeightsEntry, path: Path, problem: str) -> WeightsIntegrityError:
    """Remove a corrupt file and the files it links to, and return the error to raise."""
    message = f"{entry.id}: {entry.source}: {problem}"
    try:
        while True:
            target = path.parent / path.readlink() if path.is_symlink() else None
            path.unlink(missing_ok=True)
            if target is None:
                break
            path = target
    except OSError as error:
        return WeightsIntegrityError(f"{message}. It could not be removed ({error}): delete {path}")
    return WeightsIntegrityError(
        f"{message}. The file was removed; try again, or report it if it happens twice"
    )


def download(entry: WeightsEntry, *, force: bool = False) -> Path:
    """Return the unverified file of ``entry`` from the Hub or its cache. Use :func:`fetch` for weights.

    Raises:
        WeightsError: one of its subclasses.
    """
    from huggingface_hub import hf_hub_download

    source = entry.source
    _check_space(entry)
    return Path(
        _with_retries(
            entry,
            lambda: hf_hub_download(
                source.repo_id,
                source.filename,
                revision=source.revision,
                force_download=force,
                token=None if source.private else False,
            ),
        )
    )


def _with_retries(entry: WeightsEntry, ask: Callable[[], T]) -> T:
    """Send a request with the Hub client, again after failures that may pass; raise a WeightsError."""
    start = time.monotonic()
    for attempt in range(TRIES):
        try:
            with warnings.catch_warnings():
                # The client only warns about a full disk, once it knows the size.
                warnings.filterwarnings("error", message="Not enough free disk space")
                return ask()
        except Exception as error:
            failure = describe_error(entry, error)
            late = time.monotonic() - start > RETRY_DEADLINE_S
            if failure is None:
                raise
            if not failure.transient or late or attempt == TRIES - 1:
                raise failure.error from error
        time.sleep(0.5 * 2**attempt)
    raise AssertionError("unreachable")


def _check_space(entry: WeightsEntry) -> None:
    from huggingface_hub import constants

    if entry.bytes is None:
        return
    folder = Path(constants.HF_HUB_CACHE)
    while not os.path.exists(folder):  # noqa: PTH110 (Path.exists raises where it may not look)
        folder = folder.parent
    if (free := shutil.disk_usage(folder).free) < entry.bytes:
        raise WeightsCacheError(
            f"{entry.id}: {entry.source} needs {entry.bytes} bytes and {folder} has {free} free; make "
            "room, or set HF_HOME to a folder on a larger disk"
        )


class ErrorClass(NamedTuple):
    """The error to raise for an error of the Hub client. ``transient``: another attempt may succeed."""

    error: WeightsError
    transient: bool = False


def _cache_error(entry: WeightsEntry, error: OSError) -> WeightsCacheError:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    why = str(error)
    if error.errno in _DISK_ERRORS:
        existing = next(p for p in (cache, *cache.parents) if os.path.exists(p))  # noqa: PTH110
        needed = "unknown" if entry.bytes is None else entry.bytes
        why = f"{error}; needed {needed} bytes, free {shutil.disk_usage(existing).free}"
    return WeightsCacheError(
        f"{entry.id}: the cache {cache} cannot take {entry.source}: {why}. Set HF_HOME to a folder that "
        "can be written and has room"
    )


def describe_error(entry: WeightsEntry, error: BaseException) -> ErrorClass | None:
    """Translate an error of the Hub client; ``None`` if neither network nor disk caused it."""
    from huggingface_hub import errors as hub

    what = f"{entry.id}: {entry.source}"
    page = f"https://huggingface.co/{entry.source.repo_id}"
    # The HTTP library differs between major versions of the client. Its base error is the parent of
    # HfHubHTTPError.
    http_error = hub.HfHubHTTPError.__mro__[1]

    if isinstance(error, hub.GatedRepoError):
        text = f"{what}: access is restricted. Accept the terms at {page}, log in with `hf auth login`"
        text += ' (for an entry of your own manifest also set "private": true)'
        return ErrorClass(WeightsAccessError(text))
    if isinstance(error, hub.RepositoryNotFoundError):
        text = f"{what}: the repository is missing, or private and not open to you; see {page}"
        return ErrorClass(WeightsNotFound(text))
    # A failed HEAD is reported as "not in the cache" or "force download failed", caused by the failure.
    wrapped = isinstance(error, (hub.LocalEntryNotFoundError, ValueError))
    if wrapped and not isinstance(error, http_error) and error.__cause__ is not None:
        return describe_error(entry, error.__cause__)
    if isinstance(error, (hub.RevisionNotFoundError, hub.EntryNotFoundError)):
        text = f"{what}: the pinned revision or file is no longer there ({error})"
        return ErrorClass(WeightsNotFound(text))
    if isinstance(error, hub.HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            text = f"{what}: refused with HTTP {status}, by the Hub or a proxy on the way; see {page}"
            return ErrorClass(WeightsAccessError(text))
        if status == 404:  # a mirror that does not state what is missing
            return ErrorClass(WeightsNotFound(f"{what}: {error.response.url} is not there (HTTP 404)"))
        transient = status in (408, 416, 429) or status >= 500
        text = f"{what}: {error.response.url} answered HTTP {status}; try again later"
        return ErrorClass(WeightsUnavailable(text), transient)
    if isinstance(error, hub.FileMetadataError):
        text = f"{what}: what answered is not a Hub: {error} A login page of the network, perhaps?"
        return ErrorClass(WeightsUnavailable(text))
    if isinstance(error, UserWarning):
        return ErrorClass(WeightsCacheError(f"{what}: {error} Make room, or set HF_HOME to a larger disk"))
    if isinstance(error, (http_error, ConnectionError, TimeoutError)):
        name = type(error).__name__
        text = f"{what}: the network failed ({name}: {error}); check the connection and try again"
        return ErrorClass(WeightsUnavailable(text), transient=name != "TooManyRedirects")
    if isinstance(error, OSError):
        if "Consistency check failed" in str(error):
            text = f"{what}: the server sent another size than it announced: {error}"
            return ErrorClass(WeightsIntegrityError(text), transient=True)
        return ErrorClass(_cache_error(entry, error))
    if isinstance(error, RuntimeError):
        text = f"{what}: the client's xet storage failed ({error}); set HF_HUB_DISABLE_XET=1 to use HTTP"
        return ErrorClass(WeightsUnavailable(text))
    return None
