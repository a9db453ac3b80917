"""The one exception for input that a user can correct."""


class InputError(ValueError):
    """A wrong path, key, value or file; scripts print its message as one line and exit with 2."""
