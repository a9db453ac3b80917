"""Flags made from settings: one definition of a name, a default, a meaning and a bound (libstore.settings)."""

from __future__ import annotations

import libcli as cli

import argparse
import dataclasses
import types
import typing
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from libstore.settings import REQUIRED, Settings, refusal

S = TypeVar("S", bound=Settings)


def add_settings(parser: cli.Parser, kind: type[Settings], *, leave_out: Collection[str] = (), **defaults: Any) -> None:
    """Add a flag --name for every field of a settings class.

    Args:
        parser: Gets the flags.
        kind: The class.
        leave_out: Fields that get no flag.
        defaults: Defaults that differ from the class's.
    """
    hints = typing.get_type_hints(kind)
    for one in dataclasses.fields(kind):
        if one.name in leave_out:
            continue
        default = defaults.get(one.name, one.default)
        options: dict[str, Any] = {"help": one.metadata["text"]}
        if default is REQUIRED:
            options["required"] = True
        else:
            options["default"] = default
        item, several = _item(hints[one.name])
        if item is bool:
            options["action"] = argparse.BooleanOptionalAction if default else "store_true"
        else:
            options |= {"type": _reader(item, one.metadata), "metavar": one.metadata["metavar"]}
            if one.metadata["choices"]:
                options |= {"metavar": one.metadata["metavar"] or f"{{{','.join(one.metadata['choices'])}}}"}
            if several:
                options["nargs"] = "*"
        if one.metadata["before"]:
            parser.old_spellings[f"--{one.metadata['before']}"] = f"--{one.name}"
            options["help"] = f"(--{one.metadata['before']} before, still read) {options['help']}"
        parser.add_argument(f"--{one.name}", **options)


def read_settings(kind: type[S], args: argparse.Namespace, **values: Any) -> S:
    """Make settings of parsed flags; `values` take their place or fill in fields without a flag.

    Raises:
        InputError: A value is out of its range.
    """
    given = vars(args)
    for one in dataclasses.fields(kind):
        if one.name in given and one.name not in values:
            value = given[one.name]
            values[one.name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def words_of(settings: Settings, *always: str) -> list[str]:
    """Return the words of a command line that make settings; those at their default only if they are in `always`."""
    words: list[str] = []
    for one in dataclasses.fields(settings):
        value = getattr(settings, one.name)
        if value != one.default or one.name in always:
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{one.name}", *([] if value is True else map(str, values))]
    return words


def _item(hint: Any) -> tuple[type, bool]:
    """Return the type of one value and whether the field takes several; None beside a type is left out."""
    if isinstance(hint, types.UnionType):
        (hint,) = (one for one in typing.get_args(hint) if one is not type(None))
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0], True
    return hint, False


def _reader(kind: type, metadata: Any) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        if text in metadata["words"]:
            return metadata["words"][text]
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {'a whole' if kind is int else 'a'} number") from None
        reason = refusal(value, metadata)
        if reason:
            raise argparse.ArgumentTypeError(f"{text} is {reason}")
        return value

    return read
