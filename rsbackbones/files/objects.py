"""A folder, or a prefix of a bucket, as a store of objects: each is complete or not there.

Needs the extra ``scale`` (obstore).
"""

import json
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

_URL = re.compile(r"[A-Za-z][\w+.-]+://")


def is_url(place: str) -> bool:
    """Tell whether a place is a URL and no local path."""
    return _URL.match(place) is not None


class Objects:
    """The objects below a local path or a URL (``s3://``, ``gs://``, ``az://``). It can be pickled.

    Credentials and endpoints of a bucket come from the environment (``AWS_ACCESS_KEY_ID``,
    ``AWS_ENDPOINT_URL``, ``AWS_ALLOW_HTTP``, ...), as obstore reads it.
    """

    def __init__(self, place: str) -> None:
        self.place = place if is_url(place) else str(Path(place).expanduser().resolve())

    @cached_property
    def store(self) -> Any:
        """The store of obstore."""
        try:
            from obstore.store import LocalStore, from_url
        except ImportError as error:
            raise ImportError(
                f"writing {self.place} needs obstore: pip install 'rsbackbones[scale]'"
            ) from error
        if self.local is not None:
            return LocalStore(prefix=self.local, mkdir=True)
        return from_url(self.place)

    @property
    def local(self) -> Path | None:
        """The local folder; ``None`` for a bucket."""
        return None if is_url(self.place) else Path(self.place)

    @property
    def _absent(self) -> bool:
        """Whether there is no such local folder: opening its store would make one."""
        return self.local is not None and not self.local.is_dir()

    def beside(self, suffix: str) -> "Objects":
        """Return the objects of the same place with a suffix: ``a.zarr`` + ``.job``."""
        return Objects(self.place.rstrip("/") + suffix)

    def within(self, name: str) -> "Objects":
        """Return the objects below a name."""
        return Objects(f"{self.place.rstrip('/')}/{name}")

    def get(self, key: str) -> bytes | None:
        """Return an object; ``None``: there is none."""
        import obstore

        if self._absent:
            return None
        try:
            return bytes(obstore.get(self.store, key).bytes())
        except FileNotFoundError:
            return None

    def put(self, key: str, data: bytes) -> None:
        """Write or replace an object."""
        import obstore

        obstore.put(self.store, key, data)

    def create(self, key: str, data: bytes) -> bool:
        """Write an object if there is none of that key; return whether this call wrote it."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        try:
            obstore.put(self.store, key, data, mode="create")
        except AlreadyExistsError:
            return False
        return True

    def delete(self, key: str) -> None:
        """Delete an object; none of that key is no error."""
        import obstore

        if self._absent:
            return
        try:
            obstore.delete(self.store, key)
        except FileNotFoundError:
            return

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys of the objects below a prefix, by one listing."""
        yield from (key for key, _ in self.sizes(prefix))

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Yield the keys and the bytes of the objects below a prefix, by one listing."""
        yield from ((entry["path"], entry["size"]) for entry in self._entries(prefix))

    def stamps(self, prefix: str = "") -> Iterator[str]:
        """Yield key, bytes and time of the last change of the objects below a prefix, by one listing."""
        for entry in self._entries(prefix):
            yield f"{entry['path']} {entry['size']} {entry['last_modified'].isoformat()}"

    def _entries(self, prefix: str) -> Iterator[Any]:
        import obstore

        if not self._absent:
            for found in obstore.list(self.store, prefix or None):
                yield from found

    def get_json(self, key: str) -> Any:
        """Return an object that is JSON; ``None``: there is none."""
        data = self.get(key)
        return None if data is None else json.loads(data)

    def put_json(self, key: str, value: Any) -> None:
        """Write or replace an object, as JSON."""
        self.put(key, _encode(value))

    def create_json(self, key: str, value: Any) -> bool:
        """Write an object as JSON if there is none of that key; return whether this call wrote it."""
        return self.create(key, _encode(value))

    def __getstate__(self) -> dict[str, str]:
        """Leave the open store behind: every process opens its own."""
        return {"place": self.place}


def _encode(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
