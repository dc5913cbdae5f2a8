"""A repository on the Hub that holds one model: ``hf-hub:ORG/NAME``, or ``hf-hub:ORG/NAME@REVISION``.

It has ``model.safetensors``, which ``save_model`` wrote, and ``config.json``, which says what that is and
pins its bytes; :mod:`rsbackbones.zoo.publish` makes one. Here ``config.json`` becomes an entry like those of
the manifest, and from there on the weights go the way of all weights. The names of the two files are fixed,
and the architecture is looked up in the registry: nothing in a repository decides which code runs.

A branch may move, and then the same name gives other weights; a commit of 40 hexadecimal digits as the
revision cannot. Either way the entry names the commit.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rsbackbones.sensors import SENSORS, InputSpec
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
# A real one has a few kilobytes.
_MAX_CONFIG_BYTES = 2**20
# What the repository's place says, and config.json therefore does not.
_ELSEWHERE = ("id", "source", "format", "default", "folder")


def source_of(name: str) -> Source:
    """Return the place that ``hf-hub:ORG/NAME[@REVISION]`` names; the revision is ``main`` where none is.

    Raises:
        ValueError: it is not of this form.
    """
    match = re.fullmatch(re.escape(PREFIX) + r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", name)
    if not match or ".." in name:
        raise ValueError(f"expected {PREFIX}ORG/NAME or {PREFIX}ORG/NAME@REVISION, got {name!r}")
    return Source(kind="hub", repo_id=match[1], revision=match[2] or "main", filename=WEIGHTS_FILE)


def read_entry(name: str) -> WeightsEntry:
    """Return the entry of the weights in a repository, with the commit that its revision is now.

    No token is sent, unless the repository is not open without and the user is logged in: then it may be
    the user's own.

    Raises:
        WeightsError: there is no such repository, it cannot be had, or it holds no model of ours.
        ValueError: the name is not of the form, see :func:`source_of`.
    """
    from huggingface_hub import get_token

    source = source_of(name)
    _check_offline(source)
    try:
        path = _download_config(source)
    except (WeightsNotFound, WeightsAccessError):
        if not get_token():
            raise
        source = replace(source, private=True)
        path = _download_config(source)
    # The client's cache keeps a file under the commit that it found.
    return parse_config(path, replace(source, revision=path.parent.name))


def _check_offline(source: Source) -> None:
    from huggingface_hub import constants, try_to_load_from_cache

    if not constants.HF_HUB_OFFLINE:
        return
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not isinstance(try_to_load_from_cache(source.repo_id, file, revision=source.revision), str):
            raise WeightsUnavailable(
                f"{source.repo_id}/{file}@{source.revision} is not in the cache {constants.HF_HUB_CACHE}, "
                "and HF_HUB_OFFLINE forbids the network. Load the model once where there is network, and "
                f"carry its HF_HOME along, or {WEIGHTS_FILE} alone, for create_model(..., checkpoint=FILE)"
            )


def _download_config(source: Source) -> Path:
    config = WeightsEntry(
        id=f"{PREFIX}{source.repo_id}", architecture="", source=replace(source, filename=CONFIG_FILE),
        format="", license="", provenance="", inputs={},
    )  # fmt: skip
    return weights.download(config)


def entry_id(architecture: str, repo_id: str) -> str:
    """Return the id that the weights of a repository go by: ``architecture.org_name``."""
    return f"{architecture}.{re.sub('[^a-z0-9]+', '_', repo_id.lower())}"


def config_json(entry: WeightsEntry) -> str:
    """Return the text of ``config.json`` for an entry."""
    stated = {name: value for name, value in asdict(entry).items() if name not in _ELSEWHERE}
    # A required field is there also where it is empty.
    fields = {name: value for name, value in stated.items() if value or name == "inputs"}
    content = {"library_name": "rsbackbones", "schema_version": SCHEMA_VERSION, "weights": fields}
    return json.dumps(content, indent=1) + "\n"


def parse_config(path: Path, source: Source) -> WeightsEntry:
    """Return the entry that a ``config.json`` describes, for the weights at ``source``.

    Raises:
        WeightsMismatchError: it is not of ours, or of a newer version of this package.
        CorruptCheckpointError: it is of ours and damaged.
    """
    here = f"{source.repo_id}/{CONFIG_FILE}@{source.revision}"
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ValueError(f"more than {_MAX_CONFIG_BYTES} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{here} is not JSON: {error}") from error
    if not isinstance(content, Mapping) or content.get("library_name") != "rsbackbones":
        raise WeightsMismatchError(
            f"{here} describes no model of rsbackbones; repositories for {PREFIX} are made with push_to_hub. "
            "Weights of another form can be named in a manifest of your own (RSBACKBONES_MANIFEST)"
        )
    if content.get("schema_version") != SCHEMA_VERSION:
        raise WeightsMismatchError(
            f"{here} has schema_version {content.get('schema_version')!r}, this rsbackbones reads "
            f"{SCHEMA_VERSION}: try a newer one"
        )
    try:
        return _checked(content["weights"], source, here)
    except WeightsMismatchError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptCheckpointError(f"{here}: its description is damaged: {error}") from error


def check_contract(entry: WeightsEntry, metadata: Mapping[str, str]) -> None:
    """Compare the input contract of ``config.json`` with that in the weights file, whose bytes are hashed.

    Raises:
        WeightsMismatchError: they differ.
        CorruptCheckpointError: the file states none that can be read.
    """
    sensors = entry.config.get("sensors", {})
    try:
        contract = json.loads(metadata[METADATA_KEY])["inputs"]
        held = {m: InputSpec.from_mapping(sensors.get(m, m), spec) for m, spec in contract.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptCheckpointError(f"{entry.source}: its input contract is damaged: {error}") from error
    stated = {m: InputSpec.from_mapping(sensors.get(m, m), spec) for m, spec in entry.inputs.items()}
    if differing := [m for m, spec in stated.items() if m not in held or _differ(spec, held[m])]:
        raise WeightsMismatchError(
            f"{entry.source} and its {CONFIG_FILE} state different input contracts for {', '.join(differing)}"
        )


def _differ(one: InputSpec, other: InputSpec) -> bool:
    """Whether two contracts say different things of the bands that both have."""
    rules = [(s.product, s.unit, s.normalize, s.eight_bit, s.ignored) for s in (one, other)]
    known = [dict(zip(s.bands, zip(s.mean, s.std, strict=True), strict=True)) for s in (one, other)]
    return rules[0] != rules[1] or any(known[0][b] != known[1][b] for b in {*known[0]} & {*known[1]})


def _checked(fields: Mapping[str, Any], source: Source, here: str) -> WeightsEntry:
    kept = {name: value for name, value in fields.items() if name not in _ELSEWHERE}
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
