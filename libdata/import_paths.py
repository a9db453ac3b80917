"""Objects that a user names by an import path: package.module:name or path/to/file.py:name.

The text comes from the command line or the configuration alone, never from a file that was downloaded: importing
runs the code it names.
"""

from __future__ import annotations

from libcli import Stopped

import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from libstore.errors import InputError

FORMS = "package.module:name or path/to/file.py:name"


def is_import_path(text: str) -> bool:
    """Tell whether a text has the form of an import path; nothing is imported."""
    where, colon, name = text.rpartition(":")
    return bool(colon and where) and all(part.isidentifier() for part in name.split("."))


def load_object(text: str) -> tuple[Any, str]:
    """Import what a text names; modules and files are looked for from the current directory.

    Args:
        text: package.module:name or path/to/file.py:name; name may lead on, as in Class.method.

    Returns:
        The object and the last part of its name.

    Raises:
        InputError: The text has another form, or the module or the name in it is not there, or importing it
            raises.
    """
    if not is_import_path(text):
        raise InputError(f"{text!r} is not an import path; expected {FORMS}")
    where, _, name = text.rpartition(":")
    found: Any = _file_module(text, where) if where.endswith(".py") else _module(text, where)
    for part in name.split("."):
        if not hasattr(found, part):
            held = ", ".join(key for key in dir(found) if not key.startswith("_")) or "nothing"
            raise InputError(f"{text}: {where} has no {part!r}; it has {held}")
        found = getattr(found, part)
    return found, part


def load_callable(text: str) -> tuple[Callable[..., Any], str]:
    """Import a function or class as `load_object` does, and refuse anything that cannot be called."""
    found, name = load_object(text)
    if not callable(found):
        raise InputError(f"{text}: {kind_of(found)}, which cannot be called")
    return found, name


def call(function: Callable[..., Any], text: str, *args: Any, **kwargs: Any) -> Any:
    """Call what `text` names; whatever it raises becomes one line.

    Raises:
        InputError: It raises.
    """
    return _guarded(lambda: function(*args, **kwargs), text, "it raised")


def kind_of(value: object) -> str:
    """Say in a few words what a value is, for messages."""
    if value is None:
        return "None"
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple):
        return f"a {type(value).__name__} of shape {tuple(shape)}"
    size = f" of {len(value)}" if isinstance(value, tuple | list | dict | set) else ""
    return f"a {type(value).__name__}{size}"


def _guarded(work: Callable[[], Any], text: str, what: str) -> Any:
    try:
        return work()
    except (InputError, Stopped, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{text}: {what} {type(error).__name__}{reason and f': {reason}'}") from error


def _module(text: str, name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise InputError(f"{text!r} is not an import path; expected {FORMS}")
    with _Importable(Path.cwd()):
        return _guarded(lambda: importlib.import_module(name), text, f"cannot import {name}:")


def _file_module(text: str, where: str) -> ModuleType:
    """Import a file; once for each version of it, under a name that no other file has."""
    path = Path(where).expanduser().resolve()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{text}: cannot read {where}: {error.strerror}") from error
    digest = hashlib.sha256(str(path).encode() + b"\0" + content).hexdigest()
    name = re.sub(r"\W", "_", path.stem) + f"_{digest[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    module = importlib.util.module_from_spec(spec)

    def execute() -> None:  # the content that was read: cached bytecode goes by the second of the last change
        exec(compile(content, str(path), "exec"), vars(module))

    sys.modules[name] = module  # dataclasses and pickles look there
    try:
        with _Importable(path.parent):
            _guarded(execute, text, f"cannot import {where}:")
    except BaseException:
        del sys.modules[name]
        raise
    return module


class _Importable:
    """Look for modules in a folder first while something is imported, and last from then on."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __enter__(self) -> None:
        sys.path.insert(0, self.folder)
        importlib.invalidate_caches()

    def __exit__(self, *_: object) -> None:
        sys.path.remove(self.folder)
        if self.folder not in sys.path:
            sys.path.append(self.folder)
