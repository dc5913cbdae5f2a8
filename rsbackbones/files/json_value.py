"""A value in text: of an option on a command line, or of a ``key=value``."""

import json
from typing import Any


def parse_value(text: str) -> Any:
    """Return a value of JSON, or else the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
