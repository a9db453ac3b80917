"""Shared fixtures: real JPEG trees, and one TensorFlow process for all tests that compare with it."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from libdata.config import Config
from libscores.curvature import rademacher

ROOT = Path(__file__).resolve().parent.parent
SYNSETS = ("n01440764", "n01443537", "n02105855")


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
    np.savez(path, **arrays)


def write_config(folder: Path, **paths: Path) -> Path:
    """Write a config.json; keys that are not given point into the folder."""
    values = {field.name: str(paths.get(field.name, folder / field.name)) for field in dataclasses.fields(Config)}
    path = folder / "config.json"
    path.write_text(json.dumps(values))
    return path


def write_cifar100(data_dir: Path, images: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> None:
    """Write torchvision's folder of CIFAR-100 from images (N, 32, 32, 3)."""
    (data_dir / "cifar-100-python").mkdir(parents=True)
    for split in ("train", "test"):
        rows = images[split].transpose(0, 3, 1, 2).reshape(-1, 3072)
        content = {"data": rows, "fine_labels": labels[split].tolist()}
        (data_dir / "cifar-100-python" / split).write_bytes(pickle.dumps(content))


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a user has after the downloads, and TensorFlow's numbers for all of it."""
    from build_fz_imagenet import build_imagenet

    folder = tmp_path_factory.mktemp("released")
    files = photo_files()
    order = [name for _, name in sorted((hash_of(name), name) for name in files)]
    write_tree(folder / "imagenet" / "train", files)
    write_imagenet_index(folder / "imagenet_index.npz", {"tr": order}, tr_mem=np.linspace(0, 1, len(order)))
    cmyk = files["n01443537_7.JPEG"]
    adobe = cmyk.index(b"\xff\xee\x00\x0eAdobe")
    (folder / "cmyk.image").write_bytes(cmyk)
    (folder / "plain_cmyk.image").write_bytes(cmyk[:adobe] + cmyk[adobe + 16 :])
    (folder / "png.image").write_bytes(files["n01443537_8.JPEG"])
    config = write_config(
        folder, imagenet_dir=folder / "imagenet", imagenet_index=folder / "imagenet_index.npz",
        tfrecord_dir=folder / "tfrecords", fz_model_dir=folder / "fz_models", data_dir=folder / "data",
    )  # fmt: skip
    build_imagenet.main(["--config", str(config), "--splits", "train", "--train_shards", "3", "--workers", "2"])
    np.save(folder / "probes.npy", rademacher(0, np.arange(6), 2, (3, 32, 32)))
    (folder / "tfds").mkdir()
    for run in ("small_inception", "resnet50_v2"):
        (folder / run).mkdir()
    for run in ("cifar100-inception/0.7/0", "cifar100-inception/0.7/3", "imagenet-resnet50/0.7/1"):
        (folder / "fz_models" / run).mkdir(parents=True)
    command = [sys.executable, str(ROOT / "tests" / "sonnet_oracle.py"), str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"})
    assert result.returncode == 0, result.stderr[-3000:]
    with np.load(folder / "cifar.npz") as cifar:
        write_cifar100(
            folder / "data",
            *({split: cifar[f"{what}_{split}"] for split in ("train", "test")} for what in ("images", "labels")),
        )  # fmt: skip
    return folder


def hash_of(name: str) -> int:
    """An arbitrary but fixed order of file names."""
    return int.from_bytes(name.encode(), "little") % 1009
