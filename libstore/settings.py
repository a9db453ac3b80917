"""Settings as frozen dataclasses: what a field means, what it may be and its default, said once.

Flags, help texts and sidecars are made from the fields (libcli.settings); a library takes the object.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from libstore.errors import InputError

REQUIRED = dataclasses.MISSING


def setting(
    default: Any,
    text: str,
    *,
    choices: Sequence[str] = (),
    above: float = -math.inf,
    at_least: float = -math.inf,
    below: float = math.inf,
    at_most: float = math.inf,
    metavar: str | None = None,
    check: Callable[[Any], str | None] = lambda value: None,
    words: Mapping[str, Any] | None = None,
    before: str | None = None,
) -> Any:
    """Declare a field of a `Settings` class.

    Args:
        default: Its default, or REQUIRED.
        text: What it means, as --help says it.
        choices: The values it may have; any by default.
        above: Numbers must be above this.
        at_least: Numbers must be at least this.
        below: Numbers must be below this.
        at_most: Numbers must be at most this.
        metavar: How --help names the value.
        check: Says why a value cannot be, None if it can.
        words: Words that the flag takes, and the values they stand for.
        before: What the flag was called before; it is still read.
    """
    bounds = {"above": above, "at_least": at_least, "below": below, "at_most": at_most}
    told: dict[str, Any] = {"text": text, "choices": tuple(choices), "bounds": bounds, "metavar": metavar}
    told |= {"check": check, "words": words or {}, "before": before}
    return dataclasses.field(default=default, metadata=told)


@dataclass(frozen=True)
class Settings:
    """Base of all settings: checks every field when made, also without a command line."""

    def __post_init__(self) -> None:
        for one in dataclasses.fields(self):
            value = getattr(self, one.name)
            for item in value if isinstance(value, tuple) else (value,):
                reason = None if item is None else refusal(item, one.metadata)
                if reason:
                    raise InputError(f"{one.name} {item}: {reason}")

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, for a sidecar."""
        return dataclasses.asdict(self)


def refusal(value: Any, metadata: Mapping[str, Any]) -> str | None:
    """Say why a field with this metadata of `setting` cannot have a value; None if it can."""
    choices = metadata["choices"]
    if choices and value not in choices:
        return f"unknown; known: {', '.join(choices)}"
    reason = metadata["check"](value)
    if reason or isinstance(value, bool | str):
        return reason
    limit = metadata["bounds"]
    fine = limit["above"] < value < limit["below"] and limit["at_least"] <= value <= limit["at_most"]
    if math.isfinite(value) and fine:
        return None
    signs = {"above": ">", "at_least": ">=", "below": "<", "at_most": "<="}
    wanted = [f"{sign} {limit[name]:g}" for name, sign in signs.items() if math.isfinite(limit[name])]
    return f"out of range, must be {' and '.join(wanted) or 'finite'}"
