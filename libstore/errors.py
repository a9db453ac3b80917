"""The one exception for input that a user can correct, and how it says what is there."""

from __future__ import annotations

from collections.abc import Iterable


class InputError(ValueError):
    """A wrong path, key, value or file; scripts print its message as one line and exit with 2."""

    def _render_traceback_(self) -> list[str]:
        """Return what a notebook shows: the line alone."""
        return [f"InputError: {self}"]


def there_is(found: Iterable[object], shown: int = 6) -> str:
    """Return, for a message, what is there: "there is a, b and 7 more", or "there is none"."""
    words = [str(one) for one in found]
    more = f" and {len(words) - shown} more" if len(words) > shown else ""
    return f"there is {', '.join(words[:shown]) or 'none'}{more}"
