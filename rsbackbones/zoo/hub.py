"""A repository on the Hub that holds one model: ``hf-hub:ORG/NAME``, or ``hf-hub:ORG/NAME@REVISION``.

The repository contains ``model.safetensors``, written by ``save_model``, and ``config.json``, which describes
the model and pins the bytes of the weights. :mod:`rsbackbones.zoo.publish` creates such repositories. Here
``config.json`` is read as a manifest entry; the weights are then loaded like those of any entry. The names of
the two files are fixed and the architecture comes from the registry, so a repository cannot choose which code
runs.

If the revision is a branch, its weights may change. A commit (40 hexadecimal digits) always gives the same
weights. The entry states the commit in both cases.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rsbackbones.files.bounds import read_json
from rsbackbones.input_spec import InputSpec
from rsbackbones.sensors import SENSORS
from rsbackbones.zoo import weights
from rsbackbones.zoo.checkpoint_files import METADATA_KEY
from rsbackbones.zoo.errors import (
    CorruptCheckpointError,
    WeightsAccessError,
    WeightsMismatchError,
    WeightsNotFound,
    WeightsUnavailable,
)
from rsbackbones.zoo.manifest import SCHEMA_VERSION, Source, WeightsEntry

PREFIX = "hf-hub:"
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
# Real files have a few kilobytes.
_MAX_CONFIG_BYTES = 2**20
# Fields that follow from the repository itself, and are not written to config.json.
LOCAL_ONLY_FIELDS = ("id", "source", "format", "default", "folder")


def hub_repo(name: str) -> Source:
    """Parse ``hf-hub:ORG/NAME[@REVISION]``. The default revision is ``main``.

    Raises:
        ValueError: the name has another form.
    """
    match = re.fullmatch(re.escape(PREFIX) + r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", name)
    if not match or ".." in name:
        raise ValueError(f"expected {PREFIX}ORG/NAME or {PREFIX}ORG/NAME@REVISION, got {name!r}")
    return Source(kind="hub", repo_id=match[1], revision=match[2] or "main", filename=WEIGHTS_FILE)


def read_entry(name: str) -> WeightsEntry:
    """Return the weights entry of a repository, with the current commit of its revision.

    The user's token is sent only if the repository cannot be read without it.

    Raises:
        WeightsError: the repository does not exist, cannot be read, or was not made by rsbackbones.
        ValueError: the name does not have the form, see :func:`hub_repo`.
    """
    from huggingface_hub import get_token

    source = hub_repo(name)
    _check_offline(source)
    try:
        path = _download_config(source)
    except (WeightsNotFound, WeightsAccessError):
        if not get_token():
            raise
        source = replace(source, private=True)
        path = _download_config(source)
    # The client's cache stores a file in a folder named after its commit.
    return parse_config(path, replace(source, revision=path.parent.name))


def _check_offline(source: Source) -> None:
    from huggingface_hub import constants, try_to_load_from_cache

    if not constants.HF_HUB_OFFLINE:
        return
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not isinstance(try_to_load_from_cache(source.repo_id, file, revision=source.revision), str):
            raise WeightsUnavailable(
                f"{source.repo_id}/{file}@{source.revision} is not in the cache {constants.HF_HUB_CACHE}, "
                "and HF_HUB_OFFLINE forbids the network. Load the model once on a machine with network and "
                f"copy its HF_HOME here, or only {WEIGHTS_FILE}, for create_model(..., checkpoint=FILE)"
            )


def _download_config(source: Source) -> Path:
    config = WeightsEntry(
        id=f"{PREFIX}{source.repo_id}", architecture="", source=replace(source, filename=CONFIG_FILE),
        format="", license="", provenance="", inputs={},
    )  # fmt: skip
    return weights.download(config)


def entry_id(architecture: str, repo_id: str) -> str:
    """Return the entry id of the weights in a repository: ``architecture.org_name``."""
    return f"{architecture}.{re.sub('[^a-z0-9]+', '_', repo_id.lower())}"


def config_json(entry: WeightsEntry) -> str:
    """Return the text of ``config.json`` for an entry."""
    stated = {name: value for name, value in asdict(entry).items() if name not in LOCAL_ONLY_FIELDS}
    # Required fields are written even if they are empty.
    fields = {name: value for name, value in stated.items() if value or name == "inputs"}
    content = {"library_name": "rsbackbones", "schema_version": SCHEMA_VERSION, "weights": fields}
    return json.dumps(content, indent=1) + "\n"


def parse_config(path: Path, source: Source) -> WeightsEntry:
    """Return the entry that a ``config.json`` describes, for the weights at ``source``.

    Raises:
        WeightsMismatchError: it was not written by rsbackbones, or by a newer version.
        CorruptCheckpointError: it is damaged.
    """
    here = f"{source.repo_id}/{CONFIG_FILE}@{source.revision}"
    try:
        content = read_json(path, most=_MAX_CONFIG_BYTES)
    except ValueError as error:
        raise CorruptCheckpointError(f"{here} is not JSON: {error}") from error
    if not isinstance(content, Mapping) or content.get("library_name") != "rsbackbones":
        raise WeightsMismatchError(
            f"{here} is not from rsbackbones; repositories for {PREFIX} are made with push_to_hub. Other "
            "weights can be listed in your own manifest (RSBACKBONES_MANIFEST)"
        )
    if content.get("schema_version") != SCHEMA_VERSION:
        raise WeightsMismatchError(
            f"{here} has schema_version {content.get('schema_version')!r}, but this rsbackbones reads "
            f"{SCHEMA_VERSION}: try a newer version"
        )
    try:
        return _checked(content["weights"], source, here)
    except WeightsMismatchError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptCheckpointError(f"{here}: its description is damaged: {error}") from error


def check_contract(entry: WeightsEntry, metadata: Mapping[str, str]) -> None:
    """Compare the input contract of ``config.json`` with that of the weights file, whose bytes are hashed.

    Raises:
        WeightsMismatchError: they differ.
        CorruptCheckpointError: the contract in the file is missing or damaged.
    """
    sensors = entry.config.get("sensors", {})
    try:
        contract = json.loads(metadata[METADATA_KEY])["inputs"]
        held = {m: InputSpec.from_mapping(sensors.get(m, m), spec) for m, spec in contract.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptCheckpointError(f"{entry.source}: its input contract is damaged: {error}") from error
    stated = {m: InputSpec.from_mapping(sensors.get(m, m), spec) for m, spec in entry.inputs.items()}
    if differing := [m for m, spec in stated.items() if m not in held or _specs_differ(spec, held[m])]:
        raise WeightsMismatchError(
            f"{entry.source} and its {CONFIG_FILE} state different input contracts for {', '.join(differing)}"
        )


def _specs_differ(one: InputSpec, other: InputSpec) -> bool:
    """Return whether two contracts differ in their rules or in the statistics of common bands."""
    rules = [(s.product, s.unit, s.normalize, s.eight_bit, s.clip, s.unused_bands) for s in (one, other)]
    known = [s.rows for s in (one, other)]
    return rules[0] != rules[1] or any(known[0][b] != known[1][b] for b in {*known[0]} & {*known[1]})


def _checked(fields: Mapping[str, Any], source: Source, here: str) -> WeightsEntry:
    kept = {name: value for name, value in fields.items() if name not in LOCAL_ONLY_FIELDS}
    place = {name: value for name, value in asdict(source).items() if value}
    own = {"id": entry_id(kept["architecture"], source.repo_id), "source": place, "format": "rsbackbones"}
    entry = WeightsEntry.from_json({**kept, **own}, here, Path())
    if entry.sha256 is None:
        raise ValueError("it states no sha256")
    sensors = entry.config.get("sensors", {})
    if unknown := [sensor for sensor in sensors.values() if sensor not in SENSORS]:
        raise WeightsMismatchError(
            f"{here} takes bands of {', '.join(map(repr, unknown))}, which is no known sensor; register it "
            "before loading: rsbackbones.register_sensor(Sensor(...))"
        )
    for modality, spec in entry.inputs.items():
        InputSpec.from_mapping(sensors.get(modality, modality), spec)
    return entry
