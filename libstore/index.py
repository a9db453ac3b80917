"""Which examples of a data set, in which order, and a digest of that."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from libstore import safe_pickle
from libstore.errors import InputError
from libstore.store import read_sidecar

SPREAD = "spread:"
BY_COINS = "by coins, in pairs"
"""How subsets are drawn that hold each of the most memorized examples or not, whatever the others do."""


def index_digest(index: np.ndarray) -> str:
    """Return the SHA-256 of an index, shape (N,), written as little-endian int64."""
    return hashlib.sha256(np.ascontiguousarray(index, dtype="<i8").tobytes()).hexdigest()


def no_subset(text: str) -> str | None:
    """Say why a text cannot be a subset as `read_index` takes it; None if it can, also if it names a file to come."""
    number = text.removeprefix(SPREAD)
    if text == "all" or number.isdecimal() and int(number) > 0 or text.endswith(".npy") or Path(text).is_file():
        return None
    return f"neither all, N, {SPREAD}N (N from 1) nor a file"


def read_index(subset: str, size: int, flag: str = "--data_subset") -> np.ndarray:
    """Resolve a `--data_subset` or `--train_subset` to positions in torchvision's order.

    Args:
        subset: "all", a number N (the first N examples), "spread:N" (N at even distances through the data set, for
            data that are sorted by class) or the path of an .npy file of positions.
        size: Number of examples of the whole data set.
        flag: What named it, for messages.

    Returns:
        Distinct positions, int64, shape (N,), in the order given.

    Raises:
        InputError: N or a position is out of range, a position is repeated, the file is unreadable.
    """
    if subset == "all":
        return np.arange(size)
    number = subset.removeprefix(SPREAD)
    if number.isdecimal():
        count = int(number)
        if not 1 <= count <= size:
            raise InputError(f"{flag} {subset}: the data set has {size} examples")
        return np.arange(count) if number == subset else np.arange(count) * size // count
    return check_index(load_array(subset), size, f"{flag} {subset}")


def subset_of(index: np.ndarray, size: int) -> str | None:
    """Return what `read_index` resolves to some sorted positions; None if only a file does."""
    for subset in ("all", str(len(index)), f"{SPREAD}{len(index)}"):
        if np.array_equal(read_index(subset, size), index):
            return subset
    return None


def check_index(index: np.ndarray, size: int, source: str | Path) -> np.ndarray:
    """Return an index as int64 after checking that it is one-dimensional, in range and without repeats."""
    if index.ndim != 1 or index.size == 0 or not np.issubdtype(index.dtype, np.integer):
        raise InputError(f"{source}: expected a non-empty 1-D integer array, found {index.dtype} {index.shape}")
    outside = index[(index < 0) | (index >= size)]
    if outside.size:
        raise InputError(f"{source}: position {outside[0]} is outside the data set of {size} examples")
    values, counts = np.unique(index, return_counts=True)
    if values.size != index.size:
        raise InputError(f"{source}: position {values[counts > 1][0]} is repeated")
    return index.astype(np.int64)


def check_index_content(path: str | Path, content_sha256: object, remedy: str | None = None) -> None:
    """Refuse an index whose sidecar says that it was chosen on other data; one without a sidecar says nothing.

    Args:
        path: The .npy file of the index, or what else names a subset.
        content_sha256: Digest of the data that it is used on.
        remedy: What to do about it, for the message; by default, to choose again.
    """
    remedy = remedy or "choose again, or tell data of one name apart with --dataset_name"
    sidecar = Path(path).with_suffix(".json")
    if Path(path).suffix != ".npy" or not sidecar.exists():
        return
    there = read_sidecar(Path(path))["settings"].get("content_sha256")
    if there not in (None, content_sha256):
        raise InputError(f"{path}: chosen on data with content_sha256 {there}, not {content_sha256}; {remedy}")


class Drawn(NamedTuple):
    """How an index was drawn, as its sidecar says.

    Attributes:
        how: For example `BY_COINS`; None for an index of one's own.
        planned: For how many examples a training on it should be planned, None for as many as it holds. Subsets that
            are drawn example by example differ in size, which must not change sample rate, noise and steps.
    """

    how: str | None = None
    planned: int | None = None


def drawn(path: str | Path | None) -> Drawn:
    """Return how an index was drawn; nothing is known of one without a sidecar."""
    if path is None or Path(path).suffix != ".npy" or not Path(path).with_suffix(".json").exists():
        return Drawn()
    settings = read_sidecar(Path(path))["settings"]
    return Drawn(settings.get("drawn"), settings.get("planned"))


def load_array(path: str | Path) -> np.ndarray:
    """Read an .npy file without unpickling."""
    try:
        with open(path, "rb") as file:
            return safe_pickle.load_npy(file, path)
    except OSError as error:
        raise InputError(f"{path}: cannot read the array: {error.strerror}") from error
