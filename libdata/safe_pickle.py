"""The project's only unpickler: NumPy arrays, dtypes and scalars in plain containers, nothing else."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import IO

import numpy as np
from numpy._core import multiarray, numeric  # the homes of the functions that pickles of arrays name

from libdata.errors import InputError

_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_ALLOWED: dict[tuple[str, str], object] = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
_ALLOWED |= {(module, name): getattr(multiarray, name) for module in _MODULES for name in ("_reconstruct", "scalar")}

_ALLOWED["numpy._core.numeric", "_frombuffer"] = numeric._frombuffer


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which is not a NumPy array constructor"
            ) from None


def load(file: IO[bytes], path: str | Path, encoding: str = "ASCII") -> object:
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
