"""TFRecord files: framing, checksums, Examples and preprocessing, against TensorFlow and by damage."""

from __future__ import annotations

import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from released_files import encoded, photo

from libdata.imagenet import decode_jpeg, preprocess, read_imagenet_index, stream
from libdata.indexed_tfrecords import (
    decode_example,
    encode_example,
    frame,
    list_shards,
    masked_crc,
    read_images,
    read_records,
)
from libstore.errors import InputError


def crc32c_bitwise(data: bytes) -> int:
    """CRC-32C from its definition: reflected polynomial 0x82F63B78, one bit at a time."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@given(st.binary(max_size=40))
def test_checksum_is_the_masked_crc32c(data):
    crc = crc32c_bitwise(data)
    assert masked_crc(data) == (((crc >> 15) + (crc << 17) % 2**32) + 0xA282EAD8) % 2**32


def test_crc32c_check_value():
    assert crc32c_bitwise(b"123456789") == 0xE3069283  # the catalogued check value of CRC-32/ISCSI


@given(st.lists(st.binary(max_size=30), max_size=5))
def test_records_come_back_in_order(tmp_path_factory, payloads):
    path = tmp_path_factory.mktemp("records") / "file"
    path.write_bytes(b"".join(map(frame, payloads)))
    assert list(read_records(path)) == payloads


def test_every_damaged_byte_and_every_cut_is_noticed(tmp_path):
    path = tmp_path / "file"
    whole = frame(b"first") + frame(b"second one")
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=rf"{path}: record [01] at byte (0|21): the (checksum of its|file is cut)"):
            list(read_records(path))
        path.write_bytes(whole[:position])
        if position in (0, 21):
            assert len(list(read_records(path))) == position // 21
        else:
            with pytest.raises(InputError, match="the file is cut short"):
                list(read_records(path))


def test_tensorflow_reads_ours_and_we_read_tensorflows(released):
    files = list_shards(released / "tfrecords", "train")
    ours = [payload for path in files for payload in read_records(path)]
    assert list(read_records(released / "tf_written.tfrecord")) == ours
    names = ["index", "image/class/label", "image/filename", "image/class/synset", "image/height", "image/width",
             "image/colorspace", "image/channels", "image/format"]  # fmt: skip
    with np.load(released / "imagenet.npz", allow_pickle=False) as theirs:
        for row, payload in enumerate(ours):
            values = decode_example(payload, names, "record")
            for name in names:
                assert values[name] == theirs[name.replace("/", "_")][row], name


def test_decoding_and_preprocessing_equal_tensorflows(released):
    """Equal to float32 rounding, except the last column where the colour is subsampled.

    TensorFlow crops while it decodes, so that the last pixels of the crop lack the neighbour on their right from
    which the decoder interpolates their colour.
    """
    order = read_imagenet_index(released / "imagenet_index.npz")
    with ThreadPoolExecutor(2) as pool:
        batches = [
            batch
            for path in list_shards(released / "tfrecords", "train")
            for batch in stream(path, order.labels, batch_size=2, pool=pool)
        ]
    with np.load(released / "imagenet.npz", allow_pickle=False) as theirs:
        np.testing.assert_array_equal(np.concatenate([batch.index for batch in batches]), theirs["index"])
        labels = np.concatenate([batch.labels.numpy() for batch in batches])
        np.testing.assert_array_equal(labels, theirs["image_class_label"] - 1)
        expected = theirs["inputs"].transpose(0, 3, 1, 2)
        images = np.concatenate([batch.images.numpy() for batch in batches])
        np.testing.assert_allclose(images[..., :-1], expected[..., :-1], atol=5e-6, rtol=0)
        names = [order.filenames[index] for index in theirs["index"]]
    difference = np.abs(images - expected)
    full_colour = [names.index(name) for name in ("n01440764_11.JPEG", "n01440764_12.JPEG")]
    assert difference[full_colour].max() < 5e-6
    assert difference.mean(axis=(1, 2, 3)).max() < 1e-3


def test_slow_dct_would_not_have_equalled(released):
    """The difference that the fast DCT makes is 100 times the tolerance above: the test above can fail."""
    path = list_shards(released / "tfrecords", "train")[0]
    image = next(read_images(path, n_examples=8, num_classes=1000)).encoded
    slow = preprocess(simplejpeg.decode_jpeg(image, "RGB", fastdct=False))
    assert np.abs(slow - preprocess(decode_jpeg(image, "image"))).max() > 2e-3


@pytest.mark.parametrize(("height", "width"), [(375, 500), (224, 224), (256, 255), (90, 64), (2, 3), (1000, 30)])
def test_preprocessing_against_its_definition(height, width):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    c = int(224 / 256 * min(height, width))
    y0, x0 = (height - c + 1) // 2, (width - c + 1) // 2
    crop = pixels[y0 : y0 + c, x0 : x0 + c] / 255
    result = preprocess(pixels)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    for i, j in rng.integers(0, 224, (60, 2)):
        y, x = (min(max((k + 0.5) * c / 224 - 0.5, 0), c - 1) for k in (i, j))
        a, b = int(y), int(x)
        down, right = min(a + 1, c - 1), min(b + 1, c - 1)
        top = crop[a, b] * (1 - (x - b)) + crop[a, right] * (x - b)
        bottom = crop[down, b] * (1 - (x - b)) + crop[down, right] * (x - b)
        expected = (top * (1 - (y - a)) + bottom * (y - a) - mean) / std
        np.testing.assert_allclose(result[:, i, j], expected, atol=5e-4)


def test_one_pixel_has_no_crop():
    with pytest.raises(ValueError, match="1 x 40 pixels"):
        preprocess(np.zeros((1, 40, 3), np.uint8))


def record(index: int | bytes = 0, label: int = 1, image: bytes = b"") -> bytes:
    return frame(encode_example({"index": index, "image/class/label": label, "image/encoded": image}))


def read_one(path, labels=(0, 1, 2), batch_size=2):
    with ThreadPoolExecutor(2) as pool:
        return list(stream(path, np.array(labels), batch_size=batch_size, pool=pool))


JPEG = encoded(photo(64, 80, 0))
BAD_RECORDS = {
    "an index outside": (record(index=3, image=JPEG), "record 0: index 3 is outside the split of 3 examples"),
    "a negative index": (record(index=-1, image=JPEG), "record 0: index -1 is outside"),
    "an index twice": (record(0, 1, JPEG) + record(1, 2, JPEG) + record(0, 1, JPEG), "record 2: index 0 comes twice"),
    "label 0": (record(label=0, image=JPEG), r"record 0: label 0 is outside 1\.\.\.1000"),
    "a label too large": (record(label=1001, image=JPEG), "record 0: label 1001 is outside"),
    "another label": (record(1, 3, JPEG), r"record 0: label 3 contradicts 2, what imagenet_index\.npz says of index 1"),
    "no image": (record(image=b""), r"record 0 \(index 0\): the image does not decode"),
    "half an image": (
        record(image=JPEG[: len(JPEG) // 2]),
        r"record 0 \(index 0\): the image does not decode: Premature",
    ),
    "a PNG image": (record(image=encoded(photo(64, 80, 0), "PNG")), "the image does not decode"),
    "another feature type": (record(index=b"0", image=JPEG), "record 0: index b'0' is outside"),
    "a missing feature": (
        frame(encode_example({"index": 0})),
        "feature 'image/encoded' should hold one value, found 0",
    ),
    "no Example": (frame(b"\xff\xff\xff"), "record 0: not a tf.train.Example"),
}


@pytest.mark.parametrize("case", BAD_RECORDS)
def test_bad_records_are_refused(tmp_path, case):
    content, message = BAD_RECORDS[case]
    path = tmp_path / "train-00000-of-00001"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_one(path)
    assert str(path) in str(caught.value)


def test_a_damaged_but_complete_image_is_read(tmp_path):
    """The decoder warns of such files, and TensorFlow decodes them."""
    damaged = bytearray(JPEG)
    damaged[len(JPEG) // 2 : len(JPEG) // 2 + 2] = b"\xff\xd3"  # a restart marker where none belongs
    with pytest.raises(ValueError):
        simplejpeg.decode_jpeg(bytes(damaged), "RGB", fastdct=True)
    assert decode_jpeg(bytes(damaged), "image").shape == (64, 80, 3)


def test_batches_do_not_depend_on_threads_and_are_bounded(tmp_path):
    path = tmp_path / "train-00000-of-00001"
    path.write_bytes(b"".join(record(i, 1, encoded(photo(50 + i, 60, i))) for i in range(9)))
    results = []
    for workers in (1, 4):
        with ThreadPoolExecutor(workers) as pool:
            results.append(list(stream(path, np.zeros(9, int), batch_size=4, pool=pool)))
    assert [len(batch.index) for batch in results[0]] == [4, 4, 1]
    for one, four in zip(*results, strict=True):
        np.testing.assert_array_equal(one.index, four.index)
        np.testing.assert_array_equal(one.images.numpy(), four.images.numpy())


def test_only_two_batches_are_in_memory(tmp_path):
    path = tmp_path / "train-00000-of-00001"
    path.write_bytes(b"".join(record(i, 1, JPEG) for i in range(20)))
    submitted = 0

    class Pool(ThreadPoolExecutor):
        def submit(self, *args, **kwargs):  # type: ignore[override]
            nonlocal submitted
            submitted += 1
            return super().submit(*args, **kwargs)

    with Pool(1) as pool:
        for taken, _ in enumerate(stream(path, np.zeros(20, int), batch_size=2, pool=pool), 1):
            assert submitted <= 2 * (taken + 1)
    assert submitted == 20


def test_files_of_a_split(tmp_path):
    with pytest.raises(InputError, match=r"no train-\*-of-\* files"):
        list_shards(tmp_path, "train")
    for name in (
        "train-00000-of-00003",
        "train-00002-of-00003",
        "train-00000-of-00003.json",
        "validation-00000-of-00001",
    ):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match="train-00001-of-00003: missing; 2 of 3"):
        list_shards(tmp_path, "train")
    (tmp_path / "train-00001-of-00003").touch()
    assert [path.name[:11] for path in list_shards(tmp_path, "train")] == ["train-00000", "train-00001", "train-00002"]
    (tmp_path / "train-00000-of-00002").touch()
    with pytest.raises(InputError, match="2 sets: of-00002, of-00003"):
        list_shards(tmp_path, "train")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="absent: cannot read the records"):
        list(read_records(tmp_path / "absent"))


def test_huge_length_with_a_right_checksum_is_a_short_file(tmp_path):
    length = struct.pack("<Q", 10**9)
    (tmp_path / "file").write_bytes(length + struct.pack("<I", masked_crc(length)) + b"abc")
    with pytest.raises(InputError, match="cut short"):
        list(read_records(tmp_path / "file"))
