"""ImageNet as Feldman and Zhang's ResNet-50 models saw it: their example order, and evaluation preprocessing.

Pixels: the JPEG file is decoded as TensorFlow does by default, with the fast integer DCT and the raw orientation
(no EXIF rotation); of height x width, the central c x c with c = floor(224/256 min(height, width)) is taken, scaled
to [0, 1], resized to 224 x 224 bilinearly (half-pixel centres, no antialiasing) and normalised per channel.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import simplejpeg
from PIL import Image

from libdata.indexed_tfrecords import IndexedImage, read_images
from libstore import safe_pickle
from libstore.errors import InputError
from libstore.store import file_sha256

if TYPE_CHECKING:
    import torch

NUM_CLASSES = 1000
IMAGE_SIZE = 224
_CROP = 224 / 256
_MEAN = np.array((0.485, 0.456, 0.406))
_STD = np.array((0.229, 0.224, 0.225))
# (pixel/255 - mean) / std as one multiplication and one subtraction.
_SCALE = (1 / (255 * _STD)).astype(np.float32)[:, None, None]
_SHIFT = (_MEAN / _STD).astype(np.float32)[:, None, None]
_PREFIX = {"train": "tr", "validation": "tt"}


@dataclass(frozen=True)
class ImageNetIndex:
    """Feldman and Zhang's order of one split.

    Attributes:
        filenames: Base name of each image file, by index.
        labels: Class of each example from 0, int64, shape (N,).
        sha256: Digest of the file it was read from.
    """

    filenames: list[str]
    labels: np.ndarray
    sha256: str

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def index(self) -> np.ndarray:
        """All indices in order, int64, shape (N,)."""
        return np.arange(len(self), dtype=np.int64)


def read_imagenet_index(path: Path, split: str = "train") -> ImageNetIndex:
    """Read the example order of a split from the released imagenet_index.npz.

    Raises:
        InputError: The file is missing or holds other objects than text, or names, labels and their
            numbers do not fit each other.
    """
    names_key, labels_key = f"{_PREFIX[split]}_filenames", f"{_PREFIX[split]}_labels"
    arrays = safe_pickle.load_npz(path, (names_key, labels_key))
    names, labels = arrays[names_key], arrays[labels_key]
    if names.ndim != 1 or names.dtype.kind not in "OSU" or names.shape != labels.shape or not len(names):
        raise InputError(
            f"{path}: keys {names_key!r} {names.dtype} {names.shape} and {labels_key!r} {labels.shape} do not fit"
        )
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= NUM_CLASSES:
        raise InputError(f"{path}: key {labels_key!r} should hold whole numbers from 0 to {NUM_CLASSES - 1}")
    filenames = [name.decode("latin1") if isinstance(name, bytes) else str(name) for name in names]
    if len(set(filenames)) < len(filenames):
        raise InputError(f"{path}: key {names_key!r} holds a file name twice")
    return ImageNetIndex(filenames, labels.astype(np.int64), file_sha256(path))


@dataclass(frozen=True)
class FolderShard:
    """The images of ILSVRC's folders that the TFRecord file of the same name holds.

    Attributes:
        name: Name of that file.
        read: Yields the images, still encoded.
        listing: Name and size of every image file, a line each.
    """

    name: str
    read: Callable[[], Iterator[IndexedImage]]
    listing: str


Shard = Path | FolderShard


def content_digest(shards: Sequence[Shard]) -> str | None:
    """Return a digest of a split's TFRecord files from the SHA-256 of each that their manifest holds.

    Args:
        shards: All files of the split, in one folder; or all parts of ILSVRC's folders, whose digest is of the image
            files' names and sizes.

    Returns:
        The digest, or None where the TFRecord files came without a manifest.

    Raises:
        InputError: The manifest cannot be read, or a file is not in it or has another size than it says.
    """
    digest = hashlib.sha256()
    files = [shard for shard in shards if isinstance(shard, Path)]
    if not files:
        for shard in shards:
            digest.update(shard.listing.encode())  # type: ignore[union-attr]
        return digest.hexdigest()
    manifest = files[0].with_name(f"{files[0].name.split('-')[0]}-manifest.json")
    if not manifest.exists():
        return None
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        lines = {line["file"]: (line["bytes"], line["sha256"]) for line in content}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{manifest}: not a manifest of this project: {error}") from error
    for path in files:
        size, (told, sha256) = path.stat().st_size, lines.get(path.name, (None, None))
        if size != told:
            raise InputError(f"{path}: has {size} bytes, {manifest.name} says {told}; build it again")
        digest.update(f"{path.name} {sha256}\n".encode())
    return digest.hexdigest()


def read_imagenet_memorization(path: Path) -> np.ndarray:
    """Read the released memorization of the training examples, by index, float64 (N,)."""
    scores = safe_pickle.load_npz(path, ("tr_mem", "tr_labels"))
    if scores["tr_mem"].shape != scores["tr_labels"].shape or scores["tr_mem"].dtype.kind != "f":
        raise InputError(f"{path}: key 'tr_mem' should hold one score for each of {scores['tr_labels'].shape} examples")
    return scores["tr_mem"].astype(np.float64)


def decode_jpeg(encoded: bytes, where: str) -> np.ndarray:
    """Decode a JPEG file to RGB as TensorFlow's decode_jpeg does by default.

    Args:
        encoded: Content of the file; grey and CMYK images are converted.
        where: Name for error messages.

    Returns:
        Pixels, uint8, shape (height, width, 3).

    Raises:
        InputError: It is not a JPEG file, or it ends too early. A file that is complete but makes the
            decoder warn is accepted, as there are such files in ImageNet.
    """
    try:
        cmyk = simplejpeg.decode_jpeg_header(encoded)[2] in ("CMYK", "YCCK")
        space = "CMYK" if cmyk else "RGB"
        try:
            pixels = simplejpeg.decode_jpeg(encoded, space, fastdct=True)
        except ValueError as warning:
            if "Premature end" in str(warning) or encoded.rfind(b"\xff\xd9") < len(encoded) - 4096:
                raise
            pixels = simplejpeg.decode_jpeg(encoded, space, fastdct=True, strict=False)
    except ValueError as error:
        raise InputError(f"{where}: the image does not decode: {error}") from error
    return _cmyk_to_rgb(pixels, "adobe" in Image.open(io.BytesIO(encoded)).info) if cmyk else pixels


def _cmyk_to_rgb(pixels: np.ndarray, inverted: bool) -> np.ndarray:
    """Return RGB as TensorFlow computes it; Adobe's files hold the inverted inks."""
    light = pixels if inverted else 255 - pixels
    return (light[..., :3].astype(np.uint16) * light[..., 3:] // 255).astype(np.uint8)


@lru_cache(maxsize=4096)
def _taps(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return, for each of 224 outputs, the two source positions and the weight of the second, in float32."""
    source = (np.arange(IMAGE_SIZE, dtype=np.float32) + np.float32(0.5)) * np.float32(size / IMAGE_SIZE) - np.float32(
        0.5
    )
    low = np.floor(source)
    return np.maximum(low, 0).astype(np.intp), np.minimum(np.ceil(source), size - 1).astype(np.intp), source - low


def preprocess(pixels: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Crop, resize and normalise one image (the module's text says how).

    NumPy rather than torch.nn.functional.interpolate: it runs in threads without starting more of them.

    Args:
        pixels: uint8, shape (height, width, 3).
        out: Where to put the result, float32 (3, 224, 224); a new array by default.

    Returns:
        The input of the network, float32, shape (3, 224, 224).

    Raises:
        ValueError: The image is one pixel high or wide.
    """
    height, width = pixels.shape[:2]
    size = int(_CROP * min(height, width))
    if size < 1:
        raise ValueError(f"an image of {height} x {width} pixels has no central crop")
    top, left = (height - size + 1) // 2, (width - size + 1) // 2
    crop = pixels[top : top + size, left : left + size]
    low, high, weight = _taps(size)
    upper = crop[low].reshape(IMAGE_SIZE, -1)
    rows = np.subtract(crop[high].reshape(IMAGE_SIZE, -1), upper, dtype=np.float32)
    rows *= weight[:, None]
    rows += upper
    planes = np.ascontiguousarray(rows.reshape(IMAGE_SIZE, size, 3).transpose(2, 0, 1))
    left_taps, resized = planes.take(low, axis=2), planes.take(high, axis=2)
    resized -= left_taps
    resized *= weight
    resized += left_taps
    resized *= _SCALE
    return np.subtract(resized, _SHIFT, out=out)


@dataclass(frozen=True)
class Batch:
    """Preprocessed examples: `images` float32 (B, 3, 224, 224), `labels` int64 (B,), `index` int64 (B,)."""

    images: torch.Tensor
    labels: torch.Tensor
    index: np.ndarray


def stream(path: Shard, labels: np.ndarray, *, batch_size: int, pool: ThreadPoolExecutor) -> Iterator[Batch]:
    """Yield the examples of one TFRecord file, or of that part of the folders, decoded by the threads of a pool.

    The next batch is being decoded while the caller works on the last one; no more than two are in memory.

    Args:
        path: A TFRecord file, or a part of the folders.
        labels: Class of every example of the split by index, from 0, shape (N,).
        batch_size: Examples of a batch; the last one of the file may be smaller.
        pool: Threads that decode.

    Raises:
        InputError: A record or image is damaged, an index is out of range or comes twice, or a label
            contradicts `labels`.
    """
    import torch

    seen: set[int] = set()
    waiting: deque[tuple[list[IndexedImage], np.ndarray, list[Future]]] = deque()

    def finish() -> Batch:
        records, images, futures = waiting.popleft()
        for future in futures:
            future.result()
        index = np.array([record.index for record in records], dtype=np.int64)
        return Batch(torch.from_numpy(images), torch.from_numpy(labels[index]), index)

    def decode(record: IndexedImage, out: np.ndarray) -> None:
        where = f"{record.where} (index {record.index})"
        try:
            preprocess(decode_jpeg(record.encoded, where), out)
        except ValueError as error:
            raise error if isinstance(error, InputError) else InputError(f"{where}: {error}") from error

    try:
        whole = {"n_examples": len(labels), "num_classes": NUM_CLASSES}
        source = path.read() if isinstance(path, FolderShard) else read_images(path, **whole)
        while records := list(islice(source, batch_size)):
            for record in records:
                if record.index in seen:
                    raise InputError(f"{record.where}: index {record.index} comes twice")
                if record.label != labels[record.index]:
                    told = f"label {record.label + 1} contradicts {labels[record.index] + 1}"
                    raise InputError(f"{record.where}: {told}, what imagenet_index.npz says of index {record.index}")
                seen.add(record.index)
            images = np.empty((len(records), 3, IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32)
            futures = [pool.submit(decode, record, out) for record, out in zip(records, images, strict=True)]
            waiting.append((records, images, futures))
            if len(waiting) == 2:
                yield finish()
        while waiting:
            yield finish()
    finally:
        for _, _, futures in waiting:
            for future in futures:
                future.cancel()
