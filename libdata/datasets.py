"""The image data sets behind one function; small ones are held as one tensor, already normalised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torchvision import datasets as tv
from torchvision.datasets.mnist import read_image_file, read_label_file

from libdata import safe_pickle
from libdata.errors import InputError
from libdata.index import check_index, index_digest
from libdata.store import file_sha256

# SHA-256 of the uncompressed files, checked at every load.
IDX_SHA256 = {
    "MNIST": {
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    "FashionMNIST": {
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
}
_SPLITS = ("train", "test")


@dataclass(frozen=True)
class Dataset:
    """Examples of one split, in memory.

    Attributes:
        name: Name of the data set, a key of `DATASETS`.
        split: "train" or "test".
        images: Normalised pixels, float32, shape (N, C, H, W).
        labels: Classes, int64, shape (N,).
        index: Positions of the N examples in torchvision's order, int64, shape (N,).
        num_classes: Number of classes of the whole data set.
        normalization: "unit" (pixels in [0, 1]) or "standard" (per-channel mean 0, deviation 1).
    """

    name: str
    split: str
    images: torch.Tensor
    labels: torch.Tensor
    index: np.ndarray
    num_classes: int
    normalization: str

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def in_channels(self) -> int:
        """Number of channels of an image."""
        return self.images.shape[1]

    def identity(self) -> dict[str, object]:
        """Return what a sidecar says of the data: name, split, size, index digest, pixels."""
        return {
            "dataset": self.name,
            "split": self.split,
            "n_examples": len(self),
            "index_sha256": index_digest(self.index),
            "image_size": self.images.shape[-1],
            "normalization": self.normalization,
        }


def _read_idx(folder: str, data_dir: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    raw = data_dir / folder / "raw"
    prefix = {"train": "train", "test": "t10k"}[split]
    for name, digest in IDX_SHA256[folder].items():
        path = raw / name
        if not path.is_file():
            raise InputError(f"{path}: missing; fetch it with: python -m libdata.download {folder.lower()}")
        if name.startswith(prefix) and file_sha256(path) != digest:
            raise InputError(f"{path}: corrupt, its SHA-256 is not {digest}; delete it and download it again")
    images = read_image_file(str(raw / f"{prefix}-images-idx3-ubyte"))
    return images.numpy()[:, None], read_label_file(str(raw / f"{prefix}-labels-idx1-ubyte")).numpy()


def _read_cifar(kind: type[tv.CIFAR10], label_key: str, data_dir: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    images, labels = [], []
    for name, _ in kind.train_list if split == "train" else kind.test_list:
        path = data_dir / kind.base_folder / name
        if not path.is_file():
            raise InputError(f"{path}: missing; unpack the python version of {kind.__name__} under {data_dir}")
        with open(path, "rb") as file:
            batch = safe_pickle.read(file, path, encoding="latin1")
        try:
            pixels, classes = np.asarray(batch["data"]), np.asarray(batch[label_key])  # type: ignore[index]
        except (TypeError, KeyError) as error:
            raise InputError(f"{path}: lacks the keys 'data' and {label_key!r}") from error
        if pixels.dtype != np.uint8 or pixels.shape != (len(classes), 3072):
            raise InputError(
                f"{path}: expected uint8 pixels of shape ({len(classes)}, 3072), found {pixels.dtype} {pixels.shape}"
            )
        images.append(pixels.reshape(-1, 3, 32, 32))
        labels.append(classes)
    return np.concatenate(images), np.concatenate(labels)


@dataclass(frozen=True)
class _Source:
    read: Callable[[Path, str], tuple[np.ndarray, np.ndarray]]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


# Per-channel mean and standard deviation of the training pixels in [0, 1].
DATASETS = {
    "mnist": _Source(lambda d, s: _read_idx("MNIST", d, s), 10, (0.1307,), (0.3081,)),
    "fashionmnist": _Source(lambda d, s: _read_idx("FashionMNIST", d, s), 10, (0.2860,), (0.3530,)),
    "cifar10": _Source(
        lambda d, s: _read_cifar(tv.CIFAR10, "labels", d, s), 10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    ),
    "cifar100": _Source(
        lambda d, s: _read_cifar(tv.CIFAR100, "fine_labels", d, s),
        100,
        (0.5071, 0.4866, 0.4409),
        (0.2673, 0.2564, 0.2762),
    ),
}
NORMALIZATIONS = ("unit", "standard")


def load_dataset(
    name: str,
    split: str,
    data_dir: str | Path,
    *,
    index: np.ndarray | None = None,
    normalization: str = "unit",
    image_size: int | None = None,
) -> Dataset:
    """Load examples of a data set from disk; the network is never used.

    Args:
        name: A key of `DATASETS`.
        split: "train" or "test".
        data_dir: Folder that holds the data sets as torchvision lays them out.
        index: Positions of the wanted examples in torchvision's order, shape (N,); all by default.
        normalization: "unit" leaves pixels in [0, 1]; "standard" subtracts the data set's mean and
            divides by its standard deviation, per channel.
        image_size: Resize to this height and width, bilinearly; the native size by default.

    Returns:
        The examples in the order of `index`.

    Raises:
        InputError: An argument is unknown, or a file is missing, truncated or of another content.
    """
    for value, known, what in ((name, DATASETS, "data set"), (split, _SPLITS, "split")):
        if value not in known:
            raise InputError(f"unknown {what} {value!r}; known: {', '.join(known)}")
    if normalization not in NORMALIZATIONS:
        raise InputError(f"unknown normalization {normalization!r}; known: {', '.join(NORMALIZATIONS)}")
    source = DATASETS[name]
    pixels, classes = source.read(Path(data_dir), split)
    if classes.min() < 0 or classes.max() >= source.num_classes:
        raise InputError(f"{data_dir}: {name} {split} has labels outside 0...{source.num_classes - 1}")
    index = np.arange(len(classes)) if index is None else check_index(index, len(classes), f"index of {name} {split}")

    images = torch.from_numpy(pixels[index]).float() / 255
    if image_size is not None and image_size != images.shape[-1]:
        images = F.interpolate(images, size=(image_size, image_size), mode="bilinear", align_corners=False)
    if normalization == "standard":
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (source.mean, source.std))
        images = (images - mean) / std
    return Dataset(
        name=name,
        split=split,
        images=images,
        labels=torch.from_numpy(classes[index].astype(np.int64)),
        index=index,
        num_classes=source.num_classes,
        normalization=normalization,
    )


def dataset_size(name: str, split: str) -> int:
    """Return the number of examples of a split, without reading it."""
    if name not in DATASETS:
        raise InputError(f"unknown data set {name!r}; known: {', '.join(DATASETS)}")
    train = 50_000 if name.startswith("cifar") else 60_000
    return train if split == "train" else 10_000
