"""Ensembles in the Feldman-Zhang layout: <root>/<ratio>/<run>/aux_arrays.npz and checkpoints/.

Feldman, Zhang, "What Neural Networks Memorize and Why", NeurIPS 2020, arXiv 2008.03703: every run trains
on a random subset of the data and keeps which examples it saw and whether it classifies each correctly.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from libdata import safe_pickle
from libdata.errors import InputError
from libdata.index import check_index

FORMAT = 1
"""To be raised when what a value of these arrays means changes; results of two formats are never mixed."""
TFDS_ORDER = "tfds_order.npz"
"""In an ensemble's root: the TFDS-order positions its arrays use, as positions in torchvision's order."""
_RELEASED = {
    ("cifar10", "small_inception"): "cifar10-inception",
    ("cifar100", "small_inception"): "cifar100-inception",
    ("imagenet", "resnet50"): "imagenet-resnet50",
}
GROUPS = ("train", "removed", "test")
_INDEX_KEYS = tuple(f"index_{group}" for group in GROUPS) + ("subsample_idx",)
_REQUIRED = tuple(f"{kind}_{group}" for kind in ("index", "correctness") for group in GROUPS) + ("subsample_idx",)


@dataclass(frozen=True)
class RunArrays:
    """The arrays of one run, checked against each other.

    Attributes:
        index: Examples of each group ("train", "removed", "test") as positions in the data set, int64.
        correctness: For each group, whether the model classifies the example correctly, bool, aligned with `index`.
        prob: For each group, the probability of the true label, float32; absent from released runs.
        subsample_idx: The subset that was drawn for training, int64.
    """

    index: dict[str, np.ndarray]
    correctness: dict[str, np.ndarray]
    prob: dict[str, np.ndarray]
    subsample_idx: np.ndarray

    @property
    def examples(self) -> np.ndarray:
        """All training-split examples of the run's data, seen or removed, sorted."""
        return np.sort(np.concatenate([self.index["train"], self.index["removed"]]))

    def on(self, examples: np.ndarray, value: str = "correctness") -> tuple[np.ndarray, np.ndarray]:
        """Lay a per-example value out on an index.

        Args:
            examples: Sorted positions, shape (N,).
            value: "correctness" or "prob".

        Returns:
            in_mask (N,) bool, whether the run trained on the example, and the value, float64 (N,), NaN
            where the run does not have the example.
        """
        values = {"correctness": self.correctness, "prob": self.prob}[value]
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

    def to_dict(self) -> dict[str, np.ndarray]:
        """Return the arrays under the names of the layout."""
        named = {"subsample_idx": self.subsample_idx}
        for kind, groups in (("index", self.index), ("correctness", self.correctness), ("prob", self.prob)):
            named |= {f"{kind}_{group}": values for group, values in groups.items()}
        return named


def ensemble_root(fz_model_dir: Path, dataset: str, arch: str) -> Path:
    """Return an ensemble's directory: <dataset>_<arch>, or the name its released download has if that is there."""
    released = fz_model_dir / _RELEASED.get((dataset, arch), f"{dataset}_{arch}")
    return released if released.is_dir() else fz_model_dir / f"{dataset}_{arch}"


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
        raise InputError(f"{root}: no such ensemble (no folders such as 0.7); correct fz_model_dir")
    return ratios


def run_dir(root: Path, ratio: str, run: int) -> Path:
    """Return the directory of one run."""
    return root / ratio / str(run)


def list_runs(root: Path, ratio: str, start: int, stop: int | None) -> list[int]:
    """List the runs of an ensemble that are there, with start <= run < stop, in order.

    Raises:
        InputError: There is no run in that range.
    """
    folder = root / ratio
    if not folder.is_dir():
        raise InputError(f"{folder}: no such ensemble; train it with train_fz_models.py or correct fz_model_dir")
    runs = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
    runs = [
        run
        for run in runs
        if run >= start and (stop is None or run < stop) and (folder / str(run) / "aux_arrays.npz").exists()
    ]
    if not runs:
        raise InputError(
            f"{folder}: no finished run (a directory with aux_arrays.npz) from {start} to {stop or 'the last'}"
        )
    return runs


def read_run(directory: Path) -> RunArrays:
    """Read and check one run's aux_arrays.npz; positions come out in torchvision's order.

    Positions are translated if the ensemble's root holds a TFDS order map, as released CIFAR ensembles need.

    Raises:
        InputError: The file is missing, damaged, lacks a key, holds pickled objects, or an array has the
            wrong type, length or range; the message names the file, key and value.
    """
    path = directory / "aux_arrays.npz"
    arrays = safe_pickle.load_npz(path)
    for key in _REQUIRED:
        if key not in arrays:
            raise InputError(f"{path}: key {key!r} is missing; it holds {', '.join(sorted(arrays)) or 'nothing'}")
    for key, array in arrays.items():
        if array.ndim != 1:
            raise InputError(f"{path}: key {key!r} should be one-dimensional, found shape {array.shape}")
        if key in _INDEX_KEYS:
            _check_positions(path, key, array)
    prob_keys = [f"prob_{group}" for group in GROUPS if f"prob_{group}" in arrays]
    if prob_keys and len(prob_keys) < len(GROUPS):
        raise InputError(f"{path}: has {prob_keys[0]!r} but not all of prob_train, prob_removed, prob_test")
    for kind in ("correctness", *(["prob"] if prob_keys else [])):
        for group in GROUPS:
            key, values = f"{kind}_{group}", arrays[f"{kind}_{group}"]
            expected = len(arrays[f"index_{group}"])
            if len(values) != expected:
                raise InputError(f"{path}: key {key!r} has {len(values)} values for {expected} examples")
            if values.dtype.kind not in "biuf" or (values.size and not (values.min() >= 0 and values.max() <= 1)):
                raise InputError(f"{path}: key {key!r} should hold values from 0 to 1")
    both = arrays["index_train"][np.isin(arrays["index_train"], arrays["index_removed"])]
    if both.size:
        raise InputError(f"{path}: example {both[0]} is in both index_train and index_removed")
    order = read_tfds_order(directory.parent.parent)
    if order is not None:
        for key in _INDEX_KEYS:
            positions = order["test" if key == "index_test" else "train"]
            if arrays[key].size and arrays[key].max() >= len(positions):
                raise InputError(
                    f"{path}: key {key!r} holds {arrays[key].max()}, the order map {len(positions)} positions"
                )
            arrays[key] = positions[arrays[key]]
    return RunArrays(
        index={group: arrays[f"index_{group}"].astype(np.int64) for group in GROUPS},
        correctness={group: arrays[f"correctness_{group}"].astype(bool) for group in GROUPS},
        prob={group: arrays[f"prob_{group}"] for group in GROUPS} if prob_keys else {},
        subsample_idx=arrays["subsample_idx"].astype(np.int64),
    )


def _check_positions(path: Path, key: str, array: np.ndarray) -> None:
    if array.dtype.kind not in "iu":
        raise InputError(f"{path}: key {key!r} should hold whole numbers, found {array.dtype}")
    if array.size and array.min() < 0:
        raise InputError(f"{path}: key {key!r} holds the negative position {array.min()}")
    ordered = np.sort(array)
    if (ordered[1:] == ordered[:-1]).any():
        raise InputError(f"{path}: key {key!r} holds a position twice")
