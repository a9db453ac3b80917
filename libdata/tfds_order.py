"""Check TFDS's order of CIFAR against torchvision's by image content: python -m libdata.tfds_order cifar100 FOLDER.

Feldman and Zhang's CIFAR ensembles count examples in the order of TensorFlow Datasets, which readers compute
(libstore.fz.tfds_order); this is for those who have a copy. FOLDER is a data set that TFDS prepared
(cifar100-train.tfrecord-00000-of-00001 and -test), torchvision's copy is read from data_dir. Says where the computed
order differs from the copy's, and writes the latter as tfds_order.npz into the ensemble's directory under
fz_model_dir, where every reader of the ensemble takes it instead.
"""

from __future__ import annotations

import libcli as cli

import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from libdata.datasets import load_dataset
from libdata.indexed_tfrecords import decode_example, read_records
from libstore import safe_pickle
from libstore.config import load_config
from libstore.errors import InputError
from libstore.fz import TFDS_ORDER, ensemble_root, tfds_order
from libstore.store import Output, arrays_bytes, exclusive, file_sha256, provenance


def match_images(
    images: np.ndarray, labels: np.ndarray, other_images: np.ndarray, other_labels: np.ndarray
) -> tuple[np.ndarray, int, int]:
    """Find every image of one ordering in another by its pixels.

    Identical images are told apart by their label, and those of one label by position: the k-th of them in
    one order is the k-th in the other.

    Args:
        images: First ordering, uint8, shape (N, ...).
        labels: Its classes, shape (N,).
        other_images: Second ordering, uint8, shape (N, ...).
        other_labels: Its classes, shape (N,).

    Returns:
        The position in the first ordering of each image of the second, int64 (N,); the number of images that
        have a twin and are told apart by their label; the number told apart by position.

    Raises:
        InputError: The two do not hold the same images with the same labels.
    """
    if images.shape != other_images.shape:
        raise InputError(
            f"{len(images)} images of shape {images.shape[1:]} and {len(other_images)} of {other_images.shape[1:]}"
        )
    places: dict[bytes, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for position, (image, label) in enumerate(zip(images, labels, strict=True)):
        places[image.tobytes()][int(label)].append(position)
    groups = [classes for classes in places.values() if sum(map(len, classes.values())) > 1]
    by_position = sum(len(twins) for classes in groups for twins in classes.values() if len(twins) > 1)
    by_label = sum(len(twins) for classes in groups for twins in classes.values()) - by_position
    order = np.empty(len(images), dtype=np.int64)
    for position, (image, label) in enumerate(zip(other_images, other_labels, strict=True)):
        twins = places.get(image.tobytes(), {}).get(int(label))
        if not twins:
            raise InputError(f"image {position} with label {label} of the second ordering is not in the first")
        order[position] = twins.pop(0)
    return order, by_label, by_position


def read_tfds(folder: Path, dataset: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read a CIFAR split that TFDS prepared, in TFDS's order.

    Returns:
        Pixels uint8 (N, 3, 32, 32) and classes int64 (N,).

    Raises:
        InputError: It is not one TFRecord file, or a record does not hold an image and a label.
    """
    paths = sorted(folder.glob(f"{dataset}-{split}.tfrecord-*"))
    if len(paths) != 1:
        raise InputError(f"{folder}: expected one file {dataset}-{split}.tfrecord-00000-of-00001, found {len(paths)}")
    images, labels = [], []
    for number, payload in enumerate(read_records(paths[0])):
        where = f"{paths[0]}: record {number}"
        values = decode_example(payload, ("image", "label"), where)
        try:
            images.append(np.asarray(Image.open(io.BytesIO(values["image"])).convert("RGB")).transpose(2, 0, 1))
        except (OSError, TypeError, SyntaxError) as error:
            raise InputError(f"{where}: the image does not decode: {error}") from error
        labels.append(values["label"])
    if not images or len({image.shape for image in images}) > 1:
        raise InputError(f"{paths[0]}: expected images of one size")
    return np.stack(images), np.array(labels, dtype=np.int64)


def read_cifar_memorization(path: Path, labels: np.ndarray, order: dict[str, np.ndarray] | None) -> np.ndarray:
    """Read the memorization in the released cifar100_infl_matrix.npz, in torchvision's order.

    The file's own labels tell which order it is in.

    Args:
        path: The file, with `tr_mem` and `tr_labels`.
        labels: Classes of the training split in torchvision's order, shape (N,).
        order: The map that `libstore.fz.read_tfds_order` returns; without one TFDS's order is computed.

    Returns:
        Memorization of each training example, float64 (N,).

    Raises:
        InputError: The file is damaged, or its labels are in neither order.
    """
    scores = safe_pickle.load_npz(path, ("tr_mem", "tr_labels"))
    memorization, theirs = scores["tr_mem"].astype(np.float64), scores["tr_labels"]
    if memorization.shape != labels.shape or theirs.shape != labels.shape:
        raise InputError(
            f"{path}: 'tr_mem' {memorization.shape} and 'tr_labels' {theirs.shape} for {len(labels)} examples"
        )
    if np.array_equal(theirs, labels):
        return memorization
    places = tfds_order("train", len(labels)) if order is None else order["train"]
    if not np.array_equal(theirs, labels[places]):
        other = "TFDS's" if order is None else "the order map's"
        raise InputError(f"{path}: 'tr_labels' are in neither torchvision's order nor {other}")
    result = np.empty_like(memorization)
    result[places] = memorization
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Build the map of both splits and compare it with the computed one."""
    parser = cli.Parser(__doc__)
    parser.add_argument("dataset", choices=("cifar10", "cifar100"), help="which data set")
    parser.add_argument(
        "folder", metavar="FOLDER", type=Path, help="where TFDS prepared it, for example .../cifar100/3.0.2"
    )
    parser.add_argument("--arch", default="small_inception", help="architecture of the ensemble the map is for")
    cli.add_overwrite(parser)
    args = parser.parse_args(argv)
    config = load_config(args.config)
    root = ensemble_root(config.fz_models(args.dataset), args.dataset, args.arch)
    if not root.is_dir():
        raise InputError(f"{root}: no such ensemble; put the released models there first")
    sources = {path.name: file_sha256(path) for path in sorted(args.folder.glob(f"{args.dataset}-*.tfrecord-*"))}
    output = Output(root / TFDS_ORDER, {"dataset": args.dataset, "tfds": sources})
    if output.finished(overwrite=args.overwrite):
        print(f"{output.path}: there already, from the same files")
        return
    orders = {}
    for split in ("train", "test"):
        ours = load_dataset(args.dataset, split, config.data_dir)
        pixels = (ours.images * 255).round().byte().numpy()
        try:
            order, by_label, by_position = match_images(
                pixels, ours.labels.numpy(), *read_tfds(args.folder, args.dataset, split)
            )
        except InputError as error:
            raise InputError(f"{args.folder}: {args.dataset} {split}: {error}") from error
        orders[split] = order
        twins = f"with a twin: {by_label} told apart by label, {by_position} by position"
        print(f"{args.dataset} {split}: {len(order)} images matched; {twins}")
        computed = tfds_order(split, len(order))
        other = np.flatnonzero(order != computed)
        same = np.array_equal(pixels[order[other]], pixels[computed[other]])
        said = f"differs at {other.size} positions, {'with equal images' if same else 'with other images'}"
        print(f"{args.dataset} {split}: the computed order {said if other.size else 'is the same'}")
    with exclusive(root):
        output.save(arrays_bytes(**orders), provenance())
    print(f"{output.path}: written")


if __name__ == "__main__":
    cli.run(main)
