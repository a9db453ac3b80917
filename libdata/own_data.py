"""Data sets of the user's own: an .npz file, a folder of class folders, or a function that returns arrays.

All of them come to the same four arrays. Inputs: uint8 is scaled by 255, floating point is taken as it is; integers
are token ids if the caller says so; anything else is refused. Labels are whole numbers from 0.

What has rank 4 is images. (N, H, W, C) is told from (N, C, H, W) by a last size of 1, 3 or 4 where the second has
another, and uint8 of shape (N, H, W) is images of one channel. All other shapes stay as they are.
"""

from __future__ import annotations

import libcli as cli

import hashlib
import io
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from libdata.import_paths import call, is_import_path, kind_of, load_callable
from libstore import safe_pickle
from libstore.errors import InputError

KEYS = ("train_x", "train_y", "test_x", "test_y")
_TEST_FOLDERS = ("test", "val")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
_GREY, _COLOUR = ("1", "L", "LA"), ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr")
_CHANNELS = (1, 3, 4)
_CHUNK = 4096


@dataclass(frozen=True, eq=False)
class OwnData:
    """A data set, checked and laid out.

    Attributes:
        inputs: For "train" and "test", uint8, float32 or (token ids) int64, shape (N, ...); images (N, C, H, W).
        labels: For each split, classes, int64, shape (N,).
        num_classes: 1 + the largest label of both splits.
        class_names: What the classes are called, by label; empty where they have no names.
        sha256: Digest of all of it.
    """

    inputs: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    num_classes: int
    sha256: str
    class_names: tuple[str, ...] = ()


def form_of(name: str) -> str | None:
    """Tell which of the three a name is: "npz", "folder" or "function"; None for none of them."""
    if name.endswith(".npz"):
        return "npz"
    if Path(name).expanduser().is_dir():
        return "folder"
    return "function" if is_import_path(name) else None


def own_name(name: str) -> str:
    """Return what data of one's own are called in names on disk: the file's, folder's or function's own name."""
    form = form_of(name)
    if form == "function":
        text = name.rpartition(":")[2].rpartition(".")[2]
    else:
        path = Path(name).expanduser().resolve()
        text = path.stem if form == "npz" else path.name
    return re.sub(r"[^A-Za-z0-9_.=+-]+", "_", text).lstrip(".")


def read_own(name: str, *, image_size: int | None = None, tokens: bool = False) -> OwnData:
    """Read a data set of one's own.

    Args:
        name: An .npz file with `train_x`, `train_y`, `test_x` and `test_y`; a folder with train/<class>/ and
            test/<class>/ (or val/), a class's label being its rank by name; or an import path of a function
            without arguments that returns these four arrays or two map-style torch data sets.
        image_size: Height and width that a folder's images are resized to (PIL's bilinear filter, which averages
            where it shrinks); other forms are left alone here.
        tokens: Inputs are token ids, of any integer type.

    Raises:
        InputError: Something is missing, unreadable or not as above; the message names file, key and value.
    """
    form = form_of(name)
    if form == "npz":
        return _read_npz(name, *_state(Path(name).expanduser()), tokens)
    if form == "folder":
        if tokens:
            raise InputError(f"{name}: a folder holds images, no token ids")
        files = scan_folder(Path(name).expanduser())
        states = tuple((split, file, label, *_state(file)) for split in files for file, label in files[split])
        return _read_folder(name, states, image_size)
    function, _ = load_callable(name)
    return _checked(name, _called(function, name), tokens)


def own_size(name: str, split: str) -> int:
    """Return the number of examples of a split; reads the labels of a file, and lists a folder without reading it."""
    form = form_of(name)
    if form == "npz":
        key = f"{split}_y"
        return len(np.atleast_1d(safe_pickle.load_npz(Path(name).expanduser(), [key])[key]))
    if form == "folder":
        return len(scan_folder(Path(name).expanduser())[split])
    function, _ = load_callable(name)
    return len(np.atleast_1d(_called(function, name)[f"{split}_y"]))


def moments(inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of inputs, in float64, of a shape that broadcasts against them.

    Per channel of images (N, C, H, W), per column of a table (N, d), else over everything.
    """
    axes = {2: (0,), 4: (0, 2, 3)}.get(inputs.ndim, tuple(range(inputs.ndim)))

    def total(of: Any) -> np.ndarray:
        parts = (inputs[start : start + _CHUNK] for start in range(0, len(inputs), _CHUNK))
        return sum(of(part.astype(np.float64)).sum(axes, keepdims=True) for part in parts)

    sums = total(lambda part: part)
    count = inputs.size / sums.size
    mean = sums / count
    return mean, np.sqrt(total(lambda part: np.square(part - mean)) / count)


def content_digest(arrays: Sequence[np.ndarray]) -> str:
    """Return the SHA-256 of arrays: types, shapes and values, in order."""
    digest = hashlib.sha256()
    for array in arrays:
        little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        digest.update(f"{little.dtype.str} {little.shape} ".encode())
        digest.update(little.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


@lru_cache
def _remark(text: str) -> None:
    """Print a line on stderr, once."""
    cli.warn(text)


def _state(path: Path) -> tuple[int, int]:
    """Return what tells a changed file from the one that is in the cache: nanosecond of the change, and size."""
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: not a file")
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=1)
def _read_npz(name: str, changed: int, size: int, tokens: bool) -> OwnData:
    return _checked(name, safe_pickle.load_npz(Path(name).expanduser(), KEYS), tokens)


_last_call: dict[str, tuple[Any, dict[str, np.ndarray]]] = {}


def _called(function: Any, name: str) -> dict[str, np.ndarray]:
    """Call a function of the user's, once: what it returns may differ from call to call."""
    if name not in _last_call or _last_call[name][0] is not function:
        _last_call.clear()
        _last_call[name] = function, _returned(call(function, name), name)
    return _last_call[name][1]


def _returned(result: Any, name: str) -> dict[str, np.ndarray]:
    if isinstance(result, Mapping) and set(KEYS) <= set(result):
        arrays = [result[key] for key in KEYS]
    elif isinstance(result, tuple | list) and len(result) == 4:
        arrays = list(result)
    elif isinstance(result, tuple | list) and len(result) == 2:
        arrays = [array for key, part in zip(KEYS[::2], result, strict=True) for array in _pair(part, name, key[:-2])]
    else:
        raise InputError(
            f"{name}: it returned {kind_of(result)}; expected the arrays {', '.join(KEYS)} or two torch data sets"
        )
    return {key: _array(array, f"{name}: {key}") for key, array in zip(KEYS, arrays, strict=True)}


def _array(value: Any, where: str) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    if not isinstance(value, np.ndarray | list | tuple):
        raise InputError(f"{where} is {kind_of(value)}, expected an array")
    try:
        return np.asarray(value)
    except ValueError as error:
        raise InputError(f"{where} is no array: {str(error).splitlines()[0]}") from error


def _pair(part: Any, name: str, split: str) -> tuple[Any, Any]:
    """Return inputs and labels of a pair of arrays or of a map-style torch data set."""
    if isinstance(part, tuple) and len(part) == 2:
        return part
    if isinstance(part, str | bytes | Mapping | np.ndarray) or hasattr(part, "detach"):
        raise InputError(f"{name}: of {split} it returned {kind_of(part)}, expected a torch data set")
    if not hasattr(part, "__getitem__") or not hasattr(part, "__len__"):
        raise InputError(f"{name}: of {split} it returned {kind_of(part)}, which has no length or no items")
    inputs: list[np.ndarray] = []
    labels: list[Any] = []
    files = getattr(part, "samples", None)  # of torchvision's folders, (path, label) each
    for position in range(call(len, name, part)):
        where = f"{name}: {split} example {position}"
        file = f", {files[position][0]}" if isinstance(files, list) and len(files) > position else ""
        item = call(part.__getitem__, where + file, position)
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise InputError(f"{where} is {kind_of(item)}, expected an input and a label")
        one = np.asarray(item[0]) if isinstance(item[0], Image.Image) else _array(item[0], where)
        if inputs and one.shape != inputs[0].shape:
            raise InputError(f"{where} has shape {one.shape}, example 0 {inputs[0].shape}; make them one size")
        if inputs and one.dtype != inputs[0].dtype:
            raise InputError(f"{where} is {one.dtype}, example 0 {inputs[0].dtype}")
        inputs.append(one)
        labels.append(item[1].item() if hasattr(item[1], "item") and np.size(item[1]) == 1 else item[1])
    return (np.stack(inputs) if inputs else np.empty((0, 0))), labels


def _checked(name: str, arrays: Mapping[str, np.ndarray], tokens: bool) -> OwnData:
    inputs, labels = {}, {}
    for split in ("train", "test"):
        x, y = arrays[f"{split}_x"], arrays[f"{split}_y"]
        where_x, where_y = f"{name}: {split}_x", f"{name}: {split}_y"
        if x.ndim < 2:
            raise InputError(f"{where_x} has shape {x.shape}; expected an example a row, at least of rank 2")
        if y.ndim != 1:
            raise InputError(f"{where_y} has shape {y.shape}; expected one label an example, of rank 1")
        if len(x) != len(y):
            raise InputError(f"{where_x} has {len(x)} examples, {split}_y {len(y)}")
        if not x.size:
            raise InputError(f"{where_x} is empty, of shape {x.shape}")
        inputs[split] = _layout(_inputs(x, where_x, tokens), where_x, tokens)
        labels[split] = _labels(y, where_y)
    train, test = inputs["train"], inputs["test"]
    for what, here, there in (("shape", train.shape[1:], test.shape[1:]), ("type", train.dtype, test.dtype)):
        if here != there:
            raise InputError(f"{name}: an example of train_x has {what} {here}, of test_x {there}")
    num_classes = _count_classes(name, labels)
    digest = content_digest([train, labels["train"], test, labels["test"]])
    return OwnData(inputs, labels, num_classes, digest)


def _inputs(x: np.ndarray, where: str, tokens: bool) -> np.ndarray:
    if tokens:
        if x.dtype.kind not in "iu":
            raise InputError(f"{where} holds {x.dtype}; token ids are integers")
        if x.min() < 0 or int(x.max()) > np.iinfo(np.int64).max:
            at = tuple(map(int, np.argwhere((x < 0) | (x > np.iinfo(np.int64).max))[0]))
            raise InputError(f"{where} is {x[at]} at {list(at)}; token ids are not negative")
        return x.astype(np.int64)
    if x.dtype == np.uint8:
        return np.ascontiguousarray(x)
    if x.dtype.kind != "f":
        wanted = "uint8 (scaled by 255) or floating point (taken as it is); other integers only as token ids"
        raise InputError(f"{where} holds {x.dtype}, expected {wanted}")
    with np.errstate(over="ignore"):
        single = np.ascontiguousarray(x, dtype=np.float32)
    for start in range(0, len(single), _CHUNK):
        bad = np.argwhere(~np.isfinite(single[start : start + _CHUNK]))
        if len(bad):
            place = [int(bad[0][0]) + start, *map(int, bad[0][1:])]
            raise InputError(f"{where} is {x[tuple(place)]} at {place}; expected finite numbers that fit float32")
    return single


def _layout(x: np.ndarray, where: str, tokens: bool) -> np.ndarray:
    if tokens:
        return x
    if x.ndim == 3 and x.dtype == np.uint8:
        return x[:, None]
    if x.ndim == 4 and x.shape[1] not in _CHANNELS:
        if x.shape[-1] in _CHANNELS:
            return np.ascontiguousarray(x.transpose(0, 3, 1, 2))
        _remark(f"{where} of shape {x.shape} is taken for {x.shape[1]} channels of {x.shape[2]} x {x.shape[3]} values")
    return x


def _labels(y: np.ndarray, where: str) -> np.ndarray:
    if y.dtype.kind not in "iu":
        first = y[:1].tolist()[0]
        raise InputError(f"{where} is {first!r} for example 0, of type {y.dtype}; labels are integers from 0")
    negative = np.flatnonzero(y < 0)
    if negative.size:
        raise InputError(f"{where} is {y[negative[0]]} for example {negative[0]}; labels are integers from 0")
    return y.astype(np.int64)


def _count_classes(name: str, labels: Mapping[str, np.ndarray]) -> int:
    both = np.concatenate([labels["train"], labels["test"]])
    low, high = int(both.min()), int(both.max())
    if low == high == 0:
        raise InputError(f"{name}: train_y holds label 0 only; it takes two classes")
    if low > 0:
        raise InputError(f"{name}: train_y is {labels['train'][0]} for example 0 and never 0; labels count from 0")
    if high >= max(1000, len(labels["train"])):
        split = "train" if labels["train"].max() == high else "test"
        where = f"{split}_y is {high} for example {int(labels[split].argmax())}"
        raise InputError(f"{name}: {where}; there are no more than {len(labels['train'])} training examples")
    absent = np.setdiff1d(np.arange(high + 1), labels["train"])
    if absent.size:
        some = ", ".join(map(str, absent[:5])) + (", ..." if absent.size > 5 else "")
        _remark(f"{name}: no training example of {absent.size} of the {high + 1} classes ({some})")
    return high + 1


def scan_folder(folder: Path) -> dict[str, list[tuple[Path, int]]]:
    """List the images of a folder's splits with their labels, class by class, by name within a class.

    Raises:
        InputError: A split or class is not there, or a class of the test split is not among the training ones.
    """
    train, test = folder / "train", next((folder / n for n in _TEST_FOLDERS if (folder / n).is_dir()), folder / "test")
    for part in (train, test):
        if not part.is_dir():
            raise InputError(f"{part}: no such folder; expected class folders under train/ and under test/ or val/")
    classes = {name: rank for rank, name in enumerate(_class_names(train))}
    found: dict[str, list[tuple[Path, int]]] = {}
    others: list[Path] = []
    for split, part in (("train", train), ("test", test)):
        found[split] = []
        for name in _class_names(part):
            if name not in classes:
                raise InputError(f"{part / name}: a class that {train} does not have")
            files = sorted(_walk(part / name), key=lambda path: path.parts)
            images = [path for path in files if path.suffix.lower() in _SUFFIXES]
            others += [path for path in files if path.suffix.lower() not in _SUFFIXES]
            if not images:
                raise InputError(f"{part / name}: holds no images ({' '.join(_SUFFIXES)})")
            found[split] += [(path, classes[name]) for path in images]
    if others:
        _remark(f"{folder}: {len(others)} files are not images and left out, the first is {others[0]}")
    return found


def _class_names(folder: Path) -> list[str]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise InputError(f"{folder}: holds no class folders")
    return names


def _walk(folder: Path) -> Iterator[Path]:
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(where, name) for name in names if not name.startswith("."))


@lru_cache(maxsize=1)
def _read_folder(name: str, states: tuple[tuple[Any, ...], ...], image_size: int | None) -> OwnData:
    """Read the images of a folder; `states` holds split, file, label and state of each."""
    grey = all(_is_grey(file) for _, file, *_ in states)
    digest = hashlib.sha256()
    first: tuple[Path, tuple[int, int]] | None = None
    pixels: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    labels: dict[str, list[int]] = {"train": [], "test": []}
    for split, file, label, *_ in states:
        content = file.read_bytes()
        digest.update(f"{split} {label} {hashlib.sha256(content).hexdigest()}\n".encode())
        try:
            image = _open(io.BytesIO(content), file).convert("L" if grey else "RGB")
        except InputError:
            raise
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(f"{file}: the image does not decode: {error}") from error
        if image_size is not None and image.size != (image_size, image_size):
            image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
        first = first or (file, image.size)
        if image.size != first[1]:
            sizes = [f"{width} x {height}" for width, height in (image.size, first[1])]
            raise InputError(
                f"{file}: {sizes[0]} pixels, but {first[0]} has {sizes[1]}; mixed sizes need an image size "
                "(--image_size)"
            )
        pixels[split].append(np.asarray(image).reshape(*reversed(image.size), -1).transpose(2, 0, 1))
        labels[split].append(label)
    targets = {split: np.array(values, dtype=np.int64) for split, values in labels.items()}
    inputs = {split: np.stack(values) for split, values in pixels.items()}
    called = {label: file.relative_to(Path(name).expanduser()).parts[1] for _, file, label, *_ in states}
    classes = tuple(called[label] for label in sorted(called))
    return OwnData(inputs, targets, _count_classes(name, targets), digest.hexdigest(), classes)


def _is_grey(file: Path) -> bool:
    with open(file, "rb") as stream:
        return _open(stream, file).mode in _GREY


def _open(source: IO[bytes], file: Path) -> Image.Image:
    try:
        image = Image.open(source)
    except UnidentifiedImageError as error:
        raise InputError(f"{file}: not an image, or a damaged one") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{file}: not an image: {error}") from error
    if image.mode not in (*_GREY, *_COLOUR):
        raise InputError(f"{file}: its pixels are {image.mode}, of more than 8 bits; give such data as arrays")
    return image
