"""Small copies of the released data sets and scores, written by the tests.

ILSVRC folders, index files, CIFAR-100, scored ensembles.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets as tv

from libdata.datasets import CIFAR_MD5
from libstore.config import DEFAULT_CONFIG
from libstore.fz import run_dir
from libstore.index import index_digest
from libstore.scores import CURVATURE, CURVATURE_FORMAT, fz_model_name, keep_index, score_path
from libstore.store import Output, array_bytes, arrays_bytes, provenance

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
SYNSETS = ("n01440764", "n01443537", "n02105855")


def write_config(folder: Path, **changes: str | Path) -> Path:
    """Write a configuration whose outputs are in `folder` and whose data are the repository's."""
    values = {key: key for key in json.loads(DEFAULT_CONFIG.read_text())} | {"data_dir": str(DATA)}
    values |= {key: str(value) for key, value in changes.items()}
    path = folder / "config.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def photo(height: int, width: int, seed: int) -> Image.Image:
    """A random picture with detail on all scales, as photographs have."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3))
    for scale in (64, 16, 4, 1):
        coarse = rng.normal(size=(height // scale + 2, width // scale + 2, 3)).repeat(scale, 0).repeat(scale, 1)
        pixels += 12 * scale**0.4 * coarse[:height, :width]
    return Image.fromarray(np.clip(pixels + 120, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    """An image as the content of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo_files() -> dict[str, bytes]:
    """Image files of the kinds that ILSVRC holds, by file name."""
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees for display
    return {
        "n01440764_10.JPEG": encoded(photo(375, 500, 0), quality=95),
        "n01440764_11.JPEG": encoded(photo(500, 333, 1), quality=75, subsampling=0),
        "n01440764_12.JPEG": encoded(photo(300, 400, 2).convert("L"), quality=90),
        "n01443537_7.JPEG": encoded(photo(260, 340, 3).convert("CMYK"), quality=90),
        "n01443537_8.JPEG": encoded(photo(270, 350, 4), "PNG"),
        "n01443537_9.JPEG": encoded(photo(320, 480, 5), quality=85, exif=exif),
        "n02105855_1.JPEG": encoded(photo(97, 130, 6), quality=60),
        "n02105855_2.JPEG": encoded(photo(401, 299, 7), quality=85, progressive=True),
    }


def write_tree(folder: Path, files: dict[str, bytes]) -> None:
    """Lay image files out as ILSVRC does."""
    for name, content in files.items():
        (folder / name.split("_")[0]).mkdir(parents=True, exist_ok=True)
        (folder / name.split("_")[0] / name).write_bytes(content)


def write_imagenet_index(path: Path, names: dict[str, list[str]], **extra: np.ndarray) -> None:
    """Write an imagenet_index.npz as released: object arrays of bytes, labels from 0."""
    arrays = dict(extra)
    for prefix, files in names.items():
        arrays[f"{prefix}_filenames"] = np.array([name.encode() for name in files], dtype=object)
        arrays[f"{prefix}_labels"] = np.array([SYNSETS.index(name.split("_")[0]) for name in files])
    np.savez(path, **arrays)  # type: ignore[arg-type]


def write_cifar100(data_dir: Path, images: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> None:
    """Write torchvision's folder of CIFAR-100 from images (N, 32, 32, 3)."""
    (data_dir / "cifar-100-python").mkdir(parents=True)
    for split in ("train", "test"):
        rows = images[split].transpose(0, 3, 1, 2).reshape(-1, 3072)
        content = {"data": rows, "fine_labels": labels[split].tolist()}
        (data_dir / "cifar-100-python" / split).write_bytes(pickle.dumps(content))


def fake_cifar(root: Path, kind: type[tv.CIFAR10], label_key: str, classes: int) -> tuple[np.ndarray, np.ndarray]:
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    images, labels = [], []
    for name, _ in kind.train_list + kind.test_list:
        pixels, target = rng.integers(0, 256, (20, 3072), dtype=np.uint8), rng.integers(0, classes, 20).tolist()
        batch = {"data": pixels, label_key: target, "filenames": ["a.png"] * 20, "batch_label": name}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=4))
        images.append(pixels)
        labels.append(target)
    n = len(kind.train_list)
    return np.concatenate(images[:n]), np.concatenate(labels[:n])


def cifar_sums(data_dir: Path) -> dict[str, dict[str, str]]:
    """MD5 of CIFAR's files under a folder, as `libdata.datasets.CIFAR_MD5` holds them: what makes small copies pass."""
    found = {base: [name for name in known if (data_dir / base / name).exists()] for base, known in CIFAR_MD5.items()}
    return {
        base: {name: hashlib.md5((data_dir / base / name).read_bytes()).hexdigest() for name in names}
        for base, names in found.items()
        if names
    }


def know_cifar(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take small copies of CIFAR for the real ones, in this process."""
    for base, sums in cifar_sums(data_dir).items():
        for name, md5 in sums.items():
            monkeypatch.setitem(CIFAR_MD5[base], name, md5)  # type: ignore[arg-type]


def write_scored_models(
    root: Path, score_dir: Path, names: tuple[str, str], memorization: np.ndarray, runs: list[int], order: np.ndarray
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Write models as released and their scores as the scoring scripts do; curvature grows with memorization.

    `order` holds the position in the scores of every position in the models' arrays. Returns membership and
    curvature by run, in the order of the scores.
    """
    n = len(memorization)
    written = {}
    for run in runs:
        rng = np.random.default_rng(run)
        chosen = rng.permutation(n)
        index = {"train": chosen[: n * 7 // 10], "removed": chosen[n * 7 // 10 :], "test": np.arange(5)}
        arrays = {f"index_{group}": positions for group, positions in index.items()}
        arrays["subsample_idx"] = index["train"]
        for group, positions in index.items():
            mem = 0.1 if group == "test" else memorization[order[positions]] * (group == "removed")
            arrays[f"correctness_{group}"] = rng.random(len(positions)) >= mem
        directory = run_dir(root, "0.7", run)
        directory.mkdir(parents=True)
        (directory / "aux_arrays.npz").write_bytes(arrays_bytes(**arrays))
        mask = np.zeros(n, dtype=bool)
        mask[order[index["train"]]] = True
        curvature = (rng.gamma(9, 0.1) * (0.02 + memorization) * rng.lognormal(0, 1, n)).astype(np.float32)
        settings = {"data": {"index_sha256": index_digest(np.arange(n))}}
        path = score_path(score_dir, CURVATURE, fz_model_name(*names, "0.7", run), 1e-3)
        path.parent.mkdir(parents=True)
        Output(path, settings, CURVATURE_FORMAT).save(array_bytes(curvature), provenance())
        written[run] = mask, curvature
    keep_index(score_dir, np.arange(n))
    return written


def write_scored_imagenet(
    folder: Path, n_examples: int, runs: list[int]
) -> tuple[np.ndarray, dict[int, tuple[np.ndarray, np.ndarray]]]:
    """Write imagenet_index.npz and scored ResNet-50 models; return memorization and what each model holds."""
    rng = np.random.default_rng(0)
    memorization = np.clip(rng.beta(0.3, 1.2, n_examples) + rng.normal(0, 0.02, n_examples), -1, 1).astype(np.float32)
    files = [f"{SYNSETS[i % len(SYNSETS)]}_{i}.JPEG" for i in rng.permutation(n_examples)]
    folder.mkdir(parents=True, exist_ok=True)
    write_imagenet_index(folder / "imagenet_index.npz", {"tr": files}, tr_mem=memorization)
    written = write_scored_models(
        folder / "fz_models" / "imagenet-resnet50", folder / "scores", ("imagenet", "resnet50"),
        memorization, runs, np.arange(n_examples),
    )  # fmt: skip
    return memorization, written


def write_synthetic_study(folder: Path) -> None:
    """Write what the ImageNet notebook shows as committed, with a configuration; models 11 and 29 of 40 are missing."""
    write_scored_imagenet(folder, 20_000, [run for run in range(40) if run not in (11, 29)])
    places = {"fz_model_dir": "fz_models", "score_dir": "scores", "imagenet_index": "imagenet_index.npz"}
    write_config(folder, data_dir="data", figure_dir="figures", **places)


if __name__ == "__main__":
    write_synthetic_study(Path(sys.argv[1]))
