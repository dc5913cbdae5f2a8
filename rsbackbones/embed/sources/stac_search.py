"""Items of a STAC API, by pystac-client."""

from collections.abc import Sequence
from typing import Any


def search_items(
    url: str,
    collections: Sequence[str],
    bbox: Sequence[float],
    dates: str | None = None,
) -> list[Any]:
    """Return the ``pystac`` items that a STAC API finds, of all pages.

    Args:
        url: of the root of the API.
        collections: their ids.
        bbox: west, south, east, north in degrees.
        dates: ``2024-06-01/2024-08-31``; default: all.

    Raises:
        ImportError: pystac-client is not installed.
        ValueError: no STAC API answers there, it refuses the search, or it finds nothing.
    """
    try:
        import pystac
        from pystac_client import Client
        from pystac_client.exceptions import APIError
    except ImportError as error:
        raise ImportError("a search needs pystac-client: pip install 'rsbackbones[scale]'") from error
    if len(bbox) != 4 or not (
        -180 <= min(bbox[0], bbox[2]) <= max(bbox[0], bbox[2]) <= 180 and -90 <= bbox[1] <= bbox[3] <= 90
    ):
        raise ValueError(f"bbox is west, south, east, north in degrees, got {', '.join(map(str, bbox))}")
    try:
        client = Client.open(url)
        found = client.search(collections=list(collections), bbox=list(bbox), datetime=dates)
        items = list(found.items())
    except (APIError, pystac.STACError, NotImplementedError, OSError, ValueError) as error:
        raise ValueError(f"the STAC API {url} cannot be searched: {error}") from error
    if not items:
        raise ValueError(f"{url} has no item of {', '.join(collections)} in {', '.join(map(str, bbox))}"
                         f"{f' of {dates}' if dates else ''}")  # fmt: skip
    return items
