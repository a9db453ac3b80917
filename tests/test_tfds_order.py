"""TFDS's order of CIFAR against torchvision's, and the memorization file that is in one of them."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import write_config
from hypothesis import given
from hypothesis import strategies as st
from released_files import know_cifar

from libdata import tfds_order
from libdata.indexed_tfrecords import encode_example, frame
from libdata.tfds_order import match_images, read_cifar_memorization, read_tfds
from libstore.errors import InputError
from libstore.fz import ensemble_root, list_ratios, read_run, read_tfds_order
from libstore.fz import tfds_order as computed_order
from libstore.store import read_sidecar


@pytest.fixture
def ensemble(released, tmp_path, monkeypatch):
    """The released ensemble without its checkpoints, a config, and the true order."""
    know_cifar(released / "data", monkeypatch)
    root = tmp_path / "fz_models" / "cifar100-inception"
    shutil.copytree(released / "fz_models" / "cifar100-inception", root, ignore=shutil.ignore_patterns("checkpoints"))
    (root / "tfds_order.npz").unlink(missing_ok=True)
    config = write_config(tmp_path, fz_model_dir=tmp_path / "fz_models", data_dir=released / "data")
    with np.load(released / "cifar.npz", allow_pickle=False) as cifar:
        return root, config, dict(cifar)


def test_the_tool_finds_the_order_and_reports_twins(released, ensemble, capsys):
    root, config, truth = ensemble
    tfds_order.main(["--config", str(config), "cifar100", str(released / "tfds")])
    out = capsys.readouterr().out
    assert "cifar100 train: 64 images matched; with a twin: 1 told apart by label, 2 by position" in out
    assert "cifar100 test: 16 images matched; with a twin: 0 told apart by label, 0 by position" in out
    assert "cifar100 test: the computed order is the same" in out
    differing = re.search(r"cifar100 train: the computed order (?:is the same|differs at 2 positions, with equal)", out)
    assert differing
    order = read_tfds_order(root) or {}
    np.testing.assert_array_equal(order["test"], truth["order_test"])
    differ = np.flatnonzero(order["train"] != truth["order_train"])
    assert set(order["train"][differ]) <= {3, 9}  # the two that nothing tells apart
    for split in ("train", "test"):
        np.testing.assert_array_equal(
            truth[f"images_{split}"][order[split]], truth[f"images_{split}"][truth[f"order_{split}"]]
        )
        np.testing.assert_array_equal(
            truth[f"labels_{split}"][order[split]], truth[f"labels_{split}"][truth[f"order_{split}"]]
        )
    assert len(read_sidecar(root / "tfds_order.npz")["settings"]["tfds"]) == 2
    tfds_order.main(["--config", str(config), "cifar100", str(released / "tfds")])
    assert "there already" in capsys.readouterr().out


@pytest.mark.parametrize("copy", [False, True], ids=["computed", "from a copy"])
def test_runs_are_read_in_torchvisions_order(released, ensemble, copy):
    root, config, truth = ensemble
    with np.load(root / "0.7" / "0" / "aux_arrays.npz", allow_pickle=False) as file:
        in_file = file["index_train"]
    order = truth["order_train"]
    if copy:
        tfds_order.main(["--config", str(config), "cifar100", str(released / "tfds")])
        order = (read_tfds_order(root) or {})["train"]
    run = read_run(root / "0.7" / "0")
    everything = np.arange(64)
    np.testing.assert_array_equal(run.examples, everything)
    np.testing.assert_array_equal(run.index["train"], order[in_file])
    np.testing.assert_array_equal(run.subsample_idx, run.index["train"])
    _, correct = run.on(everything)
    np.testing.assert_array_equal(correct, truth["correct_train"])
    test = np.empty(16)
    test[run.index["test"]] = run.correctness["test"]
    np.testing.assert_array_equal(test, truth["correct_test"])


def test_order_is_the_one_tensorflow_datasets_writes():
    """First ids of CIFAR-10's training split as TFDS 3.0.2 gives them (`train_16399`, ... in its users' printouts)."""
    ids = [16399, 1680, 47917, 17307, 27051, 48736, 26263, 1456, 19135, 31598, 12970]
    np.testing.assert_array_equal(computed_order("train", 50_000)[:11], ids)
    for split, size in (("train", 50_000), ("test", 10_000)):
        order = computed_order(split, size)
        np.testing.assert_array_equal(np.sort(order), np.arange(size))
        digests = [hashlib.md5(split.encode() + b"%d" % position).hexdigest() for position in order]
        assert digests == sorted(digests)


def test_only_released_cifar_ensembles_are_in_that_order(ensemble, tmp_path):
    root, _, _ = ensemble
    plain = read_run(Path(shutil.copytree(root, tmp_path / "cifar100_small_inception")) / "0.7" / "0")
    translated = read_run(root / "0.7" / "0")
    np.testing.assert_array_equal(computed_order("train", 64)[plain.index["train"]], translated.index["train"])
    np.testing.assert_array_equal(computed_order("test", 16)[plain.index["test"]], translated.index["test"])
    imagenet = read_run(Path(shutil.copytree(root, tmp_path / "imagenet-resnet50")) / "0.7" / "0")
    np.testing.assert_array_equal(imagenet.index["train"], plain.index["train"])


def test_a_released_run_that_does_not_cover_the_split_is_refused(ensemble):
    root, _, _ = ensemble
    path = root / "0.7" / "0" / "aux_arrays.npz"
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    inner = np.flatnonzero(arrays["index_removed"] != 63)[0]
    for key in ("index_removed", "correctness_removed"):
        arrays[key] = np.delete(arrays[key], inner)
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=r"holds 63, the order map 63 positions"):
        read_run(path.parent)


def test_a_map_of_another_size_is_refused(ensemble):
    root, _, _ = ensemble
    np.savez(root / "tfds_order.npz", train=np.arange(10), test=np.arange(16))
    with pytest.raises(InputError, match=r"aux_arrays\.npz: key 'index_train' holds \d+, the order map 10 positions"):
        read_run(root / "0.7" / "0")
    np.savez(root / "tfds_order.npz", train=np.zeros(64, int), test=np.arange(16))
    with pytest.raises(InputError, match=r"tfds_order\.npz: train: position 0 is repeated"):
        read_run(root / "0.7" / "0")


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1)), min_size=1, max_size=12), st.randoms())
def test_matching_inverts_every_shuffle(rows, random):
    images = np.array([image for image, _ in rows], dtype=np.uint8)[:, None]
    labels = np.array([label for _, label in rows])
    shuffle = np.array(random.sample(range(len(rows)), len(rows)))
    order, by_label, by_position = match_images(images, labels, images[shuffle], labels[shuffle])
    assert sorted(order) == list(range(len(rows)))
    np.testing.assert_array_equal(images[order], images[shuffle])
    np.testing.assert_array_equal(labels[order], labels[shuffle])
    twins = [row for row in rows if [image for image, _ in rows].count(row[0]) > 1]
    assert by_label + by_position == len(twins)
    assert by_position == sum(rows.count(row) > 1 for row in rows)


def test_other_content_is_refused():
    images, labels = np.arange(6, dtype=np.uint8)[:, None], np.zeros(6, int)
    with pytest.raises(InputError, match="image 2 with label 0 of the second ordering is not in the first"):
        match_images(images, labels, np.array([[0], [1], [7], [3], [4], [5]], np.uint8), labels)
    with pytest.raises(InputError, match="image 1 with label 1"):
        match_images(images, labels, images, np.array([0, 1, 0, 0, 0, 0]))
    with pytest.raises(InputError, match="image 1 with label 0"):
        match_images(images, labels, images[[0, 0, 2, 3, 4, 5]], labels)
    with pytest.raises(InputError, match="6 images of shape"):
        match_images(images, labels, images[:5], labels[:5])


def test_bad_sources(ensemble, tmp_path):
    _, config, _ = ensemble
    with pytest.raises(InputError, match=r"expected one file cifar100-train\.tfrecord-00000-of-00001, found 0"):
        tfds_order.main(["--config", str(config), "cifar100", str(tmp_path)])
    path = tmp_path / "cifar100-train.tfrecord-00000-of-00001"
    path.write_bytes(frame(encode_example({"image": b"not an image", "label": 1})))
    with pytest.raises(InputError, match=r"record 0: the image does not decode"):
        read_tfds(tmp_path, "cifar100", "train")
    path.write_bytes(b"")
    with pytest.raises(InputError, match="expected images of one size"):
        read_tfds(tmp_path, "cifar100", "train")
    with pytest.raises(InputError, match="cifar10_small_inception: no such ensemble"):
        tfds_order.main(["--config", str(config), "cifar10", str(tmp_path)])


def test_released_names_are_found(tmp_path):
    assert ensemble_root(tmp_path, "cifar100", "small_inception") == tmp_path / "cifar100_small_inception"
    (tmp_path / "cifar100-inception").mkdir()
    assert ensemble_root(tmp_path, "cifar100", "small_inception") == tmp_path / "cifar100-inception"
    assert ensemble_root(tmp_path, "cifar100", "resnet18") == tmp_path / "cifar100_resnet18"


def test_ratios_are_listed_by_their_folders(tmp_path):
    with pytest.raises(InputError, match=r"ensemble: no such ensemble \(no folders such as 0\.7\)"):
        list_ratios(tmp_path / "ensemble")
    for name in ("0.7", "0.25", "notes", "1"):
        (tmp_path / "ensemble" / name).mkdir(parents=True)
    assert list_ratios(tmp_path / "ensemble") == ["0.25", "0.7", "1"]


def test_memorization_in_either_order(tmp_path):
    rng = np.random.default_rng(0)
    labels, memorization = rng.integers(100, size=50), rng.random(50)
    order = {"train": rng.permutation(50)}
    path = tmp_path / "cifar100_infl_matrix.npz"
    np.savez(path, tr_mem=memorization, tr_labels=labels, infl=np.array([None], dtype=object))
    np.testing.assert_array_equal(read_cifar_memorization(path, labels, None), memorization)
    np.testing.assert_array_equal(read_cifar_memorization(path, labels, order), memorization)
    np.savez(path, tr_mem=memorization[order["train"]], tr_labels=labels[order["train"]])
    np.testing.assert_array_equal(read_cifar_memorization(path, labels, order), memorization)
    with pytest.raises(InputError, match="neither torchvision's order nor TFDS's"):
        read_cifar_memorization(path, labels, None)
    with pytest.raises(InputError, match="nor the order map's"):
        read_cifar_memorization(path, labels, {"train": np.roll(order["train"], 1)})
    tfds = computed_order("train", 50)
    np.savez(path, tr_mem=memorization[tfds], tr_labels=labels[tfds])
    np.testing.assert_array_equal(read_cifar_memorization(path, labels, None), memorization)
    with pytest.raises(InputError, match=r"'tr_mem' \(50,\) and 'tr_labels' \(50,\) for 49 examples"):
        read_cifar_memorization(path, labels[:49], None)
