"""The data sets behind one function: built in, or the user's own; each split is one tensor, already normalised."""

from __future__ import annotations

import libcli as cli

import hashlib
import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from libdata.choice import NORMALIZATIONS, DataChoice
from libdata.own_data import OwnData, content_digest, form_of, moments, own_name, own_size, read_own
from libstore import safe_pickle
from libstore.errors import InputError
from libstore.index import check_index, index_digest

if TYPE_CHECKING:
    import torch

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
# MD5 of the python versions' files, from torchvision 0.29.1 (train_list, test_list and meta of CIFAR10 and CIFAR100).
CIFAR_MD5 = {
    "cifar-10-batches-py": {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    },
    "cifar-100-python": {
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48",
    },
}
_SPLITS = ("train", "test")


@dataclass(frozen=True)
class Dataset:
    """Examples of one split, in memory.

    Attributes:
        name: Name of the data set in names on disk.
        split: "train" or "test".
        images: Normalised inputs, float32, shape (N, ...): images (N, C, H, W), tables (N, d); token ids are int64.
        labels: Classes, int64, shape (N,).
        index: Positions of the N examples in the split's own order (torchvision's), int64, shape (N,).
        num_classes: Number of classes of the whole data set.
        normalization: "unit" (uint8 scaled to [0, 1], floating point as it is) or "standard" (mean 0, deviation 1 on
            the training split, per channel of images and per column of tables). Token ids are left alone by both.
        split_size: Number of examples of the whole split.
        content_sha256: Digest of the whole data set, both splits, before normalisation.
        class_names: What the classes are called, by label; empty where they have no names.
    """

    name: str
    split: str
    images: torch.Tensor
    labels: torch.Tensor
    index: np.ndarray
    num_classes: int
    normalization: str
    split_size: int
    content_sha256: str
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def in_channels(self) -> int:
        """Number of channels of an image, or of columns of a table."""
        return self.images.shape[1]

    def class_name(self, label: int) -> str:
        """Return what a class is called, its number where it has no name."""
        return self.class_names[label] if self.class_names else str(label)

    def identity(self) -> dict[str, object]:
        """Return what a sidecar says of the data: name, content, split, size, index digest, pixels."""
        return {
            "content_sha256": self.content_sha256,
            "dataset": self.name,
            "split": self.split,
            "n_examples": len(self),
            "index_sha256": index_digest(self.index),
            "image_size": self.images.shape[-1],
            "normalization": self.normalization,
        }


def _verified(path: Path, digest: str, kind: str, hint: str) -> bytes:
    """Read a file and check its digest, of a kind that hashlib knows."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: missing; {hint}") from error
    if hashlib.new(kind, content, usedforsecurity=False).hexdigest() != digest:
        name = {"sha256": "SHA-256", "md5": "MD5"}[kind]
        own = "; other data under this name are given as data of your own"
        raise InputError(f"{path}: corrupt, its {name} is not {digest}; delete it and download it again{own}")
    return content


def _idx_array(content: bytes, path: Path) -> np.ndarray:
    """Decode an idx file of bytes: two zeros, type 8, rank, big-endian sizes, values."""
    try:
        if content[:3] != bytes([0, 0, 8]):
            raise ValueError("it does not begin with 0 0 8")
        rank = content[3]
        shape = np.frombuffer(content, ">u4", rank, offset=4).astype(np.int64)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)
    except (ValueError, IndexError) as error:
        raise InputError(f"{path}: not an idx file of bytes: {error}") from error


def _read_idx(folder: str, data_dir: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    raw = data_dir / folder / "raw"
    prefix = {"train": "train", "test": "t10k"}[split]
    hint = f"fetch it with: python -m libdata.download {folder.lower()}"
    arrays = []
    for name in (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"):
        content = _verified(raw / name, IDX_SHA256[folder][name], "sha256", hint)
        arrays.append(_idx_array(content, raw / name))
    return arrays[0][:, None], arrays[1]


def _read_cifar(folder: str, label_key: str, data_dir: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    images, labels = [], []
    dataset = {"cifar-10-batches-py": "cifar10", "cifar-100-python": "cifar100"}[folder]
    hint = f"unpack the python version of {dataset} under {data_dir}, or: python -m libdata.download {dataset}"
    for name, digest in CIFAR_MD5[folder].items():
        if "meta" in name or ("test" in name) != (split == "test"):
            continue
        path = (data_dir if data_dir.name == folder else data_dir / folder) / name
        content = _verified(path, digest, "md5", hint)
        batch = safe_pickle.read(io.BytesIO(content), path, encoding="latin1")
        try:
            pixels, classes = np.asarray(batch["data"]), np.asarray(batch[label_key])  # type: ignore[index]
        except (TypeError, KeyError) as error:
            raise InputError(f"{path}: lacks the keys 'data' and {label_key!r}") from error
        if pixels.dtype != np.uint8 or pixels.shape != (len(classes), 3072):
            raise InputError(
                f"{path}: expected uint8 pixels of shape ({len(classes)}, 3072), found {pixels.dtype} {pixels.shape}"
            )
        if classes.dtype.kind not in "iu":
            raise InputError(f"{path}: key {label_key!r} should hold whole numbers, found {classes.dtype}")
        images.append(pixels.reshape(-1, 3, 32, 32))
        labels.append(classes)
    return np.concatenate(images), np.concatenate(labels)


@dataclass(frozen=True)
class _Source:
    """A built-in data set: how to read a split, what is known of it, and the digests that its files must have."""

    read: Callable[[Path, str], tuple[np.ndarray, np.ndarray]]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sizes: Mapping[str, int] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)


_SIXTY, _FIFTY = {"train": 60_000, "test": 10_000}, {"train": 50_000, "test": 10_000}
_CIFAR10, _CIFAR100 = CIFAR_MD5
# Per-channel mean and standard deviation of the training pixels in [0, 1].
DATASETS = {
    "mnist": _Source(lambda d, s: _read_idx("MNIST", d, s), 10, (0.1307,), (0.3081,), _SIXTY, IDX_SHA256["MNIST"]),
    "fashionmnist": _Source(
        lambda d, s: _read_idx("FashionMNIST", d, s), 10, (0.2860,), (0.3530,), _SIXTY, IDX_SHA256["FashionMNIST"]
    ),
    "cifar10": _Source(
        lambda d, s: _read_cifar(_CIFAR10, "labels", d, s),
        10,
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
        _FIFTY,
        CIFAR_MD5[_CIFAR10],
    ),
    "cifar100": _Source(
        lambda d, s: _read_cifar(_CIFAR100, "fine_labels", d, s),
        100,
        (0.5071, 0.4866, 0.4409),
        (0.2673, 0.2564, 0.2762),
        _FIFTY,
        CIFAR_MD5[_CIFAR100],
    ),
}


def dataset_name(name: str, override: str | None = None) -> str:
    """Return what a data set is called in names on disk: built-in ones by their name, own ones by theirs.

    Args:
        name: As for `load_dataset`.
        override: What the user wants it to be called.

    Raises:
        InputError: Data of one's own would bear the name of built-in ones, or the name would hold more than
            letters, digits and _ . = + -.
    """
    if name in DATASETS and override in (None, name):
        return name
    _check_known(name)
    called = own_name(name) if override is None else override
    if not re.fullmatch(r"[A-Za-z0-9_=+-][A-Za-z0-9_.=+-]*", called):
        raise InputError(f"data set name {called!r} is not made of letters, digits and _ . = + -, not led by a dot")
    if called in (*DATASETS, "imagenet"):
        raise InputError(f"{name}: {called!r} is the name of a built-in data set; give these data another name")
    return called


def dataset_size(name: str, split: str, data_dir: str | Path) -> int:
    """Return the number of examples of a split; built-in ones are not read, of own ones as little as will do.

    Args:
        name: As for `load_dataset`.
        split: "train" or "test".
        data_dir: Folder of the built-in data sets.

    Raises:
        InputError: The name is unknown, or what it names cannot be read.
    """
    _check_known(name, split)
    if name not in DATASETS:
        return own_size(name, split)
    source = DATASETS[name]
    return source.sizes[split] if source.sizes else len(source.read(Path(data_dir), split)[1])


def load_dataset(
    name: str,
    split: str,
    data_dir: str | Path,
    *,
    index: np.ndarray | None = None,
    normalization: str = "unit",
    image_size: int | None = None,
    tokens: bool = False,
    name_on_disk: str | None = None,
) -> Dataset:
    """Load examples of a data set; the network is never used.

    Args:
        name: A key of `DATASETS`, or data of one's own as `libdata.own_data.read_own` takes them.
        split: "train" or "test".
        data_dir: Folder that holds the built-in data sets as torchvision lays them out.
        index: Positions of the wanted examples in the split's order, shape (N,); all by default.
        normalization: "unit" scales uint8 to [0, 1] and leaves floating point as it is; "standard" then subtracts the
            training split's mean and divides by its standard deviation, per channel of images, per column of tables,
            over everything for other shapes; a deviation of 0 counts as 1.
        image_size: Resize images to this height and width, bilinearly; the native size by default.
        tokens: Inputs are token ids: any integers, never normalised.
        name_on_disk: What data of one's own are called, `dataset_name(name)` by default.

    Returns:
        The examples in the order of `index`.

    Raises:
        InputError: An argument is unknown, or a file is missing, truncated or of another content.
    """
    import torch
    import torch.nn.functional as F

    _check_known(name, split)
    if normalization not in NORMALIZATIONS:
        raise InputError(f"unknown normalization {normalization!r}; known: {', '.join(NORMALIZATIONS)}")
    called = dataset_name(name, name_on_disk)
    if name in DATASETS:
        if tokens:
            raise InputError(f"{name}: holds images, no token ids")
        source = DATASETS[name]
        pixels, classes = source.read(Path(data_dir), split)
        num_classes, digest = source.num_classes, _source_digest(source, Path(data_dir))
        if classes.min() < 0 or classes.max() >= num_classes:
            raise InputError(f"{data_dir}: {name} {split} has labels outside 0...{num_classes - 1}")
    else:
        own = read_own(name, image_size=image_size, tokens=tokens)
        pixels, classes, num_classes, digest = own.inputs[split], own.labels[split], own.num_classes, own.sha256
    index = np.arange(len(classes)) if index is None else check_index(index, len(classes), f"index of {name} {split}")

    images = torch.from_numpy(np.ascontiguousarray(pixels[index]))
    if images.ndim == 4 and images.shape[1] == 1:  # the stride of one channel is free, but decides PyTorch's layout
        images = images[:, 0, None]
    if not tokens:
        images = images.float() / 255 if pixels.dtype == np.uint8 else images.float()
    if image_size is not None and images.shape[1:] != (images.shape[1], image_size, image_size):
        if images.ndim != 4 or tokens:
            raise InputError(
                f"{name}: an example has shape {tuple(images.shape[1:])}, which is no image that could be resized to "
                f"{image_size} x {image_size} as the network needs"
            )
        images = F.interpolate(images, size=(image_size, image_size), mode="bilinear", align_corners=False)
    if normalization == "standard" and not tokens:
        if name in DATASETS:
            mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (source.mean, source.std))
        else:
            mean, std = _measured(own)
        images = (images - mean) / std
    return Dataset(
        name=called,
        split=split,
        images=images,
        labels=torch.from_numpy(classes[index].astype(np.int64)),
        index=index,
        num_classes=num_classes,
        normalization=normalization,
        split_size=len(classes),
        content_sha256=digest,
        class_names=() if name in DATASETS else own.class_names,
    )


def load_splits(
    choice: DataChoice,
    data_dir: str | Path,
    index: np.ndarray | None = None,
    normalization: str = "unit",
    image_size: int | None = None,
) -> tuple[Dataset, Callable[[], Dataset], int | None]:
    """Load the data of a user's choice for a network.

    Args:
        choice: The choice.
        data_dir: Folder of the built-in data sets.
        index: Positions of the wanted training examples; all by default.
        normalization: As for `load_dataset`.
        image_size: Height and width that the network needs, None for any.

    Returns:
        The training examples, what loads the whole test split likewise, and what images were resized to, None for
        their own size.

    Raises:
        InputError: As `load_dataset`; the choice is another image size than the network needs; all examples are of
            one class.
    """
    if image_size is not None and choice.image_size not in (None, image_size):
        raise InputError(f"--image_size {choice.image_size}: the network needs {image_size} x {image_size}")
    size = image_size or choice.image_size
    arguments = choice.arguments() | {"normalization": normalization, "image_size": size}
    data = load_dataset(choice.dataset, "train", data_dir, index=index, **arguments)
    held = len(data.labels.unique())
    if held < data.num_classes and len(data) < data.split_size:
        found = f"the {len(data)} examples of the study hold {held} of {data.num_classes} classes of {data.name}"
        advice = "where data are sorted by class, spread:N takes N at even distances"
        if held == 1:
            raise InputError(f"{found}; {advice}")
        cli.warn(f"{found}; {advice}")
    return data, partial(load_dataset, choice.dataset, "test", data_dir, **arguments), size


def check_same_content(data: Dataset, kept: Mapping[str, Any], where: str | Path) -> None:
    """Refuse results that were made on other data than those that are there now.

    Args:
        data: The data.
        kept: What the results' sidecar says of theirs, `Dataset.identity()`.
        where: The results.

    Raises:
        InputError: The content was another, or was not recorded.
    """
    there = kept.get("content_sha256")
    if there != data.content_sha256:
        made = "without a record of its data's content" if there is None else f"on other data (SHA-256 {there[:16]}...)"
        now = f"{data.name} is {data.content_sha256[:16]}... now"
        other = "" if data.name in DATASETS else f", or give other data another --dataset_name than {data.name}"
        raise InputError(f"{where}: made {made}, {now}; put the data back, or train again with --overwrite{other}")


def _check_known(name: str, split: str = "train") -> None:
    if name not in DATASETS and form_of(name) is None:
        own = "or a .npz file, a folder with train/ and test/, package.module:function, path/to/file.py:function"
        raise InputError(f"unknown data set {name!r}; known: {', '.join(DATASETS)}, {own}")
    if split not in _SPLITS:
        raise InputError(f"unknown split {split!r}; known: {', '.join(_SPLITS)}")


def _source_digest(source: _Source, data_dir: Path) -> str:
    """Digest a built-in data set by the digests of its files, which every reading verifies."""
    if source.digests:
        return hashlib.sha256(json.dumps(dict(source.digests), sort_keys=True).encode()).hexdigest()
    return content_digest([array for split in _SPLITS for array in source.read(data_dir, split)])


@lru_cache(maxsize=1)
def _measured(own: OwnData) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and deviation of the training inputs as they are after scaling, float32; 1 for a deviation of 0."""
    import torch

    scale = 255 if own.inputs["train"].dtype == np.uint8 else 1
    mean, std = (values / scale for values in moments(own.inputs["train"]))
    std = np.where(std > 1e-7 * np.abs(mean), std, 1.0)
    return torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(std.astype(np.float32))
