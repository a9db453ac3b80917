"""Arrays from files that nobody vouches for, and the project's only unpickler.

The unpickler makes NumPy arrays, dtypes and scalars in plain containers, nothing else. A header is not believed: an
array that does not fit into its file is refused before memory is taken for it.
"""

from __future__ import annotations

import math
import os
import pickle
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np
from numpy._core import multiarray, numeric  # the homes of the functions that pickles of arrays name
from numpy.lib import format as npy

from libstore.errors import InputError

_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_ALLOWED: dict[tuple[str, str], object] = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
_ALLOWED |= {(module, name): getattr(multiarray, name) for module in _MODULES for name in ("_reconstruct", "scalar")}

_ALLOWED["numpy._core.numeric", "_frombuffer"] = numeric._frombuffer  # type: ignore[attr-defined]

# An array of scores packs to a hundredth at most, unless it is small or constant.
_BOMB_BYTES, _BOMB_RATIO = 2**30, 100


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which is not a NumPy array constructor"
            ) from None


def read(file: IO[bytes], path: str | Path, encoding: str = "ASCII") -> object:
    """Read one pickled object that consists of NumPy arrays and plain containers.

    Args:
        file: Binary stream at the start of the pickle.
        path: Name for error messages.
        encoding: How strings pickled by Python 2 are decoded ("latin1" for CIFAR's batches).

    Returns:
        The object.

    Raises:
        InputError: The pickle is damaged or asks for anything but NumPy's constructors;
            nothing it names has been called.
    """
    try:
        return _Unpickler(file, encoding=encoding).load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise InputError(f"{path}: refused to unpickle: {error}") from error


def load_npz(path: str | Path, keys: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Read named arrays of an .npz file whose text may have been saved as objects.

    Args:
        path: The file.
        keys: Names of the wanted arrays; the others are not looked at. All of them by default.

    Returns:
        The arrays by name: plain ones as they are, object arrays of bytes or strings with dtype object.

    Raises:
        InputError: The file is missing or damaged, lacks a name, or an object array holds anything but bytes
            and strings; the message names the file and the key.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            for key in members if keys is None else keys:
                if key not in members:
                    held = ", ".join(sorted(members)) or "nothing"
                    raise InputError(f"{path}: key {key!r} is missing; it holds {held}")
                info = members[key]
                if info.file_size > max(_BOMB_BYTES, _BOMB_RATIO * info.compress_size):
                    packed = f"{info.compress_size} bytes unpack to {info.file_size}"
                    raise InputError(f"{path}: key {key!r}: {packed}; that is no array of scores")
                with archive.open(info) as member:
                    arrays[key] = _read_array(member, f"{path}: key {key!r}", info.file_size, objects=True)
    except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError) as error:
        raise InputError(f"{path}: cannot read the arrays: {error}") from error
    return arrays


def load_npy(file: IO[bytes], path: str | Path) -> np.ndarray:
    """Read one .npy array of plain numbers.

    Args:
        file: Binary stream that can seek, at its start.
        path: Name for error messages.

    Raises:
        InputError: It is not such an array.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return _read_array(file, str(path), size, objects=False)


def _read_array(file: IO[bytes], where: str, size: int, *, objects: bool) -> np.ndarray:
    try:
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(file)]
        shape, _, dtype = read_header(file)
        held = size - file.tell()
        if not dtype.hasobject:
            announced = math.prod(shape) * max(dtype.itemsize, 1)
            if announced > held or min(shape, default=0) < 0:
                raise ValueError(f"its header announces {announced} bytes of shape {shape}, the file holds {held}")
            file.seek(0)
            return npy.read_array(file, allow_pickle=False)
    except (ValueError, KeyError, EOFError, TypeError, SyntaxError, RecursionError, OverflowError) as error:
        reason = (str(error).splitlines() or ["it ends too early"])[0]
        raise InputError(f"{where} is not an array: {reason}") from error
    if not objects:
        raise InputError(f"{where} holds pickled objects; only plain numbers are read")
    array = read(file, where, encoding="latin1")
    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != object:
        raise InputError(f"{where} does not hold the array that its header announces")
    for value in array.flat:
        if type(value) not in (bytes, str):
            raise InputError(f"{where} holds a {type(value).__name__}; only numbers, bytes and strings are read")
    return array
