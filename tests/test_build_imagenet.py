"""Building indexed TFRecords from a small tree of real image files."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import simplejpeg
from conftest import assert_refused, run_script, write_config
from released_files import SYNSETS, encoded, photo, photo_files, write_imagenet_index, write_tree

from build_fz_imagenet import build_imagenet
from libdata.build_tfrecords import clean_jpeg
from libdata.imagenet import decode_jpeg, read_imagenet_index, read_imagenet_memorization
from libdata.indexed_tfrecords import decode_example, list_shards, read_records
from libstore.errors import InputError

TRAIN = [f"{synset}_{number}.JPEG" for number in (3, 1, 2) for synset in SYNSETS]
VALIDATION = ["n02105855_77.JPEG", "n01440764_78.JPEG", "n01443537_79.JPEG"]


@pytest.fixture
def tree(tmp_path):
    """ILSVRC in small, its index and a config."""
    content = encoded(photo(60, 70, 0))
    write_tree(tmp_path / "ilsvrc" / "train", dict.fromkeys(TRAIN, content))
    write_tree(tmp_path / "ilsvrc" / "val", dict.fromkeys(VALIDATION, content))
    index = tmp_path / "imagenet_index.npz"
    write_imagenet_index(index, {"tr": TRAIN, "tt": VALIDATION}, tr_mem=np.arange(9.0))
    config = write_config(
        tmp_path, imagenet_dir=tmp_path / "ilsvrc", imagenet_index=index, tfrecord_dir=tmp_path / "tfrecords"
    )
    return tmp_path, config


def run(config, *more):
    build_imagenet.main(
        ["--config", str(config), "--train_shards", "4", "--validation_shards", "2", "--workers", "2", *more]
    )


def built(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "tfrecords").iterdir())}


def test_labels_indices_and_counts(tree, capsys):
    folder, config = tree
    run(config)
    for split, names, shards in (("train", TRAIN, 4), ("validation", VALIDATION, 2)):
        files = list_shards(folder / "tfrecords", split)
        assert len(files) == shards
        wanted = ("index", "image/class/label", "image/class/synset", "image/filename", "image/height", "image/width",
                  "image/colorspace", "image/channels", "image/format")  # fmt: skip
        rows = [decode_example(payload, wanted, "") for path in files for payload in read_records(path)]
        for index, (name, row) in enumerate(zip(names, rows, strict=True)):
            synset = name.split("_")[0]
            assert list(row.values()) == [
                index, SYNSETS.index(synset) + 1, synset.encode(), name.encode(), 60, 70, b"RGB", 3, b"JPEG"
            ]  # fmt: skip
        manifest = json.loads((folder / "tfrecords" / f"{split}-manifest.json").read_text())
        assert sum(line["stop"] - line["start"] for line in manifest["files"]) == len(names)
        assert [line["bytes"] for line in manifest["files"]] == [path.stat().st_size for path in files]
    run(config, "--verify")
    assert "train, 9 examples read back" in capsys.readouterr().out


def test_the_bytes_do_not_depend_on_workers_or_interruption(tree):
    folder, config = tree
    run(config)
    first = built(folder)
    for name in ("train-00001-of-00004", "train-00003-of-00004", "validation-manifest.json"):
        (folder / "tfrecords" / name).unlink()
    (folder / "tfrecords" / "train-00000-of-00004").write_bytes(b"damaged")
    (folder / "tfrecords" / ".train-00002-of-00004.tmp").write_bytes(b"half")
    run(config, "--workers", "1")
    assert built(folder) == first
    shutil.rmtree(folder / "tfrecords")
    run(config, "--workers", "1")
    assert built(folder) == first


def test_a_killed_build_goes_on(tree):
    folder, config = tree
    run(config)
    expected = built(folder)
    shutil.rmtree(folder / "tfrecords")
    bad = folder / "ilsvrc" / "train" / SYNSETS[0] / TRAIN[6]
    good = bad.read_bytes()
    bad.write_bytes(good[:200])
    with pytest.raises(InputError, match=rf"{bad}: the image does not decode"):
        run(config, "--workers", "1")
    assert "train-00000-of-00004" in built(folder) and "train-00003-of-00004" not in built(folder)
    bad.write_bytes(good)
    run(config)
    assert built(folder) == expected


def test_other_settings_are_refused_and_replaced(tree):
    folder, config = tree
    run(config)
    before = built(folder)
    with pytest.raises(InputError, match=r"train-manifest\.json: made with .*--overwrite replaces it"):
        run(config, "--train_shards", "3")
    assert built(folder) == before
    run(config, "--train_shards", "3", "--overwrite")
    assert len(list_shards(folder / "tfrecords", "train")) == 3
    with pytest.raises(InputError, match="10 files for 9 examples"):
        run(config, "--train_shards", "10", "--overwrite")


def test_verify_notices(tree):
    folder, config = tree
    run(config)
    shard = folder / "tfrecords" / "train-00002-of-00004"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    with pytest.raises(InputError, match="train-00002-of-00004: missing or not the file of the manifest"):
        run(config, "--verify")
    manifest = folder / "tfrecords" / "train-manifest.json"
    lines = json.loads(manifest.read_text())
    lines["files"][2] = lines["files"][1]
    manifest.write_text(json.dumps(lines))
    with pytest.raises(InputError, match="index 2 is there 2 times"):
        run(config, "--verify")
    lines["files"].pop()
    manifest.write_text(json.dumps(lines))
    with pytest.raises(InputError, match="3 of 4 train files are built"):
        run(config, "--verify")


def test_trees_that_do_not_fit_the_index(tree):
    folder, config = tree
    train = folder / "ilsvrc" / "train"
    extra = train / SYNSETS[1] / "n01443537_99.JPEG"
    extra.write_bytes(b"")
    with pytest.raises(InputError, match=r"n01443537_99\.JPEG: not in imagenet_index\.npz"):
        run(config)
    extra.unlink()
    moved = train / SYNSETS[2] / TRAIN[0]
    (train / SYNSETS[0] / TRAIN[0]).rename(moved)
    with pytest.raises(InputError, match=rf"{moved}: class 2 by the rank of {SYNSETS[2]}.*says 0"):
        run(config)
    moved.unlink()
    with pytest.raises(InputError, match=f"1 of 9 files are missing, the first is {TRAIN[0]}"):
        run(config)
    shutil.rmtree(train)
    with pytest.raises(InputError, match="train: no such folder; imagenet_dir"):
        run(config)
    assert not (folder / "tfrecords").exists()


def test_kinds_of_images():
    files = photo_files()
    for name, content in files.items():
        clean, height, width = clean_jpeg(content, name)
        assert decode_jpeg(clean, name).shape == (height, width, 3)
        converted = name in ("n01443537_7.JPEG", "n01443537_8.JPEG")
        assert (clean != content) == converted
        colours = simplejpeg.decode_jpeg_header(clean)[2]
        assert colours == ("Gray" if name == "n01440764_12.JPEG" else "YCbCr")
    _, height, width = clean_jpeg(files["n01443537_9.JPEG"], "rotated")
    assert (height, width) == (320, 480)  # as stored, whatever EXIF asks of a viewer


@pytest.mark.parametrize("kind", ["cmyk", "plain_cmyk", "png"])
def test_conversion_equals_tensorflows(released, kind):
    """TensorFlow decodes the same file, encodes it as RGB at quality 100 and decodes that."""
    content = (released / f"{kind}.image").read_bytes()
    if kind != "png":
        np.testing.assert_array_equal(
            decode_jpeg(content, kind), np.load(released / f"{kind}_pixels.npy", allow_pickle=False)
        )
    ours = decode_jpeg(clean_jpeg(content, kind)[0], kind)
    np.testing.assert_array_equal(ours, np.load(released / f"{kind}.npy", allow_pickle=False))


@pytest.mark.parametrize(
    "content", [b"", b"text", b"\xff\xd8\xff", encoded(photo(9, 9, 0), "GIF"), encoded(photo(9, 9, 0), "PNG")[:60]]
)
def test_what_is_no_image_is_refused(content):
    with pytest.raises(InputError, match="picture: "):
        clean_jpeg(content, "picture")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tr_labels": np.arange(8)}, "do not fit"),
        ({"tr_labels": np.full(9, 1000)}, "whole numbers from 0 to 999"),
        ({"tr_labels": np.zeros(9)}, "whole numbers from 0 to 999"),
        ({"tr_filenames": np.array([b"same"] * 9, dtype=object)}, "holds a file name twice"),
        ({"tr_filenames": np.arange(9)}, "do not fit"),
        (
            {"tr_filenames": np.array([b"a", 1] + [b"b"] * 7, dtype=object)},
            "holds a int; only numbers, bytes and strings",
        ),
    ],
)
def test_bad_index_files(tree, change, message):
    folder, _ = tree
    path = folder / "imagenet_index.npz"
    good = {"tr_filenames": np.array([name.encode() for name in TRAIN], dtype=object), "tr_labels": np.zeros(9, int)}
    np.savez(path, **good | change)
    with pytest.raises(InputError, match=message) as caught:
        read_imagenet_index(path)
    assert str(path) in str(caught.value)


def test_memorization_of_the_index_file(tree):
    folder, _ = tree
    np.testing.assert_array_equal(read_imagenet_memorization(folder / "imagenet_index.npz"), np.arange(9.0))
    np.savez(folder / "short.npz", tr_mem=np.zeros(3), tr_labels=np.zeros(4))
    with pytest.raises(InputError, match="'tr_mem' should hold one score"):
        read_imagenet_memorization(folder / "short.npz")


def test_command_line_reports_one_line(tree):
    folder, config = tree
    (folder / "imagenet_index.npz").unlink()
    assert_refused(
        run_script("build_fz_imagenet/build_imagenet.py", "--config", config),
        "build_imagenet.py: error: ",
        "imagenet_index.npz",
    )
