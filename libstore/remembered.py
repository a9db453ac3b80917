"""Results of long computations that many jobs share, a small file for each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from libstore.errors import InputError
from libstore.store import exclusive, write_atomic


def remembered(folder: Path, key: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
    """Return what was computed for a key before, or compute it now and keep it.

    Args:
        folder: Where such results are kept, in a folder that is there: one that is refused later has made none.
            Several jobs may read and write there at a time.
        key: All that decides the result, plain values: what is computed, from what, by which version.
        compute: Returns it, made of numbers, texts, lists and mappings.

    Returns:
        The result. A file that is damaged or of another key counts as none; where none can be written, nothing is kept.
    """
    named = _digest(key)
    path = folder / f"{named[:32]}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["key"] == key and kept["digest"] == _digest([named, kept["value"]]):
            return kept["value"]
    value = json.loads(json.dumps(compute()))
    content = {"key": key, "value": value, "digest": _digest([named, value])}
    if folder.parent.is_dir():
        with suppress(InputError), exclusive(folder):
            write_atomic(path, (json.dumps(content, indent=2) + "\n").encode(), durable=False)
    return value


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
