"""Files that are kept: whole or absent, each with a JSON sidecar that says how it was made.

An output is finished when the file is there, beside a sidecar `<stem>.json` whose `settings` equal the
caller's and whose `sha256` is the file's. The sidecar is written first, so a kill at any moment leaves
either no file or a file that its sidecar describes; both writes go to a temporary name, are synced and
renamed. `settings` decide the numbers and are compared; `provenance` (versions, commit, device, seconds)
is kept for the reader and is not. `format` is the version of what the numbers mean, from the module that defines
them; results of two formats are never taken for each other. A sidecar without one is of format 1.
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
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from libstore import safe_pickle
from libstore.errors import InputError

_PACKAGES = ("torch", "torchvision", "opacus", "numpy", "scipy")
_MAKER = ("commit", "versions", "device")
_SHOWN = 3
_BEFORE_FORMATS: dict[str, Callable[[dict[str, str]], str] | None] = {
    "data.": None,
    "seeds.": lambda settings: settings["seed"],
    "train_on.planned": lambda settings: settings["train_on.n_examples"],
}
"""Settings, by how their keys begin, that results without a `format` may lack: what those were made with, as flat
JSON from their flat settings, or None where it is not known, so that nothing is compared."""
_LATER = {"precision": '"float32"'}
"""Settings that came later, by the last part of their keys: what results without them were made with, as flat JSON."""
_BEFORE_OWN_NETWORKS: dict[str, Callable[[str], str] | None] = {
    "built_in": lambda arch: arch,
    "source": lambda arch: "null",
    "tokens": lambda arch: "false",
    "image_size": None,
    "input_shape": None,
}
"""What descriptions of networks from before there were networks from outside lack: the same, from their `arch`."""


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


def _free_soon(handle: int) -> bool:
    """Take the lock of an open directory if it is free within seconds, as after the writing of a figure."""
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.05)


def _locked(handle: int, directory: Path) -> bool:
    """Wait for the lock of an open directory; return whether there is one."""
    try:
        if not _free_soon(handle):
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


_PATIENCE = 3.0
"""Seconds that are waited without a word."""
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


def provenance(earlier: Iterable[Mapping[str, Any]] = (), /, **extra: object) -> dict[str, Any]:
    """Return what a reader may want to know of a run: commit, versions, and the given extras.

    Args:
        earlier: Provenance of what earlier processes left and this one goes on with. Commit, versions and device of
            those that differ from this process's are listed under `continued`, in their order.
        extra: What else to keep.
    """
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
    now = {"commit": commit, "versions": versions, **extra}
    continued: list[dict[str, Any]] = []
    for one in earlier:
        for maker in (*one.get("continued", ()), one):
            told = {"commit": "unknown"} | {key: maker[key] for key in _MAKER if key in maker}
            if told not in continued and told != {key: now[key] for key in _MAKER if key in now}:
                continued.append(told)
    return now | ({"continued": continued} if continued else {})


class Difference(NamedTuple):
    """A setting that two results do not share: its dotted key and both values as JSON, or "nothing"."""

    key: str
    one: str
    other: str


def differences(one: Mapping[str, Any], other: Mapping[str, Any], free: Sequence[str] = ()) -> list[Difference]:
    """Return what the settings of two sidecars differ in, digests last.

    Args:
        one: A sidecar, or what would be one: `settings` and, if it has one, `format`.
        other: Another.
        free: Dotted keys that may differ, each with all that it holds.
    """
    sides = [flatten(side["settings"]) for side in (one, other)]
    found = []
    for key in {*sides[0], *sides[1]}:
        if any(key == name or key.startswith(f"{name}.") for name in free):
            continue
        values = [_value(side, key, "format" not in sidecar) for side, sidecar in zip(sides, (one, other), strict=True)]
        if values[0] != values[1] and None not in values:
            found.append(Difference(key, str(values[0]), str(values[1])))
    return sorted(found, key=lambda difference: ("sha256" in difference.key, difference))


def _value(settings: dict[str, str], key: str, old: bool) -> str | None:
    if key not in settings and old:
        for beginning, known in _BEFORE_FORMATS.items():
            if key.startswith(beginning):
                return known(settings) if known else None
    network, _, part = key.rpartition(".")
    if key not in settings and f"{network}.arch" in settings and part in _BEFORE_OWN_NETWORKS:
        told = _BEFORE_OWN_NETWORKS[part]
        return told(settings[f"{network}.arch"]) if told else None
    return settings.get(key, _LATER.get(part, "nothing"))


def tell(found: Sequence[Difference], form: str) -> str:
    """Join differences for a message: the first three by `form`, with the fields of `Difference`, the rest counted."""
    parts = [form.format(**{name: _shortened(text) for name, text in d._asdict().items()}) for d in found[:_SHOWN]]
    return "; ".join(parts) + (f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")


def _shortened(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:97]}..."


@dataclass(frozen=True)
class Output:
    """One kept file and what decides its content.

    Attributes:
        path: The file.
        settings: What decides its content, as plain values.
        format: Version of what its numbers mean.
        inputs: Keys of `settings` that follow from what there was to make it of, for results that cost seconds: they
            are made again where only these have changed. The first holds a digest by name, or one digest.
    """

    path: Path
    settings: Mapping[str, Any]
    format: int = 1
    inputs: tuple[str, ...] = ()

    @property
    def sidecar(self) -> Path:
        """The JSON file beside the output."""
        return self.path.with_suffix(".json")

    def finished(self, *, overwrite: bool = False, is_there: Callable[[str], bool] = lambda name: True) -> bool:
        """Tell whether the output is there with these very settings; never looks at the data first.

        Args:
            overwrite: Let an output made with other settings be replaced.
            is_there: Tells whether an input of this name is still there. To be made of fewer of them than there are
                is another question; to be made of more, of changed ones, or of those that are left is not.

        Raises:
            InputError: The output was made with other settings or of another format, or has no readable sidecar, and
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
        wanted = {"settings": json.loads(json.dumps(self.settings)), "format": self.format}
        found, other_format = differences(kept, wanted), kept.get("format", 1) != self.format
        if not found and not other_format:
            return kept["sha256"] == file_sha256(self.path)
        if overwrite:
            return False
        if differences(kept, wanted, self.inputs) or not self._grown(kept["settings"], is_there):
            told = tell(found, "{key}: {one} there, {other} asked for")
            raise InputError(
                f"{self.path}: made with other settings ({told}); --overwrite replaces it{self._other(found)}"
            )
        if other_format and not self.inputs:
            raise InputError(
                f"{self.path}: made in format {kept.get('format', 1)}, its numbers mean something else in format "
                f"{self.format}, asked for; --overwrite makes it again"
            )
        print(f"{self.path}: made again, {self._news(kept['settings'])}", flush=True)
        return False

    def _other(self, found: Sequence[Difference]) -> str:
        """Say what keeps results of two data sets of one name apart, where it is their content that differs."""
        flat = flatten(self.settings)
        name = json.loads(flat.get("data.dataset") or flat.get("dataset", "null"))
        named = name and any(f"{name}_" in part for part in self.path.parts[-2:])
        content = any(difference.key.endswith("content_sha256") for difference in found)
        return f", and another --dataset_name than {name} keeps both" if named and content else ""

    def _grown(self, kept: Mapping[str, Any], is_there: Callable[[str], bool]) -> bool:
        before, now = (_by_name(settings, self.inputs) for settings in (kept, self.settings))
        return not any(is_there(name) for name in before.keys() - now.keys())

    def _news(self, kept: Mapping[str, Any]) -> str:
        before, now = (_by_name(settings, self.inputs) for settings in (kept, self.settings))
        counts = {
            "added": len(now.keys() - before.keys()),
            "gone": len(before.keys() - now.keys()),
            "changed": sum(before[name] != now[name] for name in before.keys() & now.keys()),
        }
        kind = "model" if self.inputs[0] == "models" else "file"
        news = [f"{count} {kind}{'' if count == 1 else 's'} {what}" for what, count in counts.items() if count]
        return ", ".join(news) if before and news else "its inputs or their format have changed"

    def save(self, content: bytes, made_by: Mapping[str, Any], **links: Any) -> None:
        """Write the sidecar, then the file, atomically each.

        Args:
            content: The file.
            made_by: Its provenance.
            links: Digests of files that it belongs to and what else the sidecar says, under these names.
        """
        sidecar = {
            **links,
            "file": self.path.name,
            "sha256": sha256(content),
            "format": self.format,
            "settings": self.settings,
            "provenance": made_by,
        }
        write_atomic(self.sidecar, (json.dumps(sidecar, indent=2, sort_keys=True) + "\n").encode())
        write_atomic(self.path, content)

    def remove(self) -> None:
        """Delete the file, then its sidecar, where they are there."""
        self.path.unlink(missing_ok=True)
        self.sidecar.unlink(missing_ok=True)


def _by_name(settings: Mapping[str, Any], inputs: Sequence[str]) -> dict[str, str]:
    value = settings.get(inputs[0]) if inputs else None
    return dict(value) if isinstance(value, Mapping) else {}


def made_before(path: Path) -> list[dict[str, Any]]:
    """Return the provenance of what an earlier process left, for `provenance`; nothing if there is no such file."""
    return [read_sidecar(path).get("provenance", {})] if path.exists() and path.with_suffix(".json").exists() else []


def input_digests(paths: Sequence[Path]) -> dict[str, str]:
    """Return the SHA-256 of files by their names, with folders from the common one where two are called the same."""
    different = {path.absolute() for path in paths}
    common = os.path.commonpath([path.parent for path in different])
    bare = len({path.name for path in different}) == len(different)
    return {path.name if bare else os.path.relpath(path, common): file_sha256(path) for path in paths}


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested settings to dotted keys and values as JSON."""
    leaves: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            leaves |= flatten(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = json.dumps(value, sort_keys=True)  # as sidecars are written
    return leaves


def read_sidecar(path: Path) -> dict[str, Any]:
    """Return the sidecar of a kept file: `file`, `sha256`, `settings`, `provenance`, and `format` unless it is 1."""
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


def sha256(content: bytes) -> str:
    """Return the SHA-256 of some bytes."""
    return hashlib.sha256(content).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_scores(path: Path, format: int | None = None, made_by: str = "") -> tuple[np.ndarray, dict[str, Any]]:
    """Read a saved array and its sidecar.

    Args:
        path: The array.
        format: Version of what its numbers mean that the caller takes it for, None for any.
        made_by: The script that makes it, for messages.

    Returns:
        The array and the sidecar (`settings` hold the data set, index digest, model and arguments).

    Raises:
        InputError: Either file is missing or damaged, the two do not belong together, or the format is another.
    """
    if not path.exists():
        who = f"run {made_by}" if made_by else "the script that makes them has not finished"
        raise InputError(f"{path}: no such scores; {who}")
    sidecar = read_sidecar(path)
    content = path.read_bytes()
    if sha256(content) != sidecar["sha256"]:
        raise InputError(f"{path}: the content does not match the sha256 in its sidecar; delete both and score again")
    if format is not None:
        check_format(path, sidecar, format, made_by or "the script that makes it")
    return safe_pickle.load_npy(io.BytesIO(content), path), sidecar


def check_format(path: Path, sidecar: Mapping[str, Any], format: int, made_by: str) -> None:
    """Refuse a result whose numbers mean something else than this version takes them for."""
    if sidecar.get("format", 1) != format:
        raise InputError(
            f"{path}: made in format {sidecar.get('format', 1)}, but its numbers are read as of format {format}; "
            f"run {made_by} with --overwrite"
        )


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
