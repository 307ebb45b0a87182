"""Flags whose values are JSON objects."""

import json
from typing import Any


def parse(name: str, text: str) -> dict[str, Any]:
    """The dict that the flag `--name` holds.

    Raises:
        ValueError: if `text` is not a JSON object, naming the flag and what it held.
    """
    try:
        value = json.loads(text)
    except (RecursionError, ValueError) as error:
        raise ValueError(f"`--{name}` must be JSON. Received: --{name}={text}: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"`--{name}` must be a JSON object. Received: --{name}={text}")
    return value
