"""The project's only unpickler: NumPy arrays, dtypes and scalars in plain containers, nothing else."""

from __future__ import annotations

import pickle
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np
from numpy._core import multiarray, numeric  # the homes of the functions that pickles of arrays name
from numpy.lib import format as npy

from libdata.errors import InputError

_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_ALLOWED: dict[tuple[str, str], object] = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
_ALLOWED |= {(module, name): getattr(multiarray, name) for module in _MODULES for name in ("_reconstruct", "scalar")}

_ALLOWED["numpy._core.numeric", "_frombuffer"] = numeric._frombuffer  # type: ignore[attr-defined]


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


def load_npz(path: str | Path, keys: Iterable[str]) -> dict[str, np.ndarray]:
    """Read named arrays of an .npz file whose text may have been saved as objects.

    Args:
        path: The file.
        keys: Names of the wanted arrays; the others are not looked at.

    Returns:
        The arrays by name: plain ones as they are, object arrays of bytes or strings with dtype object.

    Raises:
        InputError: The file is missing or damaged, lacks a name, or an object array holds anything but bytes
            and strings; the message names the file and the key.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            for key in keys:
                if f"{key}.npy" not in members:
                    held = ", ".join(sorted(name.removesuffix(".npy") for name in members)) or "nothing"
                    raise InputError(f"{path}: key {key!r} is missing; it holds {held}")
                with archive.open(f"{key}.npy") as member:
                    arrays[key] = _read_array(member, f"{path}: key {key!r}")
    except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise InputError(f"{path}: cannot read the arrays: {error}") from error
    return arrays


def _read_array(file: IO[bytes], where: str) -> np.ndarray:
    try:
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(file)]
        shape, _, dtype = read_header(file)
        if not dtype.hasobject:
            file.seek(0)
            return npy.read_array(file, allow_pickle=False)
    except (ValueError, KeyError, EOFError) as error:
        raise InputError(f"{where} is not an array: {error}") from error
    array = read(file, where, encoding="latin1")
    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != object:
        raise InputError(f"{where} does not hold the array that its header announces")
    for value in array.flat:
        if type(value) not in (bytes, str):
            raise InputError(f"{where} holds a {type(value).__name__}; only numbers, bytes and strings are read")
    return array
