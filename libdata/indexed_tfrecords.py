"""TFRecord files of indexed, labelled images, read and written without TensorFlow.

A TFRecord file is a row of records: length (uint64), masked CRC-32C of the length, payload, masked CRC-32C of
the payload, little-endian. A payload is a tf.train.Example protocol buffer. Every checksum is checked. (Of the
readers on PyPI, tfrecord 1.14, tfd-utils 1.3 and grain 0.2 skip the checksums and tfrecords 0.3 has no macOS
wheels; google-crc32c and protobuf, both Google's own, are what they would be built on.)
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from libstore.errors import InputError

_FIELD = descriptor_pb2.FieldDescriptorProto
_KINDS = (("bytes_list", "BytesList", _FIELD.TYPE_BYTES), ("float_list", "FloatList", _FIELD.TYPE_FLOAT),
          ("int64_list", "Int64List", _FIELD.TYPE_INT64))  # fmt: skip
_FEATURES = ("index", "image/encoded", "image/class/label")
SPLITS = ("train", "validation")
TRAIN_FILES = 1024


def _example_class() -> type[message.Message]:
    """Build tf.train.Example's message type, in a pool of its own so that TensorFlow's can live beside it."""
    file = descriptor_pb2.FileDescriptorProto(name="indexed_example.proto", package="indexed", syntax="proto3")
    feature = descriptor_pb2.DescriptorProto(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (field, kind, scalar) in enumerate(_KINDS, 1):
        values = file.message_type.add(name=kind)
        values.field.add(name="value", number=1, label=_FIELD.LABEL_REPEATED, type=scalar)
        feature.field.add(
            name=field, number=number, label=_FIELD.LABEL_OPTIONAL, type=_FIELD.TYPE_MESSAGE,
            type_name=f".indexed.{kind}", oneof_index=0,
        )  # fmt: skip
    file.message_type.append(feature)
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=_FIELD.LABEL_OPTIONAL, type=_FIELD.TYPE_STRING)
    for owner, name, number, label, kind in (
        (entry, "value", 2, _FIELD.LABEL_OPTIONAL, "Feature"),
        (features, "feature", 1, _FIELD.LABEL_REPEATED, "Features.FeatureEntry"),
        (file.message_type.add(name="Example"), "features", 1, _FIELD.LABEL_OPTIONAL, "Features"),
    ):
        owner.field.add(name=name, number=number, label=label, type=_FIELD.TYPE_MESSAGE, type_name=f".indexed.{kind}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("indexed.Example"))


_Example: Any = _example_class()


def masked_crc(data: bytes) -> int:
    """Return the CRC-32C of data, rotated right by 15 bits and shifted by a constant, as TFRecords store it."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def frame(payload: bytes) -> bytes:
    """Return one record: the payload between its length and the checksums."""
    length = struct.pack("<Q", len(payload))
    return b"".join((length, struct.pack("<I", masked_crc(length)), payload, struct.pack("<I", masked_crc(payload))))


def read_records(path: Path) -> Iterator[bytes]:
    """Yield the payloads of a TFRecord file in order.

    Raises:
        InputError: The file is missing, cut short, or a checksum is wrong; the message names the file, the
            number of the record and its offset.
    """
    try:
        with path.open("rb", buffering=1 << 20) as file:
            number, offset = 0, 0
            while head := file.read(12):
                where = f"{path}: record {number} at byte {offset}"
                if len(head) < 12:
                    raise InputError(f"{where}: the file is cut short")
                length, crc = struct.unpack("<QI", head)
                if masked_crc(head[:8]) != crc:
                    raise InputError(f"{where}: the checksum of its length is wrong")
                body = file.read(length + 4)
                if len(body) < length + 4:
                    raise InputError(f"{where}: the file is cut short")
                payload = body[:-4]
                if masked_crc(payload) != int.from_bytes(body[-4:], "little"):
                    raise InputError(f"{where}: the checksum of its content is wrong")
                yield payload
                number, offset = number + 1, offset + 16 + length
    except OSError as error:
        raise InputError(f"{path}: cannot read the records: {error.strerror}") from error


def encode_example(features: Mapping[str, int | bytes]) -> bytes:
    """Serialise an Example of single integers and byte strings; equal features give equal bytes."""
    example = _Example()
    for name, value in sorted(features.items()):
        feature = example.features.feature[name]
        (feature.int64_list if isinstance(value, int) else feature.bytes_list).value.append(value)
    return example.SerializeToString(deterministic=True)


def decode_example(payload: bytes, names: Iterable[str], where: str) -> dict[str, Any]:
    """Return the single value of each named feature of an Example.

    Raises:
        InputError: The payload is not an Example, or a feature is missing or not a single value.
    """
    example = _Example()
    try:
        example.ParseFromString(payload)
    except message.DecodeError as error:
        raise InputError(f"{where}: not a tf.train.Example: {error}") from error
    values = {}
    for name in names:
        feature = example.features.feature.get(name)
        kind = feature.WhichOneof("kind") if feature else None
        found: Sequence[Any] = getattr(feature, kind).value if kind else ()
        if len(found) != 1:
            raise InputError(f"{where}: feature {name!r} should hold one value, found {len(found)}")
        values[name] = found[0]
    return values


@dataclass(frozen=True)
class IndexedImage:
    """One record.

    Attributes:
        index: Position of the example in its split.
        label: Class from 0 (the files count from 1).
        encoded: The image as a JPEG file.
        where: File and record number, for error messages.
    """

    index: int
    label: int
    encoded: bytes
    where: str


def read_images(path: Path, *, n_examples: int, num_classes: int) -> Iterator[IndexedImage]:
    """Yield the images of one file in its order, still encoded.

    Args:
        path: A TFRecord file.
        n_examples: Examples of the whole split.
        num_classes: Number of classes.

    Raises:
        InputError: A record is damaged, lacks a feature, or has an index or label that is out of range.
    """
    for number, payload in enumerate(read_records(path)):
        where = f"{path}: record {number}"
        index, encoded, label = decode_example(payload, _FEATURES, where).values()
        if not isinstance(index, int) or not 0 <= index < n_examples:
            raise InputError(f"{where}: index {index} is outside the split of {n_examples} examples")
        if not isinstance(label, int) or not 1 <= label <= num_classes:
            raise InputError(f"{where}: label {label} is outside 1...{num_classes}")
        if not isinstance(encoded, bytes):
            raise InputError(f"{where}: feature 'image/encoded' should hold bytes")
        yield IndexedImage(index, label - 1, encoded, where)


def shard_name(split: str, shard: int, count: int) -> str:
    """Return the name of one file of a split: <split>-<shard>-of-<count>, five digits each."""
    return f"{split}-{shard:05d}-of-{count:05d}"


def list_shards(folder: Path, split: str, *, required: bool = True) -> list[Path]:
    """Return the files of a split in order; none at all only where they are not required.

    Raises:
        InputError: There are none, one is missing, or there are sets of different sizes.
    """
    pattern = re.compile(rf"{split}-(\d{{5}})-of-(\d{{5}})")
    found = [match for path in folder.glob(f"{split}-*-of-*") if (match := pattern.fullmatch(path.name))]
    counts = sorted({int(match[2]) for match in found})
    if not counts and not required:
        return []
    if not counts:
        raise InputError(f"{folder}: no {split}-*-of-* files; make them with build_fz_imagenet/build_imagenet.py")
    if len(counts) > 1:
        raise InputError(f"{folder}: {split} files of {len(counts)} sets: {', '.join(f'of-{n:05d}' for n in counts)}")
    paths = [folder / shard_name(split, shard, counts[0]) for shard in range(counts[0])]
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path}: missing; {len(found)} of {counts[0]} {split} files are there")
    return paths
