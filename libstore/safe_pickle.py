"""Arrays from files that nobody vouches for, and the project's only unpickler.

The unpickler makes NumPy arrays, dtypes and scalars in plain containers, nothing else; for PyTorch's files, tensors in
plain containers, and blanks in place of all other objects. A header is not believed: an array that does not fit into
its file is refused before memory is taken for it.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import types
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

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


class Blank:
    """What stands for an object that is not made: it takes whatever a pickle does to an object, and keeps nothing."""

    def __new__(cls, *_: object, **__: object) -> Blank:
        return object.__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def _ignore(self, *_: object) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = _ignore


def read_torch(path: str | Path) -> object:
    """Read a file of torch.save, zipped or of the older form, for its tensors.

    Args:
        path: The file.

    Returns:
        The object that was saved, of plain containers and values and tensors on the CPU, with a `Blank` for every
        object of another class, whose type's name is the class's.

    Raises:
        InputError: The file is missing, damaged or a TorchScript program, or a tensor does not fit into its storage;
            nothing it names has been called but what builds tensors and ordered dictionaries.
    """
    import torch

    def tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> torch.Tensor:
        held = storage._untyped_storage.nbytes() // storage.dtype.itemsize
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if min((offset, *size, *stride)) < 0 or (min(size, default=1) > 0 and last >= held):
            raise pickle.UnpicklingError(f"a tensor of shape {tuple(size)} does not fit into its {held} values")
        return torch._utils._rebuild_tensor(storage, offset, size, stride)

    # Made anew for every file: a pickle may set attributes of what it is given.
    allowed: dict[tuple[str, str], object] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor"): tensor,
        ("torch._utils", "_rebuild_tensor_v2"): tensor,
        ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
        ("torch", "Size"): torch.Size,
    }

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> object:
            if (module, name) in allowed:
                return allowed[module, name]
            if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
                return dtype
            return type(f"{module}.{name}", (Blank,), {})

    def load(file: IO[bytes], **options: Any) -> object:
        return Unpickler(file, **options).load()

    try:
        content = Path(path).read_bytes()
        if (
            content.startswith(b"PK")
            and "constants.pkl" in torch._C.PyTorchFileReader(io.BytesIO(content)).get_all_records()
        ):
            raise pickle.UnpicklingError("it is a TorchScript program")
        pickler = types.SimpleNamespace(__name__=__name__, Unpickler=Unpickler, load=load)
        return torch.load(io.BytesIO(content), map_location="cpu", pickle_module=pickler, weights_only=False)
    except Exception as error:  # a damaged pickle can raise nearly anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: cannot read the checkpoint: {reason}") from error


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
    except (ValueError, KeyError, EOFError, TypeError, SyntaxError, TokenError, RecursionError, OverflowError) as error:
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
