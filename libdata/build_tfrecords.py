"""ILSVRC folders, read as they are or made into indexed TFRecords file by file; and the check that reads those back."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from libdata.imagenet import NUM_CLASSES, FolderShard, ImageNetIndex, decode_jpeg
from libdata.indexed_tfrecords import IndexedImage, encode_example, frame, read_images, shard_name
from libstore.errors import InputError
from libstore.store import file_sha256, write_atomic

_CONSTANTS: dict[str, int | bytes] = {"image/colorspace": b"RGB", "image/channels": 3, "image/format": b"JPEG"}


@dataclass(frozen=True)
class Source:
    """One image file: its place, WordNet id, index and class from 0."""

    path: Path
    synset: str
    index: int
    label: int


def scan(folder: Path, order: ImageNetIndex) -> list[Source]:
    """Match the image files of a split with Feldman and Zhang's index.

    Args:
        folder: One folder per WordNet id; a class is the rank of its id.
        order: File names and labels by index.

    Returns:
        The files by index.

    Raises:
        InputError: A file is missing, not in the index, there twice, or its folder contradicts its label.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; imagenet_dir in config.json should hold train/ and val/")
    synsets = sorted(path.name for path in folder.iterdir() if path.is_dir())
    position = {name: index for index, name in enumerate(order.filenames)}
    found: dict[int, Source] = {}
    for label, synset in enumerate(synsets):
        for path in sorted((folder / synset).iterdir()):
            index = position.get(path.name)
            if index is None:
                raise InputError(f"{path}: not in imagenet_index.npz")
            if index in found:
                raise InputError(f"{path}: there already as {found[index].path}")
            if order.labels[index] != label:
                raise InputError(
                    f"{path}: class {label} by the rank of {synset} among {len(synsets)} folders, "
                    f"but imagenet_index.npz says {order.labels[index]}"
                )
            found[index] = Source(path, synset, index, label)
    missing = [name for index, name in enumerate(order.filenames) if index not in found]
    if missing:
        raise InputError(f"{folder}: {len(missing)} of {len(order)} files are missing, the first is {missing[0]}")
    return [found[index] for index in range(len(order))]


def clean_jpeg(content: bytes, where: str) -> tuple[bytes, int, int]:
    """Return an image as an RGB or grey JPEG file, with its height and width.

    PNG files and CMYK JPEG files are encoded again as RGB JPEG of quality 100; all others stay as they are,
    EXIF orientation included.

    Raises:
        InputError: It is neither PNG nor JPEG, or does not decode.
    """
    try:
        image = Image.open(io.BytesIO(content))
        if image.format not in ("JPEG", "PNG"):
            raise InputError(f"{where}: a {image.format} file, neither JPEG nor PNG")
        if image.format == "PNG" or image.mode == "CMYK":
            rgb = image.convert("RGB") if image.format == "PNG" else Image.fromarray(decode_jpeg(content, where))
            buffer = io.BytesIO()
            rgb.save(buffer, "JPEG", quality=100, subsampling="4:2:0")
            content = buffer.getvalue()
    except InputError:
        raise
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{where}: the image does not decode: {error}") from error
    height, width, _ = decode_jpeg(content, where).shape
    return content, height, width


def _read(source: Source) -> tuple[bytes, int, int]:
    try:
        content = source.path.read_bytes()
    except OSError as error:
        raise InputError(f"{source.path}: cannot read: {error.strerror}") from error
    return clean_jpeg(content, str(source.path))


def folder_shards(folder: Path, order: ImageNetIndex, count: int) -> list[FolderShard]:
    """Return a split's folders in as many parts as there would be TFRecord files, with the same images in each.

    Args:
        folder: One folder per WordNet id, as for `scan`.
        order: File names and labels by index.
        count: Number of parts.

    Raises:
        InputError: As `scan`; there are fewer images than parts.
    """
    sources = scan(folder, order)

    def part(number: int, own: list[Source]) -> FolderShard:
        def read() -> Iterator[IndexedImage]:
            for source in own:
                yield IndexedImage(source.index, source.label, _read(source)[0], str(source.path))

        listing = "".join(f"{source.path.name} {source.path.stat().st_size}\n" for source in own)
        return FolderShard(shard_name("train", number, count), read, listing)

    bounds = _bounds(len(sources), count)
    return [part(i, sources[bounds[i] : bounds[i + 1]]) for i in range(count)]


def _bounds(examples: int, shards: int) -> np.ndarray:
    """Return where every file begins, and the end."""
    if not 1 <= shards <= examples:
        raise InputError(f"{shards} files for {examples} examples; choose from 1 to {examples}")
    return np.linspace(0, examples, shards + 1).astype(int)


def _records(sources: list[Source]) -> Iterator[bytes]:
    for source in sources:
        content, height, width = _read(source)
        features: dict[str, int | bytes] = {
            "index": source.index, "image/encoded": content, "image/height": height, "image/width": width,
            "image/class/label": source.label + 1, "image/class/synset": source.synset.encode(),
            "image/filename": source.path.name.encode(),
        }  # fmt: skip
        yield frame(encode_example(features | _CONSTANTS))


@dataclass(frozen=True)
class Shard:
    """A line of the manifest: a file, its records (indices `start` up to `stop`), size and SHA-256."""

    file: str
    start: int
    stop: int
    bytes: int
    sha256: str


def build(
    sources: list[Source], folder: Path, split: str, shards: int, settings: dict[str, object],
    *, workers: int, overwrite: bool, bar: tqdm,
) -> Path:  # fmt: skip
    """Write a split as TFRecord files, in the order of the index, and a manifest; finished files are kept.

    Every file is written whole or not at all, and then entered in <split>-manifest.json. A kept file's
    checksum is compared before it is skipped.

    Args:
        sources: What `scan` found.
        folder: Where to write; the caller holds its lock.
        split: "train" or "validation".
        shards: Number of files, at most one per example.
        settings: What decides the content; kept in the manifest and compared at the next start.
        workers: Files built at a time, each in memory while it is (about 300 MB for ImageNet).
        overwrite: Replace files made with other settings.
        bar: Progress, in examples.

    Returns:
        The path of the manifest.

    Raises:
        InputError: An image does not decode, or the folder holds files made with other settings.
    """
    bounds = _bounds(len(sources), shards)
    manifest = folder / f"{split}-manifest.json"
    settings = settings | {"split": split, "shards": shards, "examples": len(sources)}
    kept: dict[str, Shard] = {}
    if manifest.exists():
        before = _read_manifest(manifest)
        if before["settings"] == settings:
            kept = {line["file"]: Shard(**line) for line in before["files"]}
        elif not overwrite:
            raise InputError(
                f"{manifest}: made with {before['settings']}, asked for {settings}; --overwrite replaces it"
            )
        else:
            for line in before["files"]:
                (folder / line["file"]).unlink(missing_ok=True)
            manifest.unlink()

    def one(shard: int) -> Shard:
        name, start, stop = shard_name(split, shard, shards), int(bounds[shard]), int(bounds[shard + 1])
        path = folder / name
        if name in kept and path.is_file() and file_sha256(path) == kept[name].sha256:
            bar.update(stop - start)
            return kept[name]
        records = []
        for record in _records(sources[start:stop]):
            records.append(record)
            bar.update()
        content = b"".join(records)
        write_atomic(path, content)
        return Shard(name, start, stop, len(content), hashlib.sha256(content).hexdigest())

    done: dict[str, Shard] = {}
    pool = ThreadPoolExecutor(workers)
    try:
        for line in pool.map(one, range(shards)):
            done[line.file] = line
            if kept.get(line.file) != line:
                files = [asdict(done.get(name) or kept[name]) for name in sorted(kept | done)]
                content = json.dumps({"settings": settings, "files": files}, indent=1, sort_keys=True)
                write_atomic(manifest, content.encode() + b"\n")
    finally:
        pool.shutdown(cancel_futures=True)
    return manifest


def _read_manifest(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {"settings": content["settings"], "files": content["files"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a manifest of this project: {error}") from error


def verify(folder: Path, split: str, order: ImageNetIndex, *, workers: int, bar: tqdm) -> int:
    """Read a built split back: sizes, SHA-256 and record checksums, every index once, labels, images that decode.

    Returns:
        The number of examples.

    Raises:
        InputError: Something does not fit; the message names the file.
    """
    manifest = _read_manifest(folder / f"{split}-manifest.json")
    lines = [Shard(**line) for line in manifest["files"]]
    if len(lines) != manifest["settings"]["shards"]:
        raise InputError(
            f"{folder}: {len(lines)} of {manifest['settings']['shards']} {split} files are built; build the rest"
        )

    def one(line: Shard) -> list[int]:
        path = folder / line.file
        if not path.is_file() or file_sha256(path) != line.sha256:
            raise InputError(f"{path}: missing or not the file of the manifest; delete it and build again")
        indices = []
        for image in read_images(path, n_examples=len(order), num_classes=NUM_CLASSES):
            if image.label != order.labels[image.index]:
                raise InputError(f"{image.where}: label {image.label + 1} contradicts imagenet_index.npz")
            decode_jpeg(image.encoded, image.where)
            indices.append(image.index)
            bar.update()
        return indices

    with ThreadPoolExecutor(workers) as pool:
        counts = np.bincount(
            np.concatenate([np.array(found, int) for found in pool.map(one, lines)]), minlength=len(order)
        )
    if (counts != 1).any():
        raise InputError(
            f"{folder}: index {int(np.flatnonzero(counts != 1)[0])} is there {counts[counts != 1][0]} times"
        )
    return len(order)
