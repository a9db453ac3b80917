"""Ensembles in the Feldman-Zhang layout: <root>/<ratio>/<run>/aux_arrays.npz and checkpoints/.

Feldman, Zhang, "What Neural Networks Memorize and Why", NeurIPS 2020, arXiv 2008.03703: every run trains
on a random subset of the data and keeps which examples it saw and whether it classifies each correctly.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from libstore import safe_pickle
from libstore.errors import InputError
from libstore.index import check_index, index_digest
from libstore.recipes import named_by
from libstore.store import read_sidecar

FORMAT = 1
"""To be raised when what a value of these arrays means changes; results of two formats are never mixed."""
TFDS_ORDER = "tfds_order.npz"
"""In an ensemble's root, optional: the TFDS-order positions its arrays use, as positions in torchvision's order."""
_RELEASED = {
    ("cifar10", "small_inception"): "cifar10-inception",
    ("cifar100", "small_inception"): "cifar100-inception",
    ("imagenet", "resnet50"): "imagenet-resnet50",
}
_IN_TFDS_ORDER = ("cifar10-inception", "cifar100-inception")
GROUPS = ("train", "removed", "test")
VALUES = ("correctness", "prob", "logodds")
"""What a run's value on an example may be; a run has the first, and those of the others that its maker knew."""
_LONGEST_NUMBER = 16  # digits of a run's folder
_INDEX_KEYS = tuple(f"index_{group}" for group in GROUPS) + ("subsample_idx",)
_REQUIRED = tuple(f"{kind}_{group}" for kind in ("index", "correctness") for group in GROUPS) + ("subsample_idx",)


@dataclass(frozen=True)
class RunArrays:
    """The arrays of one run, checked against each other.

    Attributes:
        index: Examples of each group ("train", "removed", "test") as positions in the data set, int64.
        correctness: For each group, whether the model classifies the example correctly, aligned with `index`; where
            that is an average, for example over augmentations, a share in [0, 1].
        prob: For each group, the probability of the true label, float32; absent from released runs.
        subsample_idx: The subset that was drawn for training, int64.
        logodds: For each group, ln(p / (1 - p)) of that probability, taken from the logits, float32; absent from
            released runs and those of earlier versions.
    """

    index: dict[str, np.ndarray]
    correctness: dict[str, np.ndarray]
    prob: dict[str, np.ndarray]
    subsample_idx: np.ndarray
    logodds: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def examples(self) -> np.ndarray:
        """All training-split examples of the run's data, seen or removed, sorted."""
        return np.sort(np.concatenate([self.index["train"], self.index["removed"]]))

    def on(self, examples: np.ndarray, value: str = "correctness") -> tuple[np.ndarray, np.ndarray]:
        """Lay a per-example value out on an index.

        Args:
            examples: Sorted positions, shape (N,).
            value: One of `VALUES`.

        Returns:
            in_mask (N,) bool, whether the run trained on the example, and the value, float64 (N,), NaN
            where the run does not have the example.
        """
        values: dict[str, np.ndarray] = getattr(self, value)
        if not values:
            raise InputError(f"the run holds no {value!r} arrays; use correctness")
        size = int(examples[-1]) + 1 if len(examples) else 0
        in_mask, out = np.zeros(size, dtype=bool), np.full(size, np.nan)
        for group in ("train", "removed"):
            inside = self.index[group] < size
            positions = self.index[group][inside]
            out[positions] = values[group][inside]
            in_mask[positions] = group == "train"
        return in_mask[examples], out[examples]

    def recorded(self, examples: np.ndarray) -> dict[str, np.ndarray]:
        """Return all there is of "correctness" and "prob" on sorted positions, as `on` does."""
        return {value: self.on(examples, value)[1] for value in ("correctness", "prob") if getattr(self, value)}

    def to_dict(self) -> dict[str, np.ndarray]:
        """Return the arrays under the names of the layout."""
        named = {"subsample_idx": self.subsample_idx}
        for kind in ("index", *VALUES):
            named |= {f"{kind}_{group}": values for group, values in getattr(self, kind).items()}
        return named


def ensemble_root(fz_model_dir: Path, dataset: str, arch: str) -> Path:
    """Return an ensemble's directory: <dataset>_<arch>, or the name its released download has if that is there."""
    released = fz_model_dir / _RELEASED.get((dataset, arch), f"{dataset}_{arch}")
    return released if released.is_dir() else fz_model_dir / f"{dataset}_{arch}"


@cache
def tfds_order(split: str, size: int) -> np.ndarray:
    """Return the torchvision position of every TFDS position of a CIFAR split, int64 (size,).

    TensorFlow Datasets shuffles what it writes by the MD5 of the split's name followed by the key, in CIFAR the
    decimal position.
    """
    digests = [hashlib.md5(f"{split}{position}".encode(), usedforsecurity=False).digest() for position in range(size)]
    order = np.array(sorted(range(size), key=digests.__getitem__), dtype=np.int64)
    order.setflags(write=False)
    return order


def read_tfds_order(root: Path) -> dict[str, np.ndarray] | None:
    """Return, for "train" and "test", the torchvision position of every TFDS position, or None if there is no map.

    Raises:
        InputError: The map (made by libdata.tfds_order) is damaged.
    """
    path = root / TFDS_ORDER
    if not path.exists():
        return None
    order = safe_pickle.load_npz(path, ("train", "test"))
    return {split: check_index(array, len(array), f"{path}: {split}") for split, array in order.items()}


def list_ratios(root: Path) -> list[str]:
    """List the ratios of an ensemble that are there, sorted: the names of its sub-folders that are numbers.

    Raises:
        InputError: There is none.
    """
    ratios = (
        sorted(path.name for path in root.iterdir() if path.name.replace(".", "", 1).isdecimal())
        if root.is_dir()
        else []
    )
    if not ratios:
        reason = "no such ensemble (no folders such as 0.7); correct fz_model_dir"
        raise InputError(f"{root}: {reason}{_listed(root.parent)}")
    return ratios


def _listed(fz_models: Path) -> str:
    """Say which ensembles are in a folder, each with the flags that name it."""
    found = []
    for folder in sorted(fz_models.glob("*/*/")):
        runs = list(folder.glob("*/aux_arrays.npz"))
        released = [kind for kind, name in _RELEASED.items() if name == folder.parent.name]
        try:
            if released:
                settings: dict[str, Any] = {"data": {"dataset": released[0][0]}, "model": {"arch": released[0][1]}}
            else:
                settings = read_sidecar(runs[0])["settings"] if runs else {}
            flags = named_by(settings, ratio=folder.name) if runs else ""
        except (InputError, KeyError, TypeError):
            continue
        if runs:
            found.append(f"{len(runs)} runs by {flags}")
    return f"; there are: {', '.join(found)}" if found else ""


def run_dir(root: Path, ratio: str, run: int) -> Path:
    """Return the directory of one run: its number, also with zeros before it if such a folder is there.

    Raises:
        InputError: Two folders have that number.
    """
    folder = root / ratio
    names = dict.fromkeys(str(run).zfill(width) for width in range(1, _LONGEST_NUMBER + 1))
    found = [folder / name for name in names if os.path.isdir(f"{folder}/{name}")]
    if len(found) > 1:
        raise InputError(f"{found[0]} and {found[1]}: two folders of run {run}; move one of them away")
    return found[0] if found else folder / str(run)


def list_runs(root: Path, ratio: str, start: int, stop: int | None) -> list[int]:
    """List the runs of an ensemble that are there, with start <= run < stop, in order.

    Raises:
        InputError: There is no run in that range, two folders are the same run, or a folder that holds a run is not
            named by a number.
    """
    folder = root / ratio
    if not folder.is_dir():
        remedy = "train it with train_fz_models.py or correct fz_model_dir"
        raise InputError(f"{folder}: no such ensemble; {remedy}{_listed(root.parent)}")
    finished = sorted(path for path in folder.iterdir() if (path / "aux_arrays.npz").exists())
    for path in finished:
        if not (path.name.isascii() and path.name.isdecimal() and len(path.name) <= _LONGEST_NUMBER):
            raise InputError(
                f"{path}: holds aux_arrays.npz, but its name is no run's number; rename it or move it away"
            )
    runs = sorted({int(path.name) for path in finished})
    runs = [run for run in runs if run >= start and (stop is None or run < stop)]
    for run in runs:
        run_dir(root, ratio, run)
    if not runs:
        raise InputError(
            f"{folder}: no finished run (a directory with aux_arrays.npz) from {start} to {stop or 'the last'}"
        )
    return runs


def read_runs(root: Path, ratio: str, runs: Iterable[int], size: int | None = None) -> Iterator[RunArrays]:
    """Read runs of one ensemble, one at a time.

    Args:
        root: The ensemble's directory.
        ratio: The ratio's folder.
        runs: Their numbers.
        size: Number of examples of the data set's training split, if known.

    Raises:
        InputError: A run is refused by `read_run`, is about other examples than the first one, or is a copy of
            another: such runs are not a random sample.
    """
    seen: dict[str, Path] = {}
    first: tuple[Path, str] | None = None
    for run in runs:
        folder = run_dir(root, ratio, run)
        arrays = read_run(folder, size)
        content = hashlib.sha256()
        for key, values in sorted(arrays.to_dict().items()):
            content.update(f"{key} {values.dtype}".encode() + np.ascontiguousarray(values).tobytes())
        twin = seen.setdefault(content.hexdigest(), folder)
        if twin != folder:
            raise InputError(f"{folder}: holds the same run as {twin}; a run counts once, move one of them away")
        digest = index_digest(arrays.examples)
        first = first or (folder, digest)
        if digest != first[1]:
            raise InputError(
                f"{folder}: the examples in its index_train and index_removed, {len(arrays.examples)} of them, are not "
                f"those of {first[0]}; every run of an ensemble needs a result for every example"
            )
        yield arrays


def read_run(directory: Path, size: int | None = None) -> RunArrays:
    """Read and check one run's aux_arrays.npz; positions come out in torchvision's order.

    Positions are translated in released CIFAR ensembles, known by the name of their root, and where the root holds
    a TFDS order map. Positions may be whole numbers of any type, arrays may be columns.

    Args:
        directory: The run's directory.
        size: Number of examples of the data set's training split, if known.

    Raises:
        InputError: The file is missing, damaged, lacks a key, holds pickled objects, an array has the wrong type,
            length or range, or arrays contradict each other; the message names the file, key and value.
    """
    path = directory / "aux_arrays.npz"
    arrays = safe_pickle.load_npz(path)
    for key in _REQUIRED:
        if key not in arrays:
            raise InputError(f"{path}: key {key!r} is missing; it holds {', '.join(sorted(arrays)) or 'nothing'}")
    index = {key: _positions(path, key, arrays[key]) for key in _INDEX_KEYS}
    values: dict[str, dict[str, np.ndarray]] = {}
    for kind in VALUES:
        keys = {group: f"{kind}_{group}" for group in GROUPS}
        there = [key for key in keys.values() if key in arrays]
        if there and len(there) < len(GROUPS):
            raise InputError(f"{path}: has {there[0]!r} but not all of {', '.join(keys.values())}")
        values[kind] = {
            group: _numbers(path, key, arrays, len(index[f"index_{group}"]), shares=kind != "logodds")
            for group, key in keys.items()
            if there
        }
    _check_groups(path, index, size)
    _translate(path, index)
    return RunArrays(
        index={group: index[f"index_{group}"] for group in GROUPS},
        subsample_idx=index["subsample_idx"],
        **values,
    )


def _vector(path: Path, key: str, array: np.ndarray) -> np.ndarray:
    if array.ndim == 2 and 1 in array.shape:
        array = array.ravel()
    if array.ndim != 1:
        raise InputError(f"{path}: key {key!r} should be one-dimensional, found shape {array.shape}")
    return array


def _positions(path: Path, key: str, array: np.ndarray) -> np.ndarray:
    array = _vector(path, key, array)
    if array.dtype.kind == "b":
        raise InputError(f"{path}: key {key!r} is a mask of {len(array)}; give the positions where it is true")
    if array.dtype.kind not in "iuf":
        raise InputError(f"{path}: key {key!r} should hold whole numbers, found {array.dtype}")
    whole = (array == np.floor(array)) & (np.abs(array.astype(np.float64)) < 2**53)
    if not whole.all():
        raise InputError(f"{path}: key {key!r} should hold whole numbers, found {array[~whole][0]}")
    array = array.astype(np.int64)
    if array.size and array.min() < 0:
        raise InputError(f"{path}: key {key!r} holds the negative position {array.min()}")
    ordered = np.sort(array)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if twice.size:
        raise InputError(f"{path}: key {key!r} holds a position twice, {twice[0]}")
    return array


def _numbers(path: Path, key: str, arrays: dict[str, np.ndarray], expected: int, *, shares: bool) -> np.ndarray:
    """Return a group's values, which are from 0 to 1 if they are shares, else finite."""
    array, wanted = _vector(path, key, arrays[key]), "values from 0 to 1" if shares else "finite numbers"
    if len(array) != expected:
        raise InputError(f"{path}: key {key!r} has {len(array)} values for {expected} examples")
    if array.dtype.kind not in "biuf":
        raise InputError(f"{path}: key {key!r} should hold {wanted}, found {array.dtype}")
    wrong = np.flatnonzero(~((array >= 0) & (array <= 1) if shares else np.isfinite(array)))
    if wrong.size:
        raise InputError(f"{path}: key {key!r} should hold {wanted}, found {array[wrong[0]]} at {wrong[0]}")
    return array


def _check_groups(path: Path, index: dict[str, np.ndarray], size: int | None) -> None:
    """Check the positions of a run against each other and the size of the training split."""
    train, subset = np.sort(index["index_train"]), np.sort(index["subsample_idx"])
    examples = np.sort(np.concatenate([train, index["index_removed"]]))
    both = examples[1:][examples[1:] == examples[:-1]]
    if both.size:
        raise InputError(f"{path}: example {both[0]} is in both index_train and index_removed")
    if not np.array_equal(train, subset):
        strange = np.setxor1d(train, subset)[0]
        only = "index_train" if strange in train else "subsample_idx"
        raise InputError(
            f"{path}: keys 'subsample_idx' and 'index_train' differ, example {strange} is only in {only!r}: they are "
            "of two runs, or train and removed are exchanged"
        )
    if size is not None and examples.size and examples[-1] >= size:
        key = "index_train" if examples[-1] in train else "index_removed"
        raise InputError(f"{path}: key {key!r} holds {examples[-1]}, the data set has {size} examples, from 0")
    for keys, positions in (("index_train and index_removed", examples), ("index_test", np.sort(index["index_test"]))):
        from_one = len(positions) > 1 and positions[0] == 1 and positions[-1] == len(positions)
        if from_one and not path.with_suffix(".json").exists():  # with a sidecar of ours they are meant so
            raise InputError(f"{path}: the positions in {keys} run from 1 to {len(positions)}; count them from 0")


def _translate(path: Path, index: dict[str, np.ndarray]) -> None:
    """Turn TFDS's positions into torchvision's, in place, for a run of an ensemble that uses them."""
    root = path.parent.parent.parent
    order = read_tfds_order(root)
    if order is None:
        if root.name not in _IN_TFDS_ORDER:
            return
        sizes = {"train": len(index["index_train"]) + len(index["index_removed"]), "test": len(index["index_test"])}
        order = {split: tfds_order(split, size) for split, size in sizes.items()}
    for key, positions in index.items():
        places = order["test" if key == "index_test" else "train"]
        if positions.size and positions.max() >= len(places):
            raise InputError(f"{path}: key {key!r} holds {positions.max()}, the order map {len(places)} positions")
        index[key] = places[positions]
