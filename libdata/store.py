"""Files that are kept: whole or absent, each with a JSON sidecar that says how it was made.

An output is finished when the file is there, beside a sidecar `<stem>.json` whose `settings` equal the
caller's and whose `sha256` is the file's. The sidecar is written first, so a kill at any moment leaves
either no file or a file that its sidecar describes; both writes go to a temporary name, are synced and
renamed. `settings` decide the numbers and are compared; `provenance` (versions, commit, device, seconds)
is kept for the reader and is not.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from libdata import safe_pickle
from libdata.errors import InputError

_PACKAGES = ("torch", "torchvision", "opacus", "numpy", "scipy")


def write_atomic(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a file so that its final name only ever shows the whole content.

    A symbolic link under the final name is replaced, what it points to is left alone.

    Args:
        path: The file; its directory is there.
        content: What to write.
        durable: Wait until the disk has it, so that it also survives a power failure.

    Raises:
        InputError: It cannot be written; what was there before is still there.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb", opener=_open_no_link) as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if durable:
            directory = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise InputError(f"{path}: cannot write: {error.strerror}{_owner(path.parent)}") from error
        raise


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Create a directory and hold its lock; a second process waits here until the first has finished.

    Whatever a killed process left under a name such as .x.tmp is removed. A file system without locks is said to be one
    on stderr, and nothing waits or is removed.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{directory}: cannot create the directory: {error.strerror}{_owner(directory)}") from error
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"{directory}: cannot be opened: {error.strerror}{_owner(directory)}") from error
    try:
        if _locked(handle, directory):
            for leftover in directory.glob(".*.tmp"):
                with suppress(PermissionError):  # another user's, whose finished results may be read all the same
                    if leftover.is_dir() and not leftover.is_symlink():
                        shutil.rmtree(leftover)
                    else:
                        leftover.unlink(missing_ok=True)
        yield
    finally:
        os.close(handle)


def _locked(handle: int, directory: Path) -> bool:
    """Wait for the lock of an open directory; return whether there is one."""
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{directory}: another process is at work here, waiting for it", file=sys.stderr)
            fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        kind = (os.fstat(handle).st_dev, error.errno)
        if kind not in _UNLOCKED:
            _UNLOCKED.add(kind)
            text = f"no locks on this file system ({error.strerror}); do not run the same job twice at once"
            print(f"{directory}: {text}", file=sys.stderr)
        return False
    return True


_UNLOCKED: set[tuple[int, int | None]] = set()
"""File systems that were said to have no locks, once each."""


def _owner(directory: Path) -> str:
    """Return whose a directory is, or the nearest one above that is there, for a message; nothing if it is ours."""
    there = next(place for place in (directory, *directory.absolute().parents) if os.path.exists(place))
    owner = os.stat(there).st_uid
    if owner == os.geteuid():
        return ""
    try:
        name = pwd.getpwuid(owner).pw_name
    except KeyError:
        name = f"user {owner}"
    return f"; {there} belongs to {name}"


def provenance(**extra: object) -> dict[str, object]:
    """Return what a reader may want to know of a run: commit, versions, and the given extras."""
    root = Path(__file__).resolve().parent.parent
    describe = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        commit = subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    versions = {"python": sys.version.split()[0]}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {"commit": commit, "versions": versions, **extra}


@dataclass(frozen=True)
class Output:
    """One kept file and the settings that decide its content."""

    path: Path
    settings: Mapping[str, Any]

    @property
    def sidecar(self) -> Path:
        """The JSON file beside the output."""
        return self.path.with_suffix(".json")

    def finished(self, *, overwrite: bool = False) -> bool:
        """Tell whether the output is there with these very settings; never looks at the data first.

        Raises:
            InputError: The output was made with other settings, or has no readable sidecar, and
                `overwrite` is false.
        """
        if not self.path.exists():
            return False
        try:
            kept = read_sidecar(self.path)
        except InputError as error:
            if overwrite:
                return False
            raise InputError(f"{error}; --overwrite replaces {self.path}") from error
        wanted = json.loads(json.dumps(self.settings))
        if kept["settings"] != wanted:
            if overwrite:
                return False
            there, asked = flatten(kept["settings"]), flatten(wanted)
            differences = [
                f"{key}: {there.get(key, 'nothing')} there, {asked.get(key, 'nothing')} asked for"
                for key in sorted({*there, *asked})
                if there.get(key) != asked.get(key)
            ]
            raise InputError(
                f"{self.path}: made with other settings ({'; '.join(differences)}); --overwrite replaces it"
            )
        return kept["sha256"] == file_sha256(self.path)

    def save(self, content: bytes, made_by: Mapping[str, Any]) -> None:
        """Write the sidecar, then the file, atomically each."""
        sidecar = {
            "file": self.path.name,
            "sha256": hashlib.sha256(content).hexdigest(),
            "settings": self.settings,
            "provenance": made_by,
        }
        write_atomic(self.sidecar, (json.dumps(sidecar, indent=2, sort_keys=True) + "\n").encode())
        write_atomic(self.path, content)

    def remove(self) -> None:
        """Delete the file, then its sidecar, where they are there."""
        self.path.unlink(missing_ok=True)
        self.sidecar.unlink(missing_ok=True)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested settings to dotted keys and values as JSON."""
    leaves: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            leaves |= flatten(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = json.dumps(value)
    return leaves


def read_sidecar(path: Path) -> dict[str, Any]:
    """Return the sidecar of a kept file: `file`, `sha256`, `settings`, `provenance`."""
    sidecar = path.with_suffix(".json")
    try:
        content = json.loads(sidecar.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: its sidecar {sidecar.name} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{sidecar}: not valid JSON: {error}") from error
    if not isinstance(content, dict) or not {"settings", "sha256"} <= content.keys():
        raise InputError(f"{sidecar}: not a sidecar, it lacks 'settings' or 'sha256'")
    return content


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_scores(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Read a saved array and its sidecar.

    Returns:
        The array and the sidecar (`settings` hold the data set, index digest, model and arguments).

    Raises:
        InputError: Either file is missing or damaged, or the two do not belong together.
    """
    if not path.exists():
        raise InputError(f"{path}: no such scores; the script that makes them has not finished")
    sidecar = read_sidecar(path)
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sidecar["sha256"]:
        raise InputError(f"{path}: the content does not match the sha256 in its sidecar; delete both and score again")
    return safe_pickle.load_npy(io.BytesIO(content), path), sidecar


def array_bytes(array: np.ndarray) -> bytes:
    """Return an array in the .npy format; raises ValueError on object arrays."""
    return _bytes(lambda file: np.save(file, array, allow_pickle=False))


def arrays_bytes(**arrays: np.ndarray) -> bytes:
    """Return arrays in the .npz format; the bytes depend on the arrays only."""
    return _bytes(lambda file: np.savez(file, allow_pickle=False, **arrays))


def _bytes(write: Callable[[BinaryIO], object]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()
