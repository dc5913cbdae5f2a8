"""Counts in messages."""


def counted(count: int, one: str, more: str = "") -> str:
    """Return ``1 shard``, ``2 shards``; another plural than with an s is given."""
    return f"{count} {one if count == 1 else more or one + 's'}"
