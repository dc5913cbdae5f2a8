"""JSON, YAML and zip files of others: read within bounds of size, nesting and expansion."""

import json
import zipfile
from pathlib import Path
from typing import Any

# A manifest of all published weights takes 300 kB, the splits of a large data set some megabytes.
MAX_JSON_BYTES = 64 * 2**20
MAX_YAML_BYTES = 2**20
# What a YAML file may hold once its aliases are written out.
MAX_YAML_VALUES = 100_000
MAX_ZIP_MEMBERS = 1_000_000
# Arrays of one value compress a thousandfold; of more than this much memory nobody has such ones.
_MAX_ZIP_RATIO, _ANY_RATIO_BYTES = 200, 2**28


def read_text(path: Path, *, most: int = MAX_JSON_BYTES) -> str:
    """Read a text of at most ``most`` bytes.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is larger, or not UTF-8.
    """
    # Not stat: of a pipe and of /dev/zero it says nothing.
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"more than {most} bytes")
    return content.decode("utf-8")


def read_json(path: Path, *, most: int = MAX_JSON_BYTES) -> Any:
    """Read a JSON file of at most ``most`` bytes.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is larger, not UTF-8, not JSON, or nested too deeply.
    """
    return parse_json(read_text(path, most=most))


def parse_json(text: str) -> Any:
    """Return the values of a text of JSON.

    Raises:
        ValueError: it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its values are nested too deeply") from error


def read_yaml(path: Path) -> Any:
    """Read a YAML file of plain values. Aliases are followed within :data:`MAX_YAML_VALUES`.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is too large, not YAML, nested too deeply, or holds other objects.
    """
    import yaml  # type: ignore[import-untyped,unused-ignore]

    text = read_text(path, most=MAX_YAML_BYTES)
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        # Before values are made of it, as merge keys write aliases out.
        if _count_values(node, {}) > MAX_YAML_VALUES:
            raise ValueError(f"more than {MAX_YAML_VALUES} values, with its aliases written out")
        return loader.construct_document(node)
    except RecursionError as error:
        raise ValueError("its values are nested too deeply, or within themselves") from error
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def check_zip(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Refuse a zip file whose members would not fit any use.

    Raises:
        ValueError: too many members, or one that expands out of all proportion.
    """
    if len(members) > MAX_ZIP_MEMBERS:
        raise ValueError(f"{path} has {len(members)} members; at most {MAX_ZIP_MEMBERS} are accepted")
    for member in members:
        most = max(_ANY_RATIO_BYTES, _MAX_ZIP_RATIO * member.compress_size)
        if member.file_size > most:
            raise ValueError(
                f"{path}: {member.filename} expands from {member.compress_size} to {member.file_size} bytes; "
                f"at most {most} are accepted. If it is your own, store it without compression (np.savez)"
            )


def _count_values(node: Any, known: dict[int, int]) -> int:
    """Return how many values a YAML node holds, with its aliases written out."""
    import yaml

    if id(node) in known:
        return known[id(node)]
    count = 1
    if isinstance(node, yaml.MappingNode):
        count += sum(_count_values(key, known) + _count_values(value, known) for key, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        count += sum(_count_values(item, known) for item in node.value)
    known[id(node)] = count
    return count
